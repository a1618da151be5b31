"""`lwm plan`: tables for devices that are not there, of models that are not there."""

import json
import os
import re
import shutil
import subprocess
import sys

import huggingface_hub
import pytest
from huggingface_hub import constants

from lwm.cli.plan import plan
from lwm.convert.export import save_model
from lwm.convert.lwm_config import known_config
from lwm.errors import UserError
from lwm.hub import catalog


@pytest.fixture(autouse=True)
def nothing_here(monkeypatch, tmp_path):
    monkeypatch.setenv("LWM_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))


def rows(text):
    """Reads a table: what each line begins with, and its numbers of GB."""
    lines = (re.split(r"  +", line.strip()) for line in text.splitlines())
    return {first: rest for first, *rest in lines if rest}


def test_a_million_tokens_on_devices_that_are_not_there(capsys):
    plan("LWM-Text-1M", context=2**20, mesh="1,1,32,4", dtype="bfloat16", memory=80.0)
    shown = capsys.readouterr().out
    found = rows(shown)
    # 512 GiB over 32 parts of the heads and 4 of the row, and a page of each device for no row.
    assert found["cache"] == ["4.30 GB", "550.29 GB"]
    assert found["weights"][0] == "0.42 GB"
    assert "devices: 128" in shown


def test_a_chunk_divides_over_the_sequence_axis():
    with pytest.raises(UserError, match="64 tokens of a chunk do not divide by sp 128"):
        plan("LWM-Text-1M", context=4096, mesh="1,1,1,128")


def test_tokens_that_the_cache_holds(capsys):
    """They fit, and the next page does not."""
    plan("LWM-Text-1M", context=2**20, mesh="1,1,4,8", dtype="bfloat16", memory=32.0)
    shown = capsys.readouterr().out
    assert "A device has 32.00 GB: 1,048,576 tokens fit." in shown
    (held,) = re.findall(r"The cache has room for ([\d,]+) tokens", shown)
    most = int(held.replace(",", ""))
    for context, verdict in ((most, "fit"), (most + 1, "do not fit")):
        plan("LWM-Text-1M", context=context, mesh="1,1,4,8", dtype="bfloat16", memory=32.0)
        assert f"{context:,} tokens {verdict}." in capsys.readouterr().out
    plan("LWM-Text-1M", context=512, mesh="2,1,4,8", dtype="bfloat16", memory=32.0)
    assert f"each of 2 groups of 32 devices has room for {held} tokens" in capsys.readouterr().out


def test_contexts_up_to_the_models_own(capsys):
    plan("LWM-Chat-128K", dtype="bfloat16", memory=40.0)
    shown = capsys.readouterr().out
    found = rows(shown)
    assert list(found)[1:] == ["4,096", "32,768", "131,072"]
    assert [found[each][-1] for each in list(found)[1:]] == ["yes", "yes", "no"]
    assert "131,072 tokens do not fit.\nTo make them fit:\n  give --context 32768\n" in shown


def test_parts_add_up(capsys):
    plan("LargeWorldModel/LWM-Text-Chat-512K", context=131_072, rows=2, mesh="tp=8", memory=80.0)
    found = rows(capsys.readouterr().out)
    *parts, total = (
        float(found[part][0].removesuffix(" GB"))
        for part in ("weights", "cache", "activations", "total")
    )
    assert sum(parts) == pytest.approx(total, abs=0.02)
    assert parts[:2] == [3.37, 34.39]


def test_this_machine_and_more_than_it_has(capsys):
    plan("LWM-Text-128K", context=131_072)
    assert "131,072 tokens" in capsys.readouterr().out
    plan("LWM-Text-128K", mesh="16,1,1,1")
    shown = capsys.readouterr().out
    assert "give --memory" in shown
    assert "FITS" not in shown


def test_more_tokens_than_a_model_was_trained_for(capsys):
    plan("LWM-Text-128K", context=2**20, memory=1000.0)
    assert "was trained for 131,072 tokens." in capsys.readouterr().out


def test_of_a_hubs_model_only_its_shape_is_fetched(capsys, monkeypatch, tmp_path):
    shape = {
        "model_type": "llama",
        "vocab_size": 256,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
    }
    (tmp_path / "config.json").write_text(json.dumps(shape))
    held, asked = ["config.json", "model.safetensors"], []

    def describe(*_, **__):
        files = [huggingface_hub.hf_api.RepoSibling(rfilename=name, size=1) for name in held]
        return type("Info", (), {"siblings": files})

    def download(repo, name):
        asked.append((repo, name))
        return str(tmp_path / name)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", describe)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    plan("org/name")
    assert list(rows(capsys.readouterr().out))[1:] == ["512"]
    assert asked == [("org/name", "config.json")]
    held.remove("config.json")
    with pytest.raises(UserError, match=r"org/name has no config\.json"):
        plan("org/name")


def test_a_model_of_files(capsys, tmp_path, model):
    save_model(model.llama, model.tokenizer, tmp_path / "tiny")
    plan(str(tmp_path / "tiny"))
    found = rows(capsys.readouterr().out)
    assert list(found)[1:] == ["512"], "the model's own context"


def test_a_preset_and_files_that_lack_a_context(capsys, fixtures, tmp_path):
    plan("7b", dtype="bfloat16", memory=40.0)
    assert list(rows(capsys.readouterr().out))[-1] == "4,096"
    folder = shutil.copytree(fixtures / "tokenizer", tmp_path / "theirs")
    file = str(shutil.copy(fixtures / "text_tiny_params_noscan.msgpack", folder / "params"))
    config = f"json::{fixtures / 'text_tiny_config.json'}"
    plan(file, config=config, theta=1e4, rope_scaling="linear:2", context=99)
    assert "99 tokens fit" in capsys.readouterr().out
    with pytest.raises(UserError, match="how many heads is not known; give --config"):
        plan(file, context=99)


MISTAKES = [
    (dict(context=0), r"--context is 0"),
    (dict(memory=-1.0), r"--memory is -1"),
    (dict(memory=float("nan")), r"--memory is nan"),
    (dict(memory=1e300), r"--memory is 1e\+300, but must be above 0 and below"),
    (dict(rows=0), r"--rows is 0"),
    (dict(mesh="1,-1,1,1"), r"write the number in place of -1"),
    (dict(mesh="1,1,3,1"), r"does not divide by tp 3"),
    (dict(mesh="four"), r"cannot be read"),
    (dict(theta=0.5), r"theta 0\.5 must be above 1"),
    (dict(rope_scaling="yarn:4"), r"rope_scaling 'yarn:4' cannot be read .* give none, linear:"),
]


@pytest.mark.parametrize(("options", "says"), MISTAKES)
def test_mistakes(capsys, options, says):
    with pytest.raises(UserError, match=says) as caught:
        plan("LWM-Text-128K", **options)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_shapes_that_are_known():
    text, sees = (known_config(catalog.find_model(f"LWM-{name}-1M")) for name in ("Text", "Chat"))
    assert text is not None
    assert sees is not None
    assert (text.tokens.size, sees.tokens.size) == (32_000, 40_448)
    assert (text.max_context, text.rope.theta) == (2**20, 5e7)
    assert known_config(catalog.find_model("smollm2-135m-instruct")) is None


def test_no_device_is_looked_for_and_little_is_imported():
    code = (
        "from lwm.cli.plan import plan\n"
        "plan('LWM-Chat-1M', mesh='1,1,32,8', memory=32.0)\n"
        "import sys, jax._src.xla_bridge as bridge\n"
        "assert not bridge._backends\n"
        "assert not {'tokenizers', 'huggingface_hub', 'lwm.loading'} & set(sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert "devices: 256" in run.stdout
