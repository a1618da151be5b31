"""Added tokens that a chat template writes itself, so that what users type must not yield them."""

import re
from collections.abc import Collection, Iterable

# Other added tokens, such as words and runs of spaces, are text also where a template writes them.
_CONTROL_LIKE = re.compile(r"(?=.*\w)(?=.*[^\w\s]).{3,}", re.DOTALL)
_TAG = re.compile(r"</?([\w.:-]+)>")
_ROLES = ("system", "user", "assistant", "tool")
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>", "<|end_of_text|>")
"""Ends of turns of instruction-tuned models; some configs name only the end of a document."""


def written(names: Collection[str], template: str) -> set[str]:
    """Returns the names that a template writes, whole or around a role."""
    return {name for name in like(names) if _writes(template, name)}


def like(names: Iterable[str]) -> set[str]:
    """Returns the names that look like those of control tokens."""
    return {name for name in names if _CONTROL_LIKE.fullmatch(name)}


def _writes(template: str, name: str) -> bool:
    if name in template:
        return True
    # Such as `'<|' + message.role + '|>'`.
    around = [name.partition(role)[::2] for role in _ROLES if role in name]
    return any(all(part and part in template for part in parts) for parts in around)


def tags(names: Collection[str]) -> set[str]:
    """Returns the names that mark up answers in pairs, such as `<think>` and `</think>`.

    A model writes these in its answers, too, and templates search them there.
    """
    inside = {name: match[1] for name in names if (match := _TAG.fullmatch(name))}
    return {name for name, tag in inside.items() if {f"<{tag}>", f"</{tag}>"} <= set(names)}
