"""VQGANs as `VQModel` of diffusers: the same codes and pixels there, and the same bits here."""

import dataclasses
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

from lwm.errors import UserError
from lwm.files import ASSETS
from lwm.media.frames import read_frames
from lwm.media.pixels import from_bytes
from lwm.vqgan.checkpoint import read_vqgan, save_vqgan
from lwm.vqgan.model import VQGAN, decode_frames, encode_frames
from lwm.vqgan.vqmodel import is_vqmodel, save_vqmodel


@pytest.fixture
def oracle():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    torch.set_num_threads(1)  # which is faster for models of this size
    return torch, diffusers


@pytest.fixture
def shipped():
    return read_vqgan("vqgan-64")


@pytest.fixture
def folder(shipped, tmp_path):
    save_vqmodel(shipped, tmp_path / "model" / "vqvae")
    return tmp_path / "model"


def require_same(one, other):
    assert one.config == other.config
    jax.tree.map(np.testing.assert_array_equal, one, other)


def change(folder, **values):
    file = folder / "vqvae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.torch
@pytest.mark.parametrize("which", ["vqgan-64", "original"])
def test_diffusers_has_the_same_codes_and_pixels(which, request, fixtures, tmp_path, mesh, oracle):
    torch, diffusers = oracle
    if which == "original":
        ours = read_vqgan(request.getfixturevalue("original_vqgan"))
        with np.load(fixtures / "vqgan_small.npz") as stored:
            pixels = stored["pixels"]
    else:
        ours = read_vqgan(which)
        clips = sorted((ASSETS / "clips").glob("*.webp"))[:2]
        found = [read_frames(clip, resolution=64, max_frames=2).pixels for clip in clips]
        pixels = from_bytes(np.concatenate(found))
    save_vqmodel(ours, tmp_path / "ours")
    theirs = diffusers.VQModel.from_pretrained(tmp_path / "ours").eval()
    codes = encode_frames(ours, pixels)
    with torch.no_grad():
        latents = theirs.encode(torch.tensor(pixels).permute(0, 3, 1, 2)).latents
        found = theirs.quantize(latents)[2][2].numpy().reshape(codes.shape)
        flat = latents.permute(0, 2, 3, 1).flatten(0, 2)
        best = torch.cdist(flat, theirs.quantize.embedding.weight).topk(2, largest=False).values
        random = np.random.default_rng(0).integers(0, ours.config.codes, codes.shape)
        size = (*codes.shape, ours.config.code_dim)
        decoded = theirs.decode(torch.tensor(random), force_not_quantize=True, shape=size).sample
    sure = (best[:, 1] - best[:, 0] > 1e-5 * best[:, 0]).numpy().reshape(codes.shape)
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(codes[sure], found[sure])
    wanted = decoded.clamp(-1, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(decode_frames(ours, random) - wanted).max() <= 1e-4

    theirs.save_pretrained(tmp_path / "theirs")
    require_same(read_vqgan(tmp_path / "theirs"), ours)


@pytest.mark.torch
@pytest.mark.parametrize("attends", [False, True])
def test_a_folder_of_diffusers_opens(tmp_path, mesh, oracle, attends):
    torch, diffusers = oracle
    torch.manual_seed(0)
    theirs = diffusers.VQModel(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D", "Attn" * attends + "DownEncoderBlock2D"),
        up_block_types=("Attn" * attends + "UpDecoderBlock2D", "UpDecoderBlock2D"),
        layers_per_block=2,
        latent_channels=8,
        num_vq_embeddings=24,
        vq_embed_dim=4,
        mid_block_add_attention=attends,
        lookup_from_codebook=True,
    ).eval()
    theirs.save_pretrained(tmp_path)
    ours = read_vqgan(tmp_path)
    assert ours.config.resolution == 32, "sixteen codes a side: `sample_size` 32 says nothing"
    assert (ours.config.multipliers, ours.config.codes, ours.config.code_dim) == ((1, 2), 24, 4)
    codes = np.random.default_rng(0).integers(0, 24, (1, 4, 4))
    with torch.no_grad():
        found = theirs.decode(torch.tensor(codes), force_not_quantize=True, shape=(1, 4, 4, 4))
    wanted = found.sample.clamp(-1, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(decode_frames(ours, codes) - wanted).max() <= 1e-4
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 8, 8, 3)).astype(np.float32)
    with torch.no_grad():
        latents = theirs.encode(torch.tensor(pixels).permute(0, 3, 1, 2)).latents
    found = latents.permute(0, 2, 3, 1).numpy()
    assert np.abs(jax.jit(VQGAN.latents)(ours, pixels) - found).max() <= 1e-4
    save_vqmodel(ours, tmp_path / "again")
    require_same(read_vqgan(tmp_path / "again"), ours)
    again = diffusers.VQModel.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in theirs.state_dict().items())


