"""Inputs of images and videos: each kind gives the same items, and faults are reported singly."""

import io
import os
import shutil
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lwm.data.media.inputs import open_items
from lwm.data.media.items import Bad
from lwm.data.media.read import Pictures
from lwm.errors import UserError

from .media_files import (
    CAPTIONS,
    MEDIA,
    ROWS,
    TEXTS,
    Image,
    encoded,
    jsonl,
    lay,
    parquet_of,
    read,
    renamed,
    table,
    tarred,
    zipped,
)


def as_list(folder: Path, name: str, text: str) -> Path:
    return lay(folder, {**MEDIA, name: text}) / name


def parquet(folder: Path) -> Path:
    return parquet_of(ROWS, lay(folder, MEDIA) / "x.parquet")


def embedded(folder: Path) -> Path:
    """As Hugging Face's library stores pictures, one of them where it lies."""
    rows = [
        {"image": {"bytes": MEDIA[row["path"]], "path": row["path"]}, "caption": row["caption"]}
        for row in ROWS
    ]
    rows[1]["image"]["bytes"] = None
    return parquet_of(rows, lay(folder, {ROWS[1]["path"]: MEDIA[ROWS[1]["path"]]}) / "x.parquet")


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
    """Content decides what is media; the rest is skipped if it was never meant to be."""
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
    assert bad["broken.png"].startswith("broken.png is not a readable image or video")
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


def test_lists_that_archives_hold_in_very_few_bytes_are_refused(tmp_path, monkeypatch):
    files = {"a.png": encoded(0), "metadata.jsonl": " " * (1 << 24) + "{}\n"}
    path = zipped(tmp_path, files)
    assert path.stat().st_size < 100_000
    found = read(path)
    assert [type(each) for each in found] == [Pictures, Bad]
    assert "metadata.jsonl: it unpacks to 16,777,219 bytes" in found[1].reason
    assert "raise LWM_MAX_RATIO" in found[1].reason
    monkeypatch.setenv("LWM_MAX_RATIO", "2000")
    assert "no path" in read(path)[1].reason
    monkeypatch.setenv("LWM_MAX_VALUES", "5")
    lay(tmp_path / "folder", {"a.png": encoded(0), "metadata.jsonl": "{}\n" * 6})
    assert "6 lines, more than 5; raise LWM_MAX_VALUES" in read(tmp_path / "folder")[1].reason


def test_zip_files_of_members_that_overlap_or_are_very_many_are_refused(tmp_path, monkeypatch):
    path = zipped(tmp_path, {f"{name}.png": encoded(0) for name in "abc"})
    monkeypatch.setenv("LWM_MAX_ZIP_INDEX", "100")
    with pytest.raises(UserError, match=r"an index of 1\d\d bytes, .* raise LWM_MAX_ZIP_INDEX"):
        open_items([str(path)])
    monkeypatch.delenv("LWM_MAX_ZIP_INDEX")
    data = bytearray(path.read_bytes())
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    data[second + 42 : second + 46] = bytes(4)  # where its content is: that of the first
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"x.zip: a.png and b.png overlap"):
        open_items([str(path)])


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
    assert found[1].reason == "../../etc/link.png: it is a link or not a plain file"
    path.write_bytes(b"no tar at all" * 100)
    with pytest.raises(UserError, match=r"x\.tar cannot be read: "):
        open_items([str(path)])


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


def test_nothing_is_read_twice(tmp_path):
    folder = lay(tmp_path / "x", MEDIA | {"a.json": '{"caption": "a dot"}'})
    for inputs in (["x/**"], ["x/**/*"], ["x/*"], ["x/a.png", "x/a.json", "x/sub"]):
        found = read(*(tmp_path / each for each in inputs))
        names = sorted(each.name.removeprefix("x/") for each in found)
        assert names == list(MEDIA), inputs
        (dot,) = (each for each in found if each.name.endswith("a.png"))
        assert dot.record["caption"] == "a dot"
    (folder / "metadata.jsonl").write_text(jsonl(renamed(ROWS, "file_name")))
    with pytest.raises(UserError, match=r"metadata\.jsonl describes files beside it"):
        open_items([str(folder / "*")])
    assert len(read(folder / "metadata.jsonl")) == len(read(folder)) == 3


def test_endings_in_large_letters(tmp_path):
    folder = lay(tmp_path / "x", {"A.PNG": encoded(0), "A.TXT": "a dot"})
    for path in (folder, folder / "A.PNG", folder / "*"):
        (found,) = read(path)
        assert (found.name, found.record["caption"]) == ("A.PNG", "a dot")


