"""Needles in videos, asked of programs that see, of blind ones, and of a model."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from lwm.cli.visual_needle import run_visual_needle
from lwm.data.captions import DRAW
from lwm.errors import UserError
from lwm.eval.compare import compare
from lwm.eval.question import Response
from lwm.eval.subject import Subject
from lwm.eval.visual_needle.config import VisualNeedleConfig
from lwm.eval.visual_needle.evaluation import VisualNeedleEvaluation
from lwm.eval.visual_needle.haystack import WorldHaystack
from lwm.eval.visual_needle.needles import Needle, open_needles
from lwm.eval.visual_needle.run import check, evaluate
from lwm.media.write import write_image, write_video
from lwm.world.attributes import COLOURS, DIGITS
from lwm.world.world import World, WorldConfig

ASK = VisualNeedleConfig(frames=(3, 5), depths=(0.0, 60.0, 100.0))
DRAW_IT = dataclasses.replace(ASK, task="draw")


class Program:
    """Answers by a rule from the frames in the ids of a prompt, and from the question."""

    def __init__(self, model, rule):
        self.model, self.rule = model, rule
        self.asked = []

    def answers(self, questions):
        for question in questions:
            self.asked.append(question)
            ids, text = np.array(question.ids), self.model.marks.tokens.text
            codes = ids[(ids >= text) & (ids < self.model.marks.tokens.end_of_frame)] - text
            found = self.rule(codes.reshape(-1, 64).astype(np.int32), question)
            drawn = None if isinstance(found, str) else found[None]
            yield (
                question,
                Response(
                    text=found if isinstance(found, str) else "",
                    prompt_tokens=len(ids),
                    completion_tokens=1,
                    codes=drawn,
                ),
            )


def subject_of(model, program):
    return dataclasses.replace(
        Subject.of_model(model),
        description={"name": "program"},
        answerer=lambda tokens, progress: program,
    )


def sees(frames, question):
    """Finds the needle's codes among the frames of a prompt, and names or copies it."""
    needle = question.truth["needle"]
    (found,) = (frame for frame in frames if frame.tobytes() == needle.codes.tobytes())
    return found if question.frames else f"I see a {needle.answer}."


def test_a_program_that_sees_is_right_everywhere_and_a_blind_one_is_not(tiny_vision, tmp_path):
    program = Program(tiny_vision, sees)
    report = evaluate(subject_of(tiny_vision, program), ASK, tmp_path / "sees").report
    assert [row["score"] for row in report.rows] == [1] * 6
    blind = Program(tiny_vision, lambda frames, question: "brown 1")
    other = evaluate(subject_of(tiny_vision, blind), ASK, tmp_path / "blind").report
    assert other.score().correct == 0
    written = json.loads((tmp_path / "sees" / "report.json").read_text())
    assert written["chance"] == 1 / 80
    assert [entry["frames"] for entry in written["by_length"]] == [3, 5]
    assert len(written["cells"]) == 6
    assert (tmp_path / "sees" / "heatmap.png").stat().st_size > 1000
    (found,) = compare([tmp_path / "sees", tmp_path / "blind"])["comparisons"]
    (part,) = found["parts"]
    assert part["part"] == ASK.folder
    assert part["paired"]
    assert part["overall"]["difference"] == -report.score().accuracy


def test_pictures_of_the_needle_are_right_and_others_are_not(tiny_vision, tmp_path):
    def rule(frames, question):
        return sees(frames, question) if question.cell.frames == 5 else frames[0] * 0

    program = Program(tiny_vision, rule)
    report = evaluate(subject_of(tiny_vision, program), DRAW_IT, tmp_path).report
    assert [row["score"] for row in report.rows] == [row["frames"] == 5 for row in report.rows]
    assert len(report.rows) == 6
    for row in report.rows:
        assert (len(row["codes"]), row["possible"]) == (64, True)
        assert set(row) >= {"digit", "colour", "response"}


