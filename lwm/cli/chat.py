"""`lwm chat`: answers one question, or chats in the terminal."""

import os
import signal
import stat
import sys
from pathlib import Path
from typing import Annotated

import tyro

from lwm.cli.common import STOPPING, Flat, LoadOptions, Model, open_model, print_line
from lwm.cli.terminal import TerminalChat, document_of
from lwm.errors import UserError
from lwm.sampling_params import SamplingParams, VisionSampling
from lwm.signals import answered

Question = Annotated[str | None, tyro.conf.Positional]
Files = Annotated[tuple[Path, ...], tyro.conf.UseAppendAction]


def chat(
    model: Model,
    question: Question = None,
    /,
    *,
    document: Files = (),
    system: str | None = None,
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
    the rest. Text that is piped in beside a question is a document.

    Args:
        model: A name from `lwm models`, a Hugging Face folder, a GGUF file, or a hub's org/name.
        question: The question.
        document: A text, HTML or PDF file to ask about, a folder of these, or - for what is piped
            in; give it again for more.
        system: A text that says how to answer.
        image: An image to ask about; give it again for more.
        video: A video to ask about; give it again for more.
        max_frames: The largest number of frames of a video, evenly spaced; 0 is all.
        fps: Take the frames shown at each 1/fps seconds.
        out: Allow images and videos in the answer, and save them in this folder.
        vision: How images and videos are sampled.
        sampling: How the answer is sampled.
        load: How the model is loaded.
    """
    if question is None and Path("-") in document:
        raise UserError("--document - takes what is piped in; give the question after the model")
    documents = [document_of(path) for path in document]
    if question is not None and not document:
        documents = read_piped()
    if max_frames < 0:
        raise UserError(f"--max-frames {max_frames} must be 0 (all) or above")
    with answered(STOPPING, signal.SIGINT):
        session = TerminalChat(
            open_model(model, load),
            document="\n\n".join(documents) or None,
            system=system,
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


def read_piped() -> list[str]:
    """Returns the text that a program or a file brings on stdin, with a line that says so."""
    try:
        kind = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # there is none, or none of the system's
        return []
    if not (stat.S_ISFIFO(kind) or stat.S_ISREG(kind)) or not (text := sys.stdin.read()).strip():
        return []
    # In a loop of a shell that reads lines, it would be all the others.
    note = f"{len(text):,} characters on stdin are the document; < /dev/null leaves them out"
    print_line(f"lwm: {note}", error=True)
    return [text]
