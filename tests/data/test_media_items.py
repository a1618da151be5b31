"""What images and videos come in: each way gives the same items, and faults are told one by one."""

import csv
import io
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lwm.data.media_inputs import open_items
from lwm.data.media_items import Bad
from lwm.data.media_read import Pictures, Sampling, read_item
from lwm.errors import UserError

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
parquets = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")

SMALL = Sampling(resolution=8, max_frames=2)
CAPTIONS = {"a.png": "a dot", "sub/b.gif": "two, “dots”", "sub/c.x.jpg": "éclair"}


def encoded(seed: int, kind: str = "PNG", frames: int = 1, side: int = 12) -> bytes:
    rng = np.random.default_rng(seed)
    made = [Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)) for _ in range(frames)]
    buffer = io.BytesIO()
    options = {"save_all": True, "append_images": made[1:], "duration": 100} if frames > 1 else {}
    made[0].save(buffer, kind, **options)
    return buffer.getvalue()


def lay(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


MEDIA: dict[str, Any] = {
    "a.png": encoded(0),
    "sub/b.gif": encoded(1, "GIF", 3),
    "sub/c.x.jpg": encoded(2, "JPEG"),
}
TEXTS: dict[str, Any] = {
    f"{name.rpartition('.')[0]}.txt": f"{text}\n" for name, text in CAPTIONS.items()
}
ROWS = [{"path": name, "caption": text} for name, text in CAPTIONS.items()]


def jsonl(rows: list) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    return "\n".join(lines)


def table(rows: list[dict], delimiter: str = ",") -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def renamed(rows: list[dict], column: str) -> list[dict]:
    return [{column: row["path"], "caption": row["caption"]} for row in rows]


def zipped(folder: Path, files: dict[str, bytes | str]) -> Path:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return folder / "x.zip"


def tarred(folder: Path, files: dict[str, bytes | str]) -> Path:
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "x.tar", "w") as file:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return folder / "x.tar"


def read(*inputs: Path | str, sampling: Sampling = SMALL) -> list:
    items = open_items([str(each) for each in inputs])
    items = pickle.loads(pickle.dumps(items))
    return [read_item(items, number, sampling) for number in range(len(items))]


def as_list(folder: Path, name: str, text: str) -> Path:
    return lay(folder, {**MEDIA, name: text}) / name


def parquet(folder: Path) -> Path:
    parquets.write_table(pyarrow.Table.from_pylist(ROWS), lay(folder, MEDIA) / "x.parquet")
    return folder / "x.parquet"


def embedded(folder: Path) -> Path:
    """As Hugging Face's library stores pictures."""
    folder.mkdir()
    rows = [
        {"image": {"bytes": MEDIA[row["path"]], "path": row["path"]}, "caption": row["caption"]}
        for row in ROWS
    ]
    parquets.write_table(pyarrow.Table.from_pylist(rows), folder / "x.parquet")
    return folder / "x.parquet"


