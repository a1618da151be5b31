"""Product of activations with a weight, in the form that XLA on CPU computes fast."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lwm.ops.cpu.product import product
from lwm.ops.precision import precision_of

MIN_ROWS = 4
"""XLA on CPU has fast bfloat16 products for two rows and more; up to four they cost the same."""


def contract(
    x: Float[Array, "B S *C"],
    weight: Float[Array, "..."],
    *,
    transposed: bool,
    dtype: DTypeLike,
    out_sharding: P | None,
) -> Float[Array, "B S *O"]:
    """Sums over the dimensions `*C`; see `lwm.model.linear.linear` for the arguments."""
    # Merged first: XLA lowers a product that sums over two dimensions with a transpose.
    summed = x.ndim - 2
    x = x.reshape(*x.shape[:2], -1)
    if summed > 1:
        weight = weight.reshape(-1, *weight.shape[summed:])
    multiply = _multiply if transposed else _multiply_whole_gradients
    return multiply(x, weight, transposed, jnp.dtype(dtype), out_sharding)


def _multiply(
    x: Array, weight: Array, transposed: bool, dtype: jnp.dtype, out_sharding: P | None
) -> Array:
    weight = weight.astype(x.dtype)
    multiply = partial(
        jnp.einsum,
        "bsc,oc->bso" if transposed else "bsc,c...->bs...",
        precision=precision_of(x, weight),
        preferred_element_type=dtype,
        out_sharding=out_sharding,
    )
    if x.dtype == jnp.float32:
        return multiply(x, weight)
    on_cpu = partial(_on_cpu, multiply)
    return jax.lax.platform_dependent(x, weight, cpu=on_cpu, default=multiply)


# JAX's own rule computes the gradient of the weight in transposed form. XLA on CPU then writes the
# gradient of the result a second time by columns, which takes longer than the product.
_multiply_whole_gradients = jax.custom_vjp(_multiply, nondiff_argnums=(2, 3, 4))


def _forward(x, weight, *rest):
    return _multiply(x, weight, *rest), (x, weight)


def _backward(transposed, dtype, out_sharding, saved, dy):
    del transposed, dtype, out_sharding
    x, weight = saved
    spec = jax.typeof(weight).sharding.spec
    dy = dy.reshape(*dy.shape[:2], -1).astype(x.dtype)
    columns = weight.astype(x.dtype).reshape(weight.shape[0], -1)
    dx = product("bso,co->bsc", dy, columns, aligned=True, out_sharding=jax.typeof(x).sharding.spec)
    column_spec = jax.typeof(columns).sharding.spec
    dweight = product("bsc,bso->co", x, dy, out_sharding=column_spec)
    dweight = jnp.reshape(dweight, weight.shape, out_sharding=spec)
    return dx.astype(x.dtype), dweight.astype(weight.dtype)


_multiply_whole_gradients.defvjp(_forward, _backward)


def _on_cpu(multiply: partial, x: Array, weight: Array) -> Array:
    """Computes the product in the one form for which XLA uses the processor's matrix units."""
    rows, length = x.shape[:2]
    if rows * length < MIN_ROWS:
        x = jnp.pad(x, ((0, 0), (0, MIN_ROWS - length), (0, 0)))
    wide = multiply(x, weight, preferred_element_type=jnp.float32)
    return wide[:, :length].astype(multiply.keywords["preferred_element_type"])
