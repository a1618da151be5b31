"""How an evaluation asks a model: greedy, and so that no answer hangs on what was asked before."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from lwm.errors import UserError
from lwm.generate.engine import LONG, Session
from lwm.generate.language_model import LanguageModel
from lwm.tokenizer.tokenizer import TextStream

Answerer = Callable[[Sequence[int]], str]
"""Takes the ids of a prompt and returns the text that follows: a model, or a program in tests."""


class ModelAnswerer:
    """Answers prompts one after another, reading only what the one before did not begin with.

    A prompt is read in blocks from its start, and only whole blocks are kept for the next. So
    each block is always computed in the same way, and an answer is the same to the last bit
    whether the prompts before it were asked now, in another run, or never.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        longest: int,
        max_tokens: int,
        progress: Callable[[int], None] = lambda done: None,
    ):
        """Makes room for prompts and answers of `longest` tokens.

        Args:
            model: Which model answers.
            longest: Tokens of a prompt and its answer together, at most.
            max_tokens: Tokens of an answer, at most.
            progress: Told, between blocks, how many tokens of a prompt are read; may raise.

        Raises:
            UserError: The devices have no memory for so many tokens.
        """
        slots = longest + LONG
        model.require_memory(slots)
        self._tokenizer = model.tokenizer
        self._max_tokens = max_tokens
        self._progress = progress
        self._session = Session(model.llama, model.mesh, slots=slots)
        self._blocks: list[tuple[int, ...]] = []
        self.num_asked = 0
        """Tokens of all prompts so far."""
        self.num_read = 0
        """Those of them that had to be read."""

    def __call__(self, ids: Sequence[int]) -> str:
        """Returns the answer, without the token that ends it."""
        self._read(ids)
        stops, stream = self._tokenizer.eos_ids, TextStream(self._tokenizer)
        pieces = []
        for burst in self._session.generate(max_tokens=self._max_tokens, stop_ids=stops):
            written = burst.ids[0].tolist()
            pieces += [stream.push(token) for token in written if token not in stops]
            self._progress(len(ids))
        return "".join(pieces) + stream.finish()

    def _read(self, ids: Sequence[int]) -> None:
        # At least one id is always left to read, for the answer goes on from it.
        starts = range(0, len(ids) - LONG, LONG)
        blocks = [tuple(ids[start : start + LONG]) for start in starts]
        shared = 0
        for old, new in zip(self._blocks, blocks, strict=False):
            if old != new:
                break
            shared += 1
        del self._blocks[shared:]
        self._session.rewind(shared * LONG)
        for block in blocks[shared:]:
            self._session.read([block])
            self._blocks.append(block)
            self._progress(len(self._blocks) * LONG)
        self._session.read([ids[len(blocks) * LONG :]])
        self._progress(len(ids))
        self.num_asked += len(ids)
        self.num_read += len(ids) - shared * LONG


def require_context(length: int, context: int, name: str) -> None:
    """Refuses a length that the model cannot hold.

    Raises:
        UserError: The two numbers.
    """
    if length > context:
        raise UserError(
            f"length {length:,} is above the context of {name}, {context:,} tokens; lower lengths"
        )


def describe_model(model: LanguageModel) -> dict[str, Any]:
    """Returns what tells this model from another, a further trained one included."""
    leaves = jax.tree.leaves(model.llama)
    template = model.template or model.tokenizer.chat_template or "lwm"
    return {
        "name": model.name,
        "parameters": sum(leaf.size for leaf in leaves),
        "context": model.context,
        "dtype": model.llama.compute.dtype,
        "weights": _sample(leaves),
        "template": template if len(template) < 16 else _digest(template.encode()),
    }


def _sample(leaves: Sequence[jax.Array]) -> str:
    """Digests a few numbers of every tensor: to read all of them would take too long."""
    found = hashlib.sha256()
    for leaf in leaves:
        shard = leaf.addressable_shards[0].data
        corner = (slice(64), *[0] * (leaf.ndim - 2), slice(8))[: leaf.ndim]
        found.update(np.asarray(shard[corner]).astype(np.float32).tobytes())
    return found.hexdigest()[:16]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
