"""Shards: read as they were written, finished when a run stopped, refused for other tokens."""

import dataclasses
import json
import multiprocessing
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from lwm.cli.data import data_tokenize
from lwm.data.example import Example
from lwm.data.fields import RecordEncoder
from lwm.data.format import ExampleFormat
from lwm.data.sets import Corpus
from lwm.data.shards import (
    Summary,
    TokenShards,
    is_shards,
    open_shards,
    read_ids,
    tokenizer_fingerprint,
    write_ids,
)
from lwm.data.sources import open_source
from lwm.data.tokenize import write_shards
from lwm.errors import UserError
from lwm.files import read_versioned, write_versioned
from lwm.tokenizer.tokenizer import Tokenizer
from lwm.tokens import TokenSpace

pytest.importorskip("array_record", reason="array_record is not installed")


@pytest.fixture
def encoder(byte_tokenizer):
    space = TokenSpace(text=byte_tokenizer.vocab_size, vision=10, codes=8)
    return RecordEncoder(
        tokenizer=byte_tokenizer, tokens=space, format=ExampleFormat(tokens_per_frame=2)
    )


def write(path: Path, records: list) -> Path:
    lines = [each if isinstance(each, str) else json.dumps(each) for each in records]
    path.write_text("\n".join(lines))
    return path


TEXTS = [{"text": f"<|endoftext|>{'é' * i}"} for i in range(7)]


@pytest.fixture
def records(tmp_path):
    """Seven texts; a prompt, of which six tokens are vision, and its answer; two bad lines."""
    video = {"fields": "[vision],a", "vision": [1, 2, 3, 4], "a": "yes"}
    return write(tmp_path / "records.jsonl", [*TEXTS, "{", video, '{"text": 3}'])


def alike(one: Example, other: Example) -> bool:
    same = np.array_equal(one.ids, other.ids) and np.array_equal(one.loss_mask, other.loss_mask)
    return same and one.name == other.name


def test_shards_hold_the_examples_in_their_order(tmp_path, records, encoder):
    source = open_source(records)
    told = []
    summary = write_shards(
        source, encoder, tmp_path / "out", shards=3, progress=lambda *done: told.append(done)
    )
    good = [Corpus(source, encoder)[i] for i in (*range(7), 8)]
    shards = open_shards(tmp_path / "out", tokens=encoder.tokens, tokenizer=encoder.tokenizer)
    assert len(shards) == 8
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(8), 30))
    for copy in (shards, pickle.loads(pickle.dumps(shards))):
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(copy.__getitem__, order))
        assert all(alike(one, good[i]) for one, i in zip(found, order, strict=True))
        assert {(one.ids.dtype, one.loss_mask.dtype) for one in found} == {
            (np.dtype(np.int32), np.dtype(bool))
        }
    for index in (-1, 8):
        with pytest.raises(IndexError):
            shards[index]
    assert told[-1] == (10, 10)
    counts = summary.counts
    learnt = np.concatenate([e.loss_mask for e in good])
    vision = np.concatenate([e.ids for e in good]) >= encoder.tokens.text
    assert (counts.examples, counts.bad) == (8, 2)
    assert (counts.text, counts.vision) == ((~vision).sum(), 6)
    assert (counts.learnt_text, counts.learnt_vision) == ((learnt & ~vision).sum(), 0)
    assert counts.longest == max(map(len, good))
    assert [reason.split(": ")[0] for reason in summary.reasons] == [
        f"{records}:8",
        f"{records}:10",
    ]
    assert Summary.read(tmp_path / "out") == summary
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == ["shards.json", *(s.name for s in summary.shards)]
    assert [file.stat().st_size for file in files[1:]] == [s.size for s in summary.shards]
    last = TokenShards([files[3]])
    assert [last[i].name for i in range(len(last))] == [good[i].name for i in (6, 7)]


def test_a_record_is_an_example_whatever_its_name():
    rng = np.random.default_rng(0)
    for size in (0, 1, 7, 8, 9, 1000):
        ids = rng.integers(0, 2**31 - 1, size, np.int32)
        for learn in (np.ones(size, bool), np.zeros(size, bool), rng.random(size) < 0.5):
            example = Example(ids=ids, loss_mask=learn, name="é\udce9:1")
            assert alike(read_ids(write_ids(example)), example)


