"""The structure of GGUF files: headers, places of tensors, and models in several parts."""

import contextlib
import os
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from lwm.errors import UserError
from lwm.formats.gguf import read_gguf
from lwm.formats.gguf_file import find_gguf, is_gguf, read_contents

from .gguf_files import (
    HIDDEN,
    hugging_face_weights,
    write,
)


def entry_of(content: bytes, name: str) -> int:
    """Return where the offset of a matrix stands in the table of tensors."""
    at = content.index(name.encode()) + len(name)
    return at + 4 + 2 * 8 + 4


def test_tensors_that_overlap_or_are_not_aligned_are_refused(tmp_path: Path):
    path = write(tmp_path / "m.gguf", hugging_face_weights())
    content = path.read_bytes()
    one, two = (entry_of(content, f"blk.0.{name}.weight") for name in ("attn_q", "attn_k"))
    for offset, says in (
        (content[one : one + 8], r"tensors 'blk\.0\.attn_\w\.weight' and .* overlap; fetch"),
        (
            struct.pack("<Q", 33),
            "a place of 33, no multiple of 32, appears while reading the",
        ),
        (struct.pack("<Q", 32), r"tensors 'token_embd\.weight' and 'blk\.0\.attn_k.* overlap"),
    ):
        path.write_bytes(content[:two] + offset + content[two + 8 :])
        with pytest.raises(UserError, match=rf"m\.gguf.*{says}"):
            read_gguf(path)


def test_names_that_come_twice_are_refused(tmp_path: Path):
    path = write(tmp_path / "m.gguf", hugging_face_weights(), extra={"llama.aaaa": 1})
    content = path.read_bytes()
    path.write_bytes(content.replace(b"blk.1.attn_q.weight", b"blk.1.attn_k.weight"))
    with pytest.raises(UserError, match=r"a second one of this name appears .* 'blk\.1\.attn_k"):
        read_gguf(path)
    path.write_bytes(content.replace(b"general.architecture", b"llama.context_length"))
    with pytest.raises(UserError, match=r"a second one .* metadata entry 'llama.context_length'"):
        read_gguf(path)


@pytest.mark.parametrize("alignment", [0, 24, 33])
def test_an_alignment_that_is_no_power_of_two_is_refused(tmp_path: Path, alignment: int):
    path = tmp_path / "m.gguf"
    with contextlib.suppress(ZeroDivisionError, ValueError):
        write(path, hugging_face_weights(), extra={"general.alignmenx": alignment})
    path.write_bytes(path.read_bytes().replace(b"general.alignmenx", b"general.alignment"))
    with pytest.raises(UserError, match=f"an alignment of {alignment} appears"):
        read_gguf(path)


