"""Slices of TPU by their names, and what compiling for them needs."""

import importlib.metadata
import importlib.util

import jax
import pytest

from lwm.errors import UserError
from lwm.plan.chips import CHIPS, read_slice
from lwm.plan.flops import known_peak


def test_slices_have_chips_and_memory():
    found = read_slice("v4:8x8x4")
    assert (found.count, found.chip.memory / 2**30) == (256, 30.75)
    assert read_slice("v5e:16x16").count == 256
    assert all(known_peak(chip.kind, "bfloat16") for chip in CHIPS.values())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("h100:8", r"'h100:8' is of no known TPU; give v4, v5e, v5p, v6e"),
        ("v4:8x8", r"'v4:8x8' cannot be read; give the chips along 3 sides, such as v4:8x8x4"),
        ("v5e:4x4x4", r"along 2 sides, such as v5e:8x8"),
        ("v6e", r"'v6e' cannot be read"),
        ("v4:0x2x2", r"'v4:0x2x2' cannot be read"),
    ],
)
def test_other_names_are_refused(text, says):
    with pytest.raises(UserError, match=says):
        read_slice(text)


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"libtpu, is not installed: pip install 'lwm\[tpu-plan\]'"):
        read_slice("v4:2x2x1").devices()


def test_a_compiler_of_another_version_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.7")
    with pytest.raises(UserError, match=rf"libtpu 0\.0\.7 .* JAX {jax.__version__} needs 0\.0\.\d"):
        read_slice("v4:2x2x1").devices()


@pytest.mark.tpu
@pytest.mark.parametrize("name", CHIPS)
def test_chips_are_one_device_each_of_the_memory_that_is_stated(name):
    """As the compiler says when a program exceeds it."""
    pytest.importorskip("libtpu")
    chip = CHIPS[name]
    there = read_slice(f"{name}:2x2{'x1' * (chip.sides - 2)}")
    devices = there.devices()
    assert len(devices) == there.count == 4
    place = jax.sharding.SingleDeviceSharding(devices[0])
    huge = jax.ShapeDtypeStruct((1 << 38,), jax.numpy.float32, sharding=place)
    with pytest.raises(
        jax.errors.JaxRuntimeError, match=rf"exceeds available HBM \({chip.memory / 2**30:.2f}G\)"
    ):
        jax.jit(lambda x: x + 1).lower(huge).compile()


@pytest.mark.tpu
def test_a_slice_that_cannot_be_is_refused():
    pytest.importorskip("libtpu")
    with pytest.raises(UserError, match=r"v4:3x5x1 cannot be described: .*not divisible"):
        read_slice("v4:3x5x1").devices()
