"""VQGANs as `VQModel` of diffusers, in the layout of aMUSEd (arXiv 2401.01808): read and written.

A folder holds `config.json` and the weights. Keys of the configuration that begin with `_` are not
passed to the model by diffusers; under these is what only this package reads.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from lwm.errors import UserError
from lwm.files import make_folder, read_json, replacing
from lwm.model.config import Dtype
from lwm.sharding import dotted
from lwm.vqgan.config import GROUPS, VQGANConfig
from lwm.vqgan.model import VQGAN
from lwm.vqgan.stored import (
    StoredArray,
    StoredVQGAN,
    name_in,
    names_of,
    open_safetensors,
    to_torch,
)

FOLDER = "vqvae"
"""The subfolder of a model's folder, as in the pipelines of diffusers."""
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
CLASS = "VQModel"

_RESOLUTION, _DTYPE = "_resolution", "_dtype"
_NO_SIZE = 32
"""`sample_size` of a configuration that does not give one; aMUSEd's frames have 256 pixels."""
_CODES_PER_SIDE = 16
_DOWN = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")
_UP = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")
"""Types of levels, without attention and with it."""

# Both number the levels of the decoder in the order in which they run.
NAMES = names_of(
    {
        "encoder.conv_in": "encoder.conv_in",
        "encoder.levels.*.blocks.*": "encoder.down_blocks.*.resnets.*",
        "encoder.levels.*.attentions.*": "encoder.down_blocks.*.attentions.*",
        "encoder.levels.*.resample": "encoder.down_blocks.*.downsamplers.0.conv",
        "encoder.middle.*": "encoder.mid_block.resnets.*",
        "encoder.middle_attention": "encoder.mid_block.attentions.0",
        "encoder.norm": "encoder.conv_norm_out",
        "encoder.conv_out": "encoder.conv_out",
        "to_code": "quant_conv",
        "quantizer": "quantize",
        "from_code": "post_quant_conv",
        "decoder.conv_in": "decoder.conv_in",
        "decoder.middle.*": "decoder.mid_block.resnets.*",
        "decoder.middle_attention": "decoder.mid_block.attentions.0",
        "decoder.levels.*.blocks.*": "decoder.up_blocks.*.resnets.*",
        "decoder.levels.*.attentions.*": "decoder.up_blocks.*.attentions.*",
        "decoder.levels.*.resample": "decoder.up_blocks.*.upsamplers.0.conv",
        "decoder.norm": "decoder.conv_norm_out",
        "decoder.conv_out": "decoder.conv_out",
    },
    {
        "": "",
        ".norm1": ".norm1",
        ".conv1": ".conv1",
        ".norm2": ".norm2",
        ".conv2": ".conv2",
        ".shortcut": ".conv_shortcut",
        ".norm": ".group_norm",
        ".query": ".to_q",
        ".key": ".to_k",
        ".value": ".to_v",
        ".out": ".to_out.0",
    },
    {
        ".kernel": ".weight",
        ".bias": ".bias",
        ".weight": ".weight",
        ".codebook": ".embedding.weight",
    },
)


def find_vqmodel(path: Path) -> Path | None:
    """Returns the folder of a `VQModel`: a subfolder of this one, or this one; None for neither."""
    if (path / FOLDER / CONFIG).is_file():
        return path / FOLDER
    file = path / CONFIG
    return path if file.is_file() and read_json(file).get("_class_name") == CLASS else None


def is_vqmodel(config: VQGANConfig) -> bool:
    """Returns whether `VQModel` can be of this shape, and chooses codes alike."""
    is_alike = config.search == "nearest" and not config.unit_codes
    return config.decoder and is_alike and config.multipliers[0] == 1


def open_vqmodel(folder: Path) -> StoredVQGAN:
    """Opens a folder that `save_vqmodel` wrote, or `VQModel.save_pretrained`.

    Raises:
        UserError: The configuration is of something else, or has a feature that is not supported,
            or the file of weights is missing or damaged.
    """
    file = folder / CONFIG
    config = _config(read_json(file), file)
    arrays = open_safetensors(folder / WEIGHTS)
    ours = {name: _to_ours(name, array) for name, array in arrays.items()}
    return StoredVQGAN(config, ours, folder / WEIGHTS, functools.partial(name_in, NAMES))


def save_vqmodel(model: VQGAN, folder: Path, *, dtype: Dtype | None = None) -> None:
    """Writes a VQGAN into a folder that `VQModel.from_pretrained` reads.

    Args:
        model: A VQGAN on a mesh of one process, of a shape for which `is_vqmodel` is true.
        folder: Created if it is missing; a VQGAN there is replaced.
        dtype: Type of the stored weights; None keeps the type.

    Raises:
        UserError: The folder cannot be written.
    """
    assert is_vqmodel(model.config)
    tensors = {}
    for path, leaf in jax.tree.leaves_with_path(model):
        array = np.asarray(leaf, dtype or leaf.dtype)
        name = name_in(NAMES, dotted(path))
        if array.ndim == 4:
            array = np.ascontiguousarray(to_torch(array))
        tensors[name] = array.reshape(array.shape[:2]) if _is_linear(name) else array
    text = json.dumps(_values(model.config), indent=2) + "\n"
    make_folder(folder)
    with replacing(folder / WEIGHTS) as partial:
        save_file(tensors, partial, {"format": "pt"})
        (folder / CONFIG).write_text(text, encoding="utf-8")


