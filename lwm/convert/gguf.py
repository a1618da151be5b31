"""Writes a model as a GGUF file, for llama.cpp and what is built on it.

The package `gguf` writes the header; `lwm.formats.gguf` reads the file back.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import ml_dtypes  # noqa: F401  (teaches NumPy the name bfloat16)
import numpy as np

from lwm.convert.card_facts import lineage_of, name_of
from lwm.convert.export import hugging_face_config
from lwm.convert.names import HUGGING_FACE, TensorLayout
from lwm.convert.open import ModelFiles
from lwm.convert.source import open_weights, require_other_files
from lwm.convert.weights import contiguous, in_layout, layout_of, sizes_in
from lwm.errors import UserError
from lwm.files import exclusive, writing
from lwm.formats.gguf import GLOBAL, LAYER
from lwm.formats.gguf_blocks import BLOCK
from lwm.formats.gguf_config import OWN, llama3_factors
from lwm.formats.lazy import is_finite
from lwm.model.config import LinearScaling, LlamaConfig, RopeScaling
from lwm.progress import Progress
from lwm.tokenizer.gguf_metadata import gguf_metadata
from lwm.tokenizer.pieces import CONTROL, UNUSED
from lwm.tokenizer.tokenizer import Tokenizer

StoredType = Literal["float32", "float16", "bfloat16", "int8", "int4"]
"""Types of matrices in a file; vectors are float32, and the table has eight bits at least."""

_KINDS = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int8": "Q8_0",
    "int4": "Q4_0",
}
_BYTES = {"int8": BLOCK + 2, "int4": BLOCK // 2 + 2}
"""Bytes of a block of numbers that share a scale."""
_ALIGNMENT = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Tensor:
    """A tensor of the file: its name, layout and type."""

    path: str
    layout: TensorLayout
    shape: tuple[int, ...]
    dtype: StoredType

    @property
    def num_bytes(self) -> int:
        numbers = int(np.prod(self.shape))
        if size := _BYTES.get(self.dtype):
            return numbers // BLOCK * size
        return numbers * np.dtype(self.dtype).itemsize


def write_gguf(
    opened: ModelFiles,
    file: Path,
    *,
    dtype: StoredType | None = None,
    overwrite: bool = False,
    progress: Progress = lambda done, total: None,
) -> list[str]:
    """Writes weights, configuration and tokenizer into one file.

    One tensor is in memory at a time. The file appears complete or not at all.

    Args:
        opened: The model.
        file: The file to make.
        dtype: Type of matrices; None for the type of the weights. A matrix whose rows do not
            divide into blocks of 32 is stored as float16.
        overwrite: Replaces a file.
        progress: Called with the number of bytes written and their total.

    Returns:
        What the file has no place for, each in one line.

    Raises:
        UserError: The file exists or cannot be written, GGUF has no place for the model or its
            tokenizer, or the weights cannot be read or stored in this type.
    """
    file = Path(file).expanduser()
    _require_place(opened, file, overwrite=overwrite)
    config = opened.config
    arch = arch_of(config, opened.tokenizer)
    weights = open_weights(opened)
    found: Any = dtype or weights.stored
    stored: StoredType = found if found in get_args(StoredType) else "float32"
    sizes = sizes_in(HUGGING_FACE, config)
    tensors = [_tensor(path, arch, sizes, stored) for path in weights.paths]
    factors = _rope_factors(config)
    tokenizer = gguf_metadata(opened.written_tokenizer, *_more_tokens(opened))
    metadata = _metadata(opened, arch, stored) | tokenizer.values
    total = sum(tensor.num_bytes for tensor in tensors)
    with _placing(file, total) as partial:
        _write_header(partial, arch, metadata, tensors, factors)
        done = 0
        with partial.open("ab") as out:
            if factors is not None:
                _append(out, factors)
            for tensor in tensors:
                array = in_layout(weights.read(tensor.path), tensor.layout, sizes)
                _append(out, _encode(array, tensor))
                done += tensor.num_bytes
                progress(done, total)
            out.flush()
            os.fsync(out.fileno())
    notes = [tokenizer.note] if tokenizer.note else []
    if opened.vqgan is not None:
        notes.append(f"the VQGAN in {opened.vqgan} has no place in a GGUF file")
    return notes


def arch_of(config: LlamaConfig, tokenizer: Tokenizer) -> str:
    """Returns llama.cpp's name for models of this kind.

    Raises:
        UserError: llama.cpp would not read this one, or the tokenizer is of another model.
    """
    arch = hugging_face_config(config, tokenizer, "float32")["model_type"]
    if arch == "qwen2" and config.num_heads * config.head_dim != config.dim:
        reason = f"reads {arch} with heads of width / heads alone"
    elif arch != "llama" and isinstance(config.rope.scaling, RopeScaling):
        reason = f"scales RoPE as Llama 3 does in Llama's models alone, not in {arch}"
    else:
        return arch
    raise UserError(f"llama.cpp {reason}; convert with --to hf")


def layouts(arch: str) -> dict[str, TensorLayout]:
    """Returns names and layouts of the tensors in a file, by path of the weight.

    Llama's queries and keys have RoPE on neighbouring pairs.
    """
    roles = {theirs: ours for ours, theirs in LAYER.items()}
    tops = {theirs: ours for ours, theirs in GLOBAL.items()}
    found = {}
    for path, layout in HUGGING_FACE.items():
        name, order = layout.name, layout.order
        if name.startswith("model.layers.*."):
            role, kind = name.removeprefix("model.layers.*.").rsplit(".", 1)
            name = f"blk.*.{roles[role]}.{kind}"
        else:
            name = tops[name]
        if arch == "llama" and path.endswith((".wq", ".wk")):
            order = order.replace("H)", "R2)").replace("H", "2R")
        found[path] = TensorLayout(name, order)
    return found


def _tensor(path: str, arch: str, sizes: dict[str, int], dtype: StoredType) -> _Tensor:
    layout = layout_of(layouts(arch), path)
    shape = layout.shape(sizes)
    if len(shape) == 1:
        dtype = "float32"
    elif dtype in _BYTES and shape[-1] % BLOCK:
        dtype = "float16"
    elif dtype == "int4" and path == "embedding":
        dtype = "int8"
    return _Tensor(path=path, layout=layout, shape=shape, dtype=dtype)


def _metadata(opened: ModelFiles, arch: str, dtype: StoredType) -> dict[str, Any]:
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    config, tokens = opened.config, opened.config.tokens
    name = _KINDS[dtype]
    general = {
        "type": "model",
        "name": opened.known.name if opened.known else name_of(opened.source),
        "file_type": int(LlamaFileType["ALL_F32" if name == "F32" else f"MOSTLY_{name}"]),
        "quantization_version": GGML_QUANT_VERSION,
        **_licence(opened),
    }
    values = {
        "vocab_size": tokens.size,
        "context_length": config.max_context,
        "embedding_length": config.dim,
        "block_count": config.num_layers,
        "feed_forward_length": config.mlp_dim,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": float(config.rope.theta),
    }
    own: dict[str, Any] = {}
    scaling = config.rope.scaling
    if isinstance(scaling, LinearScaling):
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling.factor)}
    elif scaling is not None:
        own |= {f"rope_scaling.{key}": float(value) for key, value in vars(scaling).items()}
    if tokens.vision:
        own |= {f"token_space.{key}": value for key, value in vars(tokens).items()}
        own["sampling"] = json.dumps(dataclasses.asdict(opened.sampling))
    return {
        **{f"general.{key}": value for key, value in general.items()},
        **{f"{arch}.{key}": value for key, value in values.items()},
        **{f"{OWN}.{key}": value for key, value in own.items()},
    }


def _licence(opened: ModelFiles) -> dict[str, str]:
    root = lineage_of(opened.source, opened.known).root
    if root is None or root.licence is None:
        return {}
    found = root.licence
    values = {"license": found.identifier or "other", "license.name": found.name}
    return values | ({"license.link": found.link} if found.link else {})


def _more_tokens(opened: ModelFiles) -> tuple[list[str], list[int]]:
    """Returns names and types of the model's ids that its tokenizer lacks.

    Those of vision are control tokens, so that prompts can hold them and texts cannot.
    """
    tokens = opened.config.tokens
    names = [f"[PAD{number}]" for number in range(opened.tokenizer.vocab_size, tokens.text)]
    kinds = [UNUSED] * len(names)
    if tokens.vision:
        codes = [f"<|vision_{code}|>" for code in range(tokens.codes)]
        unused = [f"<|vision_unused_{n}|>" for n in range(tokens.vision - tokens.codes - 2)]
        names += [*codes, "<|end_of_frame|>", "<|end_of_vision|>", *unused]
        kinds += [CONTROL] * (tokens.codes + 2) + [UNUSED] * len(unused)
    return names, kinds


def _rope_factors(config: LlamaConfig) -> np.ndarray | None:
    """Returns Llama 3's factors, which llama.cpp reads as a tensor; None for none."""
    scaling = config.rope.scaling
    if not isinstance(scaling, RopeScaling):
        return None
    return llama3_factors(config.rope.theta, config.head_dim, **vars(scaling)).astype(np.float32)


