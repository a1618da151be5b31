"""A model that is ready to be asked: its weights on a mesh, its tokenizer, and what lets it see."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lwm.devices import machine
from lwm.errors import UserError
from lwm.generate.grammar import VisionGrammar
from lwm.model.cache import KVCache
from lwm.model.llama import Llama
from lwm.plan.fit import require_fit
from lwm.sampling_params import LWM_SAMPLING, SamplingParams, VisionSampling
from lwm.tokenizer.markers import VisionMarkers
from lwm.tokenizer.tokenizer import TextStream, Tokenizer

if TYPE_CHECKING:
    from lwm.media.frames import Frames
    from lwm.tokenizer.message import Part, Vision
    from lwm.vqgan.tokenizer import VisionTokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """A model on its mesh with its tokenizer, ready to answer."""

    name: str
    llama: Llama
    tokenizer: Tokenizer
    mesh: Mesh
    template: str | None = None
    """`lwm`, Jinja source, or None for the model's own chat template."""
    drawings: VisionSampling = LWM_SAMPLING
    """How the model draws where nothing else is asked for."""
    vqgan_file: Path | None = None
    """What turns images into codes and back, as `lwm.vqgan.checkpoint.read_vqgan` opens it."""

    @functools.cached_property
    def marks(self) -> VisionMarkers:
        """What stands around the frames that the model sees and draws.

        Raises:
            UserError: It has text ids only.
        """
        if not self.llama.config.tokens.vision:
            raise UserError(f"{self.name} reads and writes text only")
        return VisionMarkers.of(self.tokenizer, self.llama.config.tokens)

    @functools.cached_property
    def vision(self) -> "VisionTokenizer":
        """What turns pictures into codes and back; read when it is first used.

        Raises:
            UserError: The model has text ids only, or no VQGAN.
        """
        from lwm.vqgan.tokenizer import VisionTokenizer

        tokens = self.marks.tokens
        if self.vqgan_file is None:
            raise UserError(f"{self.name} has no VQGAN beside it; give one with --vqgan")
        return VisionTokenizer.open(self.vqgan_file, tokens, self.mesh)

    @property
    def grammar(self) -> VisionGrammar:
        """Which id may follow which, in what the model writes.

        Raises:
            UserError: It cannot draw; see `vision`.
        """
        return VisionGrammar(
            tokens=self.marks.tokens,
            opening=self.marks.openings,
            tokens_per_frame=self.vision.tokens_per_frame,
        )

    @property
    def context(self) -> int:
        """Tokens that the model can read and write in all."""
        return self.llama.config.max_context

    def require_fit(self, num_ids: int, max_tokens: int) -> None:
        """Refuses a prompt that leaves no room for the answer.

        Raises:
            UserError: How many tokens there are, and how many would fit.
        """
        if num_ids + max_tokens > self.context:
            raise UserError(
                f"the prompt has {num_ids:,} tokens, but {self.name} has a context of "
                f"{self.context:,}: {max(0, self.context - max_tokens):,} fit beside an answer "
                f"of {max_tokens:,}; shorten the prompt or lower max_tokens"
            )

    def require_memory(
        self, slots: int, *, rows: int = 1, instead_of: KVCache | None = None
    ) -> None:
        """Refuses a cache that the devices have no room for beside the model.

        Args:
            slots: Tokens and padding of each row.
            rows: Prompts that are continued together.
            instead_of: A cache that is given up for it.

        Raises:
            UserError: What is needed, what there is, and what can be done.
        """
        dp, fsdp, tp, sp = self.mesh.devices.shape
        held = sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves((self.llama, instead_of))
        )
        here = machine(list(self.mesh.devices.flat)).without(held, self.mesh.size)
        require_fit(
            self.llama.config,
            name=self.name,
            context=slots,
            rows=rows,
            mesh=(dp, fsdp, tp, sp),
            int8=any(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(self.llama)),
            machine=dataclasses.replace(here, count=jax.device_count()),
            shorter=False,
        )

    def require_frames(self, vision: "Vision") -> None:
        """Refuses an image or a video whose frames are not those of the model.

        Raises:
            UserError: How many codes a frame has there, and here.
        """
        theirs, ours = vision.codes.shape[1], self.vision.tokens_per_frame
        if theirs != ours:
            raise UserError(
                f"the {vision.kind} {vision.name} has {theirs} codes a frame, but {self.name} "
                f"{ours}; read it with `see`"
            )

    def encode_prompt(self, prompt: str) -> list[int]:
        """Returns the ids of a text to continue, after the model's beginning of text if it has one.

        Raises:
            UserError: There is nothing to continue.
        """
        ids = self.tokenizer.encode(prompt, special=False)
        if self.tokenizer.add_bos and self.tokenizer.bos_id is not None:
            ids = [self.tokenizer.bos_id, *ids]
        if not ids:
            raise UserError("the prompt is empty; give some text to continue")
        return ids

    def see(
        self,
        file: str | Path | bytes,
        *,
        max_frames: int | None = 8,
        fps: float | None = None,
        background: str = "white",
        check: "Callable[[Frames], None]" = lambda frames: None,
    ) -> "Vision":
        """Reads an image or a video for a question about it.

        Args:
            file: A path, or what a file holds; its content says what it is.
            max_frames: Of a video, evenly spaced; None is all.
            fps: The frames shown at each 1/fps seconds; `max_frames` then thins these out.
            background: A colour, for where a picture is transparent.
            check: Told of the frames before they are encoded, which takes far longer; may raise.

        Raises:
            UserError: It cannot be read, or the model sees nothing.
        """
        from lwm.media.frames import read_frames

        frames = read_frames(
            file,
            resolution=self.vision.resolution,
            max_frames=max_frames,
            fps=fps,
            background=background,
        )
        check(frames)
        name = "" if isinstance(file, bytes) else Path(file).name
        return self.vision.encode(
            frames.pixels, is_video=frames.is_video, times=frames.times, name=name
        )

    def chat(
        self, question: "str | Sequence[Part]", *, document: str | None = None, **writing
    ) -> str:
        """Answers one question in text, about a document if one is given.

        Args:
            question: What to ask: a text, or texts and what `see` returns, in any order.
            document: A text that is put before the question.
            **writing: The fields of `SamplingParams`, such as max_tokens, temperature, seed.

        Raises:
            UserError: The prompt and the answer do not fit into the context.
        """
        from lwm.generate.chat import Conversation

        conversation = Conversation(self, document=document)
        pieces = conversation.ask(question, writing=SamplingParams(**writing))
        return "".join(piece for piece in pieces if isinstance(piece, str))

    def draw(
        self,
        prompt: str,
        *,
        frames: int = 1,
        n: int = 1,
        seed: int = 0,
        first: "Vision | None" = None,
        drawings: VisionSampling = VisionSampling(),
    ) -> "list[Vision]":
        """Draws images or videos of what a text says.

        Args:
            prompt: What is to be seen.
            frames: One for an image, more for a video.
            n: How many to draw, together.
            seed: Of the first; the second has the next one, and so on.
            first: An image or a video that each goes on from; its frames count.
            drawings: How.

        Raises:
            UserError: The model cannot draw, or it does not fit.
        """
        from lwm.generate.vision import draw_whole

        kind = "video" if frames > 1 else "image"
        return draw_whole(
            self, [prompt] * n, kind=kind, frames=frames, first=first, drawings=drawings, seed=seed
        )

    def generate(self, prompt: str, **writing) -> str:
        """Continues a text.

        Args:
            prompt: The text; the beginning-of-text token is put before it where the model
                was trained so.
            **writing: The fields of `SamplingParams`, such as max_tokens, temperature, seed.

        Raises:
            UserError: The prompt is empty, or it and the continuation do not fit.
        """
        from lwm.generate.chat import Reader

        ids = self.encode_prompt(prompt)
        reader = Reader(self)
        stream = TextStream(self.tokenizer, continues=True)
        pieces = reader.answer(ids, stream, SamplingParams(**writing))
        return "".join(piece for piece in pieces if isinstance(piece, str))
