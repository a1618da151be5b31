"""Reads vision tokenizers of other projects, whose PyTorch names descend from taming-transformers.

The sizes are those of the tensors. A configuration beside them says how codes are searched, unless
the names are of one project alone.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lwm.errors import UserError
from lwm.files import named_file, read_json
from lwm.formats.lazy import LazyArrays
from lwm.formats.safetensor_files import holds_weights, open_safetensors
from lwm.formats.torch_file import is_torch, open_torch
from lwm.vqgan.config import Search, VQGANConfig
from lwm.vqgan.stored import StoredArray, StoredVQGAN, names_of

# Our names to theirs: modules, then parts of a block, then arrays. A `*` is a number.
_ENDS = {
    "encoder.conv_in": "encoder.conv_in",
    "encoder.norm": "encoder.norm_out",
    "encoder.conv_out": "encoder.conv_out",
    "to_code": "quant_conv",
    "quantizer": "quantize",
    "from_code": "post_quant_conv",
    "decoder.conv_in": "decoder.conv_in",
    "decoder.norm": "decoder.norm_out",
    "decoder.conv_out": "decoder.conv_out",
}
_NAMED_MIDDLE = {
    f"{side}.{ours}": f"{side}.mid.{theirs}"
    for side in ("encoder", "decoder")
    for ours, theirs in (
        ("middle.0", "block_1"),
        ("middle_attention", "attn_1"),
        ("middle.1", "block_2"),
    )
}
_TAMING = {
    **_ENDS,
    **_NAMED_MIDDLE,
    "encoder.levels.*.blocks.*": "encoder.down.*.block.*",
    "encoder.levels.*.attentions.*": "encoder.down.*.attn.*",
    "encoder.levels.*.resample": "encoder.down.*.downsample.conv",
    "decoder.levels.*.blocks.*": "decoder.up.*.block.*",
    "decoder.levels.*.attentions.*": "decoder.up.*.attn.*",
    "decoder.levels.*.resample": "decoder.up.*.upsample.conv",
}
_LLAMAGEN = {
    **_ENDS,
    "encoder.middle.0": "encoder.mid.0",
    "encoder.middle_attention": "encoder.mid.1",
    "encoder.middle.1": "encoder.mid.2",
    "decoder.middle.0": "decoder.mid.0",
    "decoder.middle_attention": "decoder.mid.1",
    "decoder.middle.1": "decoder.mid.2",
    "encoder.levels.*.blocks.*": "encoder.conv_blocks.*.res.*",
    "encoder.levels.*.attentions.*": "encoder.conv_blocks.*.attn.*",
    "encoder.levels.*.resample": "encoder.conv_blocks.*.downsample.conv",
    "decoder.levels.*.blocks.*": "decoder.conv_blocks.*.res.*",
    "decoder.levels.*.attentions.*": "decoder.conv_blocks.*.attn.*",
    "decoder.levels.*.resample": "decoder.conv_blocks.*.upsample.conv",
}
_APERTUS = {
    **_ENDS,
    **_NAMED_MIDDLE,
    "encoder.levels.*.blocks.*": "encoder.stages.*.layers.*.resnet",
    "encoder.levels.*.attentions.*": "encoder.stages.*.layers.*.attention",
    "encoder.levels.*.resample": "encoder.stages.*.downsample.conv",
}
_PARTS = {
    "": "",
    ".norm1": ".norm1",
    ".conv1": ".conv1",
    ".norm2": ".norm2",
    ".conv2": ".conv2",
    ".shortcut": ".nin_shortcut",
    ".norm": ".norm",
    ".query": ".q",
    ".key": ".k",
    ".value": ".v",
    ".out": ".proj_out",
}
_ARRAYS = {
    ".kernel": ".weight",
    ".bias": ".bias",
    ".weight": ".weight",
    ".codebook": ".embedding.weight",
}
_NUMBER = re.compile(r"(?<=s\.)\d+(?=\.)")
"""Numbers of levels, blocks and attentions in our names."""
_UNUSED = ("quantize.codebook_used",)
"""Tensors that count how often codes were chosen in training."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """Vision tokenizers that are named and computed alike."""

    names: Mapping[str, str]
    """Our names to theirs, from `names_of`; a `*` is a number."""
    search: Search
    unit_codes: bool = False
    finest_first: bool = False
    """True if the decoder's levels are numbered from full resolution, not as they run."""
    prefixes: tuple[str, ...] = ("",)
    """Beginnings of all names, of which the first that is there counts."""
    side: tuple[str, ...] = ()
    """Keys on the way to the side of the frames in `config.json`."""
    side_if_none: int = 256
    in_codes: bool = False
    """True if that side is in codes, not pixels."""

    def name_of(self, path: str, *, prefix: str, levels: int = 0) -> str:
        """Returns their name of a weight such as `decoder.levels.0.resample.kernel`."""
        numbers = [*map(int, _NUMBER.findall(path))]
        if self.finest_first and path.startswith("decoder.levels"):
            numbers[0] = levels - 1 - numbers[0]
        left = iter(numbers)
        name = self.names[_NUMBER.sub("*", path)]
        return prefix + re.sub(r"\*", lambda _: str(next(left)), name)


