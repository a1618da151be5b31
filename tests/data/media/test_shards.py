"""Media as shards of codes: read as records, finished after any end, the same every time."""

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lwm.cli.data import tokenize
from lwm.data.format import ExampleFormat
from lwm.data.media.encode import find_vqgan
from lwm.data.media.inputs import open_items
from lwm.data.media.read import Sampling
from lwm.data.media.shards import MediaJob, write_media
from lwm.data.media.summary import MediaSummary
from lwm.data.sets import open_set
from lwm.data.sources import open_source
from lwm.errors import UserError
from lwm.sharding import make_mesh
from lwm.tokens import TokenSpace
from lwm.vqgan.checkpoint import read_vqgan
from lwm.vqgan.model import encode_frames
from lwm.vqgan.tokenizer import VisionTokenizer, vqgan_fingerprint

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
pytest.importorskip("array_record", reason="array_record is not installed")

SECONDS = 120


@pytest.fixture(scope="module")
def encoder(vqgan):
    return VisionTokenizer.open(vqgan, batch=4)


def make_media(folder: Path, count: int) -> Path:
    """Writes stills and clips of one to five frames; every tenth file is damaged."""
    folder.mkdir()
    for number in range(count):
        rng = np.random.default_rng(number)
        small = rng.integers(0, 256, (1 + number % 5, 4, 4, 3), np.uint8)
        frames = [Image.fromarray(each).resize((40, 32)) for each in small]
        buffer = io.BytesIO()
        frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=80)
        data = buffer.getvalue()
        (folder / f"{number:04}.gif").write_bytes(data[:20] if number % 10 == 9 else data)
        (folder / f"{number:04}.txt").write_text(f"picture {number}")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_media(tmp_path_factory.mktemp("media") / "pictures", 20)


def records(folder: Path) -> list[dict]:
    source = open_source(folder)
    return [source[number].value for number in range(len(source))]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def write(pictures, encoder, out, *, shards=3, sampling=None, items=None, **options):
    items = items or open_items([str(pictures)])
    sampling = sampling or Sampling(resolution=32, max_frames=4)
    return write_media(
        MediaJob.of(items, sampling, encoder.codebook, out, shards), encoder, **options
    )


def test_shards_hold_the_codes_in_their_order(tmp_path, pictures, encoder, vqgan):
    reported = []
    summary = write(
        pictures, encoder, tmp_path / "out", progress=lambda *done: reported.append(done)
    )
    found = records(tmp_path / "out")
    assert [each["name"] for each in found] == [f"{i:04}.gif" for i in range(20) if i % 10 != 9]
    model = encoder.vqgan
    for record in found:
        number = int(record["name"][:4])
        (item,) = read_pictures(pictures / record["name"])
        codes = encode_frames(model, item, batch=1)
        assert record == {
            "name": record["name"],
            "caption": f"picture {number}",
            "vision": codes.ravel().tolist(),
            "frames": min(4, 1 + number % 5),
            "times": record["times"],
            "is_video": number % 5 > 0,
        }
        assert len(record["times"]) == record["frames"]
    assert len({tuple(each["vision"]) for each in found}) == 18, "pictures have different codes"
    assert reported[-1] == (20, 20)
    counts = summary.counts
    frames = sum(each["frames"] for each in found)
    assert (counts.items, counts.bad, counts.frames) == (18, 2, frames)
    assert (counts.images, counts.videos) == (4, 14)
    assert summary == MediaSummary.read(tmp_path / "out")
    assert (summary.codebook.tokens_per_frame, summary.codebook.codes) == (64, 64)
    assert summary.codebook.source == str(vqgan)
    bad = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()]
    assert [each["name"] for each in bad] == ["0009.gif", "0019.gif"]
    assert all(each["reason"].startswith(each["name"]) for each in bad)
    assert [s.items for s in summary.shards] == [6, 6, 6]
    names = ["bad.jsonl", *(shard.name for shard in summary.shards), "media.json"]
    assert list(files(tmp_path / "out")) == names


def read_pictures(path: Path):
    from lwm.media.frames import read_frames

    yield read_frames(path, resolution=32, max_frames=4).pixels