def test_a_run_that_stopped_goes_on(tmp_path, encoder):
    source = open_source(write(tmp_path / "a.jsonl", [{"text": f"{i}"} for i in range(900)]))
    whole = write_shards(source, encoder, tmp_path / "whole", shards=3)
    out = tmp_path / "out"

    def stop(done, total):
        if done > 300 + 255:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(source, encoder, out, shards=3, progress=stop)
    first = out / whole.shards[0].name
    assert not is_shards(out)
    assert [file for file in out.iterdir() if not file.name.startswith(".")] == [first]
    assert not list(out.glob(".partial*"))
    (out / ".partial-00002-1").write_bytes(b"left by a process that was killed")
    with pytest.raises(UserError, match="holds no complete set of shards"):
        open_shards(out, tokens=encoder.tokens, tokenizer=None)
    before = first.stat()
    told = []
    again = write_shards(source, encoder, out, shards=3, progress=lambda done, _: told.append(done))
    assert min(told) > 300, "the first shard was not written again"
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert again == whole
    assert {file.name for file in out.iterdir()} == {f.name for f in (tmp_path / "whole").iterdir()}
    one, other = TokenShards(out), TokenShards(tmp_path / "whole")
    assert all(alike(one[i], other[i]) for i in range(900))
    told.clear()
    assert write_shards(source, encoder, out, shards=3) == whole


@pytest.mark.parametrize("whole", [True, False])
def test_another_input_is_refused(tmp_path, records, encoder, whole):
    out = tmp_path / "out"
    kept = {"max_bad_share": 1.0 if whole else 0.0}

    def again(source=None, changed=encoder, shards=2):
        return write_shards(source or open_source(records), changed, out, shards=shards, **kept)

    if whole:
        again()
    else:
        with pytest.raises(UserError, match=r"20\.0% of the records are bad"):
            again()
    other = write(tmp_path / "other.jsonl", [*TEXTS, {"text": "more"}])
    format = dataclasses.replace(encoder.format, add_eos=False)
    tokenizer = dataclasses.replace(encoder.tokenizer, chat_template="")
    for says, change in [
        ("records", {"source": open_source(other)}),
        ("format", {"changed": dataclasses.replace(encoder, format=format)}),
        ("tokenizer", {"changed": dataclasses.replace(encoder, tokenizer=tokenizer)}),
        ("tokens", {"changed": dataclasses.replace(encoder, tokens=TokenSpace(text=300))}),
        ("number of shards", {"shards": 1}),
    ]:
        with pytest.raises(UserError, match=rf"out holds shards of another input \({says}\): rem"):
            again(**change)
    moved = tmp_path / "moved" / records.name
    moved.parent.mkdir()
    shutil.copy(records, moved)
    kept["max_bad_share"] = 1.0
    assert again(open_source(moved)).counts.examples == 8


def test_too_many_bad_records_fail_and_can_be_allowed_later(tmp_path, encoder):
    bad = write(tmp_path / "a.jsonl", ['{"text": "good"}', *["{"] * 29])
    source = open_source(bad)
    with pytest.raises(
        UserError, match=r"96\.7% of the records are bad, more than 50\.0%.*a.jsonl:2"
    ):
        write_shards(source, encoder, tmp_path / "out", shards=2, max_bad_share=0.5)
    assert not is_shards(tmp_path / "out")
    told = []
    summary = write_shards(
        source, encoder, tmp_path / "out", shards=2, progress=lambda *done: told.append(done)
    )
    assert told == [], "nothing was encoded again"
    assert (summary.counts.bad, len(summary.reasons)) == (29, 20)
    assert len(TokenShards(tmp_path / "out")) == 1, "the second shard is empty"
    with pytest.raises(
        UserError, match=r"no record can be read; the first: .*b\.jsonl:1: not JSON"
    ):
        write_shards(open_source(write(tmp_path / "b.jsonl", ["{"])), encoder, tmp_path / "b")


def test_processes_write_the_same_shards(tmp_path, records, encoder):
    source = open_source(records)
    here = write_shards(source, encoder, tmp_path / "here", shards=3)
    told = []
    there = write_shards(
        source,
        encoder,
        tmp_path / "there",
        shards=3,
        workers=2,
        progress=lambda *done: told.append(done),
    )
    assert there == here
    assert told[-1] == (10, 10)
    for shard in here.shards:
        ours, theirs = (tmp_path / name / shard.name for name in ("here", "there"))
        assert ours.read_bytes() == theirs.read_bytes()
    assert not multiprocessing.active_children()


def test_one_process_at_a_time(tmp_path, records, encoder):
    def intrude(done, total):
        with pytest.raises(UserError, match="out is being written by another process"):
            write_shards(open_source(records), encoder, tmp_path / "out")
        seen.append(done)

    seen = []
    write_shards(open_source(records), encoder, tmp_path / "out", progress=intrude)
    assert seen