def test_a_prompt_holds_the_question_and_the_needle_at_its_depth(tiny_vision):
    evaluation = VisualNeedleEvaluation(ASK, Subject.of_model(tiny_vision))
    known = [cell for cell in evaluation.cells if cell.frames == 5]
    assert [(cell.depth, cell.place) for cell in known] == [(100, 4), (60, 2), (0, 0)]
    around = None
    for cell in known:
        question = evaluation.question(cell)
        assert question.built_length == cell.length
        (vision,) = question.visions
        assert vision.is_video
        needle = evaluation.prompts.needle(cell)
        np.testing.assert_array_equal(vision.codes[cell.place], needle.codes)
        others = np.delete(vision.codes, cell.place, axis=0)
        around = others if around is None else around
        np.testing.assert_array_equal(others, around)
        wanted = tiny_vision.marks.wrap(vision.codes).tolist()
        assert str(wanted)[1:-1] in str(list(question.ids))
    drawn = VisualNeedleEvaluation(DRAW_IT, Subject.of_model(tiny_vision))
    question = drawn.question(drawn.cells[0])
    assert (question.frames, question.max_tokens) == (1, 65)
    assert tuple(question.ids[-len(tiny_vision.marks.opening) :]) == tiny_vision.marks.opening
    assert question.message.startswith(DRAW["image"].format(caption="the digit"))


def test_the_worlds_films_have_no_digit_and_grow_at_their_ends(tiny_vision):
    haystack = WorldHaystack(tiny_vision, seed=3)
    long = haystack.codes(1, 9)
    again = WorldHaystack(tiny_vision, seed=3)
    np.testing.assert_array_equal(again.codes(1, 4), long[:4])
    np.testing.assert_array_equal(again.codes(1, 9), long)
    assert again.facts() == haystack.facts() != WorldHaystack(tiny_vision, seed=4).facts()
    kinds = {
        thing.kind
        for index in range(50)
        for thing in World(WorldConfig(seed=3, kinds=haystack.kinds)).clip(index).facts.things
    }
    assert len(kinds) > 9
    assert not kinds & set(DIGITS)


@pytest.mark.parametrize(
    ("text", "digit", "colour"),
    [
        ("A red 7", True, True),
        ("The one that is shown is RED: 7!", True, True),
        ("red seven", True, True),
        ("a blue 7", True, False),
        ("red 8", False, True),
        ("red 7 or 8", False, True),
        ("red or blue 7", True, False),
        ("red 77", False, True),
        ("", False, False),
        (" ".join([*COLOURS, *DIGITS]), False, False),
    ],
)
def test_an_answer_is_right_if_it_names_the_digit_and_the_colour_alone(
    tiny_vision, text, digit, colour
):
    needles = open_needles(ASK, tiny_vision)
    needle = Needle({"digit": "7", "colour": "red"}, "", "red 7", np.zeros(64, np.int32))
    found = needles.judge(needle, text)
    assert found == {"digit": digit, "colour": colour, "score": float(digit and colour)}


