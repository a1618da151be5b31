"""Chat templates as programs: Jinja in a sandbox, as Hugging Face runs it."""

import functools
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from lwm.errors import UserError


def render(template: str, variables: Mapping[str, Any]) -> str:
    """Returns what a template writes.

    Raises:
        UserError: It is not valid, or fails.
    """
    compiled = _compile(template)
    try:
        return compiled.render({"tools": None, "documents": None, **variables})
    except Exception as error:  # a template is a program of the model's author
        raise UserError(f"the chat template cannot render this conversation: {error}") from None


class Read(dict):
    """An object that notes which of its keys a template reads."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.unread = set(values)

    def __getitem__(self, key: str) -> Any:
        self.unread.discard(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Returns a value."""
        self.unread.discard(key)
        return super().get(key, default)

    def items(self) -> Any:
        """Returns all keys and values."""
        self.unread.clear()
        return super().items()

    def values(self) -> Any:
        """Returns all values."""
        self.unread.clear()
        return super().values()


@functools.lru_cache(maxsize=16)
def variables_of(template: str) -> frozenset[str]:
    """Returns the names of the variables that a template reads."""
    import jinja2
    from jinja2 import meta

    try:
        return frozenset(meta.find_undeclared_variables(_environment().parse(template)))
    except jinja2.TemplateError as error:
        raise UserError(f"the chat template is not valid Jinja: {error}") from None


@functools.lru_cache(maxsize=16)
def _compile(template: str) -> Any:
    import jinja2

    offered = {"raise_exception": _raise, "strftime_now": _now}
    try:
        return _environment().from_string(template, globals=offered)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"the chat template is not valid Jinja: {error}") from None


def _environment() -> Any:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation()]
    )
    environment.filters["tojson"] = _tojson
    return environment


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **rest: Any) -> str:
    """Writes plain JSON; Jinja's own filter would escape HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **rest)


def _raise(message: str) -> None:
    from jinja2.exceptions import TemplateError

    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _generation() -> type:
    """Returns the extension for `{% generation %}`, which marks answers for training."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 (how Jinja declares them)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return Generation
