"""Data to train on: joined by code point, split without leaks, whole or not there."""

import dataclasses
import hashlib
import importlib
import io
import json
import os
import signal
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageSequence

from lwm.errors import UserError

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
archives = importlib.import_module("archives")
captions = importlib.import_module("captions")
fetch_data = importlib.import_module("fetch_data")
make_sample = importlib.import_module("make_sample")

TONES = ("1F3FB", "1F3FC", "1F3FF")
EMOJIS: list[dict[str, Any]] = [
    {
        "label": "waving hand",
        "hexcode": "1F44B",
        "tags": ["hello"],
        "group": 1,
        "skins": [{"label": f"waving hand: {tone}", "hexcode": f"1F44B-{tone}"} for tone in TONES],
    },
    {
        "label": "handshake",
        "hexcode": "1F91D",
        "group": 1,
        # Two tones are written with other code points than the handshake itself.
        "skins": [{"label": "two tones", "hexcode": "1FAF1-1F3FB-200D-1FAF2-1F3FC"}],
    },
    {
        "label": "woman pilot",
        "hexcode": "1F469-200D-2708-FE0F",
        "group": 1,
        "skins": [{"label": "pilot, dark", "hexcode": "1F469-1F3FF-200D-2708-FE0F"}],
    },
    {"label": "red heart", "hexcode": "2764", "group": 0},
    {"label": "keycap: #", "hexcode": "0023-FE0F-20E3", "group": 8},
    *({"label": f"thing {i}", "hexcode": f"{0x1F600 + i:X}", "group": 7} for i in range(40)),
]
GROUPS = [{"order": 0, "key": "smileys"}, {"order": 1, "key": "people"}, {"order": 7, "key": "x"}]

CLIENT = """#!{python} -I
import os, pathlib, shutil, signal, sys
flag = "--pack-destination" if "pack" in sys.argv else "--dest"
folder = pathlib.Path(sys.argv[sys.argv.index(flag) + 1])
shelf = pathlib.Path(__file__).parent / "shelf"
with open(shelf / "calls", "a") as calls:
    calls.write(sys.argv[-1] + "\\n")
if (shelf / "down").exists():
    sys.exit("npm error code E404\\nnpm error 404 Not Found\\nnpm error A log is somewhere")
found = shelf / (shelf / sys.argv[-1].replace("/", "+")).read_text()
if (shelf / "killed").exists():
    (folder / found.name).write_bytes(found.read_bytes()[:100])
    (shelf / "killed").unlink()
    os.kill(os.getppid(), signal.SIGKILL)
else:
    shutil.copy(found, folder)
"""


def webp(*colours: str) -> bytes:
    first, *others = [Image.new("RGBA", (32, 32), colour) for colour in colours]
    packed = io.BytesIO()
    first.save(
        packed, "WEBP", save_all=bool(others), append_images=others, duration=40, lossless=True
    )
    return packed.getvalue()


@dataclasses.dataclass
class Shelf:
    """What the registries hold that this machine's `npm` and `pip` are set up for."""

    folder: Path

    def add(self, like: Any, files: dict[str, bytes]) -> Any:
        """Puts a release on it; returns what is known of it."""
        path = self.folder / like.file
        if path.suffix == ".whl":
            with zipfile.ZipFile(path, "w") as wheel:
                for name, data in files.items():
                    wheel.writestr(name, data)
        else:
            with tarfile.open(path, "w:gz") as packed:
                for name, data in files.items():
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    packed.addfile(member, io.BytesIO(data))
        (self.folder / like.requirement.replace("/", "+")).write_text(like.file)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        return dataclasses.replace(like, sha256=sha256)

    def calls(self) -> int:
        """Returns how often something was asked for since the last time."""
        log = self.folder / "calls"
        count = len(log.read_text().splitlines()) if log.exists() else 0
        log.unlink(missing_ok=True)
        return count


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    folder = tmp_path / "bin"
    (folder / "shelf").mkdir(parents=True)
    for name in ("npm", "pip"):
        (folder / name).write_text(CLIENT.format(python=sys.executable))
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return Shelf(folder / "shelf")


@pytest.fixture
def stills(shelf: Shelf) -> Any:
    """A release of three stills and a file that nobody wants."""
    files = {f"package/assets/{name}.webp": name.encode() for name in ("1f600", "1f601", "1f44b")}
    return shelf.add(fetch_data.STILLS, files | {"package/README.md": b"Read me."})


