"""Questions about clips of the procedural world, of both splits, as a set."""

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from lwm.data.media.world import WorldSet
from lwm.errors import UserError
from lwm.eval.qa.rows import Row, Seen
from lwm.eval.qa.rules import RuleName
from lwm.world.attributes import COLOURS, DIRECTIONS, EVENTS, KINDS, SPLITS, Split
from lwm.world.facts import Facts
from lwm.world.language import NUMBERS, ORDINALS, QuestionAnswer
from lwm.world.world import World, WorldConfig

CLIPS = 64
"""Clips of each split by default; they have 4 to 6 questions each."""
_EVENT = "it "
"""Begins an answer that is an event."""


class _Place(NamedTuple):
    split: Split
    clip: int
    asked: QuestionAnswer
    options: tuple[str, ...]


class WorldQuestions:
    """All questions about the first clips of the world, split after split for each clip."""

    rule: RuleName = "world"

    def __init__(
        self,
        config: WorldConfig = WorldConfig(),
        *,
        splits: Sequence[Split] = SPLITS,
        clips: int = CLIPS,
    ) -> None:
        """Draws up the questions.

        Args:
            config: Seed and form of the clips; its split is not used, nor its resolution.
            splits: Splits of the clips.
            clips: Clips of each split.

        Raises:
            UserError: There are no clips.
        """
        if clips < 1 or not splits:
            raise UserError(f"clips {clips} must be 1 or more, of one split at least")
        self._config, self._splits = config, tuple(dict.fromkeys(splits))
        self._clips = clips
        worlds = {split: World(self._of(split, config.resolution)) for split in self._splits}
        self._places: list[_Place] = []
        for number in range(clips):
            for split, world in worlds.items():
                clip = world.clip(number)
                self._places += [
                    _Place(split, number, asked, options(asked, clip.facts))
                    for asked in clip.questions
                ]

    @classmethod
    def parse(cls, names: Sequence[str]) -> "WorldQuestions":
        """Reads names such as `world:heldout,count=100,frames=1`, which differ in the split alone.

        Raises:
            UserError: A name has unknown options, or such as do not matter to questions, or two
                differ.
        """
        sets = [WorldSet.parse(name) for name in names]
        for name, one in zip(names, sets, strict=True):
            if one != WorldSet(world=one.world, count=one.count):
                raise UserError(
                    f"{name}: text, resolution and vqgan are not for questions, which are rendered "
                    "for each model; leave them out"
                )
            first = dataclasses.replace(sets[0].world, split=one.world.split)
            if one != WorldSet(world=first, count=sets[0].count):
                raise UserError(f"{names[0]} and {name} should differ in nothing but the split")
        clips = sets[0].count if "count=" in names[0] else CLIPS
        return cls(sets[0].world, splits=[one.world.split for one in sets], clips=clips)

    def _of(self, split: Split, resolution: int) -> WorldConfig:
        return dataclasses.replace(self._config, split=split, resolution=resolution)

    def __len__(self) -> int:
        return len(self._places)

    def row(self, number: int) -> Row:
        """Returns a question; `group` is its split."""
        split, clip, asked, possible = self._places[number]
        medium = f"{split}/{clip}"
        return Row(
            name=f"world:{split}, clip {clip}",
            question=asked.question,
            answers=(asked.answer.removeprefix(_EVENT),),
            kind=asked.kind,
            group=split,
            options=possible,
            medium=medium,
            key=medium,
            content=(split, clip),
            frames=self._config.frames,
        )

    def pixels(self, row: Row, resolution: int) -> Seen:
        """Renders the clip of a question."""
        split, clip = row.content
        frames = World(self._of(split, resolution)).clip(clip).pixels
        return Seen(frames, is_video=self._config.frames > 1)

    def identity(self) -> dict[str, Any]:
        """Returns what decides the questions but for the number of clips."""
        form = dataclasses.asdict(self._config) | {"splits": self._splits}
        form = {key: value for key, value in form.items() if key not in ("split", "resolution")}
        return {"world": json.loads(json.dumps(form))}


def options(asked: QuestionAnswer, facts: Facts) -> tuple[str, ...]:
    """Returns all answers that a question of the world can have."""
    if asked.kind == "first":
        pair = re.search(r"the (.+) or the (.+)\?", asked.question)
        assert pair, asked.question
        return pair.groups()
    if asked.kind == "what":
        return EVENTS if asked.answer.startswith(_EVENT) else KINDS
    return {
        "colour": tuple(COLOURS),
        "count": NUMBERS,
        "direction": DIRECTIONS,
        "second": ORDINALS[: facts.seconds],
        "exists": ("yes", "no"),
    }[asked.kind]
