"""The product of activations with a weight, summed in float32 whatever they are stored in."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lwm.model.quantize import QuantizedWeight
from lwm.ops.cpu.product import product

FEW = 4
"""XLA on CPU has fast bfloat16 products from two rows on, and up to four they cost the same."""


def linear(
    x: Float[Array, "B S *C"],
    weight: Float[Array, "..."] | QuantizedWeight,
    *,
    bias: Float[Array, "*O"] | None = None,
    transposed: bool = False,
    dtype: DTypeLike | None = None,
    out_sharding: P | None = None,
) -> Float[Array, "B S *O"]:
    """Sums over the dimensions `*C` that `x` has after the sequence.

    Args:
        x: Activations.
        weight: Of shape `*C *O` and any type; it is used in that of `x`.
        bias: Added to the result.
        transposed: The weight is of shape `*O *C` instead, and C is one dimension.
        dtype: The type of the result, if not that of `x`.
        out_sharding: Where the result lies, if that does not follow from the inputs.
    """
    if isinstance(weight, QuantizedWeight):
        weight = weight.astype(x.dtype)
    # Merged first: XLA lowers a product that sums over two dimensions with a transpose.
    summed = x.ndim - 2
    x = x.reshape(*x.shape[:2], -1)
    if summed > 1:
        weight = weight.reshape(-1, *weight.shape[summed:])
    multiply = _multiply if transposed else _multiply_whole_gradients
    y = multiply(x, weight, transposed, jnp.dtype(dtype or x.dtype), out_sharding)
    return y if bias is None else y + bias.astype(y.dtype)


def _multiply(
    x: Array, weight: Array, transposed: bool, dtype: jnp.dtype, out_sharding: P | None
) -> Array:
    multiply = partial(
        jnp.einsum,
        "bsc,oc->bso" if transposed else "bsc,c...->bs...",
        preferred_element_type=dtype,
        out_sharding=out_sharding,
    )
    weight = weight.astype(x.dtype)
    if x.dtype == jnp.float32:
        return multiply(x, weight)
    on_cpu = partial(_on_cpu, multiply)
    return jax.lax.platform_dependent(x, weight, cpu=on_cpu, default=multiply)


# Left to itself, JAX asks for the gradient of the weight in the transposed form. XLA on CPU then
# writes the gradient of the result a second time by columns, which takes longer than the product.
_multiply_whole_gradients = jax.custom_vjp(_multiply, nondiff_argnums=(2, 3, 4))


def _forward(x, weight, *rest):
    return _multiply(x, weight, *rest), (x, weight)


def _backward(transposed, dtype, out_sharding, saved, dy):
    del transposed, dtype, out_sharding
    x, weight = saved
    there = jax.typeof(weight).sharding.spec
    dy = dy.reshape(*dy.shape[:2], -1).astype(x.dtype)
    columns = weight.astype(x.dtype).reshape(weight.shape[0], -1)
    spec = jax.typeof(columns).sharding.spec
    dx = product("bso,co->bsc", dy, columns, aligned=True, out_sharding=jax.typeof(x).sharding.spec)
    dweight = product("bsc,bso->co", x, dy, out_sharding=spec)
    dweight = jnp.reshape(dweight, weight.shape, out_sharding=there)
    return dx.astype(x.dtype), dweight.astype(weight.dtype)


_multiply_whole_gradients.defvjp(_forward, _backward)


def _on_cpu(multiply: partial, x: Array, weight: Array) -> Array:
    """Asks for the one form of the product for which XLA uses the processor's matrix units."""
    rows, length = x.shape[:2]
    if rows * length < FEW:
        x = jnp.pad(x, ((0, 0), (0, FEW - length), (0, 0)))
    wide = multiply(x, weight, preferred_element_type=jnp.float32)
    return wide[:, :length].astype(multiply.keywords["preferred_element_type"])
