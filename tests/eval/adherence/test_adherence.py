"""Captions of the world drawn by programs that read or do not, and by a model."""

import collections
import dataclasses
import json

import numpy as np
import pytest

from lwm.errors import UserError
from lwm.eval.adherence.config import AdherenceConfig
from lwm.eval.adherence.evaluation import AdherenceEvaluation
from lwm.eval.adherence.run import REPORT, RESULTS, SHEET, check, evaluate
from lwm.eval.question import Response
from lwm.eval.subject import Subject
from lwm.generate.language_model import LanguageModel
from lwm.world.world import World, WorldConfig

CONFIG = AdherenceConfig(frames=(1, 8), samples=4)
KNOWN = collections.defaultdict(lambda: len(KNOWN))
FRAMES: dict[int, bytes] = {}


class Lossless(LanguageModel):
    """A model whose codes lose nothing: they number all frames so far."""

    def encode_frames(self, pixels):
        numbers = []
        for frame in pixels:
            numbers.append(KNOWN[frame.tobytes()])
            FRAMES[numbers[-1]] = frame.tobytes()
        codes = np.zeros((len(pixels), 64), np.int32)
        codes[:, 0], codes[:, 1] = np.divmod(numbers, 1024)
        return codes

    def decode_frames(self, codes):
        numbers = (codes[:, 0] * 1024 + codes[:, 1]).tolist()
        frames = [np.frombuffer(FRAMES[number], np.uint8) for number in numbers]
        return np.stack(frames).reshape(-1, 64, 64, 3)


@pytest.fixture(scope="module")
def lossless(tiny_vision):
    fields = {
        each.name: getattr(tiny_vision, each.name) for each in dataclasses.fields(tiny_vision)
    }
    return Lossless(**fields)


class Painter:
    """Draws a clip for each prompt, and counts how often it was asked."""

    def __init__(self, model, paint):
        self._model, self._paint, self.asked = model, paint, 0

    def answers(self, questions):
        for question in questions:
            self.asked += 1
            assert question.ids[-len(self._model.marks.opening) :] == [*self._model.marks.opening]
            codes = self._model.encode_frames(self._paint(question))
            size = len(question.ids)
            yield (
                question,
                Response(text="", prompt_tokens=size, completion_tokens=1, codes=codes),
            )


def reads(question):
    """Returns the clip that the prompt asks for, found by its caption."""
    for split in ("train", "heldout"):
        world = World(WorldConfig(split=split, frames=question.frames))
        for number in range(CONFIG.samples):
            clip = world.clip(number)
            if question.message.endswith(f" of {clip.caption}"):
                return clip.pixels
    raise AssertionError(question.message)


def is_blind(question):
    """Returns the same clip for all prompts."""
    return World(WorldConfig(frames=question.frames)).clip(99).pixels


def painted(model, paint):
    painter = Painter(model, paint)
    subject = Subject.of_model(model)
    return dataclasses.replace(subject, answerer=lambda tokens, progress: painter), painter


def test_a_painter_that_reads_is_right_and_a_blind_one_as_good_as_another_clip(lossless, tmp_path):
    subject, _ = painted(lossless, reads)
    report = evaluate(subject, CONFIG, tmp_path / "reads").report
    assert [(group.split, group.frames) for group in report.groups] == [
        ("heldout", 1),
        ("train", 1),
        ("heldout", 8),
        ("train", 8),
    ]
    for group in report.groups:
        for name in group.attributes:
            assert group.mean(name).score == group.ceiling(name) == 1, (group.title, name)
    assert len(report.groups[0].attributes) == 6
    assert len(report.groups[3].attributes) == 9
    subject, _ = painted(lossless, is_blind)
    blind = evaluate(subject, CONFIG, tmp_path / "blind").report
    for group in blind.groups:
        assert group.mean("all").score == group.prior("all") == 0
        assert group.ceiling("all") == 1
    gains = [group.mean("background").score - group.prior("background") for group in blind.groups]
    assert np.mean(gains) == pytest.approx(0, abs=0.2)
    whole = json.loads((tmp_path / "blind" / REPORT).read_text())
    assert whole["overall"]["score"] == whole["chance"] == 0
    assert "| background       |     4 |" in blind.table()


def test_a_stopped_evaluation_goes_on_and_grows(lossless, tmp_path):
    subject, painter = painted(lossless, reads)
    small = AdherenceConfig(splits=("heldout",), frames=(1,), samples=3)

    def stop(done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="1 of 3 answers"):
        evaluate(subject, small, tmp_path / "parts", progress=stop)
    evaluate(subject, small, tmp_path / "parts")
    more = dataclasses.replace(small, samples=4, splits=("heldout", "train"))
    assert evaluate(subject, more, tmp_path / "parts").work.num_new == 5
    assert painter.asked == 8
    evaluate(subject, more, tmp_path / "whole")
    for name in (REPORT, SHEET):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(UserError, match=r"config\.seed was 0, is 1"):
        evaluate(subject, dataclasses.replace(more, seed=1), tmp_path / "parts")


@pytest.mark.slow
@pytest.mark.representative
def test_a_model_draws_and_is_judged(tiny_vision, tmp_path):
    config = AdherenceConfig(splits=("train",), frames=(2,), samples=2)
    run = evaluate(Subject.of_model(tiny_vision, rows=2), config, tmp_path)
    _, *rows = map(json.loads, (tmp_path / RESULTS).read_text().splitlines())
    assert [len(row["codes"]) for row in rows] == [2 * 64] * 2
    evaluation = AdherenceEvaluation(config, Subject.of_model(tiny_vision))
    for row in rows:
        clip = World(WorldConfig(frames=2)).clip(row["sample"])
        assert row["asked"] == json.loads(json.dumps(clip.facts.to_json()))
        assert row["answers"] == [clip.caption]
        assert set(row["agrees"]) >= {"kind", "colour", "all"}
        assert row["score"] == row["agrees"]["all"]
    assert evaluation.sheet(rows).shape == (2 * 64 + 2, 8 * 64 + 7 * 2, 3)
    assert run.report.header["vqgan"] == tiny_vision.vision.fingerprint


def test_models_that_do_not_draw_so_much_are_refused(
    tiny_model, tiny_vision, subject_of, byte_tokenizer, tmp_path
):
    with pytest.raises(UserError, match="tiny reads and writes text only"):
        evaluate(tiny_model, CONFIG, tmp_path)
    with pytest.raises(UserError, match="program is not in this process"):
        evaluate(subject_of(None, byte_tokenizer), CONFIG, tmp_path)
    long = AdherenceConfig(frames=(64,), samples=1)
    with pytest.raises(UserError, match=r"is above the context of tiny-vision.*; lower frames"):
        evaluate(tiny_vision, long, tmp_path)
    with pytest.raises(UserError, match="backgrounds is 'pink'; give some of white, grey, black"):
        check(AdherenceConfig(backgrounds=("pink",)), tmp_path)
    with pytest.raises(UserError, match="frames and samples must be 1 or more"):
        AdherenceConfig(frames=(0,))
