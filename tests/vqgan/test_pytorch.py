"""Vision tokenizers of other projects against the classes of transformers, and their files."""

import dataclasses
import json
import re
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from safetensors.numpy import save_file

from lwm.errors import UserError
from lwm.sharding import dotted, make_mesh
from lwm.train.vqgan.config import FrameData, FrameSet, VQGANRun, VQGANTraining
from lwm.vqgan.checkpoint import read_vqgan, read_vqgan_config, save_vqgan, to_flax
from lwm.vqgan.config import Search, VQGANConfig
from lwm.vqgan.model import VQGAN, Quantizer, decode_frames, encode_frames
from lwm.vqgan.pytorch import FAMILIES, LLAMAGEN
from lwm.vqgan.tokenizer import VisionTokenizer, vqgan_fingerprint

VQ_16 = VQGANConfig(
    resolution=256,
    hidden=128,
    multipliers=(1, 1, 2, 2, 4),
    res_blocks=2,
    z_channels=256,
    codes=16_384,
    code_dim=8,
    attention=(4,),
    middle_attention=True,
    search="cosine",
    unit_codes=True,
)
IBQ = dataclasses.replace(
    VQ_16,
    hidden=256,
    res_blocks=4,
    codes=131_072,
    code_dim=256,
    search="product",
    unit_codes=False,
)
SMALL = dataclasses.replace(
    VQ_16,
    resolution=16,
    hidden=32,
    multipliers=(1, 2),
    attention=(1,),
    res_blocks=1,
    z_channels=8,
    codes=40,
    code_dim=4,
)
READS = dataclasses.replace(SMALL, search="product", unit_codes=False, decoder=False)


def random(config: VQGANConfig) -> VQGAN:
    """A model on one device, sampled on the host: compiling would take longer."""
    rng = np.random.default_rng(0)

    def sample(path, leaf):
        values = rng.normal(size=leaf.shape)
        if leaf.ndim == 1:
            values = values / 4 + ("weight" in str(path[-1]))
        elif leaf.ndim == 4:
            values /= np.sqrt(np.prod(leaf.shape[:3]))
        return jax.device_put(values.astype(np.float32), make_mesh().devices.flat[0])

    shapes = jax.eval_shape(lambda: VQGAN.init(config, key=jr.key(0)))
    return jax.tree.map_with_path(sample, shapes)


def frames(count, height=16, width=16):
    return np.random.default_rng(1).uniform(-1, 1, (count, height, width, 3)).astype(np.float32)


def require_same(one, other) -> None:
    for (path, leaf), again in zip(
        jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True
    ):
        assert again.dtype == leaf.dtype, path
        np.testing.assert_array_equal(again, leaf)


