"""Greedy answers for evaluations, each independent of the prompts before it."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from lwm.errors import UserError
from lwm.fingerprint import Fingerprints, fingerprints, model_files, named
from lwm.generate.answer import Answer
from lwm.generate.loaded import LoadedModel
from lwm.sampling_params import SamplingParams

Answerer = Callable[[Sequence[int]], str]
"""Takes the ids of a prompt and returns the text that follows."""


class ModelAnswerer:
    """Answers prompts greedily, one after another.

    What a prompt shares with any prompt before it is not read again, as far as it is in the
    engine's pool; an answer is the same to the last bit whether or not it is.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        tokens: int,
        max_tokens: int,
        progress: Callable[[int], None] = lambda done: None,
    ):
        """Reserves pages for `tokens` tokens, or as many as the memory has room for.

        Args:
            model: The model that answers.
            tokens: Tokens of a prompt and its answer, and of those that others may share.
            max_tokens: Tokens of an answer, at most.
            progress: Called with the tokens of a prompt read so far; may raise.
        """
        self._model = model
        self._max_tokens = max_tokens
        self._progress = progress
        model.engine.reserve(tokens)
        self.num_asked = 0
        """Tokens of all prompts so far."""
        self.num_read = 0
        """Tokens of all prompts that had to be read."""

    def __call__(self, ids: Sequence[int]) -> str:
        """Returns the answer, without the token that ends it.

        Raises:
            UserError: The devices have no memory for the prompt and its answer.
        """
        answer = Answer(
            self._model,
            ids,
            SamplingParams(max_tokens=self._max_tokens),
            progress=lambda done, total: self._progress(done),
        )
        text = "".join(piece for piece in answer if isinstance(piece, str))
        self._progress(len(ids))
        self.num_asked += len(ids)
        self.num_read += len(ids) - answer.usage.cached_tokens
        return text


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
