import jax
import numpy as np
import pytest

from lwm.convert.names import HUGGING_FACE, dimensions
from lwm.convert.weights import build_llama
from lwm.model.quantize import CONTRACTED, QuantizedWeight, quantize
from lwm.sharding import make_mesh


def test_rounding_is_by_half_a_step_at_most():
    weight = np.random.default_rng(0).normal(size=(30, 4, 5)).astype(np.float32)
    weight[:, 1, 2] = 0
    values, scale = quantize(weight, (0,))
    assert scale.shape == (1, 4, 5)
    assert (np.abs(values * scale - weight) <= scale / 2 * 1.0001).all()
    assert np.abs(values).max(axis=0).min() in (0, 127)


@pytest.fixture
def tensors(tiny):
    """Random weights under Hugging Face's names."""
    config, rng = tiny(num_heads=16), np.random.default_rng(0)
    sizes = dimensions(config)
    return config, {
        layout.name.replace("*", str(layer)): rng.normal(size=layout.shape(sizes)) * 0.2
        for layout in HUGGING_FACE.values()
        for layer in range(config.num_layers)
        if not layout.name.endswith((".bias", "q_norm.weight", "k_norm.weight"))
    }


@pytest.mark.parametrize("mesh_text", ["1,1,1,1", "1,2,2,1"])
def test_model_in_eight_bits_is_near_the_whole_one(tensors, place, mesh_text):
    config, given = tensors
    mesh = make_mesh(mesh_text)
    tokens = np.random.default_rng(1).integers(0, 256, (2, 24))
    logits = []
    for int8 in (False, True):
        model = build_llama(config, given, HUGGING_FACE, mesh=mesh, int8=int8)
        with jax.set_mesh(mesh):
            placed = place(mesh, tokens)
            logits.append(np.asarray(jax.jit(lambda m, t, p: m(t, p))(model, *placed)))
    whole, rounded = logits
    assert 0 < np.sqrt(np.mean(np.square(rounded - whole))) < 0.05 * whole.std()


def test_every_matrix_of_the_layers_is_stored_in_eight_bits(tensors):
    config, given = tensors
    model = build_llama(config, given, HUGGING_FACE, mesh=make_mesh(), int8=True)
    assert isinstance(model.blocks, tuple)
    for name in CONTRACTED:
        weight = model if name == "head" else model.blocks[1]
        for part in name.split("."):
            weight = getattr(weight, part)
        assert isinstance(weight, QuantizedWeight)
        assert weight.values.dtype == np.int8
