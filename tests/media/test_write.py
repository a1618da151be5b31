"""The files that are written for people to look at."""

import os

import numpy as np
import pytest

from lwm.errors import UserError
from lwm.media.frames import read_frames
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
