"""RingAttention (Liu, Zaharia and Abbeel 2023, arXiv 2310.01889) over the mesh axis `sp`.

Each device keeps its queries, while keys and values travel around the ring: while a device attends
to one part, the next part arrives, so that no device ever holds more than two parts. Everything
saved for the backward pass is local: q, k, v, the output and its log-sum-exp. The backward pass
sends keys and values around once more, together with the gradients accumulated for them.

The mask of the keys travels with them, so any order and packing of a row works, and tiles without
a visible pair are skipped on every device.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P, reshard
from jaxtyping import Array, Float

from lwm.ops.attention import Blocks, choose, kernel, save
from lwm.ops.mask import Mask
from lwm.sharding import BATCH, HEADS, TOKENS, manual

AXIS = "sp"
_LSE = P(BATCH, AXIS, "tp")


def ring_attention(
    q: Float[Array, "B S N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Mask,
    *,
    implementation: str | None = None,
    blocks: Blocks | None = None,
) -> Float[Array, "B S N H"]:
    """Attends over rows that are split over `sp`, under the mesh in use.

    Args:
        q: Queries; as for keys and values, heads are split over `tp`.
        k: Keys.
        v: Values.
        mask: Mask of whole rows; its indexes are the order in which rows are laid out
            (`lwm.ops.layout`).
        implementation: Implementation of attention between two parts, see `lwm.ops.attention`.
        blocks: Size of its tiles.

    Raises:
        ValueError: No implementation accepts the inputs, or the one named does not.
    """
    is_ring = jax.sharding.get_abstract_mesh().shape[AXIS] > 1
    kind = "parts" if is_ring else mask.kind
    name = choose(q, k, v, kind=kind, implementation=implementation)
    q, k, v = (reshard(x, HEADS) for x in (q, k, v))
    return _ring(q, k, v, _spread(mask, TOKENS), name, blocks)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _ring(q, k, v, mask, name, blocks):
    return _forward(q, k, v, mask, name, blocks)[0]


def _forward(q, k, v, mask, name, blocks):
    def local(q, k, v, mask):
        attend = kernel(name, "fwd", blocks, halves=_has_halves(q))
        if lax.axis_size(AXIS) == 1:
            return attend(q, k, v, mask)

        def visit(part, state):
            k, v, k_index, k_segments = part
            seen = mask._replace(k_index=k_index, k_segments=k_segments)
            return _merge(*state, *attend(q, k, v, seen))

        nothing = jnp.zeros(q.shape, jnp.float32), jnp.full(q.shape[:3], -jnp.inf)
        return _travel((k, v, mask.k_index, mask.k_segments), nothing, visit)

    mapped = manual(local, (HEADS, HEADS, HEADS, _mask_specs(TOKENS)), (HEADS, _LSE))
    out, lse = mapped(q, k, v, mask)
    out, lse = save(out.astype(q.dtype), lse)
    return out, (q, k, v, out, lse, mask)


def _backward(name, blocks, saved, dout):
    def local(q, k, v, out, lse, dout, mask):
        differentiate = kernel(name, "bwd", blocks, halves=_has_halves(q))

        def visit(part, state):
            k, v, k_index, k_segments = part
            seen = mask._replace(k_index=k_index, k_segments=k_segments)
            dq, dk, dv = differentiate(q, k, v, out, lse, dout, seen)
            # The gradients travel with their keys, and are back at home after the last step.
            return state[0] + dq, _pass_on(state[1] + dk), _pass_on(state[2] + dv)

        if lax.axis_size(AXIS) == 1:
            grads = differentiate(q, k, v, out, lse, dout, mask)
        else:
            zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
            grads = _travel((k, v, mask.k_index, mask.k_segments), zeros, visit)
        return tuple(grad.astype(x.dtype) for grad, x in zip(grads, (q, k, v), strict=True))

    *tensors, mask = saved
    specs = (HEADS, HEADS, HEADS, HEADS, _LSE, HEADS, _mask_specs(TOKENS))
    mapped = manual(local, specs, (HEADS, HEADS, HEADS))
    return *mapped(*tensors, reshard(dout, HEADS), mask), None


_ring.defvjp(_forward, _backward)


def _mask_specs(segments):
    return Mask._make((P(AXIS), P(AXIS), segments, segments))


def _spread(mask, segments):
    return Mask._make(map(reshard, mask, _mask_specs(segments)))


def _travel(part, state, visit):
    """Calls `visit(part, state)` once for the part of each device, its own part first."""

    def step(carry, _):
        part, state = carry
        # Sent before it is used here, so that communication and computation overlap.
        coming = jax.tree.map(_pass_on, part)
        return (coming, visit(part, state)), None

    (part, state), _ = lax.scan(step, (part, state), length=lax.axis_size(AXIS) - 1)
    return visit(part, state)


def _pass_on(x):
    n = lax.axis_size(AXIS)
    return lax.ppermute(x, AXIS, [(i, (i + 1) % n) for i in range(n)])


def _merge(out, lse, new_out, new_lse):
    """Combines attention to two sets of keys, each normalised by its own sum."""
    both = jnp.logaddexp(lse, new_lse)
    # A row that has seen no key yet has -inf - -inf here.
    level = jnp.where(both == -jnp.inf, 0, both)
    old, new = jnp.exp(lse - level)[..., None], jnp.exp(new_lse - level)[..., None]
    return out * old + new_out * new, both


def _has_halves(q):
    """Tests if a part has two halves, as in zigzag layout, that tiles should not cross."""
    return lax.axis_size(AXIS) > 1 and q.shape[1] % 2 == 0
