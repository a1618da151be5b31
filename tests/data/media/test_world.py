"""Clips of the world as data: named, tokenized as files are, shown, and read by training."""

import base64
import dataclasses
import html
import io
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from lwm.cache import LRUCache
from lwm.cli.data import data_show, tokenize
from lwm.data.media.inputs import open_items
from lwm.data.media.items import Item, Items
from lwm.data.media.read import Pictures, Sampling, read_item, read_items
from lwm.data.media.world import WorldItems, WorldSet
from lwm.data.sets import open_records, require_codes_of
from lwm.errors import UserError
from lwm.eval.vision import read_pairs
from lwm.media.frames import read_frames
from lwm.media.write import write_image
from lwm.train.vqgan.batches import FrameFiles, evenly
from lwm.vqgan.checkpoint import read_vqgan
from lwm.vqgan.tokenizer import VisionTokenizer
from lwm.world.world import World, WorldConfig

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
pytest.importorskip("array_record", reason="array_record is not installed")


def read(items: Items, number: int, sampling: Sampling) -> Pictures:
    """The frames of an item, which is neither bad nor something else."""
    found = read_item(items, number, sampling)
    assert isinstance(found, Pictures)
    return found


def texts(name: str) -> list[dict]:
    items = open_items([name])
    found = [items[number] for number in range(len(items))]
    records = [each.record for each in found if isinstance(each, Item)]
    assert len(records) == len(items)
    return [{key: value for key, value in each.items() if key != "name"} for each in records]


def test_a_name_says_what_the_set_is():
    name = "world:heldout,count=7,frames=1,seed=3,text=mixed,resolution=32,most=2"
    found = WorldSet.parse(f"{name},backgrounds=white+black")
    assert found == WorldSet(
        world=WorldConfig(
            split="heldout",
            frames=1,
            seed=3,
            resolution=32,
            most=2,
            backgrounds=("white", "black"),
        ),
        count=7,
        text="mixed",
        resolution=32,
    )
    assert WorldSet.parse("world:train").world == WorldConfig()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("world:test", "there is no world:test; there are world:train and world:heldout"),
        ("world:", "there is no world:; there are"),
        ("world:train,backgrounds=blue", "backgrounds is 'blue'; give some of white, grey, black"),
        ("world:train,counts=2", "there is no option 'counts'; there are count, frames, fps"),
        ("world:train,count", "count '' is not a whole number"),
        ("world:train,count=many", "count 'many' is not a whole number"),
        ("world:train,count=0", "count 0 must be at least 1"),
        ("world:train,fps=slow", "fps 'slow' is not a number"),
        ("world:train,frames=0", "frames"),
        ("world:train,seed=1,seed=2", "seed is given twice"),
        ("world:train,text=songs", "text 'songs' is none of captions, questions, mixed"),
    ],
)
def test_a_wrong_name_is_refused_in_one_line(name, said):
    for reads in (open_items, open_records):
        with pytest.raises(UserError, match=re.escape(said)) as caught:
            reads([name])
        assert str(caught.value).startswith(f"{name}: ")
        assert "\n" not in str(caught.value)


def test_frames_and_texts_are_those_of_the_world():
    items = open_items(["world:train,count=5,seed=4"])
    world = World(WorldConfig(seed=4))
    for number in range(5):
        found, clip = read(items, number, Sampling(resolution=64)), world.clip(number)
        np.testing.assert_array_equal(found.pixels[0], clip.pixels)
        assert found.record["caption"] == clip.caption
        assert found.record["is_video"]
        assert found.record["times"] == [frame / 4 for frame in range(8)]
    still = read(open_items(["world:train,frames=1"]), 0, Sampling(resolution=64))
    assert (still.record["frames"], still.record["is_video"]) == (1, False)