def provide(package: Any, root: Path) -> Path:
    with archives.workplace(root) as work:
        archives.provide(package, root / "stills", root / "archives", work, log=str)
    return root / "stills"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def collected() -> dict[str, Any]:
    return captions.collect_captions(EMOJIS, {group["order"]: group["key"] for group in GROUPS})


@pytest.mark.parametrize(
    ("file", "hexcode"),
    [
        ("1f44b-1f3fb", "1F44B-1F3FB"),
        ("2764-fe0f", "2764"),
        ("23-20e3", "0023-FE0F-20E3"),
        ("1f469-200d-2708", "1F469-200D-2708-FE0F"),
        ("1f3f4-e0067_e0062_e0065", "1F3F4-E0067-E0062-E0065-E007F"),
    ],
)
def test_spellings_of_one_emoji_are_the_same(file: str, hexcode: str):
    assert captions.spelled(file) == captions.spelled(hexcode)


def test_pictures_get_the_caption_of_their_code_points():
    files = [Path(f"a/{name}.webp") for name in ("2764-fe0f", "1f44b-1f3fb", "1f999", "23-20e3")]
    sides = captions.join(files, collected(), Path("a"), source="s")
    records = {record["path"]: record for side in captions.SIDES for record in sides[side]}
    assert records.keys() == {"2764-fe0f.webp", "1f44b-1f3fb.webp", "23-20e3.webp"}
    assert records["1f44b-1f3fb.webp"] == {
        "path": "1f44b-1f3fb.webp",
        "caption": "waving hand: 1F3FB",
        "tags": ["hello"],
        "hexcode": "1F44B-1F3FB",
        "base": "1F44B",
        "group": "people",
        "source": "s",
    }
    assert records["23-20e3.webp"]["caption"] == "keycap: #"
    assert records["23-20e3.webp"]["group"] == "other"


def test_all_skin_tones_are_on_one_side_whatever_else_is_there():
    known = collected()
    files = [Path(f"{caption.hexcode.lower()}.webp") for caption in known.values()]
    sides = captions.join(files, known, Path())
    bases = [{record["base"] for record in sides[side]} for side in captions.SIDES]
    assert all(bases)
    assert not bases[0] & bases[1]
    assert known["1FAF1-1F3FB-200D-1FAF2-1F3FC"].base == "1F91D"
    few = captions.join(files[::3], known, Path())
    for side in captions.SIDES:
        assert few[side] == [each for each in sides[side] if Path(each["path"]) in files[::3]]


def test_a_tenth_is_held_out():
    held_out = sum(captions.side_of(f"{number:X}") == "held-out" for number in range(5000))
    assert 400 < held_out < 600


def test_what_is_there_is_not_fetched_again(tmp_path: Path, shelf: Shelf, stills: Any):
    root = tmp_path / "data"
    folder = provide(stills, root)
    assert names(folder) == {"1f600.webp", "1f601.webp", "1f44b.webp"}
    assert (folder / "1f600.webp").read_bytes() == b"1f600"
    assert shelf.calls() == 1
    provide(stills, root)
    (folder / "1f600.webp").unlink()
    provide(stills, root)
    assert (folder / "1f600.webp").exists(), "unpacked anew from the archive"
    assert shelf.calls() == 0
    (root / "archives" / stills.file).unlink()
    provide(stills, root)
    assert shelf.calls() == 0, "what is unpacked needs no archive"
    (root / "archives" / stills.file).write_bytes(b"damaged")
    (folder / "1f600.webp").unlink()
    assert len(names(provide(stills, root))) == 3
    assert shelf.calls() == 1


def test_another_release_takes_the_place(tmp_path: Path, shelf: Shelf, stills: Any):
    provide(stills, root := tmp_path / "data")
    newer = dataclasses.replace(stills, requirement="newer@2", file="newer-2.tgz")
    newer = shelf.add(newer, {"package/assets/1f602.webp": b""})
    assert names(provide(newer, root)) == {"1f602.webp"}


def test_an_unknown_archive_is_refused_and_removed(tmp_path: Path, stills: Any):
    other = dataclasses.replace(stills, sha256="0" * 64)
    with pytest.raises(UserError, match=r"fluent-emoji-3d-1.1.0.tgz as fetched is not the known"):
        provide(other, tmp_path / "data")
    assert [path.name for path in tmp_path.glob("data/**/*.*")] == [".lock"]


