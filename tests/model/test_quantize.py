import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType, dequantize

from lwm.convert.names import HUGGING_FACE, dimensions
from lwm.convert.weights import build_llama
from lwm.model.quantize import CONTRACTED, GROUP, QuantizedWeight, quantize, quantize_to
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


@pytest.mark.parametrize(
    ("bits", "mesh_text", "most"),
    [(8, "1,1,1,1", 0.05), (8, "1,2,2,1", 0.05), (4, "1,1,1,1", 0.4), (4, "1,2,2,1", 0.4)],
)
def test_model_in_few_bits_is_near_the_whole_one(tensors, place, bits, mesh_text, most):
    config, given = tensors
    mesh = make_mesh(mesh_text)
    tokens = np.random.default_rng(1).integers(0, 256, (2, 24))
    logits = []
    for stored in (None, bits):
        model = build_llama(config, given, HUGGING_FACE, mesh=mesh, bits=stored)
        with jax.set_mesh(mesh):
            placed = place(mesh, tokens)
            logits.append(np.asarray(jax.jit(lambda m, t, p: m(t, p))(model, *placed)))
    whole, rounded = logits
    assert 0 < np.sqrt(np.mean(np.square(rounded - whole))) < most * whole.std()


def test_every_matrix_of_the_layers_is_stored_in_eight_bits(tensors):
    config, given = tensors
    model = build_llama(config, given, HUGGING_FACE, mesh=make_mesh(), bits=8)
    assert isinstance(model.blocks, tuple)
    for name in CONTRACTED:
        weight = model if name == "head" else model.blocks[1]
        for part in name.split("."):
            weight = getattr(weight, part)
        assert isinstance(weight, QuantizedWeight)
        assert weight.values.dtype == np.int8


@pytest.mark.parametrize("contracted", [(0,), (0, 1)])
def test_four_bits_round_by_half_a_step_but_for_the_end_of_the_scale(contracted):
    weight = np.random.default_rng(0).normal(size=(64, 96, 5)).astype(np.float32)
    weight[:32, :32, 2] = 0
    values, scale = quantize_to(4, weight, contracted)
    assert values.nbytes == weight.size // 2
    assert scale.nbytes == weight.size // GROUP * 2
    axis = contracted[-1]
    step = np.abs(np.repeat(scale.astype(np.float32), GROUP, axis))
    near = QuantizedWeight(jnp.asarray(values), jnp.asarray(scale)).astype(jnp.float32)
    # 8 is not among the levels -8 to 7; half precision moves the largest weight a little.
    assert (np.abs(near - weight) <= step * 1.01).all()
    assert (np.abs(near - weight) <= step / 2 * 1.01).mean() > 0.95


def test_four_bits_are_as_gguf_has_them():
    weight = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    values, scale = quantize_to(4, weight, (0,))
    blocks = [
        scale[group, column].tobytes() + values[16 * group :][:16, column].tobytes()
        for column in range(3)
        for group in range(2)
    ]
    raw = np.frombuffer(b"".join(blocks), np.uint8).reshape(3, -1)
    ours = QuantizedWeight(jnp.asarray(values), jnp.asarray(scale)).astype(jnp.float32)
    np.testing.assert_array_equal(dequantize(raw, GGMLQuantizationType.Q4_0).T, ours)


def test_sums_that_groups_do_not_divide_have_eight_bits():
    assert quantize_to(4, np.ones((48, 2)), (0,)).values.dtype == np.int8