def test_records_train_as_they_are(tmp_path, pictures, encoder, byte_tokenizer):
    write(pictures, encoder, tmp_path / "out", shards=2)
    tokens = TokenSpace.of(byte_tokenizer.vocab_size, 64)
    format = ExampleFormat(fields="[caption],vision", tokens_per_frame=64)
    examples = open_set((str(tmp_path / "out"),), format, byte_tokenizer, tokens)
    assert len(examples) == 18
    found, record = examples[1], records(tmp_path / "out")[1]
    vision = found.ids[found.ids >= tokens.text] - tokens.text
    assert vision[vision < 64].tolist() == record["vision"]
    assert (len(vision), found.loss_mask[-1]) == (2 * 65, True)
    broken = dataclasses.replace(format, fields="nothing")
    examples = open_set((str(tmp_path / "out"),), broken, byte_tokenizer, tokens)
    with pytest.raises(UserError, match=r"media-00000-of-00002\.arrayrecord:1: key 'nothing' is"):
        examples[0]


def test_a_conversation_gets_codes_where_its_media_stand(tmp_path, pictures, encoder):
    content = [{"type": "text", "text": "A"}, *({"type": "image", "path": "0000.gif"},) * 2]
    rows = [{"messages": [{"role": "user", "content": content}]}, {"path": "0001.gif"}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for number in range(2):
        (tmp_path / f"000{number}.gif").write_bytes((pictures / f"000{number}.gif").read_bytes())
    items = open_items([str(tmp_path / "x.jsonl")])
    write(pictures, encoder, tmp_path / "out", shards=1, items=items)
    talk, alone = records(tmp_path / "out")
    parts = talk["messages"][0]["content"]
    assert len(parts[1]["vision"]) == 64
    assert parts[1] == parts[2]
    assert len(alone["vision"]) == 2 * 64
    assert MediaSummary.read(tmp_path / "out").counts.frames == 4


def test_batch_and_processes_make_no_difference(tmp_path, pictures, encoder, vqgan):
    """The size of a batch may, in the last bits of a float, which here change no code."""
    write(pictures, encoder, tmp_path / "here")
    write(pictures, encoder, tmp_path / "processes", workers=2)
    assert files(tmp_path / "here") == files(tmp_path / "processes")
    spread = VisionTokenizer.open(vqgan, batch=4, mesh=make_mesh("4,1,1,1"))
    assert spread.frames_per_batch == 16
    write(pictures, spread, tmp_path / "devices")
    assert records(tmp_path / "here") == records(tmp_path / "devices")


def test_a_run_that_stopped_goes_on(tmp_path, pictures, encoder):
    write(pictures, encoder, tmp_path / "whole")
    whole, out = files(tmp_path / "whole"), tmp_path / "out"

    def stop(done, total):
        if done == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(pictures, encoder, out, progress=stop)
    assert sum(name in whole for name in files(out)) == 2, "two shards and no more"
    with pytest.raises(UserError, match="out has no complete set of media shards"):
        open_source(out)
    (out / ".partial-00002-1").write_bytes(b"left by a process that was killed")
    before, reported = (out / sorted(whole)[1]).stat().st_mtime_ns, []
    write(pictures, encoder, out, progress=lambda done, _: reported.append(done))
    assert min(reported) > 13, "the first shards were not written again"
    assert (out / sorted(whole)[1]).stat().st_mtime_ns == before
    assert files(out) == whole
    reported.clear()
    write(pictures, encoder, out, progress=lambda done, _: reported.append(done))
    assert not reported


@pytest.mark.parametrize("whole", [True, False])
def test_another_input_is_refused(tmp_path, pictures, encoder, whole):
    out = tmp_path / "out"

    def again(**changes):
        options = {"encoder": encoder, "max_bad_share": 1.0 if whole else 0.0} | changes
        return write(pictures, out=out, **options)

    if whole:
        again()
    else:
        with pytest.raises(UserError, match=r"10\.0% of the items are bad, more than 0\.0%; see"):
            again()
        assert len((out / "bad.jsonl").read_text().splitlines()) == 2
    few = Sampling(resolution=32, max_frames=2)
    other = VisionTokenizer.__new__(VisionTokenizer)
    other.__dict__ |= vars(encoder) | {
        "codebook": dataclasses.replace(encoder.codebook, fingerprint="0", dtype="bfloat16")
    }
    for says, change in [
        ("items", {"items": open_items([str(make_media(tmp_path / "more", 21))])}),
        ("sampling", {"sampling": few}),
        ("number of shards", {"shards": 2}),
        ("VQGAN, dtype", {"encoder": other}),
    ]:
        with pytest.raises(UserError, match=rf"out holds shards of another input \({says}\): rem"):
            again(**change)
    assert again(max_bad_share=0.1).counts.items == 18


def test_one_process_at_a_time(tmp_path, pictures, encoder):
    def intrude(done, total):
        with pytest.raises(UserError, match="out is being written by another process"):
            write(pictures, encoder, tmp_path / "out")
        seen.append(done)

    seen = []
    write(pictures, encoder, tmp_path / "out", progress=intrude)
    assert seen


def test_nothing_to_keep(tmp_path, encoder):
    lay = tmp_path / "x"
    lay.mkdir()
    (lay / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"no item can be read; the first: a\.png is empty"):
        write(lay, encoder, tmp_path / "a", shards=1)
    (lay / "a.png").unlink()
    (lay / "notes.md").write_text("text")
    with pytest.raises(UserError, match="the first: there is no image or video"):
        write(lay, encoder, tmp_path / "b", shards=1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "give --model or --vqgan: either names the VQGAN that makes the codes"),
        ({"vqgan": Path("x"), "model": "y"}, "give --model or --vqgan"),
        ({"vqgan": Path("/nowhere")}, "/nowhere does not exist; give LWM's vqgan file"),
        ({"max_frames": -1}, r"--max-frames -1 must be 0 \(all\) or above"),
        ({"vqgan": None, "fps": 0.0}, r"fps is 0\.0; give"),
        ({"vqgan": None, "resolution": 30}, "frames of 30 × 30 pixels do not divide into codes"),
        ({"vqgan": None, "batch": 0}, "batch 0 must be at least 1"),
        ({"vqgan": None, "shards": 0}, "20 items cannot be written as 0 shards"),
        ({"vqgan": None, "shards": 21}, "20 items cannot be written as 21 shards"),
        ({"vqgan": None, "workers": -1}, "workers -1 must be 0"),
        ({"vqgan": None, "mesh": "9,1,1,1"}, "9"),
        ({"vqgan": None, "max_bad_share": 2.0}, r"max_bad_share 2\.0 must be from 0 to 1"),
        (
            {"vqgan": None, "out": Path("/dev/null/x")},
            "/dev/null/x cannot be written: Not a dir",
        ),
        ({"engine": "ray", "mesh": "2,1,1,1"}, "with --engine ray, give --workers"),
    ],
)
def test_wrong_options(tmp_path, pictures, vqgan, options, says):
    if "vqgan" in options and options["vqgan"] is None:
        options = options | {"vqgan": vqgan}
    with pytest.raises(UserError, match=says) as caught:
        tokenize((str(pictures),), **{"out": tmp_path / "out"} | options)
    assert "\n" not in str(caught.value)


