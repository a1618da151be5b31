"""Word splits of byte-level BPE, by the names that llama.cpp gives them in GGUF files."""

from collections.abc import Mapping, Sequence
from typing import Any

from lwm.errors import UserError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The words of Llama 3."""
_QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

# Each split divides the pieces of the one before it. The first name of a line is the best known;
# llama.cpp splits the others exactly as that.
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")
_DIGIT = r"\p{N}"
_DIGITS = (_DIGIT, _GPT2)
_FAMILIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("default", _DEFAULT),
    (
        "gpt-2 phi-2 gigachat a.x-4.0 mellum exaone4 mpt olmo jais trillion granite-docling "
        "jina-es jina-de jina-v2-es jina-v2-de modern-bert",
        (_GPT2,),
    ),
    ("smollm starcoder refact command-r codeshell exaone minerva-7b mellum2", _DIGITS),
    ("llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano", (LLAMA3,)),
    ("smaug-bpe dbrx glm4 chatglm-bpe", (LLAMA3,)),
    ("qwen2 deepseek-r1-qwen megrez kormo f2llmv2", (_QWEN2,)),
    ("stablelm2 hunyuan solar-open grok-2", (_QWEN2,)),
)
_FAMILY_OF = {
    name: (names.split()[0], splits) for names, splits in _FAMILIES for name in names.split()
}


def family_of(pre: str | None) -> str:
    """Returns the best known name of a split.

    Raises:
        UserError: It is unknown, or the file names none: llama.cpp then splits by a rule with which
            no model was trained.
    """
    if not pre:
        raise UserError(
            "the GGUF tokenizer does not say how it splits words: tokenizer.ggml.pre is missing; "
            "convert the model again, or add it: gguf-new-metadata --pre-tokenizer NAME IN OUT"
        )
    if pre not in _FAMILY_OF:
        known = ", ".join(FAMILIES)
        raise UserError(
            f"the GGUF tokenizer splits words as {pre!r}; supported: {known}, and what llama.cpp "
            "splits as one of these"
        )
    return _FAMILY_OF[pre][0]


def families_of(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the best known names of the splits that a pre-tokenizer may be, by its settings.

    Their texts are divided alike; they differ in what is done before and after.
    """
    patterns: list[str] = []
    for step in steps:
        match step:
            case {"type": "Split", "pattern": {"Regex": str(pattern)}} if _isolates(step):
                patterns.append(pattern)
            case {"type": "Digits", "individual_digits": True}:
                patterns.append(_DIGIT)
            case {"type": "ByteLevel", "add_prefix_space": False}:
                patterns += [_GPT2] if step["use_regex"] else []
            case _:
                return []
    return [names.split()[0] for names, splits in _FAMILIES if splits == tuple(patterns)]


def _isolates(step: Mapping[str, Any]) -> bool:
    """Returns whether a split keeps both the matches and the rest; its patterns match all text."""
    return (step["behavior"], step["invert"]) in (("Isolated", False), ("Removed", True))


FAMILIES = tuple(names.split()[0] for names, _ in _FAMILIES)
"""The best known names of all splits."""


def word_splitter(pre: str) -> Any:
    """Returns the `tokenizers` pre-tokenizer of a split, which spells bytes as letters as well."""
    return splitter(_FAMILY_OF[pre][1])


def splitter(patterns: tuple[str, ...]) -> Any:
    """Returns the pre-tokenizer of patterns, each of which divides the pieces of the one before."""
    from tokenizers import Regex, pre_tokenizers

    splits = [
        pre_tokenizers.Digits(individual_digits=True)
        if each == _DIGIT
        else pre_tokenizers.Split(Regex(each), behavior="isolated")
        for each in patterns
    ]
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, spell])
