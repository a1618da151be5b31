"""SSIM against its definition, pixel by pixel, and against cases with known values."""

import numpy as np
import pytest

from lwm.train.vqgan.ssim import WINDOW, ssim

C1, C2 = 6.5025, 58.5225


def by_definition(one, other):
    """Returns the mean over all windows, each from its own weighted means and variances."""
    luma = [0.299 * p[..., 0] + 0.587 * p[..., 1] + 0.114 * p[..., 2] for p in (one, other)]
    offsets = np.arange(11) - 5
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    values = []
    for row in range(one.shape[0] - 10):
        for column in range(one.shape[1] - 10):
            x, y = (z[row : row + 11, column : column + 11] for z in luma)
            mx, my = (weights * x).sum(), (weights * y).sum()
            vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
            both = (weights * (x - mx) * (y - my)).sum()
            top = (2 * mx * my + C1) * (2 * both + C2)
            values.append(top / ((mx**2 + my**2 + C1) * (vx + vy + C2)))
    return np.mean(values)


def test_it_is_what_the_definition_says():
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (18, 13, 17, 3), np.uint8)
    noise = generator.integers(-40, 40, frames.shape)
    others = np.clip(frames + noise, 0, 255).astype(np.uint8)
    others[1] = 255 - frames[1]
    expected = [by_definition(*pair) for pair in zip(frames, others, strict=True)]
    assert min(expected) < 0 < 0.8 < max(expected)
    np.testing.assert_allclose(ssim(frames, others), expected, rtol=0, atol=1e-9)


def test_equal_frames_have_one_and_flat_frames_differ_in_brightness_alone():
    generator = np.random.default_rng(1)
    frames = generator.integers(0, 256, (2, WINDOW, 20, 3), np.uint8)
    np.testing.assert_allclose(ssim(frames, frames), 1.0, atol=1e-12)
    dark, bright = (np.full((1, 16, 16, 3), level, np.uint8) for level in (60, 180))
    expected = (2 * 60 * 180 + C1) / (60**2 + 180**2 + C1)
    assert ssim(dark, bright)[0] == pytest.approx(expected, abs=1e-9)
