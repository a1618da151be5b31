"""What `lwm data check` does: reads every record, and says which are bad and what the rest are."""

import dataclasses
from array import array
from pathlib import Path

import numpy as np

from lwm.console import waiting
from lwm.data.fields import RecordEncoder
from lwm.data.format import ExampleFormat
from lwm.data.sets import open_data
from lwm.data.sources import Source
from lwm.errors import UserError, require_share

_SHOWN = 20


@dataclasses.dataclass(kw_only=True)
class DataReport:
    """What the records of a source are."""

    lengths: array = dataclasses.field(default_factory=lambda: array("q"))
    """Tokens of each example."""
    num_learnt: int = 0
    num_vision: int = 0
    num_bad: int = 0
    reasons: list[str] = dataclasses.field(default_factory=list)
    """File, line and reason of the first bad records."""

    @property
    def bad_share(self) -> float:
        """Bad records among all."""
        return self.num_bad / max(1, self.num_bad + len(self.lengths))

    def table(self) -> str:
        """Returns it all as lines for a terminal."""
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
                ("learnt", f"{self.num_learnt / total:.1%}"),
                ("text", f"{1 - self.num_vision / total:.1%}"),
                ("vision", f"{self.num_vision / total:.1%}"),
            ]
        lines = [f"{name:<10} {value}" for name, value in rows]
        lines += [f"  {reason}" for reason in self.reasons]
        if self.num_bad > len(self.reasons):
            lines.append(f"  and {self.num_bad - len(self.reasons):,} more")
        return "\n".join(lines)


def check(source: Source, encoder: RecordEncoder) -> DataReport:
    """Encodes every record; one that cannot be is counted, and told with its reason."""
    report = DataReport()
    with waiting("checking", "records") as tell:
        for index in range(len(source)):
            try:
                record = source[index]
                example = encoder.encode(record.value, name=record.name, line=record.line)
            except UserError as error:
                report.num_bad += 1
                if len(report.reasons) < _SHOWN:
                    report.reasons.append(str(error))
                continue
            report.lengths.append(len(example))
            report.num_learnt += int(example.learn.sum())
            report.num_vision += int((example.ids >= encoder.tokens.text).sum())
            tell(index + 1, len(source))
    return report


def run(
    files: tuple[str, ...],
    *,
    model: str | None,
    tokenizer: Path | None,
    codes: int,
    max_bad_share: float,
    format: ExampleFormat,
) -> None:
    """Prints what the records of some files are.

    Raises:
        UserError: Nothing can be read, or more than `max_bad_share` of the records are bad.
    """
    require_share("max_bad_share", max_bad_share)
    source, opened, space = open_data(files, model=model, tokenizer=tokenizer, codes=codes)
    report = check(source, RecordEncoder(tokenizer=opened, tokens=space, format=format))
    print(report.table(), flush=True)
    if report.bad_share > max_bad_share:
        raise UserError(
            f"{report.bad_share:.1%} of the lines are bad, more than {max_bad_share:.1%}; "
            "mend them, or allow more with --max-bad-share"
        )
