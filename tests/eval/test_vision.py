"""`tiny-vision`, from files to pictures and words: the whole path, not generalisation."""

import json

import numpy as np
import pytest

import lwm
from lwm.cli.eval import run_vision
from lwm.convert.card_scores import of_reports
from lwm.convert.open import open_model_files
from lwm.errors import UserError
from lwm.eval.vision import measure, read_pairs
from lwm.generate.grammar import FrameLimits
from lwm.generate.plan import GenerationPlan, VisionPlan
from lwm.generate.sampling import Sampler, Temperature
from lwm.generate.work import Work, Written
from lwm.tokenizer.template import render_chat

CLIPS = ("shipped:clips",)


@pytest.fixture(scope="module")
def tiny_vision():
    return lwm.load("tiny-vision")


@pytest.mark.slow
def test_all_clips_are_drawn_and_told(tiny_vision, tmp_path, capsys):
    pairs = read_pairs(CLIPS)
    assert len({pair.caption for pair in pairs}) == len(pairs) == 64
    run_vision(tiny_vision, CLIPS, tmp_path)
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["codes_accuracy"] >= 0.99
    assert found["drawn"] >= 60
    assert found["told"] >= 60
    assert found["pairs"] == len(found["rows"]) == 64
    assert f"{found['drawn']} of 64" in capsys.readouterr().out
    opened = open_model_files("tiny-vision")
    (score,) = of_reports(opened.source, opened.config, None, [tmp_path])
    said = f"{found['drawn']} of 64 generated, {found['told']} of 64 captioned, "
    assert score.result.startswith(said)
    assert score.how == found["command"]


@pytest.mark.slow
@pytest.mark.parametrize("videos", [pytest.param(20, marks=pytest.mark.representative), 1000])
def test_videos_at_temperature_two_are_legal(tiny_vision, videos):
    """Drawn after a question that itself says `<vision>`, which opens nothing."""
    grammar, tokens = tiny_vision.grammar, tiny_vision.marks.tokens
    asked = [{"role": "user", "content": "Generate a video of <vision> a tiger </vision>"}]
    prompt = render_chat(asked, tiny_vision.tokenizer, marks=tiny_vision.marks)
    assert max(prompt) < tokens.text
    prompt += tiny_vision.marks.opening
    rules = FrameLimits(least=1, most=3, inside=True, is_all=True)
    vision = VisionPlan(state=grammar.start([rules], room=195))
    sampler = Sampler(rules=(Temperature(2.0),))
    plans = [
        GenerationPlan(max_tokens=195, sampler=sampler, seed=seed, vision=vision)
        for seed in range(videos)
    ]
    requests = [Work(plan=plan).request(prompt, lane=tiny_vision.lane(videos)) for plan in plans]
    ids: list[list[int]] = [[] for _ in requests]
    for number, event in tiny_vision.engine.gather(requests):
        if isinstance(event, Written):
            ids[number] += event.ids
    counts = [frames_of(np.array(row), tokens, grammar.tokens_per_frame) for row in ids]
    assert len(counts) == videos
    assert set(counts) == {1, 2, 3}


def frames_of(ids, tokens, size):
    """Counts the frames of a video that has whole frames only, and ends."""
    frames = ids.reshape(-1, size + 1)
    assert ((frames[:, :-1] >= tokens.text) & (frames[:, :-1] < tokens.end_of_frame)).all()
    assert (frames[:-1, -1] == tokens.end_of_frame).all()
    assert frames[-1, -1] == tokens.end_of_vision
    return len(frames)


def write(file, *records):
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return (str(file),)


def test_frames_are_those_of_the_model(tiny_vision, tmp_path):
    files = write(tmp_path / "a.jsonl", {"caption": "a", "vision": [0] * 128})
    (pair,) = read_pairs(files, tokens_per_frame=tiny_vision.vision.tokens_per_frame)
    assert pair.vision.codes.shape == (2, 64)
    files = write(tmp_path / "b.jsonl", {"caption": "a", "vision": [0] * 128, "frames": 1})
    with pytest.raises(UserError, match="has 128 codes a frame, but tiny-vision 64"):
        measure(tiny_vision, read_pairs(files))


def test_a_folder_that_cannot_be_written_is_found_first(tiny_vision, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file cannot be written"):
        run_vision(tiny_vision, ("none",), tmp_path / "file", count=1)
    with pytest.raises(UserError, match="none"):
        run_vision(tiny_vision, ("none",), tmp_path / "new", count=1)
    assert not list((tmp_path / "new").iterdir())


def test_records_without_captions_are_refused(tmp_path):
    files = write(tmp_path / "a.jsonl", {"text": "a"})
    with pytest.raises(UserError, match=r"a.jsonl:1: it should have a 'caption' and codes"):
        read_pairs(files)
