"""Lists of images and videos: their rows as records, and faults reported one by one."""

import datetime
import json

import pytest

from lwm.data.media.inputs import open_items
from lwm.data.media.items import Bad, survey
from lwm.errors import UserError

from .media_files import (
    CAPTIONS,
    MEDIA,
    ROWS,
    jsonl,
    lay,
    parquet_of,
    read,
    renamed,
    table,
    tarred,
    zipped,
)

BAD_ROWS = [
    ("{", ":1: not JSON"),
    ({"caption": "no path"}, ":1: no path; give it in a column path, file"),
    ({"path": "a.png", "caption": 3}, ":1: caption is not text, but 3"),
    ({"path": "a.png", "answer": ["x"]}, ":1: answer is not text"),
    ({"path": "a.png", "name": 5}, ":1: name is not text"),
    ({"path": 7}, ":1: 7 is not a path"),
    ({"path": ""}, ":1: '' is not a path"),
    ({"path": "nowhere.png"}, "nowhere.png cannot be read: No such file"),
    ({"path": "."}, ". is not a file"),
    ({"path": "sub"}, "sub is not a file"),
    ({"path": "https://example.org/a.png"}, ":1: https://example.org/a.png is a URL"),
    ({"path": "a.png", "vision": [1]}, ":1: column 'vision' is where the codes go"),
    ({"path": "list.jsonl"}, "list.jsonl is not a readable image or video"),
    ({"messages": "hi"}, ":1: messages is not a list of objects"),
    ({"messages": [{"role": "user", "content": 3}]}, ":1: content of a message is neither text"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, ":1: a part is not of type"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "but has no path"),
    (
        {"messages": [{"role": "u", "content": [{"type": "video", "path": "gone.mp4"}]}]},
        "gone.mp4 cannot be read: No such file",
    ),
]


def test_bad_rows_are_reported_one_by_one(tmp_path):
    folder = lay(tmp_path / "x", MEDIA)
    for row, says in BAD_ROWS:
        (folder / "list.jsonl").write_text(jsonl([row, ROWS[0]]))
        bad, good = read(folder / "list.jsonl")
        assert isinstance(bad, Bad), row
        assert says in bad.reason
        assert "\n" not in bad.reason
        assert good.name == "a.png"


def test_bad_rows_of_csv(tmp_path):
    rows = b'path,caption\na.png,"one\nbreak"\n\na.png\na.png,\xff\nsub/b.gif,last\n'
    first, short, strange, last = read(lay(tmp_path / "x", MEDIA | {"l.csv": rows}) / "l.csv")
    assert first.record["caption"] == "one\nbreak"
    assert short == Bad("l.csv:5", f"{tmp_path}/x/l.csv:5: 1 cells for 2 columns")
    assert strange.reason.endswith("l.csv:6: not a row of CSV in UTF-8")
    assert (last.name, last.record["caption"]) == ("sub/b.gif", "last")
    for header in (b"", b"a,a\n1,2\n"):
        (tmp_path / "x" / "l.csv").write_bytes(header)
        with pytest.raises(UserError, match="the first line should name each column once"):
            open_items([str(tmp_path / "x" / "l.csv")])


def test_bad_descriptions_in_a_folder(tmp_path):
    rows = [
        {"file_name": "a.png", "caption": "kept"},
        {"file_name": "gone.png"},
        "{",
        {"caption": ""},
    ]
    files = MEDIA | {"metadata.jsonl": jsonl(rows), "sub/b.txt": b"\xff", "sub/c.x.json": "[]"}
    found = read(lay(tmp_path / "x", files))
    assert found[0].record["caption"] == "kept"
    assert [each.reason for each in found[1:4]] == [
        "sub/b.txt: not text in UTF-8",
        "sub/c.x.json: not a JSON object",
        "metadata.jsonl:2: gone.png is not there",
    ]
    assert found[4].reason.startswith("metadata.jsonl:3: not JSON")
    assert found[5].reason.startswith("metadata.jsonl:4: no path; give it in a column file_name")


def test_a_row_that_names_half_a_surrogate_pair_is_a_bad_one(tmp_path):
    rows = [{"file_name": "a.png", "caption": "kept"}, '{"file_name": "\\ud800.png"}']
    found = read(lay(tmp_path / "x", MEDIA | {"metadata.jsonl": jsonl(rows)}))
    assert found[0].record["caption"] == "kept"
    assert any("metadata.jsonl:2:" in getattr(each, "reason", "") for each in found)


def test_columns_stay_as_they_are(tmp_path):
    row = {
        "path": "a.png",
        "tags": ["x", "y"],
        "size": {"w": 3, "none": None},
        "score": 0.25,
        "nothing": None,
        "question": "What?",
        "answer": "A dot.",
    }
    lay(tmp_path / "x", MEDIA | {"l.jsonl": jsonl([row, {"name": "mine", "path": "a.png"}])})
    first, named = read(tmp_path / "x" / "l.jsonl")
    assert {key: first.record[key] for key in row if key != "path"} == {
        key: value for key, value in row.items() if key != "path"
    }
    assert next(iter(first.record)) == "name"
    assert named.name == "mine"


