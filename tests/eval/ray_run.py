"""Asks a model on two workers of Ray, one of which dies; in a process of its own, see test_ray.py.

python -m tests.eval.ray_run MODEL ABSENT COUNT
"""

import json
import sys
from typing import Any

from lwm.cli.answerers import AnswerOptions, open_subject
from lwm.cli.common import LoadOptions
from lwm.cluster import connected
from lwm.errors import UserError
from lwm.eval.prompt import PromptEncoder
from lwm.eval.subject import Subject

from .numbers_asked import Numbers


def asked(subject: Subject, count: int, dies_at: int | None = None) -> dict[str, Any]:
    """Returns the responses by index; a worker dies after so many."""
    encoder = PromptEncoder(tokenizer=subject.tokenizer, form="text")
    evaluation = Numbers(encoder, count)
    answerer: Any = subject.answerer(2000, lambda done: None)
    found: dict[str, Any] = {}
    for question, response in answerer.answers(map(evaluation.question, evaluation.cells)):
        found[str(question.cell.index)] = [response.text, response.prompt_tokens]
        if len(found) == dies_at:
            pool = answerer._pool
            pool.ray.kill(pool.slots[0].actor)
    if dies_at is not None:
        assert answerer._pool._deaths == 1
    return {"description": dict(subject.description), "files": subject.files, "found": found}


def main(model: str, absent: str, count: int) -> None:
    """Prints what an absent model leads to, and what the workers answer."""
    import ray

    answers = AnswerOptions(engine="ray", ray_workers=2)
    with connected(ray):
        try:
            with open_subject(absent, LoadOptions(), answers):
                raise AssertionError("an absent model was opened")
        except UserError as error:
            print(error)
        with open_subject(model, LoadOptions(), answers) as subject:
            print(json.dumps(asked(subject, count, dies_at=3)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
