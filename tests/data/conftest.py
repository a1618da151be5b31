"""What tests of media start from."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.random as jr
import numpy as np
import pytest

from lwm.vqgan.checkpoint import save_vqgan
from lwm.vqgan.config import VQGANConfig
from lwm.vqgan.model import VQGAN


@pytest.fixture(scope="session")
def draw_vqgan(tmp_path_factory) -> Callable[..., Path]:
    """Writes a VQGAN of 64 codes. `VQGAN.init` would be compiled for ten seconds."""

    def make(resolution: int = 32, levels: int = 3, codes: int = 64) -> Path:
        config = VQGANConfig(
            resolution=resolution,
            hidden=32,
            multipliers=(1,) * levels,
            res_blocks=1,
            z_channels=4,
            codes=codes,
            code_dim=4,
        )
        shapes = jax.eval_shape(lambda: VQGAN.init(config, key=jr.key(0)))
        rng = np.random.default_rng(0)

        def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
            if len(leaf.shape) == 1:  # a bias, or what is normalised is scaled by
                return jax.numpy.ones(leaf.shape)
            inputs = np.prod(leaf.shape[:-1])
            drawn = rng.normal(size=leaf.shape) / np.sqrt(inputs)
            return jax.numpy.asarray(drawn, np.float32)

        folder = tmp_path_factory.mktemp("vqgan")
        save_vqgan(jax.tree.map(fill, shapes), folder)
        return folder

    return make


@pytest.fixture(scope="session")
def vqgan(draw_vqgan) -> Path:
    """A VQGAN of 64 codes, 64 of which are a frame of 32 × 32 pixels."""
    return draw_vqgan()
