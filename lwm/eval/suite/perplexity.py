"""Perplexity by position as a part of a suite."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from lwm.errors import UserError
from lwm.eval.perplexity.config import PerplexityConfig
from lwm.eval.perplexity.run import REPORT, check, evaluate
from lwm.eval.perplexity.segments import read_segments
from lwm.eval.report.examples import PartReport
from lwm.eval.subject import Subject
from lwm.eval.suite.config import SuiteConfig
from lwm.generate.loaded import LoadedModel
from lwm.progress import Progress

FOLDER = "perplexity"
_SEGMENTS = 16
_TARGETS = 256
_WINDOWS = (16, 4)
"""Parts of the whole context in which the last tokens are scored again."""
_FEWEST = 7
"""Segments without which no difference is significant: two windows, and p ≥ 2 · 2⁻⁷ for each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerplexityPart:
    """Perplexity of a model that runs in this process, in the folder `perplexity`."""

    model: LoadedModel
    files: tuple[Path, ...]
    config: PerplexityConfig
    segments: int
    """Segments of the text."""

    @property
    def name(self) -> str:
        """Name of the folder."""
        return FOLDER

    @property
    def tokens(self) -> int:
        """Tokens of the whole segments; those of the windows are fewer, and not counted."""
        return self.segments * self.config.length

    def check(self, out: Path) -> None:
        """Refuses a folder with results of another evaluation.

        Raises:
            UserError: See `lwm.eval.perplexity.run.check`.
        """
        check(self.config, self.files, out / FOLDER)

    def run(self, subject: Subject, out: Path, progress: Progress) -> list[PartReport]:
        """Scores what has no result yet, and writes the report.

        Raises:
            UserError: See `lwm.eval.perplexity.run.evaluate`.
        """

        def moved(done: int, total: int) -> None:
            progress(self.tokens * done // max(total, 1), self.tokens)

        folder = out / FOLDER
        try:
            evaluate(self.model, self.files, self.config, folder, rows=subject.rows, progress=moved)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"stopped; what was scored is in {folder}; run the same command to continue"
            ) from None
        report = json.loads((folder / REPORT).read_bytes())
        return [PartReport(name=FOLDER, kind="perplexity", report=report)]


def perplexity_part(
    config: SuiteConfig, grid: Mapping[int, int], subject: Subject
) -> tuple[PerplexityPart | None, list[str]]:
    """Returns the part for the largest length of which the text has enough segments.

    Returns:
        The part, None if there is none, and lines that say what is left out.
    """
    if subject.model is None:
        return None, ["perplexity: needs a model in this process, not a server's or a cluster's"]
    files = () if config.haystack is None else (config.haystack,)
    left_out = []
    for length in sorted(grid, reverse=True):
        own = PerplexityConfig(
            length=length,
            windows=tuple(length // part for part in _WINDOWS),
            targets=max(1, min(_TARGETS, length // 4)),
            segments=_SEGMENTS,
        )
        try:
            segments = len(read_segments(files, subject.tokenizer, own))
        except UserError:
            segments = 0
        if segments >= _FEWEST:
            part = PerplexityPart(model=subject.model, files=files, config=own, segments=segments)
            return part, left_out
        left_out.append(
            f"perplexity at {length:,} tokens: the text has fewer than {_FEWEST} parts of that "
            "length, and no difference would be significant"
        )
    return None, left_out
