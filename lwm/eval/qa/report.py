"""Scores of question answering by type of question, beside those of the commonest answers."""

import collections
import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

from lwm.eval.markdown import markdown_table
from lwm.eval.qa.rules import RuleName, says_no, score
from lwm.eval.results import ResultRow
from lwm.eval.ruler.report import Mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class QAReport:
    """Answers of one evaluation, in any order."""

    header: ResultRow
    """Model, configuration and versions: the first line of the results."""
    rows: Sequence[ResultRow]

    @property
    def rule(self) -> RuleName:
        """Rule of the scores."""
        return self.header["config"]["rule"]

    @property
    def kinds(self) -> list[str]:
        """Types of questions, sorted."""
        return sorted({row["task"] for row in self.rows})

    @property
    def groups(self) -> list[str]:
        """Parts of the set, sorted; none if it has no parts."""
        return sorted({row["group"] for row in self.rows if "group" in row})

    def _some(self, kind: str | None, group: str | None) -> list[ResultRow]:
        return [
            row
            for row in self.rows
            if kind in (None, row["task"]) and group in (None, row.get("group"))
        ]

    def mean(self, kind: str | None = None, group: str | None = None) -> Mean:
        """Averages over the questions of a type and a part, of which there are some."""
        return Mean.of([[row["score"] for row in self._some(kind, group)]])

    def prior(self, kind: str | None = None, group: str | None = None) -> float:
        """Returns the score of answers that do not depend on what is shown.

        That is, of the commonest answer to each type of question, or of one of the possible answers
        at random, whichever is right more often.
        """
        rows = self._some(kind, group)
        return round(sum(self._priors[row["task"]] for row in rows) / len(rows), 6)

    @functools.cached_property
    def _priors(self) -> dict[str, float]:
        """Score of such answers by type of question."""
        found = {}
        for kind in self.kinds:
            rows = self._some(kind, None)
            commonest = self._commonest[kind]
            scores = [score(self.rule, commonest, row["answers"]) for row in rows]
            shares = [1 / row["options"] if "options" in row else 0.0 for row in rows]
            found[kind] = max(sum(scores), sum(shares)) / len(rows)
        return found

    @functools.cached_property
    def _commonest(self) -> dict[str, str]:
        counts: dict[str, collections.Counter[str]] = {}
        for row in self.rows:
            counts.setdefault(row["task"], collections.Counter()).update(row["answers"])
        # Of equally common answers the first in the alphabet, whatever the order of the rows.
        return {
            kind: min(found, key=lambda answer: (-found[answer], answer))
            for kind, found in counts.items()
        }

    def yes_and_no(self) -> dict[str, float]:
        """Returns POPE's measures: precision, recall and F1 of `yes`, and its share."""
        said = [not says_no(row["response"]) for row in self.rows]
        right = sum(
            yes and row["answers"] == ["yes"] for yes, row in zip(said, self.rows, strict=True)
        )
        asked = sum(row["answers"] == ["yes"] for row in self.rows)
        precision = right / sum(said) if any(said) else 0.0
        recall = right / asked if asked else 0.0
        both = precision + recall
        return {
            "accuracy": sum(row["score"] for row in self.rows) / len(self.rows),
            "precision": precision,
            "recall": recall,
            "f1": 2 * precision * recall / both if both else 0.0,
            "yes_share": sum(said) / len(said),
        }

    def to_json(self) -> str:
        """Returns the report; equal answers give equal text."""
        by_task = [{"task": kind} | self._entry(kind) for kind in self.kinds]
        pope = {}
        if self.rule == "pope":
            pope = {"yes_no": {name: round(x, 6) for name, x in self.yes_and_no().items()}}
        whole = dict(self.header) | {
            "axes": ["task", "group"] if self.groups else ["task"],
            "chance": self.prior(),
            "overall": self._entry(),
            **pope,
            "by_length": [],
            "by_task": by_task,
            "by_group": [{"group": group} | self._entry(group=group) for group in self.groups],
            "cells": [
                {"task": kind, "group": group} | self._entry(kind, group)
                for kind in self.kinds
                for group in self.groups
                if self._some(kind, group)
            ]
            or by_task,
        }
        return json.dumps(whole, ensure_ascii=False, indent=2) + "\n"

    def _entry(self, kind: str | None = None, group: str | None = None) -> dict[str, Any]:
        return self.mean(kind, group).to_json() | {"prior": self.prior(kind, group)}

    def table(self) -> str:
        """Returns the types of questions in Markdown: percentages with their 95% intervals."""
        groups = self.groups if len(self.groups) > 1 else []
        rows = [["questions", "asked", *groups, "all", "prior"]]
        kinds = self.kinds if len(self.kinds) > 1 else []
        for name, kind in [*((kind, kind) for kind in kinds), ("all", None)]:
            shown = [
                str(self.mean(kind, group)) if self._some(kind, group) else "–"
                for group in (*groups, None)
            ]
            count = f"{len(self._some(kind, None)):,}"
            rows.append([name, count, *shown, f"{100 * self.prior(kind):.1f}"])
        return markdown_table(rows, words=True)

    def statement(self) -> str:
        """States how the questions were asked, and under POPE its measures."""
        asked = "without the images" if self.header["config"]["blind"] else "with the images"
        line = f"rule {self.rule}, asked {asked}; prior: the commonest answers, or a guess"
        if self.rule != "pope":
            return line
        found = self.yes_and_no()
        listed = (f"{name} {100 * found[name]:.1f}" for name in ("precision", "recall", "f1"))
        return f"{line}; yes: {', '.join(listed)}, {found['yes_share']:.1%} of all answers"
