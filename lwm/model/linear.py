"""Linear layer: the product of activations with a weight, summed in float32."""

import equinox as eqx
import jax
from jax import lax
from jax.sharding import PartitionSpec as P, get_abstract_mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from lwm.model.quantize import QuantizedWeight
from lwm.ops.cpu.linear import contract
from lwm.ops.cpu.stored import multiply_stored


class LoRAWeight(eqx.Module):
    """A weight with a low-rank adapter: W + scale · a b, see `lwm.model.lora`."""

    weight: Float[Array, "..."] | QuantizedWeight
    a: Float[Array, "..."]
    """Of shape `*C r`."""
    b: Float[Array, "..."]
    """Of shape `r *O`."""
    scale: float = eqx.field(static=True)


def linear(
    x: Float[Array, "B S *C"],
    weight: Float[Array, "..."] | QuantizedWeight | LoRAWeight,
    *,
    bias: Float[Array, "*O"] | None = None,
    transposed: bool = False,
    dtype: DTypeLike | None = None,
    out_sharding: P | None = None,
) -> Float[Array, "B S *O"]:
    """Sums over the dimensions `*C` that `x` has after the sequence.

    Args:
        x: Activations.
        weight: Of shape `*C *O` and any type; it is cast to that of `x`.
        bias: Added to the result.
        transposed: The weight has the shape `*O *C` instead, and C is one dimension.
        dtype: Type of the result; by default, that of `x`.
        out_sharding: Sharding of the result, if it does not follow from the inputs.
    """
    if isinstance(weight, LoRAWeight):
        rows = None if out_sharding is None else P(*out_sharding[:2], None)
        low = linear(x, weight.a, out_sharding=rows)
        change = weight.scale * linear(low, weight.b, dtype=dtype, out_sharding=out_sharding)
        whole = linear(x, weight.weight, dtype=dtype, out_sharding=out_sharding) + change
        return whole if bias is None else whole + bias.astype(whole.dtype)

    # A quantised weight consists of several arrays.
    parts, whole = jax.tree.flatten(weight)

    def plain(x, *parts):
        weight = jax.tree.unflatten(whole, parts)
        if isinstance(weight, QuantizedWeight):
            weight = weight.astype(x.dtype)
            if not transposed:
                weight = _own_rows(weight, x.shape[2])
        return contract(
            x, weight, transposed=transposed, dtype=dtype or x.dtype, out_sharding=out_sharding
        )

    y = multiply_stored(plain, x, *parts, transposed=transposed, out_sharding=out_sharding)
    return y if bias is None else y + bias.astype(y.dtype)


def _own_rows(weight: Float[Array, "..."], count: int) -> Float[Array, "..."]:
    """Returns the rows of a weight that are this device's own.

    Each device has all rows where the groups of them that share a scale do not divide over `tp`.
    """
    if weight.shape[0] == count or not get_abstract_mesh().manual_axes:
        return weight
    return lax.dynamic_slice_in_dim(weight, lax.axis_index("tp") * count, count)
