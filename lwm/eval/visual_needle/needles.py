"""Needles: pictures with a question, and rules that say whether an answer is right."""

import functools
import hashlib
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Int

from lwm.data.captions import DRAW
from lwm.errors import UserError
from lwm.eval.visual_needle.config import Task, VisualNeedleConfig
from lwm.eval.visual_needle.haystack import encoded
from lwm.files import parse_json, reading
from lwm.generate.loaded import LoadedModel
from lwm.media.frames import read_frames
from lwm.world.attributes import COLOURS, DIGITS
from lwm.world.checker import read_facts
from lwm.world.facts import Thing
from lwm.world.world import needle_frame

Codes = Int[np.ndarray, " codes"]
T = TypeVar("T")

QUESTION = "Which digit does the video show, and in what colour?"
REQUEST = DRAW["image"].format(caption="the digit that the video shows")
_LISTED_REQUEST = DRAW["image"].format(caption="the frame that answers this: {question}")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_WORDS, _WORD = re.compile(r"[a-z]+|[0-9]+"), re.compile(r"\w+")


class Needle(NamedTuple):
    """A picture that is hidden in a video."""

    name: Any
    """Identifies it among the needles, in results."""
    question: str
    """Asks for its answer, or for the picture."""
    answer: str
    """The right answer in words."""
    codes: Codes


@runtime_checkable
class Needles(Protocol):
    """All needles of a test."""

    @property
    def chance(self) -> float:
        """Score of the best answer that is the same for all videos."""
        ...

    @property
    def questions(self) -> Sequence[str]:
        """All questions."""
        ...

    def choose(self, generators: Sequence[random.Random]) -> list[Needle]:
        """Returns a needle for each source of random numbers."""
        ...

    def judge(self, needle: Needle, text: str) -> dict[str, Any]:
        """Returns the score of an answer in words, and what else is found."""
        ...

    def judge_picture(
        self, needle: Needle, codes: Codes, haystack: Int[np.ndarray, "frames codes"]
    ) -> dict[str, Any]:
        """Returns the score of a generated picture, and in `response` what it shows."""
        ...

    def facts(self) -> dict[str, Any]:
        """Returns what identifies the needles, without paths of this machine."""
        ...


def open_needles(config: VisualNeedleConfig, model: LoadedModel) -> Needles:
    """Returns the needles of a configuration, with the codes of a model.

    Raises:
        UserError: The list or a picture cannot be read.
    """
    if config.needles is None:
        return WorldNeedles(model, config.task)
    return ListedNeedles(model, config.task, config.needles)


class WorldNeedles:
    """Large digits in a colour of the world, judged by digit and colour."""

    chance = 1 / (len(DIGITS) * len(COLOURS))
    """Score of one digit and colour for all."""

    def __init__(self, model: LoadedModel, task: Task):
        """Encodes nothing yet."""
        self._model = model
        self.questions = [QUESTION if task == "ask" else REQUEST]
        self._seen = functools.lru_cache(256)(self._see)

    def choose(self, generators: Sequence[random.Random]) -> list[Needle]:
        """Returns digits in colours."""
        chosen = [(_one_of(each, DIGITS), _one_of(each, list(COLOURS))) for each in generators]
        distinct, size = sorted(set(chosen)), self._model.vision.resolution
        frames = (needle_frame(*names, resolution=size) for names in distinct)
        codes = encoded(self._model, frames, len(distinct))
        known = dict(zip(distinct, codes, strict=True))
        return [
            Needle(
                name={"digit": digit, "colour": colour},
                question=self.questions[0],
                answer=f"{colour} {digit}",
                codes=known[digit, colour],
            )
            for digit, colour in chosen
        ]

    def judge(self, needle: Needle, text: str) -> dict[str, Any]:
        """Returns whether an answer names the digit, the colour, and no other of either."""
        words = _WORDS.findall(text.lower())
        # "The one in the video is a red 7": words count where there are no figures.
        digits = {word for word in words if word.isdigit()}
        digits = digits or {str(_NUMBERS.index(word)) for word in words if word in _NUMBERS}
        colours = {word for word in words if word in COLOURS}
        return _both(digits == {needle.name["digit"]}, colours == {needle.name["colour"]})

    def judge_picture(
        self, needle: Needle, codes: Codes, haystack: Int[np.ndarray, "frames codes"]
    ) -> dict[str, Any]:
        """Returns whether the checker sees the digit in its colour, and nothing else.

        `possible` is false where it does not in the needle either, once the VQGAN has decoded it.
        """
        seen = self._seen(codes.tobytes())
        digit = [thing.kind for thing in seen] == [needle.name["digit"]]
        colour = [thing.colour for thing in seen] == [needle.name["colour"]]
        named = [f"{thing.colour} {thing.kind}" for thing in seen]
        best = self._seen(needle.codes.tobytes())
        possible = [f"{thing.colour} {thing.kind}" for thing in best] == [needle.answer]
        response = ", ".join(named) or "nothing"
        return {"response": response, "possible": possible} | _both(digit, colour)

    def _see(self, codes: bytes) -> tuple[Thing, ...]:
        """Returns the things that the checker sees in a frame."""
        frame = np.frombuffer(codes, np.int32)[None]
        return read_facts(self._model.decode_frames(frame), fps=1.0).things

    def facts(self) -> dict[str, Any]:
        """Returns a digest of the question and of all digits and colours as they look."""
        found = hashlib.sha256(self.questions[0].encode())
        for digit in DIGITS:
            for colour in COLOURS:
                found.update(needle_frame(digit, colour).tobytes())
        return {"name": "world", "sha256": found.hexdigest()}