def test_it_reads_back_bit_for_bit(shipped, folder):
    for path in (folder, folder / "vqvae"):
        require_same(read_vqgan(path), shipped)
    half = dataclasses.replace(shipped, config=dataclasses.replace(shipped.config, resolution=128))
    save_vqmodel(half, folder / "vqvae", dtype="bfloat16")
    again = read_vqgan(folder)
    assert again.config.resolution == 128
    for one, other in zip(jax.tree.leaves(shipped), jax.tree.leaves(again), strict=True):
        assert other.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(np.asarray(one).astype(ml_dtypes.bfloat16), other)


def test_our_own_files_count_before_those_for_diffusers(shipped, folder):
    other = dataclasses.replace(shipped, from_code=jax.tree.map(lambda x: x + 1, shipped.from_code))
    save_vqgan(other, folder)
    require_same(read_vqgan(folder), other)


def test_the_resolution_is_that_of_the_file_or_sixteen_codes_a_side(folder):
    change(folder, _resolution=None)
    with pytest.raises(UserError, match=r"config\.json is not a valid VQGAN: resolution is None"):
        read_vqgan(folder)
    file = folder / "vqvae" / "config.json"
    values = json.loads(file.read_text())
    del values["_resolution"]
    for size, wanted in ((96, 96), (32, 128), (100, 128)):
        file.write_text(json.dumps(values | {"sample_size": size}))
        assert read_vqgan(folder).config.resolution == wanted


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"up_block_types": ["AttnUpDecoderBlock2D"] * 4},
            "a decoder that is no mirror image of the",
        ),
        ({"up_block_types": []}, "has other numbers of levels and widths"),
        ({"mid_block_add_attention": True}, "missing: decoder.mid_block.attentions.0.group_norm"),
        ({"act_fn": "relu"}, "the activation 'relu' is not supported"),
        ({"norm_num_groups": 16}, "norm_num_groups 16 is not supported"),
        ({"block_out_channels": [32, 48, 64, 128]}, "a width that is no multiple of the first"),
        ({"block_out_channels": 32}, "block_out_channels is 32, no list"),
        ({"latent_channels": "64"}, "has a size that is no whole number above 0"),
        ({"latent_channels": 32}, "is not a VQGAN of the expected sizes; misshapen: decoder.conv"),
        ({"_class_name": "AutoencoderKL"}, "is of 'AutoencoderKL', not of a VQModel"),
    ],
)
def test_what_is_not_supported_is_named(folder, values, message):
    change(folder, **values)
    with pytest.raises(UserError, match=message):
        read_vqgan(folder)


def test_weights_that_are_missing_are_named(folder):
    weights = folder / "vqvae" / "diffusion_pytorch_model.safetensors"
    shutil.move(weights, folder / "vqvae" / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=r"diffusion_pytorch_model\.safetensors is missing"):
        read_vqgan(folder)


@pytest.mark.parametrize(
    "values", [{"multipliers": (2, 2)}, {"search": "product"}, {"decoder": False}]
)
def test_other_vqgans_have_no_place_in_it(shipped, values):
    assert is_vqmodel(shipped.config)
    assert not is_vqmodel(dataclasses.replace(shipped.config, **values))
