"""Options of the evaluations' commands that choose who answers, and where."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Literal

from lwm.cli.common import LoadOptions, open_model
from lwm.errors import UserError

if TYPE_CHECKING:
    from lwm.eval.server import Server
    from lwm.eval.subject import Subject

_KEY = "OPENAI_API_KEY"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """The process or server that answers."""

    rows: int = 4
    """Prompts that a model answers together, as far as its memory has room for them."""
    engine: Literal["local", "ray"] = "local"
    """Answers come from this process, or from workers of a Ray cluster."""
    ray_workers: int = 1
    """Workers on the Ray cluster, each of which loads the model."""
    ray_resources: str = ""
    """Resources of a worker, such as CPU=4,GPU=2; else a core, and a GPU if there are some."""
    endpoint: str | None = None
    """URL of an OpenAI-compatible server to ask instead, such as http://localhost:8000/v1."""
    tokenizer: str | None = None
    """The served model's tokenizer: a model's name, a folder or a file; else by its name."""
    concurrency: int = 4
    """Questions that a server is asked at a time."""
    retries: int = 10
    """Further tries of a request to a server that failed."""
    timeout: float = 600.0
    """Seconds for a server's response."""
    api_key_env: str = _KEY
    """Name of the environment variable that holds the server's API key."""
    opening: Literal["message", "continue"] = "message"
    """Where the start of an answer goes: at the end of the message, or in a turn to continue."""
    extra_body: str = "{}"
    """Further fields of each request to a server, as JSON; null leaves one out."""


def require_answerer(model: str, answers: AnswerOptions) -> None:
    """Refuses early options that do not go together; uses neither devices nor the network.

    Raises:
        UserError: The options.
    """
    if answers.endpoint is not None:
        if answers.engine != "local":
            raise UserError("--endpoint and --engine ray exclude each other; leave one out")
        _server(answers)
        _fields(answers.extra_body)
        return
    if not model:
        raise UserError("give the model, or --endpoint with the URL of a server")
    if answers.tokenizer is not None:
        raise UserError("--tokenizer is for --endpoint; a model has its own")
    for name in ("rows", "ray_workers"):
        if getattr(answers, name) < 1:
            option = name.replace("_", "-")
            raise UserError(f"--{option} {getattr(answers, name)} must be at least 1")
    _resources(answers.ray_resources)


@contextlib.contextmanager
def open_subject(model: str, load: LoadOptions, answers: AnswerOptions) -> "Generator[Subject]":
    """Opens what is to be evaluated: a model here, on a Ray cluster, or on a server.

    Args:
        model: Its name; on a server it may be empty.
        load: How the model is loaded; of a served one, its chat template and context.
        answers: Who answers.

    Raises:
        UserError: There is no such model or server, or options do not go together.
    """
    require_answerer(model, answers)
    if answers.endpoint is not None:
        yield _endpoint(model, load, answers)
        return
    if answers.engine == "ray":
        from lwm.eval.ray import ray_subject

        with ray_subject(
            model,
            load.arguments,
            workers=answers.ray_workers,
            resources=_resources(answers.ray_resources),
            rows=answers.rows,
        ) as subject:
            yield subject
        return
    from lwm.eval.subject import Subject

    yield Subject.of_model(open_model(model, load), rows=answers.rows)


def _endpoint(model: str, load: LoadOptions, answers: AnswerOptions) -> "Subject":
    from lwm.convert.open import open_tokenizer
    from lwm.eval.endpoint import ServedModel, endpoint_subject

    server = _server(answers)
    served = ServedModel.find(server, model or None)
    if load.given.context is not None:
        served = dataclasses.replace(served, context=load.given.context)
    try:
        tokenizer = open_tokenizer(answers.tokenizer or served.name)
    except UserError as error:
        if answers.tokenizer is not None:
            raise
        raise UserError(
            f"{error}; --tokenizer names that of the served model, {served.name}"
        ) from None
    return endpoint_subject(
        server,
        served,
        tokenizer,
        template=load.template,
        opening=answers.opening,
        extra=_fields(answers.extra_body),
    )


def _server(answers: AnswerOptions) -> "Server":
    from lwm.eval.server import Server, base_url

    assert answers.endpoint is not None
    return Server(
        url=base_url(answers.endpoint),
        key=_key(answers.api_key_env),
        connections=answers.concurrency,
        retries=answers.retries,
        timeout=answers.timeout,
    )


def _resources(text: str) -> dict[str, float] | None:
    """Returns the resources of a worker, by name."""
    found = {}
    for pair in filter(None, text.split(",")):
        name, _, amount = pair.partition("=")
        try:
            found[name.strip()] = float(amount)
        except ValueError:
            raise UserError(
                f"--ray-resources {text}: give pairs of name and number, such as CPU=4,GPU=2"
            ) from None
    return found or None


def _key(variable: str) -> str | None:
    """Returns the API key in an environment variable; only the usual one may be unset."""
    key = os.environ.get(variable, "").strip()
    if not key and variable != _KEY:
        raise UserError(f"--api-key-env {variable}: this environment variable is not set")
    return key or None


def _fields(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise UserError(f"--extra-body {text} is no JSON object, such as '{{\"seed\": 1}}'")
    return fields
