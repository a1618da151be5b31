"""Configuration of a RULER evaluation, and the thirteen tasks."""

import dataclasses
from pathlib import Path
from typing import Literal, get_args

from lwm.errors import UserError
from lwm.eval.form import PromptForm

TaskName = Literal[
    "niah_single_1",
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "niah_multivalue",
    "niah_multiquery",
    "vt",
    "cwe",
    "fwe",
    "qa_1",
    "qa_2",
]
TASKS: tuple[TaskName, ...] = get_args(TaskName)
THRESHOLD = 85.6
"""Average of Llama-2-7B-chat at 4K, in percent: RULER's least for a length that a model handles."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RulerConfig:
    """Tasks, context lengths, and the samples of each pair of them."""

    tasks: tuple[TaskName, ...] = TASKS
    """Tasks of RULER; all thirteen by default."""
    lengths: tuple[int, ...] = (1024, 2048, 4096)
    """Context lengths in the model's tokens, prompt and answer included."""
    samples: int = 25
    """Questions of each task at each length."""
    seed: int = 42
    """Seed of the questions."""
    prompt: PromptForm = "chat"
    """The model's chat template, LWM's prompt, or the text alone for base models."""
    haystack: Path | None = None
    """Essays: a text or JSONL file (`{"text": ...}` per line), or a folder of .txt."""
    qa_1: Path | None = None
    """SQuAD's JSON; without it, `qa_1` asks about generated documents."""
    qa_2: Path | None = None
    """HotpotQA's JSON; without it, `qa_2` asks about generated documents."""
    threshold: float = THRESHOLD
    """Least average, in percent, of a length that counts as effective; RULER's by default."""

    def __post_init__(self):
        """Refuses an impossible configuration.

        Raises:
            UserError: The value.
        """
        for name in ("tasks", "lengths"):
            if not getattr(self, name):
                raise UserError(f"{name} are empty; give at least one")
        if self.samples < 1:
            raise UserError(f"samples {self.samples} must be 1 or more")
        if not 0 < self.threshold <= 100:
            raise UserError(f"threshold {self.threshold:g} must be a percentage above 0")

    @property
    def all_tasks(self) -> tuple[TaskName, ...]:
        """Each task once, in RULER's order."""
        return tuple(sorted(set(self.tasks), key=TASKS.index))

    @property
    def all_lengths(self) -> tuple[int, ...]:
        """Each length once, ascending."""
        return tuple(sorted(set(self.lengths)))