def shapes_of(config: VQGANConfig) -> dict[str, tuple[int, ...]]:
    model = jax.eval_shape(lambda: VQGAN.init(config, key=jr.key(0)))
    return {dotted(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(model)}


@pytest.mark.parametrize(
    ("family", "prefix", "config", "names"),
    [
        (
            LLAMAGEN,
            "",
            VQ_16,
            {
                "encoder.conv_in.weight": (3, 3, 3, 128),
                "encoder.conv_blocks.2.res.0.nin_shortcut.weight": (1, 1, 128, 256),
                "encoder.conv_blocks.3.downsample.conv.bias": (256,),
                "encoder.conv_blocks.4.attn.1.proj_out.weight": (1, 1, 512, 512),
                "encoder.mid.1.norm.weight": (512,),
                "encoder.norm_out.bias": (512,),
                "quantize.embedding.weight": (16_384, 8),
                "post_quant_conv.weight": (1, 1, 8, 256),
                "decoder.mid.2.conv2.weight": (3, 3, 512, 512),
                "decoder.conv_blocks.0.attn.2.q.bias": (512,),
                "decoder.conv_blocks.4.res.2.conv1.weight": (3, 3, 128, 128),
            },
        ),
        (
            FAMILIES["multi_modality"],
            "gen_vision_model.",
            VQ_16,
            {"gen_vision_model.encoder.mid.0.norm1.weight": (512,)},
        ),
        (
            FAMILIES["janus_vqgan"],
            "",
            VQ_16,
            {
                "encoder.down.4.block.1.norm2.weight": (512,),
                "encoder.mid.attn_1.v.weight": (1, 1, 512, 512),
                "decoder.up.0.attn.0.k.bias": (512,),
                "decoder.up.3.upsample.conv.weight": (3, 3, 128, 128),
            },
        ),
        (
            FAMILIES["Emu3p5VisionVQ"],
            "",
            IBQ,
            {
                "encoder.down.4.attn.3.q.weight": (1, 1, 1024, 1024),
                "decoder.up.4.attn.4.q.weight": (1, 1, 1024, 1024),
                "decoder.up.0.block.4.conv1.weight": (3, 3, 256, 256),
                "decoder.up.1.upsample.conv.bias": (256,),
                "quantize.embedding.weight": (131_072, 256),
            },
        ),
        (
            FAMILIES["apertus1p5_vision_tokenizer"],
            "",
            dataclasses.replace(IBQ, decoder=False),
            {
                "encoder.stages.2.layers.0.resnet.nin_shortcut.bias": (512,),
                "encoder.stages.4.layers.3.attention.norm.weight": (1024,),
                "encoder.stages.0.downsample.conv.weight": (3, 3, 256, 256),
                "encoder.mid.block_2.conv2.weight": (3, 3, 1024, 1024),
                "quant_conv.weight": (1, 1, 256, 256),
            },
        ),
    ],
    ids=["llamagen", "janus-original", "janus", "emu3.5", "apertus"],
)
def test_names_are_those_of_the_projects(family, prefix, config, names):
    shapes = shapes_of(config)
    theirs = {family.name_of(ours, prefix=prefix, levels=5): ours for ours in shapes}
    assert len(theirs) == len(shapes)
    assert {name: shapes[theirs[name]] for name in names} == names


def test_sizes_are_those_that_were_published():
    def count(config):
        return sum(int(np.prod(shape)) for shape in shapes_of(config).values())

    assert VQ_16.tokens_per_frame == 256
    assert round(count(VQ_16) / 1e6, 1) == 71.9
    assert round(count(IBQ) / 1e6) == 455


@pytest.mark.parametrize("config", [SMALL, READS], ids=["both", "encoder"])
def test_our_files_keep_all_bits(config, tmp_path):
    model = random(config)
    save_vqgan(model, tmp_path)
    again = read_vqgan(tmp_path)
    assert again.config == config == read_vqgan_config(tmp_path)
    require_same(again, model)
    assert vqgan_fingerprint(again) == vqgan_fingerprint(model)
    values = json.loads((tmp_path / "vqgan.json").read_text())
    (tmp_path / "vqgan.json").write_text(json.dumps(values | {"search": "farthest"}))
    with pytest.raises(UserError, match="search is 'farthest', none of nearest, cosine, product"):
        read_vqgan(tmp_path)
    (tmp_path / "vqgan.json").write_text(json.dumps(values | {"middle_attention": 1}))
    with pytest.raises(UserError, match="middle_attention is 1"):
        read_vqgan(tmp_path)


def test_bfloat16_is_never_of_weights_that_choose_codes_by_product(tmp_path):
    config = dataclasses.replace(SMALL, search="product", unit_codes=False, dtype="bfloat16")
    model = random(config)
    save_vqgan(model, tmp_path, dtype="bfloat16")
    again = read_vqgan(tmp_path)
    assert again.decoder is not None
    assert again.decoder.conv_in.kernel.dtype == jnp.bfloat16
    require_same(again.encoder, model.encoder)
    pixels = jnp.asarray(frames(2))
    exact = dataclasses.replace(model, config=dataclasses.replace(config, dtype="float32"))
    latents = jax.jit(VQGAN.latents)
    np.testing.assert_array_equal(latents(again, pixels), latents(exact, pixels))


def test_rules_of_the_choice_of_codes_are_in_the_fingerprint():
    model = random(SMALL)
    other = dataclasses.replace(SMALL, search="nearest")
    assert vqgan_fingerprint(dataclasses.replace(model, config=other)) != vqgan_fingerprint(model)
    other = dataclasses.replace(SMALL, resolution=32)
    assert vqgan_fingerprint(dataclasses.replace(model, config=other)) == vqgan_fingerprint(model)


def test_codes_are_searched_as_the_rule_says():
    rng = np.random.default_rng(0)
    book, latents = rng.normal(size=(50, 4)), rng.normal(size=(1, 8, 8, 4))

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    distances = ((latents[..., None, :] - book) ** 2).sum(-1)
    wanted: dict[Search, Any] = {
        "nearest": distances.argmin(-1),
        "cosine": (latents @ unit(book).T).argmax(-1),
        "product": (latents @ book.T).argmax(-1),
    }
    assert len({codes.tobytes() for codes in wanted.values()}) == 3
    for search, codes in wanted.items():
        given = unit(latents) if search == "cosine" else latents
        quantizer = Quantizer(jnp.asarray(book, jnp.float32), search, search == "cosine")
        found = quantizer.nearest(jnp.asarray(given, jnp.float32))
        np.testing.assert_array_equal(found, codes)
        vectors = unit(book) if search == "cosine" else book
        np.testing.assert_allclose(quantizer.vectors(found), vectors[codes], atol=1e-6)


def test_a_tokenizer_that_only_reads_refuses_to_write():
    model = random(READS)
    vision = VisionTokenizer(model)
    bytes_ = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    codes = vision.encode(bytes_)
    assert codes.shape == (2, vision.codes_per_unit)
    assert (vision.codes, vision.frames_per_unit, vision.side_multiple) == (40, 1, 2)
    assert not vision.decodes
    for run in (
        lambda: vision.decode(codes),
        lambda: decode_frames(model, codes.reshape(2, 8, 8)),
        lambda: model.decode(jnp.asarray(codes.reshape(2, 8, 8))),
        vision.require_decoder,
    ):
        with pytest.raises(UserError, match="only reads images: its files hold no decoder"):
            run()
    # The original can say neither of both.
    with pytest.raises(UserError, match="the original LWM has no VQGAN with attention"):
        to_flax(model)


def test_what_cannot_be_trained_is_refused():
    def run(config):
        data = FrameData(sets=(FrameSet(files=("frames",)),))
        return VQGANRun(model=config, data=data, training=VQGANTraining(steps=1))

    assert run(SMALL).model == SMALL
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"search": "product", "unit_codes": False}, "search is product .* cannot be trained"),
        ({"search": "nearest"}, "nearest with unit_codes True, which cannot be trained"),
        ({"decoder": False}, "hold no decoder"),
    )
    for changes, says in refused:
        with pytest.raises(UserError, match=says):
            run(dataclasses.replace(SMALL, **changes))
    with pytest.raises(ValueError, match=r"attention is at the levels \(2,\), but .* 0 to 1"):
        dataclasses.replace(SMALL, attention=(2,))
    with pytest.raises(ValueError, match="must be unit_codes"):
        dataclasses.replace(SMALL, unit_codes=False)


