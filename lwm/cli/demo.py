"""`lwm demo`: runs two small models and writes one web page, without server or network."""

import dataclasses
import importlib.resources
import json
import platform
import tempfile
import time
from datetime import date
from pathlib import Path

import jax

import lwm
from lwm.cli import demo_vision
from lwm.cli.common import LoadOptions, open_model, print_text
from lwm.cli.eval import run_needle
from lwm.cli.terminal import watched
from lwm.eval.needle.run import SMALL
from lwm.eval.report.page import render
from lwm.eval.report.tables import grid
from lwm.files import make_folder, require_absent
from lwm.generate.chat import Conversation
from lwm.generate.language_model import LanguageModel
from lwm.sampling_params import SamplingParams

QUESTIONS = (
    "What is the capital of France?",
    "Explain in one sentence what a volcano is.",
)
BOOK_QUESTION = "Why does the narrator go to sea?"
WRITING = SamplingParams(max_tokens=128)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """A question and its answer on the page."""

    question: str
    answer: str
    seconds: float
    num_tokens: int
    """Tokens of prompt and answer."""
    was_cut: bool
    """True if the answer reached its token limit."""
    document: str | None = None
    title: str | None = None


def run(out: Path, *, model: str, load: LoadOptions, overwrite: bool = False) -> Path:
    """Asks questions, generates images, writes `index.html`; returns its path.

    Raises:
        UserError: The folder cannot be written, or a model cannot be opened.
    """
    page = _claim(out, overwrite=overwrite)
    begun = time.monotonic()
    opened = open_model(model, load)
    loading = time.monotonic() - begun
    turns = [_ask(opened, question) for question in QUESTIONS]
    chapter = _ask(opened, BOOK_QUESTION, document=read_chapter(), title="Moby-Dick, chapter 1")
    with tempfile.TemporaryDirectory() as folder:
        report = run_needle(opened, SMALL, Path(folder))
    seen = demo_vision.show(LoadOptions())
    text = render(
        "demo.html.j2",
        facts=_facts(opened, loading),
        turns=turns,
        chapter=chapter,
        seen=seen,
        needles=len(report.rows),
        found=sum(row["correct"] for row in report.rows),
        grid=grid(json.loads(report.to_json())),
        seconds=time.monotonic() - begun,
        today=date.today().isoformat(),
    )
    page.write_bytes(text.encode())
    return page


def read_chapter() -> str:
    """Returns a chapter of a public-domain book in the package."""
    asset = importlib.resources.files(lwm) / "assets" / "moby-dick" / "chapter-1.txt"
    return asset.read_text(encoding="utf-8")


def _claim(out: Path, *, overwrite: bool) -> Path:
    """Sees to it that the page can be written, before minutes are spent on it."""
    make_folder(out)
    require_absent(out / "index.html", overwrite=overwrite)
    return out / "index.html"


def _ask(
    model: LanguageModel, question: str, *, document: str | None = None, title: str | None = None
) -> Turn:
    print_text(f"> {question}" + (f" [{title}]" if title else ""))
    conversation = Conversation(model, document=document)
    begun = time.monotonic()
    answer = "".join(map(str, watched(conversation, question, WRITING))).strip()
    seconds = time.monotonic() - begun
    print_text(f"{answer}\n")
    return Turn(
        question=question,
        answer=answer,
        seconds=seconds,
        num_tokens=conversation.num_tokens,
        was_cut=conversation.was_cut,
        document=document,
        title=title,
    )


def _facts(model: LanguageModel, loading: float) -> dict[str, str]:
    """Returns what ran, and where."""
    config = model.llama.config
    return {
        "Model": model.name,
        "Parameters": f"{sum(leaf.size for leaf in jax.tree.leaves(model.llama)) / 1e6:.0f} M",
        "Layers, width": f"{config.num_layers}, {config.dim}",
        "Heads (key/value)": f"{config.num_heads} ({config.num_kv_heads})",
        "Context": f"{config.max_context:,} tokens",
        "Computed in": model.llama.compute.dtype,
        "Device": jax.devices()[0].device_kind,
        "Loaded in": f"{loading:.1f} s",
        "Software": f"lwm {lwm.__version__}, JAX {jax.__version__}, "
        f"Python {platform.python_version()}",
    }
