"""A loaded model: weights on a mesh, tokenizer, vision grammar, and checks of what fits."""

import dataclasses
import functools
import math
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
from lwm.sampling_params import LWM_SAMPLING, VisionSampling
from lwm.tokenizer.markers import VisionMarkers
from lwm.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lwm.tokenizer.message import Vision
    from lwm.vqgan.tokenizer import VisionTokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """Weights on a mesh with their tokenizer, chat template and VQGAN."""

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
        return VisionTokenizer.open(self.vqgan_file, mesh=self.mesh, tokens=tokens)

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
        is_int8 = any(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(self.llama))
        here = machine(list(self.mesh.devices.flat)).without(held, self.mesh.size)
        require_fit(
            self.llama.config,
            name=self.name,
            context=slots,
            rows=rows,
            mesh=(dp, fsdp, tp, sp),
            dtype="int8" if is_int8 else self.llama.compute.dtype,
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
