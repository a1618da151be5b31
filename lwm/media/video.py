"""Reads videos with PyAV: only the selected frames and those they depend on are decoded.

They are decoded one by one as they are taken, so that a film of any length needs little memory.

The limits here serve untrusted files: no header is trusted, frames and times are those of the
packets, formats that open other files are refused, and every step is charged to a budget.
"""

import bisect
import contextlib
import dataclasses
import itertools
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from fractions import Fraction
from io import BufferedIOBase
from typing import Any

import numpy as np

from lwm.errors import UserError
from lwm.files import require_package
from lwm.media.images import transpositions
from lwm.media.limits import (
    Budget,
    Clip,
    FrameSelector,
    Resizer,
    SelectedFrame,
    flatten,
    image_module,
)

_CONTAINERS = "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,ivf,yuv4mpegpipe,h264,hevc,obu,m4v,nut,mxf"
_CODECS = (
    "h264,hevc,vp8,vp9,libvpx,libvpx-vp9,av1,libdav1d,libaom-av1,mpeg1video,mpeg2video,mpeg4,mjpeg,"
    "h263,flv,msmpeg4v1,msmpeg4v2,msmpeg4,wmv1,wmv2,wmv3,vc1,theora,vp6,vp6f,vp6a,prores,dnxhd,"
    "ffv1,huffyuv,ffvhuff,utvideo,rawvideo,wrapped_avframe,png,gif,qtrle,dvvideo,cinepak,svq1,svq3,"
    "jpeg2000,webp"
)
"""Formats and decoders that FFmpeg may use; no playlists (they open files), no rare decoders."""
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_BUFFER = 1 << 18
_WORTH = 8
"""Frames that a seek to a key frame must save to be worth its cost."""
_LARGEST = 1 << 53
"""Longest time span, in units of the stream, that is exact in a float."""
_FEW = 0.75
"""Share of the selected frames that must decode; some packets show no frame."""


def read_video(
    file: BufferedIOBase, selector: FrameSelector, resize: Resizer, budget: Budget, threads: int
) -> Clip:
    """Selects frames of a video by its packets; they are decoded as they are taken.

    Raises:
        UserError: The content is no video, or exceeds the limits; other exceptions if damaged.
            Both may come with any frame, too.
    """
    with contextlib.ExitStack() as stack:
        video = stack.enter_context(contextlib.closing(_Video(file, resize, budget, threads)))
        timeline = video.scan()
        clip = video.counted(selector) if timeline is None else video.timed(selector, timeline)
        stack.pop_all()  # the clip closes it
    return clip


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Timeline:
    """Times of the frames, in units of the stream, and points where decoding may start."""

    shown: list[int]
    """Start of each frame."""
    end: int
    """End of the last frame."""
    keys: list[tuple[int, int]]
    """Start of each key frame, and the time to seek to for it."""

    def lists(self, time: int) -> bool:
        """Returns whether a frame starts at this time."""
        place = bisect.bisect_left(self.shown, time)
        return place < len(self.shown) and self.shown[place] == time

    def runs(self, selected: list[int]) -> list[tuple[int | None, list[int]]]:
        """Splits the frames where a seek pays; returns a time to seek to and times for each."""
        runs: list[tuple[int | None, list[int]]] = []
        before = 0
        starts = [start for start, _ in self.keys]
        for number in selected:
            time = self.shown[number]
            key = bisect.bisect_right(starts, time) - 1
            place = bisect.bisect_left(self.shown, starts[key]) if key >= 0 else 0
            if place > before + _WORTH:
                runs.append((self.keys[key][1], [time]))
            elif runs:
                runs[-1][1].append(time)
            else:
                runs.append((None, [time]))
            before = number
        return runs


class _SeekError(Exception):
    """A seek missed: the index of the file is wrong or missing."""


