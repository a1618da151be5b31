"""Local sets of questions about images and videos, asked of programs that see or do not."""

import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from lwm.errors import UserError
from lwm.eval.qa.config import QAConfig
from lwm.eval.qa.evaluation import chosen
from lwm.eval.qa.run import REPORT, RESULTS, check, evaluate, open_questions
from lwm.eval.question import Response
from lwm.eval.subject import Subject
from lwm.media.frames import read_frames

CLIPS = Path(str(resources.files("lwm") / "assets" / "clips"))
NAMES = ("1f30c", "1f31d", "1f31e", "1f37b")
SAID = {"1f30c": "Two stars", "1f31d": "a moon", "1f31e": "yes", "1f37b": "no"}


@pytest.fixture(scope="module")
def model(tiny_vision):
    return tiny_vision


@pytest.fixture(scope="module")
def names_of(model):
    """Names of the shipped clips by the codes of their frames, of one or of four."""
    found = {}
    for name in NAMES:
        for count in (1, 4):
            frames = read_frames(CLIPS / f"{name}.webp", resolution=64, max_frames=count)
            found[model.encode_frames(frames.pixels).tobytes()] = name
    return found


class Program:
    """Answers from the codes of the image in a prompt, and counts how often it was asked."""

    def __init__(self, answer):
        self._answer, self.asked = answer, []

    def answers(self, questions):
        for question in questions:
            self.asked.append(question.message)
            text = self._answer(question)
            yield (
                question,
                Response(text=text, prompt_tokens=len(question.ids), completion_tokens=1),
            )


@pytest.fixture
def seeing(model, names_of):
    """A program that sees which clip is in the prompt, by the ids of its codes."""

    def answer(question):
        tokens = model.marks.tokens
        ids = np.array([i for i in question.ids if tokens.text <= i < tokens.text + tokens.codes])
        return SAID[names_of[(ids - tokens.text).astype(np.int32).tobytes()]]

    return answered_by(model, Program(answer))


def answered_by(model, program):
    made = Subject.of_model(model)
    return Subject(**vars(made) | {"answerer": lambda tokens, progress: program}), program


def write_rows(folder, rows, name="rows.jsonl"):
    path = folder / name
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


PEOPLE = [{"answer": answer} for answer in (*["2 stars"] * 4, *["stars"] * 6)]
SETS = {
    "vqa": [
        {"image": "1f30c.webp", "question": "What?", "answers": PEOPLE, "answer_type": "other"},
        {"image": "1f31e.webp", "question": "Is it?", "answers": ["yes"] * 10},
    ],
    "gqa": [
        {"imageId": 1, "question": "What?", "answer": "A moon", "types": {"structural": "query"}},
        {"imageId": 3, "question": "Is it?", "answer": "no", "types": {"structural": "verify"}},
    ],
    "pope": [
        {"image": "1f31e.webp", "text": "Is there a sun?", "label": "yes", "category": "random"},
        {"image": "1f37b.webp", "text": "Is there a sun?", "label": "no", "category": "random"},
    ],
    "video": [
        {"video": "1f30c.webp", "question": "what shines", "answer": "two stars"},
        {"video": "1f31d.webp", "question": "Who shines", "answer": "moon"},
    ],
}
KINDS = {
    "vqa": {"other", "all"},
    "gqa": {"query", "verify"},
    "pope": {"random"},
    "video": {"what", "who"},
}


@pytest.mark.parametrize("rule", SETS)
def test_a_program_that_sees_is_right_and_a_blind_one_as_good_as_the_commonest_answer(
    rule, seeing, model, tmp_path
):
    subject, _ = seeing
    rows = SETS[rule]
    if rule == "gqa":
        for number, name in enumerate(NAMES):
            (tmp_path / f"n{number:03}.webp").symlink_to(str(CLIPS / f"{name}.webp"))
    is_gqa = rule == "gqa"
    config = QAConfig(
        rule=rule,
        media=tmp_path if is_gqa else CLIPS,
        names="n{:03}.webp" if is_gqa else "{}",
        max_frames=4,
    )
    path = write_rows(tmp_path, rows)
    report = evaluate(subject, open_questions([path], config), config, tmp_path / "seen").report
    assert report.mean().score == 1
    assert set(report.kinds) == KINDS[rule]
    config = QAConfig(rule=rule, blind=True)
    blind, program = answered_by(model, Program(lambda question: "yes" * question.is_text))
    report = evaluate(blind, open_questions([path], config), config, tmp_path / "blind").report
    assert report.mean().score == {"vqa": 0.5, "pope": 0.5}.get(rule, 0)
    if rule == "pope":
        assert report.prior() == 0.5
        found = report.yes_and_no()
        assert (found["precision"], found["recall"], found["yes_share"]) == (0.5, 1, 1)
        assert found["f1"] == pytest.approx(2 / 3)
        assert "yes: precision 50.0, recall 100.0, f1 66.7" in report.statement()
    assert len(program.asked) == 2


