"""Sources: every record by its number, in any order, from every kind of file."""

import json
import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lwm.data.sources import Parquet, Source, identity, open_source
from lwm.errors import UserError
from lwm.files import read_json
from lwm.formats.documents import read_document
from lwm.formats.pickles import read_pickle
from lwm.tokenizer.tokenizer import Tokenizer

RECORDS: list[dict[str, Any]] = [
    {"text": f"é{i}\u2028", "vision": list(range(i)), "last": None} for i in range(20)
]


def write_json(path: Path) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in RECORDS), "utf-8")
    return path


def write_parquet(path: Path) -> Path:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(RECORDS), path, row_group_size=7)
    return path


def write_array_record(path: Path) -> Path:
    name = "array_record.python.array_record_module"
    writer = pytest.importorskip(name, reason="array_record is not installed")
    file = writer.ArrayRecordWriter(str(path), "group_size:1")
    for record in RECORDS:
        file.write(json.dumps(record).encode())
    file.close()
    return path


def write_hugging_face(path: Path) -> Path:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(RECORDS).save_to_disk(path)
    return path


WRITERS = {
    "jsonl": write_json,
    "parquet": write_parquet,
    "arrayrecord": write_array_record,
    "folder": write_hugging_face,
}


def plain(record: dict[str, Any]) -> dict[str, Any]:
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in record.items()}


def values(source: Source) -> list[dict[str, Any]]:
    return [plain(source[i].value) for i in range(len(source))]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("suffix", ["own", "none"])
def test_any_order_any_thread_any_process(tmp_path, kind, suffix):
    file = WRITERS[kind](tmp_path / (f"data.{kind}" if suffix == "own" else "data"))
    source = open_source(file)
    assert values(source) == RECORDS
    assert [source[i].name for i in (0, 19)] == [f"{file}:1", f"{file}:20"]
    assert [source[i].line for i in (0, 19)] == [0, 19]
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(20), 20))
    for copy in (source, pickle.loads(pickle.dumps(source))):
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda i, copy=copy: plain(copy[i].value), order))
        assert found == [RECORDS[i] for i in order]
    for index in (-1, 20):
        with pytest.raises(IndexError):
            source[index]


def test_blank_lines_are_passed_over_and_bad_ones_named(tmp_path):
    file = tmp_path / "a.jsonl"
    lines = [b'\xef\xbb\xbf{"a": 1}\r', b"", b" \t\r", b"{oops", b'{"a": "\xff"}', b"[1]"]
    file.write_bytes(b"\n".join([*lines, b"[" * 100_000, b'{"a": 2}']))
    source = open_source(file)
    assert len(source) == 6
    assert source[0] == ({"a": 1}, f"{file}:1", 0)
    assert source[5] == ({"a": 2}, f"{file}:8", 7)
    for index, says in [
        (1, r"a\.jsonl:4: not JSON: .* at character 2"),
        (2, r"a\.jsonl:5: not UTF-8"),
        (3, r"a\.jsonl:6: not a JSON object, but list"),
        (4, r"a\.jsonl:7: not readable JSON"),
    ]:
        with pytest.raises(UserError, match=says) as caught:
            source[index]
        assert "\n" not in str(caught.value)


def test_the_originals_lines(fixtures):
    source = open_source(fixtures / "data" / "text.jsonl")
    assert len(source) == 25, "24 examples and a broken line; the empty one is passed over"
    bad = 0
    for i in range(len(source)):
        try:
            assert "text" in source[i].value
        except UserError:
            bad += 1
    assert bad == 1


def test_several_files_a_folder_and_patterns_concatenate(tmp_path):
    tmp_path = tmp_path / "data"
    tmp_path.mkdir()
    for name in ("b", "a"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name}0"}}\n{{"text": "{name}1"}}\n')
        (tmp_path / f"{name}.txt").write_text(f"{name}\ndocument", "utf-8")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "README.md").write_text("not data")
    a, b = (["a0", "a1"], ["b0", "b1"])
    documents = ["a\ndocument", "b\ndocument"]
    for paths, expected in [
        ([tmp_path / "b.jsonl", tmp_path / "a.jsonl"], b + a),
        ([str(tmp_path / "*.jsonl")], a + b),
        ([str(tmp_path.parent / "**" / "?.jsonl")], a + b),
        ([tmp_path / "a.txt", tmp_path / "b.txt"], documents),
        ([tmp_path], [*a, documents[0], *b, documents[1]]),
    ]:
        source = open_source(*paths)
        assert [value["text"] for value in values(source)] == expected
        assert [record["text"] for record in values(pickle.loads(pickle.dumps(source)))] == expected
    assert source[2].name == str(tmp_path / "a.txt")
    assert source[4] == ({"text": "b1"}, f"{tmp_path / 'b.jsonl'}:2", 1)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_file_that_changed_is_not_read_with_old_places(tmp_path, kind):
    file = WRITERS[kind](tmp_path / "a")
    kept = pickle.dumps(open_source(file))
    file.write_text('{"text": "other"}\n' * 20)
    with pytest.raises(UserError, match=r"/a has changed since it was opened"):
        pickle.loads(kept)[3]


