"""`lwm eval needle|vision|vqgan`: evaluations, their tables and reports."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from lwm.cli.answerers import AnswerOptions, open_subject, require_answerer
from lwm.cli.common import (
    Flat,
    LoadOptions,
    Model,
    answering,
    open_model,
    print_line,
    print_table,
    record_command,
)
from lwm.errors import UserError
from lwm.eval.needle.config import NeedleConfig

if TYPE_CHECKING:
    from lwm.eval.needle.report import NeedleReport
    from lwm.eval.subject import Subject
    from lwm.generate.language_model import LanguageModel

_VQGAN_ROWS = {
    "frames": ("frames", "{:,}"),
    "psnr": ("PSNR, mean over frames", "{:.2f} dB"),
    "psnr_pooled": ("PSNR of the mean error", "{:.2f} dB"),
    "psnr_foreground": ("PSNR of the foreground, mean over frames", "{:.2f} dB"),
    "psnr_foreground_pooled": ("PSNR of the foreground, of the mean error", "{:.2f} dB"),
    "ssim": ("SSIM, mean over frames", "{:.4f}"),
    "codes_used": ("codes used", "{:.1%}"),
    "lpips": ("LPIPS, mean over frames", "{:.4f}"),
    "frechet_lpips": ("Fréchet distance on LPIPS features", "{:.3f}"),
}


def eval_needle(
    model: Model = "",
    /,
    *,
    out: Path | None = None,
    needle: Flat[NeedleConfig] = NeedleConfig(),
    load: Flat[LoadOptions] = LoadOptions(),
    answers: Flat[AnswerOptions] = AnswerOptions(),
) -> None:
    """Hides numbers in texts of several lengths, and asks the model for one or some of them.

    Args:
        model: A name from `lwm models`, a Hugging Face folder, a GGUF file, or a hub's org/name.
            With --endpoint the name that the server has for it, if it serves several.
        out: Folder for results, report.json and heat maps, by default `needle`, or of several
            needles such as `needle-4-2`; run again to continue, or with more lengths, depths or
            rounds to add them.
        needle: The grid and the questions.
        load: How the model is loaded.
        answers: Where the model is, and how it is asked.
    """
    from lwm.eval.needle.run import check

    folder = out or Path(needle.folder)
    require_answerer(model, answers)
    check(needle, folder)
    with open_subject(model, load, answers) as subject:
        run_needle(subject, needle, folder)


def run_needle(
    subject: "Subject | LanguageModel", config: NeedleConfig, out: Path
) -> "NeedleReport":
    """Evaluates a model with a progress bar and prints the table.

    Raises:
        UserError: See `evaluate`.
        KeyboardInterrupt: Ctrl-C was pressed; the answers so far are kept.
    """
    from lwm.eval.needle.run import REPORT, evaluate

    begun = time.monotonic()
    with answering() as progress:
        run = evaluate(subject, config, out, progress=progress)
    record_command(out / REPORT)
    print(run.report.table())
    work, shared = run.work, ""
    if work.tokens_read is not None:
        saved = work.prompt_tokens - work.tokens_read
        shared = f", {work.tokens_read:,} of them read ({saved:,} shared)"
    print(
        f"\n{work.num_new:,} of {len(run.report.rows):,} questions asked now: prompts of "
        f"{work.prompt_tokens:,} tokens{shared}, {time.monotonic() - begun:.1f} s"
    )
    return run.report


def eval_vision(
    model: Model,
    files: Annotated[tuple[str, ...], tyro.conf.Positional] = ("shipped:clips",),
    /,
    *,
    out: Path = Path("vision-eval"),
    overwrite: bool = False,
    count: int | None = None,
    load: Flat[LoadOptions] = LoadOptions(),
) -> None:
    """Measures text to image, image to text and code accuracy on captioned images or videos.

    Args:
        model: A vision model: a name from `lwm models`, a folder, or a hub's org/name.
        files: Folders that `lwm tokenize` wrote, `shipped:clips`, or clips of the world:
            `world:heldout,count=64,frames=4`.
        out: Folder for report.json.
        overwrite: Replace a report that exists.
        count: The largest number of images or videos, evenly over the set.
        load: How the model is loaded.
    """
    if count is not None and count < 1:
        raise UserError(f"--count {count} must be at least 1")
    from lwm.eval.vision import REPORT
    from lwm.files import require_absent

    require_absent(out / REPORT, overwrite=overwrite)
    run_vision(open_model(model, load), files, out, count=count)


def run_vision(
    model: "LanguageModel", files: tuple[str, ...], out: Path, *, count: int | None = None
) -> None:
    """Evaluates a loaded model with a progress bar and prints the table.

    Raises:
        UserError: See `evaluate`.
    """
    from lwm.console import waiting
    from lwm.eval.vision import CAPTIONED, GENERATED, REPORT, evaluate

    with waiting("generating and captioning", "answers") as progress:
        found = evaluate(model, files, out, count=count, progress=progress)
    record_command(out / REPORT)
    pairs = found["pairs"]
    rows = [
        ("codes, given those before", f"{found['codes_accuracy']:.2%}"),
        ("captions generated right", f"{found[GENERATED]} of {pairs}"),
        ("images captioned right", f"{found[CAPTIONED]} of {pairs}"),
    ]
    print_table(rows)
    print_line(out / REPORT)


def eval_vqgan(
    vqgan: Annotated[str, tyro.conf.Positional],
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional],
    /,
    *,
    out: Path = Path("vqgan-eval"),
    overwrite: bool = False,
    frames: int = 512,
    count: int = 32,
    max_frames: int = 4,
    background: str = "white",
) -> None:
    """Measures reconstruction by a VQGAN: PSNR, SSIM, codes used, and a contact sheet.

    With the extra `lpips`, also LPIPS and the Fréchet distance on its features.

    Args:
        vqgan: LWM's vqgan file, a VQGAN's folder, or `vqgan-64`, which is in the package.
        inputs: Files, folders, zip or tar files, lists with a column `path`, patterns of these, or
            clips of the world: `world:heldout`.
        out: Folder for report.json and sheet.png.
        overwrite: Replace files that exist.
        frames: The largest number of frames, evenly over the set.
        count: Frames on the sheet.
        max_frames: Frames of each video.
        background: A colour behind transparent images; its pixels are not foreground.
    """
    from lwm.eval.vqgan import REPORT, SHEET, evaluate
    from lwm.files import require_absent

    if min(frames, count, max_frames) < 1:
        raise UserError("--frames, --count and --max-frames must be at least 1")
    for name in (REPORT, SHEET):
        require_absent(out / name, overwrite=overwrite)
    scores = evaluate(
        vqgan,
        inputs,
        out,
        frames=frames,
        count=count,
        max_frames=max_frames,
        background=background,
    )
    record_command(out / REPORT)
    rows = [
        (name, form.format(scores[k])) for k, (name, form) in _VQGAN_ROWS.items() if k in scores
    ]
    print_table(rows)
    print_line(out / SHEET)
