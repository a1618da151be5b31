"""Turns generated ids into text, frames, images and videos."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from lwm.data.captions import VisionKind
from lwm.generate.grammar import VisionGrammar
from lwm.generate.loaded import LoadedModel
from lwm.generate.stopping import StoppingText, overlap
from lwm.tokenizer.markers import CLOSING, OPENING
from lwm.tokenizer.message import Vision
from lwm.tokenizer.tokenizer import TextStream


class Frame(NamedTuple):
    """A generated frame of an image or video."""

    codes: Int[np.ndarray, " codes"]
    number: int
    """Its place in the image or video, from 0."""
    is_last: bool

    def __repr__(self) -> str:
        """Leaves out the codes."""
        return f"<frame {self.number}: {len(self.codes)} codes{', the last' * self.is_last}>"


class FrameReader:
    """Splits the ids of one row into text ids and frames."""

    def __init__(self, grammar: VisionGrammar, *, given: int = 0):
        """Starts before the first id.

        Args:
            grammar: The grammar of the ids.
            given: Frames before the first id.
        """
        self._tokens = grammar.tokens
        self._size = grammar.tokens_per_frame
        self._codes: list[int] = []
        self._number = given

    def push(self, token: int) -> int | Frame | None:
        """Returns a text id as it is, and a frame at its end marker."""
        if token < self._tokens.text:
            return token
        if len(self._codes) < self._size:
            self._codes.append(token - self._tokens.text)
            return None
        is_last = token == self._tokens.end_of_vision
        frame = Frame(np.array(self._codes, np.int32), self._number, is_last)
        self._codes, self._number = [], 0 if is_last else self._number + 1
        return frame


class AnswerReader:
    """Turns ids into text up to the first stop string, and frames; removes the vision marks."""

    def __init__(
        self,
        stream: TextStream,
        stops: Sequence[str] = (),
        grammar: VisionGrammar | None = None,
        *,
        given: int = 0,
    ):
        """Starts before the first id.

        Args:
            stream: Decodes ids to text.
            stops: Stop strings; the answer ends before the first of them.
            grammar: The grammar of the ids; None: text only.
            given: Frames before the first id.
        """
        self._unmarked = None if grammar is None else _Unmarked(stream)
        self._text = StoppingText(self._unmarked or stream, stops)
        self._frames = None if grammar is None else FrameReader(grammar, given=given)

    @property
    def met(self) -> str | None:
        """The stop string that ended the answer."""
        return self._text.met

    @property
    def is_stopped(self) -> bool:
        """True if a stop string ended the answer."""
        return self._text.is_stopped

    def push(self, token: int) -> Iterator[str | Frame]:
        """Yields the text or frame that an id completes; nothing after a stop string."""
        if self.is_stopped:
            return
        found = token if self._frames is None else self._frames.push(token)
        if isinstance(found, Frame):
            assert self._unmarked is not None
            held = self._text.add(self._unmarked.release())
            held += self._text.release()
            if held:
                yield held
            if not self.is_stopped:
                yield found
        elif found is not None and (text := self._text.push(found)):
            yield text

    def finish(self) -> str:
        """Returns the text that was held back."""
        return self._text.finish()


def assemble(model: LoadedModel, frames: Sequence[Frame]) -> Vision:
    """Returns an image or video of its frames, with pixels."""
    codes = np.stack([frame.codes for frame in frames])
    return Vision(codes=codes, is_video=len(codes) > 1, pixels=model.decode_frames(codes))


class FrameCollector:
    """Collects the frames of images or videos; decodes each once."""

    def __init__(
        self,
        model: LoadedModel,
        kind: VisionKind,
        count: int,
        first: Sequence[Vision] = (),
    ):
        """Starts with the frames that are given."""
        self._model, self._kind = model, kind
        self._codes: list[list[np.ndarray]] = [[] for _ in range(count)]
        self._pixels: list[list[np.ndarray]] = [[] for _ in range(count)]
        for row, vision in enumerate(first):
            self._codes[row] += list(vision.codes)
            seen = vision.pixels
            self._pixels[row] += list(model.decode_frames(vision.codes) if seen is None else seen)

    def add(self, row: int, frame: Frame) -> UInt8[np.ndarray, "R R 3"]:
        """Adds a frame, and returns its pixels."""
        (pixels,) = self._model.decode_frames(frame.codes[None])
        self._codes[row].append(frame.codes)
        self._pixels[row].append(pixels)
        return pixels

    def visions(self) -> list[Vision]:
        """Returns the images or videos."""
        is_video = self._kind == "video"
        return [
            Vision(codes=np.stack(codes), pixels=np.stack(pixels), is_video=is_video)
            for codes, pixels in zip(self._codes, self._pixels, strict=True)
        ]


def joined(pieces: Iterable[str | Frame]) -> Iterator[str | Frame]:
    """Yields pieces of an answer; adjacent texts are joined."""
    for is_text, group in itertools.groupby(pieces, lambda piece: isinstance(piece, str)):
        same: list[Any] = list(group)
        yield from ["".join(same)] if is_text else same


class _Unmarked:
    """Decodes ids to text and removes the marks around frames."""

    def __init__(self, stream: TextStream):
        self._stream, self._held = stream, ""

    def push(self, token: int) -> str:
        text = self._held + self._stream.push(token)
        for mark in (OPENING, CLOSING):
            text = text.replace(mark, "")
        keep = max(overlap(text, OPENING), overlap(text, CLOSING))
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def release(self) -> str:
        """Returns the text held back, when no more can follow it."""
        held, self._held = self._held, ""
        return held

    def finish(self) -> str:
        return self.release() + self._stream.finish()
