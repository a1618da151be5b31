"""RULER's eight needle tasks: keys and values hidden in noise, in essays or among other needles."""

import dataclasses
import itertools
import random
import uuid
from typing import Literal

import numpy as np

from lwm.eval.needle.haystack import Haystack
from lwm.eval.ruler.sample import Draft, Sample
from lwm.eval.ruler.vocabulary import vocabulary

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "One of the special magic {kind} for {key} is: {value}."
ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. I will "
    "quiz you about the {kind} afterwards.\n{context}\nWhat is the special magic {kind} for "
    "{query} mentioned in the provided text?",
    " The special magic {kind} for {query} mentioned in the provided text is",
)
"""Message, and start of the answer, of a question that asks for one value."""
SEVERAL = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. I "
    "will quiz you about the {kind} afterwards.\n{context}\nWhat are all the special magic {kind} "
    "for {query} mentioned in the provided text?",
    " The special magic {kind} for {query} mentioned in the provided text are",
)
DEPTHS = tuple(round(100 * step / 39) for step in range(40))
"""Percentages of an essay's sentences before a needle."""

Kind = Literal["words", "numbers", "uuids"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeedleTask:
    """Needles of a task; the number of keys includes those that are not asked for."""

    haystack: Literal["noise", "essay", "needle"] = "essay"
    key: Kind = "words"
    value: Kind = "numbers"
    keys: int = 1
    values: int = 1
    """Values of each key."""
    queries: int = 1
    """Keys that are asked for."""


NEEDLE_TASKS = {
    "niah_single_1": NeedleTask(haystack="noise"),
    "niah_single_2": NeedleTask(),
    "niah_single_3": NeedleTask(value="uuids"),
    "niah_multikey_1": NeedleTask(keys=4),
    "niah_multikey_2": NeedleTask(haystack="needle"),
    "niah_multikey_3": NeedleTask(haystack="needle", key="uuids", value="uuids"),
    "niah_multivalue": NeedleTask(values=4),
    "niah_multiquery": NeedleTask(keys=4, queries=4),
}


class _Drawn:
    """Draws keys and values, none of them twice."""

    def __init__(self, generator: random.Random):
        self._generator = generator
        self._seen: set[str] = set()

    def __call__(self, kind: Kind) -> str:
        made = next(each for each in iter(lambda: self._any(kind), None) if each not in self._seen)
        self._seen.add(made)
        return made

    def _any(self, kind: Kind) -> str:
        if kind == "numbers":
            return str(self._generator.randrange(10**6, 10**7))
        if kind == "uuids":
            return str(uuid.UUID(int=self._generator.getrandbits(128), version=4))
        return vocabulary().compound(self._generator)


class NeedleSample(Sample):
    """Needles, and the question about them."""

    def __init__(self, task: NeedleTask, generator: random.Random):
        """Draws needles and question."""
        self._task, self._draw = task, _Drawn(generator)
        values = {
            self._draw(task.key): [self._draw(task.value) for _ in range(task.values)]
            for _ in range(task.keys)
        }
        self._needles = [self._needle(key, each) for key in values for each in values[key]]
        generator.shuffle(self._needles)
        asked = generator.sample(list(values), task.queries)
        self._answers = tuple(itertools.chain.from_iterable(values[key] for key in asked))
        first, *rest = asked
        self._query = f"{', '.join(asked[:-1])}, and {asked[-1]}" if rest else first

    def _needle(self, key: str, value: str) -> str:
        return NEEDLE.format(kind=self._task.value, key=key, value=value)

    def _around(self, context: str) -> Draft:
        """Returns the prompt about a context."""
        is_one = len(self._answers) == 1
        message, opening = ONE if is_one else SEVERAL
        kind = self._task.value.removesuffix("s") if is_one else self._task.value
        return Draft(
            message=message.format(kind=kind, query=self._query, context=context),
            opening=opening.format(kind=kind, query=self._query),
            answers=self._answers,
        )


class LineSample(NeedleSample):
    """One needle among lines of noise, or of other needles."""

    def __init__(self, task: NeedleTask, generator: random.Random):
        """Draws needle and question; the haystack's needles are drawn as they are needed."""
        super().__init__(task, generator)
        self._depth = generator.random()
        self.shared = self._depth if task.haystack == "noise" else 0.0
        self._lines: list[str] = []

    def draft(self, units: int) -> Draft:
        """Returns the prompt with so many lines beside the needle's."""
        if self._task.haystack == "noise":
            lines = [NOISE] * units
        else:
            while len(self._lines) < units:
                self._lines.append(
                    self._needle(self._draw(self._task.key), self._draw(self._task.value))
                )
            lines = self._lines[:units]
        lines.insert(int(self._depth * units), self._needles[0])
        return self._around("\n".join(lines))


class EssaySample(NeedleSample):
    """Needles between the sentences of an essay; a unit is a word."""

    least = 0

    def __init__(self, task: NeedleTask, generator: random.Random, essay: Haystack):
        """Draws needles, their depths and the question; the essay's white space is single."""
        super().__init__(task, generator)
        self._essay = essay
        self.most = len(essay.word_ends)
        self._depths = sorted(generator.sample(DEPTHS, len(self._needles)))
        self.shared = self._depths[0] / 100

    def weight(self, units: int) -> int:
        """Returns the tokens of so many words of the essay."""
        return self._essay.tokens_before(self._end(units))

    def draft(self, units: int) -> Draft:
        """Returns the prompt with so many words of the essay."""
        end = self._end(units)
        ends = self._essay.sentence_ends
        inside = ends[: int(np.searchsorted(ends, end))]
        sentences = len(inside) + bool(units)
        parts, start = [], 0
        for depth, needle in zip(self._depths, self._needles, strict=True):
            before = int(sentences * depth / 100)
            place = end if before > len(inside) else int(inside[before - 1]) if before else 0
            parts += [self._essay.text[start:place], needle]
            start = place
        parts.append(self._essay.text[start:end])
        return self._around(" ".join(part.strip() for part in parts if part.strip()))

    def _end(self, units: int) -> int:
        return int(self._essay.word_ends[units - 1]) if units else 0
