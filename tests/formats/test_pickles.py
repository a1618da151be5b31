"""Pickles: every protocol read as Python does, and hostile or damaged files refused in one line."""

import builtins
import collections
import functools
import io
import os
import pickle
import random
import struct
import subprocess
import tracemalloc

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lwm.errors import UserError
from lwm.formats import pickles
from lwm.formats.pickles import read_pickle

PROTOCOLS = range(6)
DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", ">f4", ">i8")


def plain_tree():
    rng = np.random.default_rng(0)
    return {
        "arrays": {code: (3 * rng.normal(size=(3, 4))).astype(code) for code in DTYPES},
        "bfloat16": rng.normal(size=(2, 5)).astype(ml_dtypes.bfloat16),
        "columns": np.asfortranarray(rng.normal(size=(3, 2, 4)).astype(np.float32)),
        "empty": [np.zeros((0, 3), np.float32), np.array(7, np.float32)],
        "scalars": (np.float32(1.5), np.int64(-3), np.bool_(True), ml_dtypes.bfloat16(2.5)),
        "numbers": [0, 1, -1, 255, 65_536, 2**31, -(2**63), 10**40, 1.5, float("inf"), True, None],
        "texts": ("", "é\n\U0001f600", b"", b"\x00\xff" * 200, "x" * 300),
        ("a", 1): {1: [], 2: (), 3: {}, None: ((), [()])},
        "ordered": collections.OrderedDict(b=1, a=2),
    }


def require_same(one, other):
    if isinstance(one, np.ndarray | np.generic):
        assert type(other) is type(one)
        assert other.dtype == one.dtype
        np.testing.assert_array_equal(other, one)
    elif isinstance(one, dict):
        assert type(other) is dict
        assert list(one) == list(other)
        for key in one:
            require_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert type(other) is type(one)
        for pair in zip(one, other, strict=True):
            require_same(*pair)
    else:
        assert type(other) is type(one)
        assert other == one


@pytest.fixture
def read(tmp_path):
    """Reads bytes as a file."""

    def run(data: bytes):
        (path := tmp_path / "file.pkl").write_bytes(data)
        return read_pickle(path)

    return run


@pytest.fixture
def refusal(tmp_path):
    """Returns what is said of bytes, in one short line that names the file; or None."""

    def run(data: bytes) -> str | None:
        (path := tmp_path / "file.pkl").write_bytes(data)
        try:
            read_pickle(path)
        except UserError as error:
            said = str(error)
            assert said.startswith(f"{path} ")
            assert said.isprintable()
            assert len(said) < len(str(path)) + 250
            return said.removeprefix(f"{path} ")
        return None

    return run


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_reads_as_python_does(read, protocol):
    tree = plain_tree()
    require_same(tree, read(pickle.dumps(tree, protocol)))
    shared = [1, "a"]
    require_same([shared, (shared,)], read(pickle.dumps([shared, (shared,)], protocol)))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_of_jax_become_numpy(read, protocol):
    tree = {"a": jnp.arange(6.0).reshape(2, 3), "b": [jnp.ones((3,), jnp.bfloat16)]}
    got = read(pickle.dumps(tree, protocol))
    require_same({"a": np.asarray(tree["a"]), "b": [np.asarray(tree["b"][0])]}, got)


