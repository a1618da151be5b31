"""Several needles in one prompt: all of them whole, at the same places, and LWM's questions."""

import dataclasses
import re

import pytest

from lwm.eval.needle.config import NeedleConfig
from lwm.eval.needle.prompts import INSTRUCTION_SEVERAL, Cell, Prompts, question_for

GRID = NeedleConfig(lengths=(1000, 1600), rounds=2, needles=4, ask=2, max_tokens=40)
NEEDLES = re.compile(r"\nThe special magic (.+?) number is: (\d{7})\n")


@pytest.mark.parametrize(("prompt", "ask"), [("chat", 4), ("lwm", 1)])
def test_a_program_that_reads_finds_all_and_a_blind_one_none(
    tokenizer, oracle, blind, ask_program, tmp_path, prompt, ask
):
    config = dataclasses.replace(GRID, prompt=prompt, ask=ask)
    seeing = ask_program(oracle(tokenizer), config, tokenizer, tmp_path / "seeing")
    guessing = ask_program(blind(tokenizer), config, tokenizer, tmp_path / "blind")
    assert (seeing.score().accuracy, guessing.score().accuracy) == (1, 0)
    assert seeing.score().asked == 2 * 2
    for row in seeing.rows:
        assert row["correct"] == [True] * ask
        assert len(row["needles_info"]) == 4
        assert row["answer"] == [number for number, _ in row["needles_info"].values()][:ask]
        assert all(city in row["question"] for city in list(row["needles_info"])[:ask])


def test_part_of_the_needles_is_part_of_the_score(byte_tokenizer, oracle, ask_program, tmp_path):
    class Forgetful:
        def answers(self, questions):
            for question, response in oracle(byte_tokenizer).answers(questions):
                first = response.text.split(" and ")[0]
                yield question, dataclasses.replace(response, text=first)

    report = ask_program(Forgetful(), GRID, byte_tokenizer, tmp_path)
    assert [row["score"] for row in report.rows] == [0.5] * 4
    assert report.score(length=1000).accuracy == 0.5
    assert report.table().splitlines()[2].split("|")[1:3] == ["  1,000 ", "       2 "]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "results.jsonl"]


def test_needles_are_all_there_whole_and_distinct(tokenizer):
    config = dataclasses.replace(GRID, lengths=(2000, 3000), needles=9)
    prompts = Prompts(config, tokenizer)
    for cell in prompts.cells:
        built = prompts.build(cell)
        assert built.built_length <= cell.length
        assert cell.length - built.built_length <= 100
        planted = built.truth["needles"]
        assert len({needle.city for needle in planted}) == 9
        assert len({needle.number for needle in planted}) == 9
        shown = NEEDLES.findall(built.message)
        assert sorted(shown) == sorted((needle.city, needle.number) for needle in planted)
        between = NEEDLES.split(built.message)[::3]
        assert all(text == "" or re.search(r"\S$", text) for text in between[:-1])
        for needle, depth in zip(planted, built.truth["depths"], strict=True):
            assert depth == pytest.approx(needle.depth, abs=25)
            assert depth <= needle.depth


def test_prompts_differ_in_the_question_alone(byte_tokenizer):
    built = {}
    for ask in (1, 4):
        prompts = Prompts(dataclasses.replace(GRID, ask=ask), byte_tokenizer)
        built[ask] = {cell: prompts.build(cell) for cell in prompts.cells}
    assert built[1].keys() == built[4].keys()
    for cell, one in built[1].items():
        four = built[4][cell]
        texts = [each.message.removesuffix(f" {INSTRUCTION_SEVERAL}") for each in (one, four)]
        questions = [each.truth["question"] for each in (one, four)]
        assert texts[0].removesuffix(questions[0]) == texts[1].removesuffix(questions[1])
        assert four.built_length > one.built_length
        assert four.truth["asked"][0] == one.truth["asked"][0]


def test_questions_are_those_of_lwm_to_the_letter(byte_tokenizer, prose):
    cities = ["Oslo", "Paris", "Lima", "Doha"]
    assert [question_for(cities[:asked], planted=4) for asked in (1, 2, 3)] == [
        "What is the special magic number for Oslo?",
        "What are the special magic numbers for Oslo, and Paris?",
        "What are the special magic numbers for Oslo, Paris, and Lima?",
    ]
    assert question_for(["Oslo"], planted=1) == "What is the special magic Oslo number?"
    config = dataclasses.replace(GRID, haystack=prose(99), prompt="lwm")
    text = byte_tokenizer.decode(
        Prompts(config, byte_tokenizer).build(Cell(length=1000, round=0)).ids
    )
    assert text.startswith("You are a helpful assistant. USER: ")
    assert re.search(
        r" What are the special magic numbers for .+, and .+\? "
        r"Don't give information outside the document\. ASSISTANT: $",
        text,
    )


def test_each_prompt_shares_the_start_of_the_one_before(byte_tokenizer):
    """Up to the first needle of either."""
    prompts = Prompts(
        dataclasses.replace(GRID, rounds=1, lengths=(3000, 4000, 6000)), byte_tokenizer
    )
    texts = [prompts.build(cell).message for cell in prompts.cells]
    places = [text.index("\nThe special magic") for text in texts]
    assert places == sorted(places, reverse=True)
    assert len({text[: places[-1]] for text in texts}) == 1
