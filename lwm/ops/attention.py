"""The attention that everything trains and prefills with, over a table of implementations."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from lwm.ops import blockwise, reference
from lwm.ops.mask import Mask

Blocks = tuple[int, int]
"""The queries and the keys of a tile."""


class Implementation(NamedTuple):
    """One way to attend on one device, forwards and backwards.

    `fwd(q, k, v, mask) -> (out, lse)` and `bwd(q, k, v, out, lse, dout, mask) -> (dq, dk, dv)`
    return float32; natural logarithms; -inf where a query sees no key. `out` and `lse` that `bwd`
    is given may cover more keys than `k` holds, as they do in a ring. Both take `blocks` if the
    implementation works in tiles.
    """

    fwd: Callable[..., tuple[Array, Array]]
    bwd: Callable[..., tuple[Array, Array, Array]]
    refuses: Callable[[Array, Array, Array], str | None]
    """Says why some inputs cannot be taken; None: they can."""


def _never(q, k, v):
    return None


IMPLEMENTATIONS = {
    "blockwise": Implementation(blockwise.fwd, blockwise.bwd, _never),
    "reference": Implementation(reference.attention, reference.attention_grads, _never),
}


def choose(
    q: Float[Array, "B S N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    *,
    implementation: str | None = None,
) -> str:
    """Returns the name of the first implementation that accepts the inputs, or the one named.

    Raises:
        ValueError: None does; the reason of each.
    """
    names = IMPLEMENTATIONS if implementation is None else [implementation]
    reasons = []
    for name in names:
        reason = _refusal(name, q, k, v)
        if reason is None:
            return name
        reasons.append(f"{name}: {reason}")
    raise ValueError("no implementation of attention takes these inputs: " + "; ".join(reasons))


def attention(
    q: Float[Array, "B S N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    mask: Mask,
    *,
    implementation: str | None = None,
    blocks: Blocks | None = None,
) -> Float[Array, "B S N H"]:
    """Attends to the keys of the same segment whose index is not later; segment -1 is empty.

    Works on what one device holds; `ring_attention` spreads rows over a mesh.
    """
    name = choose(q, k, v, implementation=implementation)
    return _attention(q, k, v, mask, name, blocks)


def save(out: Array, lse: Array) -> tuple[Array, Array]:
    """Names what a remat policy should keep, or attention runs again in the backward pass."""
    return checkpoint_name(out, "attention_out"), checkpoint_name(lse, "attention_lse")


def kernel(name: str, which: str, blocks: Blocks | None) -> Callable:
    """Returns `fwd` or `bwd` of an implementation, with its tiles chosen if they are given."""
    function = getattr(IMPLEMENTATIONS[name], which)
    return function if blocks is None else partial(function, blocks=blocks)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(q, k, v, mask, name, blocks):
    return _forward(q, k, v, mask, name, blocks)[0]


def _forward(q, k, v, mask, name, blocks):
    out, lse = kernel(name, "fwd", blocks)(q, k, v, mask)
    out, lse = save(out.astype(q.dtype), lse)
    return out, (q, k, v, out, lse, mask)


def _backward(name, blocks, saved, dout):
    q, k, v, out, lse, mask = saved
    grads = kernel(name, "bwd", blocks)(q, k, v, out, lse, dout, mask)
    return *(grad.astype(x.dtype) for grad, x in zip(grads, (q, k, v), strict=True)), None


_attention.defvjp(_forward, _backward)


def _refusal(name, q, k, v):
    """Says why an implementation cannot be used, the faults of the inputs themselves first."""
    if name not in IMPLEMENTATIONS:
        return f"unknown, there are {', '.join(IMPLEMENTATIONS)}"
    if q.shape[2] % k.shape[2]:
        return f"{q.shape[2]} query heads do not divide over {k.shape[2]} key heads"
    if not q.dtype == k.dtype == v.dtype:
        return f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}, not of one type"
    return IMPLEMENTATIONS[name].refuses(q, k, v)