@pytest.fixture
def out(tmp_path, records, encoder):
    write_shards(open_source(records), encoder, tmp_path / "out", shards=2)
    return tmp_path / "out"


def test_shards_of_other_tokens_are_refused(out, tmp_path, encoder, byte_tokenizer):
    space, text = encoder.tokens, encoder.tokens.text
    for tokens, says in [
        (TokenSpace(text=text + 1, vision=10, codes=8), f"text ids {text} there, {text + 1} in"),
        (TokenSpace(text=text, vision=12, codes=8), "vision ids 10 there, 12 in the model;"),
        (TokenSpace(text=text, vision=10, codes=7), "vision codes 8 there, 7 in the model;"),
        (TokenSpace(text=text), "vision ids 10 there, 0 in the model; vision codes 8 there, 0"),
    ]:
        with pytest.raises(UserError, match=says):
            open_shards(out, tokens=tokens, tokenizer=byte_tokenizer)
    other = dataclasses.replace(byte_tokenizer, eos_id=0)
    with pytest.raises(UserError, match="its tokenizer is not the model's"):
        open_shards(out, tokens=space, tokenizer=other)
    write_shards(open_source(write(tmp_path / "t.jsonl", TEXTS)), encoder, tmp_path / "text")
    for tokens in (TokenSpace(text=text), TokenSpace(text=text + 9, vision=12, codes=8)):
        shards = open_shards(tmp_path / "text", tokens=tokens, tokenizer=byte_tokenizer)
        assert len(shards) == 7
    for tokens, tokenizer in [
        (TokenSpace(text=text - 1), byte_tokenizer),
        (TokenSpace(text=text + 1), None),
    ]:
        with pytest.raises(UserError, match=f"text ids {text} there, {tokens.text} in the model;"):
            open_shards(tmp_path / "text", tokens=tokens, tokenizer=tokenizer)


def test_tokenizers_that_cut_otherwise_have_another_fingerprint(tmp_path):
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    table = {token: i for i, token in enumerate([*letters, "th", "he", "the"])}
    found = []
    for name, merges in {
        "one": [("t", "h"), ("h", "e"), ("th", "e")],
        "same": [("t", "h"), ("h", "e"), ("th", "e")],
        "other": [("h", "e"), ("t", "h"), ("th", "e")],
    }.items():
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(table, merges))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.save(str(tmp_path / f"{name}.json"))
        found.append(tokenizer_fingerprint(Tokenizer.open(tmp_path / f"{name}.json")))
    assert found[0] == found[1] != found[2]


def test_damage_is_named(out, encoder):
    files = sorted(out.glob("*.arrayrecord"))
    files[1].write_bytes(files[1].read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"{files[1].name} is damaged: it has \d+ bytes in place"):
        TokenShards(out)
    files[1].unlink()
    with pytest.raises(UserError, match=rf"{files[1].name} cannot be read: No such file"):
        TokenShards(out)
    with pytest.raises(UserError, match="is not among the shards of"):
        TokenShards([out / "tokens.arrayrecord"])
    facts = json.loads((out / "shards.json").read_text())
    (out / "shards.json").write_text(json.dumps(facts | {"version": 2}))
    with pytest.raises(UserError, match=r"shards\.json is of version 2; this lwm reads 1"):
        open_shards(out, tokens=encoder.tokens, tokenizer=None)
    shard = facts["shards"][0]
    for name in ("../a.arrayrecord", "/proc/self/mem", 5):
        changed = facts | {"shards": [[name, *shard[1:]]]}
        (out / "shards.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=r"shards.json names \S+, which is no file in"):
            TokenShards(out)
    (out / "shards.json").write_text("{")
    with pytest.raises(UserError, match=r"shards\.json cannot be read: ") as caught:
        open_shards(out, tokens=encoder.tokens, tokenizer=None)
    assert "\n" not in str(caught.value)


def test_changed_bytes_are_found_when_they_are_read(out):
    """ArrayRecord keeps checksums of its own."""
    file = sorted(out.glob("*.arrayrecord"))[0]
    content = bytearray(file.read_bytes())
    shards = TokenShards(out)
    place = np.flatnonzero(np.frombuffer(content, np.uint8))[200]
    content[place] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"{file.name} cannot be read: ") as caught:
        [shards[i] for i in range(len(shards))]
    assert "\n" not in str(caught.value)


def test_shards_are_no_records(out):
    with pytest.raises(UserError, match="out holds tokenized shards, which are examples, not"):
        open_source(out)