def test_the_command(tmp_path, pictures, vqgan, capsys):
    folder = shutil.copytree(pictures, tmp_path / "x")
    out = folder / "out"
    options: dict[str, Any] = {"vqgan": vqgan, "out": out, "max_bad_share": 0.1}
    options |= {"resolution": 16, "fps": 25.0, "max_frames": 0, "fit": "letterbox"}
    tokenize((str(folder),), **options)
    printed = capsys.readouterr().out.splitlines()
    tokenize((str(folder),), **options)
    assert capsys.readouterr().out.splitlines() == printed, "the shards are no input"
    assert printed[:2] == ["items      18  bad 2  skipped 0", "media      4 images, 14 videos"]
    assert printed[3].endswith("16 per frame, of 64")
    summary = MediaSummary.read(out)
    assert len(summary.shards) == 1
    assert (summary.sampling["max_frames"], summary.sampling["fps"]) == (None, 25.0)
    assert max(each["frames"] for each in records(out)) == 5
    with pytest.raises(UserError, match="out holds media shards, whose frames are already encoded"):
        open_items([str(out)])
    shard = out / summary.shards[0].name
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"arrayrecord is damaged: it has \d+ bytes in place of"):
        open_source(out)


def test_a_model_says_where_its_vqgan_is(tmp_path, draw_vqgan, vqgan, model):
    assert find_vqgan(None, vqgan) == vqgan
    assert vqgan_fingerprint(read_vqgan(vqgan)) != vqgan_fingerprint(
        read_vqgan(draw_vqgan(codes=65))
    )


