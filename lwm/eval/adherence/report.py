"""Shares of generated images and videos that agree with their captions, by attribute."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

from lwm.eval.adherence.evaluation import row_key
from lwm.eval.markdown import markdown_table
from lwm.eval.results import ResultRow
from lwm.eval.ruler.report import Mean
from lwm.world.checker import agreement
from lwm.world.facts import Facts

_STILL = ("kind", "colour", "size", "count", "background", "all")
_MOVING = ("kind", "colour", "size", "motion", "event", "time", "count", "background", "all")
"""Attributes of clips; an image has no motion."""
_OTHERS = 8
"""Clips that each clip is compared with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Results of one split and number of frames."""

    split: str
    frames: int
    rows: Sequence[ResultRow]

    @property
    def title(self) -> str:
        """Name of the group."""
        return self.rows[0]["task"]

    @property
    def attributes(self) -> tuple[str, ...]:
        """Attributes that can agree; `all` is right if all of them do."""
        return _MOVING if self.frames > 1 else _STILL

    def mean(self, attribute: str) -> Mean:
        """Returns the share of results that agree in an attribute."""
        return Mean.of([[float(row["agrees"][attribute]) for row in self.rows]])

    def ceiling(self, attribute: str) -> float:
        """Returns the share of the true clips that agree once they are encoded and decoded."""
        return sum(row["through_codes"][attribute] for row in self.rows) / len(self.rows)

    def prior(self, attribute: str) -> float:
        """Returns the share of clips that agree with others of the group: of unread prompts."""
        return self._with_others[attribute]

    @functools.cached_property
    def _with_others(self) -> dict[str, float]:
        facts = [Facts.from_json(row["asked"]) for row in self.rows]
        found = [
            agreement(one, facts[(number + step) % len(facts)])
            for number, one in enumerate(facts)
            for step in range(1, min(_OTHERS, len(facts) - 1) + 1)
        ]
        return {
            name: sum(each[name] for each in found) / max(1, len(found)) for name in self.attributes
        }

    def entry(self, attribute: str) -> dict[str, Any]:
        """Returns the share with its interval, and those that it lies between."""
        return self.mean(attribute).to_json() | {
            "prior": round(self.prior(attribute), 6),
            "through_codes": round(self.ceiling(attribute), 6),
        }

    def table(self) -> str:
        """Returns the attributes in Markdown: percentages with their 95% intervals."""
        rows = [[self.title, "asked", "drawn", "true clip, decoded", "other clips"]]
        for name in self.attributes:
            others = (f"{100 * of(name):.1f}" for of in (self.ceiling, self.prior))
            rows.append([name, f"{len(self.rows):,}", str(self.mean(name)), *others])
        return markdown_table(rows, words=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdherenceReport:
    """Results of one evaluation, in any order."""

    header: ResultRow
    """Model, configuration and versions: the first line of the results."""
    rows: Sequence[ResultRow]

    @property
    def groups(self) -> list[Group]:
        """Results by frames and split."""
        found: dict[tuple[int, str], list[ResultRow]] = {}
        for row in sorted(self.rows, key=row_key):
            found.setdefault((row["frames"], row["split"]), []).append(row)
        return [
            Group(split=split, frames=frames, rows=rows)
            for (frames, split), rows in sorted(found.items())
        ]

    def to_json(self) -> str:
        """Returns the report; equal answers give equal text."""
        groups = self.groups
        scores = [[row["score"] for row in group.rows] for group in groups]
        whole = dict(self.header) | {
            "axes": ["task"],
            "chance": round(sum(group.prior("all") for group in groups) / len(groups), 6),
            "overall": Mean.of(scores).to_json(),
            "by_length": [],
            "by_task": [{"task": group.title} | group.entry("all") for group in groups],
            "cells": [
                {"task": group.title, "split": group.split, "frames": group.frames}
                | {"attribute": name}
                | group.entry(name)
                for group in groups
                for name in group.attributes
            ],
        }
        return json.dumps(whole, ensure_ascii=False, indent=2) + "\n"

    def table(self) -> str:
        """Returns a table for each split and number of frames."""
        return "\n\n".join(group.table() for group in self.groups)
