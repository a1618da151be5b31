"""VQGANs from disk: the original's pickle, folders of ours, and files that are neither."""

import dataclasses
import json
import os
import pickle

import jax
import jax.random as jr
import ml_dtypes
import numpy as np
import pytest

from lwm.errors import UserError
from lwm.sharding import dotted, make_mesh
from lwm.vqgan.checkpoint import flax_name, read_vqgan, save_vqgan, to_flax
from lwm.vqgan.config import LWM_VQGAN, VQGANConfig
from lwm.vqgan.model import VQGAN

SMALL = VQGANConfig(
    resolution=32,
    hidden=32,
    multipliers=(1, 2),
    res_blocks=1,
    z_channels=8,
    codes=24,
    code_dim=4,
)


@pytest.fixture(scope="module")
def model():
    with jax.set_mesh(make_mesh()):
        return jax.jit(lambda key: VQGAN.init(SMALL, key=key))(jr.key(0))


@pytest.fixture
def weights(model):
    """As the original pickles them."""
    return to_flax(model)


@pytest.fixture
def read(tmp_path):
    """Reads a tree as a pickle of the original's."""

    def run(tree, **options):
        (path := tmp_path / "vqgan").write_bytes(pickle.dumps(tree))
        return read_vqgan(path, **options)

    return run


def require_same(one, other):
    for (path, leaf), again in zip(
        jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True
    ):
        assert again.dtype == leaf.dtype, path
        np.testing.assert_array_equal(again, leaf)


def test_names_are_the_originals():
    model = jax.eval_shape(lambda: VQGAN.init(LWM_VQGAN, key=jr.key(0)))
    shapes = {
        flax_name(dotted(path)): leaf.shape for path, leaf in jax.tree.leaves_with_path(model)
    }
    for name, shape in {
        "encoder/Conv_0/kernel": (3, 3, 3, 128),
        "encoder/DownsamplingBlock_3/ResnetBlock_0/Conv_2/kernel": (1, 1, 256, 512),
        "encoder/DownsamplingBlock_3/Downsample_0/Conv_0/bias": (512,),
        "encoder/DownsamplingBlock_4/ResnetBlock_1/GroupNorm_1/scale": (768,),
        "encoder/Conv_1/kernel": (3, 3, 768, 64),
        "quantize/embeddings": (8192, 64),
        "quant_conv/kernel": (1, 1, 64, 64),
        "post_quant_conv/bias": (64,),
        "decoder/MidBlock_0/ResnetBlock_1/Conv_1/kernel": (3, 3, 768, 768),
        "decoder/UpsamplingBlock_0/Upsample_0/Conv_0/kernel": (3, 3, 768, 768),
        "decoder/UpsamplingBlock_4/ResnetBlock_2/GroupNorm_0/bias": (128,),
        "decoder/GroupNorm_0/scale": (128,),
        "decoder/Conv_1/kernel": (3, 3, 128, 3),
    }.items():
        assert shapes[name] == shape
    assert len(shapes) == len(jax.tree.leaves(model))
    assert "encoder/DownsamplingBlock_4/Downsample_0/Conv_0/bias" not in shapes
    assert "decoder/UpsamplingBlock_4/Upsample_0/Conv_0/bias" not in shapes


def test_the_originals_file(fixtures, original_vqgan):
    model = read_vqgan(original_vqgan)
    theirs = json.loads((fixtures / "vqgan_small_config.json").read_text())
    config = model.config
    assert [config.resolution, config.hidden, list(config.multipliers), config.res_blocks] == [
        theirs[key] for key in ("resolution", "hidden_channels", "channel_mult", "num_res_blocks")
    ]
    assert [config.z_channels, config.codes, config.code_dim] == [
        theirs[key] for key in ("z_channels", "num_embeddings", "quantized_embed_dim")
    ]
    shapes = json.loads((fixtures / "vqgan_small_param_shapes.json").read_text())
    assert {
        flax_name(dotted(path)): [list(leaf.shape), str(leaf.dtype)]
        for path, leaf in jax.tree.leaves_with_path(model)
    } == shapes


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_reads_back_bit_for_bit(tmp_path, model, weights, protocol):
    (tmp_path / "vqgan").write_bytes(pickle.dumps(weights, protocol))
    for path in (tmp_path / "vqgan", tmp_path):
        again = read_vqgan(path)
        assert again.config == SMALL
        require_same(model, again)
    assert read_vqgan(tmp_path, resolution=64, dtype="bfloat16").config.resolution == 64


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_folder_reads_back_bit_for_bit(tmp_path, model, dtype):
    folder = tmp_path / "new" / "vqgan"
    for _ in range(2):  # the second replaces the first
        save_vqgan(model, folder, dtype=dtype)
    assert sorted(path.name for path in folder.iterdir()) == ["vqgan.json", "vqgan.safetensors"]
    again = read_vqgan(folder, mesh=make_mesh("2,2,2,1"))
    assert again.config == SMALL
    assert read_vqgan(folder, dtype="bfloat16").config.dtype == "bfloat16"
    assert len(again.to_code.bias.sharding.device_set) == 8
    require_same(model if dtype is None else jax.tree.map(lambda x: x.astype(dtype), model), again)


