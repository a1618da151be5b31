"""Reconstruction quality of a VQGAN: PSNR, SSIM, codes used, LPIPS, and a contact sheet."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lwm.cache import LRUCache
from lwm.data.media.inputs import open_items
from lwm.data.media.items import named_files
from lwm.data.media.read import Sampling
from lwm.errors import several
from lwm.files import make_folder, write_bytes
from lwm.fingerprint import fingerprints, model_files, named
from lwm.media.write import write_image
from lwm.train.vqgan.batches import FrameFiles, evenly
from lwm.train.vqgan.perceptual import LPIPS, installed
from lwm.train.vqgan.validate import HeldOutFrames
from lwm.vqgan.checkpoint import locate_vqgan, read_vqgan

REPORT, SHEET = "report.json", "sheet.png"


def evaluate(
    vqgan: str,
    inputs: Sequence[str],
    out: Path,
    *,
    frames: int = 512,
    count: int = 32,
    max_frames: int = 4,
    background: str = "white",
) -> dict[str, Any]:
    """Measures reconstruction by a VQGAN; writes `report.json` and a contact sheet.

    Args:
        vqgan: A folder, LWM's file, or the name of the one in the package.
        inputs: See `open_items`.
        out: The folder for `report.json` and `sheet.png`.
        frames: The largest number of frames, taken evenly over the set.
        count: Frames on the sheet.
        max_frames: Frames of each video.
        background: The colour behind transparent images; its pixels are not foreground.

    Returns:
        PSNR in dB, SSIM, the share of codes used, and with the extra `lpips` LPIPS and the
        Fréchet distance on its features.

    Raises:
        UserError: Nothing can be read, the VQGAN has no decoder, or the folder cannot be written.
    """
    inputs = several(inputs)
    model = read_vqgan(vqgan)
    model.config.require_decoder()
    sampling = Sampling(
        resolution=model.config.resolution, max_frames=max_frames, background=background
    )
    items = open_items(inputs)
    read = evenly(FrameFiles(items, sampling, LRUCache(0), "inputs"), frames)
    make_folder(out)
    lpips = LPIPS.read("alexnet") if installed() else None
    measured = HeldOutFrames(read, background=background, lpips=lpips)
    scores, decoded = measured.measure(model)
    made_from = {
        "vqgan": fingerprints(named(model_files(locate_vqgan(vqgan)))),
        "inputs": fingerprints(named_files(items)),
    }
    about = {"vqgan": vqgan, "config": model.config.to_json(), "inputs": inputs}
    about |= {"fingerprints": made_from} | scores
    report = json.dumps(about, indent=1) + "\n"
    write_bytes(out / REPORT, report.encode())
    write_image(out / SHEET, measured.sheet(decoded, count))
    return scores