def test_chance_is_the_score_of_one_answer_to_all_questions(tiny_vision):
    needles = open_needles(ASK, tiny_vision)
    names = [
        Needle({"digit": d, "colour": c}, "", "", np.zeros(1)) for d in DIGITS for c in COLOURS
    ]
    scores = [needles.judge(each, "green 3")["score"] for each in names]
    assert sum(scores) / len(scores) == needles.chance


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A film of twelve seconds, and a list of two needles."""
    folder = tmp_path_factory.mktemp("own")
    frames = np.stack(list(World(WorldConfig(kinds=("tree", "fish"))).film(24, 0)))
    write_video(folder / "film.mp4", frames, fps=2.0)
    rows = []
    for name in ("boat", "house"):
        picture = World(WorldConfig(kinds=(name,), frames=1, most=1)).clip(0)
        write_image(folder / f"{name}.png", picture.pixels[0])
        rows.append({"image": f"{name}.png", "question": "What is odd?", "answer": f"a {name}"})
    (folder / "list.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def sees_in_round_0(frames, question):
    """In round 1 it names both needles, or copies a frame of the haystack."""
    if question.cell.round == 0:
        return sees(frames, question)
    return frames[0] if question.frames else "a boat and a house"


def test_films_and_pictures_of_the_user_are_judged_by_words_and_by_codes(
    tiny_vision, own, tmp_path
):
    files = {"haystack": str(own / "film.mp4"), "needles": own / "list.jsonl"}
    for config in (ASK, DRAW_IT):
        config = dataclasses.replace(config, **files, depths=(50.0,), rounds=2)
        program = Program(tiny_vision, sees_in_round_0)
        report = evaluate(subject_of(tiny_vision, program), config, tmp_path / config.task).report
        assert [row["score"] for row in report.rows] == [row["seed"] == 0 for row in report.rows]
        assert {row["seed"] for row in report.rows} == {0, 1}
        header = report.header
        assert header["chance"] == 0.5
        assert (header["haystack"]["name"], header["needles"]["name"]) == ("film.mp4", "list.jsonl")
        assert str(own) not in json.dumps(header)
    assert {row["response"] for row in report.rows if row["seed"] == 1} <= {
        f"frame {at} of the haystack" for at in range(4)
    }
    # Rounds have other parts of the film.
    texts = {asked.cell.round: asked.visions[0].codes[0] for asked in program.asked}
    assert (texts[0] != texts[1]).any()


def test_what_cannot_be_asked_is_refused_in_a_line(tiny_vision, tiny_model, own, tmp_path):
    long = dataclasses.replace(ASK, frames=(8, 200))
    with pytest.raises(UserError, match=r"200 frames are .* ask for at most 30 with --frames"):
        evaluate(tiny_vision, long, tmp_path)
    with pytest.raises(UserError, match="tiny reads and writes text only"):
        evaluate(tiny_model, ASK, tmp_path)
    film = dataclasses.replace(ASK, frames=(14,), haystack=str(own / "film.mp4"))
    with pytest.raises(UserError, match="gives 12 frames at 1 a second, and 14 with a needle need"):
        evaluate(tiny_vision, film, tmp_path)
    with pytest.raises(UserError, match="missing"):
        check(dataclasses.replace(ASK, haystack="none.mp4"), tmp_path)
    (tmp_path / "list.jsonl").write_text('{"image": "a.png", "question": "", "answer": "b"}\n')
    listed = dataclasses.replace(ASK, needles=tmp_path / "list.jsonl")
    with pytest.raises(
        UserError, match=r"list.jsonl, line 1: a needle is an object with the texts"
    ):
        evaluate(tiny_vision, listed, tmp_path)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"frames": (1,)}, "frames 1 must be 2 or more"),
        ({"depths": (101.0,)}, "from 0 to 100"),
        ({"fps": 0.0}, "fps 0 must be above 0"),
        ({"rounds": 0}, "rounds 0 must be 1 or more"),
    ]
    for changes, message in refused:
        with pytest.raises(UserError, match=message):
            dataclasses.replace(ASK, **changes)


def test_a_model_is_asked_and_its_folder_grows(tiny_vision, tmp_path, capsys):
    small = dataclasses.replace(ASK, frames=(3,), depths=(0.0,), max_tokens=4)
    report = run_visual_needle(tiny_vision, small, tmp_path / "ask")
    assert len(report.rows) == 1
    larger = dataclasses.replace(small, depths=(0.0, 100.0))
    report = run_visual_needle(tiny_vision, larger, tmp_path / "ask")
    assert [row["depth_percent"] for row in report.rows] == [0, 100]
    printed = capsys.readouterr().out
    assert "1 of 2 questions asked now" in printed
    assert "by chance 1.2%" in printed
    with pytest.raises(UserError, match=r"config\.max_tokens was 4, is 5"):
        check(dataclasses.replace(small, max_tokens=5), tmp_path / "ask")