KINDS = {
    "folder": lambda at: lay(at, MEDIA | TEXTS),
    "folder of json": lambda at: lay(
        at,
        MEDIA
        | {f"{n.rpartition('.')[0]}.json": jsonl([{"caption": c}]) for n, c in CAPTIONS.items()},
    ),
    "imagefolder": lambda at: lay(
        at, MEDIA | {"metadata.jsonl": jsonl(renamed(ROWS, "file_name"))}
    ),
    "imagefolder by csv": lambda at: lay(
        at,
        MEDIA
        | {"metadata.csv": table(renamed(ROWS[:1], "file_name"))}
        | {"sub/metadata.csv": table([{"file_name": r["path"][4:], **r} for r in ROWS[1:]])},
    ),
    "captions": lambda at: lay(at, MEDIA | {"captions.jsonl": jsonl(renamed(ROWS, "file"))}),
    "zip": lambda at: zipped(at, MEDIA | TEXTS),
    "zip of an imagefolder": lambda at: zipped(
        at, MEDIA | {"metadata.jsonl": jsonl(renamed(ROWS, "file_name"))}
    ),
    "tar": lambda at: tarred(at, MEDIA | TEXTS),
    "jsonl": lambda at: as_list(at, "x.jsonl", "\n" + jsonl(ROWS)),
    "csv": lambda at: as_list(at, "x.csv", "\ufeff" + table(renamed(ROWS, "image"))),
    "tsv": lambda at: as_list(at, "x.tsv", table(renamed(ROWS, "video"), "\t")),
    "parquet": parquet,
    "pictures in parquet": embedded,
    "pattern": lambda at: lay(at, MEDIA | TEXTS) / "**" / "*.*",
    "pattern over json": lambda at: KINDS["folder of json"](at) / "**" / "*.*",
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_gives_the_same_items(tmp_path, kind):
    found = read(KINDS[kind](tmp_path / "x"))
    assert [each.name for each in found] == list(MEDIA)
    for each in found:
        record = dict(each.record)
        own = record.pop("path", None)
        assert own in (None, each.name)
        count = 2 if each.name.endswith("gif") else 1
        assert record == {
            "name": each.name,
            "caption": CAPTIONS[each.name],
            "vision": [],
            "frames": count,
            "times": [0.0, 0.2][:count],
            "is_video": count == 2,
        }
        assert each.parts == [each.record]
        whole = np.asarray(Image.open(io.BytesIO(MEDIA[each.name])).convert("RGB").resize((8, 8)))
        assert each.pixels[0].shape == (count, 8, 8, 3)
        if count == 1:
            np.testing.assert_array_equal(each.pixels[0][0], whole)


def test_the_same_content_is_the_same_input(tmp_path):
    one, other = KINDS["folder"](tmp_path / "x"), shutil.copytree(tmp_path / "x", tmp_path / "y")
    assert open_items([str(one)]).identity() == open_items([str(other)]).identity()
    (other / "a.txt").write_text("a spot!")
    assert open_items([str(one)]).identity() != open_items([str(other)]).identity()


def test_what_else_lies_in_a_folder(tmp_path):
    """Content decides what is media; the rest is passed over if it was never meant to be."""
    folder = lay(
        tmp_path / "x",
        {
            "picture.dat": encoded(0),
            "picture.txt": "of the data",
            "readme.md": "text",
            "array.npy": b"\x93NUMPY\0\0",
            "nothing": "",
            "odd": bytes(range(256)),
            "broken.png": b"text",
            ".hidden.png": encoded(1),
            ".git/x.png": encoded(1),
            "deep/er/own.txt": encoded(2, "JPEG"),
            "deep/list.csv": "a,b",
        },
    )
    os.mkfifo(folder / "pipe.png")
    (folder / "deep" / "loop").symlink_to(folder)
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    tarred(folder / "more", {"0.png": encoded(3), "0.txt": "inside"})
    (folder / "more" / "z.zip").write_bytes(b"PK\x03\x04 no zip")
    found = read(folder)
    good = {each.name: each.record.get("caption") for each in found if isinstance(each, Pictures)}
    assert good == {
        "picture.dat": "of the data",
        "deep/er/own.txt": None,
        "more/x.tar/0.png": "inside",
    }
    bad = {each.name: each.reason for each in found if isinstance(each, Bad)}
    assert bad.keys() == {"broken.png", "odd", "dangling.png", "more/z.zip"}
    assert bad["broken.png"].startswith("broken.png is no image and no video that can be read")
    assert bad["dangling.png"] == "dangling.png: No such file or directory"
    assert bad["more/z.zip"].endswith("z.zip cannot be read: File is not a zip file")
    assert found.count(None) == 4, "nothing, readme.md, array.npy and list.csv"


def test_members_of_archives_may_lie(tmp_path):
    path = zipped(
        tmp_path / "x", {"good.png": encoded(0), "locked.png": encoded(1), "cut.png": encoded(2)}
    )
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        places = {info.filename: info.header_offset for info in file.infolist()}
    # The general flags of the central directory say that a member is encrypted.
    data[data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1) + 8] |= 1
    data[places["cut.png"] + 60] ^= 0xFF
    path.write_bytes(data)
    found = read(path)
    assert isinstance(found[0], Pictures)
    assert found[1] == Bad("locked.png", "locked.png: it is encrypted")
    assert found[2].reason.startswith("cut.png cannot be read: ")
    huge = zipped(tmp_path / "y", {"huge.png": encoded(0)})
    data = bytearray(huge.read_bytes())
    central = data.index(b"PK\x01\x02")
    data[central + 24 : central + 28] = (0xFFFFFFF0).to_bytes(4, "little")
    huge.write_bytes(data)
    (bad,) = read(huge)
    assert "more than the 1073741824 that are read from an archive" in bad.reason


