"""Fixtures of many tests. A module of its own, since the process that only hands out the tests
does not need it, and all would wait until it had imported JAX and lwm."""

import dataclasses
import functools
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import tokenizers

from lwm.convert.lwm import TABLE, open_lwm
from lwm.convert.names import LWM_NAMES, dimensions
from lwm.convert.weights import build_llama
from lwm.formats.flax_writer import write_stream
from lwm.generate.language_model import LanguageModel
from lwm.model.config import Compute, LlamaConfig, LoRA, ModelOverrides, Rope
from lwm.model.layers import Packing
from lwm.model.llama import Llama
from lwm.model.lora import Adapter
from lwm.sharding import TOKENS, dotted, make_mesh, on_mesh
from lwm.tokenizer.tokenizer import Tokenizer
from lwm.tokens import TokenSpace
from lwm.vqgan.checkpoint import save_vqgan, to_flax
from lwm.vqgan.config import VQGANConfig
from lwm.vqgan.model import VQGAN

ROOT = Path(__file__).parents[1]


class Fixtures:
    """Inputs and outputs of the original LWM: a selection here, the rest beside the checkout."""

    folders = (ROOT / "tests" / "fixtures" / "original", ROOT.parent / "shared" / "fixtures")

    def __truediv__(self, name: str) -> Path:
        for folder in self.folders:
            if (path := folder / name).exists():
                return path
        pytest.skip(f"the selection of the original's outputs is without {name}")


@pytest.fixture(scope="session")
def fixtures() -> Fixtures:
    """Finds a file of the original's inputs and outputs."""
    return Fixtures()


@pytest.fixture
def mesh():
    """One device, in use."""
    with jax.set_mesh(made := make_mesh()):
        yield made


@pytest.fixture(scope="session")
def tiny():
    """Makes the configuration of a model that is small in everything."""

    def make(**changes) -> LlamaConfig:
        config = LlamaConfig(
            tokens=TokenSpace(text=256),
            dim=32,
            num_layers=2,
            num_heads=8,
            num_kv_heads=8,
            head_dim=8,
            mlp_dim=64,
            max_context=512,
            init_std=0.2,
        )
        return dataclasses.replace(config, **changes)

    return make


def fill(shapes, std: float | None = None):
    """Fills shapes with NumPy's random numbers, since a compiled `init` would take seconds.

    Scales are 1, biases of attention 0, and weights N(0, std²) or, by default, N(0, 1 / inputs).
    """
    rng, mesh = np.random.default_rng(0), jax.sharding.get_mesh()

    def leaf(path, shape: jax.ShapeDtypeStruct) -> jax.Array:
        name, values = dotted(path), np.ones(shape.shape)
        if re.search(r"\.b[qkv]$", name):
            values *= 0
        elif len(shape.shape) > 1 and "norm" not in name:
            inputs = np.prod(shape.shape[:-1])
            values = rng.normal(size=shape.shape) * (std or inputs**-0.5)
        there = None if mesh.empty else on_mesh(mesh, shape.sharding.spec)
        return jax.device_put(values.astype(shape.dtype), there)

    return jax.tree.map_with_path(leaf, shapes)


@pytest.fixture(scope="session")
def init():
    """Makes a model with random weights under the mesh in use."""

    @functools.cache
    def shapes(config: LlamaConfig, compute: Compute, mesh):
        return jax.eval_shape(lambda: Llama.init(config, compute, key=jr.key(0)))

    def make(config: LlamaConfig, *, compute: Compute = Compute()) -> Llama:
        return fill(shapes(config, compute, jax.sharding.get_mesh()), config.init_std)

    return make


@pytest.fixture(scope="session")
def adapt():
    """Makes an adapter under the mesh in use whose second factors are not zero."""

    def make(config: LlamaConfig, lora: LoRA) -> Adapter:
        first, draw = Adapter.init(config, lora, key=jr.key(0)), np.random.default_rng(1)

        def leaf(path, found: jax.Array) -> jax.Array:
            if not dotted(path).endswith(".b"):
                return found
            return jax.device_put(0.2 * draw.standard_normal(found.shape, "f"), found.sharding)

        return jax.tree.map_with_path(leaf, first)

    return make


@pytest.fixture(scope="session")
def place():
    """Puts rows of tokens, and optionally where they stand, onto the mesh in use, in an order."""

    def make(mesh, tokens, segments=None, positions=None, order=None):
        tokens = np.asarray(tokens, np.int32)
        length = tokens.shape[1]
        if segments is None:
            segments = np.zeros_like(tokens)
        if positions is None:
            positions = np.broadcast_to(np.arange(length), tokens.shape)
        order = np.arange(length) if order is None else order
        put = [
            jax.device_put(np.asarray(x, np.int32)[:, order], on_mesh(mesh, TOKENS))
            for x in (tokens, segments, positions)
        ]
        return put[0], Packing(segments=put[1], positions=put[2], index=jnp.asarray(order))

    return make


