"""Checks training data: reads every record, counts the bad ones and measures the rest."""

import dataclasses
from array import array

import numpy as np

from lwm.data.fields import RecordEncoder
from lwm.data.shards import SHOWN
from lwm.data.sources import Source
from lwm.errors import UserError
from lwm.progress import Progress


@dataclasses.dataclass(kw_only=True)
class DataReport:
    """Figures of the records of a source."""

    lengths: array = dataclasses.field(default_factory=lambda: array("q"))
    """Tokens of each example."""
    num_targets: int = 0
    num_vision: int = 0
    num_bad: int = 0
    reasons: list[str] = dataclasses.field(default_factory=list)
    """File, line and reason of the first bad records."""

    @property
    def bad_share(self) -> float:
        """Bad records among all."""
        return self.num_bad / max(1, self.num_bad + len(self.lengths))

    def rows(self) -> list[tuple[str, str]]:
        """Returns names and values for a table."""
        rows = [("examples", f"{len(self.lengths):,}"), ("bad lines", f"{self.num_bad:,}")]
        if self.lengths:
            lengths = np.asarray(self.lengths)
            total = int(lengths.sum())
            low, middle, high, top = np.quantile(
                lengths, [0, 0.5, 0.9, 1], method="inverted_cdf"
            ).tolist()
            rows += [
                ("tokens", f"{total:,}"),
                ("length", f"min {low:,}  median {middle:,}  p90 {high:,}  max {top:,}"),
                ("targets", f"{self.num_targets / total:.1%}"),
                ("text", f"{1 - self.num_vision / total:.1%}"),
                ("vision", f"{self.num_vision / total:.1%}"),
            ]
        return rows


def check(
    source: Source, encoder: RecordEncoder, *, progress: Progress = lambda done, total: None
) -> DataReport:
    """Encodes every record; a bad one is counted and reported with its reason."""
    report = DataReport()
    for index in range(len(source)):
        try:
            record = source[index]
            example = encoder.encode(record.value, name=record.name, line=record.line, number=index)
        except UserError as error:
            report.num_bad += 1
            if len(report.reasons) < SHOWN:
                report.reasons.append(str(error))
            continue
        report.lengths.append(len(example))
        report.num_targets += int(example.loss_mask.sum())
        report.num_vision += int((example.ids >= encoder.tokens.text).sum())
        progress(index + 1, len(source))
    return report
