"""Parts of a suite that show images and ask for them."""

import dataclasses
import json

import pytest

from lwm.cli.evaluate import eval_compare
from lwm.convert.card_scores import of_reports
from lwm.convert.open import open_model_files
from lwm.errors import UserError
from lwm.eval.question import Response
from lwm.eval.subject import Subject
from lwm.eval.suite.config import SuiteConfig
from lwm.eval.suite.run import PAGE, evaluate_all

SMALL = SuiteConfig(
    parts=("visual", "world", "adherence"), frames=(2, 64), depths=(0.0, 100.0), samples=(1,)
)


class Knows:
    """Answers from what the evaluations know of their questions."""

    def __init__(self, model):
        self.model, self.asked, self.stops_at = model, [], 0

    def answers(self, questions):
        for question in questions:
            if len(self.asked) + 1 == self.stops_at:
                self.stops_at = 0
                raise KeyboardInterrupt
            self.asked.append(question)
            text, codes = "", None
            if "needle" in question.truth:
                needle = question.truth["needle"]
                text, codes = needle.answer, needle.codes[None]
            elif "row" in question.truth:
                text = question.truth["row"].answers[0]
            else:
                codes = self.model.encode_frames(question.truth["clip"].pixels)
            yield (
                question,
                Response(
                    text="" if question.frames else text,
                    prompt_tokens=len(question.ids),
                    completion_tokens=1,
                    codes=codes if question.frames else None,
                ),
            )


def test_a_program_that_knows_all_scores_what_the_vqgan_lets_through(tiny_vision, tmp_path, capsys):
    program = Knows(tiny_vision)
    subject = dataclasses.replace(
        Subject.of_model(tiny_vision), answerer=lambda tokens, progress: program
    )
    program.stops_at = 8
    with pytest.raises(KeyboardInterrupt):
        evaluate_all(subject, SMALL, tmp_path / "run")
    assert len(program.asked) == 7
    report = evaluate_all(subject, SMALL, tmp_path / "run")
    assert len(program.asked) == sum(part["report"]["overall"]["asked"] for part in report["parts"])
    parts = {part["name"]: part["report"] for part in report["parts"]}
    assert list(parts) == [
        "visual-needle-ask",
        "visual-needle-draw",
        "world",
        "world-blind",
        "adherence",
    ]
    scores = {name: own["overall"]["score"] for name, own in parts.items()}
    assert (scores["visual-needle-ask"], scores["world"], scores["world-blind"]) == (1, 1, 1)
    assert scores["visual-needle-draw"] == parts["visual-needle-draw"]["possible"] == 1
    bounds = [each["through_codes"] for each in parts["adherence"]["by_task"]]
    assert scores["adherence"] == sum(bounds) / len(bounds)
    assert report["left_out"] == [
        f"visual-needle-{task} at 64 frames: above the model's context of 2,048"
        for task in ("ask", "draw")
    ]
    assert report["config"]["grids"] == {"visual": {"2": 1, "64": 1}, "world": 1, "adherence": 1}
    # A question about a clip follows, or is followed by, the same one without it.
    asked = [each.truth["row"].question for each in program.asked if "row" in each.truth]
    assert asked[::2] == asked[1::2]
    page = (tmp_path / "run" / PAGE).read_text()
    for words in ("Visual needle, named", "2 frames", "Prompt adherence", "the true clip, decoded"):
        assert words in page, words
    opened = open_model_files("tiny-vision")
    found = of_reports(opened.source, opened.config, None, [tmp_path / "run"])
    assert [each.what for each in found] == [
        "picture in a long video, named",
        "picture in a long video, generated",
        "questions about images and videos, rule world",
        "questions about images and videos, rule world, asked without them",
        "captions of the world, generated in all attributes",
    ]
    assert found[0].result == "100.0% (95%: 34.2% to 100.0%); n = 2"
    eval_compare((tmp_path / "run", tmp_path / "run"), out=tmp_path / "out")
    compared = json.loads((tmp_path / "out" / "comparison.json").read_bytes())
    parts = compared["comparisons"][0]["parts"]
    assert [part["part"] for part in parts] == [
        "adherence",
        "visual-needle-ask",
        "visual-needle-draw",
        "world-questions",
        "world-questions-blind",
    ]
    assert all(part["paired"] for part in parts)


def test_a_model_of_text_is_not_asked_about_images(tiny_model, tmp_path):
    refused = "visual, world, adherence: tiny reads and writes text only"
    with pytest.raises(UserError, match=f"nothing is left to ask of tiny: {refused}"):
        evaluate_all(tiny_model, SMALL, tmp_path)
    with pytest.raises(UserError, match="frames 1 must be 2 or more"):
        dataclasses.replace(SMALL, frames=(1,))
