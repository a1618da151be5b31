"""Reads VQGANs of all formats, and writes folders of ours; the original LWM's is a pickle."""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.random as jr
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, PartitionSpec as P
from safetensors.numpy import save_file

from lwm.errors import UserError
from lwm.files import ASSETS, make_folder, read_json, replacing
from lwm.formats.lazy import require_finite, require_same_tensors
from lwm.formats.pickles import read_pickle
from lwm.formats.run_folder import find_in_run, is_checkpoint, open_checkpoint, read_settings
from lwm.model.config import Dtype
from lwm.sharding import dotted, on_mesh, own_mesh
from lwm.tokens import TokenSpace
from lwm.vqgan import vqmodel
from lwm.vqgan.config import CONFIG, WEIGHTS, VQGANConfig
from lwm.vqgan.model import VQGAN
from lwm.vqgan.pytorch import is_pytorch, open_pytorch
from lwm.vqgan.stored import StoredArray, StoredVQGAN, name_in, names_of, open_safetensors

ORIGINAL = "vqgan"
"""The pickle in a folder of the original LWM."""

# Our names to those of the original in Flax: modules, then parts of a residual block, then arrays.
# A `*` is a number. Both number the levels of the decoder in the order in which they run.
MODULES = {
    "encoder.conv_in": "encoder/Conv_0",
    "encoder.levels.*.blocks.*": "encoder/DownsamplingBlock_*/ResnetBlock_*",
    "encoder.levels.*.resample": "encoder/DownsamplingBlock_*/Downsample_0/Conv_0",
    "encoder.middle.*": "encoder/MidBlock_0/ResnetBlock_*",
    "encoder.norm": "encoder/GroupNorm_0",
    "encoder.conv_out": "encoder/Conv_1",
    "to_code": "quant_conv",
    "quantizer": "quantize",
    "from_code": "post_quant_conv",
    "decoder.conv_in": "decoder/Conv_0",
    "decoder.middle.*": "decoder/MidBlock_0/ResnetBlock_*",
    "decoder.levels.*.blocks.*": "decoder/UpsamplingBlock_*/ResnetBlock_*",
    "decoder.levels.*.resample": "decoder/UpsamplingBlock_*/Upsample_0/Conv_0",
    "decoder.norm": "decoder/GroupNorm_0",
    "decoder.conv_out": "decoder/Conv_1",
}
PARTS = {
    "": "",
    ".norm1": "/GroupNorm_0",
    ".conv1": "/Conv_0",
    ".norm2": "/GroupNorm_1",
    ".conv2": "/Conv_1",
    ".shortcut": "/Conv_2",
}
ARRAYS = {
    ".kernel": "/kernel",
    ".bias": "/bias",
    ".weight": "/scale",
    ".codebook": "/embeddings",
}
NAMES = names_of(MODULES, PARTS, ARRAYS)

SHIPPED = ASSETS / "vqgan-64"
"""The VQGAN that comes with the package; users give the name of its folder."""


def locate_vqgan(path: str | Path) -> Path:
    """Returns the file or folder of a VQGAN.

    That of the package by its name, the model or a checkpoint of a run, else the path itself.

    Raises:
        UserError: The run has no such checkpoint.
    """
    if found := find_in_run(path):
        return found
    path = Path(path)
    return SHIPPED if path == Path(SHIPPED.name) and not path.exists() else path


def flax_name(path: str) -> str:
    """Returns the original's name of a weight such as `decoder.levels.0.resample.kernel`."""
    return name_in(NAMES, path)


