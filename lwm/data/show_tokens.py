"""Writes a web page of training examples as tokens: those that the loss covers are marked."""

from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np

from lwm.data.example import Example
from lwm.data.stream import Examples
from lwm.errors import UserError
from lwm.files import write_bytes
from lwm.progress import Progress
from lwm.tokenizer.tokenizer import Tokenizer
from lwm.tokens import TokenSpace

_MOST = 1500
"""Tokens of an example on the page; of a longer one, its beginning and its end."""


class Span(NamedTuple):
    """A token on the page, or several that are shown as one."""

    text: str
    title: str
    """Ids and position."""
    kind: str
    """`text`, `control`, `vision` or `gap`."""
    trained: bool
    """True if the loss covers it."""


def show_tokens(
    examples: Examples,
    tokenizer: Tokenizer,
    tokens: TokenSpace,
    out: Path,
    *,
    title: str,
    count: int = 16,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Writes a page of examples, evenly spaced over a set; returns its path.

    Args:
        examples: The examples; those that cannot be read are on the page with the reason.
        tokenizer: Spells text tokens.
        tokens: The token space: text and vision.
        out: The page.
        title: Stands above.
        count: Examples on the page, at most.
        progress: Called with the number of examples done and their total.

    Raises:
        UserError: There is no example, or the page cannot be written.
    """
    if count < 1:
        raise UserError(f"count {count} must be at least 1")
    if not len(examples):
        raise UserError(f"{title} has no records")
    numbers = np.linspace(0, len(examples) - 1, min(count, len(examples))).astype(int).tolist()
    cards = []
    for done, number in enumerate(numbers, 1):
        try:
            example = examples[number]
        except UserError as error:
            cards.append({"name": f"record {number + 1:,}", "fault": str(error), "spans": []})
        else:
            cards.append(
                {
                    "name": example.name,
                    "fault": None,
                    "length": len(example),
                    "targets": int(example.loss_mask.sum()),
                    "spans": list(_spans(example, tokenizer, tokens)),
                }
            )
        progress(done, len(numbers))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lwm", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("tokens.html.j2").render(
        title=title, cards=cards, records=len(examples), today=date.today().isoformat()
    )
    write_bytes(out, page.encode(errors="replace"))
    return out


def _spans(example: Example, tokenizer: Tokenizer, tokens: TokenSpace) -> Iterator[Span]:
    size, half = len(example), _MOST // 2
    if size <= _MOST:
        yield from _of_range(example, range(size), tokenizer, tokens)
        return
    yield from _of_range(example, range(half), tokenizer, tokens)
    yield Span(f"… {size - 2 * half:,} tokens …", "not shown", "gap", trained=False)
    yield from _of_range(example, range(size - half, size), tokenizer, tokens)


def _of_range(
    example: Example, places: range, tokenizer: Tokenizer, tokens: TokenSpace
) -> Iterator[Span]:
    """Yields a span for each text token; the codes of a frame are one."""
    frame: list[int] = []
    controls = frozenset(tokenizer.backend.special.values())
    for place in places:
        token, trained = int(example.ids[place]), bool(example.loss_mask[place])
        if tokens.text <= token < tokens.end_of_frame:
            frame.append(place)
            continue
        if frame:
            yield _frame(frame, example)
            frame = []
        title = f"id {token:,}, position {place:,}"
        if token >= tokens.text:
            name = "end of vision" if token == tokens.end_of_vision else "end of frame"
            yield Span(f"⟨{name}⟩", title, "control", trained)
        elif token in controls:
            yield Span(tokenizer.backend.name(token) or "", title, "control", trained)
        else:
            yield Span(tokenizer.text_of(token), title, "text", trained)
    if frame:
        yield _frame(frame, example)


def _frame(places: Sequence[int], example: Example) -> Span:
    title = f"positions {places[0]:,} to {places[-1]:,}"
    trained = bool(example.loss_mask[places[0]])
    return Span(f"▦ {len(places):,} codes", title, "vision", trained)