def test_a_fault_of_the_registry_is_one_line(
    tmp_path: Path, shelf: Shelf, capsys: pytest.CaptureFixture[str]
):
    (shelf.folder / "down").touch()
    config = fetch_data.Fetching(sets=("stills",), folder=tmp_path / "data")
    with pytest.raises(SystemExit) as ended:
        fetch_data.run(lambda: fetch_data.main(config))
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "@lobehub/fluent-emoji-3d@1.1.0 could not be fetched (npm error 404 Not Found)" in last


def test_without_npm_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"needs npm; install Node.js"):
        provide(fetch_data.STILLS, tmp_path / "data")


def test_one_process_at_a_time(tmp_path: Path):
    inner = archives.workplace(tmp_path)
    with archives.workplace(tmp_path), pytest.raises(UserError, match="another process"):
        inner.__enter__()


def test_a_killed_run_leaves_nothing_half_done(tmp_path: Path, shelf: Shelf, stills: Any):
    (shelf.folder / "killed").touch()
    script = (
        "import sys; from pathlib import Path\n"
        "from archives import Package, provide, workplace\n"
        f"root, package = Path({str(root := tmp_path / 'data')!r}), {stills!r}\n"
        "with workplace(root) as work:\n"
        "    provide(package, root / 'stills', root / 'archives', work, log=str)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tools")}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    left = [path.name for path in root.rglob("*") if path.is_file()]
    assert stills.file in left, "half of it is in the run's own folder"
    assert not (root / "stills").exists()
    assert not any((root / "archives").iterdir())
    assert names(provide(stills, root)) == {"1f600.webp", "1f601.webp", "1f44b.webp"}
    assert not list(root.glob(".fetch-*"))


