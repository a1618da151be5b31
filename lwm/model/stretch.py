"""RoPE's base for longer contexts: LWM's table, and the NTK rule."""

from typing import Literal

from lwm.errors import UserError

Stretch = Literal["lwm", "ntk", "none"]

LWM_THETAS = {
    4_096: 1e4,
    32_768: 1e6,
    131_072: 1e7,
    262_144: 1e7,
    524_288: 2.5e7,
    1_048_576: 5e7,
}
"""Base of each context of LWM's stages (Liu et al. 2024, table 11), with Llama 2's before them."""


def stretched_theta(
    rule: Stretch, context: int, *, theta: float, trained: int, head_dim: int
) -> float:
    """Returns RoPE's base for a context.

    `lwm` is the entry of LWM's table for the next context that is as long. `ntk` keeps the slowest
    frequency's angle over the whole context: theta × s^(d / (d - 2)) for a context that is s times
    as long ("NTK-aware" scaling; Peng et al. 2023, arXiv 2309.00071, section 3.1). `none` keeps the
    base.

    Args:
        rule: The rule.
        context: Tokens of the longer context.
        theta: The base before.
        trained: Tokens of the context before.
        head_dim: d, the dimensions of a head.

    Raises:
        UserError: The table ends before this context, or heads have two dimensions.
    """
    if rule == "none":
        return theta
    if rule == "ntk":
        if head_dim <= 2:
            raise UserError("the NTK rule needs heads of more than 2 dimensions; give --theta")
        return theta * max(1.0, context / trained) ** (head_dim / (head_dim - 2))
    for longest, known in LWM_THETAS.items():
        if context <= longest:
            return known
    raise UserError(
        f"LWM's table of theta ends at {longest:,} tokens, and the context is {context:,}; use "
        "--stretch ntk, or give --theta"
    )
