"""Greedy answers for evaluations, each independent of the prompts before it."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from lwm.errors import UserError
from lwm.fingerprint import Fingerprints, fingerprints, model_files, named
from lwm.generate.engine import LONG, Session
from lwm.generate.loaded import LoadedModel
from lwm.generate.plan import GenerationPlan
from lwm.generate.prefix import Prefix
from lwm.tokenizer.tokenizer import TextStream

Answerer = Callable[[Sequence[int]], str]
"""Takes the ids of a prompt and returns the text that follows."""


class ModelAnswerer:
    """Answers prompts one after another; a prefix shared with the prompt before is not read again.

    A prompt is read in blocks from its start, and only whole blocks are kept for the next. So
    each block is always computed in the same way, and an answer is the same to the last bit
    whether the prompts before it were asked now, in another run, or never.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        longest: int,
        max_tokens: int,
        progress: Callable[[int], None] = lambda done: None,
    ):
        """Allocates a cache for prompts and answers of `longest` tokens.

        Args:
            model: The model that answers.
            longest: Tokens of a prompt and its answer together, at most.
            max_tokens: Tokens of an answer, at most.
            progress: Called between blocks with the tokens of a prompt read so far; may raise.

        Raises:
            UserError: The devices have no memory for so many tokens.
        """
        slots = longest + LONG
        model.require_memory(slots)
        self._tokenizer = model.tokenizer
        self._max_tokens = max_tokens
        self._progress = progress
        self._session = Session(model.llama, model.mesh, slots=slots)
        self._prefix = Prefix()
        self.num_asked = 0
        """Tokens of all prompts so far."""
        self.num_read = 0
        """Tokens of all prompts that had to be read."""

    def __call__(self, ids: Sequence[int]) -> str:
        """Returns the answer, without the token that ends it."""
        self._read(ids)
        stops, stream = self._tokenizer.eos_ids, TextStream(self._tokenizer)
        pieces = []
        plan = GenerationPlan(max_tokens=self._max_tokens, stop_ids=stops)
        for burst in self._session.generate(plan):
            written = burst.ids[0].tolist()
            pieces += [stream.push(token) for token in written if token not in stops]
            self._progress(len(ids))
        return "".join(pieces) + stream.finish()

    def _read(self, ids: Sequence[int]) -> None:
        shared, whole = self._prefix.match(ids, multiple=LONG), (len(ids) - 1) // LONG * LONG
        self._prefix.rewind(self._session, shared)
        for start in range(shared, whole, LONG):
            self._prefix.read(self._session, ids[start : start + LONG])
            self._progress(start + LONG)
        self._session.read([ids[whole:]])
        self._progress(len(ids))
        self.num_asked += len(ids)
        self.num_read += len(ids) - shared


def require_context(length: int, context: int, name: str) -> None:
    """Refuses a length above the model's context.

    Raises:
        UserError: The length is above the context.
    """
    if length > context:
        raise UserError(
            f"length {length:,} is above the context of {name}, {context:,} tokens; lower lengths"
        )


def describe_model(model: LoadedModel) -> dict[str, Any]:
    """Returns a description that differs between models, also between stages of training."""
    leaves = jax.tree.leaves(model.llama)
    template = model.template or model.tokenizer.chat_template or "lwm"
    return {
        "name": model.name,
        "parameters": sum(leaf.size for leaf in leaves),
        "context": model.context,
        "dtype": model.llama.compute.dtype,
        "weights": _sample(leaves),
        "template": template if len(template) < 16 else _digest(template.encode()),
        # As resolved: RoPE's base, scaling and context may be the user's.
        "config": dataclasses.asdict(model.llama.config),
    }


def model_fingerprints(model: LoadedModel) -> Fingerprints:
    """Returns the fingerprints of the files that a model was read from, its VQGAN's included."""
    if model.source is None:
        return {}
    files = named(model_files(model.source))
    if model.vqgan_file is not None:
        files |= named(model_files(model.vqgan_file), "vqgan/")
    return fingerprints(files)


def _sample(leaves: Sequence[jax.Array]) -> str:
    """Hashes a few numbers of every tensor, which is fast for any size."""
    found = hashlib.sha256()
    for leaf in leaves:
        shard = leaf.addressable_shards[0].data
        corner = (slice(64), *[0] * (leaf.ndim - 2), slice(8))[: leaf.ndim]
        found.update(np.asarray(shard[corner]).astype(np.float32).tobytes())
    return found.hexdigest()[:16]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
