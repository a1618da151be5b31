"""RingAttention (Liu, Zaharia and Abbeel 2023, arXiv 2310.01889) over the mesh axis `sp`.

Each device keeps its queries, while keys and values travel around the ring: while a device attends
to one part, the next part arrives, so that no device ever holds more than two parts. Everything
saved for the backward pass is local: q, k, v, the output and its log-sum-exp. The backward pass
sends keys and values around once more, together with the gradients accumulated for them.

The mask of the keys travels with them, so any order and packing of a row works, and tiles without
a visible pair are skipped on every device.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P, reshard
from jaxtyping import Array, Float, Int

from lwm.ops.attention import Blocks, choose, kernel, save
from lwm.ops.mask import Mask
from lwm.sharding import BATCH, HEADS, TOKENS, manual

AXIS = "sp"
_LONG = 32 * 1024
"""Tokens of a part that are work enough with a single head."""
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

        def visit(part, beside=None):
            return attend(q, part.k, part.v, part.seen_by(mask), beside=beside)

        nothing = jnp.zeros(q.shape, jnp.float32), jnp.full(q.shape[:3], -jnp.inf)
        return _travel(_Part.own(k, v, mask), nothing, visit, _merge)

    mapped = manual(local, (HEADS, HEADS, HEADS, _mask_specs(TOKENS)), (HEADS, _LSE))
    out, lse = mapped(q, k, v, mask)
    out, lse = save(out.astype(q.dtype), lse)
    return out, (q, k, v, out, lse, mask)


def _backward(name, blocks, saved, dout):
    def local(q, k, v, out, lse, dout, mask):
        differentiate = kernel(name, "bwd", blocks, halves=_has_halves(q))

        def grads(q, k, v, out, lse, dout):
            if lax.axis_size(AXIS) == 1:
                found = differentiate(q, k, v, out, lse, dout, mask)
            else:
                ring = _BackwardRing(differentiate, (q, out, lse, dout), mask)
                found = ring(_Part.own(k, v, mask))
            return tuple(grad.astype(x.dtype) for grad, x in zip(found, (q, k, v), strict=True))

        each = grads if q.shape[1] < _LONG else _head_by_head(grads)
        return each(q, k, v, out, lse, dout)

    *tensors, mask = saved
    specs = (HEADS, HEADS, HEADS, HEADS, _LSE, HEADS, _mask_specs(TOKENS))
    mapped = manual(local, specs, (HEADS, HEADS, HEADS))
    return *mapped(*tensors, reshard(dout, HEADS), mask), None


_ring.defvjp(_forward, _backward)


def _mask_specs(segments):
    return Mask._make((P(AXIS), P(AXIS), segments, segments))


def _spread(mask, segments):
    return Mask._make(map(reshard, mask, _mask_specs(segments)))


class _Part(NamedTuple):
    """Keys and values of one device, on their way around the ring."""

    k: Array
    v: Array
    places: Int[Array, "B1 T"]
    """Indexes, and below them the segments of each row: XLA for TPUs sends few arrays at once."""

    @classmethod
    def own(cls, k: Array, v: Array, mask: Mask) -> "_Part":
        """Returns the part of this device."""
        return cls(k, v, jnp.concatenate([mask.k_index[None], mask.k_segments]))

    def seen_by(self, mask: Mask) -> Mask:
        """Returns the mask between the queries of a mask and these keys."""
        return mask._replace(k_index=self.places[0], k_segments=self.places[1:])


def _head_by_head(grads):
    """Differentiates one head of keys and values, and the queries that share it, after the other.

    Of long parts, the float32 gradients of all heads would take more memory than all else.
    """

    def run(q, k, *others):
        heads = k.shape[2]

        def apart(x):
            return jnp.moveaxis(x.reshape(*x.shape[:2], heads, -1, *x.shape[3:]), 2, 0)

        def together(x):
            x = jnp.moveaxis(x, 0, 2)
            return x.reshape(*x.shape[:2], -1, x.shape[-1])

        arrays = tuple(map(apart, (q, k, *others)))
        return tuple(map(together, lax.map(lambda one: grads(*one), arrays)))

    return run


def _travel(part, state, visit, add):
    """Adds to the state what `visit` finds in the part of each device, its own part first.

    `visit(part, beside)` also returns the next part, which comes meanwhile.
    """

    def step(carry, _):
        part, state = carry
        found, part = visit(part, _pass_on(part))
        return (part, add(state, found)), None

    (part, state), _ = lax.scan(step, (part, state), length=lax.axis_size(AXIS) - 1)
    return add(state, visit(part))


class _BackwardRing(NamedTuple):
    """Backward pass of one device: the gradients of keys and values follow them around the ring.

    A device passes on what it has received and added one step before, so that this transfer, too,
    has a step's time. The queries of its own part are split in two: the first half is worked on
    while the first part arrives, and the second, with its own keys, which have then been around,
    while their gradients come home.
    """

    differentiate: Callable[..., Any]
    """`bwd` of an implementation of attention, see `lwm.ops.attention`."""
    queries: tuple[Array, Array, Array, Array]
    """Queries, and their outputs, log-sum-exps and cotangents: B S …."""
    mask: Mask

    def __call__(self, own: _Part) -> tuple[Array, Array, Array]:
        """Returns dq, dk and dv, in float32."""
        length = self.queries[0].shape[1]
        half = -(-length // 2)
        (first, *grads), part = self.visit(own, _pass_on(own), slice(None, half))

        def step(carry, _):
            dq, *sent = carry
            (new, *added), (part, grads) = self.visit(sent[0], _pass_on(sent))
            return (dq + new, part, _sum(grads, added)), None

        start = jnp.zeros(self.queries[0].shape, jnp.float32), part, grads
        (dq, own, grads), _ = lax.scan(step, start, length=lax.axis_size(AXIS) - 1)
        if half == length:  # a single query has no second half
            return dq + first, *_pass_on(grads)
        (last, *added), grads = self.visit(own, _pass_on(grads), slice(half, None))
        return dq + jnp.concatenate([first, last], 1), *_sum(grads, added)

    def visit(self, part: _Part, beside: Any, some: slice = slice(None)) -> tuple[Any, Any]:
        """Returns what some queries and a part add to dq, dk and dv; and what comes meanwhile."""
        q, *others = (x[:, some] for x in self.queries)
        mask = self.mask._replace(
            q_index=self.mask.q_index[some], q_segments=self.mask.q_segments[:, some]
        )
        return self.differentiate(q, part.k, part.v, *others, part.seen_by(mask), beside=beside)


def _sum(grads, added):
    return [one + other for one, other in zip(grads, added, strict=True)]


def _pass_on(arrays):
    n = lax.axis_size(AXIS)
    return lax.ppermute(arrays, AXIS, [(i, (i + 1) % n) for i in range(n)])


def _merge(state, found):
    """Combines attention to two sets of keys, each normalised by its own sum."""
    (out, lse), (new_out, new_lse) = state, found
    both = jnp.logaddexp(lse, new_lse)
    # A row that has seen no key yet has -inf - -inf here.
    level = jnp.where(both == -jnp.inf, 0, both)
    old, new = jnp.exp(lse - level)[..., None], jnp.exp(new_lse - level)[..., None]
    return out * old + new_out * new, both


def _has_halves(q):
    """Tests if a part has two halves, as in zigzag layout, that tiles should not cross."""
    return lax.axis_size(AXIS) > 1 and q.shape[1] % 2 == 0