def read_vqgan(
    path: str | Path,
    *,
    mesh: Mesh | None = None,
    dtype: Dtype | None = None,
    resolution: int | None = None,
) -> VQGAN:
    """Reads LWM's pickle, a `VQModel` of diffusers, what `save_vqgan` wrote, or others' tokenizers.

    Of others, `lwm.vqgan.pytorch` has a list. Shapes of pickled models and of others are inferred
    from their tensors. Weights keep the type that they have in the file, float32 or bfloat16.

    Args:
        path: The file, or a folder: that of a language model, which has the VQGAN as `vqgan` or
            `vqvae`, or its own; `vqgan-64` is the one that comes with the package.
        mesh: Devices, each of which gets all weights; None for one device of this process.
        dtype: Type of the computation; None for that of the folder, or float32 for a pickle.
        resolution: Pixels along a side of the frames; None for that of the folder, or where the
            files do not say sixteen codes a side, as in LWM.

    Raises:
        UserError: There is no VQGAN, its tensors are missing, unexpected or misshapen, or the
            resolution does not divide into codes.
    """
    stored = _open(path)
    config = stored.config
    if resolution is not None:
        config.grid(resolution, resolution)
    changes = {"dtype": dtype, "resolution": resolution}
    config = _config(
        stored.file, **dataclasses.asdict(config) | {k: v for k, v in changes.items() if v}
    )
    return _build(config, stored, mesh or own_mesh())


def read_vqgan_config(path: str | Path) -> VQGANConfig:
    """Returns the shape of a VQGAN that `read_vqgan` reads.

    Raises:
        UserError: There is none, or its tensors do not show a shape.
    """
    return _open(path).config


def require_codes_for(path: str | Path, tokens: TokenSpace) -> None:
    """Refuses a VQGAN whose codes are not those of a model; reads its weights only in a pickle.

    Raises:
        UserError: They are not, or there is no VQGAN.
    """
    require_codes(path, read_vqgan_config(path).codes, tokens)


def require_codes(path: str | Path, codes: int, tokens: TokenSpace) -> None:
    """Refuses a model whose codes are not those of a VQGAN at `path`.

    Raises:
        UserError: It has other codes, or none.
    """
    if not tokens.vision:
        raise UserError(
            f"the model reads and writes text only, but {path} is for images; leave it out"
        )
    if codes != tokens.codes:
        raise UserError(
            f"{path} has {codes} codes, but the model {tokens.codes}: they are of different models"
        )


def save_vqgan(model: VQGAN, folder: Path, *, dtype: Dtype | None = None) -> None:
    """Writes `vqgan.safetensors` and `vqgan.json` into a folder; other files there stay.

    Args:
        model: A VQGAN on a mesh of one process.
        folder: Created if it is missing; a VQGAN there is replaced.
        dtype: Type of the stored weights; None keeps the type. Weights that choose codes by inner
            product keep it in any case, as rounding would change codes.

    Raises:
        UserError: The folder cannot be written.
    """
    folder = Path(folder)
    tensors = {}
    for path, leaf in jax.tree.leaves_with_path(model):
        name = dotted(path)
        decodes = name.startswith(("from_code", "decoder"))
        rounds = dtype is not None and (decodes or model.config.search != "product")
        tensors[name] = np.asarray(leaf, dtype if rounds else leaf.dtype)
    text = json.dumps(model.config.to_json(), indent=2) + "\n"
    make_folder(folder)
    with replacing(folder / WEIGHTS) as partial:
        save_file(tensors, partial)
        (folder / CONFIG).write_text(text, encoding="utf-8")


def to_flax(model: VQGAN) -> dict[str, Any]:
    """Returns the weights as the nested dict that the original pickled, in float32.

    Raises:
        UserError: The original has no model of this kind.
    """
    if not model.config.is_plain:
        raise UserError(
            "the original LWM has no VQGAN with attention or another search than of the nearest "
            "code; leave the VQGAN out, or use another format"
        )
    tree: dict[str, Any] = {}
    for path, leaf in jax.tree.leaves_with_path(model):
        *above, last = flax_name(dotted(path)).split("/")
        inner = tree
        for name in above:
            inner = inner.setdefault(name, {})
        inner[last] = np.asarray(leaf, np.float32)
    return tree


def _open(path: str | Path) -> StoredVQGAN:
    path = locate_vqgan(path)
    if is_checkpoint(path):
        return _open_checkpoint(path)
    if not path.is_dir():
        return open_pytorch(path) if is_pytorch(path) else _open_original(path)
    if (path / CONFIG).is_file():
        return _open_folder(path)
    if (found := vqmodel.find_vqmodel(path)) is not None:
        return vqmodel.open_vqmodel(found)
    if (path / ORIGINAL).is_file():
        return _open_original(path / ORIGINAL)
    return open_pytorch(path) if is_pytorch(path) else _open_folder(path)