def start(pictures: Path, vqgan: Path, out: Path, shards: int, workers: int) -> subprocess.Popen:
    command = "from lwm.cli.app import main; main()"
    options = ["--vqgan", str(vqgan), "--out", str(out), "--shards", str(shards)]
    options += ["--workers", str(workers), "--max-frames", "4", "--max-bad-share", "0.2"]
    return subprocess.Popen(
        [sys.executable, "-c", command, "tokenize", str(pictures), *options],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def kill_at(pictures, vqgan, out, shards, count, workers, delay=0.0) -> None:
    """Kills a run once so many of its shards are there, and waits for all of its processes."""
    process = start(pictures, vqgan, out, shards, workers)
    end = time.monotonic() + SECONDS
    while len(list(out.glob("media-*"))) < count and time.monotonic() < end:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while time.monotonic() < end:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    raise AssertionError("processes outlive the one that started them")


def test_a_killed_run_goes_on(tmp_path, pictures, vqgan, encoder):
    out = tmp_path / "out"
    kill_at(pictures, vqgan, out, 10, 3, 1)
    left = len(list(out.glob("media-*")))
    assert 3 <= left < 10
    assert not (out / "media.json").exists()
    write(pictures, VisionTokenizer.open(vqgan), out, shards=10)
    write(pictures, VisionTokenizer.open(vqgan), tmp_path / "whole", shards=10)
    assert files(out) == files(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_killed_five_times_is_as_one(tmp_path, vqgan):
    many = make_media(tmp_path / "many", 500)
    out, whole = tmp_path / "out", tmp_path / "whole"
    for kill, (count, delay) in enumerate([(0, 1.0), (1, 0.0), (7, 0.013), (18, 0.1), (29, 0.03)]):
        kill_at(many, vqgan, out, 40, count, kill % 3, delay)
        assert not (out / "media.json").exists()
    assert start(many, vqgan, out, 40, 2).wait(SECONDS) == 0
    assert start(many, vqgan, whole, 40, 0).wait(SECONDS) == 0
    assert files(out) == files(whole)
    names = [each["name"] for each in records(out)]
    assert names == [f"{i:04}.gif" for i in range(500) if i % 10 != 9]
    assert len((out / "bad.jsonl").read_text().splitlines()) == 50


@pytest.mark.parametrize("name", ["0003.txt", "0003.gif"])
def test_media_and_captions_changed_at_equal_size_are_refused(tmp_path, pictures, encoder, name):
    folder, out = shutil.copytree(pictures, tmp_path / "x"), tmp_path / "out"

    def stop(done, total):
        if done == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(folder, encoder, out, progress=stop)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-3] + b"???")
    with pytest.raises(UserError, match=rf"^{name} has changed since the start; restore it, or re"):
        write(folder, encoder, out)
    (folder / name).write_bytes(content)
    write(folder, encoder, out)
    (folder / name).write_bytes(content[:-3] + b"???")
    with pytest.raises(UserError, match=rf"^{name} has changed since the start"):
        write(folder, encoder, out)


def test_media_that_a_list_names_count_too(tmp_path, pictures, encoder):
    folder = shutil.copytree(pictures, tmp_path / "x")
    (folder / "l.jsonl").write_text('{"path": "0001.gif"}\n{"path": "0002.gif"}')
    items = open_items([str(folder / "l.jsonl")])
    write(folder, encoder, tmp_path / "out", shards=1, items=items)
    (folder / "0002.gif").write_bytes((folder / "0003.gif").read_bytes())
    with pytest.raises(UserError, match=r"^0002\.gif has changed"):
        write(folder, encoder, tmp_path / "out", shards=1, items=items)


def test_a_damaged_shard_is_made_again(tmp_path, pictures, encoder):
    out = tmp_path / "out"
    write(pictures, encoder, out)
    whole = files(out)
    first, *_, last = sorted(out.glob("media-*"))
    first.write_bytes(whole[first.name][:-1])
    last.write_bytes(whole[last.name][:60] + b"?" + whole[last.name][61:])
    write(pictures, encoder, out)
    assert files(out) == whole
