"""Files that are damaged, lie or are bombs: a line that says so, soon, and nothing left behind."""

import contextlib
import io
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
from bombs import chunk, encode, gif, icon, lying, many_scans, pictures, png, pngs_as_video, webp

from lwm.errors import UserError
from lwm.media.frames import read_frames
from lwm.media.write import write_video

from .pictures import Image

# Python's warnings about damage would stop a reader that users see go on.
pytestmark = pytest.mark.filterwarnings("ignore")

FILES = 500
SLOWEST = 5.0
"""Seconds that one file may take; most take a hundredth."""
MOST_MEMORY = 500
"""Megabytes more than before that all files together may take."""


def stills():
    image = Image.fromarray(pictures(1)[0])
    kinds = ["PNG", "JPEG", "GIF", "WEBP", "BMP", "AVIF", "JPEG2000", "PPM", "QOI", "ICO"]
    for kind in kinds:
        image.save(buffer := io.BytesIO(), kind)
        yield kind, buffer.getvalue()
    image.save(buffer := io.BytesIO(), "TIFF", compression="tiff_adobe_deflate")
    yield "TIFF", buffer.getvalue()
    image.convert("CMYK").save(buffer := io.BytesIO(), "JPEG")
    yield "CMYK", buffer.getvalue()


def animations():
    frames = [Image.fromarray(each).convert("RGBA") for each in pictures(6)]
    for kind in ("GIF", "WEBP", "PNG", "AVIF"):
        frames[0].save(
            *(buffer := io.BytesIO(), kind), save_all=True, append_images=frames[1:], duration=40
        )
        yield f"moving {kind}", buffer.getvalue()


def videos():
    for kind, codec, options in [
        ("mp4", "libx264", {"g": "8"}),
        ("mpegts", "libx264", {"g": "8"}),
        ("h264", "libx264", {}),
        ("webm", "libvpx", {}),
        ("webm", "libvpx-vp9", {}),
        ("matroska", "ffv1", {}),
        ("avi", "mpeg4", {"bf": "2"}),
        ("avi", "mjpeg", {"pixels": "yuvj420p"}),
        ("mov", "qtrle", {"pixels": "rgb24"}),
        ("mpeg", "mpeg2video", {}),
        ("flv", "flv", {}),
        ("asf", "wmv2", {}),
    ]:
        yield f"{kind} of {codec}", encode(kind, codec, **options)


def damaged(data, rng):
    """Returns a file cut, flipped, overwritten or with a part twice."""
    data, place = bytearray(data), rng.randrange(len(data))
    way = rng.randrange(7)
    if way == 0:
        return bytes(data[:place])
    if way == 1:
        for _ in range(rng.choice([1, 3, 30])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    if way == 2:  # the first bytes say the most
        for _ in range(rng.choice([1, 3, 10])):
            data[rng.randrange(min(len(data), 400))] = rng.randrange(256)
    if way in (3, 4):
        length = min(rng.randrange(1, 200), len(data) - place)
        data[place : place + length] = bytes([0 if way == 3 else 255]) * length
    if way == 5:
        data[place:place] = data[: rng.randrange(1, 1000)]
    if way == 6:
        return bytes(len(data)) if rng.random() < 0.1 else rng.randbytes(place)
    return bytes(data)


def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) // 1024


