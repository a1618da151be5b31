"""lm-evaluation-harness with our model, beside its own model class for transformers."""

import dataclasses
import json
import logging
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from lwm.convert.export import save_model
from lwm.errors import UserError
from lwm.generate.plan import GenerationPlan
from lwm.generate.work import Scores, Work

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
# The harness is installed with the oracles; its libraries have warnings of their own.
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

TASKS = Path(__file__).parents[1] / "fixtures" / "harness"
NAMES = ["lwm_choices", "lwm_texts", "lwm_questions"]
MODEL = "smollm2-135m-instruct"


@pytest.fixture
def wrapped(tiny_model):
    from lwm.eval.harness import HarnessModel

    return lambda **options: HarnessModel(tiny_model, **options)


def instances(*arguments, kind: Any = "loglikelihood"):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


def expected(model, ids, first):
    """Returns the sum of log-probabilities, and whether all are the greatest, read alone."""
    request = Work(plan=GenerationPlan(max_tokens=0), scores_from=1).request(ids)
    events = [event for event in model.engine.stream(request) if isinstance(event, Scores)]
    logprobs = [value for event in events for value in event.logprobs]
    greedy = [value for event in events for value in event.is_likeliest]
    return math.fsum(logprobs[first - 1 :]), all(greedy[first - 1 :])


def test_pairs_are_encoded_as_the_harness_does(wrapped, tiny_model):
    """A byte is a token: spaces at the end of a context belong to the continuation."""
    lm = wrapped()
    end = tiny_model.tokenizer.eos_id
    pairs = [("Hello ", "you"), ("Hello", " you"), ("", "you"), ("  ", "you")]
    found = lm.loglikelihood(instances(*pairs), disable_tqdm=True)
    encode = tiny_model.tokenizer.encode
    assert found[0] == found[1] == expected(tiny_model, encode("Hello you"), 5)
    assert found[2] == expected(tiny_model, [end, *encode("you")], 1)
    assert found[3] == expected(tiny_model, [end, *encode("  you")], 1)


def test_a_continuation_is_greedy_if_the_model_would_write_it(wrapped, tiny_model):
    answer = tiny_model.stream("Hello", max_tokens=5)
    list(answer)
    other = [*answer.ids[:4], (answer.ids[4] + 1) % 256]
    ids = tiny_model.tokenizer.encode("Hello")
    pairs = [(None, ids, answer.ids), (None, ids, other), (None, ids, [])]
    (best, is_greedy), (worse, is_other), empty = wrapped()._loglikelihood_tokens(pairs)
    assert (is_greedy, is_other, empty) == (True, False, (0.0, True))
    assert best == pytest.approx(math.fsum(answer.logprobs), abs=1e-4)
    assert worse < best


def test_a_text_begins_with_its_first_token_once(tiny_model):
    from lwm.eval.harness import HarnessModel

    tokenizer = dataclasses.replace(tiny_model.tokenizer, bos_id=256, add_bos=True)
    lm = HarnessModel(dataclasses.replace(tiny_model, tokenizer=tokenizer))
    plain = tokenizer.encode("Hi")
    assert lm.tok_encode("Hi") == lm.tok_encode("<|im_start|>Hi") == [256, *plain]
    assert lm.tok_encode("Hi", add_special_tokens=False) == plain
    assert lm.prefix_token_id == 256
    without = HarnessModel(lm.model, add_bos_token=False, prefix_token_id=7)
    assert without.tok_encode("Hi") == plain
    assert without.prefix_token_id == 7


