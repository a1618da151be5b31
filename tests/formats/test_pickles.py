"""Pickles: every protocol read as Python does, and hostile or damaged files refused in one line."""

import builtins
import collections
import functools
import io
import os
import pickle
import random
import subprocess
import tracemalloc

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lwm.errors import UserError
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
