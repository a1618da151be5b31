"""Prompts of RULER: as long as fits, the same on every machine, and from files where given."""

import dataclasses
import hashlib
import json
import re
from itertools import pairwise

import pytest

from lwm.errors import UserError
from lwm.eval.prompt import PromptEncoder
from lwm.eval.ruler.config import TASKS, RulerConfig
from lwm.eval.ruler.essay import Essay
from lwm.eval.ruler.sample import Draft, NoRoomError, Sample, fit
from lwm.eval.ruler.task import RULES, Cell, Ruler
from lwm.eval.ruler.variables import example_units
from lwm.eval.ruler.vocabulary import vocabulary

GRID = RulerConfig(lengths=(2600, 4000), samples=2)


@pytest.mark.parametrize("form", ["chat", "text"])
def test_prompts_are_as_long_as_fits(tokenizer, form):
    config = dataclasses.replace(GRID, samples=1, prompt=form)
    ruler = Ruler(config, tokenizer)
    encode = PromptEncoder(tokenizer=tokenizer, form=form)
    for cell in ruler.cells:
        question = ruler.question(cell)
        room = cell.length - RULES[cell.task].max_tokens
        assert question.max_tokens == RULES[cell.task].max_tokens
        assert question.ids == encode(question.message, question.opening)
        assert len(question.ids) <= room
        if len(question.ids) < room:
            larger = ruler.sample(cell).draft(question.truth["units"] + 1)
            assert len(encode(larger.message, larger.opening)) > room, cell


def test_a_prompt_depends_on_its_cell_and_seed_alone(byte_tokenizer):
    ruler = Ruler(GRID, byte_tokenizer)
    alone = Ruler(RulerConfig(tasks=TASKS[1:], lengths=(2600,), samples=1), byte_tokenizer)
    other = Ruler(dataclasses.replace(GRID, seed=1), byte_tokenizer)
    for task in TASKS[1:]:
        cell = Cell(task=task, length=2600, sample=0)
        question = ruler.question(cell)
        assert question.message == alone.question(cell).message
        changed = [
            other.question(cell),
            ruler.question(dataclasses.replace(cell, sample=1)),
            ruler.question(dataclasses.replace(cell, length=4000)),
        ]
        assert all(each.truth["answers"] != question.truth["answers"] for each in changed)


def test_prompts_are_the_same_on_every_machine(byte_tokenizer):
    # Of the word lists of wonderwords 3.0.1; another release may have others.
    assert vocabulary().sha256.startswith("add19412d8cea9df")
    ruler = Ruler(dataclasses.replace(GRID, samples=1, lengths=(2600,)), byte_tokenizer)
    found = hashlib.sha256()
    for cell in ruler.cells:
        found.update(ruler.question(cell).message.encode())
    assert found.hexdigest()[:16] == "f48303876750feff"


def test_prompts_that_share_an_essay_follow_each_other(byte_tokenizer):
    config = RulerConfig(tasks=(*TASKS[1:4], *TASKS[6:8]), lengths=(1500, 3000), samples=4)
    ruler = Ruler(config, byte_tokenizer)
    assert len(ruler.cells) == 5 * 2 * 4

    messages = [ruler.question(cell).message for cell in ruler.cells]
    alike = [(a, b) for a, b in pairwise(messages) if a.partition("\n")[0] == b.partition("\n")[0]]
    assert len(alike) == len(messages) - 3  # about a number, a UUID, and several numbers
    own = sum(message.index("One of the special magic") for _, message in alike)
    assert sum(shared(before, message) for before, message in alike) > 0.95 * own


def shared(one: str, two: str) -> int:
    """Returns the number of characters at the start that two texts share."""
    pairs = zip(one, two, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(two)))


def test_an_essay_is_repeated_where_it_is_short(byte_tokenizer, prose):
    path = prose(20)
    config = RulerConfig(tasks=("niah_single_2",), lengths=(3000,), samples=1, haystack=path)
    ruler = Ruler(config, byte_tokenizer)
    message = ruler.question(ruler.cells[0]).message
    assert message.count("Sentence number 7 ends here. ") == len(message) // len(path.read_text())
    assert "number 19 ends here. Sentence number 0 ends" in re.sub(r"One of .+?\d\. ", "", message)