def test_questions_are_those_of_the_clip():
    asked = texts("world:train,count=40,text=questions")
    world = World(WorldConfig())
    for number, record in enumerate(asked):
        known = {(each.question, each.answer) for each in world.clip(number).questions}
        assert (record["question"], record["answer"]) in known
    assert len({record["question"] for record in asked}) > 5
    both = texts("world:train,count=4,text=mixed")
    assert both == [*texts("world:train,count=1"), asked[1], both[2], asked[3]]
    assert "caption" in both[2]


def test_frames_are_chosen_and_resized_as_those_of_a_file(tmp_path):
    items = open_items(["world:train,count=1,frames=9,resolution=48"])
    few = read(items, 0, Sampling(resolution=32, max_frames=3))
    assert few.record["times"] == [0.0, 1.0, 2.0]
    pixels = World(WorldConfig(frames=9, resolution=48)).clip(0).pixels
    for frame, found in zip(pixels[::4], few.pixels[0], strict=True):
        write_image(tmp_path / "x.png", frame)
        np.testing.assert_array_equal(
            found, read_frames(tmp_path / "x.png", resolution=32).pixels[0]
        )
    each_second = read(items, 0, Sampling(resolution=48, fps=1.0))
    np.testing.assert_array_equal(each_second.pixels[0], pixels[::4])


def test_clips_are_rendered_at_the_size_that_is_asked_for():
    items = open_items(["world:heldout,count=3"])
    large = World(WorldConfig(split="heldout", resolution=96))
    for number in range(3):
        found, clip = read(items, number, Sampling(resolution=96)), large.clip(number)
        np.testing.assert_array_equal(found.pixels[0], clip.pixels)
        assert found.record["caption"] == clip.caption, "the same scene at any size"


def test_items_are_read_by_other_processes_and_beside_files(tmp_path):
    write_image(tmp_path / "x.png", np.zeros((8, 8, 3), np.uint8))
    items = open_items(["world:train,count=2", str(tmp_path / "x.png"), "world:heldout,count=1"])
    copy = pickle.loads(pickle.dumps(items))
    assert copy.identity() == items.identity()
    sampling = Sampling(resolution=64)
    here = [read(items, number, sampling) for number in range(4)]
    found = list(read_items(copy, range(4), sampling, workers=1))
    there = [each for each in found if isinstance(each, Pictures)]
    assert [each.name for each in here] == [each.name for each in there]
    assert len({each.name for each in here}) == 4
    for one, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(one.pixels[0], other.pixels[0])
        assert one.record == other.record


def test_other_settings_are_another_content():
    names = ["world:train", "world:heldout"]
    names += [f"world:train,{x}" for x in ("seed=1", "frames=4", "text=mixed", "resolution=128")]
    found = [str(open_items([f"{name},count=9"]).identity()) for name in names]
    assert len(set(found)) == len(names)
    own = WorldItems(WorldSet.parse("world:train,vqgan=x")).identity()
    assert own == WorldItems(WorldSet.parse("world:train")).identity()
    with pytest.raises(UserError, match="the VQGAN is given apart; leave vqgan out of the name"):
        open_items(["world:train,vqgan=x"])


def test_shards_are_the_same_after_a_stop(tmp_path, capsys):
    name = "world:train,count=6,frames=2"
    options = {"vqgan": Path("vqgan-64"), "shards": 3, "batch": 4}
    tokenize((name,), out=tmp_path / "one", **options)
    assert "12 of 64 × 64" in capsys.readouterr().out
    tokenize((name,), out=tmp_path / "two", **options)
    (tmp_path / "two" / "media-00001-of-00003.arrayrecord").unlink()
    tokenize((name,), out=tmp_path / "two", **options)
    for file in (tmp_path / "one").glob("*.arrayrecord"):
        assert (tmp_path / "two" / file.name).read_bytes() == file.read_bytes()
    with pytest.raises(UserError, match="another input"):
        tokenize(("world:train,count=6,frames=2,seed=1",), out=tmp_path / "two", **options)