def test_names_of_older_numpy_and_jax(read):
    array = np.arange(4, dtype=np.float32)
    data = pickle.dumps(array, 2)
    assert b"numpy._core.multiarray" in data
    require_same(array, read(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")))
    data = pickle.dumps(jnp.asarray(array), 2)
    older = b"jax._src.device_array\nreconstruct_device_array"
    old = data.replace(b"jax._src.array\n_reconstruct_array", older)
    assert old != data
    require_same(array, read(old))


def test_dicts_of_flax_and_ml_collections_become_plain(read):
    """As these libraries write them, which are not installed here."""
    frozen = (
        b"\x80\x04\x95<\x00\x00\x00\x00\x00\x00\x00\x8c\x15flax.core.frozen_dict\x94\x8c\n"
        b"FrozenDict\x94\x93\x94}\x94\x8c\x01a\x94}\x94\x8c\x01b\x94K\x01ss\x85\x94R\x94."
    )
    assert read(frozen) == {"a": {"b": 1}}
    # ConfigDict({"a": 1, "b": {"c": "x"}, "d": FieldReference(3)})
    config = (
        b"\x80\x02}q\x00X\x05\x00\x00\x00flagsq\x01cml_collections.config_dict.config_dict\n"
        b"ConfigDict\nq\x02)\x81q\x03}q\x04(X\x07\x00\x00\x00_fieldsq\x05}q\x06(X\x01\x00\x00\x00a"
        b"q\x07K\x01X\x01\x00\x00\x00bq\x08h\x02)\x81q\t}q\n(h\x05}q\x0bX\x01\x00\x00\x00cq\x0c"
        b"X\x01\x00\x00\x00xq\rsX\x07\x00\x00\x00_lockedq\x0e\x89X\n\x00\x00\x00_type_safeq\x0f"
        b"\x88ubX\x01\x00\x00\x00dq\x13cml_collections.config_dict.config_dict\nFieldReference\n"
        b"q\x14)\x81q\x15}q\x16(X\x0b\x00\x00\x00_field_typeq\x17c__builtin__\nlong\nq\x18"
        b"X\x04\x00\x00\x00_opsq\x19]q\x1aX\x06\x00\x00\x00_valueq\x1bK\x03X\t\x00\x00\x00_required"
        b"q\x1c\x89ubuh\x0e\x89h\x0f\x88ubs."
    )
    assert read(config) == {"flags": {"a": 1, "b": {"c": "x"}, "d": 3}}
    old = (
        b"ccopy_reg\n_reconstructor\np0\n(cml_collections.config_dict.config_dict\nConfigDict\np1\n"
        b"c__builtin__\nobject\np2\nNtp3\nRp4\n(dp5\nV_fields\np6\n(dp7\nVn\np8\nNssb."
    )
    assert read(old) == {"n": None}


def test_memory_is_that_of_the_arrays(tmp_path):
    tree = {str(i): np.full(1 << 18, i, np.float32) for i in range(8)}
    for protocol, most in ((4, 1.1), (5, 1.4), (2, 4)):
        (path := tmp_path / "file.pkl").write_bytes(pickle.dumps(tree, protocol))
        tracemalloc.start()
        got = read_pickle(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < most * sum(array.nbytes for array in tree.values())
        require_same(tree, got)


class Gadget:
    """Is pickled as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def gadgets(canary):
    touch = f"open({str(canary)!r}, 'w')"
    return {
        "os.system": Gadget(os.system, f"touch {canary}"),
        "builtins.eval": Gadget(builtins.eval, touch),
        "builtins.exec": Gadget(builtins.exec, touch),
        "builtins.open": Gadget(builtins.open, str(canary), "w"),
        "subprocess.Popen": Gadget(subprocess.Popen, ["touch", str(canary)]),
        "subprocess.call": Gadget(subprocess.call, ["touch", str(canary)]),
        "functools.partial": Gadget(functools.partial, os.mkdir, str(canary)),
        "numpy.loadtxt": Gadget(np.loadtxt, str(canary)),
        "builtins.getattr": Gadget(getattr, Gadget(__import__, "os"), "system"),
        "io.open_code": Gadget(io.FileIO, str(canary), "w"),
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nothing_is_run(refusal, tmp_path, protocol):
    canary = tmp_path / "canary"
    for gadget in gadgets(canary).values():
        for tree in (gadget, {"a": [gadget]}, Gadget(collections.OrderedDict, gadget)):
            said = refusal(pickle.dumps(tree, protocol))
            assert said is not None
            assert said.startswith("asks for ")
            assert said.endswith(", which is neither array nor container; do not trust this file")
            assert not canary.exists()


def test_the_canary_sings(tmp_path):
    """That what was refused would have run."""
    for name in ("os.system", "subprocess.call"):
        canary = tmp_path / name
        pickle.loads(pickle.dumps(gadgets(canary)[name]))
        assert canary.exists()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def named(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


RECONSTRUCT = named("numpy._core.multiarray", "_reconstruct")
EMPTY = RECONSTRUCT + named("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
DTYPE = named("numpy", "dtype") + text("f4") + b"\x89\x88\x87R"


def array(shape: bytes, data: bytes) -> bytes:
    """The opcodes of an array of NumPy."""
    return EMPTY + b"(K\x01" + shape + DTYPE + b"\x89" + data + b"tb"


def laughs(make: bytes, key: bytes = b"") -> bytes:
    """Containers of ten references to the one before, thirty deep."""
    parts = [b"\x80\x04K\x01\x940"]
    for i in range(30):
        pairs = b"".join(key[:1] + bytes([j]) * len(key[:1]) + b"h" + bytes([i]) for j in range(10))
        parts.append(b"(" + pairs + make + b"\x940")
    return b"".join(parts) + b"h\x1e."


FOUR = b"C\x04abcd"
HUGE = struct.pack("<Q", 1 << 40)
HOSTILE = {
    "nothing": (b"", "is empty"),
    "text": (b"hello, world", "no pickle"),
    "zip": (b"PK\x03\x04 torch\n", "uses PERSID"),
    "stop alone": (b"\x80\x04.", "no pickle"),
    "two values": (b"\x80\x04NN.", "no pickle"),
    "trailing": (b"\x80\x04N.N.", "goes on for 2 bytes"),
    "persistent id": (b"\x80\x04Pname\n.", "uses PERSID"),
    "binary persistent id": (b"\x80\x04" + text("a") + b"Q.", "uses BINPERSID"),
    "extension 1": (b"\x80\x04\x82\x01.", "uses EXT1"),
    "extension 2": (b"\x80\x04\x83\x01\x01.", "uses EXT2"),
    "extension 4": (b"\x80\x04\x84\x01\x01\x01\x01.", "uses EXT4"),
    "instance": (b"(S'touch x'\nios\nsystem\n.", "uses STRING"),
    "instance of a class": (b"(ios\nsystem\n.", "uses INST"),
    "object": (b"(cos\nsystem\no.", "asks for os.system"),
    "object of a class": (b"(cnumpy\nndarray\no.", "uses OBJ"),
    "new with keywords": (named("numpy", "ndarray") + b")}\x92.", "uses NEWOBJ_EX"),
    "new array": (named("numpy", "ndarray") + b")\x81.", "neither array nor container"),
    "buffer outside": (b"\x80\x05\x97.", "uses NEXT_BUFFER"),
    "set": (pickle.dumps({1, 2}, 4), "uses EMPTY_SET"),
    "frozen set": (pickle.dumps(frozenset({1}), 4), "uses FROZENSET"),
    "old set": (pickle.dumps({1, 2}, 2), "asks for __builtin__.set"),
    "complex": (pickle.dumps(1j, 4), "asks for builtins.complex"),
    "bytearray": (pickle.dumps(bytearray(b"a"), 5), "bytearray by itself"),
    "objects": (pickle.dumps(np.array([{}, []], object), 4), "array of O8"),
    "records": (pickle.dumps(np.zeros(2, "i4,f4"), 4), "array of V8"),
    "dates": (pickle.dumps(np.zeros(2, "M8[s]"), 4), "array of M8"),
    "texts in an array": (pickle.dumps(np.array(["ab"]), 4), "array of U2"),
    "matrix": (pickle.dumps(np.ma.ones(2), 4), "asks for numpy.ma"),
    "subclass": (pickle.dumps(np.zeros(2).view(np.recarray), 4), "asks for numpy"),
    "objects by state": (array(b"K\x01\x85", b"]") + b".", "no type or content"),
    "name as value": (named("numpy", "ndarray") + b".", "holds numpy.ndarray itself"),
    "dtype as value": (pickle.dumps(np.dtype("f4"), 4), "dtype"),
    "type called": (named("builtins", "int") + text("1") + b"\x85R.", "calls builtins.int"),
    "array called": (named("numpy", "ndarray") + b"K\x01\x85\x85R.", "calls numpy.ndarray"),
    "call of a list": (b"\x80\x04]K\x01\x85R.", "calls what is no function"),
    "call with a list": (named("numpy", "dtype") + b"]R.", "calls what is no function"),
    "encode into a file": (
        named("_codecs", "encode") + text("a") + text("zlib") + b"\x86R.",
        "calls _codecs.encode",
    ),
    "ordered from a list": (
        named("collections", "OrderedDict") + b"]\x85R.",
        "calls collections.OrderedDict",
    ),
    "state of a list": (b"\x80\x04]}b.", "sets the state of what has none"),
    "state of a dict": (b"\x80\x04}}b.", "sets the state of what has none"),
    "state of a name": (named("numpy", "ndarray") + b"}b.", "sets the state of what has none"),
    "state twice": (array(b"K\x01\x85", FOUR) + b"(K\x01K\x01\x85NNNtb.", "no pickle"),
    "nested global": (named("numpy.ndarray", "tofile") + b".", "asks for numpy.ndarray.tofile"),
    "dotted name": (named("numpy", "f2py.os.system") + b".", "asks for numpy.f2py.os.system"),
    "ugly name": (named("a\nb\x1b[31m", "é\u202e") + b".", r"asks for a\nb\x1b[31m.é\u202e"),
    "long name": (b"c" + b"a" * 9999 + b"\nb\n.", "asks for aaa"),
    "global of numbers": (b"\x80\x04K\x01K\x02\x93.", "no pickle"),
    "reference to nothing": (b"\x80\x04h\x05.", "no pickle"),
    "append to nothing": (b"\x80\x04K\x01a.", "no pickle"),
    "append to a tuple": (b"\x80\x04)K\x01a.", "no pickle"),
    "items without mark": (b"\x80\x04]e.", "no pickle"),
    "odd items": (b"\x80\x04}(K\x01u.", "no pickle"),
    "tuple over a mark": (b"\x80\x04K\x01(\x85.", "no pickle"),
    "list as key": (b"\x80\x04}]Ns.", "has a key"),
    "long number as key": (b"\x80\x04}\x8a\x09" + b"\x01" * 9 + b"Ns.", "has a key"),
    "tuple of tuples as key": (b"\x80\x04}))\x86Ns.", "has a key"),
    # Sizes.
    "wrong shape": (array(b"K\x02\x85", FOUR) + b".", "declares 8 bytes but holds 4"),
    "no numbers": (array(b"K\x00\x85", FOUR) + b".", "declares 0 bytes but holds 4"),
    "negative shape": (array(b"J\xff\xff\xff\xff\x85", FOUR) + b".", "impossible shape"),
    "huge shape": (array(b"\x8a\x08" + b"\x7f" * 8 + b"\x85", FOUR) + b".", "impossible shape"),
    "empty and huge": (
        array(b"(K\x00" + 9 * (b"\x8a\x06" + b"\xff" * 5 + b"\x7f") + b"t", b"C\x00") + b".",
        "no pickle",
    ),
    "many axes": (array(b"(" + b"K\x01" * 70 + b"t", FOUR) + b".", "no shape"),
    "shape of a float": (array(b"G?\xf0\x00\x00\x00\x00\x00\x00\x85", FOUR) + b".", "impossible"),
    "shape of nothing": (array(b"N", FOUR) + b".", "no shape"),
    "content of a text": (array(b"K\x01\x85", text("abcd")) + b".", "no type or content"),
    "no content": (EMPTY + b".", "array has no shape"),
    "bytes that are not there": (b"\x80\x04\x8e" + HUGE + b"abc.", "is cut off"),
    "text that is not there": (b"\x80\x04\x8d" + HUGE + b"abc.", "is cut off"),
    "bytearray that is not there": (b"\x80\x05\x96" + HUGE + b"abc.", "is cut off"),
    "more bytes than memory": (b"\x80\x04\x8e" + b"\xff" * 8 + b".", "no pickle"),
    "number that is not there": (b"\x80\x04\x8b\xff\xff\xff\x7f.", "is cut off"),
    "number of negative length": (b"\x80\x04\x8b\xff\xff\xff\xff.", "no pickle"),
    "old text of negative length": (b"\x80\x02T\xff\xff\xff\xff.", "no pickle"),
    "number of many digits": (b"L" + b"9" * 5000 + b"L\n.", "no pickle"),
    # What grows.
    "list within itself": (b"\x80\x04]\x94h\x00a.", "lies within itself"),
    "dict within itself": (b"\x80\x04}\x94K\x01h\x00s.", "lies within itself"),
    "tuple within itself": (b"\x80\x04]\x94h\x00\x85a.", "lies within itself"),
    "deep lists": (b"]" * 1000 + b"a" * 999 + b".", "nested more than 100 deep"),
    "deep tuples": (b")" + b"\x85" * 2500 + b".", "nested more than 100 deep"),
    "deep dicts": (b"}" + b"N}" * 900 + b"s" * 900 + b".", "nested more than 100 deep"),
    "laughs of lists": (laughs(b"l"), "repeats its parts"),
    "laughs of tuples": (laughs(b"t"), "repeats its parts"),
    "laughs of dicts": (laughs(b"d", b"K"), "repeats its parts"),
    "laughs as key": (laughs(b"t")[:-1] + b"}h\x1eNs.", "has a key"),
    "laughs as type": (
        laughs(b"t")[:-1] + named("numpy", "dtype") + b"h\x1e\x89\x88\x87R.",
        "calls numpy.dtype",
    ),
    "many opcodes": (b"N" * 300_000 + b".", "has more than 3000 opcodes"),
    "many dicts": (b"}\x94" * 150_000 + b".", "has more than 3000 opcodes"),
}
HARMLESS = {
    "memo far away": (b"\x80\x04Nr\xff\xff\xff\x7f.", None),
    "memo far away in text": (b"Np" + b"9" * 4000 + b"\n.", None),
    "one text encoded often": (
        text("x" * 100_000)
        + b"\x940("
        + 200 * (named("_codecs", "encode") + b"h\x00" + text("latin1") + b"\x86R")
        + b"l.",
        [b"x" * 100_000] * 200,
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_at_little_cost(refusal, monkeypatch, name):
    data, expected = HOSTILE[name]
    monkeypatch.setattr(pickles, "_STEPS_MOST", 3000)
    tracemalloc.start()
    said = refusal(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert said is not None
    assert expected in said
    assert peak < 200_000 + 500 * 3000


@pytest.mark.parametrize("name", HARMLESS)
def test_what_would_cost_others_much_costs_little(read, name):
    data, expected = HARMLESS[name]
    tracemalloc.start()
    got = read(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert got == expected
    assert peak < 5_000_000


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_cut_anywhere_it_is_refused(refusal, protocol):
    data = pickle.dumps(plain_tree(), protocol)
    for size in sorted(random.Random(protocol).sample(range(len(data)), 30)):
        said = refusal(data[:size])
        assert said is not None
        assert said.endswith("; fetch it again")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_with_a_bit_flipped_it_is_refused_or_opens(refusal, protocol):
    tree = {"a": np.zeros(1, np.float32), "b": [jnp.ones(1)], "c": {"d": 1.5, "e": (None, b"f")}}
    data, draw = pickle.dumps(tree, protocol), random.Random(protocol)
    said = []
    for _ in range(80):
        place, bit = draw.randrange(len(data)), draw.randrange(8)
        flipped = bytearray(data)
        flipped[place] ^= 1 << bit
        said.append(refusal(bytes(flipped)))
    assert sum(each is not None for each in said) > 25


def test_files_that_are_none(tmp_path):
    for path, fault in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError, match=f"^{path} cannot be read: {fault}.*give another file$"):
            read_pickle(path)
