"""The needle test asked of programs that read or do not, of a tiny model, and of a real one."""

import dataclasses
import hashlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys

import jax
import pytest
import tokenizers
from tokenizers import normalizers

from lwm.cli.eval import run_needle
from lwm.devices import Machine
from lwm.errors import UserError
from lwm.eval.answer import ModelAnswerer, describe_model
from lwm.eval.needle import run as needle
from lwm.eval.needle.config import NeedleConfig
from lwm.eval.needle.prompts import CITIES, INSTRUCTION, Cell, Prompts
from lwm.eval.needle.run import PICTURE, REPORT, RESULTS, ask, check, evaluate, header, write
from lwm.eval.results import Results
from lwm.files import exclusive
from lwm.generate import loaded
from lwm.generate.answer import Answer
from lwm.generate.language_model import LanguageModel
from lwm.hub.catalog import find_model, locate
from lwm.model.config import ModelOverrides
from lwm.sampling_params import SamplingParams
from lwm.tokenizer.backends import FastTokenizer

GRID = NeedleConfig(lengths=(700, 1400), depths=(0.0, 30.0, 100.0), rounds=2, max_tokens=40)
TINY = NeedleConfig(lengths=(600, 2400), depths=(0.0, 50.0, 100.0), max_tokens=8)


def ask_program(answer, config, tokenizer, out):
    """Evaluates a program; returns the report."""
    out.mkdir(exist_ok=True)
    prompts = Prompts(config, tokenizer)
    results = Results(out / RESULTS, header(config, prompts.haystack, {"name": "program"}))
    report = ask(answer, prompts, results)
    write(report, out)
    return report


@pytest.mark.parametrize("prompt", ["chat", "lwm"])
def test_a_program_that_reads_finds_all_and_a_blind_one_none(tokenizer, oracle, tmp_path, prompt):
    config = dataclasses.replace(GRID, prompt=prompt)
    seeing = ask_program(oracle(tokenizer), config, tokenizer, tmp_path / "seeing")
    blind = ask_program(lambda ids: "1234567 1111111", config, tokenizer, tmp_path / "blind")
    assert (seeing.score().accuracy, blind.score().accuracy) == (1, 0)
    assert seeing.score().asked == len(seeing.rows) == 2 * 3 * 2
    assert {"context_length", "depth_percent", "response", "answer", "correct", "seed"} <= set(
        seeing.rows[0]
    )


@pytest.mark.parametrize("prompt", ["chat", "lwm"])
def test_prompts_are_as_long_as_said(tokenizer, prompt):
    config = dataclasses.replace(GRID, prompt=prompt)
    prompts = Prompts(config, tokenizer)
    lengths = {}
    for cell in prompts.cells:
        built = prompts.build(cell)
        assert built.length == len(built.ids) + config.max_tokens <= cell.length
        if cell.depth < 100:  # within a word
            assert cell.length - built.length <= 20
        text = tokenizer.decode(built.ids)
        before, found, after = text.partition(built.needle.strip())
        assert found
        assert INSTRUCTION in after
        assert f"What is the special magic {built.city} number?" in after
        assert re.fullmatch(r"\d{7}", built.number)
        assert built.city in CITIES
        lengths[cell] = len(before)
    assert set(lengths) == {
        Cell(length=n, depth=d, round=r)
        for n in (700, 1400)
        for d in (0.0, 30.0, 100.0)
        for r in (0, 1)
    }


def test_the_needle_stands_at_a_sentence_end_at_or_before_the_depth(tokenizer, prose):
    config = dataclasses.replace(GRID, depths=(0.0, 10.0, 50.0, 90.0, 100.0), haystack=prose(400))
    prompts = Prompts(config, tokenizer)
    for cell in prompts.cells:
        built = prompts.build(cell)
        before, after = tokenizer.decode(built.ids).split(built.needle)
        hay = before[before.rfind("user\n") + 5 :] if "user\n" in before else before[35:]
        hay = hay.removeprefix("USER: ")
        rest = after[: after.index(" What is")]
        assert hay == "" or hay.endswith("here.")
        size, whole = (len(tokenizer.encode(part)) for part in (hay, hay + rest))
        sentence = 100 * len(tokenizer.encode("Sentence number 100 ends here.")) / whole
        assert cell.depth - sentence - 1 <= 100 * size / whole <= cell.depth + 1
        assert built.depth == pytest.approx(100 * size / whole, abs=1)
        if cell.depth == 100:
            assert rest == ""