class _Video:
    """An open video file."""

    def __init__(self, file: BufferedIOBase, resize: Resizer, budget: Budget, threads: int) -> None:
        self._av = require_package("av", "reading videos", "media")
        self._file, self._resize, self._budget, self._threads = file, resize, budget, threads
        self._container: Any = None
        self._open()

    def close(self) -> None:
        """Closes the container of FFmpeg; the file stays open."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def _open(self) -> None:
        """Opens, or reopens, the file at its beginning."""
        self.close()
        self._file.seek(0)
        most = str(self._budget.limits.frame_pixels)
        old = int(self._av.__version__.split(".")[0]) < 19
        try:
            self._container = self._av.open(
                _Reader(self._file, self._budget),
                options={
                    "format_whitelist": _CONTAINERS,
                    "codec_whitelist": _CODECS,
                    "max_pixels": most,
                },
                buffer_size=_BUFFER,
                # Titles in old encodings are no error; PyAV 19 and later do this by default.
                **({"metadata_errors": "replace"} if old else {}),
            )
            self._stream = self._best()
        except UserError:
            self.close()
            raise
        except self._av.error.FFmpegError:
            self.close()
            raise UserError(
                f"{self._budget.name} is not a readable image or video; it may be damaged, "
                "or convert it with another program to PNG or MP4"
            ) from None
        self._decoder = self._open_decoder()
        self._decoder.options = {"max_pixels": most}
        self._decoder.thread_type = "AUTO"
        self._decoder.thread_count = self._threads

    def _open_decoder(self) -> Any:
        """Returns the stream's decoder, or for transparent VP8 and VP9 the one that reads alpha.

        WebM stores alpha as a second stream beside each packet, which FFmpeg's own decoders ignore.

        Raises:
            UserError: This build of PyAV has no such decoder.
        """
        context = self._stream.codec_context
        name = _ALPHA_DECODERS.get(context.name)
        if name is None or self._stream.metadata.get("alpha_mode", "0") != "1":
            return context
        if name not in self._av.codecs_available:
            raise UserError(
                f"{self._budget.name} is a transparent video, which this PyAV cannot decode for "
                f"lack of {name}; install PyAV's wheel, or convert the video to frames in PNG"
            )
        decoder = self._av.CodecContext.create(name, "r")
        decoder.extradata = context.extradata
        return decoder

    def _best(self) -> Any:
        """Returns the stream that a player would choose."""
        picture = self._av.stream.Disposition.attached_pic
        streams = self._container.streams
        for stream in streams:
            stream.discard = self._av.stream.Discard.all
        found = [stream for stream in streams.video if not stream.disposition & picture]
        if not found:
            raise UserError(f"{self._budget.name} holds no video")
        stream = max(found, key=lambda each: bool(each.disposition & each.disposition.default))
        stream.discard = self._av.stream.Discard.default
        context = stream.codec_context
        if context is None or context.name not in _CODECS.split(","):
            what = f"codec {context.name}" if context else "an unknown codec"
            raise UserError(
                f"{self._budget.name} has {what}, which is not read; convert it to H.264"
            )
        if context.width and context.height:
            self._budget.check(context.width, context.height, still=False)
        size = self._budget.size
        if any(entry.pos + entry.size > size for entry in stream.index_entries):
            raise UserError(f"{self._budget.name} is cut short: it lists frames beyond its end")
        return stream

    def scan(self) -> _Timeline | None:
        """Reads all packets without decoding; returns None if they have no usable times."""
        shown: list[int] = []
        keys: list[tuple[int, int]] = []
        end = 0
        for packet in self._container.demux(self._stream):
            self._budget.charge()
            if not packet.size:
                continue
            if packet.pts is None:
                return None
            if packet.is_keyframe:
                keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
            if not packet.is_discard:
                shown.append(packet.pts)
                end = max(end, packet.pts + (packet.duration or 0))
        if not shown:
            raise UserError(f"{self._budget.name} holds no frame")
        shown.sort()
        if any(a == b for a, b in itertools.pairwise(shown)):
            return None
        if self._stream.time_base is None or shown[-1] - shown[0] > _LARGEST:
            raise ValueError("its times make no sense")
        if end <= shown[-1]:
            # The last frame has no duration: assume the mean of the others.
            end = shown[-1] + round((shown[-1] - shown[0]) / max(1, len(shown) - 1))
        return _Timeline(shown=shown, end=end, keys=sorted(keys))

    def timed(self, selector: FrameSelector, timeline: _Timeline) -> Clip:
        """Selects frames by their times; seeks to key frames for them."""
        base = self._stream.time_base
        start = timeline.shown[0]
        seconds = [float((time - start) * base) for time in (*timeline.shown, timeline.end)]
        selected = selector(np.array(seconds[:-1]), seconds[-1])

        def frames() -> Iterator[SelectedFrame]:
            found = 0
            for frame in self._frames_at(timeline, selected):
                yield self._frame(frame, float((frame.pts - start) * base))
                found += 1
            if found < _FEW * len(selected):
                raise ValueError(f"only {found} of {len(selected)} frames can be decoded")

        return self._clip(frames(), len(selected), len(timeline.shown), seconds[-1])

    def counted(self, selector: FrameSelector) -> Clip:
        """Decodes the whole file to count its frames, and again for the selected ones."""
        self._open()
        stamps = [frame.pts for frame in self._decoded()]
        if not stamps:
            raise UserError(f"{self._budget.name} holds no frame")
        base, step = self._stream.time_base, 1 / Fraction(self._stream.guessed_rate or 25)
        known = base is not None and None not in stamps
        if not known or any(a >= b for a, b in itertools.pairwise(stamps)):
            stamps, base = list(range(len(stamps))), step
        times = [float((stamp - stamps[0]) * base) for stamp in stamps]
        duration = times[-1] + (times[-1] / (len(times) - 1) if len(times) > 1 else float(step))
        selected = selector(np.array(times), duration)

        def frames() -> Iterator[SelectedFrame]:
            self._open()
            numbers = set(selected)
            for number, frame in enumerate(self._decoded()):
                if number in numbers:
                    yield self._frame(frame, times[number])
                if number == selected[-1]:
                    break

        return self._clip(frames(), len(selected), len(times), duration)

    def _clip(
        self, frames: Iterator[SelectedFrame], selected: int, count: int, duration: float
    ) -> Clip:
        return Clip(
            frames=frames, num_selected=selected, count=count, duration=duration, close=self.close
        )

    def _frames_at(self, timeline: _Timeline, selected: list[int]) -> Iterator[Any]:
        """Yields the selected frames, none twice."""
        left = deque(timeline.shown[number] for number in selected)
        last = None
        try:
            for key, times in timeline.runs(selected):
                self._seek(key)
                for frame in self._forward(times, None if key is None else timeline):
                    if last is None or frame.pts > last:
                        yield frame
                        last = frame.pts
                while left and left[0] <= times[-1]:
                    left.popleft()
            return
        except _SeekError:
            self._open()
        for frame in self._forward(left):
            if last is None or frame.pts > last:
                yield frame
                last = frame.pts

    def _seek(self, key: int | None) -> None:
        if key is None:
            self._open()
            return
        try:
            self._container.seek(key, stream=self._stream)
            self._decoder.flush_buffers()
        except self._av.error.FFmpegError:
            raise _SeekError from None

    def _forward(self, times: Iterable[int], sought: _Timeline | None = None) -> Iterator[Any]:
        """Decodes on, and yields the frame displayed at each time, perhaps one frame twice.

        After a seek the frames must agree with the timeline: some demultiplexers guess times.
        """
        left = deque(times)
        held = None
        for frame in self._decoded():
            if frame.pts is None or (held is not None and frame.pts <= held.pts):
                continue
            late = held is None and frame.pts > left[0]
            if sought is not None and (late or not sought.lists(frame.pts)):
                raise _SeekError
            while left and left[0] <= frame.pts:
                yield frame if held is None or left[0] == frame.pts else held
                left.popleft()
            if not left:
                return
            held = frame
        if held is not None:
            yield held

    def _decoded(self) -> Generator[Any]:
        """Decodes from the current position."""
        begun = False
        context = self._stream.codec_context
        for packet in self._container.demux(self._stream):
            if packet.size:
                self._budget.charge(context.width * context.height)
            try:
                frames = self._decoder.decode(packet)
            except self._av.error.InvalidDataError:
                # A recording may begin with frames that depend on earlier, missing ones.
                if begun:
                    raise
                self._budget.charge()
                continue
            for frame in frames:
                begun = True
                self._budget.check(frame.width, frame.height, still=False)
                yield frame

    def _frame(self, frame: Any, time: float) -> SelectedFrame:
        """Converts a frame to a square, oriented by its display matrix."""
        if frame.is_corrupt:
            raise ValueError(f"it is damaged at {frame.time or 0:.2f} s")
        pixel = float(self._stream.sample_aspect_ratio or 1)
        parts = frame.format.components
        alpha, deep = any(each.is_alpha for each in parts), any(each.bits > 8 for each in parts)
        # From more than eight bits FFmpeg makes packed RGB too dark; planar RGB is right.
        array = frame.to_ndarray(format="rgba" if alpha else "gbrp" if deep else "rgb24")
        image = flatten(image_module().fromarray(array), self._resize.background)
        shown = round(frame.width * pixel), frame.height
        orientation = _orientation(frame)
        if orientation != 1:
            image = image.transpose(transpositions()[orientation])
        if orientation >= 5:
            pixel, shown = 1 / pixel, shown[::-1]
        return SelectedFrame(time, self._resize(image, pixel), shown)


def _orientation(frame: Any) -> int:
    """Returns the EXIF orientation of a frame."""
    found = require_package("av.sidedata.sidedata", "reading videos", "media")
    # Not `frame.side_data`, which refers back to the frame: such frames pile up, since only the
    # garbage collector frees them.
    matrix = found.SideDataContainer(frame).get("DISPLAYMATRIX")
    if matrix is None:
        return 1
    across, down, _, sideways, upward = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(across) + abs(upward) >= abs(down) + abs(sideways):
        return {(False, False): 1, (True, False): 2, (True, True): 3, (False, True): 4}[
            across < 0, upward < 0
        ]
    return {(False, False): 5, (True, False): 6, (True, True): 7, (False, True): 8}[
        sideways < 0, down < 0
    ]


class _Reader:
    """A file for FFmpeg: without a name, whose suffix it would trust, and with a budget."""

    def __init__(self, file: BufferedIOBase, budget: Budget) -> None:
        self._file, self._budget = file, budget
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        """Reads and charges the budget, so that no demultiplexer loops for ever."""
        data = self._file.read(size)
        self._budget.charge(len(data) // 4)
        return data
