"""`lwm chat`: answers one question, or chats in the terminal."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from lwm.cli.common import (
    STOPPING,
    Flat,
    LoadOptions,
    Model,
    open_model,
    print_line,
    print_text,
)
from lwm.errors import UserError
from lwm.sampling_params import SamplingParams, VisionSampling
from lwm.signals import answered
from lwm.text import printable

if TYPE_CHECKING:
    from lwm.generate.chat import Conversation
    from lwm.generate.language_model import LanguageModel
    from lwm.generate.output import Frame
    from lwm.media.frames import FrameStream
    from lwm.tokenizer.message import Part

Question = Annotated[str | None, tyro.conf.Positional]
Files = Annotated[tuple[Path, ...], tyro.conf.UseAppendAction]

HELP = "Ctrl-C stops an answer, Ctrl-D leaves, /clear forgets the conversation."
HELP_SEEING = "/image FILE and /video FILE read one; the next question is about it."


def chat(
    model: Model,
    question: Question = None,
    /,
    *,
    document: Path | None = None,
    image: Files = (),
    video: Files = (),
    max_frames: int = 8,
    fps: float | None = None,
    out: Path | None = None,
    vision: Annotated[VisionSampling, tyro.conf.arg(name="")] = VisionSampling(),
    sampling: Flat[SamplingParams] = SamplingParams(),
    load: Flat[LoadOptions] = LoadOptions(),
) -> None:
    """Answers a question; without one, starts an interactive chat.

    Questions that are piped in are answered one by one; if one fails, so does the command, after
    the rest.

    Args:
        model: A name from `lwm models`, a Hugging Face folder, a GGUF file, or a hub's org/name.
        question: The question.
        document: A text file to ask about.
        image: An image to ask about; give it again for more.
        video: A video to ask about; give it again for more.
        max_frames: The largest number of frames of a video, evenly spaced; 0 is all.
        fps: Take the frames shown at each 1/fps seconds.
        out: Allow images and videos in the answer, and save them in this folder.
        vision: How images and videos are sampled.
        sampling: How the answer is sampled.
        load: How the model is loaded.
    """
    text = None if document is None else read_document(document)
    if max_frames < 0:
        raise UserError(f"--max-frames {max_frames} must be 0 (all) or above")
    with answered(STOPPING, signal.SIGINT):
        session = TerminalChat(
            open_model(model, load),
            document=text,
            sampling=sampling,
            out=out,
            vision=vision,
            max_frames=max_frames or None,
            fps=fps,
        )
        for file in (*image, *video):
            session.see(file)
    if question is not None:
        session.answer(question)
        return
    asked, failed = session.run()
    if failed and not sys.stdin.isatty():
        raise UserError(f"{failed} of {asked} questions failed; the reasons are above")


def read_document(path: Path) -> str:
    """Reads a text file.

    Raises:
        UserError: It is missing, empty or no text.
    """
    from lwm.limits import require_bounded

    try:
        require_bounded(path)
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"document {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"document {path} cannot be read as UTF-8 text: {error}") from None
    if not text.strip():
        raise UserError(f"document {path} is empty")
    return text


class TerminalChat:
    """A conversation in a terminal: typed questions, images and videos, printed answers."""

    def __init__(
        self,
        model: "LanguageModel",
        *,
        document: str | None = None,
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
            model, document=document, sampling=None if out is None else vision
        )
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
        """Answers one question on stdout, about the images and videos read since the last one.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed; the conversation is kept as far as it went.
            UserError: It does not fit.
        """
        before = self.conversation.messages
        try:
            self._print([question, *self._seen])
        finally:
            # An interrupted turn is kept as far as it went, with its images.
            if self.conversation.messages is not before:
                self._seen = []
                self._save()
        if self.conversation.was_cut:
            count = self.conversation.num_written
            print(f"[cut at {count} tokens; see --max-tokens]", file=sys.stderr)
        if self.conversation.is_without_picture:
            print("[an image was to follow; give --out FOLDER to generate it]", file=sys.stderr)

    def _print(self, parts: "Sequence[Part]") -> None:
        from lwm.console import Interruptible

        with (
            Interruptible() as user,
            contextlib.closing(
                watched(self.conversation, parts, self._sampling, check=user.check)
            ) as pieces,
        ):
            for piece in pieces:
                if isinstance(piece, str):
                    print_text(piece, end="")
                elif piece.is_last:
                    print(" [generated] ", end="", flush=True)
                user.check()
        print()

    def run(self) -> tuple[int, int]:
        """Answers questions from stdin until it ends; on a terminal, with line editing.

        A question that fails is reported on stderr, and the next one is answered.

        Returns:
            The number of questions and of those that failed; files to read count, too.

        Raises:
            UserError: There is no stdin.
        """
        if sys.stdin is None:
            raise UserError("there is no question, and no input to read one from")
        interactive = sys.stdin.isatty()
        if interactive:
            # Loading it gives `input` a history and cursor keys.
            import readline  # noqa: F401

            print_line(f"{self._model.name} is listening. {HELP}", error=True)
            if self._model.llama.config.tokens.vision:
                print(HELP_SEEING, file=sys.stderr)
        asked = failed = 0
        while True:
            try:
                line = input("> " if interactive else "").strip()
            except EOFError:
                return asked, failed
            except KeyboardInterrupt:
                print(f"\n{HELP}", file=sys.stderr)
                continue
            asked += bool(line) and line != "/clear"
            try:
                self._take(line)
            except KeyboardInterrupt:
                failed += 1
                print("\n[stopped]", file=sys.stderr)
            except UserError as error:
                failed += 1
                print_line(f"lwm: {error}", error=True)

    def _take(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        if line == "/clear":
            self.conversation.clear()
            self._seen = []
        elif command in ("/image", "/video"):
            # Of a user who is not known, the path stays as it is typed.
            self.see(os.path.expanduser(rest.strip()))
        elif line:
            self.answer(line)

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