_LAYOUTS = {
    name: names_of(modules, _PARTS, _ARRAYS)
    for name, modules in (("taming", _TAMING), ("llamagen", _LLAMAGEN), ("apertus", _APERTUS))
}
LLAMAGEN = Family(
    names=_LAYOUTS["llamagen"],
    search="cosine",
    unit_codes=True,
    # Of averaged weights, of a training, of none.
    prefixes=("ema.", "model.", "state_dict.", ""),
)
"""VQ-8 and VQ-16 of LlamaGen (arXiv 2406.06525)."""
_JANUS = Family(
    names=_LAYOUTS["taming"],
    # As the class of transformers computes, not DeepSeek's own, which searches by cosine.
    search="nearest",
    unit_codes=True,
    side=("num_patches",),
    side_if_none=32,
    in_codes=True,
)
_APERTUS_1_5 = Family(names=_LAYOUTS["apertus"], search="product", side=("resolution",))
FAMILIES = {
    "janus_vqgan": _JANUS,
    "janus": dataclasses.replace(
        _JANUS,
        prefixes=("model.vqmodel.", "vqmodel."),
        side=("vq_config", "num_patches"),
        side_if_none=24,
    ),
    "multi_modality": dataclasses.replace(
        LLAMAGEN, prefixes=("gen_vision_model.",), side_if_none=384
    ),
    "Emu3p5VisionVQ": Family(
        names=_LAYOUTS["taming"],
        search="product",
        finest_first=True,
        prefixes=("", "state_dict."),
        side=("resolution",),
    ),
    "apertus1p5_vision_tokenizer": _APERTUS_1_5,
    "apertus1p5": dataclasses.replace(
        _APERTUS_1_5,
        prefixes=("model.vision_tokenizer.",),
        side=("vision_config", "resolution"),
    ),
}
"""Families by the `model_type` of their `config.json`: of tokenizers, and of models with one.

Janus (arXiv 2410.13848) has LlamaGen's VQ-16; Apertus 1.5 has the encoder of Emu3.5's tokenizer
(arXiv 2510.26583).
"""
_CONFIG = "config.json"
_INDEX = "pytorch_model.bin.index.json"
_FILES = ("pytorch_model.bin", "model.ckpt", "model.pth", "model.pt")
"""Files of PyTorch in a folder without safetensors."""


def is_pytorch(path: Path) -> bool:
    """Returns whether a path is for `open_pytorch`: a file of tensors, or a folder of a family."""
    if path.is_dir():
        return _family_of(path) is not None
    return path.is_file() and (path.suffix == ".safetensors" or is_torch(path))


def open_pytorch(path: Path) -> StoredVQGAN:
    """Opens the tokenizer in a file, or in a folder, where it may be a part of another model.

    Raises:
        UserError: It is of no known family, lacks a tensor, or its files are damaged.
    """
    folder = path if path.is_dir() else path.parent
    family = _family_of(folder)
    arrays = _open_folder(path) if path.is_dir() else _open_file(path)
    if family is None:
        family = LLAMAGEN
        if _prefix(family, arrays) is None:
            raise UserError(
                f"{path} does not say which vision tokenizer it is; give its folder, with the "
                f"{_CONFIG} that was published with it"
            )
    prefix = _prefix(family, arrays)
    if prefix is None:
        name = family.name_of(_FIRST, prefix=family.prefixes[0])
        raise UserError(f"{path} holds no vision tokenizer: {name} is missing; fetch it again")
    values = read_json(folder / _CONFIG) if (folder / _CONFIG).is_file() else {}
    found = {
        name: StoredArray.of_torch(StoredArray(shape, lambda n=name: arrays[n]))
        for name, shape in arrays.shapes.items()
        if name.startswith(prefix) and name.removeprefix(prefix) not in _UNUSED
    }
    config, levels = _infer(path, family, prefix, found, values)
    name_of = functools.partial(family.name_of, prefix=prefix, levels=levels)
    return StoredVQGAN(config, found, path, name_of)