def write(folder, model: VQGAN, model_type: str, **values) -> None:
    """Writes a model as a project does, without PyTorch."""
    family, levels = FAMILIES[model_type], len(model.config.multipliers)
    tensors = {
        family.name_of(dotted(path), prefix=family.prefixes[0], levels=levels): np.asarray(
            leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf, order="C"
        )
        for path, leaf in jax.tree.leaves_with_path(model)
    }
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type} | values))


@pytest.mark.parametrize(
    ("model_type", "config", "values"),
    [
        ("Emu3p5VisionVQ", dataclasses.replace(READS, decoder=True), {"resolution": 16}),
        ("apertus1p5", READS, {"vision_config": {"resolution": 16}}),
        ("multi_modality", dataclasses.replace(SMALL, resolution=384), {}),
        (
            "janus",
            dataclasses.replace(SMALL, search="nearest"),
            {"vq_config": {"num_patches": 8}},
        ),
    ],
)
def test_folders_open_without_their_configuration_being_typed_in(
    model_type, config, values, tmp_path
):
    model = random(config)
    write(tmp_path, model, model_type, **values)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        assert read_vqgan_config(path) == config
    require_same(read_vqgan(tmp_path), model)


def test_folders_and_files_of_anything_else_are_refused(tmp_path):
    folder = tmp_path / "emu"
    write(folder, random(READS), "Emu3p5VisionVQ")
    config = (folder / "config.json").read_text()
    (folder / "config.json").unlink()
    says = r"safetensors does not say which vision tokenizer it is; give its folder, with"
    with pytest.raises(UserError, match=says):
        read_vqgan(folder / "model.safetensors")
    (folder / "config.json").write_text(config.replace("Emu3p5VisionVQ", "multi_modality"))
    with pytest.raises(UserError, match=r"no vision tokenizer: gen_vision_model\.encoder\.conv_b"):
        read_vqgan(folder)
    save_file(
        {"encoder.down.0.block.0.conv1.weight": np.zeros((32, 32, 3, 3), np.float32)},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(config)
    with pytest.raises(UserError, match=r"encoder\.conv_in\.weight is missing or misshapen"):
        read_vqgan(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no weights: neither safetensors nor pytorch_model"):
        read_vqgan(folder)


def compare(read: VQGAN, latents, codes, pixels=None) -> None:
    """Compares with latents and codes of PyTorch, and with what it decodes the codes to."""
    given = jnp.asarray(frames(2, 16, 16 if pixels is not None else 24))
    found = np.asarray(jax.jit(VQGAN.latents)(read, given))
    np.testing.assert_allclose(found, latents, rtol=0, atol=1e-5)
    assert found.std() > 0.3

    book = np.asarray(read.quantizer.codebook, np.float64)
    exact = latents.astype(np.float64)
    by_product = read.config.search == "product"
    costs = -exact @ book.T if by_product else ((exact[..., None, :] - book) ** 2).sum(-1)
    best = np.sort(costs, axis=-1)
    sure = best[..., 1] - best[..., 0] > 1e-5 * np.abs(best[..., 0])
    assert sure.mean() > 0.99
    ours = encode_frames(read, np.asarray(given))
    np.testing.assert_array_equal(ours[sure], codes[sure])
    assert len(np.unique(ours)) > 5

    if pixels is not None:
        decode = jax.jit(lambda model, codes: model.pixels(model.quantizer.vectors(codes)))
        decoded = decode(read, jnp.asarray(codes, jnp.int32))
        np.testing.assert_allclose(decoded, pixels, rtol=0, atol=1e-5)


def fill(module) -> None:
    """Samples weights with which all parts matter; PyTorch's own leave biases and norms idle."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.ndim == 4:
                weight.normal_(0, weight[0].numel() ** -0.5)
            elif weight.ndim == 2:
                weight.normal_()
            else:
                weight.normal_(float("norm" in name and "weight" in name), 0.25)


@pytest.fixture(scope="module")
def janus():
    """A small `JanusVQVAE`."""
    janus = pytest.importorskip("transformers.models.janus.modeling_janus")
    config = janus.JanusVQVAEConfig(
        embed_dim=4,
        num_embeddings=40,
        latent_channels=8,
        base_channels=32,
        channel_multiplier=[1, 2],
        num_res_blocks=1,
        num_patches=8,
    )
    fill(module := janus.JanusVQVAE(config).eval())
    return module


def to_theirs(pixels):
    torch = pytest.importorskip("torch")
    return torch.tensor(pixels).permute(0, 3, 1, 2)


@pytest.mark.torch
def test_janus_is_that_of_transformers(janus, tmp_path):
    torch = pytest.importorskip("torch")
    janus.save_pretrained(tmp_path)
    read = read_vqgan(tmp_path)
    assert read.config == dataclasses.replace(SMALL, search="nearest")
    with torch.no_grad():
        made = janus.encode(to_theirs(frames(2)))
        latents = janus.quant_conv(made.last_hidden_state).permute(0, 2, 3, 1)
        pixels = janus.decode(made.image_tokens.view(2, -1)).permute(0, 2, 3, 1)
    compare(read, latents.numpy(), made.image_tokens.view(2, 8, 8).numpy(), pixels.numpy())


@pytest.mark.torch
def test_apertus_is_that_of_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    apertus = pytest.importorskip("transformers.models.apertus1p5.modeling_apertus1p5")
    config = apertus.Apertus1p5VisionTokenizerConfig(
        codebook_size=300,
        embed_dim=8,
        latent_channels=16,
        base_channels=32,
        channel_multiplier=[1, 2, 2],
        num_res_blocks=2,
        attn_resolutions=[8],
        resolution=32,
    )
    fill(module := apertus.Apertus1p5VisionTokenizerModel(config).eval())
    module.save_pretrained(tmp_path)
    with torch.no_grad():
        given = to_theirs(frames(2, 16, 24))
        latents = module.quant_conv(module.encoder(given)).permute(0, 2, 3, 1).numpy()
        codes = module.encode(given).image_tokens.numpy()
    # In bfloat16 the encoder would be, too, if it were of another kind.
    read = read_vqgan(tmp_path, dtype="bfloat16")
    assert (read.config.attention, read.config.decoder) == ((2,), False)
    compare(read, latents, codes)


@pytest.mark.torch
def test_the_originals_of_janus_open_as_its_copy_in_transformers(janus, tmp_path):
    """LlamaGen's file, and DeepSeek's folder in several, with names that transformers changed."""
    torch = pytest.importorskip("torch")
    changes = {
        "encoder.down": "encoder.conv_blocks",
        "decoder.up": "decoder.conv_blocks",
        ".block.": ".res.",
        "mid.block_1": "mid.0",
        "mid.attn_1": "mid.1",
        "mid.block_2": "mid.2",
    }
    state = {}
    for name, tensor in janus.state_dict().items():
        for theirs, original in changes.items():
            name = name.replace(theirs, original)
        state[name] = tensor
    state["quantize.codebook_used"] = torch.zeros(65536)
    janus.save_pretrained(tmp_path / "copy")
    copy = read_vqgan(tmp_path / "copy")

    torch.save({"model": state, "steps": 7}, tmp_path / "vq_ds16_t2i.pt")
    llamagen = read_vqgan(tmp_path / "vq_ds16_t2i.pt", resolution=16)
    assert llamagen.config == SMALL
    require_same(llamagen, copy)
    assert vqgan_fingerprint(llamagen) != vqgan_fingerprint(copy)

    folder = tmp_path / "Janus-Pro-1B"
    folder.mkdir()
    parts = {"pytorch_model-00001-of-00002.bin": {}, "pytorch_model-00002-of-00002.bin": {}}
    for number, (name, tensor) in enumerate(state.items()):
        [*parts.values()][number % 2][f"gen_vision_model.{name}"] = tensor.bfloat16()
    parts["pytorch_model-00001-of-00002.bin"]["language_model.head"] = torch.zeros(2)
    places = {name: file for file, tensors in parts.items() for name in tensors}
    for file, tensors in parts.items():
        torch.save(tensors, folder / file)
    index = {"weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"model_type": "multi_modality"}))
    original = read_vqgan(folder)
    assert original.config == dataclasses.replace(SMALL, resolution=384)
    require_same(original, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), copy))


@pytest.mark.torch
def test_emu_numbers_the_levels_of_its_decoder_from_the_finest(janus, tmp_path):
    torch = pytest.importorskip("torch")
    janus.save_pretrained(tmp_path / "copy")
    state = {
        re.sub(r"(?<=decoder\.up\.)\d", lambda found: str(1 - int(found[0])), name): tensor
        for name, tensor in janus.state_dict().items()
    }
    folder = tmp_path / "emu"
    folder.mkdir()
    torch.save({"state_dict": state}, folder / "model.ckpt")
    values = {"model_type": "Emu3p5VisionVQ", "resolution": 16}
    (folder / "config.json").write_text(json.dumps(values))
    read = read_vqgan(folder)
    assert read.config == dataclasses.replace(SMALL, search="product", unit_codes=False)
    require_same(read, read_vqgan(tmp_path / "copy"))
    shutil.copy(folder / "model.ckpt", folder / "other.pth")
    require_same(read_vqgan(folder / "other.pth"), read)
