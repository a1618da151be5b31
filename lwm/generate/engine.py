"""Reads prompts into a cache and continues them. Knows ids and not text."""

import functools
import math
from collections.abc import Callable, Collection, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P, reshard
from jaxtyping import Array, Bool, Float, Int

from lwm.errors import UserError
from lwm.generate.sampling import Greedy, Sampler
from lwm.model.cache import EMPTY, KVCache
from lwm.model.llama import Llama
from lwm.sharding import BATCH, TOKENS

LONG, SHORT = 512, 64
"""Prompts are read in chunks of these two lengths, so that only two programs are compiled."""

BURST = 8
"""Tokens decoded by one call of the compiled loop, and so between two looks from outside."""

Progress = Callable[[int, int], None]
"""Told, between two chunks, how many tokens of how many are read; may raise to stop there."""


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
        self.length = 0
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
        sampler: Sampler = Greedy(),  # noqa: B008  (frozen)
        seed: int = 0,
    ) -> Iterator[Int[np.ndarray, "B C"]]:
        """Continues every row; yields up to `BURST` ids at a time, -1 for rows that have stopped.

        A stop id is yielded and read like any other, and ends its row.

        Raises:
            ValueError: Nothing has been read, or `max_tokens` more do not fit.
        """
        if self._last is None:
            raise ValueError("there is nothing to continue; read a prompt first")
        self._require_room(max_tokens)
        stops = np.fromiter(stop_ids, np.int32)
        done = np.arange(self._padded_rows) >= self.rows
        for start in range(0, max_tokens, BURST):
            steps = min(BURST, max_tokens - start)
            with jax.set_mesh(self.mesh):
                self.cache, self._last, written, done, count = _decode(
                    self.model,
                    self.cache,
                    self._last,
                    done,
                    jax.random.key(seed),
                    start,
                    stops,
                    sampler=sampler,
                    steps=steps,
                )
            # Reading the count waits for the device; the ids come from the finished program.
            count, done = int(count), np.asarray(done)
            self.length += count
            yield np.asarray(written)[: self.rows, :count]
            if done.all():
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
        self.length = length
        self._last = None

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
        self.length += tokens.shape[1]


@functools.partial(jax.jit, static_argnames=("sampler", "steps"), donate_argnames=("cache",))
def _decode(
    model: Llama,
    cache: KVCache,
    last: Float[Array, "B D"],
    done: Bool[Array, " B"],
    key: Array,
    start: Int[Array, ""],
    stops: Int[Array, " E"],
    *,
    sampler: Sampler,
    steps: int,
) -> tuple[KVCache, Array, Int[Array, "B C"], Bool[Array, " B"], Int[Array, ""]]:
    """Decodes up to `steps` ids, fewer if all rows stop; the key of a step is its number's."""
    rows = last.shape[0]

    def going(state):
        return (state[0] < steps) & ~jnp.all(state[4])

    def step(state):
        i, cache, last, written, done = state
        logits = reshard(model.logits(last[:, None])[:, 0], P())[:, : model.config.tokens.text]
        keys = jnp.broadcast_to(jax.random.fold_in(key, start + i), (rows,))
        chosen = sampler(logits, keys=keys)
        written = written.at[:, i].set(jnp.where(done, -1, chosen))
        segments = jnp.where(done, EMPTY, 0)
        last, cache = model.extend(
            reshard(chosen[:, None], TOKENS), reshard(segments[:, None], TOKENS), cache
        )
        stopped = jnp.any(chosen[:, None] == stops[None, :], axis=1)
        return i + 1, cache, last, written, done | stopped

    written = jnp.full((rows, steps), -1, jnp.int32)
    state = (jnp.zeros((), jnp.int32), cache, last, written, jnp.asarray(done))
    count, cache, last, written, done = jax.lax.while_loop(going, step, state)
    return cache, last, written, done, count