def test_damaged_tars(tmp_path):
    path = tarred(tmp_path / "x", {f"{i}.png": encoded(i) for i in range(4)})
    whole = path.read_bytes()
    with tarfile.open(path) as file:
        places = [info.offset for info in file.getmembers()]
    path.write_bytes(whole[: places[3] + 600])
    found = read(path)
    assert [isinstance(each, Pictures) for each in found[:4]] == [True, True, True, False]
    assert "3.png" in found[3].reason
    path.write_bytes(whole[: places[2]] + b"x" * 600 + whole[places[2] + 600 :])
    found = read(path)
    assert [type(each) for each in found] == [Pictures, Pictures, Bad]
    assert "cannot be read after 2 members: a header is damaged" in found[2].reason
    with tarfile.open(path, "w") as file:
        link = tarfile.TarInfo("../../etc/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
        out = tarfile.TarInfo("../../up.png")
        out.size = len(MEDIA["a.png"])
        file.addfile(out, io.BytesIO(MEDIA["a.png"]))
    found = read(path)
    assert (found[0].name, found[0].record["vision"]) == ("../../up.png", []), "a name, no more"
    assert found[1].reason == "../../etc/link.png: it is a link or no plain file"
    path.write_bytes(b"no tar at all" * 100)
    with pytest.raises(UserError, match=r"x\.tar cannot be read: "):
        open_items([str(path)])


BAD_ROWS = [
    ("{", ":1: not JSON"),
    ({"caption": "no path"}, ":1: no path; give it in a column path, file"),
    ({"path": "a.png", "caption": 3}, ":1: caption is no text, but 3"),
    ({"path": "a.png", "answer": ["x"]}, ":1: answer is no text"),
    ({"path": "a.png", "name": 5}, ":1: name is no text"),
    ({"path": 7}, ":1: 7 is no path"),
    ({"path": ""}, ":1: '' is no path"),
    ({"path": "nowhere.png"}, "nowhere.png cannot be read: No such file"),
    ({"path": "."}, ". is no file"),
    ({"path": "sub"}, "sub is no file"),
    ({"path": "https://example.org/a.png"}, ":1: https://example.org/a.png is an address"),
    ({"path": "a.png", "vision": [1]}, ":1: column 'vision' is where the codes go"),
    ({"path": "list.jsonl"}, "list.jsonl is no image and no video"),
    ({"messages": "hi"}, ":1: messages is no list of objects"),
    ({"messages": [{"role": "user", "content": 3}]}, ":1: content of a message is neither text"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, ":1: a part is none of"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "but has no path"),
    (
        {"messages": [{"role": "u", "content": [{"type": "video", "path": "gone.mp4"}]}]},
        "gone.mp4 cannot be read: No such file",
    ),
]


def test_bad_rows_are_told_one_by_one(tmp_path):
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
    assert strange.reason.endswith("l.csv:6: no row of CSV in UTF-8")
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
    parquets.write_table(
        pyarrow.Table.from_pylist([{"messages": [turns[0]]}]), tmp_path / "x" / "l.parquet"
    )
    (row,) = read(tmp_path / "x" / "l.parquet")
    assert row.record["messages"][0]["content"][1] == parts[1], "no key is there that was null"


def test_several_inputs(tmp_path):
    lay(tmp_path / "one", {"a.png": encoded(0), "a.txt": "first", "b.png": encoded(1)})
    lay(tmp_path / "two", {"a.png": encoded(2)})
    found = read(tmp_path / "one", tmp_path / "two", tmp_path / "one" / "b.png")
    assert [each.name for each in found] == ["b.png", "one/a.png", "one/b.png", "two/a.png"]
    loose = read(tmp_path / "one" / "a.png", tmp_path / "two" / "a.png")
    assert [(each.name, each.record.get("caption")) for each in loose] == [
        ("one/a.png", "first"),
        ("two/a.png", None),
    ]


def test_inputs_that_are_none(tmp_path):
    lay(
        tmp_path, {"x.tar.gz": b"\x1f\x8b\x08", "empty/.keep": "", "l.jsonl": "\n", "x.png": "text"}
    )
    for inputs, says in [
        ([], "give files, folders"),
        (["nowhere"], "nowhere does not exist, nor does any file match it"),
        (["x.tar.gz"], r"x\.tar\.gz is compressed; unpack it first"),
        (["empty"], "empty: no file, no row of a list"),
        (["l.jsonl"], "no file, no row of a list"),
    ]:
        with pytest.raises(UserError, match=says):
            open_items([str(tmp_path / each) for each in inputs])
    assert "x.png is no image" in read(tmp_path / "x.png")[0].reason