def test_lists_of_numbers_in_columns_are_arrays(tmp_path):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    full = {"ids": [3, 4], "learn": [True, False], "odd": [1, None], "names": ["a"]}
    rows: list[dict[str, Any]] = [full, dict.fromkeys(full)]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a")
    source = open_source(tmp_path / "a")
    first = source[0].value
    assert first["ids"].dtype.kind == "i"
    assert first["learn"].dtype == bool
    assert plain(first) == rows[0]
    assert type(first["odd"]) is type(first["names"]) is list
    assert source[1].value == rows[1]


def test_row_groups_used_last_are_kept_up_to_a_size(tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    files = [write_parquet(tmp_path / name) for name in ("a", "b")]
    sizes = [parquet.ParquetFile(files[0]).read_row_group(i).nbytes for i in range(3)]
    read = []
    original = Parquet._read
    monkeypatch.setattr(
        Parquet, "_read", lambda self, number: [read.append(number), original(self, number)][1]
    )

    def count(most, order):
        monkeypatch.setattr("lwm.data.sources._KEPT_BYTES", most)
        source = open_source(*files)
        read.clear()
        assert [plain(source[i].value) for i in order] == [RECORDS[i % 20] for i in order]
        return len(read)

    back_and_forth = [0, 7, 20, 0, 7, 20, 0, 14]
    assert count(2 * sum(sizes), back_and_forth) == 4
    assert count(0, back_and_forth) == 8
    # Room for two, of both files together: each that comes is one that went.
    assert count(sizes[0] + sizes[1], back_and_forth[:-1]) == 7
    assert count(sizes[0] + sizes[1], [0, 7, 0, 20, 0, 7]) == 4, "what was used longest ago goes"


def test_what_tells_one_input_from_another(tmp_path):
    for kind, write in WRITERS.items():
        places = [tmp_path / kind / name / "data" for name in ("here", "there", "other")]
        for place in places:
            place.parent.mkdir(parents=True)
            write(place)
        file = places[2] / "state.json" if kind == "folder" else places[2]
        if kind == "jsonl":
            file.write_bytes(file.read_bytes().replace(b'"last": null', b'"last": true', 1))
        here, there, other = (identity(open_source(place)) for place in places)
        assert here == there
        assert len(here) == 1
        assert (here != other) == (kind == "jsonl")
    both = open_source(tmp_path / "jsonl" / "here" / "data", tmp_path / "jsonl" / "other" / "data")
    assert identity(both) == [
        *identity(open_source(tmp_path / "jsonl" / "here" / "data")),
        *identity(open_source(tmp_path / "jsonl" / "other" / "data")),
    ]


def test_splits_saved_together_are_named(tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    datasets.disable_progress_bars()
    split = datasets.Dataset.from_list(RECORDS)
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(tmp_path / "a")
    with pytest.raises(UserError, match=r"holds the splits train, test; give .*/a/train$"):
        open_source(tmp_path / "a")
    assert values(open_source(tmp_path / "a" / "test")) == RECORDS
    (tmp_path / "a" / "test" / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"a/test cannot be read: ") as caught:
        open_source(tmp_path / "a" / "test")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hf:squad", r"'hf:squad' is not the name of a data set; write hf:org/name"),
        ("hf:org/name:a:b", "is not the name of a data set"),
        ("hf:org/none", "hf:org/none is not in the hub's cache, and HF_HUB_OFFLINE forbids"),
        ("hf:org/none/part:test", "hf:org/none/part:test is not in the hub's cache"),
    ],
)
def test_what_the_hub_cannot_give_is_one_line(name, says):
    pytest.importorskip("datasets", reason="datasets is not installed")
    with pytest.raises(UserError, match=says) as caught:
        open_source(name)
    assert "\n" not in str(caught.value)


def test_an_unreachable_hub_is_told_within_seconds(monkeypatch):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    # The hub's own library stays offline, and so fails as without a network.
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match=r"hf:org/name: the hub cannot be reached .*save_to_disk"):
        open_source("hf:org/name")


