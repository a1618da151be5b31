"""Operations of training: by hand, against XLA's own count, and what devices can do."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.model.config import LlamaConfig, preset
from lwm.ops.ring import ring_attention
from lwm.plan.flops import (
    known_peak,
    matmul_parameters,
    peak_flops,
    training_flops,
)
from lwm.sharding import make_mesh
from lwm.tokens import TokenSpace


def test_by_hand():
    config = LlamaConfig(
        tokens=TokenSpace(text=100),
        dim=6,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=10,
        mlp_dim=7,
        max_context=8,
    )
    layer = 6 * 40 + 2 * 6 * 20 + 40 * 6 + 3 * 6 * 7
    assert matmul_parameters(config) == 3 * layer + 6 * 128
    # Query times key and weight times value, forward and twice backward: 6 products of 10 numbers.
    assert training_flops(config, tokens=5, pairs=15.0) == (
        6 * 5 * (3 * layer + 6 * 128) + 15 * 3 * 4 * (6 * 2 * 10)
    )


def test_the_parameters_are_those_of_the_preset():
    config = preset("7b")
    norms = (2 * config.num_layers + 1) * config.dim
    table = config.dim * config.tokens.rows
    assert matmul_parameters(config) == 6_738_415_616 - norms - table


def cost(function, *arguments):
    found = jax.jit(function).lower(*arguments).compile().cost_analysis()
    assert found is not None
    return found["flops"]


def test_xla_counts_the_same(mesh, tiny, init, place, monkeypatch):
    """Within 8%: XLA counts softmax, norms, RoPE and the loss, too."""
    dense = functools.partial(ring_attention, implementation="reference")
    monkeypatch.setattr("lwm.model.layers.ring_attention", dense)
    config = tiny(num_layers=1, dim=64, num_kv_heads=4, head_dim=16, mlp_dim=128)
    model = init(config)
    given = place(mesh, np.zeros((2, 256)))
    # The reference multiplies the whole square, here half of all operations.
    expected = training_flops(config, tokens=2 * 256, pairs=2.0 * 256**2)
    forward = cost(lambda model, *given: model(*given), model, *given)
    assert expected / 3 < forward < 1.08 * expected / 3
    both = cost(jax.grad(lambda model, *given: jnp.sum(model(*given) ** 2)), model, *given)
    assert expected < both < 1.08 * expected


@pytest.mark.parametrize(
    ("kind", "bfloat16", "float32"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5, 67),
        ("NVIDIA H100 PCIe", 756.5, 51),
        ("NVIDIA H200", 989.5, 67),
        ("NVIDIA H200 NVL", 835.5, 60),
        ("NVIDIA A100-SXM4-40GB", 312, 19.5),
        ("TPU v5 lite", 197, 197 / 6),
        ("TPU v6 lite", 918, 153),
        ("TPU v4", 275, 275 / 6),
        ("TPU v4 lite", None, None),
        ("NVIDIA RTX A1000", None, None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None, None),
    ],
)
def test_peaks_are_looked_up_by_name(kind, bfloat16, float32):
    wanted = (None if peak is None else pytest.approx(peak * 1e12) for peak in (bfloat16, float32))
    assert (known_peak(kind, "bfloat16"), known_peak(kind, "float32")) == tuple(wanted)


def test_a_processor_is_measured_once_and_shared():
    with jax.set_mesh(make_mesh("1,2,2,2")):
        peaks = [peak_flops(device, "float32") for device in jax.devices()]
    assert len(set(peaks)) == 1
    assert peaks[0] is not None
    x = np.ones((256, 256), np.float32)
    seconds = []
    for _ in range(20):
        begun = time.perf_counter()
        x @ x
        seconds.append(time.perf_counter() - begun)
    # That library's small product is neither 20 times faster nor 1000 times slower.
    assert 0.05 < 8 * peaks[0] / (2 * 256**3 / min(seconds)) < 1000
