"""Line where questions are typed: history, completion, and pasted text as one question."""

import os
from collections.abc import Callable, Iterable, Sequence

from lwm.folders import cache_folder

MARK = "> "
HISTORY = "chat-history"


def typed_lines(commands: Sequence[str], status: Callable[[], str]) -> Callable[[], str]:
    """Returns a function that reads a question from the terminal.

    Raises EOFError where Ctrl-D ends it, and KeyboardInterrupt at Ctrl-C. Pasted text is one
    question, however many lines it has.

    Args:
        commands: Commands, with their slash, to be completed.
        status: Returns a line to be shown at the right.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory

    class Commands(Completer):
        """Completes commands, and paths after them."""

        paths = PathCompleter(expanduser=True)

        def get_completions(
            self, document: Document, complete_event: CompleteEvent
        ) -> Iterable[Completion]:
            before = document.text_before_cursor
            if not before.startswith("/"):
                return
            command, space, rest = before.partition(" ")
            if space:
                yield from self.paths.get_completions(Document(rest), complete_event)
                return
            for name in commands:
                if name.startswith(command):
                    yield Completion(f"{name} ", start_position=-len(command), display=name)

    def history() -> History:
        path = cache_folder() / HISTORY
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_APPEND, 0o600))
        except OSError:
            return InMemoryHistory()
        return FileHistory(path)

    session = PromptSession(
        MARK,
        history=history(),
        completer=Commands(),
        complete_while_typing=False,
        rprompt=status,
        enable_suspend=True,
    )
    return session.prompt