def _is_linear(name: str) -> bool:
    """Returns whether a weight is a matrix there and a 1 × 1 kernel here."""
    return ".to_" in name and name.endswith(".weight")


def _to_ours(name: str, array: StoredArray) -> StoredArray:
    if _is_linear(name) and len(array.shape) == 2:
        shape = (*array.shape, 1, 1)
        array = StoredArray(shape, lambda read=array.read: read().reshape(shape))
    return StoredArray.of_torch(array)


def _values(config: VQGANConfig) -> dict[str, Any]:
    attends = [level in config.attention for level in range(len(config.multipliers))]
    return {
        "_class_name": CLASS,
        "_written_by": "lwm",
        _RESOLUTION: config.resolution,
        _DTYPE: config.dtype,
        "in_channels": config.channels,
        "out_channels": config.channels,
        "down_block_types": [_DOWN[each] for each in attends],
        "up_block_types": [_UP[each] for each in reversed(attends)],
        "block_out_channels": list(config.widths),
        "layers_per_block": config.res_blocks,
        "act_fn": "silu",
        "latent_channels": config.z_channels,
        "sample_size": config.resolution,
        "num_vq_embeddings": config.codes,
        "vq_embed_dim": config.code_dim,
        "norm_num_groups": GROUPS,
        "norm_type": "group",
        "mid_block_add_attention": config.middle_attention,
        "lookup_from_codebook": True,
        "force_upcast": True,
    }


# What diffusers takes where a configuration does not say.
_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 3,
    "sample_size": _NO_SIZE,
    "num_vq_embeddings": 256,
    "norm_num_groups": 32,
    "vq_embed_dim": None,
    "norm_type": "group",
    "mid_block_add_attention": True,
}


def _config(given: Mapping[str, Any], file: Path) -> VQGANConfig:
    """Returns the shape of a `VQModel`."""
    values = {**_DEFAULTS, **given}
    if values.get("_class_name") != CLASS:
        raise UserError(
            f"{file} is of {values.get('_class_name')!r}, not of a {CLASS}; give a VQGAN"
        )
    _refuse_features(values, file)
    widths = values["block_out_channels"]
    dim = values["vq_embed_dim"] or values["latent_channels"]
    sizes = ("in_channels", "layers_per_block", "latent_channels", "num_vq_embeddings")
    numbers = [*widths, dim, values["sample_size"], *(values[name] for name in sizes)]
    if not all(type(each) is int and each > 0 for each in numbers):
        raise UserError(f"{file} has a size that is no whole number above 0; fetch it again")
    step = 2 ** (len(widths) - 1)
    size = values["sample_size"]
    resolution = _CODES_PER_SIDE * step if size == _NO_SIZE or size % step else size
    try:
        return VQGANConfig.from_json(
            {
                "resolution": values.get(_RESOLUTION, resolution),
                "channels": values["in_channels"],
                "hidden": widths[0],
                "multipliers": [width // widths[0] for width in widths],
                "res_blocks": values["layers_per_block"],
                "z_channels": values["latent_channels"],
                "codes": values["num_vq_embeddings"],
                "code_dim": dim,
                "dtype": values.get(_DTYPE, "float32"),
                "attention": [
                    i for i, each in enumerate(values["down_block_types"]) if each == _DOWN[1]
                ],
                "middle_attention": values["mid_block_add_attention"],
            }
        )
    except ValueError as error:
        raise UserError(f"{file} is not a valid VQGAN: {error}") from None


def _refuse_features(values: Mapping[str, Any], file: Path) -> None:
    widths = values["block_out_channels"]
    if not (isinstance(widths, list) and widths):
        raise UserError(f"{file}: block_out_channels is {widths!r}, no list; fetch it again")
    down, up = values["down_block_types"], values["up_block_types"]
    if not all(isinstance(each, list) and len(each) == len(widths) for each in (down, up)):
        raise UserError(f"{file} has other numbers of levels and widths; fetch it again")
    mirrored = [_UP[_DOWN.index(each)] for each in reversed(down) if each in _DOWN]
    unsupported = {
        "a decoder that is no mirror image of the encoder": mirrored != up,
        f"the activation {values['act_fn']!r}": values["act_fn"] not in ("silu", "swish"),
        f"norm_type {values['norm_type']!r}": values["norm_type"] != "group",
        f"norm_num_groups {values['norm_num_groups']!r}": values["norm_num_groups"] != GROUPS,
        "an output of other channels than the input": values["in_channels"]
        != values["out_channels"],
        "a width that is no multiple of the first": any(
            type(width) is int and type(widths[0]) is int and widths[0] and width % widths[0]
            for width in widths
        ),
    }
    for feature, present in unsupported.items():
        if present:
            raise UserError(f"{file}: {feature} is not supported in a {CLASS}")
