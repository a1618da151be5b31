"""Images and videos of requests that ask for much: refused for their work, not by a clock."""

import types

import pytest
from bombs import Image, chunk, encode, gif, icon, lying, many_scans, png, pngs_as_video, webp

from lwm.serve.errors import ApiError

from .media_requests import address, picture, read, refused, saved

pytestmark = pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")


def test_frames_that_exceed_the_context_are_refused_before_they_are_decoded(
    drawing, reader, video, decoded
):
    found = reader()
    with pytest.raises(ApiError) as caught:
        read(found, address(video), kind="video", max_frames=40)
    fields = caught.value.to_json()["error"]
    assert fields["code"] == "context_length_exceeded"
    assert fields["type"] == "exceed_context_size_error"
    assert fields["n_prompt_tokens"] > fields["n_ctx"] == drawing.context
    assert not decoded
    # Where nothing is said, they leave room.
    usual = read(found, address(video), kind="video")
    assert 10 < len(usual.codes) < 20


def apng(side, frames, *, claimed=None):
    """Returns a small APNG of large frames without a detail."""
    first, *others = [Image.new("L", (side, side), number % 2) for number in range(frames)]
    data = saved(first, "PNG", save_all=True, append_images=others, duration=100)
    if claimed is None:
        return data
    start = data.index(b"acTL") - 4
    return data[:start] + chunk(b"acTL", claimed.to_bytes(4, "big") * 2) + data[start + 20 :]


def test_bombs_are_refused_before_they_are_decoded(reader, decoded, video):
    still = saved(Image.new("L", (6000, 6000)), "PNG")
    assert len(still) < 50_000
    bombs = {
        "a PNG of 36 megapixels": (still, "claims"),
        "a PNG of 3600 megapixels": (png(60_000, 60_000), "claims"),
        "a WebP of one colour": (saved(Image.new("L", (6000, 6000)), "WEBP"), "claims"),
        "a large WebP": (webp(16_384, 16_384), "claims"),
        "a large GIF": (gif(65_535, 65_535, 1), "claims"),
        "a GIF of many frames": (gif(3000, 3000, 3000), "more decoding"),
        "an APNG of large frames": (apng(4000, 2), "claims"),
        "an APNG of endless frames": (apng(64, 2, claimed=2**31 - 1), "more decoding"),
        "a JPEG of many scans": (many_scans(2000, 20_000), "more decoding"),
        "an icon that is none": (icon(png(13_000, 13_000)), "claims"),
        "an MP4 of endless sizes": (lying(video, b"stsz", 2**31 - 1), "not a readable"),
        "a PNG without pixels": (png(5000, 5000), "cannot be read"),
    }
    found = reader()
    for kind in ("image", "video"):
        for name, (data, words) in bombs.items():
            assert len(data) < 1 << 21, name
            status, message = refused(read, found, address(data), kind=kind)
            assert (status, words in message) == (400, True), (name, message)
            assert not decoded, name
    assert found.frames_encoded == 0


def test_frames_that_are_larger_than_their_video_says_are_refused(reader, decoded):
    inside = saved(Image.new("L", (6000, 6000)), "PNG")
    found = reader()
    status, _ = refused(read, found, address(pngs_as_video(inside)), kind="video")
    assert status == 400
    assert not decoded


def test_padding_does_not_buy_decoding(reader, decoded):
    """A file may ask for work in proportion to its bytes, but no more than its time allows."""
    padded = gif(2000, 2000, 300) + bytes(1 << 20)
    status, message = refused(read, reader(media_seconds=2.0), address(padded), kind="video")
    assert (status, "more decoding" in message, decoded) == (400, True, [])
    assert (
        len(read(reader(), address(gif(2000, 2000, 3) + bytes(1 << 20)), kind="video").codes) == 3
    )


def test_decoding_ends_with_its_time(reader, decoded, monkeypatch, video):
    frames = [Image.new("RGB", (40, 40), (level, 0, 0)) for level in range(60)]
    moving = saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)
    clock = iter(range(1_000_000))
    slow = types.SimpleNamespace(monotonic=lambda: float(next(clock)))
    monkeypatch.setattr("lwm.media.limits.time", slow)
    for data in (moving, video):
        status, message = refused(
            read, reader(media_seconds=20.0), address(data), kind="video", max_frames=30
        )
        assert (status, "was not read within 20 s" in message) == (400, True)
        assert len(decoded) < 20
        decoded.clear()
    # Of an image no more than the first frame is decoded.
    assert len(read(reader(media_seconds=20.0), address(moving)).codes) == 1


def test_damaged_files_are_refused(reader):
    whole = encode("mp4", "libx264")
    for data in (
        whole[: len(whole) // 2],
        whole[:40],
        bytes(1000),
        picture()[:50],
        b"\xff\xd8\xff",
    ):
        for kind in ("image", "video"):
            assert refused(read, reader(), address(data), kind=kind)[0] == 400