def test_prompts_of_english_prose_are_those_of_before(byte_tokenizer):
    config = dataclasses.replace(GRID, depths=(0.0, 10.0, 30.0, 50.0, 75.0, 100.0))
    prompts = Prompts(config, byte_tokenizer)
    ids = [prompts.build(cell).ids for cell in sorted(prompts.cells, key=repr)]
    digest = hashlib.sha256(json.dumps(ids).encode()).hexdigest()
    assert digest == "6c8f8851a052971a8a548a486154c39ad0e839b71195aa8c21491f61411bc1c7"


def repeated(*parts):
    """Numbers such parts, so that no two are the same."""
    return "".join(part.replace("%", str(number)) for number in range(300) for part in parts)


PLACES = dataclasses.replace(GRID, lengths=(900,), depths=(25.0, 75.0, 100.0))
UNSPACED = {
    "Chinese": "昔者庄周梦为蝴蝶栩栩然蝴蝶也%",
    "Japanese": "古池や蛙とびこむ水のオト%、",
    "Thai": "ในน้ำมีปลาในนามีข้าว%",
    "one word": "abcdefgh%",
    "emoji": "👩‍👩‍👧🏽",
}
SENTENCELESS = {
    "words": "some % words ",
    "lines": "a line of % words\n",
    "carriage returns": "a line of % words\r\n",
    "long sentences": "w% " * 200 + "end. ",
}


