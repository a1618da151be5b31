"""Images and frames in memory, read like those in files."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from lwm.errors import UserError
from lwm.media.display import image_html, png_of, side_by_side, video_html
from lwm.media.frames import open_frames, read_frames
from lwm.media.write import write_image

SIDE = 16


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


@pytest.fixture
def clip():
    return np.random.default_rng(1).integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8)


def frames_of(source, **options):
    with open_frames(source, resolution=SIDE, **options) as stream:
        return stream.kind, list(stream)


def test_an_image_in_memory_gives_the_frame_of_its_file(pixels, tmp_path):
    write_image(tmp_path / "one.png", pixels)
    wanted = read_frames(tmp_path / "one.png", resolution=SIDE).pixels[0]
    image = Image.fromarray(pixels)
    for given in (image, pixels, image.convert("RGBA"), Image.open(tmp_path / "one.png")):
        kind, (frame,) = frames_of(given)
        assert kind == "image"
        assert frame.size == (32, 24)
        assert np.array_equal(frame.pixels, wanted)


def test_a_turned_image_is_made_upright_and_stays_as_it_was(pixels):
    made, exif = io.BytesIO(), Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).save(made, "PNG", exif=exif)
    image = Image.open(io.BytesIO(made.getvalue()))
    _, (frame,) = frames_of(image)
    assert frame.size == (24, 32)
    assert np.array_equal(frame.pixels, frames_of(made.getvalue())[1][0].pixels)
    assert image.size == (32, 24)


@pytest.mark.parametrize("grey", [(24, 32), (24, 32, 1)])
def test_a_grey_array_has_three_equal_colours(grey, pixels):
    _, (frame,) = frames_of(pixels[..., 0].reshape(grey))
    assert np.array_equal(frame.pixels[..., 0], frame.pixels[..., 2])


def test_frames_are_spread_evenly_and_have_no_times(clip):
    for given in (clip, list(clip), [Image.fromarray(frame) for frame in clip]):
        kind, frames = frames_of(given, max_frames=3)
        assert kind == "video"
        assert np.array_equal([frame.pixels for frame in frames], clip[[0, 2, 4]])
        assert all(np.isnan(frame.time) for frame in frames)
    with pytest.raises(UserError, match="the given picture has no times: give max_frames"):
        frames_of(clip, fps=1.0)


def test_an_animation_of_pillow_is_a_video_with_times(clip):
    made = io.BytesIO()
    first, *rest = map(Image.fromarray, clip)
    first.save(made, "WEBP", save_all=True, append_images=rest, duration=500, lossless=True)
    kind, frames = frames_of(Image.open(made), fps=1.0)
    assert kind == "video"
    assert [frame.time for frame in frames] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((3, 8, 9), np.uint8), r"has the shape \(3, 8, 9\); an image has height"),
        (np.zeros((8, 8, 3)), "holds float64; give uint8"),
        (np.zeros((0, 8, 3), np.uint8), r"has the shape \(0, 8, 3\)"),
        ([np.zeros((2, 8, 8, 3), np.uint8)], "frame 0 is no single image"),
        (5, "5 is no image and no video: give a path"),
        ([], r"\[\] is no image and no video"),
    ],
)
def test_other_values_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        frames_of(given)


def test_notebooks_get_enlarged_pictures_and_clips_that_move(pixels, clip):
    shown = Image.open(io.BytesIO(png_of(pixels)))
    assert shown.size == (256, 192)
    assert np.array_equal(np.asarray(shown)[::8, ::8], pixels)
    element = video_html(clip, np.array([0.0, 0.5, 1.0, 100.0, 101.0]), 'a "b"')
    assert '<img alt="a &quot;b&quot;"' in element
    data = element.partition("base64,")[2].rpartition('"')[0]
    moving = Image.open(io.BytesIO(base64.b64decode(data)))
    assert getattr(moving, "n_frames", 1) == 5
    assert side_by_side([image_html(pixels, "one")] * 2).count("<img") == 2
