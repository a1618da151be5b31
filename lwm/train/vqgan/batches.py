"""Batches of frames sampled from images and videos; they resume exactly where they stopped.

Each frame depends on the seed and its number alone, not on the number of threads.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import math
from collections.abc import Callable, Generator, Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import UInt8

from lwm.cache import LRUCache
from lwm.data.loader import COUNTED, Delivered
from lwm.data.media.items import Bad, Items
from lwm.data.media.read import Sampling, read_item
from lwm.errors import UserError
from lwm.media.limits import colour

_AHEAD = 3
"""Batches that are read ahead."""
_MOST_MISSES = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomCrop:
    """Augmentation: a random crop of a random frame, shifted and mirrored."""

    resolution: int
    shift: int = 0
    """Largest shift in pixels; the background fills the border."""
    background: str = "white"
    flip: bool = False

    def __call__(
        self, frames: UInt8[np.ndarray, "N S S 3"], random: np.random.Generator
    ) -> UInt8[np.ndarray, "R R 3"]:
        """Returns a random crop of a random frame; S is at least R."""
        frame = frames[random.integers(len(frames))]
        if self.shift:
            side = len(frame) + 2 * self.shift
            wide = np.full((side, side, 3), colour(self.background), np.uint8)
            wide[self.shift : -self.shift, self.shift : -self.shift] = frame
            frame = wide
        top, left = random.integers(len(frame) - self.resolution + 1, size=2)
        part = frame[top : top + self.resolution, left : left + self.resolution]
        return part[:, ::-1] if self.flip and random.random() < 0.5 else part


class FrameFiles:
    """Frames of each item, by number, in a cache."""

    def __init__(self, items: Items, sampling: Sampling, kept: LRUCache, name: str) -> None:
        """Takes items, which are not read yet.

        Args:
            items: Images and videos.
            sampling: Size and number of the frames of each.
            kept: Cache, which other items may share.
            name: Name of these items in the cache.
        """
        self.items, self._sampling, self._kept, self._set = items, sampling, kept, name

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> tuple[UInt8[np.ndarray, "N S S 3"], str]:
        """Returns the frames of all images and videos of an item, and its name.

        Raises:
            UserError: The item is bad.
        """
        key = self._set, number
        if (found := self._kept.get(key)) is None:
            found = self._read(number)
            self._kept.put(key, found, found[0].nbytes)
        return found

    def _read(self, number: int) -> tuple[UInt8[np.ndarray, "N S S 3"], str]:
        item = read_item(self.items, number, self._sampling)
        if isinstance(item, Bad):
            raise UserError(item.reason)
        if item is None or not item.pixels:
            raise UserError(f"{self.items[number].name} is no image and no video")
        return np.concatenate(item.pixels), item.name


class FrameBatches:
    """Endless batches from several sets, read ahead by threads."""

    def __init__(
        self,
        sets: Sequence[FrameFiles],
        cut: RandomCrop,
        *,
        weights: Sequence[float],
        rows: int,
        own: Sequence[int] | None = None,
        seed: int = 0,
        threads: int = 2,
        max_bad_share: float = 0.01,
    ) -> None:
        """Starts at the beginning.

        Args:
            sets: Sets to sample from.
            cut: Augmentation of the frames of an item.
            weights: Sampling weights of the sets.
            rows: Frames of a batch over all processes.
            own: Those of them that this process holds; all by default.
            seed: Seed of the order and of the augmentation.
            threads: Threads that read ahead.
            max_bad_share: Share of bad items above which a run ends; others replace bad ones.
        """
        self.rows, self.max_bad_share = rows, max_bad_share
        self.own = list(range(rows)) if own is None else sorted(own)
        self._threads = threads
        self._sizes = [len(one) for one in sets]
        self._delivered = 0
        assert len(weights) == len(sets)
        if not all(0 <= weight < math.inf for weight in weights) or not sum(weights):
            raise UserError(f"weights {tuple(weights)} must be 0 or above, and not all 0")
        numbers = [
            grain.MapDataset.range(len(one)).seed(seed + place).shuffle().repeat()
            for place, one in enumerate(sets)
        ]
        self._numbers = grain.MapDataset.mix(
            [
                each.map(functools.partial(_in_set, place))
                for place, each in enumerate(numbers)
                if weights[place]
            ],
            [weight for weight in weights if weight],
        )
        self.sets, self._cut, self._seed = list(sets), cut, seed
        self._read = self._bad = 0

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on after the batch with which `state` was delivered.

        Raises:
            UserError: The sizes of batches or sets differ.
        """
        if (state["rows"], state["sizes"]) != (self.rows, self._sizes):
            raise UserError(
                f"the checkpoint was written with {state['rows']} frames a batch from sets of "
                f"{state['sizes']} items, not {self.rows} and {self._sizes}; give the same data, "
                "or start again in another folder"
            )
        self._delivered = state["batches"]
        # One process continues the counts of all, since the counts of each are added up.
        if 0 in self.own:
            self._read, self._bad = state["read"], state["bad"]

    @staticmethod
    def merge(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Combines the states of each process into one."""
        return states[0] | {key: sum(state[key] for state in states) for key in ("read", "bad")}

    def __iter__(self) -> Generator[Delivered]:
        """Yields batches without end.

        Raises:
            UserError: Nothing can be read of a set.
        """
        pool = concurrent.futures.ThreadPoolExecutor(self._threads)
        waiting: collections.deque = collections.deque()
        try:
            while True:
                while len(waiting) < _AHEAD:
                    number = self._delivered + len(waiting)
                    waiting.append([pool.submit(self._row, number, row) for row in self.own])
                frames, names, faults = zip(
                    *(row.result() for row in waiting.popleft()), strict=True
                )
                bad = [fault for row in faults for fault in row]
                self._delivered += 1
                self._read += len(frames) + len(bad)
                self._bad += len(bad)
                read = dict.fromkeys(COUNTED, 0) | {"read": self._read, "bad": self._bad}
                examples = [[name] for name in names]
                yield Delivered(np.stack(frames), examples, bad, read, self._snapshot())
        finally:
            pool.shutdown(cancel_futures=True)

    def _snapshot(self) -> Callable[[], dict[str, Any]]:
        state = {
            "rows": self.rows,
            "sizes": self._sizes,
            "batches": self._delivered,
            "read": self._read,
            "bad": self._bad,
        }
        return lambda: state

    def _row(self, batch: int, row: int) -> tuple[UInt8[np.ndarray, "R R 3"], str, list[str]]:
        """Returns a frame, the name of its item, and the faults of bad items before it."""
        number = batch * self.rows + row
        random = np.random.default_rng((self._seed, number))
        chosen = self._numbers[number]
        assert chosen is not None, "nothing is filtered out"
        place, index = chosen
        files, faults = self.sets[place], []
        while True:
            try:
                frames, name = files[index]
                return self._cut(frames, random), name, faults
            except UserError as error:
                faults.append(str(error))
            if len(faults) == _MOST_MISSES:
                raise UserError(
                    f"{len(faults)} items in a row of a set of {len(files)} are bad; the last: "
                    f"{faults[-1]}"
                )
            index = int(random.integers(len(files)))


def _in_set(place: int, number: int) -> tuple[int, int]:
    return place, int(number)


def evenly(
    files: FrameFiles,
    most: int,
    *,
    threads: int = 1,
    warn: Callable[[str], object] = lambda text: None,
) -> UInt8[np.ndarray, "N R R 3"]:
    """Returns frames of a set, evenly over it, without bad items.

    Args:
        files: The set.
        most: Largest number of frames, and of items that are read.
        threads: Threads that read.
        warn: Receives the number of bad items, if there are any.

    Raises:
        UserError: No item can be read.
    """

    def read(number: int) -> UInt8[np.ndarray, "N S S 3"] | str:
        try:
            return files[number][0]
        except UserError as error:
            return str(error)

    numbers = np.linspace(0, len(files) - 1, min(most, len(files))).astype(int).tolist()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(read, numbers))
    faults = [each for each in found if isinstance(each, str)]
    if len(faults) == len(found):
        raise UserError(f"nothing can be read of a held-out set: {faults[0]}")
    if faults:
        warn(f"{len(faults)} of {len(found)} items cannot be read; the first: {faults[0]}")
    frames = np.concatenate([each for each in found if not isinstance(each, str)])
    return frames[np.linspace(0, len(frames) - 1, min(most, len(frames))).astype(int)]
