"""The needle test asked of a tiny model, and of a real one."""

import dataclasses
import json
import os
import signal

import jax
import pytest

from lwm.cli.eval import run_needle
from lwm.devices import Machine
from lwm.errors import UserError
from lwm.eval.answer import ModelAnswerer, describe_model
from lwm.eval.needle.config import NeedleConfig
from lwm.eval.needle.prompts import Prompts
from lwm.eval.needle.run import DRAWING, PICTURE, REPORT, RESULTS, evaluate
from lwm.eval.question import Question
from lwm.eval.results import Results
from lwm.eval.subject import Subject
from lwm.generate import loaded
from lwm.generate.answer import Answer
from lwm.model.config import ModelOverrides
from lwm.sampling_params import SamplingParams

TINY = NeedleConfig(lengths=(600, 2400), depths=(0.0, 50.0, 100.0), max_tokens=8)


def test_a_model_stopped_by_ctrl_c_goes_on(tiny_model, tmp_path, monkeypatch, capsys):
    grid = dataclasses.replace(TINY, lengths=(600, 700))
    run_needle(tiny_model, grid, tmp_path / "whole")
    assert "6 of 6 questions asked now" in capsys.readouterr().out
    append = Results.append

    def interrupted(self, row):
        append(self, row)
        if len(self.rows) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Results, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_needle(tiny_model, grid, tmp_path / "torn")
    assert "stopped with 2 of 6 answers" in capsys.readouterr().err
    assert not (tmp_path / "torn" / REPORT).exists()
    monkeypatch.undo()
    run_needle(tiny_model, grid, tmp_path / "torn")
    assert "4 of 6 questions asked now" in capsys.readouterr().out
    for name in (RESULTS, REPORT, PICTURE, DRAWING):
        assert (tmp_path / "torn" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.representative
def test_an_answer_does_not_hang_on_those_before(tiny_model):
    prompts = Prompts(TINY, tiny_model.tokenizer)
    asked = [prompts.build(cell) for cell in prompts.cells]

    def answers(order):
        model, found = dataclasses.replace(tiny_model), {}
        answer = ModelAnswerer(model, tokens=2400)
        for i in order:
            ((_, response),) = answer.answers([asked[i]])
            again = Answer(model, asked[i].ids, SamplingParams(max_tokens=8))
            assert "".join(map(str, again)) == response.text
            found[i] = response.text, again.ids, again.logprobs
        return found, answer

    together, answer = answers(range(6))
    assert answer.num_asked == sum(len(question.ids) for question in asked)
    assert answer.num_read < answer.num_asked
    assert together == answers(reversed(range(6)))[0]
    assert together == {i: answers([i])[0][i] for i in range(6)}


def test_models_that_differ_are_told_apart(tiny_model):
    def grown(leaf):
        return leaf * 1.5

    other = dataclasses.replace(tiny_model, llama=jax.tree.map(grown, tiny_model.llama))
    templated = dataclasses.replace(tiny_model, template="lwm")
    described = [json.dumps(describe_model(m)) for m in (tiny_model, other, templated)]
    assert len(set(described)) == 3
    assert describe_model(tiny_model) == describe_model(tiny_model)


def test_another_model_under_the_same_path_is_refused(tiny_model, oracle, tmp_path):
    """Also one whose weights differ where `describe_model` does not look."""
    program = oracle(tiny_model.tokenizer)
    (tmp_path / "model").mkdir()
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(bytes(99))
    model = dataclasses.replace(tiny_model, source=tmp_path / "model")

    def asked():
        subject = Subject.of_model(model)
        subject = dataclasses.replace(subject, answerer=lambda tokens, progress: program)
        evaluate(subject, TINY, tmp_path / "out")

    asked()
    asked()
    assert len(program.asked) == 6
    weights.write_bytes(bytes(98) + b"?")
    with pytest.raises(UserError, match=r"another evaluation \(files\.model\.safetensors was "):
        asked()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"theta": 10.0}, r"model\.config\.rope\.theta was 10000\.0, is 10\.0"),
        ({"rope_scaling": "linear:2"}, r"config\.rope\.scaling was null, is \{\"factor\": 2\.0\}"),
        ({"context": 99}, r"context was \d+, is 99"),
    ],
)
def test_results_of_another_rope_or_context_are_refused(tiny_model, tmp_path, changes, said):
    llama = tiny_model.llama
    changed = dataclasses.replace(llama, config=ModelOverrides(**changes).applied(llama.config))
    other = dataclasses.replace(tiny_model, llama=changed)
    Results(tmp_path / RESULTS, {"model": describe_model(tiny_model)})
    Results(tmp_path / RESULTS, {"model": describe_model(tiny_model)})
    with pytest.raises(UserError, match=said):
        Results(tmp_path / RESULTS, {"model": describe_model(other)})


def test_a_length_above_the_context_is_refused(tiny_model, tmp_path):
    with pytest.raises(UserError, match=r"above the context of tiny, 2,560 tokens"):
        evaluate(tiny_model, NeedleConfig(), tmp_path)


def test_what_no_memory_is_left_for_is_refused(tiny_model, monkeypatch):
    none = Machine(count=1, memory=1, platform="cpu")
    monkeypatch.setattr(loaded, "machine", lambda devices: none)
    question = Question(cell=None, message="", ids=[7] * 2400, max_tokens=8)
    with pytest.raises(UserError, match=r"tiny needs .* for 2,560 tokens") as caught:
        # With an engine that has no page yet.
        next(ModelAnswerer(dataclasses.replace(tiny_model), tokens=2400).answers([question]))
    assert "\n" not in str(caught.value)