def test_names_that_are_no_text_are_kept(tmp_path):
    value = {"source": os.fsdecode(b"/caf\xe9")}
    write_versioned(value, tmp_path / "x.json", 1)
    assert read_versioned(tmp_path / "x.json", 1) == value


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"shards": 0}, "10 records cannot be written as 0 shards"),
        ({"shards": 11}, "10 records cannot be written as 11 shards"),
        ({"workers": -1}, "workers -1 must be 0"),
        ({"folder": "records.jsonl"}, "records.jsonl cannot be written: File exists"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, records, encoder, changes, says):
    folder = tmp_path / changes.pop("folder", "out")
    with pytest.raises(UserError, match=says):
        write_shards(open_source(records), encoder, folder, **changes)


def test_the_command(tmp_path, records, fixtures, capsys):
    settings = {
        "model": None,
        "tokenizer": fixtures / "tokenizer",
        "codes": 8,
        "shards": 2,
        "workers": 0,
        "format": ExampleFormat(tokens_per_frame=2),
    }
    data_tokenize((str(records),), out=tmp_path / "out", max_bad_share=0.2, **settings)
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == ["examples   8", "bad lines  2"]
    assert printed[4] == "vision     6  targets 0"
    tokenizer = Tokenizer.open(fixtures / "tokenizer")
    space = TokenSpace(text=tokenizer.vocab_size, vision=10, codes=8)
    assert len(open_shards(tmp_path / "out", tokens=space, tokenizer=tokenizer)) == 8
    with pytest.raises(UserError, match=r"20\.0% of the records are bad, more than 19\.0%"):
        data_tokenize((str(records),), out=tmp_path / "b", max_bad_share=0.19, **settings)
    with pytest.raises(UserError, match=r"max_bad_share 2\.0 must be"):
        data_tokenize((str(records),), out=tmp_path / "b", max_bad_share=2.0, **settings)
    with pytest.raises(UserError, match="give the files"):
        data_tokenize((), out=tmp_path / "b", max_bad_share=0.1, **settings)


@pytest.mark.parametrize("damage", ["cut", "altered", "gone"])
def test_a_damaged_shard_of_a_finished_set_is_made_again(out, records, encoder, damage):
    file = sorted(out.glob("*.arrayrecord"))[1]
    before, content = Summary.read(out), file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        other = content[:-1] if damage == "cut" else content[:40] + b"?" + content[41:]
        file.write_bytes(other)
    assert write_shards(open_source(records), encoder, out, shards=2) == before
    assert file.read_bytes() == content
    assert not list(out.glob(".*"))


def test_a_damaged_shard_of_an_unfinished_set_is_made_again(tmp_path, encoder):
    bad = write(tmp_path / "a.jsonl", [*TEXTS, *["{"] * 7])
    out = tmp_path / "out"
    for _ in range(2):
        with pytest.raises(UserError, match=r"50\.0% of the records are bad"):
            write_shards(open_source(bad), encoder, out, shards=2, max_bad_share=0.1)
        file = sorted(out.glob("*.arrayrecord"))[0]
        content = file.read_bytes()
        file.write_bytes(content[:40] + b"?" + content[41:])
    write_shards(open_source(bad), encoder, out, shards=2)
    assert file.read_bytes() == content
    assert len(TokenShards(out)) == 7


@pytest.mark.parametrize("whole", [True, False])
def test_other_text_of_the_same_size_is_refused(tmp_path, encoder, whole):
    """In the middle of a file, where its name, size and ends are as before."""
    texts = [{"text": f"{'x' * 1000} {n}"} for n in range(200)]
    file, out = write(tmp_path / "a.jsonl", [*texts, "{"]), tmp_path / "out"

    def again():
        return write_shards(
            open_source(file), encoder, out, max_bad_share=1.0 if whole else 0.0, shards=2
        )

    if whole:
        again()
    else:
        with pytest.raises(UserError, match="of the records are bad"):
            again()
    content = file.read_bytes()
    file.write_bytes(content.replace(b"x 100", b"y 100"))
    with pytest.raises(UserError, match=rf"^a\.jsonl has changed since the start; .*{out}"):
        again()
    file.write_bytes(content)
    whole = True
    assert again().counts.examples == 200


def test_shards_of_an_earlier_version_get_fingerprints(out, records, encoder):
    facts = json.loads((out / "shards.json").read_text())
    old = {key: value for key, value in facts.items() if key != "files"}
    old["shards"] = [shard[:3] for shard in facts["shards"]]
    (out / "shards.json").write_text(json.dumps(old))
    assert len(TokenShards(out)) == 8
    write_shards(open_source(records), encoder, out, shards=2)
    assert json.loads((out / "shards.json").read_text()) == facts