_FIRST = "encoder.levels.0.blocks.0.conv1.kernel"
"""A weight whose name no two layouts share."""


def _prefix(family: Family, arrays: LazyArrays) -> str | None:
    names = ((each, family.name_of(_FIRST, prefix=each)) for each in family.prefixes)
    return next((prefix for prefix, name in names if name in arrays), None)


def _family_of(folder: Path) -> Family | None:
    file = folder / _CONFIG
    return FAMILIES.get(str(read_json(file).get("model_type"))) if file.is_file() else None


def _open_file(path: Path) -> LazyArrays:
    if path.suffix != ".safetensors":
        return open_torch(path)
    return open_safetensors(path.parent, named=path.name)


def _open_folder(folder: Path) -> LazyArrays:
    if holds_weights(folder):
        return open_safetensors(folder)
    if (folder / _INDEX).is_file():
        listed = read_json(folder / _INDEX).get("weight_map")
        names = sorted(set(listed.values())) if isinstance(listed, dict) else []
    else:
        names = [name for name in _FILES if (folder / name).is_file()][:1]
    if not names:
        raise UserError(f"{folder} holds no weights: neither safetensors nor {_FILES[0]}")
    parts = [open_torch(named_file(folder, name, folder / _INDEX)) for name in names]
    place = {name: part for part in parts for name in part}
    shapes = {name: part.shapes[name] for name, part in place.items()}
    return LazyArrays(shapes, lambda name: place[name][name])


def _infer(
    path: Path,
    family: Family,
    prefix: str,
    arrays: Mapping[str, StoredArray],
    values: Mapping[str, Any],
) -> tuple[VQGANConfig, int]:
    """Returns the configuration, and the number of levels."""

    def shape(ours: str, axes: int) -> tuple[int, ...]:
        name = family.name_of(ours, prefix=prefix)
        found = arrays[name].shape if name in arrays else ()
        if len(found) != axes:
            raise UserError(f"{path} is no vision tokenizer: {name} is missing or misshapen")
        return found

    def has(ours: str) -> bool:
        return family.name_of(ours, prefix=prefix) in arrays

    def count(pattern: str, most: int) -> int:
        return next((n for n in range(most) if not has(pattern.format(n))), most)

    levels = count("encoder.levels.{}.blocks.0.conv1.kernel", 17)
    *_, channels, hidden = shape("encoder.conv_in.kernel", 4)
    widths = [shape(f"encoder.levels.{i}.blocks.0.conv1.kernel", 4)[3] for i in range(levels)]
    codes, code_dim = shape("quantizer.codebook", 2)
    step = 2 ** (levels - 1)
    side = functools.reduce(
        lambda inner, key: inner.get(key) if isinstance(inner, dict) else None, family.side, values
    )
    side = side if family.side and type(side) is int else family.side_if_none
    try:
        config = VQGANConfig(
            resolution=side * step if family.in_codes else side,
            channels=channels,
            hidden=hidden,
            multipliers=tuple(width // max(hidden, 1) for width in widths),
            res_blocks=count("encoder.levels.0.blocks.{}.conv1.kernel", 65),
            z_channels=shape("encoder.conv_out.kernel", 4)[3],
            codes=codes,
            code_dim=code_dim,
            attention=tuple(
                i for i in range(levels) if has(f"encoder.levels.{i}.attentions.0.query.kernel")
            ),
            middle_attention=has("encoder.middle_attention.query.kernel"),
            search=family.search,
            unit_codes=family.unit_codes,
            decoder="decoder.conv_in.kernel" in family.names and has("decoder.conv_in.kernel"),
        )
    except ValueError as error:
        raise UserError(f"{path} is not a valid vision tokenizer: {error}") from None
    return config, levels