def _write_header(
    path: Path,
    arch: str,
    metadata: dict[str, Any],
    tensors: list[_Tensor],
    factors: np.ndarray | None,
) -> None:
    from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

    writer = GGUFWriter(path, arch)
    for key, value in metadata.items():
        # A length or a size is unsigned, unlike what the package takes an int for.
        kind = GGUFValueType.UINT32 if type(value) is int else GGUFValueType.get_type(value)
        writer.add_key_value(key, value, kind)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.layout.name,
            tensor.shape,
            np.dtype(np.float32),  # not looked at beside the type in the file
            tensor.num_bytes,
            GGMLQuantizationType[_KINDS[tensor.dtype]],
        )
    with contextlib.closing(writer):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()


def _append(out: Any, array: np.ndarray) -> None:
    """Writes an array where the header expects it.

    The package would use `tofile`, which does not pass on that the disk is full.
    """
    out.write(bytes(-out.tell() % _ALIGNMENT))
    out.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    out.write(bytes(-out.tell() % _ALIGNMENT))


def _encode(array: np.ndarray, tensor: _Tensor) -> np.ndarray:
    """Returns the numbers as the file holds them."""
    with np.errstate(all="ignore"):
        if size := _BYTES.get(tensor.dtype):
            from gguf import GGMLQuantizationType, quantize

            kind = GGMLQuantizationType[_KINDS[tensor.dtype]]
            encoded = quantize(contiguous(array, "float32"), kind)
            checked = encoded.reshape(-1, size)[:, :2].copy().view(np.float16)
        else:
            encoded = checked = contiguous(array, tensor.dtype)
    if not is_finite(checked):
        raise UserError(
            f"{tensor.layout.name} holds numbers above the largest of {tensor.dtype}; give "
            "--dtype float32 or bfloat16"
        )
    return encoded


def _require_place(opened: ModelFiles, file: Path, *, overwrite: bool) -> None:
    if file.suffix.lower() != ".gguf":
        raise UserError(f"{file} does not end in .gguf; give the name of the file to write")
    if file.is_dir():
        raise UserError(f"{file} is a folder; give the name of a file to write")
    require_other_files(opened, file)
    if file.exists() and not overwrite:
        raise UserError(f"{file} exists; choose another name, or give --overwrite to replace it")


@contextlib.contextmanager
def _placing(file: Path, num_bytes: int) -> Iterator[Path]:
    """Yields the path of an unfinished file, which is moved to its place at the end.

    It lies in a locked folder of its own, which the next run clears if this one is killed.
    """
    beside = file.with_name(f".{file.name}.partial")
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    partial = beside / "model.gguf"
    with exclusive(beside, shown=file), writing(file):
        try:
            partial.unlink(missing_ok=True)
            if (free := shutil.disk_usage(beside).free) < num_bytes:
                raise UserError(
                    f"no space for {file}: it needs {num_bytes / 1e9:.3g} GB and {free / 1e9:.3g} "
                    "GB are free; make room, or choose another disk"
                )
            yield partial
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                beside.rmdir()
