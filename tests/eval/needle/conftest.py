"""Programs that are asked for needles."""

from pathlib import Path

import pytest

from lwm.eval.needle.config import NeedleConfig
from lwm.eval.needle.report import NeedleReport
from lwm.eval.needle.run import evaluate
from lwm.eval.question import Answerer
from lwm.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def ask_program(subject_of):
    """Evaluates a program; returns the report."""

    def ask(
        program: Answerer, config: NeedleConfig, tokenizer: Tokenizer, out: Path
    ) -> NeedleReport:
        return evaluate(subject_of(program, tokenizer), config, out).report

    return ask