def split(path: Path, weights: dict[str, np.ndarray], count: int) -> list[Path]:
    """Write a model as `llama-gguf-split` does: metadata in the first part alone."""
    whole = write(path / "whole", weights)
    reader = gguf.GGUFReader(whole)
    size = -(-len(reader.tensors) // count)
    parts = []
    for number in range(count):
        part = path / f"m-{number + 1:05}-of-{count:05}.gguf"
        writer = gguf.GGUFWriter(part, "llama")
        if number == 0:
            for field in reader.fields.values():
                if field.name.startswith("llama."):
                    writer.add_key_value(field.name, field.contents(), field.types[0])
        else:
            writer.kv_data[0].clear()
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[number * size : (number + 1) * size]:
            writer.add_tensor(tensor.name, np.array(tensor.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        parts.append(part)
    whole.unlink()
    return parts


def test_a_split_model_opens_from_any_part(tmp_path: Path):
    weights = hugging_face_weights()
    parts = split(tmp_path, weights, 3)
    for part in parts:
        found = read_gguf(part).tensors
        assert {*found} == {*weights}
        for name, weight in weights.items():
            np.testing.assert_array_equal(found[name], weight)
    assert find_gguf(tmp_path) == parts[0]


def test_a_part_that_is_missing_or_another_is_named(tmp_path: Path):
    parts = split(tmp_path, hugging_face_weights(), 3)
    kept = parts[1].read_bytes()
    parts[1].unlink()
    with pytest.raises(UserError, match=r"is one of 3 parts; m-00002-of-00003\.gguf must lie besi"):
        read_gguf(parts[0])
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(UserError, match=r"m-00002-of-00003\.gguf is not part 2 of 3, as its name"):
        read_gguf(parts[2])
    parts[1].write_bytes(kept)
    parts[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(UserError, match=r"renamed.gguf is one of 3 parts, but its name"):
        read_gguf(tmp_path / "renamed.gguf")


def test_several_models_in_a_folder_are_listed_and_projectors_are_none(tmp_path: Path):
    weights = {"model.norm.weight": np.zeros(HIDDEN, np.float32)}
    assert find_gguf(tmp_path) is None
    model = write(tmp_path / "sha256-1a2b", weights)
    (tmp_path / "README.md").write_text("GGuF")
    assert is_gguf(model)
    assert find_gguf(tmp_path) == model  # by its content
    model = model.rename(tmp_path / "a.gguf")
    write(tmp_path / "mmproj-a.gguf", weights)
    write(tmp_path / "b.gguf", weights, arch="clip")
    write(tmp_path / "c.gguf", weights, extra={"general.type": "adapter"})
    (tmp_path / "._a.gguf").write_bytes(b"of macOS")
    assert find_gguf(tmp_path) == model
    write(tmp_path / "d.gguf", weights)
    with pytest.raises(UserError, match=r"several GGUF models: a\.gguf, d\.gguf; give one file"):
        find_gguf(tmp_path)


def test_truncation_is_reported_wherever_it_falls(tmp_path: Path):
    content = write(tmp_path / "m.gguf", hugging_face_weights()).read_bytes()
    path = tmp_path / "cut.gguf"
    for size in [*range(0, 2000, 7), len(content) // 2, len(content) - 33]:
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=r"cut\.gguf"):
            read_gguf(path)
    with pytest.raises(UserError, match=r"tensor 'blk\.1\.\w+\.weight' ends at byte [\d,]+ but"):
        read_gguf(path)


@pytest.mark.parametrize("value", [0, 6, 9, 255])
def test_corrupted_headers_are_reported(tmp_path: Path, value: int):
    """Bytes of the header in turn replaced: the file is read or refused by name, never a crash."""
    content = bytearray(write(tmp_path / "m.gguf", hugging_face_weights()).read_bytes())
    path = tmp_path / "bad.gguf"
    for at in range(value % 5, 1500, 5):
        kept, content[at] = content[at], value
        path.write_bytes(content)
        content[at] = kept
        with contextlib.suppress(UserError):
            read_gguf(path)


def header_of(path: Path, *values: bytes) -> Path:
    """Write a GGUF file without tensors and with these values, named `a`, `b` and so on."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, len(values))
    named = [struct.pack("<Q", 1) + bytes([97 + i]) + each for i, each in enumerate(values)]
    path.write_bytes(head + b"".join(named))
    return path


def test_arrays_of_a_header_that_take_much_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = header_of(tmp_path / "m.gguf", struct.pack("<IIQ", 9, 0, 1 << 33))
    os.truncate(path, 1 << 34)  # a hole
    with pytest.raises(UserError, match=r"more than 4,194,304 values .* entry 'a'; .* LWM_MAX_VAL"):
        read_gguf(path)
    path = header_of(tmp_path / "m.gguf", struct.pack("<IQ", 8, 1 << 33))
    os.truncate(path, 1 << 34)
    with pytest.raises(UserError, match=r"more than 268,435,456 bytes of text .* LWM_MAX_RECORD"):
        read_gguf(path)
    strings = struct.pack("<IIQ", 9, 8, 6) + bytes(8 * 6)
    path = header_of(tmp_path / "m.gguf", strings, strings)
    monkeypatch.setenv("LWM_MAX_VALUES", "10")
    with pytest.raises(UserError, match="more than 10 values"):
        read_contents(path)
    monkeypatch.setenv("LWM_MAX_VALUES", "14")
    assert read_contents(path)[0] == {"a": [""] * 6, "b": [""] * 6}


def test_not_gguf_and_absent(tmp_path: Path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(UserError, match="not a GGUF file"):
        read_gguf(path)
    path.write_bytes(b"GGUF" + struct.pack(">I", 3) + bytes(100))
    with pytest.raises(UserError, match="big-endian"):
        read_gguf(path)
    with pytest.raises(UserError, match="does not exist"):
        read_gguf(tmp_path / "absent.gguf")
    with pytest.raises(UserError, match="cannot be read"):
        read_gguf(tmp_path)
