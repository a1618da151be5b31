"""Hostile pickles: refused in one line, at little cost."""

import pickle
import struct
import tracemalloc

import numpy as np
import pytest

from lwm.formats import pickles


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
RECORD = named("ml_collections.config_dict.config_dict", "ConfigDict") + b")\x81"
FROZEN = named("flax.core.frozen_dict", "FrozenDict")
NEW = named("copyreg", "_reconstructor")
LONG = text("\u0101" * 100_000)
FIELDS = text("_fields")
DOUBLED = b")" + b"2\x86" * 60
HOSTILE |= {
    "text of 2^32": (b"X\xff\xff\xff\xffabc.", "is cut off"),
    "old text of 2^31": (b"T\xff\xff\xff\x7fabc.", "is cut off"),
    "bytes of 2^32": (b"B\xff\xff\xff\xffabc.", "is cut off"),
    "bytearray of 2^64": (b"\x96" + b"\xff" * 8 + b".", "is cut off"),
    "line without end": (b"V" + b"a" * 100_000, "is cut off"),
    "negative memo": (b"Np-1\n.", "no pickle"),
    "memo of many digits": (b"Np" + b"9" * 9000 + b"\n.", "no pickle"),
    "marks": (b"(" * 2900 + b".", "no pickle"),
    "value below a mark": (b"N(N.", "no pickle"),
    "global of texts and None": (text("numpy") + b"N\x93.", "no pickle"),
    "global of bytes": (b"C\x05numpyC\x05dtype\x93.", "no pickle"),
    "global of names": (named("numpy", "dtype") + b"2\x93.", "no pickle"),
    "call with a long text": (FROZEN + LONG + b"R.", "calls what is no function"),
    "new with a long text": (FROZEN + LONG + b"\x81.", "calls what is no function"),
    "call of a result": (FROZEN + b")R)R.", "calls what is no function"),
    "new of new": (NEW + NEW + b"NN\x87R.", "calls copyreg._reconstructor"),
    "array of a dtype": (
        RECONSTRUCT + named("numpy", "dtype") + b"K\x00\x85C\x01b\x87R.",
        "calls numpy._core.multiarray._reconstruct",
    ),
    "new of a list": (NEW + b"]NN\x87R.", "no pickle"),
    "new type": (named("builtins", "object") + b")\x81.", "calls builtins.object"),
    "doubled tuples as key": (b"}" + DOUBLED + b"Ns.", "has a key"),
    "doubled tuples in a set of items": (b"(" + DOUBLED + b"Nd.", "has a key"),
    "doubled tuples as shape": (array(DOUBLED, FOUR) + b".", "impossible shape"),
    "doubled tuples as text": (
        named("_codecs", "encode") + DOUBLED + text("latin1") + b"\x86R.",
        "calls _codecs.encode",
    ),
    "doubled tuples as state": (DTYPE + b"(NNNNN" + DOUBLED + b"tb.", "are no numbers"),
    "array as key": (b"}" + EMPTY + b"Ns.", "has a key"),
    "record as key": (b"}" + RECORD + b"Ns.", "has a key"),
    "name as key": (b"}" + named("numpy", "dtype") + b"Ns.", "has a key"),
    "bytearray as key": (b"}\x96" + bytes(8) + b"Ns.", "has a key"),
    "long text as key": (b"}" + text("x" * 5000) + b"Ns.", "has a key"),
    "item of a list": (b"]NaK\x00Ns.", "no pickle"),
    "item of a bytearray": (b"\x96\x01" + bytes(8) + b"K\x00K\x01s.", "no pickle"),
    "append to a text": (text("a") + b"Na.", "no pickle"),
    "append to a name": (named("numpy", "dtype") + b"(NNe.", "no pickle"),
    "attribute of a record": (RECORD + b"}" + text("content") + b"Nsb.", "no pickle"),
    "attributes of a record": (RECORD + b"N}" + text("content") + b"Ns\x86b.", "computed"),
    "state of a number": (DTYPE + b"K\x01b.", "no pickle"),
    "record without state": (RECORD + b".", "no pickle"),
    "record of others": (RECORD + b"}" + text("_ops") + b"]Nasb.", "computed from others"),
    "record within itself": (
        RECORD + b"\x94}" + FIELDS + b"h\x00sb.",
        "lies within itself",
    ),
    "dict of records within itself": (
        b"}\x94" + text("a") + RECORD + b"}" + FIELDS + b"h\x00sbs.",
        "lies within itself",
    ),
    "many times within itself": (b"]\x94(" + b"h\x00" * 100 + b"e.", "lies within itself"),
    "shape within itself": (EMPTY + b"\x94(K\x01h\x00" + DTYPE + b"\x89C\x00tb.", "no shape"),
    "content within itself": (array(b"K\x01\x85", b"h\x00") + b".", "no pickle"),
    "type within itself": (EMPTY + b"\x94(K\x01)h\x00\x89C\x00tb.", "no type or content"),
    "shape of 2^1504": (
        array(b"(" + 32 * (b"\x8a\x06" + bytes(5) + b"\x7f") + b"t", FOUR) + b".",
        "no pickle",
    ),
    "state of jax cut short": (
        named("jax._src.array", "_reconstruct_array") + b"(" + RECONSTRUCT + b"NK\x01\x85NtR.",
        "no shape",
    ),
}
HARMLESS = {
    "memo far away": (b"\x80\x04Nr\xff\xff\xff\x7f.", None),
    "memo far away in text": (b"Np" + b"9" * 4000 + b"\n.", None),
    "memos far away": (
        b"N"
        + b"".join(b"r" + struct.pack("<I", 2**32 - 1 - 2**20 * i) for i in range(2900))
        + b".",
        None,
    ),
    "frames of any length": (
        b"\x95" + b"\xff" * 8 + b"]\x95" + bytes(8) + b"\x95" + HUGE + b"Na.",
        [None],
    ),
    "chain of calls": (FROZEN * 600 + b"}" + b"\x85R" * 600 + b".", {}),
    "dict copied often": (
        b"}\x94("
        + b"".join(b"M" + struct.pack("<H", i) + b"N" for i in range(2000))
        + b"u0h\x000"
        + 2000 * (FROZEN + b"h\x00\x85R0")
        + b"N.",
        None,
    ),
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
