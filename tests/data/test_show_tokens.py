"""Training examples on a page: tokens, and which of them the loss covers."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lwm.data.example import Example
from lwm.data.show_tokens import show_tokens
from lwm.errors import UserError
from lwm.tokens import TokenSpace


@dataclasses.dataclass(frozen=True)
class Shown:
    """Shows examples of a tokenizer, and returns the page."""

    tokenizer: Any
    tokens: TokenSpace
    page: Path

    def __call__(self, *given, examples: Any = None, count: int = 16) -> str:
        examples = list(given) if examples is None else examples
        show_tokens(examples, self.tokenizer, self.tokens, self.page, title="a set", count=count)
        return self.page.read_text()


@pytest.fixture
def shown(byte_tokenizer, tmp_path):
    tokens = TokenSpace.of(byte_tokenizer.vocab_size, 4)
    return Shown(byte_tokenizer, tokens, tmp_path / "page.html")


def example(ids, trained, name="a.jsonl, line 1"):
    return Example(ids=np.array(ids, np.int32), loss_mask=np.array(trained, bool), name=name)


def spans(page):
    return re.findall(r'<span class="(\w+(?: trained)?)" title="([^"]*)">([^<]*)</span>', page)


def test_tokens_of_the_loss_are_marked_and_frames_are_one(shown):
    text, space = shown.tokenizer.encode("a<b"), shown.tokens
    codes = [space.text, space.text + 3, space.end_of_frame, space.text + 1, space.end_of_vision]
    ids = [*text, *codes]
    page = shown(example(ids, [False, True, True, *[True] * 5]))
    assert spans(page) == [
        ("text", f"id {text[0]}, position 0", "a"),
        ("text trained", f"id {text[1]}, position 1", "&lt;"),
        ("text trained", f"id {text[2]}, position 2", "b"),
        ("vision trained", "positions 3 to 4", "▦ 2 codes"),
        ("control trained", f"id {space.end_of_frame:,}, position 5", "⟨end of frame⟩"),
        ("vision trained", "positions 6 to 6", "▦ 1 codes"),
        ("control trained", f"id {space.end_of_vision:,}, position 7", "⟨end of vision⟩"),
    ]
    assert "8 tokens, 7 of them covered by the loss" in page
    assert "a.jsonl, line 1" in page


def test_long_examples_are_shortened_and_bad_ones_are_named(shown):
    class Examples(list):
        def __getitem__(self, number):
            if number == 1:
                raise UserError("a.jsonl, line 2: no text")
            return super().__getitem__(number)

    (letter,) = shown.tokenizer.encode("x")
    page = shown(examples=Examples([example([letter] * 4000, [True] * 4000), None]))
    found = spans(page)
    assert len(found) == 1501
    assert [text for kind, _, text in found if kind == "gap"] == ["… 2,500 tokens …"]
    assert found[-1][1].endswith("position 3,999")
    assert "4,000 tokens, 4,000 of them" in page
    assert "a.jsonl, line 2: no text" in page


def test_a_set_without_records_and_a_count_of_zero_are_refused(shown):
    with pytest.raises(UserError, match="a set has no records"):
        shown()
    with pytest.raises(UserError, match="count 0 must be at least 1"):
        shown(example([1], [True]), count=0)
