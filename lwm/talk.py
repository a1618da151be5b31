"""What `lwm chat` does: opens a model with a bar to watch, and talks in a terminal."""

import contextlib
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING

from lwm import catalog
from lwm.console import Interruptible, waiting
from lwm.errors import UserError
from lwm.generate.chat import Conversation, LanguageModel
from lwm.generate.writing import Writing
from lwm.loading import find, load

if TYPE_CHECKING:
    from lwm.cli import Placing

HELP = "Ctrl-C stops an answer, Ctrl-D leaves, /clear forgets the conversation."


def open_model(name: str, placing: "Placing") -> LanguageModel:
    """Loads a model, showing how far it is; compiled programs are kept for the next run."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(catalog.cache_folder() / "compiled"))
    find(name)  # fetching has a bar of its own
    with waiting(f"loading {name}", "tensors") as report:
        return load(
            name,
            mesh=placing.mesh,
            dtype=placing.dtype,
            template=placing.template,
            given=placing.given,
            progress=report,
        )


def read_document(path: Path) -> str:
    """Reads a text file.

    Raises:
        UserError: It is missing, empty or no text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"document {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"document {path} cannot be read as UTF-8 text: {error}") from None
    if not text.strip():
        raise UserError(f"document {path} is empty")
    return text


def answer(model: LanguageModel, question: str, *, document: str | None, writing: Writing) -> None:
    """Answers one question on stdout."""
    _say(Conversation(model, document=document), question, writing)


def talk(model: LanguageModel, *, document: str | None, writing: Writing) -> None:
    """Answers questions from stdin until it ends; on a terminal, with line editing."""
    interactive = sys.stdin.isatty()
    if interactive:
        # Loading it gives `input` a history and cursor keys.
        import readline  # noqa: F401

        print(f"{model.name} is listening. {HELP}", file=sys.stderr)
    conversation = Conversation(model, document=document)
    while True:
        try:
            question = input("> " if interactive else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            print(f"\n{HELP}", file=sys.stderr)
            continue
        if question == "/clear":
            conversation.clear()
        elif question:
            try:
                _say(conversation, question, writing)
            except KeyboardInterrupt:
                print("\n[stopped]", file=sys.stderr)
            except UserError as error:
                print(f"lwm: {error}", file=sys.stderr)


def _say(conversation: Conversation, question: str, writing: Writing) -> None:
    """Prints an answer as it is written.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the conversation is kept as far as it went.
    """
    with (
        Interruptible() as user,
        contextlib.closing(watched(conversation, question, writing, check=user.check)) as pieces,
    ):
        for piece in pieces:
            print(piece, end="", flush=True)
            user.check()
    print()
    if conversation.was_cut:
        print(f"[cut at {writing.max_tokens} tokens; see --max-tokens]", file=sys.stderr)


def watched(
    conversation: Conversation,
    question: str,
    writing: Writing,
    *,
    check: Callable[[], None] = lambda: None,
) -> Generator[str]:
    """Yields an answer, with a bar until it begins; `check` is called while reading."""
    with waiting("reading", "tokens") as report:

        def progress(done: int, total: int) -> None:
            check()
            report(done, total)

        pieces = conversation.ask(question, writing=writing, progress=progress)
        first = next(pieces, "")
    yield first
    yield from pieces
