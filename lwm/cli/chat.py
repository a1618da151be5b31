"""What `lwm chat` does: opens a model with a bar to watch, talks, looks and draws."""

import contextlib
import os
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lwm.console import Interruptible, waiting
from lwm.convert.open import find_files
from lwm.errors import UserError
from lwm.files import make_folder, reading
from lwm.generate.chat import Conversation
from lwm.generate.language_model import LanguageModel
from lwm.generate.output import Frame
from lwm.hub import catalog
from lwm.loading import load
from lwm.media.frames import Frames
from lwm.sampling_params import SamplingParams, VisionSampling
from lwm.tokenizer.message import Part, Vision

if TYPE_CHECKING:
    from lwm.cli.common import LoadOptions

HELP = "Ctrl-C stops an answer, Ctrl-D leaves, /clear forgets the conversation."
HELP_SEEING = "/image FILE and /video FILE look at one; the next question is about it."


def open_model(name: str, placing: "LoadOptions") -> LanguageModel:
    """Loads a model, showing how far it is; compiled programs are kept for the next run."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(catalog.cache_folder() / "compiled"))
    find_files(name)  # fetching has a bar of its own
    with waiting(f"loading {name}", "tensors") as report:
        return load(
            name,
            mesh=placing.mesh,
            dtype=placing.dtype,
            template=placing.template,
            vqgan=placing.vqgan,
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


class TerminalChat:
    """A conversation in a terminal: what is typed, what is looked at, and what is answered."""

    def __init__(
        self,
        model: LanguageModel,
        *,
        document: str | None = None,
        writing: SamplingParams = SamplingParams(),
        out: Path | None = None,
        drawings: VisionSampling = VisionSampling(),
        max_frames: int | None = 8,
        fps: float | None = None,
    ):
        """Starts without a turn.

        Args:
            model: Who answers.
            document: A text that is put before the first question.
            writing: How answers are written.
            out: A folder for what is drawn; None: answers are text only. Files that it holds are
                kept: numbers go on after theirs.
            drawings: How it is drawn.
            max_frames: Of a video that is looked at; None is all.
            fps: See `LanguageModel.see`.

        Raises:
            UserError: The model cannot draw, or the folder cannot be written.
        """
        self._model, self._writing, self._out = model, writing, out
        self._max_frames, self._fps = max_frames, fps
        draws = None if out is None else drawings
        self.conversation = Conversation(model, document=document, drawings=draws)
        self._seen: list[Part] = []
        self._drawn = 0
        if out is not None:
            make_folder(out)
            with reading(out):
                there = [file.stem for file in out.iterdir()]
            self._drawn = max((int(stem) for stem in there if stem.isdecimal()), default=0)

    def see(self, file: str | Path) -> None:
        """Looks at an image or a video, which the next question is about, and says what it takes.

        Raises:
            UserError: It cannot be read, the model sees nothing, or there is no room for it.
        """

        def check(found: Frames) -> None:
            self._require_room(file, len(found.pixels))

        model = self._model
        vision = model.see(Path(file), max_frames=self._max_frames, fps=self._fps, check=check)
        self._seen.append(vision)

    def _require_room(self, file: str | Path, frames: int) -> None:
        model = self._model
        codes = np.zeros((frames, model.vision.tokens_per_frame), np.int32)
        asked = self.conversation.question((*self._seen, Vision(codes=codes, is_video=frames > 1)))
        used = len(self.conversation.ids([*self.conversation.messages, asked]))
        room = model.context - self._writing.max_tokens - used
        size, frame = len(model.marks.wrap(codes)), codes.shape[1] + 1
        what = f"{file}: {frames} frame{'s' * (frames > 1)}, {size:,} tokens"
        if room < 0:
            fit = max(0, frames + room // frame)
            raise UserError(
                f"{what}; with what was said before and an answer of {self._writing.max_tokens:,} "
                f"that is {-room:,} more than the context of {model.context:,}: {fit} frames fit; "
                "lower --max-frames or --max-tokens"
            )
        print(f"{what}; {max(0, room // frame):,} more frames would fit", file=sys.stderr)

    def answer(self, question: str) -> None:
        """Answers one question on stdout, about what was looked at since the last one.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed; the conversation is kept as far as it went.
            UserError: It does not fit.
        """
        before = self.conversation.messages
        try:
            self._print([question, *self._seen])
        finally:
            # A turn that was broken off is kept as far as it went, and what it drew with it.
            if self.conversation.messages is not before:
                self._seen = []
                self._save()
        if self.conversation.was_cut:
            print(f"[cut at {self._writing.max_tokens} tokens; see --max-tokens]", file=sys.stderr)
        if self.conversation.is_without_picture:
            print("[a picture was to follow; --out FOLDER has it drawn]", file=sys.stderr)

    def _print(self, parts: Sequence[Part]) -> None:
        with (
            Interruptible() as user,
            contextlib.closing(
                watched(self.conversation, parts, self._writing, check=user.check)
            ) as pieces,
        ):
            for piece in pieces:
                if isinstance(piece, str):
                    print(piece, end="", flush=True)
                elif piece.is_last:
                    print(" [drawn] ", end="", flush=True)
                user.check()
        print()

    def run(self) -> None:
        """Answers questions from stdin until it ends; on a terminal, with line editing.

        Raises:
            UserError: There is no stdin.
        """
        if sys.stdin is None:
            raise UserError("there is no question, and no input to read one from")
        interactive = sys.stdin.isatty()
        if interactive:
            # Loading it gives `input` a history and cursor keys.
            import readline  # noqa: F401

            print(f"{self._model.name} is listening. {HELP}", file=sys.stderr)
            if self._model.llama.config.tokens.vision:
                print(HELP_SEEING, file=sys.stderr)
        while True:
            try:
                line = input("> " if interactive else "").strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                print(f"\n{HELP}", file=sys.stderr)
                continue
            try:
                self._take(line)
            except KeyboardInterrupt:
                print("\n[stopped]", file=sys.stderr)
            except UserError as error:
                print(f"lwm: {error}", file=sys.stderr)

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
        """Writes what the last answer drew, and says where."""
        if self._out is None or not self.conversation.messages:
            return
        files = []
        for vision in self.conversation.messages[-1].visions:
            self._drawn += 1
            files.append(self._out / f"{self._drawn:03}.{'mp4' if vision.is_video else 'png'}")
            vision.save(files[-1])
        for file in files:
            print(file)


def watched(
    conversation: Conversation,
    question: str | Sequence[Part],
    writing: SamplingParams,
    *,
    check: Callable[[], None] = lambda: None,
) -> Generator[str | Frame]:
    """Yields an answer, with a bar until it begins; `check` is called while reading."""
    with waiting("reading", "tokens") as report:

        def progress(done: int, total: int) -> None:
            check()
            report(done, total)

        pieces = conversation.ask(question, writing=writing, progress=progress)
        first = next(pieces, "")
    yield first
    yield from pieces