@pytest.fixture
def packages(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small releases in place of the real ones."""
    english = {
        "package/en/data.json": json.dumps(EMOJIS).encode(),
        "package/en/messages.json": json.dumps({"groups": GROUPS}).encode(),
        "package/de/data.json": b"[]",
    }
    files = {
        "clips-1": {"1f44b": webp("red", "blue"), "1f600": webp("red")},
        "clips-2": {f"{0x1F600 + i:x}": webp("red", "blue") for i in range(40)},
        "stills": {"1f44b": webp("red"), "1f44b-1f3fb": webp("blue"), "1f998": webp("blue")},
    }
    articles = {f"Title {i}": {"title": f"Title {i}", "extract": f"Text {i}"} for i in range(50)}
    for article in articles.values():
        article |= {"description": "A thing", "topic": "Things"}
    wiki = {fetch_data.WIKI.wanted[0]: json.dumps(articles).encode(), "code.py": b"raise"}
    known = {"wiki": shelf.add(fetch_data.WIKI, wiki)}
    for name, pictures in files.items():
        paths = {f"package/assets/{stem}.webp": data for stem, data in pictures.items()}
        known[name] = shelf.add(fetch_data.PACKAGES[name], paths)
    monkeypatch.setattr(fetch_data, "CAPTIONS", shelf.add(fetch_data.CAPTIONS, english))
    monkeypatch.setattr(fetch_data, "PACKAGES", fetch_data.PACKAGES | known)
    monkeypatch.setattr(fetch_data, "WIKI", known["wiki"])


def listed(folder: Path) -> dict[str, list[dict]]:
    files = {side: folder / f"{side}.jsonl" for side in captions.SIDES}
    return {side: list(map(json.loads, files[side].read_text().splitlines())) for side in files}


@pytest.mark.usefixtures("packages")
def test_sets_are_fetched_and_listed(
    tmp_path: Path, shelf: Shelf, capsys: pytest.CaptureFixture[str]
):
    root = tmp_path / "data"
    fetch_data.main(fetch_data.Fetching(sets=("clips-1", "stills", "wiki"), folder=root))
    printed = capsys.readouterr().out
    assert "| clips-1 | 1 | 1 | 1 | 0 |" in printed, "what does not move is no clip"
    assert "| stills | 3 | 2 | 2 | 0 |" in printed
    assert printed in (root / "README.md").read_text()
    (clip,) = listed(root / "clips")["train"]
    assert clip["licence"] == "MIT"
    with Image.open(root / "clips" / clip["path"]) as picture:
        assert len(list(ImageSequence.Iterator(picture))) == 2
    wiki = listed(root / "wiki")
    assert sum(map(len, wiki.values())) == 50
    assert all(captions.side_of(each["text"]) == side for side in wiki for each in wiki[side])
    assert wiki["train"][0]["licence"] == "CC-BY-SA-4.0"
    assert shelf.calls() == 4


@pytest.mark.usefixtures("packages")
def test_a_set_added_later_moves_nothing(tmp_path: Path, shelf: Shelf):
    root = tmp_path / "data"
    for name in ("clips-1", "clips-2"):
        fetch_data.fetch_sets(fetch_data.Fetching(sets=(name,), folder=root), log=str)
        clips = listed(root / "clips")
        assert "1F44B" in {each["base"] for each in clips["train"]}
    assert sum(map(len, clips.values())) == 41
    assert clips["held-out"]
    assert shelf.calls() == 3


def test_prose_has_titles_and_sides(tmp_path: Path):
    (tmp_path / "data.txt").write_text("CHAPTER 1. Loomings.\n\n")
    address = {"year": 1790, "name": "George Washington", "text": "Fellow-Citizens"}
    (tmp_path / "1790_george_washington_n.json").write_text(json.dumps(address))
    moby_dick, first = fetch_data.read_prose(tmp_path)
    assert moby_dick["text"] == "CHAPTER 1. Loomings.\n"
    assert first["title"] == "State of the Union, 1790, George Washington"
    sides = fetch_data.split_texts([first, first])
    assert sides[captions.side_of(first["text"])] == [first, first]


@pytest.mark.network
def test_real_stills_all_have_a_caption(tmp_path: Path):
    config = fetch_data.Fetching(sets=("stills",), folder=tmp_path)
    (row,) = fetch_data.fetch_sets(config, log=str)
    assert (row.items, row.captioned) == (3391, 3391)
    assert row.train + row.held_out == 3391
    stills = listed(tmp_path / "stills")
    assert not {r["base"] for r in stills["train"]} & {r["base"] for r in stills["held-out"]}


def test_frames_are_taken_evenly_over_white():
    with Image.open(io.BytesIO(webp("red", "#00000000", "blue", "lime"))) as clip:
        frames, duration = make_sample.take_frames(clip, 2, 16)
    assert [frame.getpixel((8, 8)) for frame in frames] == [(255, 0, 0), (0, 0, 255)]
    assert duration == 80
    with Image.open(io.BytesIO(webp("red", "#00000000"))) as clip:
        frames, _ = make_sample.take_frames(clip, 2, 16)
    assert frames[1].getpixel((8, 8)) == (255, 255, 255)
    assert make_sample.motion(frames) == pytest.approx(170)
    packed = make_sample.pack_frames(frames, 80)
    assert packed == make_sample.pack_frames(frames, 80)
    with Image.open(io.BytesIO(packed)) as clip:
        clip.seek(1)
        assert clip.convert("RGB").tobytes() == frames[1].tobytes()


def test_the_sample_takes_from_all_groups_in_turn():
    records = [{"group": group, "hexcode": f"{group}{i}"} for group in "abb" for i in range(3)]
    groups = [record["group"] for record in make_sample.in_turn(records)]
    assert groups == ["a", "b", "a", "b", "a", "b", "b", "b", "b"]


def test_the_sample_needs_all_clips(tmp_path: Path):
    with pytest.raises(UserError, match="lacks clips-1 clips-2 clips-3 clips-4"):
        make_sample.main(make_sample.Sample(data=tmp_path, folder=tmp_path / "clips"))
    assert not (tmp_path / "clips").exists()


def test_the_sample_in_the_package_is_whole():
    folder = ROOT / "lwm" / "assets" / "clips"
    records = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    assert len({record["caption"] for record in records}) == 64
    assert names(folder) == {r["file"] for r in records} | {"captions.jsonl", "LICENSE"}
    assert len({record["group"] for record in records}) >= 8
    assert all(captions.side_of(captions.spelled(r["hexcode"])) == "train" for r in records)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3e6
    for record in records:
        with Image.open(folder / record["file"]) as clip:
            assert [frame.size for frame in ImageSequence.Iterator(clip)] == [(64, 64)] * 8
