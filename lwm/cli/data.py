"""`lwm tokenize` and `lwm data check|tokenize|show`: preparing training data."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lwm.cli.common import Flat, print_line, print_table
from lwm.data.format import ExampleFormat
from lwm.errors import UserError, require_share

Files = Annotated[tuple[str, ...], tyro.conf.Positional]


def data_check(
    files: Files,
    /,
    *,
    model: str | None = None,
    tokenizer: Path | None = None,
    codes: int = 8192,
    max_bad_share: float = 0.01,
    format: Flat[ExampleFormat] = ExampleFormat(),
) -> None:
    """Reads every record of training data; reports bad records and statistics.

    Args:
        files: JSON lines, Parquet, ArrayRecord or .txt files, folders of them, patterns, or clips
            of the world: `world:train`.
        model: The model to be trained: a name from `lwm models`, a folder, or a GGUF file.
        tokenizer: In place of a model, a tokenizer's folder or file.
        codes: With a tokenizer alone, the entries of the vision codebook; 0 is no vision.
        max_bad_share: Fail when more than this share of the records is bad.
        format: How records become examples.
    """
    from lwm.console import waiting
    from lwm.data.check import check
    from lwm.data.fields import RecordEncoder
    from lwm.data.sets import open_data

    require_share("max_bad_share", max_bad_share)
    source, opened, space = open_data(
        files, model=model, tokenizer=tokenizer, codes=codes, warn=_warn
    )
    encoder = RecordEncoder(tokenizer=opened, tokens=space, format=_framed(format, model))
    with waiting("checking", "records") as progress:
        report = check(source, encoder, progress=progress)
    print_table(report.rows(), first=9)
    _print_reasons(report.reasons, report.num_bad)
    if report.bad_share > max_bad_share:
        raise UserError(
            f"{report.bad_share:.1%} of the lines are bad, more than {max_bad_share:.1%}; "
            "fix them, or allow more with --max-bad-share"
        )


def data_tokenize(
    files: Files,
    /,
    *,
    out: Path,
    model: str | None = None,
    tokenizer: Path | None = None,
    codes: int = 8192,
    shards: int = 1,
    workers: int = 0,
    max_bad_share: float = 0.01,
    format: Flat[ExampleFormat] = ExampleFormat(),
) -> None:
    """Encodes training data once, into shards that are read many times as fast.

    Args:
        files: JSON lines, Parquet, ArrayRecord or .txt files, folders of them, patterns, or clips
            of the world: `world:train`.
        out: Folder for the shards; run again to continue.
        model: The model to be trained: a name from `lwm models`, a folder, or a GGUF file.
        tokenizer: In place of a model, a tokenizer's folder or file.
        codes: With a tokenizer alone, the entries of the vision codebook; 0 is no vision.
        shards: Number of files.
        workers: Number of processes that write them; 0 is this one.
        max_bad_share: Fail when more than this share of the records is bad.
        format: How records become examples.
    """
    from lwm.console import waiting
    from lwm.data.fields import RecordEncoder
    from lwm.data.sets import open_data
    from lwm.data.tokenize import write_shards

    require_share("max_bad_share", max_bad_share)
    if format.captions.variants > 1:
        raise UserError("variants have no effect in shards, which hold each record once; leave out")
    source, opened, space = open_data(
        files, model=model, tokenizer=tokenizer, codes=codes, warn=_warn
    )
    encoder = RecordEncoder(tokenizer=opened, tokens=space, format=_framed(format, model))
    with waiting("tokenizing", "records") as progress:
        summary = write_shards(
            source,
            encoder,
            out,
            shards=shards,
            workers=workers,
            max_bad_share=max_bad_share,
            progress=progress,
        )
    print_table(summary.rows(), first=9)
    _print_reasons(summary.reasons, summary.counts.bad)


def tokenize(
    inputs: Files,
    /,
    *,
    out: Path,
    model: str | None = None,
    vqgan: Path | None = None,
    max_frames: int = 8,
    fps: float | None = None,
    fit: Literal["crop", "letterbox"] = "crop",
    background: str = "white",
    resolution: int | None = None,
    shards: int | None = None,
    workers: int = 0,
    batch: int = 16,
    mesh: str = "1,1,1,1",
    dtype: Literal["float32", "bfloat16"] | None = None,
    engine: Literal["local", "ray"] = "local",
    max_bad_share: float = 0.01,
) -> None:
    """Encodes images and videos as vision codes, once: records ready for training.

    Args:
        inputs: Files, folders, zip or tar files (webdataset), lists with a column `path` (CSV,
            JSON lines, Parquet), patterns of these, or clips of the world: `world:train`.
        out: Folder for the shards; run again to continue.
        model: A model with a VQGAN: a name from `lwm models`, or a folder.
        vqgan: In place of a model, LWM's vqgan file, a folder, or `vqgan-64`, which is in the
            package.
        max_frames: The largest number of frames of a video, evenly spaced; 0 is all.
        fps: Take the frames shown at each 1/fps seconds.
        fit: Crop to the middle square as LWM does, or keep the whole image on the background.
        background: A colour behind transparent and letterboxed images.
        resolution: Pixels along a side of a frame; by default, the VQGAN's.
        shards: Number of files; by default one per about 256 items.
        workers: Number of processes that read media, 0 is this one; with Ray, actors that write.
        batch: Frames that each device encodes at a time.
        mesh: Devices: dp,fsdp,tp,sp such as 4,1,1,1 (one -1 is inferred); each encodes frames.
        dtype: Type of the computation; by default, the VQGAN's.
        engine: This machine, or a Ray cluster whose machines share the files.
        max_bad_share: Fail when more than this share of the items is bad.
    """
    from lwm.console import waiting
    from lwm.data.media.encode import find_vqgan
    from lwm.data.media.inputs import open_items
    from lwm.data.media.items import survey
    from lwm.data.media.read import Sampling
    from lwm.data.media.shards import MediaJob, write_media
    from lwm.vqgan.config import CodebookInfo

    require_share("max_bad_share", max_bad_share)
    if max_frames < 0:
        raise UserError(f"--max-frames {max_frames} must be 0 (all) or above")
    if engine == "ray" and mesh != "1,1,1,1":
        raise UserError("--mesh is for one process; with --engine ray, give --workers")
    path = find_vqgan(model, vqgan)
    items = open_items(inputs, exclude=out)
    known = survey(items)
    known.require_few_bad(max_bad_share)
    if known.others or known.captioned == 0:  # perhaps for want of a list that can be read
        for name, value in known.rows():
            _warn(f"{name} {value}")

    def job_of(codebook: CodebookInfo) -> MediaJob:
        sampling = Sampling(
            resolution=codebook.resolution,
            max_frames=max_frames or None,
            fps=fps,
            fit=fit,
            background=background,
        )
        return MediaJob.of(items, sampling, codebook, out, shards)

    encoding = {"dtype": dtype, "resolution": resolution, "batch": batch}
    options = {"workers": workers, "max_bad_share": max_bad_share}
    with waiting("tokenizing", "items") as progress:
        if engine == "ray":
            from lwm.data.media.ray import write_with_ray

            summary = write_with_ray(job_of, path, encoding, **options, progress=progress)
        else:
            from lwm.sharding import make_mesh
            from lwm.vqgan.tokenizer import VisionTokenizer

            vision = VisionTokenizer.open(path, mesh=make_mesh(mesh), **encoding)
            summary = write_media(job_of(vision.codebook), vision, **options, progress=progress)
    print_table([*summary.rows(), *known.rows()], first=9)


def data_show(
    files: Files,
    /,
    *,
    model: str | None = None,
    tokenizer: Path | None = None,
    vqgan: Path | None = None,
    originals: tuple[str, ...] = (),
    out: Path | None = None,
    overwrite: bool = False,
    count: int | None = None,
    codes: int = 8192,
    format: Flat[ExampleFormat] = ExampleFormat(),
) -> None:
    """Shows training data on one web page: a media set as frames, any set as tokens.

    Without a model, a folder that `lwm tokenize` wrote is shown as frames decoded from their codes,
    and clips of the world as they are rendered. With one, records are shown as the tokens that it
    is trained on, and those that the loss covers are marked.

    Args:
        files: A folder that `lwm tokenize` wrote, or a set such as `world:heldout`; with a model,
            also files of `lwm data check`.
        model: The model to be trained: a name from `lwm models`, a folder, or a GGUF file.
        tokenizer: In place of a model, a tokenizer's folder or file.
        vqgan: The VQGAN that made the codes, if it has moved.
        originals: The files or folders that were tokenized, to be shown beside what the codes keep
            of them, with PSNR.
        out: The page. By default, sheet.html in the folder, which is replaced; of the world,
            world-train.html or world-heldout.html here; tokens.html here.
        overwrite: Replace another page that exists.
        count: Number of items, evenly over the set; by default 64, and 16 as tokens.
        codes: With a tokenizer alone, the entries of the vision codebook; 0 is no vision.
        format: How records become examples.
    """
    if model is not None or tokenizer is not None:
        if vqgan is not None or originals:
            raise UserError("tokens are shown without frames; leave --vqgan and --originals out")
        page, number = out or Path("tokens.html"), 16 if count is None else count
        _show_tokens(files, page, model, tokenizer, codes, format, number, overwrite=overwrite)
        print_line(page)
        return
    if len(files) != 1:
        raise UserError("give one set to show; several files are shown as tokens, with --model")
    (name,) = files
    number = 64 if count is None else count
    print_line(_show_media(name, out, vqgan, originals, number, overwrite=overwrite))


def _show_tokens(
    files: Sequence[str],
    out: Path,
    model: str | None,
    tokenizer: Path | None,
    codes: int,
    format: ExampleFormat,
    count: int,
    *,
    overwrite: bool,
) -> None:
    from lwm.console import waiting
    from lwm.data.fields import RecordEncoder
    from lwm.data.sets import Corpus, open_data
    from lwm.data.show_tokens import show_tokens
    from lwm.files import require_absent

    require_absent(out, overwrite=overwrite)
    source, opened, space = open_data(
        files, model=model, tokenizer=tokenizer, codes=codes, warn=_warn
    )
    encoder = RecordEncoder(tokenizer=opened, tokens=space, format=_framed(format, model))
    title = ", ".join(files)
    with waiting("encoding", "records") as progress:
        examples = Corpus(source, encoder)
        show_tokens(examples, opened, space, out, title=title, count=count, progress=progress)


def _show_media(
    name: str,
    out: Path | None,
    vqgan: Path | None,
    originals: Sequence[str],
    count: int,
    *,
    overwrite: bool,
) -> Path:
    from lwm.console import waiting
    from lwm.data.media.show import show, show_world
    from lwm.data.media.world import WorldSet, is_world
    from lwm.files import require_absent

    if is_world(name):
        if vqgan is not None or originals:
            raise UserError(f"{name} is shown without codes; leave --vqgan and --originals out")
        page = out or Path(f"world-{WorldSet.parse(name).world.split}.html")
        require_absent(page, overwrite=overwrite)
        with waiting("rendering", "clips") as progress:
            return show_world(name, page, count=count, progress=progress)
    shards = Path(name)
    if out is not None:
        require_absent(out, overwrite=overwrite)
    if not shards.exists():
        raise UserError(
            f"{name} is missing; give a folder that lwm tokenize wrote, or a set like world:train"
        )
    if not shards.is_dir():
        raise UserError(f"{name} is no folder of lwm tokenize; give --model to see it as tokens")
    with waiting("decoding", "items") as progress:
        return show(
            shards, vqgan=vqgan, originals=originals, out=out, count=count, progress=progress
        )


def _framed(format: ExampleFormat, model: str | None) -> ExampleFormat:
    """Returns a format whose frames have the codes that the model's VQGAN gives them."""
    from lwm.convert.open import frame_size

    return format if model is None else format.framed(frame_size(model))


def _warn(text: str) -> None:
    print_line(f"lwm: {text}", error=True)


def _print_reasons(reasons: Sequence[str], bad: int) -> None:
    for reason in reasons:
        print_line(f"  {reason}")
    if bad > len(reasons):
        print(f"  and {bad - len(reasons):,} more")
    # Before an error that follows on stderr.
    sys.stdout.flush()
