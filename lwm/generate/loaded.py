"""A loaded model: weights on a mesh, tokenizer, vision grammar, and checks of what fits."""

import dataclasses
import functools
import itertools
import math
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, UInt8

from lwm.devices import machine
from lwm.errors import UserError
from lwm.generate.engine import Engine
from lwm.generate.grammar import VisionGrammar
from lwm.model.config import CacheDtype
from lwm.model.llama import Llama
from lwm.model.pool import PagePool
from lwm.plan.fit import require_fit
from lwm.sampling_params import LWM_SAMPLING, STOP_IDS, VisionSampling
from lwm.sharding import make_mesh
from lwm.tokenizer.markers import VisionMarkers
from lwm.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lwm.tokenizer.message import Vision
    from lwm.vqgan.tokenizer import VisionTokenizer


_T = TypeVar("_T")
_STARTING = threading.Lock()
WIDEST = 16
"""Rows that are decoded together at most, for each group of devices that holds whole rows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """Weights on a mesh with their tokenizer, chat template and VQGAN."""

    name: str
    llama: Llama
    tokenizer: Tokenizer
    mesh: Mesh
    template: str | None = None
    """`lwm`, Jinja source, or None for the model's own chat template."""
    sampling: VisionSampling = LWM_SAMPLING
    """Sampling of images and videos if a request names none."""
    vqgan_file: Path | None = None
    """The VQGAN of its images: a file or folder for `lwm.vqgan.checkpoint.read_vqgan`."""
    source: Path | None = None
    """The file or folder that it was read from."""
    adapter: Path | None = None
    """The folder of the adapter that is added to its weights."""
    pool_tokens: int | None = None
    """Tokens in the cache of each device; None: it grows with what is asked, as memory allows."""
    cache_dtype: CacheDtype | None = None
    """Type of keys and values in the cache; None: that of activations."""

    def __post_init__(self):
        """Takes what the template writes for control tokens; see `Tokenizer.under`."""
        object.__setattr__(self, "tokenizer", self.tokenizer.under(self.template))

    def __repr__(self) -> str:
        """Names the model, its type and its context."""
        kinds = "text, images and video" if self.sees else "text"
        return f"<{self.name}: {kinds}, {self.llama.held}, context {self.context:,}>"

    @property
    def sees(self) -> bool:
        """True if the model has vision ids."""
        return bool(self.llama.config.tokens.vision)

    @functools.cached_property
    def marks(self) -> VisionMarkers:
        """Ids around the frames of images and videos.

        Raises:
            UserError: The model has text ids only.
        """
        if not self.sees:
            raise UserError(f"{self.name} reads and writes text only")
        return VisionMarkers.of(self.tokenizer, self.llama.config.tokens)

    @functools.cached_property
    def vision(self) -> "VisionTokenizer":
        """Turns images and videos into codes and back; read at first use.

        Raises:
            UserError: The model has text ids only, or no VQGAN.
        """
        from lwm.vqgan.tokenizer import VisionTokenizer

        tokens = self.marks.tokens
        if self.vqgan_file is None:
            raise UserError(f"{self.name} has no VQGAN beside it; give one with --vqgan")
        return VisionTokenizer.open(self.vqgan_file, mesh=self._vision_mesh, tokens=tokens)

    @property
    def _vision_mesh(self) -> Mesh:
        """The devices that encode and decode frames: of several processes, those of this one."""
        if jax.process_count() == 1:
            return self.mesh
        own = jax.local_devices()
        return make_mesh(f"{len(own)},1,1,1", own)

    def _run(self, function: Callable[[], _T]) -> _T:
        """Runs a program of frames: between the steps of the engine, if it is on its devices."""
        return self.engine.run(function) if jax.process_count() == 1 else function()

    def encode_frames(self, pixels: UInt8[np.ndarray, "N R R 3"]) -> Int[np.ndarray, "N T"]:
        """Returns the codes of frames.

        Raises:
            UserError: See `vision`.
        """
        return np.concatenate(list(self.encode_stream(pixels, len(pixels))))

    def encode_stream(
        self, frames: Iterable[UInt8[np.ndarray, "R R 3"]], count: int
    ) -> Iterator[Int[np.ndarray, "n T"]]:
        """Yields the codes of frames in batches; takes the frames of one batch at a time.

        Args:
            frames: The frames.
            count: Their number, at most.

        Raises:
            UserError: See `vision`.
        """
        size = self.vision.frames_per_batch
        encode = self.vision.encode if count <= size else self.vision.encode_batch
        left = iter(frames)
        while batch := list(itertools.islice(left, size)):
            # Between batches, answers go on.
            yield self._run(functools.partial(encode, np.stack(batch)))

    def decode_frames(self, codes: Int[np.ndarray, "N T"]) -> UInt8[np.ndarray, "N R R 3"]:
        """Returns the frames of codes.

        Raises:
            UserError: See `vision`.
        """
        size = self.vision.frames_per_batch
        if len(codes) <= size:
            return self._run(functools.partial(self.vision.decode, codes))
        frames = []
        for at in range(0, len(codes), size):
            part = codes[at : at + size]
            whole = np.pad(part, [(0, size - len(part)), (0, 0)])
            # Between batches, answers go on.
            decoded = self._run(functools.partial(self.vision.decode, whole))
            frames.append(decoded[: len(part)])
        return np.concatenate(frames)

    def follow(self) -> None:
        """Takes part in the work of process 0, on all others, until its engine is closed.

        Process 0 uses the model as if it were alone.

        Raises:
            Exception: A program has failed here and not on process 0.
        """
        self.engine.follow()

    @property
    def engine(self) -> Engine:
        """Reads prompts and continues them, for all threads; made at first use."""
        with _STARTING:
            return self._engine

    @functools.cached_property
    def _engine(self) -> Engine:
        grammar = None
        if self.sees:
            # Each row brings the size of its frames, which only the VQGAN knows.
            grammar = VisionGrammar(
                tokens=self.marks.tokens, opening=self.marks.openings, tokens_per_frame=1
            )
        own = weakref.ref(self)  # so that a model that is dropped frees its memory at once

        def require_memory(tokens: int, pool: PagePool | None) -> None:
            if (model := own()) is not None:
                model.require_memory(tokens, instead_of=pool)

        return Engine(
            self.llama,
            self.mesh,
            grammar=grammar,
            stop_places=1 << (len(self.tokenizer.eos_ids) + STOP_IDS - 1).bit_length(),
            pool_tokens=self.pool_tokens,
            cache_dtype=self.cache_dtype,
            require_memory=require_memory,
        )

    def lane(self, rows: int, *, together: int = 1) -> int:
        """Returns the width of the lane for so many rows, or for as many of them as it holds.

        Args:
            rows: Rows that are wanted at once.
            together: Rows of each request, which run in one group of devices.
        """
        groups = self.engine.groups
        each = max(together, min(-(-rows // groups), max(WIDEST, together)))
        return groups * (1 << (each - 1).bit_length())

    @property
    def grammar(self) -> VisionGrammar:
        """Rules which id may follow which in generated text and frames.

        Raises:
            UserError: The model cannot generate images; see `vision`.
        """
        return VisionGrammar(
            tokens=self.marks.tokens,
            opening=self.marks.openings,
            tokens_per_frame=self.vision.tokens_per_frame,
        )

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together, at most."""
        return self.llama.config.max_context

    def require_fit(self, num_ids: int, max_tokens: int) -> None:
        """Refuses a prompt that leaves no room for the answer.

        Raises:
            UserError: Names the tokens of the prompt, and how many would fit.
        """
        # Without an answer, the last id is scored and not read.
        if num_ids + max_tokens > self.context + (max_tokens == 0):
            raise UserError(
                f"the prompt has {num_ids:,} tokens, but {self.name} has a context of "
                f"{self.context:,}: {max(0, self.context - max_tokens):,} fit beside an answer "
                f"of {max_tokens:,}; shorten the prompt or lower max_tokens"
            )

    def require_memory(self, tokens: int, *, instead_of: PagePool | None = None) -> None:
        """Refuses a cache for which the devices have no memory beside the model.

        Args:
            tokens: Tokens in the pages of each device.
            instead_of: A pool that it replaces.

        Raises:
            UserError: Names the memory needed and available, and remedies.
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
            context=tokens * sp,
            lane=WIDEST * dp * fsdp,
            mesh=(dp, fsdp, tp, sp),
            dtype=self.llama.held,
            cache=self.cache_dtype,
            machine=dataclasses.replace(here, count=jax.device_count()),
            remedy="shorten the prompt",
        )

    def require_frames(self, vision: "Vision") -> None:
        """Refuses an image or a video whose frames are not those of the model.

        Raises:
            UserError: Names the codes per frame of both.
        """
        theirs, ours = vision.codes.shape[1], self.vision.tokens_per_frame
        if theirs != ours:
            raise UserError(
                f"the {vision.kind} {vision.name} has {theirs} codes a frame, but {self.name} "
                f"{ours}; read it with `see`"
            )

    def encode_prompt(self, prompt: str) -> list[int]:
        """Returns the ids of a text to continue, after the beginning-of-text id if there is one.

        Raises:
            UserError: The prompt is empty.
        """
        ids = self.tokenizer.encode(prompt, special=False)
        if self.tokenizer.add_bos and self.tokenizer.bos_id is not None:
            ids = [self.tokenizer.bos_id, *ids]
        if not ids:
            raise UserError("the prompt is empty; give some text to continue")
        return ids