def test_records_are_tokenized_once_into_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LWM_CACHE", str(tmp_path))
    said: list[str] = []
    name = "world:heldout,count=4,frames=2"
    records = open_records((name,), warn=said.append)
    assert len(records) == 4
    assert said == [f"{name}: tokenizes 4 clips, once; they are kept in the cache"]
    assert records[0].value["caption"] == texts(name)[0]["caption"]
    assert len(records[0].value["vision"]) == 2 * 64
    assert open_records((name,), warn=said.append)[0].value == records[0].value
    assert len(said) == 1
    own = read_vqgan("vqgan-64")
    require_codes_of((name,), lambda: own)
    codebook = own.quantizer.codebook
    quantizer = dataclasses.replace(own.quantizer, codebook=-codebook)
    other = dataclasses.replace(own, quantizer=quantizer)
    with pytest.raises(UserError, match="or write vqgan= and its path into the name") as caught:
        require_codes_of((name,), lambda: other)
    assert str(caught.value).startswith(f"the codes of {name} were made by another VQGAN")


def test_a_set_with_a_vqgan_of_its_own(tmp_path, monkeypatch, draw_vqgan):
    monkeypatch.setenv("LWM_CACHE", str(tmp_path))
    vqgan = draw_vqgan(resolution=16, levels=1, codes=32)
    record = open_records((f"world:train,count=1,frames=3,vqgan={vqgan}",))[0].value
    frames = read(open_items(["world:train,frames=3"]), 0, Sampling(resolution=16)).pixels[0]
    expected = VisionTokenizer.open(vqgan).encode(frames)
    np.testing.assert_array_equal(record["vision"], expected.ravel())
    assert read_pairs((f"world:train,count=1,frames=3,vqgan={vqgan}",))[0].caption
    with pytest.raises(UserError, match=r"should have a 'caption' .*; leave text out of its name"):
        read_pairs((f"world:train,count=1,text=questions,vqgan={vqgan}",))
    with pytest.raises(UserError, match="nowhere"):
        open_records(("world:train,vqgan=nowhere",))


def test_the_page_shows_clips_as_they_are_rendered(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data_show(("world:heldout,count=9,frames=3",), count=2)
    assert capsys.readouterr().out == "world-heldout.html\n"
    page = (tmp_path / "world-heldout.html").read_text()
    world = World(WorldConfig(split="heldout", frames=3))
    sources = re.findall('src="data:image/webp;base64,([^"]+)"', page)
    for index, source in zip((0, 8), sources, strict=True):
        clip = world.clip(index)
        sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(source))).convert("RGB"))
        shown = sheet.reshape(64, 3, 64, 3).swapaxes(0, 1)  # the frames are side by side
        # WebP halves the resolution of colours.
        assert np.abs(shown.astype(int) - clip.pixels).mean() < 3
        for text in (clip.caption, *(each.question for each in clip.questions)):
            assert html.escape(text, quote=False) in page
    assert "9 items" in page
    data_show(("world:heldout,count=1,frames=300",), out=tmp_path / "long.html")
    assert "300 frames" in (tmp_path / "long.html").read_text()
    with pytest.raises(UserError, match="exists"):
        data_show(("world:heldout,count=9,frames=3",))
    with pytest.raises(UserError, match="leave --vqgan and --originals out"):
        data_show(("world:heldout",), vqgan=Path("vqgan-64"))
    with pytest.raises(UserError, match=r"copies:train is missing; give a .* world:train"):
        data_show(("copies:train",))


def test_frames_to_train_a_vqgan():
    files = FrameFiles(
        open_items(["world:train,count=4,frames=2"]), Sampling(resolution=32), LRUCache(0), "x"
    )
    frames, name = files[3]
    assert (frames.shape, name) == ((2, 32, 32, 3), "train-0000003")
    assert len(evenly(files, 6)) == 6
