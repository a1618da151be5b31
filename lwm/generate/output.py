"""What a model writes, id by id, as what it is: text, and the frames of images and videos."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from lwm.generate.grammar import VisionGrammar
from lwm.generate.loaded import LoadedModel
from lwm.generate.stopping import StoppingText, overlap
from lwm.tokenizer.markers import CLOSING, OPENING
from lwm.tokenizer.message import Vision
from lwm.tokenizer.tokenizer import TextStream


class Frame(NamedTuple):
    """A frame that is drawn."""

    codes: Int[np.ndarray, " codes"]
    number: int
    """In its image or video, from 0."""
    is_last: bool


class FrameReader:
    """Parts the ids of one row into those of text, and frames."""

    def __init__(self, grammar: VisionGrammar, *, given: int = 0):
        """Starts where nothing is written.

        Args:
            grammar: Under which the ids are written.
            given: Frames that came before the first id.
        """
        self._tokens = grammar.tokens
        self._size = grammar.tokens_per_frame
        self._codes: list[int] = []
        self._number = given

    def push(self, token: int) -> int | Frame | None:
        """Returns an id of text as it is, and a frame once its marker is there."""
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
    """Turns ids into text up to the first stop string, and frames; the marks are not shown."""

    def __init__(
        self, stream: TextStream, stops: Sequence[str] = (), grammar: VisionGrammar | None = None
    ):
        """Starts where nothing is written.

        Args:
            stream: Makes ids text.
            stops: The answer ends before the first of these.
            grammar: Under which the ids are written; None: text only.
        """
        self._unmarked = None if grammar is None else _Unmarked(stream)
        self._text = StoppingText(self._unmarked or stream, stops)
        self._frames = None if grammar is None else FrameReader(grammar)

    @property
    def met(self) -> str | None:
        """The stop string that has been met."""
        return self._text.met

    @property
    def is_stopped(self) -> bool:
        """Whether one has been met."""
        return self._text.is_stopped

    def push(self, token: int) -> Iterator[str | Frame]:
        """Yields what this id completes; after a stop string nothing."""
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
    """Returns the frames of one image or video as one, with its pixels."""
    codes = np.stack([frame.codes for frame in frames])
    return Vision(codes=codes, is_video=len(codes) > 1, pixels=model.vision.decode(codes))


def joined(pieces: Iterable[str | Frame]) -> Iterator[str | Frame]:
    """Yields pieces of an answer, those of text side by side as one."""
    for is_text, group in itertools.groupby(pieces, lambda piece: isinstance(piece, str)):
        same: list[Any] = list(group)
        yield from ["".join(same)] if is_text else same


class _Unmarked:
    """A stream of text without the marks around frames."""

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
        """Returns what was held back, where no more text can follow it."""
        held, self._held = self._held, ""
        return held

    def finish(self) -> str:
        return self.release() + self._stream.finish()
