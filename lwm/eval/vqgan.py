"""What `lwm eval vqgan` does: how near frames come back from their codes."""

import json
from pathlib import Path

from lwm.data.media.inputs import open_items
from lwm.data.media.read import Sampling
from lwm.files import LRUCache, make_folder, write_bytes
from lwm.media.write import write_image
from lwm.train.vqgan.batches import FrameFiles, evenly
from lwm.train.vqgan.perceptual import LPIPS, installed
from lwm.train.vqgan.validate import HeldOutFrames
from lwm.vqgan.checkpoint import read_vqgan

REPORT, SHEET = "report.json", "sheet.png"

_ROWS = {
    "frames": ("frames", "{:,}"),
    "psnr": ("PSNR, mean over frames", "{:.2f} dB"),
    "psnr_pooled": ("PSNR of the mean error", "{:.2f} dB"),
    "psnr_foreground": ("PSNR of what is drawn, mean over frames", "{:.2f} dB"),
    "psnr_foreground_pooled": ("PSNR of what is drawn, of the mean error", "{:.2f} dB"),
    "codes_used": ("codes used", "{:.1%}"),
    "lpips": ("LPIPS, mean over frames", "{:.4f}"),
    "frechet_lpips": ("Fréchet distance on LPIPS features", "{:.3f}"),
}


def run(
    vqgan: str,
    inputs: tuple[str, ...],
    *,
    out: Path,
    frames: int,
    count: int,
    max_frames: int,
    background: str,
) -> None:
    """Measures a VQGAN on images and videos; prints a table, writes it and a contact sheet.

    Args:
        vqgan: A folder, LWM's file, or the name of the one that comes with the package.
        inputs: See `open_items`.
        out: The folder for `report.json` and `sheet.png`.
        frames: How many are looked at, at most, evenly over the set.
        count: How many are on the sheet.
        max_frames: Of a video.
        background: Where pictures are transparent; pixels of this colour are not drawn on.

    Raises:
        UserError: Nothing can be read, or the folder cannot be written.
    """
    model = read_vqgan(vqgan)
    sampling = Sampling(
        resolution=model.config.resolution, max_frames=max_frames, background=background
    )
    read = evenly(FrameFiles(open_items(inputs), sampling, LRUCache(0), "inputs"), frames)
    make_folder(out)
    lpips = LPIPS.read("alexnet") if installed() else None
    measured = HeldOutFrames(read, background=background, lpips=lpips)
    scores, decoded = measured.measure(model)
    report = json.dumps({"vqgan": vqgan, "inputs": inputs} | scores, indent=1) + "\n"
    write_bytes(out / REPORT, report.encode())
    write_image(out / SHEET, measured.sheet(decoded, count))
    width = max(len(name) for name, _ in _ROWS.values())
    for key, (name, form) in _ROWS.items():
        if key in scores:
            print(f"{name:<{width}}  {form.format(scores[key])}")
    print(out / SHEET)
