"""Generated data sets: repeated ids, and numbers that are stated twice in excerpts of books."""

import re

import numpy as np
import pytest

from lwm.data.copies import Copies, CopySet
from lwm.data.format import ExampleFormat
from lwm.data.recalls import Recalls, RecallSet
from lwm.data.sets import open_set, texts
from lwm.errors import UserError
from lwm.tokens import TokenSpace

SPACE = TokenSpace(text=300)


@pytest.fixture
def books(tmp_path):
    """Books whose lines are all different."""
    for side in ("train", "held-out"):
        (tmp_path / side).mkdir()
        lines = (f"{side}, line {number} of the book." for number in range(400))
        (tmp_path / side / "book.txt").write_text("\n".join(lines))
    return tmp_path


def test_repeated_ids_are_learnt_from_their_second_time_on(byte_tokenizer):
    (copies,) = [open_set("copies:train,count=50,seed=3", ExampleFormat(), byte_tokenizer, SPACE)]
    assert len(copies) == 50
    seen = set()
    for example in (copies[number] for number in range(50)):
        size = int(np.argmax(example.loss_mask))
        assert 8 <= size <= 48
        assert example.loss_mask[size:].all()
        times = len(example) // size
        assert times in (2, 3)
        np.testing.assert_array_equal(example.ids, np.tile(example.ids[:size], times))
        seen.add(tuple(example.ids[:size]))
    assert len(seen) == 50
    special = set(byte_tokenizer.backend.special.values())
    assert not special & {number for ids in seen for number in ids}
    few = open_set("copies:train,ids=5", ExampleFormat(), byte_tokenizer, SPACE)
    assert {int(number) for each in range(20) for number in few[each].ids} == set(range(5))
    other = Copies.of(CopySet(part="held-out", seed=3), byte_tokenizer, SPACE)
    np.testing.assert_array_equal(copies[7].ids, copies[7].ids)
    assert not np.array_equal(other[7].ids, copies[7].ids)
    assert not list(texts("copies:train", most=100))


def test_numbers_are_stated_twice_and_in_no_other_excerpt(books):
    recalls = Recalls(RecallSet(books="train", count=30, characters=500, recalls=3), folder=books)
    known = []
    for record in (recalls[number] for number in range(len(recalls))):
        text = record.value["text"]
        lines = re.findall(r"^The special magic (\w+) number is: (\d{7})\.$", text, re.MULTILINE)
        assert len(lines) == 6
        assert all(lines.count(line) == 2 for line in lines)
        rest = [line for line in text.split("\n") if "magic" not in line]
        assert "\n".join(rest) in (books / "train" / "book.txt").read_text()
        assert 500 <= sum(len(line) + 1 for line in rest) < 560
        known += {number for _, number in lines}
    assert len(set(known)) == 90
    assert recalls[4].value == Recalls(recalls._config, folder=books)[4].value
    assert recalls.files() == [books / "train" / "book.txt"]


def test_both_statements_are_as_often_far_apart_as_near(books):
    def distances(**options):
        config = RecallSet(books="train", count=60, characters=2000, recalls=4, **options)
        for record in map(Recalls(config, folder=books).__getitem__, range(config.count)):
            rows = record.value["text"].split("\n")
            places: dict[str, list[int]] = {}
            for place, row in enumerate(rows):
                if "magic" in row:
                    places.setdefault(row, []).append(place)
            assert len(places) == 4
            yield from ((second - first) / len(rows) for first, second in places.values())

    found = np.array(list(distances()))
    counts, _ = np.histogram(found, bins=[0, 0.25, 0.5, 0.75, 1])
    assert len(found) == 240
    assert (counts > 40).all()
    assert min(distances(apart=0.5)) > 0.4


def test_in_a_chat_the_answer_restates_what_is_asked(books):
    config = RecallSet(books="held-out", count=20, characters=300, form="chat")
    for record in (Recalls(config, folder=books)[number] for number in range(20)):
        question, answer = [each["content"] for each in record.value["messages"]]
        (name,) = re.findall(r"\n\nWhat is the special magic (\w+) number\?$", question)
        assert f"special magic {name} number is: " in answer
        assert question.count(answer) == 1
        assert "train" not in question


def test_wrong_names_are_refused(byte_tokenizer, books):
    for name, said in (
        ("copies:test", "there is no copies:test; there are copies:train and copies:held-out"),
        (
            "copies:train,size=4",
            "there is no option 'size'; there are count, least, most, ids, seed",
        ),
        ("copies:train,least=9,most=8", "most not below least"),
        ("recalls:train,count=two", "count 'two' is not a whole number"),
        ("recalls:train,apart=1.5", "apart 1.5 must be from 0 to 1"),
        ("recalls:train,form=song", "form 'song' is none of text, chat"),
        ("recalls:train,seed=1,seed=2", "seed is given twice"),
    ):
        with pytest.raises(UserError, match=said):
            open_set(name, ExampleFormat(), byte_tokenizer, SPACE)
    with pytest.raises(UserError, match="has ids and no records; give it as a data set of its own"):
        open_set(("copies:train", "recalls:train"), ExampleFormat(), byte_tokenizer, SPACE)
    with pytest.raises(UserError, match="too few for excerpts of 9,000"):
        Recalls(RecallSet(books="train", characters=9000), folder=books)[0]
