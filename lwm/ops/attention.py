"""The attention that everything trains and prefills with, over a table of implementations."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float

from lwm.ops import reference
from lwm.ops.blockwise import blockwise
from lwm.ops.mask import Mask


class Implementation(NamedTuple):
    """One way to attend, and why it cannot take some inputs (None: it can)."""

    attend: Callable[..., Array]
    refuses: Callable[[Array, Array, Array], str | None]


def _never(q, k, v):
    return None


def _reference(q, k, v, mask):
    return reference.attention(q, k, v, mask)[0]


IMPLEMENTATIONS = {
    "blockwise": Implementation(blockwise, _never),
    "reference": Implementation(_reference, _never),
}


def attention(
    q: Float[Array, "B S N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    mask: Mask,
    *,
    implementation: str | None = None,
) -> Float[Array, "B S N H"]:
    """Attends to the keys of the same segment whose index is not later; segment -1 is empty.

    Takes the first implementation that accepts the inputs, or only the one named.
    """
    names = IMPLEMENTATIONS if implementation is None else [implementation]
    reasons = []
    for name in names:
        reason = _refusal(name, q, k, v)
        if reason is None:
            return IMPLEMENTATIONS[name].attend(q, k, v, mask)
        reasons.append(f"{name}: {reason}")
    raise ValueError("no implementation of attention takes these inputs: " + "; ".join(reasons))


def _refusal(name, q, k, v):
    """Says why an implementation cannot be used, the faults of the inputs themselves first."""
    if name not in IMPLEMENTATIONS:
        return f"unknown, there are {', '.join(IMPLEMENTATIONS)}"
    if q.shape[2] % k.shape[2]:
        return f"{q.shape[2]} query heads do not divide over {k.shape[2]} key heads"
    if not q.dtype == k.dtype == v.dtype:
        return f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}, not of one type"
    return IMPLEMENTATIONS[name].refuses(q, k, v)