@pytest.mark.parametrize("kind", UNSPACED | SENTENCELESS)
def test_text_of_any_script_is_used_in_full_and_at_the_depth(byte_tokenizer, tmp_path, kind):
    (path := tmp_path / "h.txt").write_text(
        repeated((UNSPACED | SENTENCELESS)[kind]), encoding="utf-8", newline=""
    )
    prompts = Prompts(dataclasses.replace(PLACES, haystack=path), byte_tokenizer)
    for cell in prompts.cells:
        built = prompts.build(cell)
        # A joined emoji; and before a needle, the rest of a sentence.
        assert cell.length - built.length <= (25 if cell.depth < 100 else cell.length // 20)
        assert built.depth == pytest.approx(cell.depth, abs=12)
        assert "\ufffd" not in byte_tokenizer.decode(built.ids)
    assert prompts._start(0) != prompts._start(1)


@pytest.mark.parametrize("end", ["。」", "؟ ", "।", "።"])
def test_a_needle_stands_at_the_end_of_a_sentence_in_any_script(byte_tokenizer, tmp_path, end):
    (path := tmp_path / "h.txt").write_text(repeated(f"字字字字字字字字%{end}"), encoding="utf-8")
    prompts = Prompts(dataclasses.replace(PLACES, haystack=path), byte_tokenizer)
    for cell in prompts.cells:
        text = byte_tokenizer.decode(prompts.build(cell).ids)
        before, _ = text.split("\nThe special magic", 1)
        if cell.depth:
            assert before.endswith(end.strip())
        assert built_depth(byte_tokenizer, text) == pytest.approx(cell.depth, abs=15)


def built_depth(tokenizer, text):
    """Measures where the needle stands in the text of a prompt."""
    before, after = re.split(r"\n?the special magic .+? number is: \d{7}\n?", text, flags=re.I)
    before = before.removeprefix("user\n")
    after = re.split(r" what is the special magic", after, flags=re.I)[0]
    sizes = [len(tokenizer.encode(part, special=False)) for part in (before, after)]
    return 100 * sizes[0] / sum(sizes)


@pytest.mark.parametrize("change", ["NFKC", "Lowercase", "NFD", "spaces"])
def test_the_depth_is_that_of_the_built_prompt_whatever_the_tokenizer_changes(
    byte_tokenizer, tmp_path, change
):
    made = tokenizers.Tokenizer.from_str(byte_tokenizer.backend._tokenizer.to_str())
    made.normalizer = (
        normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
        if change == "spaces"
        else getattr(normalizers, change)()
    )
    tokenizer = dataclasses.replace(byte_tokenizer, backend=FastTokenizer(made))
    # The first half grows, or shrinks, and the second does not.
    grows = repeated("ﷺ ﬃ %. ")[:1000] + repeated("İÉ   %    . ")[:1500]
    text = grows + repeated("Plain text is %. ")
    (path := tmp_path / "h.txt").write_text(text, encoding="utf-8")
    config = dataclasses.replace(GRID, depths=(25.0, 75.0), haystack=path, lengths=(5000,))
    prompts = Prompts(config, tokenizer)
    for cell in prompts.cells:
        built = prompts.build(cell)
        assert built.depth == pytest.approx(cell.depth, abs=3)
        true = built_depth(tokenizer, tokenizer.decode(built.ids))
        assert built.depth == pytest.approx(true, abs=0.3)


def test_lwms_prompt_is_that_of_its_script_to_the_letter(byte_tokenizer, prose):
    config = NeedleConfig(lengths=(420,), depths=(100.0,), prompt="lwm", haystack=prose(99))
    built = (prompts := Prompts(config, byte_tokenizer)).build(prompts.cells[0])
    sentences = " ".join(f"Sentence number {i} ends here." for i in range(4))
    assert byte_tokenizer.decode(built.ids) == (
        f"You are a helpful assistant. USER: {sentences}"
        f"\nThe special magic {built.city} number is: {built.number}\n "
        f"What is the special magic {built.city} number? Don't give information outside the "
        "document or repeat your findings. Keep your response short and direct. ASSISTANT: "
    )


def test_needles_hang_on_seed_and_cell_only(byte_tokenizer):
    def built(**changes):
        prompts = Prompts(dataclasses.replace(GRID, **changes), byte_tokenizer)
        return {cell: prompts.build(cell) for cell in prompts.cells}

    all_cells = built()
    assert len({prompt.number for prompt in all_cells.values()}) == len(all_cells)
    some = built(depths=(30.0,))
    assert some == {cell: all_cells[cell] for cell in some}
    assert len(some) == 4
    assert built(seed=5)[next(iter(some))].number != some[next(iter(some))].number
    assert len(set(CITIES)) == len(CITIES) == 69


def test_each_prompt_begins_as_the_one_before(byte_tokenizer):
    """Up to its own needle, so that only what follows it must be read."""
    prompts = Prompts(dataclasses.replace(GRID, rounds=1), byte_tokenizer)
    built = [prompts.build(cell) for cell in prompts.cells]
    for before, after in itertools.pairwise(built):
        needle = byte_tokenizer.decode(after.ids).index(after.needle.strip()) - 1
        framing = 1  # the token that opens the turn decodes to nothing
        assert before.ids[: needle + framing] == after.ids[: needle + framing]


@pytest.mark.parametrize("lost", [1, 400, 10**6])
def test_what_was_stopped_ends_as_if_it_had_not_been(byte_tokenizer, oracle, tmp_path, lost):
    whole, again = oracle(byte_tokenizer), oracle(byte_tokenizer)
    ask_program(whole, GRID, byte_tokenizer, tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in (RESULTS, REPORT, PICTURE)}
    torn = before[RESULTS][: -min(lost, len(before[RESULTS]))]
    (tmp_path / RESULTS).write_bytes(torn)
    (tmp_path / REPORT).unlink()
    ask_program(again, GRID, byte_tokenizer, tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    answered = max(0, torn.count(b"\n") - 1)
    assert again.asked == whole.asked[answered:]


def test_another_grid_or_model_does_not_mix_in(byte_tokenizer, oracle, tmp_path):
    ask_program(oracle(byte_tokenizer), GRID, byte_tokenizer, tmp_path)
    with pytest.raises(UserError, match=r"config\.max_tokens was 40, is 41.*choose another folder"):
        ask_program(str, dataclasses.replace(GRID, max_tokens=41), byte_tokenizer, tmp_path)
    with pytest.raises(UserError, match=r"config\.seed was 1234, is 5"):
        check(dataclasses.replace(GRID, seed=5), tmp_path)
    check(GRID, tmp_path)


def test_killed_at_any_moment_it_goes_on(byte_tokenizer, oracle, tmp_path):
    """A process of its own is killed as nobody can prevent; here the same code goes on."""
    byte_tokenizer.backend._tokenizer.save(str(tmp_path / "tokenizer.json"))
    program = f"""
import sys, time
from pathlib import Path
from lwm.tokenizer.tokenizer import Tokenizer
from lwm.eval.needle.run import ask, header
from lwm.eval.needle.config import NeedleConfig
from lwm.eval.needle.prompts import Prompts
from lwm.eval.results import Results

config = {GRID!r}
prompts = Prompts(config, Tokenizer.open(Path("tokenizer.json")))
results = Results(Path("results.jsonl"), header(config, prompts.haystack, {{"name": "program"}}))
ask(lambda ids: print("asked", flush=True) or time.sleep(0.02) or "0", prompts, results)
"""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout
        for _ in range(4):
            assert process.stdout.readline() == b"asked\n"
        process.kill()
    answered = (tmp_path / RESULTS).read_bytes().count(b"\n") - 1
    assert 3 <= answered < 12
    from lwm.tokenizer.tokenizer import Tokenizer

    tokenizer = Tokenizer.open(tmp_path / "tokenizer.json")
    ask_program(again := oracle(tokenizer), GRID, tokenizer, tmp_path)
    assert len(again.asked) == 12 - answered


def test_two_evaluations_in_one_folder_do_not_mix(tiny_model, tmp_path):
    with (
        exclusive(tmp_path),
        pytest.raises(UserError, match="is being written by another process"),
    ):
        evaluate(tiny_model, TINY, tmp_path)
    assert not list(tmp_path.iterdir())


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
    for name in (RESULTS, REPORT, PICTURE):
        assert (tmp_path / "torn" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.representative
def test_an_answer_does_not_hang_on_those_before(tiny_model):
    prompts = Prompts(TINY, tiny_model.tokenizer)
    asked = [prompts.build(cell).ids for cell in prompts.cells]

    def answers(order):
        model, found = dataclasses.replace(tiny_model), {}
        answer = ModelAnswerer(model, tokens=2400, max_tokens=8)
        for i in order:
            text = answer(asked[i])
            again = Answer(model, asked[i], SamplingParams(max_tokens=8))
            assert "".join(map(str, again)) == text
            found[i] = text, again.ids, again.logprobs
        return found, answer

    together, answer = answers(range(6))
    assert answer.num_asked == sum(map(len, asked))
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


def test_another_model_under_the_same_path_is_refused(tiny_model, oracle, tmp_path, monkeypatch):
    """Also one whose weights differ where `describe_model` does not look."""
    program = oracle(tiny_model.tokenizer)
    monkeypatch.setattr(needle, "ModelAnswerer", lambda *_, **__: program)
    program.num_asked = program.num_read = 0
    (tmp_path / "model").mkdir()
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(bytes(99))
    model = dataclasses.replace(tiny_model, source=tmp_path / "model")
    evaluate(model, TINY, tmp_path / "out")
    evaluate(model, TINY, tmp_path / "out")
    weights.write_bytes(bytes(98) + b"?")
    with pytest.raises(UserError, match=r"another evaluation \(files\.model\.safetensors was "):
        evaluate(model, TINY, tmp_path / "out")


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


def test_the_report_says_what_was_done(byte_tokenizer, oracle, tmp_path, prose):
    config = dataclasses.replace(GRID, haystack=prose(20), repeat=True)
    ask_program(oracle(byte_tokenizer), config, byte_tokenizer, tmp_path)
    report = json.loads((tmp_path / REPORT).read_text())
    assert report["haystack"]["is_repeated"] is True
    assert report["config"]["lengths"] == [700, 1400]
    assert report["config"]["haystack"] == "prose.txt"
    assert set(report["versions"]) == {"lwm", "jax"}
    assert str(tmp_path) not in json.dumps(report)


def test_numbers_of_lengths_and_depths_are_those_of_lwm():
    config = NeedleConfig(lengths=(1000, 32000), num_lengths=4, depths=(0.0, 100.0), num_depths=4)
    assert config.all_lengths == (1000, 11333, 21667, 32000)
    assert config.all_depths == (0, 33, 67, 100)
    assert NeedleConfig(depths=(50.0, 0.0, 50.0)).all_depths == (0, 50)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"rounds": 0}, "rounds 0"),
        ({"max_tokens": 0}, "max_tokens 0"),
        ({"lengths": ()}, "lengths are empty"),
        ({"depths": (0.0, 101.0)}, "depths 0, 101 must be percents"),
        ({"depths": (float("nan"),)}, "must be percents"),
        ({"lengths": (64,)}, "length 64 leaves no room"),
        ({"num_depths": 1}, "num_depths 1 spreads"),
        ({"lengths": (1000,), "num_lengths": 3}, "num_lengths 3 spreads"),
    ],
)
def test_impossible_grids_are_refused(changes, match):
    with pytest.raises(UserError, match=match):
        NeedleConfig(**changes)


