"""Images of every mode, upright and on their background, and animated ones."""

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from bombs import chunk

from lwm.errors import UserError
from lwm.media.frames import read_frames
from lwm.media.limits import flatten

from .pictures import SIDE, Image, levels, numbers, picture, saved


def only(data, **options):
    frames = read_frames(data, resolution=SIDE, **options)
    assert not frames.is_video
    assert (frames.times.tolist(), frames.duration, frames.count) == ([0.0], 0.0, 1)
    return frames.pixels[0].astype(int)


def deep_png(values):
    """Writes a PNG of 16 bits, which Pillow cannot in colour."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


EXACT = {
    "PNG": {},
    "BMP": {},
    "PPM": {},
    "QOI": {},
    "TIFF": {"compression": "tiff_lzw"},
    "WEBP": {"lossless": True},
    "ICO": {"sizes": [(SIDE, SIDE)]},
    "JPEG2000": {},
}


@pytest.mark.parametrize("kind", EXACT)
def test_kinds_of_images(kind):
    image = picture()
    np.testing.assert_array_equal(only(saved(image, kind, **EXACT[kind])), np.asarray(image))


@pytest.mark.parametrize("kind", ["JPEG", "AVIF"])
def test_lossy_images(kind):
    image = picture()
    found = only(saved(image, kind, quality=95))
    assert np.abs(found - np.asarray(image).astype(int)).mean() < 4


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "LAB"])
def test_opaque_modes(mode):
    image = picture()
    if mode == "LAB":
        cms = pytest.importorskip("PIL.ImageCms")
        profiles = cms.createProfile("sRGB"), cms.createProfile("LAB")
        made = cms.profileToProfile(image, *profiles, outputMode="LAB")
        made.info.clear()
        expected, off = image, 2  # on average: some colours lie without
    else:
        made = image.convert(mode)
        expected, off = made.convert("RGB"), 0
    found = only(saved(made, "TIFF" if mode in ("CMYK", "YCbCr", "LAB") else "PNG"))
    assert np.abs(found - np.asarray(expected).astype(int)).mean() <= off


def test_adobe_jpegs_store_ink_inverted():
    image = picture()
    data = saved(image.convert("CMYK"), "JPEG", quality=98, subsampling=0)
    assert b"Adobe" in data
    assert np.abs(only(data) - np.asarray(image).astype(int)).max() <= 12


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(("background", "rgb"), [("white", 255), ((10, 200, 30), (10, 200, 30))])
def test_transparency_shows_the_background(kind, background, rgb):
    image = picture(channels=4)
    exact = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    values = np.asarray(image).astype(float)
    alpha = values[..., 3:] / 255
    expected = values[..., :3] * alpha + np.array(rgb) * (1 - alpha)
    assert np.abs(only(saved(image, kind, **exact), background=background) - expected).max() <= 1


def test_transparent_greys_palettes_and_keys():
    grey, half = picture(channels=1), Image.new("L", (SIDE, SIDE), 255)
    half.paste(0, (0, 0, SIDE // 2, SIDE))
    clear = np.asarray(half) == 0
    pale = grey.copy()
    pale.putalpha(half)
    palette = picture().quantize(200)
    key = int(np.asarray(palette)[3, 3])
    with_palette = palette.convert("PA")
    for data, hidden, seen in [
        (saved(pale, "PNG"), clear, grey.convert("RGB")),
        (saved(palette, "PNG", transparency=key), np.asarray(palette) == key, palette),
        (saved(palette, "GIF", transparency=key), np.asarray(palette) == key, palette),
        (saved(grey, "PNG", transparency=int(np.asarray(grey)[0, 0])), None, grey),
    ]:
        found, expected = only(data, background="blue"), np.asarray(seen.convert("RGB")).copy()
        if hidden is None:
            hidden = np.asarray(grey) == np.asarray(grey)[0, 0]
        assert hidden.any()
        expected[hidden] = (0, 0, 255)
        np.testing.assert_array_equal(found, expected)
    assert flatten(with_palette, (0, 0, 0)).mode == "RGB"


def test_sixteen_bits():
    ramp = np.linspace(0, 65535, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)
    expected = np.round(ramp / 257)
    grey = Image.fromarray(ramp)
    assert grey.mode == "I;16"
    pgm = b"P5 32 32 65535\n" + ramp.astype(">u2").tobytes()
    for data in (saved(grey, "PNG"), saved(grey, "TIFF"), deep_png(ramp[..., None]), pgm):
        np.testing.assert_array_equal(only(data)[..., 0], expected)
    colour = np.stack([ramp, ramp[::-1], ramp.T], -1)
    assert np.abs(only(deep_png(colour)) - colour / 257).max() <= 1
    keyed = saved(grey, "PNG", transparency=int(ramp[0, 5]))
    assert only(keyed, background="red")[0, 5].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("bits", "values"), [(1, (0, 1)), (2, (1, 3)), (4, (5, 15)), (8, (3, 200))]
)
@pytest.mark.parametrize("hidden", [0, 1])
def test_keys_of_few_bits(bits, values, hidden):
    """What optimisers of PNG make of line art: grey of few bits, one level transparent."""
    packed = int("".join(f"{value:0{bits}b}" for value in values * 4), 2).to_bytes(bits, "big")
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, bits, 0, 0, 0, 0))
    key = chunk(b"tRNS", struct.pack(">H", values[hidden]))
    rows = chunk(b"IDAT", zlib.compress((b"\0" + packed) * 8)) + chunk(b"IEND", b"")
    data = b"\x89PNG\r\n\x1a\n" + header + key + rows
    found = read_frames(data, resolution=8, background="red").pixels[0, 0]
    grey = values[1 - hidden] * 255 // (2**bits - 1)
    assert found[hidden].tolist() == [255, 0, 0]
    assert found[1 - hidden].tolist() == [grey] * 3


def test_keys_of_sixteen_bits():
    values = np.full((8, 8, 3), (0x1234, 0x5678, 0x9ABC))
    values[:, 4:] = 0xFFFF
    data = deep_png(values)
    key = chunk(b"tRNS", struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC))
    keyed = data.replace(data[33:], key + data[33:])  # after the signature and the header
    found = read_frames(keyed, resolution=8, background="red").pixels[0, 0]
    assert found[[0, 7]].tolist() == [[255, 0, 0], [255, 255, 255]]


def test_twelve_bits_and_white_as_zero():
    # Each tag: number, type (3: 16 bits, 4: 32 bits), count, value.
    def tiff(bits, photometric, data):
        tags = [(256, 4, 32), (257, 4, 2), (258, 3, bits), (259, 3, 1), (262, 3, photometric)]
        tags += [(273, 4, 8), (277, 3, 1), (278, 4, 2), (279, 4, len(data))]
        rows = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
        where = struct.pack("<I", 8 + len(data))
        return b"II*\0" + where + data + struct.pack("<H", len(tags)) + rows + bytes(4)

    white = only(tiff(12, 1, b"\xff" * 96))
    assert white.min() == 255
    black = only(tiff(16, 0, b"\xff" * 128))
    assert black.max() == 0


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_without_a_range_are_refused(tmp_path, mode):
    (path := tmp_path / "deep.tif").write_bytes(saved(Image.new(mode, (8, 8)), "TIFF"))
    with pytest.raises(UserError, match=r"deep\.tif cannot be read: its pixels are .* 16 bits"):
        only(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_images(orientation):
    operations = pytest.importorskip("PIL.ImageOps")
    image = picture(SIDE, SIDE)
    exif = Image.Exif()
    exif[274] = orientation
    data = saved(image, "PNG", exif=exif)
    upright = operations.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(only(data), np.asarray(upright))
    wide = read_frames(saved(picture(40, 20), "PNG", exif=exif), resolution=8)
    assert (wide.width, wide.height) == ((40, 20) if orientation < 5 else (20, 40))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_damaged_exif_turns_nothing():
    data = saved(picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage")
    assert only(data).shape == (SIDE, SIDE, 3)


def animation(kind, durations, mode="RGBA", **options):
    frames = [
        Image.fromarray(frame[:SIDE, :SIDE]).convert(mode) for frame in levels(len(durations))
    ]
    rest = {"save_all": True, "append_images": frames[1:], "duration": durations}
    options |= {"lossless": True} if kind == "WEBP" else {}
    return saved(frames[0], kind, **rest, **options)


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "PNG", "AVIF"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_animated_images_keep_their_own_time(kind, mode):
    durations = [40, 80, 200, 10, 70, 50]
    data = animation(kind, durations, mode)
    exact = np.cumsum([0, *durations]) / 1000
    cases: list[tuple[dict[str, Any], Sequence[int]]] = [
        ({}, range(6)),
        ({"max_frames": 3}, (0, 2, 5)),
        ({"max_frames": 1}, (0,)),
        ({"fps": 10.0}, (0, 1, 2, 5)),
        ({"fps": 10.0, "max_frames": 2}, (0, 5)),
    ]
    for options, wanted in cases:
        frames = read_frames(data, resolution=8, **options)
        assert frames.is_video
        np.testing.assert_allclose(frames.times, exact[list(wanted)], atol=1e-12)
        assert numbers(frames.pixels) == list(wanted)
        assert (frames.duration, frames.count) == (pytest.approx(exact[-1]), 6)
        assert (frames.width, frames.height) == (SIDE, SIDE)


def test_frames_are_disposed_of():
    whole = Image.new("RGBA", (8, 8), "red")
    whole.paste((0, 0, 0, 0), (0, 7, 8, 8))
    dot = Image.new("RGBA", (8, 8))
    dot.paste((0, 0, 255, 255), (0, 0, 4, 8))
    for disposal, right in ((1, (255, 0, 0)), (2, (0, 255, 0))):
        data = saved(
            *(whole, "GIF"), save_all=True, append_images=[dot], duration=50, disposal=disposal
        )
        found = read_frames(data, resolution=8, background="#00ff00").pixels
        assert found[0, 0, 7].tolist() == [255, 0, 0]
        assert found[1, 0, 7].tolist() == list(right)
        assert found[1, 0, 0].tolist() == [0, 0, 255]


def test_untimed_frames_last_as_in_browsers():
    frames = read_frames(animation("GIF", [0, 0, 0], "RGB"), resolution=8)
    np.testing.assert_allclose(frames.times, [0, 0.1, 0.2])


def test_the_still_of_an_animated_png_is_none_of_its_frames():
    frames = [Image.fromarray(frame[:SIDE, :SIDE]) for frame in levels(3)]
    still = Image.new("RGB", (SIDE, SIDE), "white")
    data = saved(
        *(still, "PNG"), save_all=True, append_images=frames, default_image=True, duration=50
    )
    found = read_frames(data, resolution=8)
    assert numbers(found.pixels) == [0, 1, 2]
    assert found.count == 3


def test_animations_of_sixteen_bits():
    rows = [(b"\0" + struct.pack(">8H", *[257 * grey] * 8)) * 8 for grey in (10, 16)]
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 0, 0, 0, 0))
    data += chunk(b"acTL", struct.pack(">II", 2, 0))
    for number, row in enumerate(rows):
        control = struct.pack(">IIIIIHHBB", max(0, 2 * number - 1), 8, 8, 0, 0, 1, 8, 0, 0)
        packed = zlib.compress(row)
        data += chunk(b"fcTL", control)
        data += chunk(b"fdAT", struct.pack(">I", 2) + packed) if number else chunk(b"IDAT", packed)
    frames = read_frames(data + chunk(b"IEND", b""), resolution=8)
    assert numbers(frames.pixels) == [0, 2]
    assert frames.times.tolist() == [0.0, 0.125]


def test_an_animation_of_one_frame_is_an_image():
    assert not read_frames(saved(picture(), "GIF", save_all=True), resolution=8).is_video
