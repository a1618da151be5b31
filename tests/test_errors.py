"""One text where several may be given is one text, not its letters."""

from pathlib import Path

import pytest

from lwm.data.sets import open_records
from lwm.data.sources import TextFiles
from lwm.errors import UserError, several
from lwm.generate.batch import complete
from lwm.generate.stopping import StoppingText
from lwm.generate.vision import DrawRequest
from lwm.sampling_params import SamplingParams
from lwm.tokenizer.message import Message
from lwm.train.config import DataSet
from lwm.train.monitor.plot import plot_runs
from lwm.train.vqgan.config import FrameSet

ONE: tuple = ("night",)


class Words:
    """Decodes ids to texts that are given."""

    def __init__(self, *words):
        self._words = words

    def push(self, token):
        return self._words[token]

    def finish(self):
        return ""


def test_a_single_stop_string_is_one():
    assert SamplingParams(stop="night").stop == ONE
    assert SamplingParams(stop=["night", "day"]).stop == ("night", "day")
    assert SamplingParams().stop == ()
    text = StoppingText(Words("a thin", " night", " x"), "night")
    assert "".join(map(text.push, range(3))) + text.finish() == "a thin "
    assert text.met == "night"
    with pytest.raises(UserError, match=r"stop .* must be texts"):
        SamplingParams(stop=["night", ""])


def test_a_single_prompt_of_a_batch_is_one(model):
    params = SamplingParams(max_tokens=1)
    with pytest.raises(UserError, match=r"^the prompt has"):
        complete(model, "night" * 200, params)
    assert DrawRequest(prompts="night").prompts == ONE


def test_a_single_file_is_one(tmp_path):
    (file := tmp_path / "night.jsonl").write_text('{"text": "a"}\n')
    assert len(open_records(str(file))) == 1
    assert TextFiles(file)[0].name == str(file)
    assert DataSet(files="night").files == ONE
    assert FrameSet(files="night").files == ONE
    with pytest.raises(UserError, match="absent"):
        plot_runs(str(tmp_path / "absent"))


def test_a_message_of_one_text_holds_it():
    assert Message("user", "night").text == "night"
    assert Message("user", "night").parts == ONE


def test_several_keeps_what_is_a_sequence():
    assert several(["a", Path("b")]) == ("a", Path("b"))
    assert several(Path("b")) == (Path("b"),)
    assert several(None) == ()


def test_a_long_value_is_cut_inside_a_message():
    text = str(UserError(f"a: value {'x' * 100_000} is no number; fetch it again\nsecond"))
    assert text.startswith("a: value xxx")
    assert text.endswith("; fetch it again\nsecond")
    assert len(text) < 2100
    assert str(UserError("short")) == "short"