def test_long_contexts_lose_their_start_with_a_warning_and_a_count(wrapped, tiny_model, caplog):
    lm = wrapped(max_length=16)
    text = "0123456789" * 3
    with caplog.at_level(logging.WARNING):
        (found,) = lm.loglikelihood(instances((text, "abc")), disable_tqdm=True)
    ids = tiny_model.tokenizer.encode(text + "abc")[-17:]
    assert found == expected(tiny_model, ids, 14)
    assert "a prompt of 33 tokens was cut on the left to 17" in caplog.text
    assert lm.get_model_info()["num_truncated"] == 1
    with pytest.raises(UserError, match="a continuation has 17 tokens, more than max_length 16"):
        lm.loglikelihood(instances(("a", "b" * 17)), disable_tqdm=True)
    prompt = instances((text, {"until": [], "max_gen_toks": 6}), kind="generate_until")
    (answer,) = lm.generate_until(prompt, disable_tqdm=True)
    assert answer == tiny_model.generate(text[-10:], max_tokens=6)
    full = instances(("a", {"max_gen_toks": 16}), kind="generate_until")
    with pytest.raises(UserError, match="max_gen_toks 16 leaves no room for a prompt"):
        lm.generate_until(full, disable_tqdm=True)


def test_a_whole_text_is_scored_in_windows_up_to_the_whole_context(wrapped, tiny_model):
    text = "The sea, the sea. " * 200
    ids = [tiny_model.tokenizer.eos_id, *tiny_model.tokenizer.encode(text)]
    assert len(ids) == 3601
    requests = instances((text,), ("",), kind="loglikelihood_rolling")
    found, empty = wrapped().loglikelihood_rolling(requests, disable_tqdm=True)
    first, _ = expected(tiny_model, ids[:2561], 1)
    second, _ = expected(tiny_model, ids[-2561:], 2561 - 1040)
    assert found == pytest.approx(first + second, abs=1e-3)
    assert empty == 0


def test_answers_follow_the_options_of_their_task(wrapped, tiny_model):
    whole = tiny_model.generate("Hello", max_tokens=12)
    options = [
        {"until": [], "max_gen_toks": 12},
        {"until": [whole[4:6], ""], "max_tokens": 12},
        {"until": "nowhere", "max_gen_toks": 12, "temperature": 1.0, "top_p": 0.9},
        {"do_sample": True, "max_gen_toks": 12, "temperature": 1.0, "top_p": 0.9, "seed": 2},
        {"do_sample": False, "temperature": 1.0, "max_gen_toks": 12, "num_beams": 1},
    ]
    requests = instances(*(("Hello", each) for each in options), kind="generate_until")
    found = wrapped().generate_until(requests, disable_tqdm=True)
    alone = wrapped(batch_size=1).generate_until(requests[:1], disable_tqdm=True)
    assert found[0] == found[4] == whole == alone[0]
    assert found[1] == whole[: whole.index(whole[4:6])]
    sampled = tiny_model.generate("Hello", max_tokens=12, temperature=1.0, top_p=0.9, seed=2)
    assert found[2] == found[3] == sampled != whole  # the third request has seed 2, too


def test_requests_with_a_common_start_read_it_once(wrapped, tiny_model):
    context = "A long story that ends. " * 60
    pairs = [(context, " Yes"), ("Other", " no"), (context, " No"), (context, " Yes")]
    runner = tiny_model.engine._runner
    before = sum(each.num_used for each in runner._scheduler.pages)
    reads = []
    extend = runner._extend

    def counting(now, size):
        reads.append((size, [read.start for read in now]))
        return extend(now, size)

    runner._extend = counting
    try:
        found = wrapped(batch_size=2).loglikelihood(instances(*pairs), disable_tqdm=True)
    finally:
        runner._extend = extend
    assert found[0] == found[3] != found[2]
    assert sum(each.num_used for each in runner._scheduler.pages) == before
    long = [starts for size, starts in reads if size == 512]
    assert long.count([0]) == long.count([512]) == 1


