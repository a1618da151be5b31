"""A small model that draws, and the VQGAN of its codes."""

import dataclasses

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import tokenizers

from lwm.generate.language_model import LanguageModel
from lwm.sharding import make_mesh
from lwm.tokens import TokenSpace
from lwm.vqgan.checkpoint import save_vqgan
from lwm.vqgan.config import VQGANConfig
from lwm.vqgan.model import VQGAN

CODES, SIDE = 16, 16
"""Codes of the codebook, and pixels along a side."""
OPENING = "<vision>"


@pytest.fixture(scope="module")
def kept(init):
    """Draws each model once on each mesh."""
    drawn = {}

    def make(config):
        of = config, jax.sharding.get_mesh()
        if of not in drawn:
            drawn[of] = init(config).unstack()
        return drawn[of]

    return make


@pytest.fixture(scope="module")
def eager_tokenizer(open_tokenizer):
    """A token for each byte, and one for `<vision>`, which a random model may well write."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    starts = [OPENING[:end] for end in range(2, len(OPENING) + 1)]
    vocabulary = {piece: number for number, piece in enumerate([*letters, *starts])}
    merges = [(start[:-1], start[-1]) for start in starts]
    built = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    pre_tokenizers = tokenizers.pre_tokenizers
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return open_tokenizer(built)


@pytest.fixture(scope="session")
def save_codes(tmp_path_factory):
    """Writes a VQGAN. `VQGAN.init` would be compiled for ten seconds."""

    def make(codes):
        config = VQGANConfig(
            resolution=SIDE,
            hidden=32,
            multipliers=(1, 1, 1),
            res_blocks=1,
            z_channels=4,
            codes=codes,
            code_dim=4,
        )
        rng = np.random.default_rng(0)

        def fill(leaf):
            if len(leaf.shape) == 1:  # a bias, or what is normalised is scaled by
                return jnp.ones(leaf.shape)
            drawn = rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
            return jnp.asarray(drawn, np.float32)

        folder = tmp_path_factory.mktemp("vqgan")
        shapes = jax.eval_shape(lambda: VQGAN.init(config, key=jr.key(0)))
        save_vqgan(jax.tree.map(fill, shapes), folder)
        return folder

    return make


@pytest.fixture(scope="module")
def open_painter(tiny, init, eager_tokenizer, save_codes):
    """Makes a model that sees and draws; `eager` is how much it likes to."""
    folder = save_codes(CODES)
    opening = eager_tokenizer.encode(OPENING, special=False)
    assert len(opening) == 1

    def make(mesh, eager=6.0):
        llama = init(tiny(tokens=TokenSpace.of(eager_tokenizer.vocab_size, CODES))).unstack()
        scale = np.ones(llama.head.shape, np.float32)
        scale[:, opening[0]] = eager
        scale = jax.device_put(scale, llama.head.sharding)
        llama = dataclasses.replace(llama, head=llama.head * scale)
        return LanguageModel(
            name="tiny", llama=llama, tokenizer=eager_tokenizer, mesh=mesh, vqgan_file=folder
        )

    return make


@pytest.fixture(scope="module")
def drawer(open_painter):
    with jax.set_mesh(mesh := make_mesh()):
        yield open_painter(mesh)
