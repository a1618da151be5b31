"""Lists of images and videos: their rows as records, and faults reported one by one."""

import datetime

import pytest

from lwm.data.media.inputs import open_items
from lwm.data.media.items import Bad
from lwm.errors import UserError

from .media_files import MEDIA, ROWS, jsonl, lay, parquet_of, read

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