def test_an_essay_is_the_words_of_its_source(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("One  two.\n\nThree\tfour\n")
    assert Essay.open(path).text == "One two. Three four "
    path.write_text(" \n")
    with pytest.raises(UserError, match=r"haystack text.txt is empty"):
        Essay.open(path)


def test_the_example_of_a_chain_has_at_most_500_tokens():
    assert example_units(lambda text: [0] * len(text.split())) == 22
    assert (
        example_units(lambda text: [0] * len(text)) == 5
    )  # the fewest, which have more than 500 characters


class Stairs(Sample):
    """Units of very different sizes."""

    least = 2

    def draft(self, units: int) -> Draft:
        return Draft(message="x" * (100 + units**2 // 7), opening="yy", answers=())


@pytest.mark.parametrize("room", [102, 110, 5000, 123_456])
def test_the_largest_prompt_is_found_for_any_growth(room):
    fitted = fit(Stairs(), lambda message, opening: [0] * len(message + opening), room)
    assert len(fitted.ids) <= room
    assert len(fitted.ids) == room or 102 + (fitted.units + 1) ** 2 // 7 > room


def test_a_prompt_without_room_says_how_many_tokens_it_has():
    with pytest.raises(NoRoomError) as error:
        fit(Stairs(), lambda message, opening: [0] * len(message + opening), 101)
    assert error.value.tokens == 102


def squad() -> dict:
    """Returns three paragraphs of two articles, and their questions, in SQuAD's form."""

    def ask(question: str, *answers: str, impossible: bool = False) -> dict:
        texts = [{"text": answer, "answer_start": 0} for answer in answers]
        return {"question": question, "answers": texts, "is_impossible": impossible}

    north = [
        {"context": "Oslo is north.", "qas": [ask("What is north?", "Oslo", "the city Oslo")]},
        {"context": "Bergen is west.", "qas": [ask("What is nowhere?", impossible=True)]},
    ]
    south = [{"context": "Rome is south.", "qas": [ask("What is south?", "Rome")]}]
    return {"version": "v2.0", "data": [{"paragraphs": north}, {"paragraphs": south}]}


def test_questions_of_squad_are_asked_with_their_paragraphs(byte_tokenizer, tmp_path):
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(squad()))
    config = RulerConfig(tasks=("qa_1",), lengths=(480, 900), samples=2, qa_1=path)
    ruler = Ruler(config, byte_tokenizer)
    question = ruler.question(Cell(task="qa_1", length=480, sample=0))
    assert question.message.endswith("Question: What is north?")
    assert question.truth["answers"] == ["Oslo", "the city Oslo"]
    # First the paragraph that answers, then those of its article, then others.
    one, two, three = (ruler.sample(question.cell).draft(units).message for units in (1, 2, 3))
    assert "Document 1:\nOslo is north.\n\nAnswer" in one
    assert "Bergen is west." in two
    assert "Rome" not in two
    assert "Rome is south." in three
    second = ruler.question(Cell(task="qa_1", length=900, sample=1))
    assert second.truth["answers"] == ["Rome"]
    assert second.message.count("Rome is south.") > 2  # documents come again
    with pytest.raises(UserError, match=r"squad.json has 2 questions, fewer than 3 samples"):
        Ruler(dataclasses.replace(config, samples=3), byte_tokenizer)


def test_questions_of_hotpotqa_keep_the_documents_that_answer(byte_tokenizer, tmp_path):
    context = [[f"Title {i}", [f"Sentence {i}.", " It goes on" + " and on" * i]] for i in range(10)]
    asked = {
        "question": "Which two?",
        "answer": "yes",
        "context": context,
        "supporting_facts": [["Title 7", 0], ["Title 3", 1]],
    }
    path = tmp_path / "hotpot.json"
    path.write_text(json.dumps([asked]))
    config = RulerConfig(tasks=("qa_2",), lengths=(700, 1400), samples=1, qa_2=path)
    ruler = Ruler(config, byte_tokenizer)
    few = ruler.question(Cell(task="qa_2", length=700, sample=0))
    many = ruler.question(Cell(task="qa_2", length=1400, sample=0))
    assert few.truth["units"] < 10 <= many.truth["units"]
    for question in (few, many):
        assert "Title 7\nSentence 7. It goes on and on" in question.message
        assert "Title 3\nSentence 3." in question.message


def test_other_files_of_questions_are_refused(byte_tokenizer, tmp_path):
    path = tmp_path / "other.json"
    for text in ("{", "[1]", '{"data": 3}', '{"data": [{"paragraphs": [{}]}]}'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"other.json is not SQuAD's JSON"):
            Ruler(RulerConfig(qa_1=path), byte_tokenizer)
        with pytest.raises(UserError, match=r"other.json is not HotpotQA's JSON"):
            Ruler(RulerConfig(qa_2=path), byte_tokenizer)
    path.write_text("[]")
    with pytest.raises(UserError, match=r"other.json has no question with an answer"):
        Ruler(RulerConfig(qa_2=path), byte_tokenizer)
