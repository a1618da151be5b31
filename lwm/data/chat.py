"""Conversations as examples: their ids, and which of them are learnt."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from lwm.errors import UserError
from lwm.tokenizer.markers import VisionMarkers
from lwm.tokenizer.message import Message
from lwm.tokenizer.template import Said, chat_parts, insert_visions
from lwm.tokenizer.tokenizer import Tokenizer

Parts = Sequence[str | int]


def chat_ids(
    messages: Sequence[Said],
    tokenizer: Tokenizer,
    *,
    template: str | None = None,
    marks: VisionMarkers | None = None,
) -> tuple[Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Returns the ids of a conversation, and which are the assistant's answers or end these.

    An answer runs from where a prompt for it would end to the end of its turn, that included.

    Args:
        messages: The turns.
        tokenizer: The model's.
        template: See `render_chat`.
        marks: What stands around images and videos, if the model sees any.

    Raises:
        UserError: The messages are malformed, none is the assistant's, or the template writes
            an answer in a conversation other than after the prompt for it.
    """
    said = [Message.of(message) for message in messages]
    whole = _parts(said, tokenizer, template, prompt=False)
    ids = np.asarray(tokenizer.encode_parts(whole), np.int32)
    place = _places(whole, ids)
    learn = np.zeros(len(ids), bool)
    for turn, message in enumerate(said):
        if message.role != "assistant":
            continue
        if turn == 0:
            raise UserError("the conversation starts with the assistant, who has nothing to answer")
        prompt = _parts(said[:turn], tokenizer, template, prompt=True)
        part = _continued(prompt, whole, turn)
        start = _tokens_before(prompt, part, ids, place, tokenizer)
        answered = _parts(said[: turn + 1], tokenizer, template, prompt=False)
        if _end(answered, part, tokenizer) is None or (end := _end(whole, part, tokenizer)) is None:
            raise UserError(f"the chat template does not end the turn of message {turn}")
        learn[start : place[end] + 1] = True
    if not learn.any():
        raise UserError("the conversation has no answer of the assistant to learn")
    ids, counts = insert_visions(ids, said, marks)
    return ids, np.repeat(learn, counts)


def _parts(
    messages: Sequence[Message], tokenizer: Tokenizer, template: str | None, *, prompt: bool
) -> Parts:
    return chat_parts(messages, tokenizer, template=template, add_generation_prompt=prompt)


def _places(parts: Parts, ids: Int[np.ndarray, " n"]) -> dict[int, int]:
    """Returns at which token each part that is an id stands: text never yields such an id."""
    given = {number: part for number, part in enumerate(parts) if isinstance(part, int)}
    found = np.flatnonzero(np.isin(ids, list(given.values())))
    assert ids[found].tolist() == list(given.values())
    return dict(zip(given, found.tolist(), strict=True))


def _continued(prompt: Parts, whole: Parts, turn: int) -> int:
    """Returns the part of the conversation in which an answer starts."""
    if not prompt:
        return 0
    *before, last = prompt
    if list(whole[: len(before)]) == before and len(whole) > len(before):
        there = whole[len(before)]
        if isinstance(last, str) and isinstance(there, str) and there.startswith(last):
            return len(before)
        if there == last:
            return len(prompt)
    raise UserError(
        f"the chat template does not write message {turn} after the prompt for it; "
        "give one that does, or only the last answer's turns"
    )


def _tokens_before(
    prompt: Parts,
    part: int,
    ids: Int[np.ndarray, " n"],
    place: dict[int, int],
    tokenizer: Tokenizer,
) -> int:
    """Counts the tokens before an answer that starts in a part.

    A token that is half prompt, half answer counts as the answer's.
    """
    context = [i for i in prompt[max(0, part - 1) : part] if isinstance(i, int)]
    first = place[part - 1] + 1 if context else 0
    lead = tokenizer.encode_parts([*context, *prompt[part:]])[len(context) :]
    there = ids[first : first + len(lead)]
    same = there == np.asarray(lead[: len(there)], np.int32)
    return first + (int(np.argmin(same)) if not same.all() else len(there))


def _end(parts: Parts, start: int, tokenizer: Tokenizer) -> int | None:
    """Returns the first part from `start` on that ends a turn."""
    ends = (n for n, part in enumerate(parts) if n >= start and part in tokenizer.eos_ids)
    return next(ends, None)