@pytest.fixture(scope="session")
def open_tokenizer(tmp_path_factory):
    """Opens a tokenizer with two special tokens, that end a text and a turn, and a template."""

    def make(built):
        built.decoder = tokenizers.decoders.ByteLevel()
        built.add_special_tokens(["<|endoftext|>", "<|im_end|>"])
        folder = tmp_path_factory.mktemp("tokenizer")
        built.save(str(folder / "tokenizer.json"))
        template = (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}"
        )
        config = {"chat_template": template, "eos_token": "<|endoftext|>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return Tokenizer.open(folder)

    return make


@pytest.fixture(scope="session")
def byte_tokenizer(open_tokenizer):
    """A token for each byte."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    built = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    built.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return open_tokenizer(built)


@pytest.fixture
def model(mesh, tiny, init, byte_tokenizer):
    llama = init(tiny(tokens=TokenSpace(text=byte_tokenizer.vocab_size))).unstack()
    return LanguageModel(name="tiny", llama=llama, tokenizer=byte_tokenizer, mesh=mesh)


@pytest.fixture(scope="session")
def original(fixtures):
    """Loads a model of the original's, perhaps with another theta, as it is stored on disk."""

    def load(mesh, *, name="text_tiny", theta=None, stored="noscan"):
        given = ModelOverrides(
            config=f"json::{fixtures / f'{name}_config.json'}", theta=theta and float(theta)
        )
        config, tensors = open_lwm(fixtures / f"{name}_params_{stored}.msgpack", given=given)
        return build_llama(config, tensors, TABLE, mesh=mesh)

    return load


@pytest.fixture(scope="session")
def original_vqgan(fixtures, tmp_path_factory) -> Path:
    """A VQGAN of the original's, pickled again from its weights, whose bytes are stored apart."""
    shapes = json.loads((fixtures / "vqgan_small_param_shapes.json").read_text())
    tree: dict = {}
    with np.load(fixtures / "vqgan_small_params.npz") as stored:
        for name, (shape, dtype) in shapes.items():
            *parents, last = name.split("/")
            inner = functools.reduce(lambda inner, key: inner.setdefault(key, {}), parents, tree)
            inner[last] = stored[name].T.copy().view(dtype).reshape(shape)
    path = tmp_path_factory.mktemp("original") / "vqgan"
    path.write_bytes(pickle.dumps(tree))
    return path


@pytest.fixture
def published(tmp_path, tiny, byte_tokenizer):
    """A folder such as LWM's, small in everything, and the configuration that it does not hold."""
    folder = tmp_path / "LWM-Chat-Small-Jax"
    folder.mkdir()
    tokens = TokenSpace(text=byte_tokenizer.vocab_size, vision=8448, codes=8192)
    config = tiny(tokens=tokens, head_dim=4, init_std=0.02, rope=Rope(theta=5e7))
    sizes, rng = dimensions(config), np.random.default_rng(0)
    arrays = {
        layout.name.replace("*", "scan_decoder"): rng.normal(
            size=((config.num_layers,) if "*" in layout.name else ()) + layout.shape(sizes)
        ).astype(np.float32)
        / 10
        for layout in LWM_NAMES.values()
    }
    write_stream(folder / "params", arrays.items())
    byte_tokenizer.save(folder)
    small = VQGANConfig(
        resolution=32,
        hidden=32,
        multipliers=(1,),
        res_blocks=1,
        z_channels=8,
        codes=tokens.codes,
        code_dim=4,
    )
    shapes = jax.eval_shape(lambda: VQGAN.init(small, key=jr.key(0)))
    (folder / "vqgan").write_bytes(pickle.dumps(to_flax(fill(shapes))))
    values = {
        "vocab_size": tokens.text,
        "hidden_size": config.dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "max_sequence_length": config.max_context,
        "theta": config.rope.theta,
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    return folder, config, ModelOverrides(config=f"json::{tmp_path / 'config.json'}")


@pytest.fixture(scope="session")
def draw_vqgan(tmp_path_factory) -> Callable[..., Path]:
    """Writes a VQGAN of 64 codes."""

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
        folder = tmp_path_factory.mktemp("vqgan")
        save_vqgan(fill(shapes), folder)
        return folder

    return make


@pytest.fixture(scope="session")
def vqgan(draw_vqgan) -> Path:
    """A VQGAN of 64 codes, 64 of which are a frame of 32 × 32 pixels."""
    return draw_vqgan()
