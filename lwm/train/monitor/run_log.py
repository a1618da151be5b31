"""Logs of runs, read for figures: updates, validations, and the stages of a curriculum."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from lwm.errors import UserError
from lwm.files import parse_json, reading

_LOG = "log.jsonl"


class Kind(NamedTuple):
    """Log keys and labels of one kind of run."""

    score: str
    title: str
    unit: str
    held_out: dict[str, tuple[str, str]]
    """Line style and label of each score of held-out sets."""
    counted: str
    """Processed by each update, for the throughput."""


_TEXT = {"text_loss": ("-", "text"), "vision_loss": (":", "vision")}
LANGUAGE = Kind("loss", "Loss", "loss (nats per token)", _TEXT, "tokens")
_FRAMES = {"psnr": ("-", "all pixels"), "psnr_foreground": (":", "foreground")}
VQGAN = Kind("psnr", "PSNR", "dB", _FRAMES, "frames")


@dataclasses.dataclass(frozen=True)
class RunLog:
    """Log lines of a run, by what they describe."""

    name: str
    updates: list[dict[str, Any]]
    validations: list[dict[str, Any]]
    stages: tuple[tuple[int, str], ...] = ()
    """Last step before each stage of a curriculum, and the name of the stage."""

    @classmethod
    def read(cls, folder: Path, name: str) -> "RunLog":
        """Reads `log.jsonl`; its last line may be cut off.

        Of a curriculum, the logs of its stages are read, and their steps are counted on.

        Raises:
            UserError: There is none, it is no log, or it holds no step.
        """
        path = folder / _LOG
        found, stages = [], list[tuple[int, str]]()
        if path.exists():
            found = _lines(path)
        elif logs := sorted(folder.glob(f"[0-9][0-9]-*/{_LOG}")):
            path, before = logs[0], 0
            for log in logs:
                stages.append((before, log.parent.name[3:]))
                found += [line | {"step": before + line["step"]} for line in _lines(log)]
                before = found[-1]["step"] if found else 0
        else:
            raise UserError(f"{folder} holds no {_LOG}; give the folder of a run or a curriculum")
        updates = [line for line in found if "held_out" not in line]
        if not updates:
            raise UserError(f"{path} holds no step yet; wait for the first")
        validations = [line for line in found if "held_out" in line]
        return cls(name, updates, validations, tuple(stages))

    @property
    def kind(self) -> Kind:
        """Language model or VQGAN."""
        return VQGAN if any("psnr" in line for line in self.updates) else LANGUAGE

    def column(self, key: str) -> Float[np.ndarray, " N"]:
        """Returns a number of each update; NaN where it is missing."""
        values = [line.get(key) for line in self.updates]
        return np.array([np.nan if value is None else value for value in values], np.float64)

    @property
    def scores(self) -> Float[np.ndarray, " N"]:
        """Training loss or PSNR; NaN where an update was skipped."""
        values = self.column(self.kind.score)
        made = [line.get("finite", True) for line in self.updates]
        return np.where(np.isfinite(values) & made, values, np.nan)

    @property
    def throughput(self) -> Float[np.ndarray, " N"]:
        """Tokens or frames per second."""
        seconds = self.column("seconds")
        return self.column(self.kind.counted) / np.where(seconds > 0, seconds, np.nan)

    def held_out(self, source: str, key: str) -> list[tuple[int, Any]]:
        """Returns steps and scores of a held-out set, where there are any."""
        found = [(line["step"], line["held_out"].get(source, {})) for line in self.validations]
        return [(step, scores[key]) for step, scores in found if scores.get(key) is not None]

    def by_position(self, source: str) -> list[tuple[int, list[tuple[int, int, float, float]]]]:
        """Returns steps, each with start, end, loss and standard error of ranges of positions.

        The error is NaN in logs of older versions, which lack it.
        """
        stages = []
        for step, rows in self.held_out(source, "by_position"):
            there = [
                (first, end, loss, (error or [None])[0] or np.nan)
                for first, end, loss, tokens, *error in rows
                if tokens
            ]
            if there:
                stages.append((step, there))
        return stages

    def over_tokens(self) -> "RunLog":
        """Returns the log with the tokens trained on, or frames, in place of each step."""
        counts = np.cumsum(np.nan_to_num(self.column(self.kind.counted)))
        steps = self.column("step")

        def place(step: int) -> int:
            at = int(np.searchsorted(steps, step, side="right")) - 1
            return int(counts[at]) if at >= 0 else 0

        def placed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [line | {"step": place(line["step"])} for line in lines]

        stages = tuple((place(step), name) for step, name in self.stages)
        return RunLog(self.name, placed(self.updates), placed(self.validations), stages)


def _lines(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a log; the last may be cut off.

    Raises:
        UserError: One is no line of a log.
    """
    found = []
    with reading(path):
        lines = path.read_bytes().splitlines()
    for number, text in enumerate(lines, start=1):
        try:
            line = parse_json(text)
            found.append(line | {"step": int(line["step"])})
        except (ValueError, OverflowError, TypeError, KeyError):
            if number < len(lines):
                raise UserError(f"{path}:{number} is no line of a log") from None
    return found
