"""Conversations about long documents: neighbouring chunks, then the questions about them."""

import dataclasses
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lwm.synth.qa.chunks import Chunk
from lwm.synth.qa.pairs import Pair
from lwm.tokenizer.template import render_chat
from lwm.tokenizer.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversation:
    """A document, or a part of it, and the questions about it in some order."""

    chunks: Sequence[Chunk]
    pairs: Sequence[Pair]
    tokens: int

    @property
    def record(self) -> dict[str, Any]:
        """A record of training data, with the loss on the answers alone."""
        first = self.chunks[0]
        return {
            "messages": _messages(self.chunks, self.pairs),
            "document": first.name,
            "first_chunk": first.number,
            "chunks": len(self.chunks),
            "tokens": self.tokens,
        }


def conversations(
    chunks: Sequence[Chunk],
    pairs: Mapping[tuple[int, int], Pair],
    tokenizer: Tokenizer,
    *,
    length: int,
    seed: int,
) -> Iterator[Conversation]:
    """Joins neighbouring chunks as far as they fit a length with their questions.

    Chunks without a pair are text like the others; a conversation without any pair is left out.

    Args:
        chunks: All chunks, in order.
        pairs: Pairs by document and number of the chunk.
        tokenizer: Tokenizer and chat template of the model to be trained.
        length: Tokens of a conversation, at most.
        seed: Seed of the order of the questions.
    """
    for _, grouped in itertools.groupby(chunks, lambda chunk: chunk.document):
        left = list(grouped)
        while left:
            made = _longest(left, pairs, tokenizer, length)
            left = left[len(made.chunks) :]
            if made.pairs and made.tokens <= length:
                first = made.chunks[0]
                order = random.Random(f"{seed}/{first.document}/{first.number}")
                asked = order.sample(made.pairs, len(made.pairs))
                yield dataclasses.replace(made, pairs=asked)


def _longest(
    chunks: Sequence[Chunk],
    pairs: Mapping[tuple[int, int], Pair],
    tokenizer: Tokenizer,
    length: int,
) -> Conversation:
    """Returns the conversation about as many of the first chunks as fit, one at least."""

    def about(count: int) -> Conversation:
        taken = chunks[:count]
        keys = ((chunk.document, chunk.number) for chunk in taken)
        found = [pairs[key] for key in keys if key in pairs]
        return Conversation(
            chunks=taken, pairs=found, tokens=_count(_messages(taken, found), tokenizer)
        )

    best = about(1)
    step = 1  # it grows while chunks fit, and then shrinks
    while step and best.tokens <= length:
        count = min(len(best.chunks) + step, len(chunks))
        made = about(count) if count > len(best.chunks) else best
        if made is not best and made.tokens <= length:
            best, step = made, 2 * step
        else:
            step //= 2
    return best


def _count(messages: Sequence[dict[str, str]], tokenizer: Tokenizer) -> int:
    return len(render_chat(messages, tokenizer, add_generation_prompt=False))


def _messages(chunks: Sequence[Chunk], pairs: Sequence[Pair]) -> list[dict[str, str]]:
    text = "\n\n".join(chunk.text for chunk in chunks)
    messages = []
    for number, pair in enumerate(pairs):
        asked = pair.question if number else f"{text}\n\n{pair.question}"
        messages += [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": pair.answer},
        ]
    return messages or [{"role": "user", "content": text}]
