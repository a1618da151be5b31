"""Evaluations that stages of a curriculum may name: parts of `lwm eval all`, with few questions."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lwm.eval.suite.config import PARTS, PartName, SuiteConfig

if TYPE_CHECKING:
    from lwm.train.curriculum import Evaluate


def _evaluate(part: PartName, model: Path, out: Path) -> None:
    """Asks the questions of a part that are within the model's context."""
    import lwm
    from lwm.cli.evaluate import run_all
    from lwm.eval.subject import Subject

    run_all(Subject.of_model(lwm.load(model)), SuiteConfig(parts=(part,), quick=True), out)


EVALUATIONS: Mapping[str, "Evaluate"] = {part: functools.partial(_evaluate, part) for part in PARTS}
