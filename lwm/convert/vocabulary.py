"""Checks that a tokenizer is that of a model."""

from pathlib import Path

from lwm.errors import UserError
from lwm.tokenizer.markers import CLOSING, OPENING
from lwm.tokenizer.tokenizer import Tokenizer
from lwm.tokens import TokenSpace

_LLAMA2_MARKS = {OPENING: [529, 4924, 29958], CLOSING: [1533, 4924, 29958]}


def require_tokens(source: Path, tokenizer: Tokenizer, tokens: TokenSpace, *, is_lwm: bool) -> None:
    """Refuses a tokenizer that is not the model's.

    Args:
        source: The model, for messages.
        tokenizer: The tokenizer.
        tokens: The model's ids.
        is_lwm: Whether the files are of the original LWM.

    Raises:
        UserError: It has other ids, or cannot write the markers of images.
    """
    if tokenizer.vocab_size > tokens.text:
        raise UserError(
            f"{source}: the tokenizer has {tokenizer.vocab_size} tokens but the model only "
            f"{tokens.text}; they are of different models"
        )
    if not tokens.vision:
        return
    for mark, llama2 in _LLAMA2_MARKS.items():
        ids = tokenizer.encode(mark)
        if tokenizer.decode(ids, skip_special=False) != mark:
            raise UserError(
                f"{source}: the tokenizer cannot write {mark}, which images stand between; "
                "give the model's own tokenizer"
            )
        if is_lwm and tokens.text == 32_000 and ids != llama2:
            raise UserError(
                f"{source}: the tokenizer writes {mark} as {ids}, but the model was trained "
                f"with {llama2}; give LLaMA-2's tokenizer.model"
            )
