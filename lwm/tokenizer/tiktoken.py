"""Llama 3's `tokenizer.model`, a tiktoken file: on each line a token in base64 and its rank."""

import base64
import binascii
import re
from collections.abc import Mapping
from pathlib import Path

from lwm.errors import UserError
from lwm.tokenizer.backends import FastTokenizer, byte_letters
from lwm.tokenizer.splits import LLAMA3, splitter

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
_SIZE = 128_000
_NUM_SPECIAL = 256
_SPECIAL = (
    BOS,
    EOS,
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
)
"""Names of Llama 3.1 and later; Llama 3 has some of them, with the same ids."""
_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\s")


def is_tiktoken(data: bytes) -> bool:
    """Returns whether the bytes are those of a tiktoken file."""
    return _LINE.match(data) is not None


def read_tiktoken(
    file: Path, data: bytes, *, named: Mapping[str, int], vocab_size: int | None
) -> FastTokenizer:
    """Builds Llama 3's tokenizer: its own split, and 256 special tokens after the others.

    Args:
        file: The name in messages.
        data: The content of the file.
        named: Special tokens that a config names, in place of those of Llama 3.1.
        vocab_size: The number of ids of the Llama beside the file, if there is one.

    Raises:
        UserError: The file is damaged, or not Llama 3's: it does not say how it splits words.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors

    ranks = _ranks(file, data)
    if len(ranks) not in (_SIZE, (vocab_size or 0) - _NUM_SPECIAL):
        raise UserError(
            f"{file} is a tiktoken file of {len(ranks):,} tokens, not that of Llama 3, which has "
            f"{_SIZE:,}: how it splits words is unknown; give the model's tokenizer.json"
        )
    letters = byte_letters()
    spelt = {token: "".join(letters[byte] for byte in token) for token in ranks}
    model = models.BPE(
        vocab={spelt[token]: rank for token, rank in ranks.items()},
        merges=_merges(ranks, spelt),
        ignore_merges=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = splitter((LLAMA3,))
    tokenizer.decoder = decoders.ByteLevel()
    names = _special_names(len(ranks), named)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    bos = names[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[bos, "$A"], pair=[bos, "$A", bos, "$B"], special_tokens=[(bos, len(ranks))]
    )
    return FastTokenizer(tokenizer)


def _special_names(first: int, named: Mapping[str, int]) -> list[str]:
    spare = (f"<|reserved_special_token_{i}|>" for i in range(2, _NUM_SPECIAL))
    given = {number: name for name, number in named.items()}
    own = [*_SPECIAL, *spare][:_NUM_SPECIAL]
    return [given.get(first + place, name) for place, name in enumerate(own)]


def _ranks(file: Path, data: bytes) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    try:
        for line in data.split(b"\n"):
            if line.strip():
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (ValueError, binascii.Error):
        ranks = {}
    # A file cut short lacks ranks at the end, and a damaged one bytes or some rank.
    whole = sorted(ranks.values()) == list(range(len(ranks)))
    if not whole or any(bytes([byte]) not in ranks for byte in range(256)):
        raise UserError(f"{file} is a corrupted tiktoken file: not one token and its rank per line")
    return ranks


def _merges(ranks: Mapping[bytes, int], spelt: Mapping[bytes, str]) -> list[tuple[str, str]]:
    """Returns the pairs that give each token, by its rank: tiktoken merges to the lowest rank."""
    found: list[tuple[str, str]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        halves = ((token[:at], token[at:]) for at in range(1, len(token)))
        pairs = [pair for pair in halves if pair[0] in ranks and pair[1] in ranks]
        pairs.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        found += [(spelt[left], spelt[right]) for left, right in pairs]
    return found