def test_an_absent_library_of_data_sets_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name in ("state.json", "dataset_info.json"):
        (tmp_path / name).write_text("{}")
    for place in (tmp_path, "hf:org/name"):
        with pytest.raises(UserError, match=r"needs datasets: pip install 'lwm\[hf\]'"):
            open_source(place)


def fault(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", b'[\n{"a": 1}]', r"a\.json is one JSON array; write one object a line"),
        ("a.jsonl.gz", b"\x1f\x8b\x08", "is compressed; unpack it first"),
        ("a.bin", b"\x00\x01", "is neither JSON lines nor Parquet, ArrayRecord"),
    ],
)
def test_files_that_are_no_data_are_named(tmp_path, name, content, says):
    with pytest.raises(UserError, match=says):
        open_source(fault(tmp_path, name, content))


@pytest.mark.parametrize(
    ("module", "content"),
    [("pyarrow", b"PAR1 cut"), ("array_record", bytes.fromhex("83af70d10d884a3f") + b"cut")],
)
def test_corrupted_files_and_absent_libraries(tmp_path, monkeypatch, module, content):
    file = fault(tmp_path, "a", content)
    with monkeypatch.context() as patched:
        for name in [name for name in sys.modules if name.split(".")[0] == module]:
            patched.delitem(sys.modules, name)
        patched.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=rf"needs {module}: pip install 'lwm\[data\]'"):
            open_source(file)
    pytest.importorskip(module, reason=f"{module} is not installed")
    with pytest.raises(UserError, match=r"/a cannot be read") as caught:
        len(open_source(file))
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_named(tmp_path):
    for path in (tmp_path / "none.jsonl", f"{tmp_path}/*.jsonl"):
        with pytest.raises(UserError, match=r"jsonl does not exist, nor does any file match"):
            open_source(path)
    with pytest.raises(UserError, match=r"holds no \.jsonl"):
        open_source(tmp_path)
    with pytest.raises(UserError, match="no file is given"):
        open_source()
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"a\.txt cannot be read: .*utf-8"):
        open_source(tmp_path / "a.txt")[0]
    if os.getuid():
        (tmp_path / "a.txt").chmod(0)
        with pytest.raises(UserError, match=r"a\.txt cannot be read: Permission denied"):
            open_source(tmp_path / "a.txt")[0]


LONG = [{"text": "x" * 999, "n": n} for n in range(100)]


def many_lines(path: Path) -> Path:
    """More than a page of memory."""
    path.write_text("".join(json.dumps(record) + "\n" for record in LONG))
    return path


def test_a_file_cut_short_while_it_is_read_is_an_error_and_no_signal(tmp_path):
    file = many_lines(tmp_path / "a.jsonl")
    source = open_source(file)
    assert source[0].value == LONG[0]
    os.truncate(file, 5000)
    for index in (0, 50, 99):
        with pytest.raises(UserError, match=r"a\.jsonl has changed since it was opened"):
            source[index]


def test_lines_that_are_rewritten_are_found_and_those_appended_do_no_harm(tmp_path):
    file = many_lines(tmp_path / "a.jsonl")
    source = open_source(file)
    assert source[3].value == LONG[3]
    with file.open("a") as more:
        more.write('{"text": "new"}\n')
    assert len(source) == 100
    assert source[99].value == LONG[99]
    again = open_source(file)
    assert again[100].value == {"text": "new"}
    content = file.read_bytes()
    file.write_bytes(content.replace(b"x", b"y"))
    with pytest.raises(UserError, match="has changed since it was opened"):
        again[5]


@pytest.mark.parametrize("kind", ["parquet", "arrayrecord", "folder"])
def test_other_files_cut_short_are_errors_too(tmp_path, kind):
    path = WRITERS[kind](tmp_path / "a")
    source = open_source(path)
    assert plain(source[0].value) == RECORDS[0]
    file = next(path.glob("*.arrow")) if kind == "folder" else path
    os.truncate(file, 16)
    with pytest.raises(UserError, match=f"{file} ") as caught:
        [source[index] for index in range(20)]
    assert "\n" not in str(caught.value)


def lay(folder: Path, names: str) -> Path:
    for name in names.split():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'{{"text": "{name}"}}\n')
    return folder