class ListedNeedles:
    """Pictures of a user with questions, judged by their answers or by code distance."""

    def __init__(self, model: LoadedModel, task: Task, path: Path):
        """Reads the list, and encodes its pictures.

        Raises:
            UserError: The list or a picture cannot be read, or a row lacks something.
        """
        self._path, self._task = path, task
        with reading(path):
            content = path.read_bytes()
        self._sha256 = hashlib.sha256(content).hexdigest()
        self._rows = [_row(line, path, at) for at, line in enumerate(content.splitlines(), 1)]
        if not self._rows:
            raise UserError(f"{path} is empty; give a needle per line")
        size, pictures = model.vision.resolution, [path.parent / r["image"] for r in self._rows]
        pixels = (read_frames(file, resolution=size, max_frames=1).pixels[0] for file in pictures)
        self._codes = encoded(model, pixels, len(pictures))
        self.questions = [self._question(row) for row in self._rows]
        most = max(Counter(row["answer"] for row in self._rows).values())
        self.chance = (most if task == "ask" else 1) / len(self._rows)
        """Score of the most frequent answer, or of one picture, for all."""

    def choose(self, generators: Sequence[random.Random]) -> list[Needle]:
        """Returns pictures of the list."""
        count = len(self._rows)
        return [
            Needle(number, self.questions[number], self._rows[number]["answer"], codes)
            for number in (_one_of(each, range(count)) for each in generators)
            for codes in [self._codes[number]]
        ]

    def _question(self, row: dict[str, str]) -> str:
        if self._task == "ask":
            return row["question"]
        return row.get("request") or _LISTED_REQUEST.format(question=row["question"])

    def judge(self, needle: Needle, text: str) -> dict[str, Any]:
        """Returns whether an answer has the words of the right one, and none of another's."""
        own = needle.answer
        others = {row["answer"] for row in self._rows} - {own}
        named = [other for other in others if _says(text, other) and not _says(own, other)]
        return {"score": float(_says(text, own) and not named)}

    def judge_picture(
        self, needle: Needle, codes: Codes, haystack: Int[np.ndarray, "frames codes"]
    ) -> dict[str, Any]:
        """Returns whether the needle is nearest of all needles and the frames of the haystack.

        Nearest is the picture with the most equal codes in equal places.
        """
        every = np.concatenate([self._codes, haystack])
        is_own = (every == needle.codes).all(axis=1)
        shares = (every == codes).mean(axis=1)
        near, own = int(shares.argmax()), float(shares[needle.name])
        right = bool((shares[~is_own] < own).all())
        found = needle.name if right else near
        count = len(self._rows)
        name = f"needle {found}" if found < count else f"frame {found - count} of the haystack"
        return {"response": name, "overlap": round(own, 4), "score": float(right)}

    def facts(self) -> dict[str, Any]:
        """Returns name and content of the list."""
        return {"name": self._path.name, "sha256": self._sha256}


def _one_of(generator: random.Random, items: Sequence[T]) -> T:
    return items[int(generator.random() * len(items))]


def _both(digit: bool, colour: bool) -> dict[str, Any]:
    return {"digit": digit, "colour": colour, "score": float(digit and colour)}


def _row(line: bytes, path: Path, number: int) -> dict[str, str]:
    """Returns a row of a list of needles."""
    try:
        row = parse_json(line)
    except ValueError:
        row = None
    wanted = ("image", "question", "answer")
    if not isinstance(row, dict) or not all(
        isinstance(row.get(key), str) and row[key].strip() for key in wanted
    ):
        raise UserError(
            f"{path}, line {number}: a needle is an object with the texts 'image', 'question' and "
            "'answer'"
        )
    return row


def _says(text: str, answer: str) -> bool:
    """Returns whether a text has the words of an answer in a row; a letter stands first."""
    if re.fullmatch("[A-Z]", answer):  # of a choice: "B", "B.", "(B) a cat"
        return re.match(rf"\(?{answer}([).:]|$)", text.strip()) is not None
    words = [" ".join(_WORD.findall(each.lower())) for each in (text, answer)]
    return f" {words[1]} " in f" {words[0]} "
