"""A script that runs chat templates in Jinja's sandbox, as Hugging Face does, within limits.

`lwm.tokenizer.jinja` starts it. It imports nothing of this package, so that it is small and starts
fast. Requests are pickles; replies are JSON, since the program does not trust what runs here.
"""

import contextlib
import functools
import json
import os
import pickle
import resource
import struct
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import IO, Any

REQUEST = struct.Struct("<3Q")
"""Head of a request: its length, the seconds and the bytes that it may take."""
REPLY = struct.Struct("<Q")
"""Head of a reply: its length."""
CHARACTERS = 1 << 24
"""Length of a text, besides eight times that of the request."""
NO_MEMORY = 3
"""Exit status after memory ran out."""
_SHOWN = 300


class Read(dict):
    """A message that notes which of its keys a template reads."""

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


def answer(request: Mapping[str, Any], most: int) -> dict[str, Any]:
    """Renders a template; the reply holds its text, of at most so many characters, or a fault."""
    try:
        compiled, names = _compile(request["template"])
    except MemoryError:
        raise
    except Exception as error:
        return {"invalid": _line(error)}
    unused = [key for key in request["given"] if key not in names]
    messages = [Read(message) for message in request["messages"]]
    pieces, room = [], most
    try:
        for piece in compiled.generate({**request["variables"], "messages": messages}):
            room -= len(piece)
            if room < 0:
                return {"failed": f"it writes more than {most:,} characters"}
            pieces.append(piece)
    except MemoryError:
        raise
    except Exception as error:  # a template is a program of the model's author
        return {"failed": _line(error)}
    unread = [sorted(read.unread) for read in messages]
    return {"text": "".join(pieces), "unused": unused, "unread": unread}


def _line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:_SHOWN]


@functools.lru_cache(maxsize=16)
def _compile(template: str) -> tuple[Any, frozenset[str]]:
    """Returns the program of a template, and the names of the variables that it reads."""
    from jinja2 import meta

    environment = _environment()
    names = frozenset(meta.find_undeclared_variables(environment.parse(template)))
    offered = {"raise_exception": _raise, "strftime_now": _now}
    return environment.from_string(template, globals=offered), names


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


@functools.cache
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


def _limit(kind: int, most: int) -> None:
    with contextlib.suppress(OSError, ValueError):  # not every system has each limit
        resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))


def _address_space() -> int:
    """Returns the bytes of addresses in use; 0 if they are unknown, and then not limited."""
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
    return 0


def _run(read: Callable[[int], bytes], out: IO[bytes]) -> None:
    """Answers requests until there are no more."""
    _environment()  # imports
    own = _address_space()
    while len(head := read(REQUEST.size)) == REQUEST.size:
        size, seconds, memory = REQUEST.unpack(head)
        _limit(resource.RLIMIT_CPU, int(time.process_time()) + 1 + seconds)
        if own:
            _limit(resource.RLIMIT_AS, own + memory)
        try:
            request = pickle.loads(read(size))
        except MemoryError:
            raise
        except Exception as error:
            reply = {"failed": f"a variable of it cannot be passed on: {_line(error)}"}
        else:
            reply = answer(request, CHARACTERS + 8 * size)
        data = json.dumps(reply).encode()
        out.write(REPLY.pack(len(data)) + data)
        out.flush()


def main() -> None:
    """Runs as a script; its one argument is the path for imports of the program, as JSON."""
    sys.path[:] = json.loads(sys.argv[1])
    _limit(resource.RLIMIT_CORE, 0)
    try:
        _run(sys.stdin.buffer.read, sys.stdout.buffer)
    except MemoryError:
        os._exit(NO_MEMORY)


if __name__ == "__main__":
    main()
