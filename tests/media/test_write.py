"""The files that are written for people to look at."""

import os

import numpy as np
import pytest

from lwm.errors import UserError
from lwm.media.frames import read_frames
from lwm.media.text import read_text
from lwm.media.write import contact_sheet, write_image, write_video

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

av = pytest.importorskip("av", reason="PyAV is not installed")


def picture(side):
    coarse = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(("ending", "off"), [("mp4", 5), ("gif", 10), ("webp", 5)])
def test_videos_are_written(tmp_path, ending, off):
    pixels = np.stack([np.roll(picture(64), 4 * i, 1) for i in range(12)])
    path = tmp_path / f"clip.{ending}"
    write_video(path, pixels, 24.0)
    assert os.listdir(tmp_path) == [path.name]
    frames = read_frames(path, resolution=64)
    unit = {"mp4": 1e9, "gif": 100, "webp": 1000}[ending]
    np.testing.assert_allclose(frames.times, np.arange(12) / 24, atol=0.5 / unit + 1e-9)
    assert frames.duration == pytest.approx(0.5)
    assert np.abs(frames.pixels.astype(int) - pixels).mean() < off
    write_video(path, pixels[:1], 24.0)
    assert len(read_frames(path, resolution=64).pixels) == 1


@pytest.mark.parametrize("ending", ["gif", "webp", "mp4"])
@pytest.mark.parametrize("order", [(0, 0, 0, 0), (0, 0, 1, 1, 0), (0, 2, 0, 1)])
def test_equal_frames_are_all_kept(tmp_path, ending, order):
    """Those of a clip that stands still, and those that differ by too little to see."""
    whole = picture(32)
    nearly = whole.copy()
    nearly[0, 0, 0] ^= 1
    some = np.stack([whole, np.roll(whole, 9, 1), nearly])
    write_video(tmp_path / f"clip.{ending}", some[list(order)], 5.0)
    frames = read_frames(tmp_path / f"clip.{ending}", resolution=32)
    assert frames.is_video
    assert frames.count == len(order)
    np.testing.assert_allclose(frames.times, np.arange(len(order)) / 5)
    assert frames.duration == pytest.approx(len(order) / 5)
    assert np.abs(frames.pixels.astype(int) - some[list(order)]).mean() < 12
    if ending != "mp4":
        for number in np.flatnonzero(np.diff(order) == 0):
            np.testing.assert_array_equal(frames.pixels[number], frames.pixels[number + 1])


@pytest.mark.parametrize("ending", ["gif", "webp"])
@pytest.mark.parametrize("size", [(1, 1), (7, 1), (1, 6)])
def test_equal_frames_of_any_size(tmp_path, ending, size):
    write_video(tmp_path / f"dots.{ending}", np.full((3, *size, 3), 200, np.uint8), 10.0)
    frames = read_frames(tmp_path / f"dots.{ending}", resolution=4)
    assert (frames.count, frames.height, frames.width) == (3, *size)
    assert np.abs(frames.pixels.astype(int) - 200).max() <= 1


def test_a_gif_shows_no_frame_for_hours(tmp_path):
    with pytest.raises(UserError, match=r"a\.gif shows a frame for at most 655 s"):
        write_video(tmp_path / "a.gif", np.zeros((2, 4, 4, 3), np.uint8), 0.001)


def test_odd_sides_are_made_even(tmp_path):
    write_video(tmp_path / "odd.mp4", np.full((2, 33, 17, 3), 90, np.uint8), 29.97)
    frames = read_frames(tmp_path / "odd.mp4", resolution=8)
    assert (frames.width, frames.height) == (18, 34)
    assert np.abs(frames.pixels.astype(int) - 90).max() <= 2
    assert frames.times[1] == pytest.approx(1 / 29.97, rel=1e-3)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_images_are_written(tmp_path, ending):
    pixels = picture(32)
    write_image(tmp_path / f"a.{ending}", pixels)
    assert os.listdir(tmp_path) == [f"a.{ending}"]
    found = read_frames(tmp_path / f"a.{ending}", resolution=32).pixels[0].astype(int)
    assert np.abs(found - pixels).mean() < (1e-9 if ending == "png" else 4)