def test_wrong_arguments_are_refused_in_one_line(wrapped, tiny_model):
    from lwm.eval.harness import HarnessModel

    with pytest.raises(UserError, match="peft is no argument of --model lwm"):
        wrapped(peft="adapter")
    with pytest.raises(UserError, match="max_length 4,096 must be from 1 to the context of tiny"):
        wrapped(max_length=4096)
    endless = dataclasses.replace(tiny_model.tokenizer, eos_id=None)
    with pytest.raises(UserError, match="no token that ends a text"):
        HarnessModel(dataclasses.replace(tiny_model, tokenizer=endless)).prefix_token_id  # noqa: B018


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([], ["--help"]),
        (["ls", "models"], ["ls", "models"]),
        (["--tasks", "a"], ["run", "--model", "lwm", "--batch_size", "auto", "--tasks", "a"]),
        (["run", "--model=hf", "-b", "2"], ["run", "--model=hf", "-b", "2"]),
        (["-b", "2"], ["run", "--model", "lwm", "-b", "2"]),
    ],
)
def test_the_model_is_ours_unless_another_is_named(given, wanted):
    from lwm.eval.harness import _with_model

    assert list(_with_model(given)) == wanted


def test_a_missing_harness_is_named():
    code = (
        "import sys; sys.modules['lm_eval'] = None\n"
        "sys.argv[1:] = ['eval', 'harness', '--tasks', 'a']\n"
        "from lwm.cli import main; main()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr == "lwm: lwm eval harness needs lm_eval: pip install 'lwm[harness]'\n"


@pytest.fixture(scope="module")
def smol(tmp_path_factory):
    """The real model, and its copy in a folder for transformers."""
    import lwm

    model = lwm.load(MODEL)
    folder = tmp_path_factory.mktemp("smol") / "model"
    with jax.set_mesh(model.mesh):
        save_model(model.llama, model.tokenizer, folder)
    return model, folder


@pytest.fixture(scope="module")
def both(smol):
    """Both model classes, with a context so short that texts are divided."""
    from lm_eval.models.huggingface import HFLM

    from lwm.eval.harness import HarnessModel

    model, folder = smol
    theirs = HFLM(pretrained=str(folder), dtype="float32", device="cpu", max_length=32)
    return HarnessModel(model, max_length=32), theirs


@pytest.mark.network
def test_the_harness_finds_the_same_with_us_as_with_transformers(both, tmp_path, monkeypatch):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(TASKS)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    ours, theirs = (
        simple_evaluate(lm, tasks=NAMES, task_manager=manager, bootstrap_iters=0) for lm in both
    )
    for name in NAMES:
        pairs = list(zip(ours["samples"][name], theirs["samples"][name], strict=True))
        assert len(pairs) >= 2
        for mine, other in pairs:
            assert mine["doc"] == other["doc"]
            for (answer,), (wanted,) in zip(mine["resps"], other["resps"], strict=True):
                if name == "lwm_choices":
                    assert answer[0] == pytest.approx(wanted[0], abs=1e-3)
                    assert answer[1] == wanted[1]
                elif name == "lwm_texts":
                    assert answer == pytest.approx(wanted, abs=1e-3)
                else:
                    assert answer == wanted
        for metric, value in theirs["results"][name].items():
            if isinstance(value, float):
                assert ours["results"][name][metric] == pytest.approx(value, rel=1e-4), metric
    assert ours["results"]["lwm_choices"]["acc,none"] == 1.0
    assert ours["config"]["num_truncated"] == len(NAMES)  # those of the questions


@pytest.mark.network
def test_chats_and_ids_are_those_of_transformers(both):
    ours, theirs = both
    said = [
        {"role": "system", "content": "You answer in one word."},
        {"role": "user", "content": "What is the capital of Italy?"},
        {"role": "assistant", "content": "The answer is"},
    ]
    for history, begins in ((said[:2], True), (said[1:2], True), (said, False)):
        text = ours.apply_chat_template(history, begins)
        assert text == theirs.apply_chat_template(history, begins)
        assert ours.tok_encode(text) == theirs.tok_encode(text)
    lines = (TASKS / "texts.jsonl").read_text().splitlines()
    for line in lines:
        text = json.loads(line)["text"]
        assert ours.tok_encode(text) == theirs.tok_encode(text)
        assert ours._encode_pair(text, " And so on.") == theirs._encode_pair(text, " And so on.")
    assert ours.chat_template(True) == theirs.chat_template(True)
    assert ours.prefix_token_id == theirs.prefix_token_id
    assert ours.eot_token_id == theirs.eot_token_id
