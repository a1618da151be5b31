"""The needle tests as an evaluation: their questions, their results, and what identifies them."""

import json
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import jax

import lwm
from lwm.errors import UserError
from lwm.eval.needle.config import NeedleConfig
from lwm.eval.needle.haystack import name_of
from lwm.eval.needle.prompts import Cell, Prompts
from lwm.eval.needle.texts import EarlierTexts, RoundTexts, Source
from lwm.eval.question import Question, Response
from lwm.eval.results import ResultRow
from lwm.eval.subject import Subject

GRID = ("lengths", "depths", "rounds")


class NeedleEvaluation:
    """Questions for one or several needles; see `lwm.eval.ask.Evaluation`."""

    def __init__(self, config: NeedleConfig, subject: Subject, *, earlier: bool = False):
        """Reads the haystack, and builds some prompts to see that all can be.

        Args:
            config: The grid and the questions.
            subject: The model, for its tokenizer and description.
            earlier: True for a folder of an earlier version, whose texts depend on the grid.

        Raises:
            UserError: See `Prompts.build`.
        """
        self._config, self._subject = config, subject
        tokenizer = subject.tokenizer
        self._texts: RoundTexts | EarlierTexts
        if earlier:
            self._texts = EarlierTexts(config, tokenizer)
        else:
            longest = max(config.all_lengths)
            source = Source.open(config.haystack)
            self._texts = RoundTexts(source, tokenizer, longest=longest)
        self.prompts = Prompts(config, tokenizer, template=subject.template, texts=self._texts)
        self.prompts.require_possible()

    @property
    def cells(self) -> Sequence[Cell]:
        """All cells, in an order that shares the longest prefixes."""
        return self.prompts.cells

    def key(self, cell: Cell) -> Hashable:
        """Returns length, depth and round."""
        return cell.length, cell.depth, cell.round

    def row_key(self, row: ResultRow) -> tuple[int, float | None, int]:
        """Returns the key of the cell that a result belongs to."""
        return row_key(row)

    def question(self, cell: Cell) -> Question:
        """Builds the question of a cell."""
        return self.prompts.build(cell)

    def row(self, question: Question, response: Response) -> dict[str, Any]:
        """Returns the result of an answer: LWM's fields (`seed` is the round), and the score."""
        numbers = [needle.number for needle in question.truth["asked"]]
        found = [number in response.text for number in numbers]
        row = facts(question) | {
            "response": response.text,
            "correct": found if self._config.needles > 1 else found[0],
            "score": sum(found) / len(found),
        }
        if isinstance(self._texts, RoundTexts):
            row["is_repeated"] = question.truth["is_repeated"]
        return row

    def header(self) -> dict[str, Any]:
        """Returns what the answers depend on, and apart from it the grid, which may grow."""
        texts = self._texts
        if isinstance(texts, RoundTexts):
            own: dict[str, Any] = {"config": identity(self._config), "grid": grid(self._config)}
            facts: dict[str, Any] = {
                "characters": len(texts.source.text),
                "sha256": texts.source.sha256,
            }
        else:
            own = {"config": earlier_config(self._config)}
            facts = {
                "tokens": texts.haystack.num_tokens,
                "is_repeated": texts.haystack.is_repeated,
                "sha256": texts.haystack.sha256,
            }
        return {
            "evaluation": "needle",
            "model": dict(self._subject.description),
            **own,
            "haystack": facts,
            "versions": {"lwm": lwm.__version__, "jax": jax.__version__},
            "files": self._subject.files,
        }


def row_key(row: ResultRow) -> tuple[int, float | None, int]:
    """Returns length, depth and round of a result; several needles have no depth."""
    return row["context_length"], row.get("depth_percent"), row["seed"]


def facts(question: Question) -> dict[str, Any]:
    """Returns what LWM's results say of a prompt, and where its needles stand."""
    needles, depths = question.truth["needles"], question.truth["depths"]
    numbers = [needle.number for needle in question.truth["asked"]]
    if len(needles) == 1:
        return {
            "depth_percent": question.cell.depth,
            "answer": numbers[0],
            "seed": question.cell.round,
            "city": needles[0].city,
            "built_depth_percent": round(depths[0], 2),
        }
    return {
        "needles_info": {needle.city: [needle.number, needle.depth] for needle in needles},
        "question": question.truth["question"],
        "answer": numbers,
        "seed": question.cell.round,
        "built_depth_percents": {
            needle.city: round(depth, 2) for needle, depth in zip(needles, depths, strict=True)
        },
    }


def identity(config: NeedleConfig) -> dict[str, Any]:
    """Returns what of a configuration decides a cell's prompt, without paths of this machine."""
    return {
        "needles": config.needles,
        "ask": config.ask,
        "seed": config.seed,
        "max_tokens": config.answer_tokens,
        "prompt": config.prompt,
        "haystack": name_of(config.haystack),
    }


def grid(config: NeedleConfig) -> dict[str, Any]:
    """Returns the lengths, depths and rounds; several needles have no depths."""
    depths = {"depths": list(config.all_depths)} if config.needles == 1 else {}
    return {"lengths": list(config.all_lengths), **depths, "rounds": config.rounds}


def earlier_config(config: NeedleConfig) -> dict[str, Any]:
    """Returns a configuration as folders record it whose grid cannot grow."""
    return {
        "lengths": list(config.all_lengths),
        "depths": list(config.all_depths),
        "rounds": config.rounds,
        "seed": config.seed,
        "max_tokens": config.answer_tokens,
        "prompt": config.prompt,
        "haystack": name_of(config.haystack),
        "repeat": config.repeat,
    }


def is_earlier(header: ResultRow | None) -> bool:
    """Returns whether results were begun by a version whose folders do not grow."""
    return header is not None and header.get("evaluation") == "needle" and "grid" not in header


def require_own_grid(header: ResultRow, config: NeedleConfig, path: Path) -> None:
    """Refuses to let results grow that cannot.

    Raises:
        UserError: Names the grid with which they can be finished.
    """
    recorded, wanted = header.get("config"), json.loads(json.dumps(earlier_config(config)))
    if not isinstance(recorded, dict):
        return
    own = {name: recorded.get(name) for name in GRID}
    if config.needles > 1 or any(own[name] != wanted[name] for name in GRID):
        listed = ", ".join(f"{name} {_listed(value)}" for name, value in own.items())
        raise UserError(
            f"{path} is of a version whose results do not grow: it can be finished with one "
            f"needle and {listed} only; choose another folder for more"
        )


def _listed(value: Any) -> str:
    return " ".join(f"{one:g}" for one in value) if isinstance(value, list) else str(value)
