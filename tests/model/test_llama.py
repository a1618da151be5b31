import itertools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from lwm.model.config import PRESETS, preset
from lwm.model.layers import Packing
from lwm.model.llama import Llama
from lwm.ops.mask import EMPTY
from lwm.sharding import AXES, TOKENS, make_mesh

forward = jax.jit(lambda model, tokens, packing: model(tokens, packing))


def random_tokens(rows, length, seed=0, vocabulary=256):
    return np.random.default_rng(seed).integers(0, vocabulary, (rows, length))


@pytest.mark.parametrize("stored", ["noscan", "scan"])
@pytest.mark.parametrize(
    ("theta", "case"),
    [
        (10_000, "plain"),
        (10_000, "leftpad"),
        (10_000, "segments"),
        (10_000, "leftpad_segments"),
        (10_000, "offset_positions"),
        (50_000_000, "plain"),
        (50_000_000, "leftpad_segments"),
    ],
)
def test_logits_are_those_of_the_original(fixtures, mesh, original, place, theta, case, stored):
    given = np.load(fixtures / "text_tiny_logits.npz")
    tokens = given["input_ids"]
    segments = given.get(f"{case}.segment_ids", np.zeros_like(tokens))
    if f"{case}.attention_mask" in given:
        segments = np.where(given[f"{case}.attention_mask"] > 0, segments, EMPTY)
    positions = given.get(f"{case}.position_ids")
    model = original(mesh, theta=theta, stored=stored)
    logits = np.asarray(forward(model, *place(mesh, tokens, segments, positions)))
    valid, at, name = given[f"{case}.valid"], given["positions"], f"theta{theta}.{case}"
    assert np.abs(logits[:, at] - given[f"logits.{name}"])[valid[:, at]].max() <= 5e-5
    total = jax.scipy.special.logsumexp(logits, axis=-1)
    assert np.abs(total - given[f"logsumexp.{name}"])[valid].max() <= 5e-5


def test_bf16_weights_of_the_original_load(fixtures, mesh, original):
    exact = original(mesh, theta=1e4)
    rounded = original(mesh, theta=1e4, stored="scan_bf16")
    for one, other in zip(jax.tree.leaves(exact), jax.tree.leaves(rounded), strict=True):
        np.testing.assert_allclose(one, other, rtol=2**-8)


def test_initial_weights_do_not_depend_on_the_mesh(tiny):
    drawn, config = [], tiny()
    for text in ("1,1,1,1", "1,2,2,2"):
        with jax.set_mesh(make_mesh(text)):
            drawn.append(
                jax.device_get(jax.jit(lambda key: Llama.init(config, key=key))(jr.key(0)))
            )
    for one, other in zip(*map(jax.tree.leaves, drawn), strict=True):
        # The random bits are equal; XLA rounds their way to a normal by the local shape.
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_packed_documents_are_as_alone(mesh, tiny, init, place):
    model = init(tiny(num_heads=16))
    tokens = random_tokens(1, 48)
    bounds = (0, 7, 30, 48)
    segments, positions = np.zeros_like(tokens), np.zeros_like(tokens)
    for number, (start, end) in enumerate(itertools.pairwise(bounds)):
        segments[:, start:end] = number
        positions[:, start:end] = np.arange(end - start)
    packed = forward(model, *place(mesh, tokens, segments, positions))
    for start, end in itertools.pairwise(bounds):
        alone = forward(model, *place(mesh, tokens[:, start:end]))
        np.testing.assert_allclose(packed[:, start:end], alone, atol=1e-5)


def test_scanned_layers_are_as_looped_ones(mesh, tiny, init, place):
    model = init(tiny())
    placed = place(mesh, random_tokens(2, 16))
    looped = model.unstack()
    assert isinstance(looped.blocks, tuple)
    np.testing.assert_allclose(forward(looped, *placed), forward(model, *placed), atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, looped.stack(), model)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_fits_a_mesh_of_its_real_size(name):
    config = preset(name)
    tp = 2 if name in ("debug", "200m", "30b") else 8
    mesh = AbstractMesh((1, 32, tp, 1), AXES, axis_types=(AxisType.Explicit,) * 4)
    with jax.sharding.use_abstract_mesh(mesh):
        model = jax.eval_shape(lambda: Llama.init(config, key=jr.key(0)))
        tokens = jax.ShapeDtypeStruct((32, 2048), jnp.int32)

        def logits(model, tokens):
            tokens = jax.sharding.reshard(tokens, TOKENS)
            return model(tokens, Packing.whole(*tokens.shape))

        out = jax.eval_shape(logits, model, tokens)
    assert out.shape == (32, 2048, 32_000)
    count = sum(leaf.size for leaf in jax.tree.leaves(model))
    if name == "7b":
        assert count == 6_738_415_616


def test_parts_are_named_in_profiles(mesh, tiny, init):
    model, ids = init(tiny()), jnp.zeros((1, 8), jnp.int32, out_sharding=TOKENS)

    def both(model, ids):
        packing = Packing.whole(1, 8)
        return model(ids, packing), model.losses(ids, ids, packing).nll

    text = jax.jit(both).lower(model, ids).as_text(debug_info=True)
    for part in ("embedding", "norm", "attention", "mlp", "head", "loss"):
        assert f"{part}/" in text or f'"{part}"' in text, part
