"""Data sets as a run names them: which files are read, and which are refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import pytest

from lwm.convert.export import save_model
from lwm.data import books, sets, tokenized
from lwm.data.fields import RecordEncoder
from lwm.data.format import ExampleFormat
from lwm.data.pack import PackingConfig
from lwm.data.sets import open_records, open_set, require_codes_of, texts
from lwm.data.shards import TokenShards
from lwm.data.sources import open_source
from lwm.data.tokenize import write_shards
from lwm.errors import UserError
from lwm.sharding import make_mesh
from lwm.tokens import TokenSpace
from lwm.train.config import Data, DataSet, Run, Training
from lwm.train.task import open_task
from lwm.vqgan.checkpoint import read_vqgan

WHALES = Path(sets.__file__).parents[1] / "assets" / "moby-dick"


def write(path: Path, records: list) -> str:
    path.write_text("\n".join(map(json.dumps, records)))
    return str(path)


def names(source):
    return [source[number].name for number in range(len(source))]


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """Makes it look as if the books were fetched."""
    monkeypatch.setenv("LWM_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "books"
    folder.mkdir(parents=True)
    books.write_books({"milton-comus": "Comus\n", "bible-ruth": "RUTH\n"}, folder)
    (folder / "README.md").write_text(books._DIGEST)
    return folder


def test_what_comes_with_the_package():
    chapters = [str(WHALES / f"chapter-{number}.txt") for number in (1, 2, 3)]
    for pattern, expected in {
        "chapter-2.txt": chapters[1:2],
        "chapter-[12].txt": chapters[:2],
        "*": chapters,
    }.items():
        assert names(open_records((f"shipped:moby-dick/{pattern}",))) == expected
    text = open_records(("shipped:moby-dick/chapter-1.txt",))[0].value["text"]
    assert text.startswith("CHAPTER 1")


@pytest.mark.parametrize("name", ["moby-dick/chapter-9.txt", "../*.py", ""])
def test_what_does_not_come_with_the_package(name):
    with pytest.raises(UserError) as caught:
        open_records((f"shipped:{name}",))
    there = ", ".join(f"shipped:moby-dick/chapter-{number}.txt" for number in (1, 2, 3))
    assert str(caught.value) == f"shipped:{name} does not exist; there are {there}, shipped:clips"


def test_clips_that_come_with_the_package_are_tokenized_once(tmp_path, monkeypatch):
    monkeypatch.setenv("LWM_CACHE", str(tmp_path))
    records = open_records(("shipped:clips",))
    assert len(records) == 64
    assert {record["frames"] for record in (records[i].value for i in range(64))} == {4}
    (folder,) = (tmp_path / "clips").iterdir()
    written = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert open_records(("shipped:clips",))[0].value == records[0].value
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == written


def test_other_clips_are_tokenized_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("LWM_CACHE", str(tmp_path / "cache"))
    clip = next(tokenized.CLIPS.glob("*.webp"))
    monkeypatch.setattr(tokenized, "CLIPS", tmp_path)
    for caption in ("one", "another"):
        write(tmp_path / "captions.jsonl", [{"path": str(clip), "caption": caption}])
        assert open_records(("shipped:clips",))[0].value["caption"] == caption


def test_codes_of_another_vqgan_are_refused(
    tmp_path, monkeypatch, tiny, init, byte_tokenizer, draw_vqgan
):
    monkeypatch.setenv("LWM_CACHE", str(tmp_path))
    own = read_vqgan("vqgan-64")
    require_codes_of(("shipped:clips", "shipped:moby-dick/*"), lambda: own)
    codebook = own.quantizer.codebook
    other = dataclasses.replace(
        own, quantizer=dataclasses.replace(own.quantizer, codebook=-codebook)
    )
    with pytest.raises(UserError, match=r"made by another VQGAN, .*vqgan-64; give that one"):
        require_codes_of(("shipped:clips",), lambda: other)
    wide = dataclasses.replace(own, config=dataclasses.replace(own.config, resolution=128))
    with pytest.raises(UserError, match="are 64 a frame of 64 px, but the VQGAN makes 256 of 128"):
        require_codes_of(("shipped:clips",), lambda: wide)
    other = dataclasses.replace(other, config=wide.config)
    with pytest.raises(UserError, match=r"made by another VQGAN, .*vqgan-64; give that one"):
        require_codes_of(("shipped:clips",), lambda: other)
    few = TokenSpace.of(byte_tokenizer.vocab_size, 64)
    with pytest.raises(UserError, match="of a codebook of 1024, but the model has 64 codes"):
        open_set(("shipped:clips",), ExampleFormat(), byte_tokenizer, few)

    # And so is training that starts from a model with another VQGAN beside it.
    mesh = make_mesh()
    config = tiny(tokens=TokenSpace.of(byte_tokenizer.vocab_size, 1024), num_layers=1)
    with jax.set_mesh(mesh):
        there = read_vqgan(draw_vqgan(codes=1024))
        save_model(init(config), byte_tokenizer, tmp_path / "model", vqgan=there)
    run = Run(
        init=str(tmp_path / "model"),
        training=Training(steps=1),
        data=Data(
            sets=(DataSet(files=("shipped:clips",)),),
            packing=PackingConfig(length=64),
            rows=2,
            streams=1,
        ),
    )
    with pytest.raises(UserError, match=r"made by another VQGAN, .*vqgan-64; give that one"):
        open_task(run, tmp_path / "run", mesh, warn=print, resumed=False)


def test_a_package_may_lie_in_any_folder(tmp_path, monkeypatch):
    shutil.copytree(WHALES, tmp_path / "[x]" / "moby-dick")
    monkeypatch.setattr(sets, "ASSETS", tmp_path / "[x]")
    (name,) = names(open_records(("shipped:*-1.txt",)))
    assert name == str(tmp_path / "[x]" / "moby-dick" / "chapter-1.txt")


def test_books_beside_files(shelf, tmp_path):
    own = write(tmp_path / "own.jsonl", [{"text": "mine"}])
    source = open_records(("books:train", own, "books:held-out", "shipped:*-3.txt"))
    assert [Path(name).name for name in names(source)] == [
        "milton-comus.txt",
        "own.jsonl:1",
        "bible-ruth.txt",
        "chapter-3.txt",
    ]
    with pytest.raises(UserError, match="books:test: there are books:train and books:held-out"):
        open_records(("books:test",))


def test_blank_lines_are_no_records(tmp_path):
    (tmp_path / "blank.jsonl").write_text(" \n\n")
    with pytest.raises(UserError, match=r"blank\.jsonl: no record, only blank lines"):
        open_records((str(tmp_path / "blank.jsonl"),))


def test_texts_whatever_their_keys(tmp_path):
    turns = [{"role": "user", "content": "cc"}]
    file = tmp_path / "a.jsonl"
    write(file, [{"text": "a", "n": 1}, {"other": "bb"}, {"messages": turns}, {"text": "last"}])
    file.write_text(file.read_text().replace("\n", "\n{\n", 1))
    assert list(texts((str(file),), most=100)) == ["a", "bb", "user", "cc", "last"]
    assert list(texts((str(file),), most=3)) == ["a", "bb"]


def test_a_set_is_records_or_one_folder_of_shards(tmp_path, byte_tokenizer):
    pytest.importorskip("array_record", reason="array_record is not installed")
    space = TokenSpace.of(byte_tokenizer.vocab_size, 0)
    file, out = write(tmp_path / "a.jsonl", [{"text": "abc"}, {"a": "b"}]), tmp_path / "out"
    format = ExampleFormat(fields="text,text")

    def open_as(*files, format=format):
        return open_set(files, format, byte_tokenizer, space)

    encoder = RecordEncoder(tokenizer=byte_tokenizer, tokens=space, format=format)
    write_shards(open_source(file), encoder, out)
    example = open_as(file)[0]
    assert byte_tokenizer.decode(example.ids.tolist()).count("abc") == 2
    kept = open_as(str(out), format=ExampleFormat())
    assert isinstance(kept, TokenShards)
    assert len(kept) == 1
    assert kept[0].ids.tolist() == example.ids.tolist()
    with pytest.raises(UserError, match=r"out: its records were encoded when .*; leave format out"):
        open_as(str(out))
    with pytest.raises(UserError, match="out holds tokenized shards, which are examples, not rec"):
        open_as(file, str(out))