def test_files_of_systems_and_hidden_files_are_no_data(tmp_path):
    junk = "._a.jsonl .DS_Store .hidden.jsonl Thumbs.db desktop.ini __MACOSX/a.jsonl"
    folder = lay(tmp_path / "x", f"a.jsonl sub/b.jsonl {junk} .git/c.jsonl sub/._b.jsonl")
    (folder / "d.json").mkdir()
    warnings = []
    assert [r["text"] for r in values(open_source(folder, warn=warnings.append))] == ["a.jsonl"]
    assert warnings == [f"passed over in {folder}: d.json/, sub/"]
    for pattern, expected in [
        ("*.jsonl", ["a.jsonl"]),
        ("**/*.jsonl", ["a.jsonl", "sub/b.jsonl"]),
        (".hidden*", [".hidden.jsonl"]),
    ]:
        assert [r["text"] for r in values(open_source(folder / pattern))] == expected
    hidden = lay(tmp_path / ".cache" / "x", "a.jsonl ._a.jsonl")
    assert len(open_source(hidden)) == len(open_source(hidden / "*.jsonl")) == 1
    with pytest.raises(UserError, match="holds no"):
        open_source(lay(tmp_path / "y", "._a.jsonl"))


def test_a_byte_order_mark_is_no_part_of_a_record(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"text": "one"}\n{"text": "two"}\n', "utf-8-sig")
    (tmp_path / "c.txt").write_text("three", "utf-8-sig")
    assert [r["text"] for r in values(open_source(tmp_path))] == ["one", "two"] * 2 + ["three"]


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("b.jsonl.gz", "gunzip -k"),
        ("b.txt.gz", "gunzip -k"),
        ("b.JSON.GZ", "gunzip -k"),
        ("b.jsonl.zst", "unzstd"),
        ("b.jsonl.bz2", "bunzip2 -k"),
        ("b.parquet.xz", "unxz -k"),
    ],
)
def test_compressed_data_in_a_folder_are_refused_by_name(tmp_path, name, command):
    folder = lay(tmp_path / "x y", f"a.jsonl {name}")
    says = rf"/{name} is compressed; unpack it first: {command} '.*x y/{name}'$"
    with pytest.raises(UserError, match=says):
        open_source(folder)


def test_other_files_in_a_folder_of_data_are_named(tmp_path):
    folder = lay(tmp_path / "x", "a.jsonl README.md b.csv code.zip c/d.jsonl e f g")
    warnings = []
    assert len(open_source(folder, warn=warnings.append)) == 1
    assert warnings == [f"passed over in {folder}: README.md, b.csv, c/, code.zip, e and 2 more"]


def test_compression_is_known_by_content_too(tmp_path):
    for magic in (b"\x1f\x8b\x08", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"BZh9", b"7z\xbc\xaf"):
        (tmp_path / "a.jsonl").write_bytes(magic + bytes(80))
        with pytest.raises(UserError, match=r"a\.jsonl is compressed; unpack it first: "):
            open_source(tmp_path / "a.jsonl")


def test_records_that_are_too_large_are_bad_and_the_others_are_read(tmp_path, monkeypatch):
    lines = tmp_path / "a.jsonl"
    lines.write_text(f'{{"text": "a"}}\n{{"text": "{"b" * 200}"}}\n\n{{"text": "c"}}')
    document = tmp_path / "a.txt"
    document.write_text("d" * 101)
    monkeypatch.setenv("LWM_MAX_RECORD", "100")
    source = open_source(lines, document)
    assert [source[i].value["text"] for i in (0, 2)] == ["a", "c"]
    assert source[2].line == 3
    with pytest.raises(UserError, match=r"a.jsonl:2: a line of 213 bytes, .* raise LWM_MAX_RECORD"):
        source[1]
    with pytest.raises(UserError, match=r"a.txt has 101 bytes, .* raise LWM_MAX_RECORD"):
        source[3]


@pytest.mark.parametrize("name", ["config.json", "a.txt", "tokenizer.json", "vqgan"])
def test_files_that_are_mostly_a_hole_are_refused(tmp_path, name):
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, 1 << 33)
    read = {"config.json": read_json, "a.txt": read_document, "tokenizer.json": Tokenizer.open}
    with pytest.raises(UserError, match=rf"{name} has 8,589,934,592 bytes.*raise LWM_MAX_"):
        read.get(name, read_pickle)(tmp_path / name)


def test_row_groups_that_expand_keep_a_value_once_or_are_refused(tmp_path, monkeypatch):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    text = "x" * 10_000
    rows = {"text": [text] * 1000, "several": [[text, "y"]] * 1000}
    parquet.write_table(arrow.table(rows), tmp_path / "a.parquet")
    monkeypatch.setenv("LWM_MAX_ROW_GROUP", "1_000_000")
    source = open_source(tmp_path / "a.parquet")
    assert isinstance(source, Parquet)
    assert source[999].value == {"text": text, "several": [text, "y"]}
    assert source._group(0).nbytes < 1_000_000
    parquet.write_table(arrow.table({"ids": [[7] * 1000] * 1000}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b.parquet: row group 1 needs 8,000,000 .*LWM_MAX_ROW_GR"):
        open_source(tmp_path / "b.parquet")[0]
