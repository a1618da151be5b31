"""Reads the frames of items as pixels, in this process or ahead of time in others."""

import contextlib
import dataclasses
import os
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

from lwm.data.media.items import Bad, Item, Items, Medium
from lwm.data.shard_job import process_pool, run_shared
from lwm.errors import UserError
from lwm.files import reading
from lwm.media.frames import Frames, check_settings, choose_frames, read_frames
from lwm.media.limits import Limits, colour

_AHEAD_BYTES = 1 << 30
"""Bytes of frames to read ahead, if no item is larger than those before it."""
_AHEAD_ITEMS = 4
"""Items to read ahead for each process."""
_TIME_DIGITS = 6
_NAMED_MEDIA = (
    "apng,asf,avi,avif,bmp,flv,gif,heic,heif,ico,j2k,jfif,jp2,jpe,jpeg,jpg,m2ts,m4v,mjpeg,mkv,mov,"
    "mp4,mpeg,mpg,mts,ogv,png,ppm,qoi,svg,tif,tiff,ts,vob,webm,webp,wmv,y4m"
)
_NAMED_OTHER = (
    "aac,arrow,cls,db,flac,m4a,mp3,npy,npz,ogg,opus,parquet,pdf,pickle,pkl,pt,pth,pyd,safetensors,"
    "tar,wav,zip"
)
_NAMED_TEXT = "csv,htm,html,ini,json,jsonl,log,md,ndjson,py,srt,toml,tsv,txt,vtt,xml,yaml,yml"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Choice of frames of a file and their resizing; see `read_frames`."""

    resolution: int
    max_frames: int | None = 8
    """Frames of a file at most; None for all."""
    fps: float | None = None
    fit: Literal["crop", "letterbox"] = "crop"
    background: str = "white"

    def __post_init__(self):
        """Checks the values.

        Raises:
            UserError: A value is out of range.
        """
        check_settings(self.resolution, self.max_frames, self.fps, self.fit)
        colour(self.background)

    @property
    def largest(self) -> int:
        """Upper bound on the bytes of the frames of a file."""
        most = Limits().returned_bytes
        return min(most, (self.max_frames or most) * 3 * self.resolution**2)


class Pictures(NamedTuple):
    """An item with its frames as pixels, not yet encoded."""

    name: str
    record: dict[str, Any]
    parts: list[dict[str, Any]]
    """Parts of the record, or the record itself, that the codes of the frames go to."""
    pixels: list[UInt8[np.ndarray, "N R R 3"]]


Result = Pictures | Bad | None
"""None for a file that is not media and was not named by the user."""


def read_item(items: Items, index: int, sampling: Sampling, *, threads: int = 1) -> Result:
    """Reads the frames of one item; returns `Bad` with a reason if it cannot be read."""
    try:
        with reading(f"item {index + 1}"):
            item = items[index]
    except UserError as error:
        return Bad(f"item {index + 1}", str(error))
    if isinstance(item, Bad):
        return item
    parts, pixels = [], []
    left = Limits().returned_bytes
    for part, medium in item.media:
        try:
            with reading(item.name):
                frames = _frames_of(medium, sampling, Limits(returned_bytes=left), threads)
        except UserError as error:
            if not item.required and _is_other(item, medium):
                return None
            return Bad(item.name, str(error))
        left -= frames.pixels.nbytes
        times = [round(time, _TIME_DIGITS) for time in frames.times.tolist()]
        # The key of the codes comes first; they are added later.
        part |= {"vision": [], "frames": len(times), "times": times, "is_video": frames.is_video}
        parts.append(part)
        pixels.append(frames.pixels)
    return Pictures(item.name, item.record, parts, pixels)


def _frames_of(medium: Medium, sampling: Sampling, limits: Limits, threads: int) -> Frames:
    content, options = medium.content, vars(sampling)
    if isinstance(content, bytes | Path):
        return read_frames(content, **options, limits=limits, threads=threads, name=medium.name)
    drawn = content.frames(sampling.resolution)
    return choose_frames(drawn, **options, limits=limits, name=medium.name)


def read_items(
    items: Items, numbers: Iterable[int], sampling: Sampling, workers: int
) -> Generator[Result]:
    """Yields items in the order of `numbers`, read by `workers` processes; 0 for this process.

    An item that crashes a process is bad; the others are read all the same.

    Raises:
        UserError: Processes die without reading an item.
    """
    if not workers:
        for number in numbers:
            yield read_item(items, number, sampling, threads=0)
        return
    with contextlib.closing(_Processes(items, sampling, workers)) as processes:
        left = iter(numbers)
        ahead: deque[tuple[int, Future[Result]]] = deque()
        largest = min(sampling.largest, _AHEAD_BYTES // workers)
        while True:
            room = min(max(1, _AHEAD_BYTES // largest), _AHEAD_ITEMS * workers)
            while len(ahead) < room and (number := next(left, None)) is not None:
                ahead.append((number, processes.submit(number)))
            if not ahead:
                return
            number, future = ahead.popleft()
            try:
                result = future.result()
            except BrokenProcessPool:
                result = processes.read_alone(number)
                ahead = deque((other, processes.submit(other)) for other, _ in ahead)
            if isinstance(result, Pictures):
                largest = max(largest, sum(each.nbytes for each in result.pixels))
            yield result


class _Processes:
    """A pool of processes that read items, restarted when one of them dies."""

    def __init__(self, items: Items, sampling: Sampling, workers: int) -> None:
        self._items, self._sampling, self._workers = items, sampling, workers
        self._start()

    def submit(self, number: int) -> Future[Result]:
        """Schedules an item."""
        try:
            return self._pool.submit(run_shared, _work, number)
        except BrokenProcessPool as error:
            broken: Future[Result] = Future()
            broken.set_exception(error)
            return broken

    def read_alone(self, number: int) -> Result:
        """Reads one item in new processes; if one dies again, the item is bad."""
        self._restart()
        with contextlib.suppress(BrokenProcessPool):
            return self._pool.submit(run_shared, _work, number).result()
        self._restart()
        try:
            self._pool.submit(os.getpid).result()
        except BrokenProcessPool:
            raise UserError(
                "processes that read media die as soon as they start, perhaps for lack of memory; "
                "run again with --workers 0: complete shards are kept"
            ) from None
        with contextlib.suppress(UserError):
            item = self._items[number]
            return Bad(item.name, f"{item.name}: the process that read it crashed or was killed")
        return Bad(f"item {number + 1}", "the process that read it crashed or was killed")

    def close(self) -> None:
        """Ends the processes after their current items."""
        self._pool.shutdown(cancel_futures=True)

    def _restart(self) -> None:
        self.close()
        self._start()

    def _start(self) -> None:
        self._pool = process_pool(self._workers, (self._items, self._sampling))


def _work(items_and_sampling: tuple[Items, Sampling], number: int) -> Result:
    items, sampling = items_and_sampling
    return read_item(items, number, sampling)


def is_named_other(name: str) -> bool:
    """Returns whether the suffix of a name is that of text, or of something else than media."""
    ending = PurePosixPath(name).suffix.lower().removeprefix(".")
    return ending in f"{_NAMED_OTHER},{_NAMED_TEXT}".split(",")


def _is_other(item: Item, medium: Medium) -> bool:
    """Returns whether an unreadable file is something else than an image or a video."""
    ending = PurePosixPath(medium.name).suffix.lower().removeprefix(".")
    if len(item.media) != 1 or ending in _NAMED_MEDIA.split(","):
        return False
    if ending in _NAMED_OTHER.split(","):
        return True
    content = medium.content
    if not isinstance(content, bytes | Path):
        return False
    head = content[:4096] if isinstance(content, bytes) else _head(content)
    # The last character of a text may be cut.
    return b"\0" not in head and "�" not in head[:-3].decode(errors="replace")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4096)
    except OSError:
        return b"\0"
