"""Reconstruction of held-out frames by a VQGAN: PSNR, SSIM, codes used, LPIPS, contact sheets.

PSNR is 10 log10(255² / MSE) in dB, of frames of bytes. The plain score is the mean over frames, as
is usual; the pooled score is of the mean error, and lower.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool, UInt8

from lwm.media.limits import colour
from lwm.media.pixels import from_bytes, to_bytes
from lwm.media.write import contact_sheet, write_image
from lwm.sharding import make_mesh, on_mesh
from lwm.train.vqgan.perceptual import LPIPS, frechet_distance, summaries
from lwm.train.vqgan.ssim import WINDOW, ssim
from lwm.vqgan.model import VQGAN, decode_frames, encode_frames

_TOGETHER = 16
_COLUMNS = 8

Pixels = UInt8[np.ndarray, "N H W 3"]


class HeldOutFrames:
    """Held-out frames of one set, and the measurement of a VQGAN on them."""

    def __init__(
        self, frames: Pixels, *, background: str = "white", lpips: LPIPS | None = None
    ) -> None:
        """Keeps frames.

        Args:
            frames: All of them, on every process.
            background: Colour of the background; all other pixels are foreground.
            lpips: Network of perceptual scores, if it is installed; unused if frames are too small
                for it.
        """
        self.frames = frames
        self._lpips = lpips if lpips and min(frames.shape[1:3]) >= lpips.smallest else None
        self._foreground = np.any(frames != np.asarray(colour(background), np.uint8), axis=-1)

    def measure(self, model: VQGAN) -> tuple[dict[str, Any], Pixels]:
        """Returns scores as plain values for a log, and the frames decoded from their codes."""
        codes = encode_frames(model, self.frames, batch=_TOGETHER)
        decoded = to_bytes(decode_frames(model, codes, batch=_TOGETHER))
        used = len(np.unique(codes)) / model.config.codes
        scores = describe_scores(self.frames, decoded, self._foreground)
        if min(self.frames.shape[1:3]) >= WINDOW:
            scores["ssim"] = float(ssim(self.frames, decoded).mean())
        scores |= {"frames": len(self.frames), "codes_used": used}
        if self._lpips is not None:
            scores |= by_features(self._lpips, self.frames, decoded)
        return scores, decoded

    def sheet(self, decoded: Pixels, count: int) -> UInt8[np.ndarray, "R S 3"]:
        """Returns a contact sheet of frames, evenly over the set; each row above its decoding."""
        chosen = np.linspace(0, len(decoded) - 1, min(count, len(decoded))).astype(int)
        shown: list[Pixels] = []
        for start in range(0, len(chosen), _COLUMNS):
            row = chosen[start : start + _COLUMNS]
            blank = [np.full_like(decoded[0], 255)] * (_COLUMNS - len(row))
            for frames in (self.frames, decoded):
                shown += [*frames[row], *blank]
        return contact_sheet(shown, _COLUMNS)


def describe_scores(
    frames: Pixels, decoded: Pixels, foreground: Bool[np.ndarray, "N H W"]
) -> dict[str, float]:
    """Returns PSNR over all pixels and over the foreground, NaN if no frame has one."""
    errors = np.mean(np.square(frames.astype(np.float64) - decoded), axis=-1)
    sums, counts = (errors * foreground).sum((1, 2)), foreground.sum((1, 2))
    there = counts > 0
    scores = {
        "psnr": np.mean(_psnr(errors.mean((1, 2)))),
        "psnr_pooled": _psnr(errors.mean()),
        "psnr_foreground": np.nan,
        "psnr_foreground_pooled": np.nan,
    }
    if there.any():
        scores["psnr_foreground"] = np.mean(_psnr(sums[there] / counts[there]))
        scores["psnr_foreground_pooled"] = _psnr(sums.sum() / counts.sum())
    return {name: float(score) for name, score in scores.items()}


def measure_frames(
    sets: Mapping[str, HeldOutFrames], model: VQGAN, sheet: Path, *, count: int
) -> dict[str, Any]:
    """Measures each of several sets, and writes a contact sheet of each.

    Args:
        sets: Held-out sets by name.
        model: Replicated over the mesh in use.
        sheet: Path of an image; its name is prefixed by that of a set.
        count: Frames on a sheet.
    """
    found = {}
    model = _held_here(model)
    for name, held_out in sets.items():
        found[name], decoded = held_out.measure(model)
        if count and jax.process_index() == 0:
            write_image(sheet.with_name(f"{name}-{sheet.name}"), held_out.sheet(decoded, count))
    return found


def _held_here(model: VQGAN) -> VQGAN:
    """Returns the model on the devices of this process alone; each process measures all frames."""
    if jax.process_count() == 1:
        return model
    devices = [shard.device for shard in model.quantizer.codebook.addressable_shards]
    own = make_mesh(f"{len(devices)},1,1,1", devices)

    def held(leaf: jax.Array) -> jax.Array:
        parts = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, on_mesh(own, P()), parts)

    return jax.tree.map(held, model)


def _psnr(error: Any) -> Any:
    # Exact frames would have an infinite PSNR; an error of an eighth of a level bounds it.
    return 10 * np.log10(255**2 / np.maximum(error, 1 / 64))


def by_features(lpips: LPIPS, frames: Pixels, decoded: Pixels) -> dict[str, float]:
    """Returns the mean LPIPS, and the Fréchet distance by its features for two frames or more."""
    distances, one, two = [], [], []
    for start in range(0, len(frames), _TOGETHER):
        a, b = (from_bytes(x[start : start + _TOGETHER]) for x in (frames, decoded))
        distances.append(_distance(lpips, a, b))
        one.append(summaries(lpips, a))
        two.append(summaries(lpips, b))
    scores = {"lpips": float(np.mean(np.concatenate(distances)))}
    if len(frames) > 1:
        scores["frechet_lpips"] = frechet_distance(np.concatenate(one), np.concatenate(two))
    return scores


@jax.jit
def _distance(lpips: LPIPS, some: Any, others: Any) -> Any:
    return lpips(some, others)
