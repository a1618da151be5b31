"""Device programs of an engine and all that they change: the pool, slots, the last chunk.

Their calls are plain data, so that the processes of a mesh can repeat them, see
`lwm.generate.replay`.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from lwm.generate.decoding import Tops, rank, score
from lwm.generate.grammar import Grammar
from lwm.generate.pages import LONG, SHORT, Holding
from lwm.generate.plan import GenerationPlan
from lwm.generate.slots import Block, Slots
from lwm.model.config import CacheDtype
from lwm.model.llama import Llama
from lwm.model.pool import PagePool, Place, copy_pages, table_width
from lwm.sharding import BATCH, DEVICES, ROW, ROWS, TOKENS, put


class Programs:
    """Pool and slots of an engine. One thread uses it, under the mesh."""

    def __init__(
        self,
        model: Llama,
        mesh: Mesh,
        *,
        grammar: Grammar | None,
        stop_places: int,
        cache_dtype: CacheDtype | None,
    ):
        """Starts without a page; see `lwm.generate.engine.Engine` for the arguments."""
        self.model, self.mesh, self._grammar = model, mesh, grammar
        self.groups = math.prod(mesh.shape[axis] for axis in BATCH)
        """Groups of devices that hold whole rows."""
        self.sp = mesh.shape["sp"]
        """Devices of a group, over which the pages of its rows are split."""
        self._stop_places, self._cache_dtype = stop_places, cache_dtype or model.compute.dtype
        self.reset()

    def reset(self) -> None:
        """Forgets all pages and slots."""
        self.pool: PagePool | None = None
        """None before its first use, and if a program that had taken it failed."""
        self._per_device = 1
        self._lanes: dict[int, Slots] = {}
        self._states: Any = None  # of the last chunk, after the last layer

    def enlarge(self, per_device: int) -> None:
        """Gives each device so many pages, page 0 included."""
        self.pool = None if self.pool is None else self.pool.enlarged(per_device)
        self._per_device = per_device

    def warm_up(self, lanes: Iterable[int], scores: bool = True) -> None:
        """Compiles programs for lanes of these widths, and of scores; they write to page 0."""
        width = table_width(self.model.config.max_context)
        for size in (LONG, SHORT):
            nothing = (np.zeros((self.groups, each), np.int32) for each in (size, width))
            self.read(*nothing, *np.zeros((2, self.groups), np.int32))
            if scores:
                self.score(np.zeros((self.groups, size), np.int32))
                self.rank(np.zeros((self.groups, size), np.int32))
        self.copy(*np.zeros((2, self.groups * self.sp), np.int32))
        for width in lanes:
            pool, self.pool = self._filled(), None
            self.pool = self._new_slots(width).warm_up(pool)

    def read(
        self,
        tokens: Int[np.ndarray, "groups S"],
        pages: Int[np.ndarray, "groups W"],
        lengths: Int[np.ndarray, " groups"],
        offsets: Int[np.ndarray, " groups"],
    ) -> None:
        """Launches a chunk of one row per group.

        An accelerator gets it while it works on the one before, and is never without work. On a
        CPU, where a launch costs little beside a chunk, the chunk is then done: a request that
        arrives during it comes next.
        """
        rows = (put(each, self.mesh, ROW) for each in (lengths, offsets))
        place = Place(put(pages, self.mesh, ROWS), *rows)
        before, pool, self.pool = self._states, self._filled(), None  # lost if the program fails
        self._states, self.pool = self.model.extend(put(tokens, self.mesh, TOKENS), place, pool)
        is_cpu = self.mesh.devices.flat[0].platform == "cpu"
        jax.block_until_ready(self._states if is_cpu else before)

    def score(
        self, targets: Int[np.ndarray, "groups S"]
    ) -> tuple[Float[np.ndarray, "groups S"], Bool[np.ndarray, "groups S"]]:
        """Returns the negative log-likelihood of each id after those of the last chunk, in nats.

        Also returns whether it is the likeliest of its modality.
        """
        nll, is_likeliest = score(self.model, self._states, put(targets, self.mesh, TOKENS))
        return np.asarray(nll), np.asarray(is_likeliest)

    def rank(self, targets: Int[np.ndarray, "groups S"]) -> Tops:
        """Returns the likeliest ids of the modality of each id after those of the last chunk."""
        found = rank(self.model, self._states, put(targets, self.mesh, TOKENS))
        return jax.tree.map(np.asarray, found)

    def copy(
        self, sources: Int[np.ndarray, " devices"], targets: Int[np.ndarray, " devices"]
    ) -> None:
        """Copies one page on each device of `dp`, `fsdp` and `sp`."""
        pool, self.pool = self._filled(), None
        self.pool = copy_pages(
            pool, *(put(each, self.mesh, DEVICES) for each in (sources, targets))
        )

    def seat(
        self,
        width: int,
        slot: int,
        plan: GenerationPlan,
        prompt: Sequence[int],
        holding: Holding,
        state: Any,
        leader: int,
    ) -> None:
        """Puts a row into a slot of a lane; see `Slots.seat`."""
        self.slots(width).seat(slot, plan, prompt, holding, state=state, leader=leader)

    def empty(self, width: int, slot: int) -> None:
        """Takes the row out of a slot of a lane."""
        self._lanes[width].empty(slot)

    def write(self, width: int, steps: int) -> Block:
        """Writes up to so many ids to each row of a lane; see `Slots.decode`."""
        pool, self.pool = self._filled(), None
        self.pool, written = self.slots(width).decode(pool, steps)
        return written

    def slots(self, width: int) -> Slots:
        """Returns the slots of a lane, made at its first use."""
        if width not in self._lanes:
            self._lanes[width] = self._new_slots(width)
        return self._lanes[width]

    def _filled(self) -> PagePool:
        """Returns the pool, allocated at its first use."""
        if self.pool is None:
            config, dtype = self.model.config, self._cache_dtype
            return PagePool.empty(config, dtype, per_device=self._per_device)
        return self.pool

    def _new_slots(self, width: int) -> Slots:
        return Slots(
            self.model, self.mesh, width, grammar=self._grammar, stop_places=self._stop_places
        )