def test_other_numbers_become_float32(read, weights):
    weights["quantize"]["embeddings"] = weights["quantize"]["embeddings"].astype(np.float64)
    weights["encoder"]["Conv_0"]["bias"] = weights["encoder"]["Conv_0"]["bias"].astype(">f4")
    weights["quant_conv"]["bias"] = weights["quant_conv"]["bias"].astype(ml_dtypes.bfloat16)
    model = read(weights)
    assert model.quantizer.codebook.dtype == model.encoder.conv_in.bias.dtype == np.float32
    assert model.to_code.bias.dtype == ml_dtypes.bfloat16


def test_weights_that_are_no_numbers_are_refused_by_name(read, weights, model, tmp_path):
    kernel = weights["quant_conv"]["kernel"].copy()
    kernel[0, 0, 0, 0] = np.inf
    weights["quant_conv"]["kernel"] = np.asfortranarray(kernel)
    with pytest.raises(UserError, match="vqgan is corrupted: tensor 'quant_conv/kernel' holds NaN"):
        read(weights)
    broken = dataclasses.replace(
        model, to_code=jax.tree.map(lambda leaf: leaf * np.nan, model.to_code)
    )
    save_vqgan(broken, tmp_path / "model")
    with pytest.raises(UserError, match=r"vqgan.safetensors is corrupted: tensor 'to_code"):
        read_vqgan(tmp_path / "model")


def test_all_that_does_not_fit_is_listed(read, weights):
    del weights["decoder"]["Conv_0"], weights["encoder"]["MidBlock_0"]
    weights["encoder"]["AttnBlock_0"] = {"Conv_0": {"bias": np.zeros(3, np.float32)}}
    weights["quant_conv"]["bias"] = np.zeros(5, np.float32)
    with pytest.raises(UserError) as caught:
        read(weights)
    said = str(caught.value)
    assert "missing: decoder/Conv_0/bias, " in said
    assert " and 15 more; unexpected: encoder/AttnBlock_0/Conv_0/bias; " in said
    assert said.endswith("misshapen: quant_conv/bias has (5,), not (4,)")
    assert "\n" not in said


def test_what_is_no_vqgan_is_refused(read, weights, tmp_path):
    zeros = np.zeros(3, np.float32)
    narrow = {name: jax.tree.map(np.copy, part) for name, part in weights.items()}
    narrow["encoder"]["Conv_0"]["kernel"] = np.zeros((3, 3, 3, 16), np.float32)
    for tree, fault in (
        ({}, "is not a VQGAN of LWM: encoder/Conv_0/kernel is missing .* holds no array"),
        ({"a": {"b": zeros}}, "encoder/Conv_0/kernel is missing or misshapen; it holds a/b"),
        ([1, 2], "holds something that is not an array of weights"),
        ({"step": 7}, "holds step that is not an array"),
        (weights | {"quant_conv": "x"}, "holds quant_conv that is not an array"),
        (weights | {"quantize": {"embeddings": zeros}}, "quantize/embeddings is missing or miss"),
        (narrow, "hidden 16 with multipliers .* do not divide into 32 groups"),
    ):
        with pytest.raises(UserError, match=fault):
            read(tree)
    with pytest.raises(UserError, match="none does not exist; give LWM's vqgan file"):
        read_vqgan(tmp_path / "none")


def test_damaged_folders_are_refused(model, tmp_path):
    save_vqgan(model, tmp_path)
    config, weights = tmp_path / "vqgan.json", tmp_path / "vqgan.safetensors"
    text, data = config.read_text(), weights.read_bytes()
    for written, fault in (
        (text.replace('"hidden": 32', '"hidden": 33'), "vqgan.json: hidden 33 with"),
        (text.replace('"hidden": 32', '"hidden": 64'), "misshapen: decoder.conv_in.bias has"),
        (text.replace('"hidden": 32', '"hidden": "32"'), "vqgan.json: hidden is '32'"),
        (text.replace("hidden", "width"), "vqgan.json: it should have channels, code_dim"),
        (text.replace('"res_blocks": 1', '"res_blocks": 1000000000'), "at most 64 res_blocks"),
        (text.replace("float32", "int8"), "dtype is 'int8', none of float32, bfloat16"),
        (json.dumps(json.loads(text) | {"multipliers": 3}), "multipliers is not a list"),
        (json.dumps(json.loads(text) | {"multipliers": [1, "2"]}), "multipliers is "),
        ("{", "is no JSON"),
    ):
        config.write_text(written)
        with pytest.raises(UserError, match=fault):
            read_vqgan(tmp_path)
    config.write_text(text)
    for cut in (0, 4, 100, len(data) - 1):
        weights.write_bytes(data[:cut])
        with pytest.raises(UserError, match=r"vqgan.safetensors is damaged .* fetch it again"):
            read_vqgan(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match=r"vqgan.safetensors is missing"):
        read_vqgan(tmp_path)
    config.unlink()
    with pytest.raises(UserError, match=r"vqgan.json is missing"):
        read_vqgan(tmp_path)


def test_a_place_that_cannot_be_written_is_named(model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file cannot be written: .*; choose another place"):
        save_vqgan(model, tmp_path / "file")
    if os.path.exists("/dev/full"):
        (tmp_path / "vqgan.json").symlink_to("/dev/full")
        with pytest.raises(UserError, match="No space left on device"):
            save_vqgan(model, tmp_path)
        assert not list(tmp_path.glob(".vqgan*"))
