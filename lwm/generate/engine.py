"""Reads prompts into a cache and continues them. Knows ids and not text."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from lwm.errors import UserError
from lwm.generate.decoding import BURST, RowInputs, decode
from lwm.generate.plan import GenerationPlan
from lwm.model.cache import EMPTY, KVCache
from lwm.model.llama import Llama
from lwm.progress import Progress
from lwm.sharding import BATCH, TOKENS

LONG, SHORT = 512, 64
"""Prompts are read in chunks of these two lengths, so that only two programs are compiled."""


class Burst(NamedTuple):
    """Ids written to each row, -1 where it has stopped, with their log-probabilities."""

    ids: Int[np.ndarray, "B C"]
    logprobs: Float[np.ndarray, "B C"]
    """Natural logarithms, in the row's own distribution over the ids that may come next: before
    guidance and all sampling rules."""


def chunks(length: int) -> list[int]:
    """Splits a prompt into chunks whose sum is at least `length`, the short ones first."""
    long, rest = divmod(length, LONG)
    if rest > LONG // 2:
        return [LONG] * (long + 1)
    return [SHORT] * math.ceil(rest / SHORT) + [LONG] * long


class Session:
    """Rows of a batch that are read and continued together in one cache.

    The rows of a batch write the same slots, so a shorter prompt is padded on the left with
    empty ones. Rows are added, and stay empty, until the batch divides over the mesh.
    """

    def __init__(self, model: Llama, mesh: Mesh, *, rows: int = 1, slots: int):
        """Allocates a cache of `slots` tokens and padding per row.

        Raises:
            UserError: The mesh splits the sequence.
        """
        if mesh.shape["sp"] > 1:
            raise UserError(
                f"generation cannot split the sequence: the mesh has sp {mesh.shape['sp']}; "
                "use dp, fsdp and tp"
            )
        self.model = model.unstack()
        self.mesh = mesh
        self.rows = rows
        parts = math.prod(mesh.shape[axis] for axis in BATCH)
        self._padded_rows = math.ceil(rows / parts) * parts
        with jax.set_mesh(mesh):
            dtype, rows = model.compute.dtype, self._padded_rows
            self.cache = KVCache.empty(model.config, dtype, rows=rows, slots=slots)
        self.done = np.arange(self._padded_rows) >= rows
        # The id in each slot in use, -1 where it is empty.
        self._history = np.full((self._padded_rows, 0), -1, np.int32)
        self._last: Float[Array, "B D"] | None = None
        self._state: Any = None

    def read(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        progress: Progress = lambda done, total: None,
    ) -> None:
        """Reads one more run of ids for each row.

        Raises:
            ValueError: A run is empty, or there is no room; nothing was read then.
        """
        lengths = [len(prompt) for prompt in prompts]
        if len(prompts) != self.rows or not all(lengths):
            raise ValueError(f"{self.rows} runs of at least one id are wanted, not {lengths}")
        sizes = chunks(max(lengths))
        width = sum(sizes)
        self._require_room(width)
        tokens = np.zeros((self._padded_rows, width), np.int32)
        segments = np.full((self._padded_rows, width), EMPTY, np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, width - len(prompt) :] = prompt
            segments[row, width - len(prompt) :] = 0
        start = 0
        for size in sizes:
            self._extend(tokens[:, start : start + size], segments[:, start : start + size])
            start += size
            progress(max(0, max(lengths) - (width - start)), max(lengths))

    def generate(self, plan: GenerationPlan) -> Iterator[Burst]:
        """Continues every row by a plan, and yields up to `BURST` ids of each row at a time.

        A stop id is yielded and read like any other, and ends its row. Between two bursts, the
        caller may end rows by setting `done`.

        Raises:
            ValueError: Nothing has been read, `max_tokens` more do not fit, or the plan is for
                another number of rows.
        """
        if self._last is None:
            raise ValueError("there is nothing to continue; read a prompt first")
        self._require_room(plan.max_tokens)
        plan.check(self.rows)
        inputs, state = plan.lower(self.rows, self._padded_rows)
        inputs, self._state = jax.tree.map(self._put, (inputs, state))
        self.done = np.arange(self._padded_rows) >= self.rows
        return self._bursts(plan, inputs)

    def reserve(self, slots: int) -> None:
        """Grows the cache to at least `slots` tokens and padding."""
        if slots > self.cache.slots:
            with jax.set_mesh(self.mesh):
                self.cache = self.cache.grow(slots)

    def rewind(self, length: int) -> None:
        """Forgets every slot from `length` on; the next call must be `read`.

        Raises:
            ValueError: Fewer slots are in use.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"{length} slots cannot be kept: {self.length} are in use")
        with jax.set_mesh(self.mesh):
            self.cache = self.cache.rewind(length)
        self._history = self._history[:, :length]
        self._last = None

    @property
    def length(self) -> int:
        """Slots in use."""
        return self._history.shape[1]

    @property
    def is_lost(self) -> bool:
        """True if a program was interrupted after it had taken the cache."""
        return any(leaf.is_deleted() for leaf in jax.tree.leaves(self.cache))

    @property
    def state(self) -> Any:
        """The state of each row in the grammar after the last burst."""
        return jax.tree.map(lambda leaf: np.asarray(leaf)[: self.rows], self._state)

    def _bursts(self, plan: GenerationPlan, inputs: RowInputs) -> Iterator[Burst]:
        assert self._last is not None
        last, seen = self._last, self._put(self._seen())
        leader = slice(None) if inputs.guidance is None else np.asarray(inputs.guidance.leader)
        for start in range(0, plan.max_tokens, BURST):
            done = self.done[leader]
            steps = min(BURST, plan.max_tokens - start)
            with jax.set_mesh(self.mesh):
                now = decode(
                    self.model,
                    self.cache,
                    last,
                    seen,
                    done,
                    start,
                    steps,
                    self._state,
                    inputs,
                    grammar=plan.grammar,
                )
            last, seen = now.last, now.seen
            self.cache, self._last, self._state = now.cache, last, now.state
            # Reading the count waits for the device; the rest comes from the finished program.
            count = int(now.count)
            self.done = np.array(now.done)
            written = np.asarray(now.ids)[:, :count]
            self._history = np.concatenate([self._history, written], axis=1)
            if count:
                yield Burst(written[: self.rows], np.asarray(now.logprobs)[: self.rows, :count])
            if self.done.all():
                return

    def _put(self, whole: np.ndarray) -> jax.Array:
        """Replicates an array over the devices, as the loop returns it, to avoid a second trace."""
        place = NamedSharding(self.mesh, P(*[None] * whole.ndim))
        return jax.make_array_from_callback(whole.shape, place, whole.__getitem__)

    def _seen(self) -> Bool[np.ndarray, "B V"]:
        """Returns which text ids each row has read or written."""
        text = self.model.config.tokens.text
        seen = np.zeros((self._padded_rows, text + 1), bool)
        # Empty slots and vision ids mark the last column.
        np.put_along_axis(seen, np.where(self._history < text, self._history, -1), True, axis=1)
        return seen[:, :-1]

    def _require_room(self, width: int) -> None:
        if self.length + width > self.cache.slots:
            raise ValueError(
                f"{width} more slots do not fit: {self.length} of {self.cache.slots} are in use"
            )

    def _extend(self, tokens: np.ndarray, segments: np.ndarray) -> None:
        place = NamedSharding(self.mesh, TOKENS)
        with jax.set_mesh(self.mesh):
            self._last, self.cache = self.model.extend(
                jax.device_put(tokens, place), jax.device_put(segments, place), self.cache
            )
        ids = np.where(segments == EMPTY, -1, tokens)
        self._history = np.concatenate([self._history, ids], axis=1)