def test_what_cannot_be_written_leaves_no_trace(tmp_path, monkeypatch):
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    (tmp_path / "old.gif").write_bytes(b"old")
    for call, words in [
        (lambda: write_video(tmp_path / "a.mkv", pixels, 24.0), "a.mkv ends in none of .mp4"),
        (lambda: write_video(tmp_path / "a.gif", pixels, 0.0), "fps is 0.0"),
        (lambda: write_video(tmp_path / "a.gif", pixels[:0], 24.0), "no frame"),
        (lambda: write_image(tmp_path / "a.gif", pixels[0]), "a.gif ends in none of .png"),
        (lambda: write_video(tmp_path / "none" / "a.gif", pixels, 24.0), "cannot be written"),
    ]:
        with pytest.raises(UserError, match=words):
            call()
    monkeypatch.setattr(Image.Image, "save", lambda *_, **__: 1 / 0)
    with pytest.raises(UserError, match=r"old\.gif cannot be written: division by zero"):
        write_video(tmp_path / "old.gif", pixels, 24.0)
    assert os.listdir(tmp_path) == ["old.gif"]
    assert (tmp_path / "old.gif").read_bytes() == b"old"


def test_a_contact_sheet():
    frames = np.stack([np.full((4, 6, 3), i, np.uint8) for i in range(5)])
    sheet = contact_sheet(frames, 3, gap=1)
    assert sheet.shape == (9, 20, 3)
    for number, (top, left) in enumerate([(0, 0), (0, 7), (0, 14), (5, 0), (5, 7)]):
        assert (sheet[top : top + 4, left : left + 6] == number).all()
    assert (sheet[5:, 14:] == 255).all()
    assert contact_sheet(list(frames[:2]), 9, gap=0).shape == (4, 12, 3)
    with pytest.raises(UserError, match="differ in size"):
        contact_sheet([frames[0], frames[0][:2]], 2)
    with pytest.raises(UserError, match="needs a frame"):
        contact_sheet(frames, 0)


TEXTS = [
    '{"prompt": "a red circle", "seed": 1}',
    '{"prompt": "ein Kreis — ein rötlicher 円 🔴", "seed": 4294967295}',
    "a\nb\t \u00e9",
    "word " * 6400,
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("ending", ["png", "jpg", "jpeg", "webp"])
def test_a_text_in_an_image_changes_no_pixel(tmp_path, ending, text):
    plain, noted = tmp_path / f"plain.{ending}", tmp_path / f"noted.{ending}"
    write_image(plain, picture(32))
    write_image(noted, picture(32), text=text)
    assert read_text(noted) == read_text(noted.read_bytes()) == text
    assert read_text(plain) is None
    pixels = [read_frames(path, resolution=32).pixels for path in (plain, noted)]
    np.testing.assert_array_equal(pixels[0], pixels[1])


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("order", [(0, 1, 2), (0, 0, 1), (0,)])
@pytest.mark.parametrize("ending", ["mp4", "gif", "webp"])
def test_a_text_in_a_video_changes_no_pixel(tmp_path, ending, order, text):
    plain, noted = tmp_path / f"plain.{ending}", tmp_path / f"noted.{ending}"
    pixels = np.stack([np.roll(picture(32), 4 * number, 1) for number in order])
    write_video(plain, pixels, 5.0)
    write_video(noted, pixels, 5.0, text=text)
    assert read_text(noted) == read_text(noted.read_bytes()) == text
    assert read_text(plain) is None
    frames = [read_frames(path, resolution=32) for path in (plain, noted)]
    np.testing.assert_array_equal(frames[0].pixels, frames[1].pixels)
    np.testing.assert_array_equal(frames[0].times, frames[1].times)
    assert len(frames[1].pixels) == len(order)


def test_texts_that_are_too_long_for_other_readers(tmp_path):
    """Pillow reads no compressed text of more than a megabyte; ours are not compressed."""
    long = "円" * (1 << 20)
    for ending, wanted in (("png", long), ("webp", long), ("jpg", None)):
        path = tmp_path / f"noted.{ending}"
        write_image(path, picture(32), text=long)
        assert read_text(path) == wanted
        assert len(read_frames(path, resolution=32).pixels) == 1


def test_what_has_no_text_is_named(tmp_path):
    whole = tmp_path / "noted.png"
    write_image(whole, picture(32), text="a")
    (cut := tmp_path / "cut.png").write_bytes(whole.read_bytes()[:45])
    (note := tmp_path / "note.txt").write_text("a text")
    for path in (cut, note, tmp_path / "missing.png"):
        with pytest.raises(UserError, match=path.name) as caught:
            read_text(path)
        assert "\n" not in str(caught.value)
