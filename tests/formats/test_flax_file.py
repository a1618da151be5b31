"""Files that are no msgpack of LWM or Flax, or broken, are told by what is wrong with them."""

import msgpack
import numpy as np
import pytest

from lwm.errors import UserError
from lwm.formats.flax_file import FlaxFile
from lwm.formats.flax_writer import write_stream


def value(data):
    return b"\x92\x91\xa1a\xc6" + len(data).to_bytes(4, "big") + data


def extension(content):
    return msgpack.packb(msgpack.ExtType(1, msgpack.packb(content)))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"GGUF" + bytes(40), "is a GGUF file"),
        (b"PK\x03\x04" + bytes(40), "is a PyTorch archive"),
        (b"\x80\x04\x95" + bytes(40), "is a pickle, not LWM's parameters"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        (b"<!DOCTYPE html>", "is a web page"),
        (b"\x20\0\0\0\0\0\0\0{" + bytes(40), "is a safetensors file"),
        (b"hello", "is no model: neither a GGUF file nor LWM's"),
        (b"\x92\x01\x02", "an object has no path of names"),
        (b"\x92\x91\xa1a\x01", "an object holds no bytes"),
        (b"\x92\xdd\xff\xff\xff\xff", "4,294,967,295 values are declared in one place"),
        (value(b"\xc1"), "a byte there is no msgpack"),
        (value(b"\x91" * 100), "nested too deeply"),
        (value(b"\xdb\x7f\xff\xff\xff"), "a name has 2,147,483,647 letters"),
        (value(b"\xc7\x03\x01\x92\x01\x02"), "not made of shape, type and numbers"),
        (value(extension(((2,), "object", b""))), "unknown type 'object'"),
        (value(extension(((2,), "uint8", b"abc"))), "holds 3 bytes"),
        (value(extension(((-2,), "uint8", b"ab"))), r"has the shape \[-2\]"),
        (
            value(msgpack.packb({"__msgpack_chunked_array__": True, "shape": {}, "chunks": {}})),
            "an array in pieces lacks a piece",
        ),
        (
            value(msgpack.packb({"__msgpack_chunked_array__": True})),
            "lacks its shape or its pieces",
        ),
        (value(b"\xc0"), "holds no array"),
    ],
)
def test_what_is_no_stream_is_told(tmp_path, data, says):
    (tmp_path / "params").write_bytes(data)
    with pytest.raises(UserError, match=says) as caught:
        FlaxFile(tmp_path / "params")
    assert "\n" not in str(caught.value)


def test_one_name_twice(tmp_path):
    write_stream(tmp_path / "params", [("a", np.zeros(3)), ("a", np.zeros(3))])
    with pytest.raises(UserError, match="is damaged after a: a comes twice; fetch it again"):
        FlaxFile(tmp_path / "params")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        FlaxFile(tmp_path / "params")


def test_a_file_of_small_values_ends_soon(tmp_path, monkeypatch):
    monkeypatch.setattr("lwm.formats.msgpack_headers._MAX_VALUES", 1000)
    (tmp_path / "params").write_bytes(value(b"\xdc\x01\xf4" + bytes(500)) * 3)
    with pytest.raises(UserError, match="there are more than 1,000 values"):
        FlaxFile(tmp_path / "params")
