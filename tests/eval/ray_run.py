"""Asks a model on two workers of Ray, one of which dies; in a process of its own, see test_ray.py.

python -m tests.eval.ray_run MODEL COUNT
"""

import json
import sys
from typing import Any

from lwm.cli.answerers import AnswerOptions, open_subject
from lwm.cli.common import LoadOptions
from lwm.cluster import connected
from lwm.errors import UserError
from lwm.eval.prompt import PromptEncoder
from lwm.eval.report.facts import devices
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


def main(model: str, count: int) -> None:
    """Prints why a worker refuses a mesh, and what workers answer."""
    import ray

    with connected(ray):
        try:
            with open_subject(model, LoadOptions(mesh="tp=64"), AnswerOptions(engine="ray")):
                raise AssertionError("a worker has made a mesh of 64 devices")
        except UserError as error:
            print(error)
        answers = AnswerOptions(engine="ray", ray_workers=2, rows=2)
        with open_subject(model, LoadOptions(), answers) as subject:
            assert subject.elsewhere == f"Ray workers (2), each with {devices()}"
            print(json.dumps(asked(subject, count, dies_at=3)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
