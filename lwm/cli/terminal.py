"""Chat in a terminal: typed questions and commands, images and videos, printed answers."""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lwm.cli.chat_commands import (
    COMMANDS,
    NAMES,
    changed,
    file_alone,
    file_and_rest,
    require_command,
)
from lwm.cli.common import print_line, print_text
from lwm.cli.prompt import typed_lines
from lwm.cli.wrap import Wrapped
from lwm.errors import UserError
from lwm.sampling_params import SamplingParams, VisionSampling
from lwm.text import printable

if TYPE_CHECKING:
    from lwm.generate.chat import Conversation
    from lwm.generate.language_model import LanguageModel
    from lwm.generate.output import Frame
    from lwm.media.frames import FrameStream
    from lwm.tokenizer.message import Message, Part

HELP = "Ctrl-C stops an answer, Ctrl-D leaves, /help lists the commands."
LEAVING = "Ctrl-C again leaves, as Ctrl-D does."
_UNCOUNTED = ("/clear", "/help", "/tokens", "/quit")
write = functools.partial(print_text, end="")


def document_of(path: Path) -> str:
    """Returns a document, or stdin where the path is -; files left out are named on stderr.

    Raises:
        UserError: It is missing, empty or no document.
    """
    from lwm.formats.documents import read_document

    if str(path) == "-":
        if not (text := "" if sys.stdin is None else sys.stdin.read()).strip():
            raise UserError("no text is piped in; give a file in place of -")
        return text
    return read_document(path, skipped=lambda reason: print_line(f"lwm: {reason}", error=True))


