"""Errors of `tokenizers` in one line, also the panics of its Rust code."""

import contextlib
import os
import tempfile
import threading
from collections.abc import Generator
from typing import IO

from lwm.errors import UserError, is_panic
from lwm.files import reason_of

_QUIET = threading.Lock()


@contextlib.contextmanager
def in_one_line(failure: str) -> Generator[None]:
    """Turns any error into a UserError that starts with these words."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        raise UserError(f"{failure}: {reason_of(error)}") from None


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Leaves out what Rust writes to stderr about a panic; all else arrives a little later.

    Does nothing while another thread is in it, or without stderr.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            if _QUIET.acquire(blocking=False):
                stack.callback(_QUIET.release)
                stderr = stack.enter_context(os.fdopen(os.dup(2), "wb", 0))
                kept = stack.enter_context(tempfile.TemporaryFile())
                stack.callback(_restore, stderr, kept)
                os.dup2(kept.fileno(), 2)
        yield


def _restore(stderr: IO[bytes], kept: IO[bytes]) -> None:
    os.dup2(stderr.fileno(), 2)
    kept.seek(0)
    text = kept.read()
    if b"panicked at" not in text:
        stderr.write(text)
