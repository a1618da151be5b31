"""Training and test sets of needles: right answers, loss on them alone, nothing in common."""

import dataclasses
import json
import re

import pytest

from lwm.cli.data import data_check
from lwm.cli.needles import data_needles
from lwm.data.fields import RecordEncoder
from lwm.data.format import ExampleFormat
from lwm.errors import UserError
from lwm.eval.needle.config import NeedleSetConfig
from lwm.eval.needle.dataset import write_sets
from lwm.tokens import TokenSpace

SETS = NeedleSetConfig(train=6, test=4, lengths=(700, 1000), max_tokens=60)
NEEDLES = re.compile(r"The special magic (.+?) number is: (\d{7})")


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def prompt_of(record):
    return record["prompt"] if "fields" in record else record["messages"][0]["content"]


@pytest.mark.parametrize("prompt", ["chat", "lwm"])
@pytest.mark.parametrize(("needles", "ask"), [(1, 1), (3, 1), (3, 2)])
def test_a_program_that_reads_agrees_and_the_loss_covers_answers_alone(
    byte_tokenizer, oracle, tmp_path, prompt, needles, ask
):
    config = dataclasses.replace(SETS, prompt=prompt, needles=needles, ask=ask)
    made = write_sets(config, byte_tokenizer, tmp_path / "needles.jsonl")
    assert made.test == tmp_path / "needles-test.jsonl"
    encoder = RecordEncoder(
        tokenizer=byte_tokenizer,
        tokens=TokenSpace.of(byte_tokenizer.vocab_size, 0),
        format=ExampleFormat(),
    )
    for path, count in ((made.train, 6), (made.test, 4)):
        records = read(path)
        assert len(records) == count
        assert [record["context_length"] for record in records] == [700, 1000] * (count // 2)
        for record in records:
            shown = NEEDLES.findall(prompt_of(record))
            assert len(dict(shown)) == needles
            example = encoder.encode(record)
            answer = byte_tokenizer.decode(example.ids[example.loss_mask].tolist())
            read_back = oracle(byte_tokenizer)._answer(prompt_of(record))
            assert re.findall(r"\d{7}", answer) == re.findall(r"\d{7}", read_back)
            numbers = [record["answer"]] if needles == 1 else record["answer"]
            assert re.findall(r"\d{7}", answer) == numbers
            assert len(example.ids) <= record["built_length"] <= record["context_length"]
            assert example.loss_mask.sum() < 60


@pytest.mark.parametrize("needles", [1, 4])
def test_training_and_test_have_no_needle_and_no_text_in_common(byte_tokenizer, tmp_path, needles):
    config = dataclasses.replace(SETS, train=20, test=10, needles=needles)
    made = write_sets(config, byte_tokenizer, tmp_path / "needles.jsonl")
    assert not made.shares_text
    numbers, sentences = [], []
    for path in (made.train, made.test):
        texts = [prompt_of(record) for record in read(path)]
        numbers.append({number for text in texts for _, number in NEEDLES.findall(text)})
        hay = [re.sub(r" What (?:is|are) .*|\nThe special magic.*?\n", "", t) for t in texts]
        # Long parts of sentences; short ones may occur twice in a book.
        sentences.append({part for text in hay for part in re.findall(r"[^.!?]{60,}[.!?]", text)})
    assert len(numbers[0]) == 20 * needles
    assert len(numbers[1]) == 10 * needles
    assert numbers[0].isdisjoint(numbers[1])
    assert min(map(len, sentences)) > 10
    assert sentences[0].isdisjoint(sentences[1])


def test_the_same_seed_gives_the_same_files_and_another_others(byte_tokenizer, tmp_path):
    def written(name, **changes):
        config = dataclasses.replace(SETS, **changes)
        made = write_sets(config, byte_tokenizer, tmp_path / f"{name}.jsonl")
        assert made.train
        assert made.test
        return made.train.read_bytes(), made.test.read_bytes()

    first = written("first")
    assert written("again") == first
    other = written("other", seed=1)
    assert not {*other[0].splitlines()} & {*first[0].splitlines()}


def test_a_short_haystack_is_shared_and_said(byte_tokenizer, tmp_path, prose, capsys):
    byte_tokenizer.backend._tokenizer.save(str(tmp_path / "tokenizer.json"))
    sets = dataclasses.replace(SETS, haystack=prose(40), prompt="lwm")
    out, tokenizer = tmp_path / "needles.jsonl", tmp_path / "tokenizer.json"
    data_needles(out=out, tokenizer=tokenizer, needles=sets)
    assert "too short for texts of their own" in (said := capsys.readouterr()).err
    assert "needles-test.jsonl  4 examples" in said.out
    data_check((str(out), str(tmp_path / "needles-test.jsonl")), tokenizer=tokenizer, codes=0)
    assert "bad lines  0" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"needles\.jsonl exists; choose another --out"):
        data_needles(out=out, tokenizer=tokenizer, needles=sets)
    only = dataclasses.replace(sets, train=0)
    data_needles(out=tmp_path / "one.jsonl", tokenizer=tokenizer, needles=only)
    assert not (tmp_path / "one.jsonl").exists()
    assert len(read(tmp_path / "one-test.jsonl")) == 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": 0, "test": 0}, "train 0 and test 0"),
        ({"train": -1}, "train -1 and test 4"),
        ({"ask": 2}, "ask 2 is more than needles 1"),
        ({"lengths": ()}, "lengths are empty"),
        ({"lengths": (700, 50)}, "length 50 leaves no room"),
        ({"max_tokens": 6}, 'max_tokens 6 has no room for the answer "'),
        ({"lengths": (100_000,)}, "too short for length 100,000"),
    ],
)
def test_impossible_sets_are_refused(byte_tokenizer, tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        write_sets(dataclasses.replace(SETS, **changes), byte_tokenizer, tmp_path / "n.jsonl")
    assert not list(tmp_path.iterdir())
