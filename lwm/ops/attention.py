"""Attention on one device: a table of implementations; the first that accepts the inputs runs."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from lwm.ops import blockwise, reference
from lwm.ops.mask import Mask, MaskKind

Blocks = tuple[int, int]
"""Queries and keys per tile."""


class Implementation(NamedTuple):
    """Forward and backward pass of attention on one device.

    `fwd(q, k, v, mask) -> (out, lse)` and `bwd(q, k, v, out, lse, dout, mask) -> (dq, dk, dv)`
    return float32. `lse` is the natural logarithm, -inf where a query sees no key. `out` and `lse`
    passed to `bwd` may cover more keys than `k` holds, as they do in a ring. Both take `blocks`,
    `halves` and `beside`, see `lwm.ops.blockwise`, if the implementation works in tiles.
    """

    fwd: Callable[..., Any]
    bwd: Callable[..., Any]
    refuses: Callable[[Array, Array, Array, MaskKind, str], str | None]
    """`refuses(q, k, v, kind, platform)` returns why it cannot run, or None if it can."""


def _never(*_: object) -> None:
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
    kind: MaskKind,
    implementation: str | None = None,
) -> str:
    """Returns the name of the first implementation that accepts the inputs, or the one named.

    Raises:
        ValueError: None accepts them; gives the reason of each.
    """
    names = IMPLEMENTATIONS if implementation is None else [implementation]
    platform, reasons = jax.default_backend(), []
    for name in names:
        reason = _refusal(name, q, k, v, kind, platform)
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

    Works on the arrays of one device; `ring_attention` works on rows that are split over a mesh.

    Raises:
        ValueError: No implementation accepts the inputs, or the one named does not.
    """
    name = choose(q, k, v, kind=mask.kind, implementation=implementation)
    return _attention(q, k, v, mask, name, blocks)


def save(out: Array, lse: Array) -> tuple[Array, Array]:
    """Names results for remat policies; unless saved, attention runs again in the backward pass."""
    return checkpoint_name(out, "attention_out"), checkpoint_name(lse, "attention_lse")


def kernel(name: str, which: str, blocks: Blocks | None, *, halves: bool = False) -> Callable:
    """Returns `fwd` or `bwd` of an implementation, with tiles of the given size, if any.

    `halves` asks for tiles that divide half a row, where they have no given size. The function
    takes `beside`, see `lwm.ops.blockwise.fwd`.
    """
    function = getattr(IMPLEMENTATIONS[name], which)
    if name != "blockwise":
        return partial(
            _with_beside, function if blocks is None else partial(function, blocks=blocks)
        )
    return partial(function, halves=halves) if blocks is None else partial(function, blocks=blocks)


def _with_beside(function: Callable[..., Any], *inputs: Any, beside: Any = None) -> Any:
    found = function(*inputs)
    return found if beside is None else lax.optimization_barrier((found, beside))


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


def _refusal(name, q, k, v, kind, platform):
    """Returns why an implementation cannot be used; errors of the inputs themselves come first."""
    if name not in IMPLEMENTATIONS:
        return f"unknown, there are {', '.join(IMPLEMENTATIONS)}"
    if q.shape[2] % k.shape[2]:
        return f"{q.shape[2]} query heads do not divide over {k.shape[2]} key heads"
    if not q.dtype == k.dtype == v.dtype:
        return f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}, not of one type"
    return IMPLEMENTATIONS[name].refuses(q, k, v, kind, platform)