class TerminalChat:
    """A conversation in a terminal: typed questions, images and videos, printed answers."""

    def __init__(
        self,
        model: "LanguageModel",
        *,
        document: str | None = None,
        system: str | None = None,
        sampling: SamplingParams = SamplingParams(),
        out: Path | None = None,
        vision: VisionSampling = VisionSampling(),
        max_frames: int | None = 8,
        fps: float | None = None,
    ):
        """Starts an empty conversation.

        Args:
            model: The model that answers.
            document: A text that is put before the first question.
            system: A text that says how to answer.
            sampling: How answers are sampled.
            out: A folder for generated images and videos; None: answers are text only. Files in
                it are kept, new ones are numbered after them.
            vision: How images and videos are sampled.
            max_frames: Frames read of a video, at most; None is all.
            fps: See `LanguageModel.see`.

        Raises:
            UserError: The model cannot generate images, or the folder cannot be written.
        """
        from lwm.files import make_folder, reading
        from lwm.generate.chat import Conversation

        self._model, self._sampling, self._out = model, sampling, out
        self._max_frames, self._fps = max_frames, fps
        self.conversation = Conversation(
            model, document=document, system=system, sampling=None if out is None else vision
        )
        self._documents: list[str] = []
        self._counted: tuple[Sequence[Message], int] | None = None
        """The messages whose tokens were counted last, and their number."""
        self._seen: list[Part] = []
        self._num_saved = 0
        if out is not None:
            make_folder(out)
            with reading(out):
                there = [file.stem for file in out.iterdir()]
            self._num_saved = max((int(stem) for stem in there if stem.isdecimal()), default=0)

    def see(self, file: str | Path) -> None:
        """Reads an image or a video for the next question; prints the tokens that it takes.

        Raises:
            UserError: It cannot be read, the model has no vision, or there is no room for it.
        """

        from rich.console import Console

        from lwm.console import waiting

        console = Console(stderr=True)  # so that the line stands above the bar

        def check(found: "FrameStream") -> None:
            line = self._require_room(file, found.num_selected)
            console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

        with waiting(f"encoding {file}", "frames", console=console) as progress:
            vision = self._model.see(
                Path(file),
                max_frames=self._max_frames,
                fps=self._fps,
                check=check,
                progress=progress,
            )
        self._seen.append(vision)

    def _require_room(self, file: str | Path, frames: int) -> str:
        """Returns a line about the tokens of an image or video, and the room after it."""
        import numpy as np

        from lwm.tokenizer.message import Vision

        model = self._model
        each = model.vision.tokens_per_frame
        first = Vision(codes=np.zeros((1, each), np.int32), is_video=frames > 1)
        asked = self.conversation.question((*self._seen, first))
        used = len(self.conversation.ids([*self.conversation.messages, asked]))
        used += (frames - 1) * (each + 1)
        most = self._sampling.max_tokens
        limit = 1 if most is None else most
        room = model.context - limit - used
        size = model.marks.size(frames, each)
        what = f"{file}: {frames:,} frame{'s' * (frames > 1)}, {size:,} tokens"
        if room < 0:
            fit = max(0, frames + room // (each + 1))
            raise UserError(
                f"{what}; with the conversation so far and an answer of {limit:,} "
                f"that is {-room:,} more than the context of {model.context:,}: {fit:,} frames "
                "fit; lower --max-frames, --fps or --max-tokens"
            )
        return f"{what}; {max(0, room // (each + 1)):,} more frames would fit"

    def answer(self, question: str) -> None:
        """Answers one question on stdout, about what was read since the last one.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed; the conversation is kept as far as it went.
            UserError: It does not fit.
        """
        text = "\n\n".join([*(one.strip() for one in self._documents), question])
        self._ask([text, *self._seen])

    def _ask(self, parts: "Sequence[Part]") -> None:
        before = self.conversation.messages
        try:
            self._print(parts)
        finally:
            # An interrupted turn is kept as far as it went, with its images.
            if self.conversation.messages is not before:
                self._seen, self._documents = [], []
                self._save()
        if self.conversation.was_cut:
            count = self.conversation.num_written
            print(f"[cut at {count} tokens; see --max-tokens]", file=sys.stderr)
        if self.conversation.is_without_picture:
            print("[an image was to follow; give --out FOLDER to generate it]", file=sys.stderr)

    def _print(self, parts: "Sequence[Part]") -> None:
        from lwm.console import Interruptible

        wrapped = Wrapped(write) if sys.stdout is not None and sys.stdout.isatty() else None
        show = write if wrapped is None else wrapped.add
        with (
            Interruptible() as user,
            contextlib.closing(
                watched(self.conversation, parts, self._sampling, check=user.check)
            ) as pieces,
        ):
            try:
                for piece in pieces:
                    if isinstance(piece, str):
                        show(piece)
                    elif piece.is_last:
                        show(" [generated] ")
                    user.check()
            finally:
                if wrapped is not None:
                    wrapped.end()
        if wrapped is None:
            print()

    def run(self) -> tuple[int, int]:
        """Answers questions from stdin until it ends; on a terminal, with line editing.

        A question that fails is reported on stderr, and the next one is answered.

        Returns:
            The number of questions and of those that failed; commands that fail count, too.

        Raises:
            UserError: There is no stdin.
        """
        if sys.stdin is None:
            raise UserError("there is no question, and no input to read one from")
        read: Callable[[], str] = input
        if is_typed := sys.stdin.isatty():
            read = typed_lines(NAMES, self._status)
            print_line(f"{self._model.name} is listening. {HELP}", error=True)
        asked = failed = 0
        is_leaving = False
        while True:
            try:
                line = read().strip()
                is_leaving = False
            except EOFError:
                return asked, failed
            except KeyboardInterrupt:
                if is_leaving:
                    return asked, failed
                is_leaving = is_typed
                print(f"\n{LEAVING if is_typed else HELP}", file=sys.stderr)
                continue
            asked += bool(line) and line.split()[0] not in _UNCOUNTED
            try:
                if line == "/quit":
                    return asked, failed
                self._take(line)
            except KeyboardInterrupt:
                failed += 1
                print("\n[stopped]", file=sys.stderr)
            except UserError as error:
                failed += 1
                print_line(f"lwm: {error}", error=True)

    def _status(self) -> str:
        """Returns how full the context is, for the side of the prompt."""
        messages = self.conversation.messages
        if self._counted is None or self._counted[0] is not messages:
            self._counted = messages, self.conversation.num_tokens if messages else 0
            with contextlib.suppress(UserError):  # of a template that ends in questions alone
                self._counted = messages, len(self.conversation.ids(messages)) if messages else 0
        return f"{self._counted[1]:,} of {self._model.context:,} tokens"

    def _take(self, line: str) -> None:
        if not line:
            return
        name, *rest = line.split(maxsplit=1)
        if not name.startswith("/") or "/" in name[1:]:  # a question, perhaps about a path
            self.answer(line)
            return
        require_command(name)
        getattr(self, f"_do_{name[1:]}")("".join(rest))

    def _do_help(self, _: str) -> None:
        for usage, what in COMMANDS.items():
            print_line(f"{usage:<22} {what}", error=True)

    def _do_image(self, text: str) -> None:
        path, question = file_and_rest(text)
        self.see(path)
        if question:
            self.answer(question)

    _do_video = _do_image

    def _do_document(self, text: str) -> None:
        path, question = file_and_rest(text)
        self._documents.append(document_of(Path(path)))
        if question:
            self.answer(question)

    def _do_system(self, text: str) -> None:
        self.conversation.system = text or None

    def _do_undo(self, _: str) -> None:
        self.conversation.undo()

    def _do_retry(self, _: str) -> None:
        turn = self.conversation.undo()
        added = self._seen, self._documents  # for the next question
        before, seed = self.conversation.messages, self._sampling.seed
        # Another answer, where it is sampled at all.
        self._sampling = dataclasses.replace(self._sampling, seed=(seed + 1) % 2**32)
        try:
            self._ask(turn.asked)
        finally:
            self._seen, self._documents = added
            if self.conversation.messages is before:  # there is no other answer
                self.conversation.put_back(turn)

    def _do_clear(self, _: str) -> None:
        self.conversation.clear()
        self._seen, self._documents = [], []

    def _do_tokens(self, _: str) -> None:
        print_line(f"{self._status()}; /undo and /clear make room", error=True)

    def _do_set(self, text: str) -> None:
        self._sampling = changed(self._sampling, text)

    def _do_save(self, text: str) -> None:
        from lwm.cli.chat_commands import saved
        from lwm.files import write_bytes

        path = file_alone(text)
        if path.exists():
            raise UserError(f"{path} exists; give another file")
        write_bytes(path, saved(self.conversation.system, self.conversation.messages))
        print_line(path, error=True)

    def _do_load(self, text: str) -> None:
        from lwm.data.conversation import read_conversation
        from lwm.files import read_json

        path = file_alone(text)
        if not path.is_file():
            raise UserError(f"{path} is no file; give one that /save has written")
        self.conversation.resume(read_conversation(read_json(path)).messages)
        self._seen, self._documents = [], []
        print_line(f"{len(self.conversation.messages) // 2} questions and answers", error=True)

    def _save(self) -> None:
        """Writes the images and videos of the last answer, and prints their paths."""
        if self._out is None or not self.conversation.messages:
            return
        files = []
        for vision in self.conversation.messages[-1].visions:
            self._num_saved += 1
            while any(self._out.glob(f"{self._num_saved:03}.*")):  # of another chat
                self._num_saved += 1
            files.append(self._out / f"{self._num_saved:03}.{'mp4' if vision.is_video else 'png'}")
            vision.save(files[-1])
        for file in files:
            print_line(file)


def watched(
    conversation: "Conversation",
    question: "str | Sequence[Part]",
    sampling: SamplingParams,
    *,
    check: Callable[[], None] = lambda: None,
) -> "Generator[str | Frame]":
    """Yields an answer, with a bar until it begins; `check` is called while reading."""
    from lwm.console import waiting

    with waiting("reading", "tokens") as bar:

        def progress(done: int, total: int) -> None:
            check()
            bar(done, total)

        pieces = conversation.ask(question, params=sampling, progress=progress)
        first = next(pieces, "")
    yield first
    yield from pieces