def test_media_stand_anywhere_in_a_conversation(tmp_path):
    content = [
        {"type": "text", "text": "Compare"},
        {"type": "image", "path": "a.png", "detail": "high"},
        {"type": "video", "path": "sub/b.gif"},
    ]
    turns = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": "They differ.", "weight": 1},
    ]
    rows = [{"messages": turns, "id": 7}, {"messages": turns[1:]}]
    lay(tmp_path / "x", MEDIA | {"l.jsonl": jsonl(rows)})
    both, text = read(tmp_path / "x" / "l.jsonl")
    assert both.name == "l.jsonl:1"
    assert both.record["messages"][1] == turns[1]
    parts = both.record["messages"][0]["content"]
    assert parts[0] == content[0]
    still = {"vision": [], "frames": 1, "times": [0.0], "is_video": False}
    assert parts[1] == {"type": "image", "detail": "high", **still}
    assert (parts[2]["frames"], parts[2]["is_video"]) == (2, True)
    assert [part is parts[i + 1] for i, part in enumerate(both.parts)] == [True, True]
    assert "vision" not in both.record
    assert (text.parts, text.record["messages"]) == ([], turns[1:])
    (row,) = read(parquet_of([{"messages": [turns[0]]}], tmp_path / "x" / "l.parquet"))
    assert row.record["messages"][0]["content"][1] == parts[1], "no key is there that was null"


def test_tables_that_describe_a_folder(tmp_path):
    rows = "file_name, caption\na.png,a dot\n\nsub/b.gif,\na.png\n\n"
    files = MEDIA | {"metadata.csv": rows, "sub/b.txt": "beside"}
    *found, short = read(lay(tmp_path / "x", files))
    captions = {each.name: each.record.get("caption") for each in found}
    assert captions == {"a.png": "a dot", "sub/b.gif": "beside", "sub/c.x.jpg": None}
    assert short == Bad("metadata.csv:5", "metadata.csv:5: 1 cells for 2 columns")
    (tmp_path / "x" / "metadata.csv").write_text("a,a\n")
    assert read(tmp_path / "x")[-1].reason.startswith("metadata.csv: the first line should name")


def test_values_that_json_cannot_hold_are_dropped(tmp_path):
    now = datetime.datetime(2020, 1, 1)
    parts = [
        {"type": "text", "text": "See", "at": now},
        {"type": "image", "path": "a.png", "at": now},
    ]
    row = {"id": 3, "at": now, "messages": [{"role": "user", "content": parts, "at": now}]}
    (found,) = read(parquet_of([row], lay(tmp_path / "x", MEDIA) / "l.parquet"))
    assert found.record.keys() == {"name", "id", "messages"}
    (turn,) = found.record["messages"]
    assert turn.keys() == {"role", "content"}
    assert turn["content"][0] == {"type": "text", "text": "See", "path": None}
    assert turn["content"][1] is found.parts[0]
    assert turn["content"][1].keys() == {"type", "vision", "frames", "times", "is_video"}