class Watch:
    """Checks that what is read takes neither long nor much, and leaves nothing open."""

    def __enter__(self):
        if not Path("/proc/self/clear_refs").exists():
            pytest.skip("this system does not tell what a process uses")
        Path("/proc/self/clear_refs").write_text("5")  # forgets the highest use
        self._memory = status("VmRSS")
        self._open = sorted(os.listdir("/proc/self/fd"))
        return self

    def read(self, path, **options):
        """Reads a file; returns the frames, or what is wrong with it."""
        start = time.monotonic()
        try:
            found = read_frames(path, resolution=32, **options)
        except UserError as error:
            found = str(error)
            assert found.startswith(str(path)), found
            assert "\n" not in found
            assert len(found) < len(str(path)) + 200
        else:
            assert len(found.pixels) == len(found.times) > 0
            assert found.pixels.shape[1:] == (32, 32, 3)
            assert (np.diff(found.times) > 0).all()
            assert np.isfinite([*found.times, found.duration]).all()
        assert time.monotonic() - start < SLOWEST, path
        return found

    def __exit__(self, kind, *_):
        if kind is None:
            assert sorted(os.listdir("/proc/self/fd")) == self._open
            assert status("VmHWM") - self._memory < MOST_MEMORY


def test_damaged_files(tmp_path):
    rng = random.Random(0)
    whole = dict([*stills(), *animations(), *videos()])
    good = bad = 0
    with Watch() as watch:
        for data in whole.values():  # what is damaged below is good
            (tmp_path / "good").write_bytes(data)
            assert not isinstance(watch.read(tmp_path / "good"), str)
        for number in range(FILES):
            name = list(whole)[number % len(whole)]
            ending = rng.choice(["png", "jpg", "mp4", "gif", "webm", "txt", "tif", "ts"])
            path = tmp_path / f"{number}.{ending}"
            path.write_bytes(damaged(whole[name], rng))
            options = rng.choice([{}, {"max_frames": 4}, {"fps": 5.0}])
            found = watch.read(path, **options)
            good, bad = good + (not isinstance(found, str)), bad + isinstance(found, str)
            path.unlink()
    assert good > FILES // 5
    assert bad > FILES // 5


# Bombs


def test_bombs(tmp_path):
    mp4 = encode("mp4", "libx264")
    write_video(half := tmp_path / "half.mp4", np.stack(pictures(20)), 30.0)
    many = "asks for more decoding than a file of its size should"
    large = "claims"
    cases = {
        "a large PNG": (png(60_000, 60_000), large),
        "a PNG without pixels": (png(6000, 6000), "cannot be read"),
        "a large screen of a GIF": (gif(65_535, 65_535, 1), large),
        "a GIF of large frames": (gif(4000, 4000, 2000), many),
        "a JPEG of many scans": (many_scans(2000, 20_000), many),
        "an icon that is no icon": (icon(png(13_000, 13_000, rows=10)), large),
        "a large WebP": (webp(16_384, 16_384), large),
        "a large PPM": (b"P6\n60000 60000\n255\n" + bytes(100), large),
        "endless frames": (png(16, 16, rows=16, extra=chunk(b"acTL", b"\x7f" * 8)), many),
        "a large Y4M": (b"YUV4MPEG2 W60000 H60000 F25:1\nFRAME\n" + bytes(99), "not a readable"),
        "frames larger than said": (pngs_as_video(png(20_000, 20_000)), "cannot be read"),
        "frames of nothing": (pngs_as_video(png(5000, 5000)), "cannot be read"),
        "more sizes than there are": (lying(mp4, b"stsz", 2**31 - 1), "not a readable"),
        "more times than there are": (lying(mp4, b"stts", 2**31 - 1), None),
        "fewer times than there are": (lying(mp4, b"stts", 0), None),
        "half an MP4": (half.read_bytes()[:-300], "is cut short"),
        "a playlist": (b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n", "not a readable"),
        "an EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a readable"),
    }
    with Watch() as watch:
        for name, (data, words) in cases.items():
            (path := tmp_path / name).write_bytes(data)
            found = watch.read(path)
            if words is None:
                assert isinstance(found, str) or len(found.pixels) <= 20
            else:
                assert isinstance(found, str), name
                assert words in found


def test_libraries_stay_silent(tmp_path, capfd):
    (path := tmp_path / "cut.avi").write_bytes(encode("avi", "mpeg4")[:-2000])
    with contextlib.suppress(UserError):
        read_frames(path, resolution=8)
    assert capfd.readouterr() == ("", "")
