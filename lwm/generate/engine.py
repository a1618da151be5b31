"""Reads prompts into a cache and continues them. Knows ids and not text."""

import functools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P, reshard
from jaxtyping import Array, Bool, Float, Int, UInt32

from lwm.errors import UserError
from lwm.generate.sampling import GREEDY, Sampler
from lwm.model.cache import EMPTY, KVCache
from lwm.model.llama import Llama
from lwm.sharding import BATCH, TOKENS

LONG, SHORT = 512, 64
"""Prompts are read in chunks of these two lengths, so that only two programs are compiled."""

BURST = 8
"""Tokens decoded by one call of the compiled loop, and so between two looks from outside."""

Progress = Callable[[int, int], None]
"""Told, between two chunks, how many tokens of how many are read; may raise to stop there."""


class Burst(NamedTuple):
    """Ids written to each row, -1 where it has stopped, and how likely the model found each."""

    ids: Int[np.ndarray, "B C"]
    logprobs: Float[np.ndarray, "B C"]
    """Natural logarithms, of the model's own distribution before any rule of sampling."""


def chunks(length: int) -> list[int]:
    """Splits a prompt into chunks whose sum is at least `length`, the short ones first."""
    long, rest = divmod(length, LONG)
    if rest > LONG // 2:
        return [LONG] * (long + 1)
    return [SHORT] * math.ceil(rest / SHORT) + [LONG] * long


class Session:
    """Rows of a batch that are read and continued together, and the cache that they share.

    The rows of a batch write the same slots, so a shorter prompt is padded on the left with
    empty ones. Rows are added, and stay empty, until the batch divides over the mesh.
    """

    def __init__(self, model: Llama, mesh: Mesh, *, rows: int = 1, slots: int):
        """Makes room for `slots` tokens and padding in each row.

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
            self.cache = KVCache.empty(model.config, rows=self._padded_rows, slots=slots)
        self.done = np.arange(self._padded_rows) >= rows
        # The id in each slot in use, -1 where it is empty.
        self._history = np.full((self._padded_rows, 0), -1, np.int32)
        self._last: Float[Array, "B D"] | None = None

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

    def generate(
        self,
        *,
        max_tokens: int,
        stop_ids: Collection[int] = (),
        sampler: Sampler = GREEDY,
        seed: int | Sequence[int] = 0,
    ) -> Iterator[Burst]:
        """Continues every row, and yields what is written up to `BURST` ids at a time.

        A stop id is yielded and read like any other, and ends its row. Between two bursts, the
        caller may end rows by setting `done`.

        Args:
            max_tokens: Ids to write at most.
            stop_ids: Ids that end a row.
            sampler: How an id is chosen.
            seed: One for all rows, or one for each. A row's draws depend on its seed alone.

        Raises:
            ValueError: Nothing has been read, or `max_tokens` more do not fit.
        """
        if self._last is None:
            raise ValueError("there is nothing to continue; read a prompt first")
        self._require_room(max_tokens)
        stops = np.fromiter(stop_ids, np.int32)
        seeds = np.zeros(self._padded_rows, np.uint32)
        seeds[: self.rows] = seed
        seen = self._seen()
        self.done = np.arange(self._padded_rows) >= self.rows
        for start in range(0, max_tokens, BURST):
            with jax.set_mesh(self.mesh):
                self.cache, self._last, seen, done, written, logprobs, count = _decode(
                    self.model,
                    self.cache,
                    self._last,
                    seen,
                    self.done,
                    seeds,
                    start,
                    stops,
                    min(BURST, max_tokens - start),
                    sampler=sampler,
                )
            # Reading the count waits for the device; the rest comes from the finished program.
            count = int(count)
            self.done = np.array(done)
            written = np.asarray(written)[:, :count]
            self._history = np.concatenate([self._history, written], axis=1)
            yield Burst(written[: self.rows], np.asarray(logprobs)[: self.rows, :count])
            if self.done.all():
                return

    def reserve(self, slots: int) -> None:
        """Sees to it that there is room for `slots` tokens and padding in all."""
        if slots > self.cache.slots:
            with jax.set_mesh(self.mesh):
                self.cache = self.cache.grow(slots)

    def rewind(self, length: int) -> None:
        """Forgets every slot from `length` on; something must be read before going on."""
        with jax.set_mesh(self.mesh):
            self.cache = self.cache.rewind(length)
        self._history = self._history[:, :length]
        self._last = None

    @property
    def length(self) -> int:
        """Slots in use."""
        return self._history.shape[1]

    def _seen(self) -> Bool[np.ndarray, "B V"]:
        """Says which ids each row has read or written."""
        seen = np.zeros((self._padded_rows, self.model.config.tokens.text + 1), bool)
        np.put_along_axis(seen, self._history, True, axis=1)  # empty slots mark the last column
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


@functools.partial(jax.jit, static_argnames="sampler", donate_argnames=("cache",))
def _decode(
    model: Llama,
    cache: KVCache,
    last: Float[Array, "B D"],
    seen: Bool[Array, "B V"],
    done: Bool[Array, " B"],
    seeds: UInt32[Array, " B"],
    start: Int[Array, ""],
    stops: Int[Array, " E"],
    steps: Int[Array, ""],
    *,
    sampler: Sampler,
) -> tuple[KVCache, Array, Array, Array, Array, Array, Array]:
    """Decodes up to `steps` ids, fewer if all rows stop; the key of a step is its number's."""
    rows = last.shape[0]
    row_keys = jax.vmap(jax.random.key)(seeds)

    def going(state):
        return (state[0] < steps) & ~jnp.all(state[4])

    def step(state):
        i, cache, last, seen, done, written, logprobs = state
        # All devices choose the same ids from all logits: no collective inside a sort.
        logits = reshard(model.logits(last[:, None])[:, 0], P())[:, : model.config.tokens.text]
        keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, start + i)
        chosen = sampler(logits, seen=seen, keys=keys)
        chance = jnp.take_along_axis(jax.nn.log_softmax(logits), chosen[:, None], axis=1)[:, 0]
        written = written.at[:, i].set(jnp.where(done, -1, chosen))
        logprobs = logprobs.at[:, i].set(chance)
        seen = seen.at[jnp.arange(rows), chosen].set(True)
        segments = jnp.where(done, EMPTY, 0)
        last, cache = model.extend(
            reshard(chosen[:, None], TOKENS), reshard(segments[:, None], TOKENS), cache
        )
        stopped = jnp.any(chosen[:, None] == stops[None, :], axis=1)
        return i + 1, cache, last, seen, done | stopped, written, logprobs

    written = jnp.full((rows, BURST), -1, jnp.int32)
    logprobs = jnp.zeros((rows, BURST))
    state = (jnp.zeros((), jnp.int32), cache, last, seen, done, written, logprobs)
    count, cache, last, seen, done, written, logprobs = jax.lax.while_loop(going, step, state)
    return cache, last, seen, done, written, logprobs, count