NAMES = {
    "captions.csv": lambda rows: table(renamed(rows, "file")),
    "train.tsv": lambda rows: table(renamed(rows, "image"), "\t"),
    "train.jsonl": lambda rows: jsonl(rows),
    "data.ndjson": lambda rows: jsonl(rows),
    "list.json": lambda rows: json.dumps(rows, indent=1),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lay_in", [lay, zipped])
def test_every_list_at_the_top_with_a_column_of_paths_describes(tmp_path, name, lay_in):
    folder = lay_in(tmp_path / "x", MEDIA | {name: NAMES[name](ROWS)})
    found = read(folder)
    assert {each.name: each.record["caption"] for each in found} == CAPTIONS
    known = survey(open_items([str(folder)]))
    assert (known.media, known.captioned, known.others, known.rows()) == (3, 3, [], [])


def test_a_parquet_list_and_a_list_saved_twice(tmp_path):
    folder = lay(tmp_path / "x", MEDIA | {"captions.csv": table(renamed(ROWS, "file_name"))})
    parquet_of(renamed(ROWS, "file_name"), folder / "train.parquet")
    assert {each.name: each.record["caption"] for each in read(folder)} == CAPTIONS
    assert len(read(folder)) == 3
    two = [{"file": "a.png", "caption": text} for text in ("one", "two")]
    found = read(lay(tmp_path / "y", {"a.png": MEDIA["a.png"], "captions.csv": table(two)}))
    assert [each.record["caption"] for each in found] == ["one", "two"]


def test_what_is_passed_over_is_known_before_anything_is_read(tmp_path):
    files = MEDIA | {"captions.csv": "title,caption\na,b\n", "notes.pdf": "x", "readme.md": "x"}
    known = survey(open_items([str(lay(tmp_path / "x", files))]))
    assert known.rows() == [
        ("captions", "0 of 3"),
        (
            "left out",
            "captions.csv (no column file_name or file or path or image or video), "
            "notes.pdf, readme.md",
        ),
    ]
    wrong = [{"file": f"images/{name}", "caption": "x"} for name in MEDIA]
    known = survey(open_items([str(lay(tmp_path / "y", MEDIA | {"c.csv": table(wrong)}))]))
    with pytest.raises(UserError, match=r"3 of 6 items are bad before.*c\.csv:2: images/a\.png is"):
        known.require_few_bad(0.01)
    items = open_items([str(lay(tmp_path / "z", MEDIA | {"l.jsonl": jsonl(ROWS)}) / "l.jsonl")])
    assert survey(items).rows() == []


def test_a_compressed_list_among_media_is_refused_by_name(tmp_path):
    for name in ("captions.csv.gz", "metadata.jsonl.zst", "a.txt.gz", "more.tar.gz"):
        folder = lay(tmp_path / name, MEDIA | {name: b"\x1f\x8b\x08"})
        with pytest.raises(UserError, match=rf"/{name} is compressed; unpack it first: "):
            open_items([str(folder)])


COMPOSED, APART = "caf\u00e9.png", "cafe\u0301.png"


@pytest.mark.parametrize(("there", "named"), [(APART, COMPOSED), (COMPOSED, APART)])
def test_names_match_however_their_accents_are_written(tmp_path, there, named):
    rows = jsonl([{"file": f"pâté/{named}", "caption": "a cup"}])
    files = {f"pa\u0302te\u0301/{there}": MEDIA["a.png"], "l.jsonl": rows}
    folder = lay(tmp_path / "x", files)
    for source in (folder, folder / "l.jsonl", tarred(tmp_path / "y", files)):
        (found,) = read(source)
        assert found.record["caption"] == "a cup"
    beside = {there: MEDIA["a.png"], named.replace(".png", ".txt"): "a cup"}
    folder = lay(tmp_path / "z", beside)
    for source in (folder, folder / there):
        (found,) = read(source)
        assert found.record["caption"] == "a cup"


@pytest.mark.parametrize("path", [r"sub\b.gif", r".\sub\b.gif", "./sub/b.gif"])
def test_paths_of_windows_in_lists(tmp_path, path):
    folder = lay(tmp_path / "x", MEDIA | {"l.csv": table([{"path": path, "caption": "dots"}])})
    (listed,) = read(folder / "l.csv")
    assert (listed.pixels[0].shape[0], listed.record["caption"]) == (2, "dots")
    found = {each.name: each.record.get("caption") for each in read(folder)}
    assert found["sub/b.gif"] == "dots"


def test_captions_that_are_lists_or_missing(tmp_path):
    nan = float("nan")
    captions = [["one", "two"], ["one"], [], [None, "one"], None, nan, [nan]]
    wanted = [["one", "two"], "one", None, "one", None, None, None]
    rows = [{"path": "a.png", "caption": caption, "score": nan} for caption in captions]
    folder = lay(tmp_path / "x", MEDIA | {"l.jsonl": jsonl(rows)})
    found = read(folder / "l.jsonl")
    assert [each.record.get("caption") for each in found] == wanted
    assert [each.record.get("caption") for each in read(folder)][:7] == wanted
    assert "NaN" not in json.dumps([each.record for each in found])
    for given, want in (
        [[["one", "two"], None], wanted[:3:2]],
        [[None, "one"], [None, "one"]],
        [[nan, nan], [None] * 2],
    ):
        rows = [{"path": "a.png", "caption": each} for each in given]
        listed = read(parquet_of(rows, folder / "l.parquet"))
        assert [each.record.get("caption") for each in listed] == want
    (row, _) = read(lay(folder, {"l.csv": "path,caption\na.png,nan\na.png,x\n"}) / "l.csv")
    assert "caption" not in row.record
    for value in (3, [1, 2], ["one", 2], {"text": "x"}, True):
        (folder / "n.jsonl").write_text(jsonl([{"path": "a.png", "caption": value}]))
        (bad,) = read(folder / "n.jsonl")
        assert bad.reason.startswith(f"{folder}/n.jsonl:1: caption is not text, but") or (
            bad.reason.startswith("n.jsonl:1: caption is not text, but")
        )


def test_numbers_and_nan_in_descriptions_beside_a_picture(tmp_path):
    side = '{"caption": NaN, "name": null}'
    (found,) = read(lay(tmp_path / "x", {"a.png": MEDIA["a.png"], "a.json": side, "a.txt": "dot"}))
    assert found.record["caption"] == "dot"
    (bad,) = read(lay(tmp_path / "y", {"a.png": MEDIA["a.png"], "a.json": '{"caption": 4}'}))
    assert bad.reason == "a.png: caption is not text, but 4"


def test_the_text_of_an_imagefolder_is_the_caption(tmp_path):
    files = {"a.png": MEDIA["a.png"], "metadata.csv": "file_name,text\na.png,an octopus\n"}
    (item,) = read(lay(tmp_path / "x", files))
    assert item.record["caption"] == "an octopus"
    rows = "file_name,text,question\na.png,a note,What?\n"
    (item,) = read(lay(tmp_path / "y", files | {"metadata.csv": rows}))
    assert item.record["text"] == "a note"