def test_a_stopped_evaluation_goes_on_and_a_larger_count_asks_what_is_new(seeing, tmp_path):
    subject, program = seeing
    rows = [{"image": f"{name}.webp", "question": "What?", "answer": SAID[name]} for name in NAMES]
    path = write_rows(tmp_path, rows)

    def asked(folder, progress=lambda done, total: None, **changes):
        config = QAConfig(rule="gqa", media=CLIPS, **changes)
        return evaluate(subject, open_questions([path], config), config, folder, progress=progress)

    whole = asked(tmp_path / "whole")
    assert whole.report.mean().score == 1
    parts = tmp_path / "parts"

    def stop(done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="1 of 2 answers"):
        asked(parts, stop, count=2)
    assert asked(parts, count=2).work.num_new == 1
    assert asked(parts).work.num_new == 2
    assert len(program.asked) == 8
    assert (parts / REPORT).read_bytes() == (tmp_path / "whole" / REPORT).read_bytes()
    with pytest.raises(UserError, match=r"config\.instruction was"):
        asked(parts, instruction="")


def test_ids_become_names_of_files(tmp_path):
    values = [7, "7", "n7", "x.webp", "sub/x.webp"]
    for names, expected in {
        "{}": ["7", "7", "n7", "x.webp", "sub/x.webp"],
        "video{}.mp4": ["video7.mp4", "video7.mp4", "videon7.mp4", "x.webp", "sub/x.webp"],
        "a_{:03d}.jpg": ["a_007.jpg", "a_007.jpg", "n7", "x.webp", "sub/x.webp"],
    }.items():
        path = write_rows(tmp_path, [GOOD | {"image": value} for value in values])
        config = QAConfig(rule="gqa", names=names, blind=True)
        questions = open_questions([path], config)
        assert [questions.row(n).medium for n in range(len(values))] == expected


def test_smaller_counts_are_part_of_larger_ones():
    some, more = chosen(1000, 10), chosen(1000, 50)
    assert len(some) == 10
    assert set(some) < set(more)
    assert chosen(5, 9) == [0, 1, 2, 3, 4]


GOOD = {"image": "1f30c.webp", "question": "What?", "answer": "stars"}


@pytest.mark.parametrize(
    ("rule", "row", "line"),
    [
        ("gqa", {"question": "?"}, "no image or video; give its path or id under one of image"),
        ("gqa", GOOD | {"question": " "}, "no text under 'question'"),
        ("gqa", GOOD | {"answer": None}, "no text under 'answer'"),
        ("gqa", GOOD | {"image": "none.png"}, "image none.png is not in .*; --media names"),
        ("gqa", GOOD | {"image": [1]}, r"image is no path or id, but \[1\]"),
        ("vqa", GOOD, "'answers' should be a list of 4 answers of people or more"),
        ("vqa", GOOD | {"answers": ["a", "b", "c"]}, "'answers' should be a list of 4"),
        ("pope", GOOD, "answer 'stars' is neither yes nor no"),
    ],
)
def test_bad_rows_are_named_before_a_model_is_loaded(rule, row, line, tmp_path):
    good = {"vqa": {"answers": ["x"] * 4}, "pope": {"label": "no"}}.get(rule, {})
    path = write_rows(tmp_path, [GOOD | good, row, row])
    config = QAConfig(rule=rule, media=CLIPS)
    with pytest.raises(UserError, match=rf"rows.jsonl:2: {line}.*; 2 of 3 rows are bad; repair"):
        check(open_questions([path], config), config, tmp_path / "out")


def test_wrong_files_and_models_are_refused_in_one_line(seeing, tiny_model, tmp_path):
    subject, _ = seeing
    path = write_rows(tmp_path, [GOOD])
    with pytest.raises(UserError, match=r"give --rule vqa, gqa, pope or video: .* image, question"):
        open_questions([path], QAConfig())
    config = QAConfig(rule="gqa", media=CLIPS)
    text = Subject.of_model(tiny_model)
    with pytest.raises(UserError, match="tiny reads and writes text only; --blind asks without"):
        evaluate(text, open_questions([path], config), config, tmp_path / "out")
    with pytest.raises(UserError, match=r"media .* is no folder"):
        open_questions([path], QAConfig(rule="gqa", media=tmp_path / "none"))
    long = QAConfig(rule="gqa", media=CLIPS, max_tokens=2000)
    with pytest.raises(UserError, match=r"is above the context of tiny-vision.*lower the frames"):
        evaluate(subject, open_questions([path], long), long, tmp_path / "out")
    with pytest.raises(UserError, match=r"names 'x\.jpg' should hold one place for an id"):
        QAConfig(names="x.jpg")
    (tmp_path / "damaged.webp").write_bytes(b"RIFF nothing")
    path = write_rows(tmp_path, [GOOD | {"image": "damaged.webp"}])
    config = QAConfig(rule="gqa")
    with pytest.raises(UserError, match=r"rows.jsonl:1: damaged.webp"):
        evaluate(subject, open_questions([path], config), config, tmp_path / "out")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(UserError, match=r"empty.jsonl has no questions"):
        open_questions([str(empty)], config)


def test_models_elsewhere_are_asked_blind(subject_of, byte_tokenizer, tmp_path):
    program = Program(lambda question: question.message.splitlines()[0])
    subject = subject_of(program, byte_tokenizer)
    path = write_rows(tmp_path, [GOOD, GOOD | {"image": "elsewhere.png", "question": "Stars."}])
    config = QAConfig(rule="gqa", media=CLIPS, count=1)
    assert chosen(2, 1) == [0]
    with pytest.raises(
        UserError, match=r"program is not in this process, .*; --blind asks without"
    ):
        evaluate(subject, open_questions([path], config), config, tmp_path / "out")
    config = QAConfig(rule="gqa", blind=True)
    evaluate(subject, open_questions([path], config), config, tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / RESULTS).read_text().splitlines()]
    assert [row["score"] for row in rows[1:]] == [0, 1]
