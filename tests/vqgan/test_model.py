"""The VQGAN against the original's outputs and a NumPy reference, alone and on meshes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lwm.errors import UserError
from lwm.sharding import AXES, make_mesh, on_mesh
from lwm.vqgan import model as vqgan
from lwm.vqgan.checkpoint import read_vqgan, to_flax
from lwm.vqgan.config import LWM_VQGAN, VQGANConfig
from lwm.vqgan.model import SEARCHED, VQGAN, Quantizer, decode_frames, encode_frames

SMALL = VQGANConfig(
    resolution=16,
    hidden=32,
    multipliers=(1, 2),
    res_blocks=1,
    z_channels=8,
    codes=24,
    code_dim=4,
)


def small(mesh) -> VQGAN:
    """A model on a mesh, with random weights, sampled on the host: compiling would take longer."""
    random = np.random.default_rng(0)

    def sample(path, leaf):
        values = random.normal(size=leaf.shape)
        if leaf.ndim == 1:  # scales around 1 and biases around 0
            values = values / 4 + ("weight" in str(path[-1]))
        elif leaf.ndim == 4:
            values /= np.sqrt(np.prod(leaf.shape[:3]))
        return jax.device_put(values.astype(np.float32), on_mesh(mesh, P()))

    shapes = jax.eval_shape(lambda: VQGAN.init(SMALL, key=jr.key(0)))
    return jax.tree.map_with_path(sample, shapes)


def frames(count, height=16, width=16):
    pixels = np.random.default_rng(0).uniform(-1, 1, (count, height, width, 3))
    return pixels.astype(np.float32)


def test_the_original(mesh, fixtures, original_vqgan):
    model = read_vqgan(original_vqgan, mesh=mesh)
    with np.load(fixtures / "vqgan_small.npz") as stored:
        their = {name: jnp.asarray(array) for name, array in stored.items()}
    latents = jax.jit(VQGAN.latents)(model, their["pixels"])
    np.testing.assert_allclose(latents, their["pre_quant"], atol=1e-4)
    codes = model.quantize(latents)
    sure = their["margin"] >= 1e-4
    assert jnp.mean(sure) > 0.99
    np.testing.assert_array_equal(codes[sure], their["indices"][sure])
    vectors = model.quantizer.vectors(their["indices"])
    np.testing.assert_allclose(vectors, their["quantized"], atol=1e-6)
    decode = jax.jit(VQGAN.decode)
    for codes, pixels in (("indices", "reconstruction"), ("random_indices", "decoded_random")):
        np.testing.assert_allclose(decode(model, their[codes]), their[pixels], atol=1e-4)


class Reference:
    """The same in NumPy, from the weights as the original names them."""

    def __init__(self, weights):
        self.weights = weights

    def __getitem__(self, name):
        return Reference(self.weights[name])

    def __contains__(self, name):
        return name in self.weights

    def conv(self, x, stride=1, pad=None):
        kernel, bias = self.weights["kernel"], self.weights["bias"]
        side = len(kernel)
        pad = (side // 2, side // 2) if pad is None else pad
        x = np.pad(x, ((0, 0), pad, pad, (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (side, side), (1, 2))
        return np.einsum("bhwiyx,yxio->bhwo", windows[:, ::stride, ::stride], kernel) + bias

    def norm(self, x):
        groups = x.reshape(*x.shape[:3], 32, -1)
        mean, var = (f(axis=(1, 2, 4), keepdims=True) for f in (groups.mean, groups.var))
        y = ((groups - mean) / np.sqrt(var + 1e-6)).reshape(x.shape)
        y = y * self.weights["scale"] + self.weights["bias"]
        return y / (1 + np.exp(-y))

    def block(self, x):
        y = self["Conv_0"].conv(self["GroupNorm_0"].norm(x))
        y = self["Conv_1"].conv(self["GroupNorm_1"].norm(y))
        return y + (self["Conv_2"].conv(x) if "Conv_2" in self else x)

    def blocks(self, x):
        for name in sorted(name for name in self.weights if name.startswith("Resnet")):
            x = self[name].block(x)
        return x

    def encoder(self, x):
        x = self["Conv_0"].conv(x)
        for name in sorted(name for name in self.weights if name.startswith("Down")):
            x = self[name].blocks(x)
            if "Downsample_0" in self[name]:
                x = self[name]["Downsample_0"]["Conv_0"].conv(x, stride=2, pad=(0, 1))
        return self["Conv_1"].conv(self["GroupNorm_0"].norm(self["MidBlock_0"].blocks(x)))

    def decoder(self, x):
        x = self["MidBlock_0"].blocks(self["Conv_0"].conv(x))
        for name in sorted(name for name in self.weights if name.startswith("Up")):
            x = self[name].blocks(x)
            if "Upsample_0" in self[name]:
                x = self[name]["Upsample_0"]["Conv_0"].conv(x.repeat(2, 1).repeat(2, 2))
        return self["Conv_1"].conv(self["GroupNorm_0"].norm(x))


def test_a_reference_in_numpy(mesh):
    model = small(mesh)
    weights = to_flax(model)
    reference, pixels = Reference(weights), jnp.asarray(frames(2, 16, 8))

    wanted = reference["quant_conv"].conv(reference["encoder"].encoder(pixels))
    latents = jax.jit(VQGAN.latents)(model, pixels)
    np.testing.assert_allclose(latents, wanted, atol=1e-4)
    assert latents.std() > 0.3

    book = weights["quantize"]["embeddings"]
    distances = ((wanted[..., None, :] - book) ** 2).sum(-1)
    codes = model.quantize(latents)
    np.testing.assert_array_equal(codes, distances.argmin(-1))
    assert len(np.unique(codes)) > 5

    wanted = reference["decoder"].decoder(
        reference["post_quant_conv"].conv(book[np.asarray(codes)])
    )
    assert (np.abs(wanted) > 1).any()
    decoded = jax.jit(VQGAN.decode)(model, codes)
    np.testing.assert_allclose(decoded, wanted.clip(-1, 1), atol=1e-4)


@pytest.fixture(scope="module")
def one_by_one():
    """Codes of eleven frames and what these decode to, on one device and each frame alone."""
    model = small(make_mesh())
    codes = encode_frames(model, frames(11), batch=1)
    assert codes.shape == (11, 8, 8)
    assert len(np.unique(codes)) > 5
    return codes, decode_frames(model, codes, batch=1)


def test_together_on_every_device_as_alone(one_by_one):
    codes, decoded = one_by_one
    model = small(make_mesh("2,2,2,1"))
    # The last three are a batch of their own, filled up.
    np.testing.assert_array_equal(encode_frames(model, frames(11), batch=1), codes)
    np.testing.assert_allclose(decode_frames(model, codes, batch=1), decoded, atol=1e-5)
    assert encode_frames(model, frames(0)).shape == (0, 8, 8)
    assert decode_frames(model, codes[:0]).shape == (0, 16, 16, 3)


def test_a_few_at_a_time_as_alone(monkeypatch, one_by_one):
    codes, decoded = one_by_one
    monkeypatch.setattr(vqgan, "AT_ONCE", 3 * 16 * 16)
    model = small(make_mesh())
    # Four are two times two, as three do not divide them.
    np.testing.assert_array_equal(encode_frames(model, frames(11), batch=4), codes)
    np.testing.assert_allclose(decode_frames(model, codes, batch=4), decoded, atol=1e-5)


def test_frames_sharded_over_an_explicit_mesh(one_by_one):
    codes, decoded = one_by_one
    with jax.set_mesh(mesh := make_mesh("2,2,2,1")):
        model = small(mesh)
        pixels = jax.device_put(frames(8), on_mesh(mesh, P(AXES)))
        got = jax.jit(VQGAN.encode)(model, pixels)
        assert jax.typeof(got).sharding.spec == P(AXES, None, None)
        again = jax.jit(VQGAN.decode)(model, got)
    np.testing.assert_array_equal(got, codes[:8])
    np.testing.assert_allclose(again, decoded[:8], atol=1e-5)


def test_bytes_are_scaled():
    bytes_ = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    model, pixels = small(make_mesh()), (bytes_ / 127.5 - 1).astype(np.float32)
    codes = encode_frames(model, bytes_, batch=1)
    assert len(np.unique(codes)) > 5
    np.testing.assert_array_equal(codes, encode_frames(model, pixels, batch=1))


def test_bfloat16_is_close(mesh):
    model, pixels = small(mesh), jnp.asarray(frames(2, 16, 8))
    half = dataclasses.replace(model, config=dataclasses.replace(SMALL, dtype="bfloat16"))
    latents, rough = (jax.jit(VQGAN.latents)(each, pixels) for each in (model, half))
    assert rough.dtype == jnp.float32
    assert 0 < np.abs(latents - rough).max() < 0.1 * latents.std()
    codes = model.quantize(latents)
    assert jnp.mean(half.quantize(rough) == codes) > 0.9
    decoded, rough = (jax.jit(VQGAN.decode)(each, codes) for each in (model, half))
    assert rough.dtype == jnp.float32
    assert 0 < np.abs(decoded - rough).max() < 0.1


def test_the_search_is_exact_and_never_holds_all_distances(mesh):
    codes, count = 4096, 4 * 32 * 32
    quantizer = Quantizer(jr.normal(jr.key(0), (codes, 8)))
    latents = jr.normal(jr.key(1), (4, 32, 32, 8)).astype(jnp.bfloat16)
    search = jax.jit(Quantizer.nearest).lower(quantizer, latents).compile()
    memory = search.memory_analysis()
    assert memory is not None
    assert 4 * count * codes > 3 * 4 * SEARCHED
    assert memory.temp_size_in_bytes < 1.2 * 4 * SEARCHED
    found = np.asarray(search(quantizer, latents)).reshape(-1)[::97]
    exact = np.asarray(latents, np.float64).reshape(-1, 8)[::97, None]
    distances = ((exact - np.asarray(quantizer.codebook, np.float64)) ** 2).sum(-1)
    np.testing.assert_array_equal(found, distances.argmin(-1))
    # Of equally near codes the first.
    twice = Quantizer(jnp.ones((5, 8)))
    assert not twice.nearest(latents[:1]).any()


def test_wrong_frames_and_codes_are_refused_by_name(mesh):
    model = small(mesh)
    for run, fault in (
        (lambda: encode_frames(model, frames(1, 16, 15)), "frames of 16 × 15 pixels do not divide"),
        (lambda: encode_frames(model, 255 * frames(1)), r"numbers outside \[-1, 1\]"),
        (lambda: encode_frames(model, np.nan * frames(1)), r"numbers outside \[-1, 1\]"),
        (
            lambda: decode_frames(model, np.full((1, 8, 8), 24)),
            "24 is not a code of a codebook",
        ),
        (lambda: decode_frames(model, np.full((1, 8, 8), -1)), "-1 is not a code"),
    ):
        with pytest.raises(UserError, match=fault):
            run()
    with pytest.raises(UserError, match="16 × 15"):
        model.encode(jnp.asarray(frames(1, 16, 15)))
    assert jnp.isnan(model.quantizer.vectors(jnp.full((1, 1, 1), 24))).all()


def test_impossible_shapes_are_refused_by_name():
    changes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"hidden": 16}, "hidden 16 with multipliers .* makes 16 channels"),
        ({"hidden": 48}, "makes 48 channels, which do not divide into 32 groups"),
        ({"resolution": 15}, "resolution 15 does not divide by 2"),
        ({"codes": 0}, "codes is 0"),
        ({"multipliers": ()}, "1 to 16 multipliers"),
        ({"multipliers": (1, 0)}, r"multipliers\[1\] is 0"),
        ({"res_blocks": 65}, "at most 64 res_blocks"),
    )
    for change, fault in changes:
        with pytest.raises(ValueError, match=fault):
            dataclasses.replace(SMALL, **change)


def test_the_sizes_of_lwm():
    assert LWM_VQGAN.downsampling == LWM_VQGAN.codes_per_side == 16
    assert LWM_VQGAN.tokens_per_frame == 256
    assert VQGANConfig.from_json(LWM_VQGAN.to_json()) == LWM_VQGAN
    model = jax.eval_shape(lambda: VQGAN.init(LWM_VQGAN, key=jr.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(model)) == 146_244_675
    pixels = jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32)
    codes = jax.eval_shape(VQGAN.encode, model, pixels)
    assert codes.shape == (2, 16, 16)
    assert jax.eval_shape(VQGAN.decode, model, codes).shape == pixels.shape
