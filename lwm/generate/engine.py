"""Reads prompts into a cache and continues them. Knows ids and not text."""

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from lwm.errors import UserError
from lwm.generate.decoding import BURST, Chooser, Guidance, decode
from lwm.generate.grammar import Grammar
from lwm.generate.sampling import GREEDY, Sampler
from lwm.model.cache import EMPTY, KVCache
from lwm.model.llama import Llama
from lwm.progress import Progress
from lwm.sharding import BATCH, TOKENS

LONG, SHORT = 512, 64
"""Prompts are read in chunks of these two lengths, so that only two programs are compiled."""


class Burst(NamedTuple):
    """Ids written to each row, -1 where it has stopped, and how likely the model found each."""

    ids: Int[np.ndarray, "B C"]
    logprobs: Float[np.ndarray, "B C"]
    """Natural logarithms, of the row's own distribution over the ids that may come next: before
    guidance and any rule of sampling."""


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

    def generate(
        self,
        *,
        max_tokens: int,
        stop_ids: Collection[int] = (),
        sampler: Sampler = GREEDY,
        image_sampler: Sampler | None = None,
        video_sampler: Sampler | None = None,
        grammar: Grammar | None = None,
        state: Any = None,
        guidance: float | Sequence[float] | None = None,
        video_guidance: float | Sequence[float] | None = None,
        seed: int | Sequence[int] = 0,
    ) -> Iterator[Burst]:
        """Continues every row, and yields what is written up to `BURST` ids at a time.

        A stop id is yielded and read like any other, and ends its row. Between two bursts, the
        caller may end rows by setting `done`.

        With guidance, row n + i of 2n rows is row i without its condition. Both write the ids
        that are chosen for row i, whose seed, state and end count for both.

        Args:
            max_tokens: Ids to write at most.
            stop_ids: Ids that end a row.
            sampler: How an id is chosen.
            image_sampler: How the first frame of an image or video is drawn; None: as text is.
            video_sampler: How the frames after it are drawn; None: as the first one.
            grammar: Which ids may follow which; None: text only.
            state: Where each row stands in the grammar; `self.state` to go on from the last call.
            guidance: How far vision ids are pushed away from what the model draws without the
                condition: one scale for all pairs of rows, or one for each; 1 changes nothing.
            video_guidance: The same for frames after the first; None: as for the first.
            seed: One for all rows, or one for each. A row's draws depend on its seed alone.

        Raises:
            ValueError: Nothing has been read, or `max_tokens` more do not fit, or the arguments
                do not go together.
        """
        if self._last is None:
            raise ValueError("there is nothing to continue; read a prompt first")
        self._require_room(max_tokens)
        _require_fitting(self.rows, grammar, state, guidance)
        image_sampler = sampler if image_sampler is None else image_sampler
        chooser = Chooser(
            tokens=self.model.config.tokens,
            sampler=sampler,
            image_sampler=image_sampler,
            video_sampler=image_sampler if video_sampler is None else video_sampler,
            grammar=grammar,
        )
        pairs = self._pairs(guidance, guidance if video_guidance is None else video_guidance)
        self._state = jax.tree.map(lambda leaf: self._put(self._each(leaf, pairs)), state)
        seeds = self._each(np.broadcast_to(np.asarray(seed, np.uint32), self.rows), pairs)
        stops = np.fromiter(stop_ids, np.int32)
        self.done = np.arange(self._padded_rows) >= self.rows
        return self._bursts(chooser, seeds, stops, max_tokens, pairs)

    def reserve(self, slots: int) -> None:
        """Sees to it that there is room for `slots` tokens and padding in all."""
        if slots > self.cache.slots:
            with jax.set_mesh(self.mesh):
                self.cache = self.cache.grow(slots)

    def rewind(self, length: int) -> None:
        """Forgets every slot from `length` on; something must be read before going on.

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
        """Whether a program that was to update the cache was broken off, and took it along."""
        return any(leaf.is_deleted() for leaf in jax.tree.leaves(self.cache))

    @property
    def state(self) -> Any:
        """Where each row stands in the grammar after the last burst."""
        return jax.tree.map(lambda leaf: np.asarray(leaf)[: self.rows], self._state)

    def _bursts(
        self,
        chooser: Chooser,
        seeds: np.ndarray,
        stops: np.ndarray,
        max_tokens: int,
        pairs: Guidance | None,
    ) -> Iterator[Burst]:
        assert self._last is not None
        last, seen = self._last, self._put(self._seen())
        for start in range(0, max_tokens, BURST):
            done = self.done if pairs is None else self.done[np.asarray(pairs.leader)]
            steps = min(BURST, max_tokens - start)
            with jax.set_mesh(self.mesh):
                now = decode(
                    self.model,
                    self.cache,
                    last,
                    seen,
                    done,
                    seeds,
                    start,
                    stops,
                    steps,
                    self._state,
                    pairs,
                    chooser=chooser,
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

    def _pairs(
        self,
        image: float | Sequence[float] | None,
        video: float | Sequence[float] | None,
    ) -> Guidance | None:
        if image is None or video is None:
            return None
        first, later = (
            np.broadcast_to(np.asarray(scale, np.float32), self.rows // 2).tolist()
            for scale in (image, video)
        )
        return Guidance.of_pairs(first, self._padded_rows, later)

    def _each(self, values: Any, pairs: Guidance | None) -> np.ndarray:
        """Lengthens what is given for each row to the padded rows, those of a pair alike."""
        rows = np.arange(self._padded_rows) if pairs is None else np.asarray(pairs.leader)
        return np.asarray(values)[np.minimum(rows, self.rows - 1)]

    def _put(self, whole: np.ndarray) -> jax.Array:
        """Puts all of it onto each device, as the loop leaves it: or it would be traced twice."""
        place = NamedSharding(self.mesh, P(*[None] * whole.ndim))
        return jax.make_array_from_callback(whole.shape, place, whole.__getitem__)

    def _seen(self) -> Bool[np.ndarray, "B V"]:
        """Says which text ids each row has read or written."""
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


def _require_fitting(
    rows: int, grammar: Grammar | None, state: Any, guidance: float | Sequence[float] | None
) -> None:
    lengths = {len(leaf) for leaf in jax.tree.leaves(state)}
    if (grammar is None) != (state is None) or lengths - {rows}:
        raise ValueError(f"a grammar needs a state of {rows} rows, not {sorted(lengths)}")
    if guidance is None:
        return
    if grammar is None:
        raise ValueError("guidance acts on vision ids, which are written under a grammar only")
    if rows % 2 or np.size(guidance) not in (1, rows // 2):
        raise ValueError(f"{np.size(guidance)} scales of guidance do not pair {rows} rows")
