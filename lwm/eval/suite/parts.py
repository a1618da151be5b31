"""Parts of a suite: their questions, the folders of their results, and their reports."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lwm.eval.ask import Evaluation
from lwm.eval.report.examples import PartReport, wrong_answers
from lwm.eval.results import Results, require_same
from lwm.eval.subject import Subject, ask_subject
from lwm.eval.suite.config import NEEDLES, PartName, SuiteConfig
from lwm.eval.suite.merge import Chosen, Merged, MergedResults
from lwm.files import exclusive, make_folder
from lwm.progress import Progress

RESULTS, REPORT = "results.jsonl", "report.json"


@runtime_checkable
class Part(Protocol):
    """A part of a suite."""

    @property
    def name(self) -> str:
        """Name for a progress bar."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens of all its prompts and answers."""
        ...

    def check(self, out: Path) -> None:
        """Refuses folders of `out` with results of another evaluation."""
        ...

    def run(self, subject: Subject, out: Path, progress: Progress) -> list[PartReport]:
        """Does what is not done yet in folders of `out`, and reports all."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """An evaluation of a suite, in a folder of its own."""

    evaluation: Evaluation
    header: Mapping[str, Any]
    """Header of its results."""
    write: Callable[[Results, Path], None]
    """Writes its own `report.json` and figures to its folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AskedPart:
    """Evaluations that are asked as one."""

    kind: PartName
    asked: Mapping[str, Asked]
    """Evaluations, by the names of their folders."""

    @property
    def name(self) -> str:
        """Names of the folders."""
        return ", ".join(self.asked)

    @property
    def tokens(self) -> int:
        """Tokens of all prompts and answers."""
        return sum(cell.length for each in self.asked.values() for cell in each.evaluation.cells)

    def check(self, out: Path) -> None:
        """Refuses folders with results of another evaluation.

        Raises:
            UserError: The first field that differs.
        """
        for name, each in self.asked.items():
            fixed = {key: value for key, value in each.header.items() if key != "grid"}
            require_same(out / name / RESULTS, fixed)

    def run(self, subject: Subject, out: Path, progress: Progress) -> list[PartReport]:
        """Asks what has no answer yet, and writes the reports.

        Raises:
            UserError: A folder has results of another evaluation; or see `ask_subject`.
        """
        with contextlib.ExitStack() as stack:
            results = {}
            for name, each in self.asked.items():
                make_folder(out / name)
                stack.enter_context(exclusive(out / name))
                results[name] = Results(out / name / RESULTS, each.header)
            merged = Merged({name: each.evaluation for name, each in self.asked.items()})
            ask_subject(merged, subject, MergedResults(results), progress=progress)
            return [
                self._report(name, each, results[name], out / name)
                for name, each in self.asked.items()
            ]

    def _report(self, name: str, asked: Asked, results: Results, folder: Path) -> PartReport:
        asked.write(results, folder)
        return PartReport(
            name=name,
            kind=self.kind,
            report=json.loads((folder / REPORT).read_bytes()),
            examples=wrong_answers(asked.evaluation, results.rows),
        )


def needle_part(config: SuiteConfig, grid: Mapping[int, int], subject: Subject) -> AskedPart:
    """Returns the test of one needle, in the folder `needle`."""
    return AskedPart(kind="needle", asked={"needle": _needles(config, grid, subject)})


def multi_part(config: SuiteConfig, grid: Mapping[int, int], subject: Subject) -> AskedPart:
    """Returns the tests of several needles, in the folders `needle-4-1` and `needle-4-4`."""
    asked = {
        f"needle-{needles}-{ask}": _needles(config, grid, subject, needles=needles, ask=ask)
        for needles, ask in NEEDLES
    }
    return AskedPart(kind="multi", asked=asked)


def _needles(
    config: SuiteConfig,
    grid: Mapping[int, int],
    subject: Subject,
    *,
    needles: int = 1,
    ask: int = 1,
) -> Asked:
    from lwm.eval.needle.config import NeedleConfig
    from lwm.eval.needle.evaluation import NeedleEvaluation, row_key
    from lwm.eval.needle.report import NeedleReport
    from lwm.eval.needle.run import write

    needle = NeedleConfig(
        lengths=tuple(grid),
        depths=config.depths,
        rounds=max(grid.values()),
        needles=needles,
        ask=ask,
        seed=config.seed,
        prompt="lwm" if config.prompt == "lwm" else "chat",
        haystack=config.haystack,
        repeat=config.repeat,
    )
    evaluation = NeedleEvaluation(needle, subject)

    def written(results: Results, folder: Path) -> None:
        rows = sorted(results.rows, key=row_key)
        write(NeedleReport(header=results.header, rows=rows), folder)

    return Asked(
        evaluation=Chosen(evaluation, lambda cell: cell.round < grid[cell.length]),
        header=evaluation.header(),
        write=written,
    )


def ruler_part(config: SuiteConfig, grid: Mapping[int, int], subject: Subject) -> AskedPart:
    """Returns RULER's tasks, in the folder `ruler`."""
    from lwm.eval.ruler.config import RulerConfig
    from lwm.eval.ruler.report import RulerReport
    from lwm.eval.ruler.run import header, write
    from lwm.eval.ruler.task import Ruler

    own = RulerConfig(
        tasks=config.tasks,
        lengths=tuple(grid),
        samples=max(grid.values()),
        seed=config.seed,
        prompt=config.prompt,
        haystack=config.haystack,
    )
    ruler = Ruler(own, subject.tokenizer, template=subject.template)

    def written(results: Results, folder: Path) -> None:
        rows = sorted(results.rows, key=ruler.row_key)
        write(RulerReport(header=results.header, rows=rows, threshold=own.threshold), folder)

    asked = Asked(
        evaluation=Chosen(ruler, lambda cell: cell.sample < grid[cell.length]),
        header=header(own, ruler, subject),
        write=written,
    )
    return AskedPart(kind="ruler", asked={"ruler": asked})


MAKERS: dict[PartName, Callable[[SuiteConfig, Mapping[int, int], Subject], Part]] = {
    "needle": needle_part,
    "multi": multi_part,
    "ruler": ruler_part,
}
