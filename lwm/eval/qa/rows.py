"""Questions of local files, in the shapes of VQAv2, GQA, POPE, MSVD-QA and MSRVTT-QA."""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from lwm.data.media.items import located
from lwm.data.sources import files_of, is_missing, open_source
from lwm.errors import UserError, several
from lwm.eval.qa.config import QAConfig
from lwm.eval.qa.rules import LEAST_ANSWERS, RuleName
from lwm.fingerprint import fingerprints, named
from lwm.media.frames import read_frames

_QUESTIONS = ("question", "text")
_IMAGES = ("image", "image_path", "image_id", "imageId", "img_id")
_VIDEOS = ("video", "video_path", "video_id", "video_name")
_EITHER = ("path", "file", "file_name")
_ASKED = ("what", "who", "how", "when", "where")
"""Kinds of questions by their first word, as MSVD-QA's and MSRVTT-QA's authors report them."""
_OTHER = "other"
RULES: tuple[RuleName, ...] = ("vqa", "gqa", "pope", "video")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A question about an image or a video."""

    name: str
    """File and line, for messages."""
    question: str
    answers: tuple[str, ...]
    """The right answer; under the rule `vqa` the answers of several people."""
    kind: str
    """Type of the question, for the report."""
    group: str = ""
    """Part of the set, for the report."""
    options: tuple[str, ...] = ()
    """All answers that such a question can have, where they are known."""
    medium: str
    """Name of the image or video."""
    key: Hashable
    """Distinguishes the image or video from others."""
    content: Any
    """The file, its bytes, or another source for `QuestionSet.pixels`."""
    frames: int
    """Frames at most."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """Frames of an image or a video."""

    pixels: UInt8[np.ndarray, "N R R 3"]
    is_video: bool


@runtime_checkable
class QuestionSet(Protocol):
    """Questions by number, each with an image or a video."""

    rule: RuleName

    def __len__(self) -> int: ...

    def row(self, number: int) -> Row:
        """Returns a question; a bad one raises a `UserError` that names it."""
        ...

    def pixels(self, row: Row, resolution: int) -> Seen:
        """Returns the frames of a question."""
        ...

    def identity(self) -> dict[str, Any]:
        """Returns what decides the questions, without paths of this machine."""
        ...


class FileQuestions:
    """Rows of JSON lines or Parquet; images and videos are read when they are asked about."""

    def __init__(self, files: Sequence[str] | str, config: QAConfig) -> None:
        """Opens the files.

        Raises:
            UserError: A file cannot be read, or no rule is given.
        """
        self._source = open_source(*several(files))
        if not len(self._source):
            raise UserError(f"{', '.join(several(files))} has no questions")
        if config.rule not in RULES:
            columns = ", ".join(self._source[0].value)
            raise UserError(
                f"give --rule {', '.join(RULES[:-1])} or {RULES[-1]}: how answers are scored; the "
                f"first row has the columns {columns}"
            )
        self.rule: RuleName = config.rule
        self._names, self._most, self._blind = config.names, config.max_frames, config.blind
        self._folder = config.media or _folder_of(files_of(self._source))
        if config.media is not None and not config.media.is_dir():
            raise UserError(f"media {config.media} is no folder")

    def __len__(self) -> int:
        return len(self._source)

    def row(self, number: int) -> Row:
        """Reads a question.

        Raises:
            UserError: A column is missing or of another kind, or there is no such image or video;
                file and line are named.
        """
        record = self._source[number]
        values = {key: each for key, each in record.value.items() if not is_missing(each)}
        try:
            column = next((key for key in (*_IMAGES, *_VIDEOS, *_EITHER) if key in values), None)
            medium, key, content = self._medium(column, values.get(column) if column else None)
            is_video = column in _VIDEOS or (column in _EITHER and self.rule == "video")
            question = next((values[key] for key in _QUESTIONS if key in values), None)
            if not isinstance(question, str) or not question.strip():
                raise UserError("no text under 'question'")
            return Row(
                name=record.name,
                question=question.strip(),
                answers=_answers(values, self.rule),
                kind=_kind(values, self.rule, question),
                options=("yes", "no") if self.rule == "pope" else (),
                medium=medium,
                key=key if key is not None else number,
                content=content,
                frames=self._most if is_video else 1,
            )
        except UserError as error:
            raise UserError(f"{record.name}: {error}") from None

    def pixels(self, row: Row, resolution: int) -> Seen:
        """Reads the image or video of a question.

        Raises:
            UserError: It cannot be read; the row is named.
        """
        try:
            found = read_frames(
                row.content, resolution=resolution, max_frames=row.frames, name=row.medium
            )
        except UserError as error:
            raise UserError(f"{row.name}: {error}") from None
        return Seen(found.pixels, found.is_video)

    def identity(self) -> dict[str, Any]:
        """Returns names and contents of the files, without those of the images and videos."""
        return dict(fingerprints(named(files_of(self._source))))

    def _medium(self, column: str | None, value: Any) -> tuple[str, Hashable, Path | bytes]:
        """Returns name, key and content of the image or video in a column."""
        if isinstance(value, dict):  # as Hugging Face's library stores pictures
            value = value["bytes"] if isinstance(value.get("bytes"), bytes) else value.get("path")
        if isinstance(value, bytes):
            digest = hashlib.sha256(value).hexdigest()[:16]
            return digest, digest, value
        if self._blind and column is None:
            return "", None, b""
        if column is None:
            listed = ", ".join((*_IMAGES[:3], *_VIDEOS[:3]))
            raise UserError(f"no image or video; give its path or id under one of {listed}")
        if isinstance(value, str | int | np.integer) and not isinstance(value, bool):
            name = self._name(str(value))
            path = located(self._folder, name)
            # A blind question does not need it.
            if self._blind or ("\0" not in name and os.path.isfile(path)):
                return name, name, path
            raise UserError(
                f"{column} {name} is not in {self._folder}; --media names the folder of the "
                "images and videos, --names how ids become names of files"
            )
        raise UserError(f"{column} is no path or id, but {value!r:.40}")

    def _name(self, name: str) -> str:
        """Returns the name of the file of an id; what has a suffix is a name already."""
        if self._names == "{}" or PurePosixPath(name).suffix:
            return name
        with contextlib.suppress(ValueError):  # a letter where the form is that of a number
            return self._names.format(int(name) if name.isdigit() else name)
        return name


def _folder_of(files: Sequence[Path]) -> Path:
    return files[0].parent if files else Path()


def _answers(values: Mapping[str, Any], rule: RuleName) -> tuple[str, ...]:
    if rule == "vqa":
        return _of_people(values.get("answers"))
    column = "label" if rule == "pope" and "label" in values else "answer"
    answer = values.get(column)
    if isinstance(answer, int) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(answer, str) or not answer.strip():
        raise UserError(f"no text under '{column}'")
    answer = answer.strip()
    if rule != "pope":
        return (answer,)
    if answer.lower() not in ("yes", "no"):
        raise UserError(f"{column} {answer!r:.40} is neither yes nor no")
    return (answer.lower(),)


def _of_people(answers: Any) -> tuple[str, ...]:
    """Returns the answers of several people: texts, or objects with a text under `answer`."""
    listed = list(answers) if isinstance(answers, list | tuple | np.ndarray) else []
    texts = [each.get("answer") if isinstance(each, Mapping) else each for each in listed]
    texts = [str(each) for each in texts if isinstance(each, str | int)]
    if len(texts) < max(LEAST_ANSWERS, len(listed)):
        raise UserError(
            f"'answers' should be a list of {LEAST_ANSWERS} answers of people or more, in VQAv2 of "
            "10; for one answer take --rule gqa"
        )
    return tuple(texts)


def _kind(values: Mapping[str, Any], rule: RuleName, question: str) -> str:
    """Returns the type of a question: that of its row, or for videos its first word."""
    if rule == "video":
        first = question.split()[0].lower()
        return first if first in _ASKED else _OTHER
    types = values.get("types")
    found = {
        "vqa": values.get("answer_type", values.get("question_type")),
        "gqa": types.get("structural") if isinstance(types, Mapping) else values.get("structural"),
        "pope": values.get("category"),
    }[rule]
    return found if isinstance(found, str) and found else "all"
