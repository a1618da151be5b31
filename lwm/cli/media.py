"""`lwm tokenize`, `lwm data show`, `lwm eval vqgan|vision`: pictures, their codes, and words."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from lwm.cli.common import Flat, LoadOptions, Model


def tokenize(
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional],
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
    """Turns images and videos into codes, once: records that train as they are.

    Args:
        inputs: Files, folders, zip or tar files (webdataset), lists with a column `path` (CSV,
            JSON lines, Parquet), or patterns of these.
        out: The folder for the shards; run again, it goes on where it stopped.
        model: A model that has a VQGAN: a name from `lwm models`, or a folder.
        vqgan: In place of a model, LWM's vqgan file, a folder, or `vqgan-64`, which is here.
        max_frames: Take at most so many frames of a video, evenly spaced; 0 is all.
        fps: Take the frames shown at each 1/fps seconds.
        fit: Cut to the middle square as LWM does, or keep all of the picture on the background.
        background: A colour, for where a picture is transparent or does not reach.
        resolution: Pixels along a side of a frame; by default, what the VQGAN was trained for.
        shards: How many files; by default one to about 256 items.
        workers: How many processes read media, 0 is this one; with Ray, how many actors write.
        batch: Frames that each device encodes at a time.
        mesh: Devices: dp,fsdp,tp,sp such as 4,1,1,1 (one -1 is inferred); each encodes frames.
        dtype: What is computed in; by default, what the VQGAN says.
        engine: This machine, or a Ray cluster whose machines share the files.
        max_bad_share: Fail when more than this share of the items is bad.
    """
    from lwm.data.media.read import Sampling
    from lwm.data.media.shards import run
    from lwm.errors import UserError

    if max_frames < 0:
        raise UserError(f"--max-frames {max_frames} must be 0 (all) or above")
    if engine == "ray" and mesh != "1,1,1,1":
        raise UserError("--mesh is of one process; with --engine ray, give --workers")
    run(
        inputs,
        out=out,
        model=model,
        vqgan=vqgan,
        sampling=lambda side: Sampling(
            resolution=side,
            max_frames=max_frames or None,
            fps=fps,
            fit=fit,
            background=background,
        ),
        resolution=resolution,
        shards=shards,
        workers=workers,
        batch=batch,
        mesh=mesh,
        dtype=dtype,
        engine=engine,
        max_bad_share=max_bad_share,
    )


def data_show(
    shards: Annotated[Path, tyro.conf.Positional],
    /,
    *,
    vqgan: Path | None = None,
    out: Path | None = None,
    count: int = 64,
) -> None:
    """Shows what media became: frames decoded from their codes, on a page that stands alone.

    Args:
        shards: A folder that `lwm tokenize` wrote.
        vqgan: The VQGAN that made the codes, where it is not in its place any more.
        out: The page; by default sheet.html in the folder.
        count: How many items, evenly over the set.
    """
    from lwm.data.media.show import show

    print(show(shards, vqgan=vqgan, out=out, count=count))


def eval_vision(
    model: Model,
    files: Annotated[tuple[str, ...], tyro.conf.Positional] = ("shipped:clips",),
    /,
    *,
    out: Path = Path("vision-eval"),
    count: int | None = None,
    placing: Flat[LoadOptions] = LoadOptions(),
) -> None:
    """Measures what a model knows of captioned pictures: drawn from words, and told in words.

    Args:
        model: A model that sees: a name from `lwm models`, a folder, or a hub's org/name.
        files: Folders that `lwm tokenize` wrote, or `shipped:clips`.
        out: The folder for report.json.
        count: How many pictures, at most, evenly over the set.
        placing: Where the model is loaded.
    """
    from lwm.cli.chat import open_model
    from lwm.errors import UserError
    from lwm.eval.vision import run

    if count is not None and count < 1:
        raise UserError(f"--count {count} must be at least 1")
    run(open_model(model, placing), files, out, count=count)


def eval_vqgan(
    vqgan: Annotated[str, tyro.conf.Positional],
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional],
    /,
    *,
    out: Path = Path("vqgan-eval"),
    frames: int = 512,
    count: int = 32,
    max_frames: int = 4,
    background: str = "white",
) -> None:
    """Measures how near frames come back from their codes: PSNR, codes used, a contact sheet.

    With the extra `lpips`, LPIPS and the Fréchet distance on its features, too.

    Args:
        vqgan: LWM's vqgan file, a VQGAN's folder, or `vqgan-64`, which is here.
        inputs: Files, folders, zip or tar files, lists with a column `path`, or patterns of these.
        out: The folder for report.json and sheet.png.
        frames: How many are looked at, at most, evenly over the set.
        count: How many are on the sheet.
        max_frames: Frames of a video.
        background: A colour, for where a picture is transparent; such pixels are not drawn on.
    """
    from lwm.errors import UserError
    from lwm.eval.vqgan import run

    if min(frames, count, max_frames) < 1:
        raise UserError("--frames, --count and --max-frames are at least 1")
    run(
        vqgan,
        inputs,
        out=out,
        frames=frames,
        count=count,
        max_frames=max_frames,
        background=background,
    )