def _open_folder(folder: Path) -> StoredVQGAN:
    values = read_json(folder / CONFIG)
    try:
        config = VQGANConfig.from_json(values)
    except ValueError as error:
        raise UserError(f"{folder / CONFIG}: {error}; save the VQGAN again") from None
    path = folder / WEIGHTS
    return StoredVQGAN(config, open_safetensors(path), path)


def _open_checkpoint(place: Path) -> StoredVQGAN:
    try:
        config = VQGANConfig.from_json(read_settings(place)["model"])
    except (ValueError, LookupError, AttributeError):
        raise UserError(f"{place} is no checkpoint of a VQGAN") from None
    arrays = open_checkpoint(place)
    found = {name: StoredArray(arrays.shapes[name], lambda n=name: arrays[n]) for name in arrays}
    return StoredVQGAN(config, found, place)


def _open_original(path: Path) -> StoredVQGAN:
    if not path.is_file():
        raise UserError(f"{path} does not exist; give LWM's vqgan file, or a folder that holds one")
    arrays: dict[str, np.ndarray] = {}
    for name, value in _flat(read_pickle(path)):
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fV":
            raise UserError(f"{path} holds {name or 'something'} that is not an array of weights")
        arrays[name] = value
    config = _infer(path, {name: array.shape for name, array in arrays.items()})
    found = {name: StoredArray(array.shape, lambda a=array: a) for name, array in arrays.items()}
    return StoredVQGAN(config, found, path, flax_name)


def _flat(tree: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, Mapping):
        yield above, tree
        return
    for name, inner in tree.items():
        yield from _flat(inner, f"{above}/{name}" if above else str(name))


def _infer(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> VQGANConfig:
    """Infers the configuration from the shapes of some tensors."""

    def size(name: str, axis: int) -> int:
        shape = shapes.get(name, ())
        if len(shape) <= axis % 4:
            raise UserError(
                f"{path} is not a VQGAN of LWM: {name} is missing or misshapen; "
                f"it holds {', '.join(list(shapes)[:3]) or 'no array'}"
            )
        return shape[axis]

    down = "encoder/DownsamplingBlock_"
    levels = {match[1] for name in shapes if (match := re.match(rf"{down}(\d+)/", name))}
    blocks = {match[1] for name in shapes if (match := re.match(rf"{down}0/Res\w+_(\d+)/", name))}
    hidden = size("encoder/Conv_0/kernel", 3)
    widths = [size(f"{down}{i}/ResnetBlock_0/Conv_1/kernel", 3) for i in range(len(levels))]
    return _config(
        path,
        resolution=16 * 2 ** max(len(levels) - 1, 0),
        channels=size("encoder/Conv_0/kernel", 2),
        hidden=hidden,
        multipliers=tuple(width // max(hidden, 1) for width in widths),
        res_blocks=len(blocks),
        z_channels=size("encoder/Conv_1/kernel", 3),
        codes=size("quantize/embeddings", 0),
        code_dim=size("quantize/embeddings", 1),
    )


def _config(path: Path, **values: Any) -> VQGANConfig:
    try:
        return VQGANConfig(**values)
    except ValueError as error:
        raise UserError(f"{path} is not a valid VQGAN: {error}") from None


def _build(config: VQGANConfig, stored: StoredVQGAN, mesh: Mesh) -> VQGAN:
    made = jax.eval_shape(lambda: VQGAN.init(config, key=jr.key(0)))
    leaves, tree = jax.tree.flatten_with_path(made)
    wanted = {stored.name_of(dotted(p)): leaf.shape for p, leaf in leaves}
    arrays = stored.arrays
    require_same_tensors(
        {name: array.shape for name, array in arrays.items()},
        wanted,
        problem=f"{stored.file} is not a VQGAN of the expected sizes",
    )
    placed = []
    for name in wanted:
        # Removed from the dict, so that no array is held twice once it is on its devices.
        array = arrays.pop(name).read()
        require_finite(array, name, stored.file)
        if array.dtype not in (np.float32, ml_dtypes.bfloat16):
            array = array.astype(np.float32)
        placed.append(jax.device_put(array, on_mesh(mesh, P())))
    return jax.tree.unflatten(tree, placed)
