"""Conversations as training examples: token ids, and the loss mask of the assistant's answers."""

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from lwm.errors import UserError
from lwm.tokenizer.markers import VisionMarkers
from lwm.tokenizer.message import Message
from lwm.tokenizer.template import MessageLike, chat_parts, insert_visions
from lwm.tokenizer.tokenizer import Tokenizer

Parts = Sequence[str | int]


def chat_ids(
    messages: Sequence[MessageLike],
    tokenizer: Tokenizer,
    *,
    template: str | None = None,
    marks: VisionMarkers | None = None,
    variables: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Returns the ids of a conversation, and which belong to answers to train on.

    An answer runs from the end of its prompt to the end of its turn, included. Empty answers, and
    those whose message says so, are not trained on.

    Args:
        template: See `render_chat`.
        marks: The ids around images and videos, if the model reads vision.
        variables: Variables of the template, such as `tools`.

    Raises:
        UserError: The messages are malformed, there is no answer to train on, or the template does
            not write an answer right after its prompt.
    """
    tokenizer = tokenizer.under(template)
    said = [Message.of(message) for message in messages]
    render = functools.partial(
        chat_parts, tokenizer=tokenizer, template=template, variables=variables
    )
    if said and said[0].role == "assistant":
        raise UserError("the conversation starts with the assistant; put a user message first")
    turns = [
        turn
        for turn, message in enumerate(said)
        if message.role == "assistant" and message.learn and not message.is_empty
    ]
    if not turns:
        raise UserError("the conversation has no answer of the assistant to train on")
    whole = render(said, add_generation_prompt=False)
    ids = np.asarray(tokenizer.encode_parts(whole), np.int32)
    place = _places(whole, ids)
    prompts = [render(said[:turn]) for turn in turns]
    starts = [_start(*each, whole) for each in zip(turns, prompts, strict=True)]
    ends = _ends(turns, starts, whole, said, tokenizer, render)
    mask = np.zeros(len(ids), bool)
    for prompt, start, end in zip(prompts, starts, ends, strict=True):
        mask[_tokens_before(prompt, start, ids, place, tokenizer) : place[end] + 1] = True
    ids, counts = insert_visions(ids, said, marks)
    return ids, np.repeat(mask, counts)


def _places(parts: Parts, ids: Int[np.ndarray, " n"]) -> dict[int, int]:
    """Returns the token index of each part that is an id: text never yields such an id."""
    given = {number: part for number, part in enumerate(parts) if isinstance(part, int)}
    found = np.flatnonzero(np.isin(ids, list(given.values())))
    assert ids[found].tolist() == list(given.values())
    return dict(zip(given, found.tolist(), strict=True))


def _start(turn: int, prompt: Parts, whole: Parts) -> int:
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


def _ends(
    turns: Sequence[int],
    starts: Sequence[int],
    whole: Parts,
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    render: Callable[..., Parts],
) -> list[int]:
    """Returns the part that ends each answer.

    The first end of a turn may be that of the user's next message. Only the conversation up to
    the answer shows this; it is rendered once for all answers followed by the same roles and as
    many ends.
    """

    def ends_in(parts: Parts, start: int) -> list[int]:
        return [n for n in range(start, len(parts)) if parts[n] in tokenizer.eos_ids]

    found, checked = [], set()
    following = zip([*turns[1:], len(messages)], [*starts[1:], len(whole)], strict=True)
    for turn, start, (next_turn, stop) in zip(turns, starts, following, strict=True):
        ends = ends_in(whole[:stop], start)
        roles = tuple(message.role for message in messages[turn + 1 : next_turn])
        if ends and roles and (roles, len(ends)) not in checked:
            checked.add((roles, len(ends)))
            answered = render(messages[: turn + 1], add_generation_prompt=False)
            ends = ends if ends_in(answered, start) else []
        if not ends:
            raise UserError(f"the chat template does not end the turn of message {turn}")
        found.append(ends[0])
    return found


def _tokens_before(
    prompt: Parts,
    part: int,
    ids: Int[np.ndarray, " n"],
    place: dict[int, int],
    tokenizer: Tokenizer,
) -> int:
    """Counts the tokens before an answer that starts in a part.

    A token that is half prompt, half answer belongs to the answer.
    """
    context = [i for i in prompt[max(0, part - 1) : part] if isinstance(i, int)]
    first = place[part - 1] + 1 if context else 0
    lead = tokenizer.encode_parts([*context, *prompt[part:]])[len(context) :]
    there = ids[first : first + len(lead)]
    same = there == np.asarray(lead[: len(there)], np.int32)
    return first + (int(np.argmin(same)) if not same.all() else len(there))
