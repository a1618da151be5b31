"""Questions about the world, asked of programs that see or do not."""

import dataclasses
import json

import numpy as np
import pytest

from lwm.errors import UserError
from lwm.eval.compare import compare
from lwm.eval.qa.config import QAConfig
from lwm.eval.qa.rules import names_only
from lwm.eval.qa.run import evaluate, open_questions
from lwm.eval.qa.world import WorldQuestions
from lwm.eval.question import Response
from lwm.eval.subject import Subject
from lwm.world.world import World, WorldConfig

KINDS = ["colour", "count", "direction", "exists", "first", "second", "what"]
GUESSES = dict(zip(KINDS, ["red", "one", "up", "yes", "red house", "first", "star"], strict=True))


class Program:
    """Answers from a question with its image."""

    def __init__(self, answer):
        self._answer = answer

    def answers(self, questions):
        for question in questions:
            text = self._answer(question)
            size = len(question.ids)
            yield question, Response(text=text, prompt_tokens=size, completion_tokens=1)


def test_a_program_that_sees_the_clips_is_right(tiny_vision, tmp_path):
    """It finds the clip by the codes in the prompt, and its answer by the text of the question."""
    questions = WorldQuestions(clips=1)
    known = {}
    for split in ("train", "heldout"):
        clip = World(WorldConfig(split=split)).clip(0)
        known[tiny_vision.encode_frames(clip.pixels).tobytes()] = clip.questions

    def sees(question):
        tokens = tiny_vision.marks.tokens
        ids = np.array([i for i in question.ids if tokens.text <= i < tokens.text + tokens.codes])
        asked = known[(ids - tokens.text).astype(np.int32).tobytes()]
        (answer,) = [each.answer for each in asked if question.message.startswith(each.question)]
        return f"The answer is: {answer}."

    subject = Subject.of_model(tiny_vision)
    subject = dataclasses.replace(subject, answerer=lambda tokens, progress: Program(sees))
    report = evaluate(subject, questions, QAConfig(), tmp_path).report
    assert len(report.rows) == len(questions) > 7
    assert report.groups == ["heldout", "train"]
    assert len(set(report.kinds) & set(KINDS)) > 4
    assert report.mean().score == 1
    cells = json.loads(report.to_json())["cells"]
    assert {(cell["task"], cell["group"]) for cell in cells} >= {("what", "train")}


def test_a_blind_program_is_no_better_than_the_prior(subject_of, byte_tokenizer, tmp_path):
    questions = WorldQuestions(WorldConfig(), clips=25)
    kinds = {questions.row(n).question: questions.row(n).kind for n in range(len(questions))}

    def guesses(question):
        asked = question.message.splitlines()[0]
        if kinds[asked] == "first":
            return asked.partition("the ")[2].partition(" or ")[0]
        return GUESSES[kinds[asked]]

    subject = subject_of(Program(guesses), byte_tokenizer)
    report = evaluate(subject, questions, QAConfig(blind=True), tmp_path).report
    for kind in KINDS:
        assert report.mean(kind).interval[0] <= report.prior(kind), kind
    assert report.mean().interval[0] <= report.prior() < 0.5
    assert min(report.prior("exists"), report.prior("first")) >= 0.5


def test_more_clips_keep_the_numbers_of_questions():
    config = WorldConfig(frames=1, seed=3)
    few, more = WorldQuestions(config, clips=2), WorldQuestions(config, clips=3)
    assert [few.row(n) for n in range(len(few))] == [more.row(n) for n in range(len(few))]
    assert few.identity() == more.identity()
    assert len(more) > len(few)
    with pytest.raises(UserError, match="clips 0 must be 1 or more"):
        WorldQuestions(config, clips=0)


@pytest.mark.parametrize(
    ("text", "answer", "options", "expected"),
    [
        ("Red.", "red", ("red", "blue"), 1),
        ("red or blue", "red", ("red", "blue"), 0),
        ("It is a digit 7", "7", ("7", "1"), 1),
        ("seven", "7", ("7", "1"), 1),
        ("three things", "three", ("two", "three"), 1),
        ("the red house", "red house", ("red house", "red digit 3"), 1),
        ("the house", "red house", ("red house", "red digit 3"), 0),
        ("no, there is not", "no", ("yes", "no"), 1),
        ("it disappears", "disappears", ("appears", "disappears"), 1),
        ("", "red", ("red", "blue"), 0),
    ],
)
def test_an_answer_names_one_of_all_that_are_possible(text, answer, options, expected):
    assert names_only(text, answer, options) == expected


def test_sets_of_the_world_have_names():
    config = QAConfig()
    both = open_questions(
        ["world:train,count=2,frames=1,seed=5", "world:heldout,count=2,frames=1,seed=5"], config
    )
    made = WorldQuestions(WorldConfig(frames=1, seed=5), splits=("train", "heldout"), clips=2)
    assert both.identity() == made.identity()
    assert [both.row(n) for n in range(len(both))] == [made.row(n) for n in range(len(made))]
    for names, line in (
        (["world:test"], "there are world:train and world:heldout"),
        (["world:train,text=mixed"], "text, resolution and vqgan are not for questions"),
        (["world:train,seed=1", "world:heldout"], "should differ in nothing but the split"),
        (["world:train,count=2", "world:heldout"], "should differ in nothing but the split"),
        (["world:train", "rows.jsonl"], "has a rule of its own"),
    ):
        with pytest.raises(UserError, match=line):
            open_questions(names, config)


def test_models_are_compared_question_by_question(subject_of, byte_tokenizer, tmp_path):
    questions = WorldQuestions(WorldConfig(frames=1), clips=4)
    for name in ("one", "yes"):
        subject = subject_of(Program(lambda question, name=name: name), byte_tokenizer)
        subject = dataclasses.replace(subject, description={"name": name})
        evaluate(subject, questions, QAConfig(blind=True), tmp_path / name)
    (found,) = compare([tmp_path / "one", tmp_path / "yes"])["comparisons"]
    (part,) = found["parts"]
    assert (part["part"], part["paired"]) == ("world-questions-blind", True)
    assert part["overall"]["asked"] == len(questions)
    by_task = {each["task"]: each["difference"] for each in part["by_task"]}
    assert by_task["exists"] > 0 > by_task["count"]
    assert by_task["colour"] == 0
    assert part["by_length"] == []
