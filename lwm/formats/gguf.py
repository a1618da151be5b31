"""Reads GGUF files of Llama-type models as Hugging Face checkpoints: names, layout and config.

The header is read here, not by the `gguf` package, which takes ten times as long for a vocabulary
and gives no useful message for a damaged file. The package decodes quantised blocks.
"""

import itertools
import math
import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from lwm.errors import UserError
from lwm.formats.gguf_config import config_of, refuse_unsupported
from lwm.formats.lazy import LazyArrays

_SCALARS = dict(enumerate(("B", "b", "H", "h", "I", "i", "f", "?", None, None, "Q", "q", "d")))
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 4
_ALIGNMENT = 32

_GLOBAL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OPTIONAL = {"attn_q_norm", "attn_k_norm"}
_NOT_WEIGHTS = re.compile(r"rope_freqs\.weight|blk\.\d+\.attn_rot_embd(\.weight)?")


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """Place and type of a tensor in the file; `shape` is in NumPy's order, rows first."""

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    num_bytes: int


class _Header:
    """A cursor over the header; `reading` names the present entry for messages."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at, self.reading = path, memoryview(data), 0, "the file header"

    def fail(self, problem: str) -> UserError:
        return UserError(
            f"{self.path} is truncated or corrupted: {problem} while reading {self.reading}; "
            "fetch the file again"
        )

    def scalars(self, code: str) -> tuple[Any, ...]:
        """Reads little-endian values in the notation of `struct`."""
        try:
            values = struct.unpack_from("<" + code, self.data, self.at)
        except struct.error:
            raise self.fail("the file ends") from None
        self.at += struct.calcsize("<" + code)
        return values

    def scalar(self, code: str) -> Any:
        return self.scalars(code)[0]

    def count(self) -> int:
        """Reads a length, and refuses one beyond the end of the file."""
        size = self.scalar("Q")
        if size > len(self.data) - self.at:
            raise self.fail(f"a length of {size} runs past the end")
        return size

    def string(self) -> str:
        size = self.count()
        self.at += size
        return bytes(self.data[self.at - size : self.at]).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array(self.scalar("I"))
        code = _SCALARS.get(kind)
        if code is None:
            raise self.fail(f"a value of unknown type {kind} appears")
        return self.scalar(code)

    def array(self, kind: int) -> list[Any]:
        size = self.count()
        if kind == _STRING:
            return [self.string() for _ in range(size)]
        code = _SCALARS.get(kind)
        if code is None:
            raise self.fail(f"an array of unknown type {kind} appears")
        return list(self.scalars(f"{size}{code}"))

    def open(self) -> tuple[int, int]:
        """Checks the magic and version; returns the numbers of tensors and of metadata entries."""
        if bytes(self.data[:4]) != b"GGUF":
            raise UserError(f"{self.path} is not a GGUF file: it does not start with 'GGUF'")
        self.at = 4
        version = self.scalar("I")
        if version not in (2, 3):
            order = "big-endian" if version & 0xFFFF == 0 else f"version {version}"
            raise UserError(f"{self.path} is {order} GGUF; little-endian versions 2 and 3 are read")
        return self.count(), self.count()

    def metadata(self, count: int) -> dict[str, Any]:
        found = {}
        for index in range(count):
            self.reading = f"metadata entry {index + 1} of {count}"
            key = self.string()
            self.reading = f"metadata entry {key!r}"
            found[key] = self.value(self.scalar("I"))
        return found

    def entries(self, count: int, alignment: Any) -> dict[str, TensorEntry]:
        """Reads the table of tensors and checks that each lies within the file."""
        if not isinstance(alignment, int) or alignment <= 0:
            raise self.fail(f"an alignment of {alignment!r} appears")
        found = {}
        for index in range(count):
            self.reading = f"tensor entry {index + 1} of {count}"
            name = self.string()
            self.reading = f"the entry of tensor {name!r}"
            dims = self.scalar("I")
            if dims > _MAX_DIMS:
                raise self.fail(f"{dims} dimensions appear")
            shape = tuple(self.scalar("Q") for _ in range(dims))[::-1]
            kind, offset = self.scalar("I"), self.scalar("Q")
            num_bytes = _num_bytes(self.path, name, shape, kind)
            found[name] = TensorEntry(
                name=name, shape=shape, kind=kind, start=offset, num_bytes=num_bytes
            )
        base = -(-self.at // alignment) * alignment
        return {name: self._placed(entry, base) for name, entry in found.items()}

    def _placed(self, entry: TensorEntry, base: int) -> TensorEntry:
        start, size = base + entry.start, len(self.data)
        if start + entry.num_bytes > size:
            raise UserError(
                f"{self.path} is truncated: tensor {entry.name!r} ends at byte "
                f"{start + entry.num_bytes:,} but the file has {size:,}; fetch the file again"
            )
        return replace(entry, start=start)


def _num_bytes(path: Path, name: str, shape: tuple[int, ...], kind: int) -> int:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise UserError(
            f"{path}: tensor {name!r} has unknown quantisation type {kind}: "
            "the file is corrupted, or newer than the installed `gguf` package"
        ) from None
    if shape and shape[-1] % block:
        raise UserError(
            f"{path}: tensor {name!r} has rows of {shape[-1]}, not a multiple of {block}"
        )
    return math.prod(shape) // block * size


def _unpermute(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Moves interleaved RoPE pairs of a projection half a head apart."""
    pairs = weight.reshape(num_heads, -1, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def decode(path: Path, entry: TensorEntry) -> Float[np.ndarray, "..."]:
    """Decodes one tensor to fp32."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType(entry.kind)
    block, size = GGML_QUANT_SIZES[kind]
    raw = np.memmap(path, np.uint8, "r", offset=entry.start, shape=(entry.num_bytes,))
    rows = np.asarray(raw).reshape(*entry.shape[:-1], entry.shape[-1] // block * size)
    try:
        with np.errstate(all="ignore"):  # a damaged scale is reported below
            weight = dequantize(rows, kind).reshape(entry.shape)
    except NotImplementedError:
        raise UserError(
            f"{path}: tensor {entry.name!r} is stored as {kind.name}, which cannot be decoded; "
            "use a file in F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 or a K-quant"
        ) from None
    if not np.isfinite(weight).all():
        raise UserError(
            f"{path} is corrupted: tensor {entry.name!r} holds NaN or infinity; "
            "fetch the file again"
        )
    return np.asarray(weight, np.float32)


def _hugging_face_name(path: Path, name: str) -> str:
    if name in _GLOBAL:
        return _GLOBAL[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in _LAYER:
        raise UserError(f"{path}: tensor {name!r} is not part of a dense Llama-kind model")
    return f"model.layers.{match[1]}.{_LAYER[match[2]]}.{match[3]}"


def _refuse_incomplete(path: Path, names: Mapping[str, TensorEntry], num_layers: int) -> None:
    roles = [role for role in _LAYER if role not in _OPTIONAL]
    # A generator: the number of layers in a damaged file may be anything.
    wanted = (f"blk.{i}.{role}.weight" for i in range(num_layers) for role in roles)
    for name in itertools.chain(("output_norm.weight",), wanted):
        if name not in names:
            raise UserError(f"{path} is incomplete: it lacks tensor {name!r}")


@dataclass(frozen=True, kw_only=True)
class GGUF:
    """One open file: its metadata, and the model as Hugging Face would have saved it."""

    metadata: dict[str, Any]
    config: dict[str, Any]
    tensors: LazyArrays
    """The weights by Hugging Face name, each decoded to fp32 on access."""


def read_gguf(path: Path) -> GGUF:
    """Opens a GGUF file of a Llama, Mistral, Qwen2 or Qwen3 model; no weight is read yet."""
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    header = _Header(path, data)
    num_tensors, num_values = header.open()
    metadata = header.metadata(num_values)
    arch = refuse_unsupported(path, metadata)
    entries = header.entries(num_tensors, metadata.get("general.alignment", _ALIGNMENT))
    rope_factors = None
    if factors := entries.get("rope_freqs.weight"):
        rope_factors = decode(path, factors)
    shapes = {name: entry.shape for name, entry in entries.items()}
    weights = {name: e for name, e in entries.items() if not _NOT_WEIGHTS.fullmatch(name)}
    if "token_embd.weight" not in weights:
        raise UserError(f"{path} lacks tensor 'token_embd.weight'")
    config = config_of(path, metadata, shapes, rope_factors)
    named = {_hugging_face_name(path, name): entry for name, entry in weights.items()}
    _refuse_incomplete(path, weights, config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}

    def read(name: str) -> Float[np.ndarray, "..."]:
        weight, role = decode(path, named[name]), name.split(".")[-2]
        return _unpermute(weight, heads[role]) if arch == "llama" and role in heads else weight

    tensors = LazyArrays({name: entry.shape for name, entry in named.items()}, read)
    return GGUF(metadata=metadata, config=config, tensors=tensors)
