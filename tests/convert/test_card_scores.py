"""Scores of evaluations are in the card of the model that they are of, and of no other."""

import dataclasses
import json

import pytest

from lwm.convert.card import card
from lwm.convert.card_facts import facts_of
from lwm.convert.card_scores import of_reports
from lwm.convert.open import open_model_files
from lwm.errors import UserError
from lwm.files import ASSETS
from lwm.fingerprint import fingerprints, model_files, named


def reports_of(opened, run, given=()):
    return of_reports(opened.source, opened.config, run, given)


@pytest.fixture
def measured():
    """The model of the package, and a report of it."""
    opened = open_model_files("tiny-vision")
    report = {
        "evaluation": "needle",
        "command": "lwm eval needle tiny-vision --lengths 256",
        "model": {"name": "tiny", "config": dataclasses.asdict(opened.config)},
        "config": {"needles": 1, "ask": 1},
        "files": fingerprints(named(model_files(opened.source))) | {"vqgan/vqgan.json": "-"},
        "overall": {"asked": 40, "score": 0.45, "interval95": [0.3, 0.6]},
        "by_length": [{"context_length": 256}, {"context_length": 1024}],
    }
    return opened, report


def test_reports_of_the_model_are_in_its_card_and_others_are_not(measured, tmp_path):
    opened, report = measured
    file = tmp_path / "run" / "eval" / "report.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(report))
    (score,) = reports_of(opened, tmp_path / "run", [])
    assert (score.what, score.how) == ("one needle, 256 to 1,024 tokens", report["command"])
    assert score.result == "45.0% (95%: 30.0% to 60.0%); n = 40"
    assert reports_of(opened, None, [file.parent]) == [score]
    assert reports_of(opened, tmp_path / "run", [file.parent, file]) == [score], "each once"
    text = card(facts_of(opened, "bfloat16", reports=[file]))
    assert text.count(score.result) == 1
    assert f"| {score.what} | {score.result} | {score.how} |" in text
    assert 'VQModel.from_pretrained("FOLDER", subfolder="vqvae")' in text
    assert "suppress_tokens = None" in text
    size = sum(opened.tensors[name].size for name in opened.tensors)
    assert f"| parameters | {size:,} |" in text
    del report["command"]
    file.write_text(json.dumps(report))
    (without,) = reports_of(opened, tmp_path / "run", [])
    assert without.how == "lwm eval needle with needles 1, ask 1"
    others = [
        report | {"files": report["files"] | {"model.safetensors": "1 bytes, sha256 0"}},
        report | {"files": {}},
        report | {"model": {"config": report["model"]["config"] | {"max_context": 1}}},
        report | {"overall": {}},
        {"evaluation": "needle"},
    ]
    for other in others:
        file.write_text(json.dumps(other))
        assert reports_of(opened, tmp_path / "run", []) == []
        with pytest.raises(UserError, match=r"report\.json is no report of .*tiny-vision as it is"):
            reports_of(opened, None, [file])


def test_a_report_of_a_suite_gives_the_scores_of_its_parts(measured, tmp_path):
    opened, needle = measured
    perplexity = {
        "config": {"length": 512},
        "overall": {"asked": 4088, "perplexity": 60.5562, "interval95": None, "segments": 8},
        "effective_context": {"more_than": 256},
    }
    ruler = needle | {"effective_length": {"statement": "effective length: 1,024"}}
    parts = {"needle": needle, "perplexity": perplexity, "ruler": ruler}
    suite = needle | {
        "evaluation": "suite",
        "command": "lwm eval all x",
        "parts": [{"kind": kind, "report": report} for kind, report in parts.items()],
    }
    for name, report in (("eval", suite), ("eval/needle", needle)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(report))
    found = reports_of(opened, tmp_path, [])
    assert [one.what for one in found] == [
        "one needle, 256 to 1,024 tokens",
        "perplexity, segments of 512 tokens",
        "RULER, 256 to 1,024 tokens",
    ]
    assert {one.how for one in found} == {"lwm eval all x"}
    assert found[1].result == (
        "60.56; n = 8 segments, 4,088 tokens; uses more than 256 tokens of context"
    )


def test_scores_of_captioned_media(measured, tmp_path):
    opened, needle = measured
    report = {
        "model": "tiny-vision",
        "described": needle["model"],
        "fingerprints": {"model": needle["files"]},
        "pairs": 64,
        "codes_accuracy": 1.0,
        "drawn": 63,
        "told": 62,
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    (score,) = reports_of(opened, None, [tmp_path])
    assert score.result == (
        "63 of 64 generated, 62 of 64 captioned, 100.00% of the codes given those before"
    )


@pytest.mark.parametrize(
    ("kind", "config", "what"),
    [
        ("qa", {"rule": "vqa", "blind": True}, "rule vqa, asked without them"),
        ("adherence", {}, "captions of the world, generated in all attributes"),
        ("visual-needle", {"task": "draw"}, "picture in a long video, generated"),
    ],
)
def test_scores_of_evaluations_about_images(kind, config, what, measured, tmp_path):
    opened, report = measured
    report |= {"evaluation": kind, "config": config, "by_length": []}
    (tmp_path / "report.json").write_text(json.dumps(report))
    (score,) = reports_of(opened, None, [tmp_path])
    assert score.what.endswith(what)
    assert score.result == "45.0% (95%: 30.0% to 60.0%); n = 40"
    suite = {name: report[name] for name in ("model", "files", "command")}
    suite |= {"evaluation": "suite", "parts": [{"kind": "any", "report": report}]}
    (tmp_path / "report.json").write_text(json.dumps(suite))
    assert reports_of(opened, None, [tmp_path]) == [score]


def test_scores_of_a_vqgan(measured, tmp_path):
    files = fingerprints(named(model_files(ASSETS / "vqgan-64")))
    report = {
        "vqgan": "vqgan-64",
        "config": {},
        "fingerprints": {"vqgan": files, "inputs": {}},
        "command": "lwm eval vqgan vqgan-64 clips",
        "psnr": 25.25,
        "psnr_foreground": float("nan"),
        "ssim": 0.91234,
        "frames": 8,
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    (score,) = of_reports(ASSETS / "vqgan-64", None, None, [tmp_path])
    assert score.result == "PSNR 25.25 dB, SSIM 0.9123; n = 8 frames"
    assert score.how == report["command"]
    opened, _ = measured
    with pytest.raises(UserError, match="is no report of"):
        reports_of(opened, None, [tmp_path])
