"""Structural similarity (SSIM) of frames.

Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli, Image Quality Assessment: From Error
Visibility to Structural Similarity, IEEE Transactions on Image Processing 13 (2004), 600-612.
As there: of brightness alone, 0.299 R + 0.587 G + 0.114 B, in Gaussian windows of 11 × 11 pixels
with σ = 1.5 that lie wholly within the frame; K1 = 0.01, K2 = 0.03, L = 255. Their program rounds
the brightness, and halves frames with sides above 384; here neither is done.
"""

import numpy as np
from jaxtyping import Float, UInt8

WINDOW = 11
"""Pixels along a side of a window; smaller frames have no SSIM."""
_SIGMA = 1.5
_LUMA = np.array([0.299, 0.587, 0.114])
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_TOGETHER = 16


def ssim(
    frames: UInt8[np.ndarray, "N H W 3"], others: UInt8[np.ndarray, "N H W 3"]
) -> Float[np.ndarray, " N"]:
    """Returns the SSIM of each frame and its other, which is 1 for equal frames.

    Args:
        frames: Of at least `WINDOW` pixels a side.
        others: As many, of the same size.
    """
    rows, columns = (_window_weights(side) for side in frames.shape[1:3])
    found = []
    for start in range(0, len(frames), _TOGETHER):
        x, y = (each[start : start + _TOGETHER] @ _LUMA for each in (frames, others))
        x_mean, y_mean, xx, yy, xy = (rows @ z @ columns.T for z in (x, y, x * x, y * y, x * y))
        brightness = (2 * x_mean * y_mean + _C1) / (x_mean**2 + y_mean**2 + _C1)
        covariance, variances = xy - x_mean * y_mean, xx - x_mean**2 + yy - y_mean**2
        structure = (2 * covariance + _C2) / (variances + _C2)
        found.append((brightness * structure).mean((1, 2)))
    return np.concatenate(found)


def _window_weights(side: int) -> Float[np.ndarray, "windows side"]:
    """Returns the weights of the pixels along a side in each window; a window's sum is 1."""
    weights = np.exp(-0.5 * ((np.arange(WINDOW) - WINDOW // 2) / _SIGMA) ** 2)
    made = np.zeros((side - WINDOW + 1, side))
    for first, row in enumerate(made):
        row[first : first + WINDOW] = weights / weights.sum()
    return made
