import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lwm.model.config import BITS
from lwm.model.linear import linear
from lwm.model.quantize import GROUP, QuantizedWeight, quantize_to
from lwm.ops.cpu.stored import MOST_ROWS
from lwm.sharding import make_mesh, put

SHAPES = ((37, 83), (192, 64), (32, 21), (1, 5), (24, 1))
"""Terms of a sum and columns: no whole vectors, only such, and the smallest."""


def stored(weight: np.ndarray, kind: str):
    if kind in BITS:
        return QuantizedWeight(*jax.tree.map(jnp.asarray, quantize_to(BITS[kind], weight, (0,))))
    if kind in GGUF:
        return any_of_gguf(kind, *weight.shape)
    dtype, _, transposed = kind.partition(" ")
    return jnp.asarray(weight.T if transposed else weight, dtype)


def any_of_gguf(kind: str, depth: int, width: int) -> QuantizedWeight:
    """Random bits as levels, and scales and minimums, where GGUF's type has them."""
    rng, groups = np.random.default_rng(1), (depth // GROUP, width)
    levels = rng.integers(0, 256, (depth // 2, width), np.uint8)
    scale, minimum = rng.normal(size=(2, *groups)).astype(np.float16)
    high = rng.integers(0, 1 << 32, groups, np.uint32)
    arrays = levels, scale, minimum if "1" in kind else None, high if "5" in kind else None
    return QuantizedWeight(*jax.tree.map(jnp.asarray, arrays))


def uses_kernel(multiply, *inputs) -> bool:
    return "lwm_product" in jax.jit(multiply).lower(*inputs).as_text()


PLAIN = "float32", "float32 transposed", "bfloat16", "bfloat16 transposed"
GGUF = "q4_1", "q5_0", "q5_1"


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        *((kind, shape) for kind in (*BITS, "bfloat16", "bfloat16 transposed") for shape in SHAPES),
        *((kind, shape) for kind in GGUF for shape in SHAPES[1:3]),
        *((kind, SHAPES[0]) for kind in PLAIN[:2]),
    ],
)
def test_products_equal_plain_jax_and_do_not_depend_on_company(kind, shape):
    rng, transposed = np.random.default_rng(0), kind.endswith("transposed")
    weight = stored(rng.normal(size=shape).astype(np.float32), kind)
    x = jnp.asarray(rng.normal(size=(MOST_ROWS, 1, shape[0])), jnp.float32)
    wide = np.asarray(weight.astype(jnp.float32), np.float64)
    wide = wide.T if transposed else wide

    def multiply(x):
        return linear(x, weight, transposed=transposed)

    with jax.set_mesh(make_mesh()):
        assert uses_kernel(multiply, x)
        whole = np.asarray(multiply(x))
        exact = np.asarray(x, np.float64)
        summed = np.abs(exact) @ np.abs(wide)
        assert np.abs(whole - exact @ wide).max() < 1e-6 * summed.max()
        # Each number of rows is compiled anew.
        for rows in range(1, MOST_ROWS) if shape == SHAPES[0] else (1, 6):
            some = np.asarray(multiply(x[-rows:]))
            np.testing.assert_array_equal(some, whole[-rows:])


@pytest.mark.parametrize("kind", [*BITS, *GGUF])
@pytest.mark.parametrize("shape", [(320, 83), (37, 64), (64, 5)])
def test_many_rows_are_multiplied_without_widening_the_weight(kind, shape):
    if kind in GGUF and shape[0] % GROUP:
        pytest.skip("its groups do not fit")
    rng, weight = (
        np.random.default_rng(0),
        stored(np.random.default_rng(1).normal(size=shape), kind),
    )
    x = rng.normal(size=(2, 20, shape[0])).astype(np.float32)
    wide = np.asarray(weight.astype(jnp.float32), np.float64)
    with jax.set_mesh(make_mesh()):
        assert uses_kernel(linear, jnp.asarray(x), weight)
        found = np.asarray(linear(jnp.asarray(x), weight))
        np.testing.assert_array_equal(
            np.asarray(linear(jnp.asarray(x[:, 3:]), weight)), found[:, 3:]
        )
    assert np.abs(found - x @ wide).max() < 1e-6 * (np.abs(x) @ np.abs(wide)).max()


def test_many_rows_are_multiplied_by_xla_where_weights_are_not_of_few_bits():
    weight = jnp.zeros((64, 64), jnp.bfloat16)
    with jax.set_mesh(make_mesh()):
        for rows in (MOST_ROWS, MOST_ROWS + 1):
            x = jnp.zeros((1, rows, 64), jnp.bfloat16)
            assert uses_kernel(linear, x, weight) == (rows == MOST_ROWS)


@pytest.mark.parametrize("mesh_text", ["1,1,1,1", "2,2,2,1"])
def test_heads_and_their_sum_may_be_split_over_devices(mesh_text):
    rng, mesh = np.random.default_rng(0), make_mesh(mesh_text)
    into, out = rng.normal(size=(32, 4, 6)), rng.normal(size=(4, 6, 32))
    x = rng.normal(size=(4, 1, 32)).astype(np.float32)

    def place(weight, contracted, spec):
        values, scale, *_ = quantize_to(8, weight, contracted)
        return QuantizedWeight(put(values, mesh, spec), put(scale, mesh, P(None, *spec[1:])))

    with jax.set_mesh(mesh):
        first = place(into, (0,), P("fsdp", "tp", None))
        second = put(out.astype(jnp.bfloat16), mesh, P("tp", None, "fsdp"))
        rows = P(("dp", "fsdp"), None, None)

        def multiply(x, first, second):
            return linear(linear(x, first), second, out_sharding=rows)

        inputs = put(x, mesh, rows), first, second
        assert uses_kernel(multiply, *inputs)
        found = np.asarray(jax.jit(multiply)(*inputs))
    wide = np.asarray(first.astype(jnp.float32), np.float64)
    wanted = np.einsum("bsd,dnh,nho->bso", x, wide, np.asarray(second, np.float64))
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_gradients_are_those_of_plain_jax(monkeypatch):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 1, 16)), jnp.bfloat16)
    weight = jnp.asarray(rng.normal(size=(16, 8)), jnp.bfloat16)

    def gradients():
        with jax.set_mesh(make_mesh()):
            return jax.grad(lambda *xs: linear(*xs).astype(jnp.float32).sum(), (0, 1))(x, weight)

    found = gradients()
    monkeypatch.setenv("LWM_CPU_KERNELS", "0")
    for one, other in zip(found, gradients(), strict=True):
        np.testing.assert_array_equal(one, other)