def test_what_cannot_be_done_is_said_before_the_model_is_loaded(tmp_path, prose):
    with pytest.raises(UserError, match=r"length 4,096 is above the context of the model, 2,048"):
        check(NeedleConfig(), tmp_path, context=2048)
    with pytest.raises(UserError, match=r"Moby-Dick, chapters 1-3 has 52,\d+ bytes, too few"):
        check(NeedleConfig(lengths=(10**6,)), tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        check(NeedleConfig(haystack=tmp_path / "absent.txt"), tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        check(NeedleConfig(), prose(1) / "out")
    check(NeedleConfig(lengths=(10**6,), repeat=True), tmp_path / "new" / "folder")


def test_what_the_tokenizer_shows_is_said_before_anything_is_asked(byte_tokenizer, prose):
    with pytest.raises(UserError, match=r"prose\.txt is too short for length 1,400: all of it"):
        Prompts(dataclasses.replace(GRID, haystack=prose(30)), byte_tokenizer)
    with pytest.raises(UserError, match="is empty"):
        Prompts(dataclasses.replace(GRID, haystack=prose(0, "none.txt")), byte_tokenizer)
    with pytest.raises(UserError, match="length 150 has no room for the question"):
        Prompts(dataclasses.replace(GRID, lengths=(150, 700)), byte_tokenizer)
    shouting = "{{ messages[0].content | upper }}"
    with pytest.raises(UserError, match="the needle is not in the prompt"):
        Prompts(GRID, byte_tokenizer, template=shouting)


def test_a_length_above_the_context_is_refused(tiny_model, tmp_path):
    with pytest.raises(UserError, match=r"above the context of tiny, 2,560 tokens"):
        evaluate(tiny_model, NeedleConfig(), tmp_path)


def test_the_small_grid_is_small():
    cells = len(needle.SMALL.all_depths)
    assert sum(needle.SMALL.all_lengths) * cells < 20_000


@pytest.mark.torch
@pytest.mark.network
@pytest.mark.slow
def test_smollm2_answers_as_in_transformers(tmp_path):
    """A 3 by 3 grid at 1K to 4K, greedy, on the same ids."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    path = locate(find_model("smollm2-135m-instruct"))
    if path is None:
        pytest.skip("smollm2-135m-instruct is not on this machine")
    from lwm.formats.gguf import read_gguf
    from lwm.loading import load

    config = NeedleConfig(lengths=(1024, 2048, 4096), depths=(0.0, 50.0, 100.0), max_tokens=24)
    model = load(path)
    assert isinstance(model, LanguageModel)
    report = evaluate(model, config, tmp_path).report
    opened = read_gguf(path)
    weights = {name: torch.tensor(weight) for name, weight in opened.tensors.items()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**opened.config))
    theirs.load_state_dict(weights, strict=True)
    prompts = Prompts(config, model.tokenizer)
    answers = {
        (row["context_length"], row["depth_percent"]): row["response"] for row in report.rows
    }
    stops = sorted(model.tokenizer.eos_ids)
    for cell in prompts.cells:
        ids = torch.tensor([prompts.build(cell).ids])
        with torch.no_grad():
            out = theirs.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=config.max_tokens,
                do_sample=False,
                eos_token_id=stops,
                pad_token_id=model.tokenizer.pad_id,
            )
        written = [token for token in out[0, ids.shape[1] :].tolist() if token not in stops]
        assert answers[cell.length, cell.depth] == model.tokenizer.decode(written)


def test_what_no_memory_is_left_for_is_refused(tiny_model, monkeypatch):
    none = Machine(count=1, memory=1, platform="cpu")
    monkeypatch.setattr(loaded, "machine", lambda devices: none)
    with pytest.raises(UserError, match=r"tiny needs .* for 2,560 tokens") as caught:
        # With an engine that has no page yet.
        ModelAnswerer(dataclasses.replace(tiny_model), tokens=2400, max_tokens=8)([7] * 2400)
    assert "\n" not in str(caught.value)
