"""The programs in `examples`, on a folder that `lwm convert` wrote: the same as ours, offline."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

import lwm
from lwm.convert.convert import convert_model
from lwm.convert.open import open_model_files
from lwm.files import ASSETS
from lwm.media.frames import read_frames
from lwm.sampling_params import FrameSampling, VisionSampling

pytestmark = pytest.mark.torch
EXAMPLES = Path(__file__).parents[2] / "examples"
GREEDY = FrameSampling(temperature=0.0)


def example(name):
    """Imports a program, whose libraries must be there."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    for library in ("transformers", "diffusers"):
        pytest.importorskip(library, reason=f"{library} is not installed")
    torch.set_num_threads(1)  # which is faster for a model of this size
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "tiny-vision"
    convert_model(open_model_files("tiny-vision"), folder, dtype="float32")
    return folder


@pytest.fixture(scope="module")
def ours(folder):
    return lwm.load(folder)


def test_a_clip_is_the_same_token_for_token(folder, ours):
    draw = example("draw")
    codes, pictures = draw.draw(folder, "a red fox", frames=2, temperature=0.0)
    sampling = VisionSampling(image=GREEDY, video=GREEDY)
    (wanted,) = ours.draw("a red fox", frames=2, sampling=sampling)
    np.testing.assert_array_equal(codes, wanted.codes)
    found = np.stack([np.asarray(picture) for picture in pictures])
    assert np.abs(found.astype(int) - wanted.pixels.astype(int)).max() <= 1


def test_a_sampled_image_is_written(folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "fox.png"
    options = ["--out", str(out), "--top-k", "4", "--guidance", "1"]
    monkeypatch.setattr(sys, "argv", ["draw.py", str(folder), "a red fox", *options])
    example("draw").main()
    assert capsys.readouterr().out.endswith(f"{out}\n")
    assert read_frames(out, resolution=64).pixels.shape == (1, 64, 64, 3)


def test_a_picture_is_described_alike(folder, ours, monkeypatch, capsys):
    file, question = ASSETS / "clips" / "1f30c.webp", "What is shown in this image?"
    monkeypatch.setattr(sys, "argv", ["describe.py", str(folder), str(file), question])
    example("describe").main()
    answer = ours.chat([question, ours.see(file, max_frames=1)], max_tokens=128)
    assert answer == "milky way"
    assert capsys.readouterr().out == f"{answer}\n"


def test_a_text_is_continued_and_a_question_answered_alike(folder, ours, monkeypatch, capsys):
    sample = example("sample_text")
    assert sample.sample(folder, "the sun") == ours.generate("the sun", max_tokens=128)
    monkeypatch.setattr(sys, "argv", ["sample_text.py", str(folder), "bear", "--chat"])
    sample.main()
    assert capsys.readouterr().out == f"{ours.chat('bear', max_tokens=128)}\n"