def test_the_folder_that_is_written_to_is_no_input(tmp_path):
    lay(tmp_path / "x", MEDIA | {"out/media-00000-of-00001.arrayrecord": b"\0", "out/a.png": b""})
    out = tmp_path / "x" / "out"
    for path in (tmp_path / "x", tmp_path / "x" / "*"):
        items = open_items([str(path)], exclude=out)
        assert sorted(items[i].name.removeprefix("x/") for i in range(len(items))) == list(MEDIA)
    with pytest.raises(UserError, match="out is an input; choose another output folder"):
        open_items([str(out)], exclude=out)


def test_bad_descriptions_say_of_which_input(tmp_path):
    for name in ("one", "two"):
        lay(tmp_path / name, {"a.png": encoded(0), "metadata.jsonl": '{\n{"file": "b.png"}\n{}'})
    found = [each for each in read(tmp_path / "one", tmp_path / "two") if isinstance(each, Bad)]
    ends = ("metadata.jsonl:1", "b.png", "metadata.jsonl:3")
    assert [each.name for each in found] == [f"{n}/{end}" for n in ("one", "two") for end in ends]


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
    with pytest.raises(
        UserError, match="recalls:train is text, without images or videos; lwm train takes"
    ):
        open_items(["recalls:train"])
    assert "x.png is not a readable image" in read(tmp_path / "x.png")[0].reason


def repeated(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """An archive with several members of one name."""
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, content in members:
                file.writestr(name, content)
        return path
    with tarfile.open(path, "w") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["x.tar", "x.zip"])
def test_members_of_one_name_do_not_get_each_others_captions(tmp_path, name):
    one, two = encoded(0), encoded(1)
    members = [("a.png", one), ("a.txt", b"one"), ("b.png", two), ("b.txt", b"other")]
    path = repeated(tmp_path / name, [*members, ("a.png", two), ("a.txt", b"two")])
    good, *bad = read(path)
    assert (good.name, good.record["caption"]) == ("b.png", "other")
    assert [each.name for each in bad] == ["a.png", "a.png"]
    assert bad[0].reason.startswith("a.png: 2 files have this name; rename them")
    path = repeated(tmp_path / name, [*members, ("a.txt", b"two")])
    bad, good = read(path)
    assert bad == Bad("a.png", "2 files are called a.txt; rename all but one")
    assert good.record["caption"] == "other"


def test_captions_of_names_that_differ_in_case(tmp_path):
    files = {"a.png": encoded(0), "A.png": encoded(1), "a.txt": "small", "A.txt": "large"}
    found = {each.name: each.record["caption"] for each in read(lay(tmp_path / "x", files))}
    assert found == {"a.png": "small", "A.png": "large"}
    files = {"a.png": encoded(0), "a.txt": "one", "a.TXT": "two"}
    (bad,) = read(lay(tmp_path / "y", files))
    assert bad.reason == "2 files are called a.txt; rename all but one"
    both = read(lay(tmp_path / "z", {"a.png": encoded(0), "a.jpg": encoded(1), "a.txt": "both"}))
    assert [each.record["caption"] for each in both] == ["both", "both"], "as in webdataset"


def test_a_tar_whose_names_begin_with_a_dot(tmp_path):
    """As `tar cf x.tar .` writes them."""
    files = {"./a.png": encoded(0), "./captions.csv": "file,caption\na.png,a dot\n"}
    (found,) = read(tarred(tmp_path / "x", files))
    assert found.record["caption"] == "a dot"


def test_files_of_systems_are_no_media(tmp_path):
    junk = (
        "._a.png",
        ".DS_Store",
        "__MACOSX/._a.png",
        "Thumbs.db",
        "sub/desktop.ini",
        ".git/x.png",
    )
    files: dict[str, Any] = {
        "a.png": encoded(0),
        "sub/b.png": encoded(1),
        **dict.fromkeys(junk, b"\0\5\x16\7"),
    }
    folder = lay(tmp_path / "x", files)
    for source in (folder, folder / "**" / "*.*", zipped(tmp_path / "y", files)):
        found = [each.name for each in read(source)]
        assert found == ["a.png", "sub/b.png"], source
    assert [each.name for each in read(tarred(tmp_path / "z", files))] == ["a.png", "sub/b.png"]


def test_a_byte_order_mark_is_no_part_of_a_caption(tmp_path):
    files = {
        "a.png": encoded(0),
        "a.txt": "\ufeffone",
        "b.png": encoded(1),
        "b.json": '\ufeff{"caption": "two"}',
        "c.png": encoded(2),
        "metadata.csv": "\ufefffile_name,caption\nc.png,three\n",
    }
    found = read(lay(tmp_path / "x", files))
    assert [each.record["caption"] for each in found] == ["one", "two", "three"]
