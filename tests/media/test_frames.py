"""Frames out of images and videos of every kind, and the files that are written for people."""

import gc
import io
import itertools
import os
import sys
import time
import types
import zlib
from fractions import Fraction

import numpy as np
import pytest
from bombs import chunk

from lwm.errors import UserError
from lwm.media.frames import open_frames, read_frames
from lwm.media.limits import Limits, Resizer

from .pictures import SIDE, Image, levels, numbers, picture, saved

av = pytest.importorskip("av", reason="PyAV is not installed")


def video(arrays, kind="mp4", codec="libx264", *, stamps=None, base=Fraction(1, 30), **options):
    """Encodes frames, each at its stamp in units of a time base."""
    buffer = io.BytesIO()
    pixels = options.pop("pix_fmt", "yuv420p")
    turned, aspect = options.pop("turned", None), options.pop("aspect", None)
    with av.open(buffer, "w", format=kind) as container:
        container.metadata["title"] = "Zoe in Koln"
        stream = container.add_stream(codec, rate=30, options=options)
        stream.height, stream.width = arrays[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.time_base = stream.time_base = base
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if turned is not None:
            stream.set_display_matrix(turned)
        for number, array in enumerate(arrays):
            frame = av.VideoFrame.from_ndarray(
                array, format="rgba" if array.shape[2] > 3 else "rgb24"
            )
            frame.pts, frame.time_base = (stamps[number] if stamps else number), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


# Fitting


def as_lwm_did(image, size):
    """Returns what the original's `_process_frame` does before it scales to -1...1."""
    width, height = image.size
    if width < height:
        wide, high = size, int(size * height / width)
    else:
        wide, high = int(size * width / height), size
    image = image.resize((wide, high))
    left, top = (wide - size) / 2, (high - size) / 2
    return np.asarray(image.crop((left, top, (wide + size) / 2, (high + size) / 2)))


@pytest.mark.parametrize(
    ("width", "height"), [(256, 256), (640, 360), (333, 517), (100, 71), (41, 300), (700, 64)]
)
def test_frames_are_cropped_as_by_lwm(width, height):
    image = picture(width, height)
    found = read_frames(saved(image, "BMP"), resolution=64).pixels[0].astype(int)
    expected = as_lwm_did(image, 64)
    if max(width, height) <= 4 * min(width, height):
        np.testing.assert_array_equal(found, expected)
    else:
        assert np.abs(found - expected).mean() < 0.1


@pytest.mark.parametrize(("width", "height"), [(60, 20), (20, 60), (7, 3), (30, 30)])
def test_letterbox_keeps_everything(width, height):
    data = saved(Image.new("RGB", (width, height), "black"), "PNG")
    found = read_frames(data, resolution=24, fit="letterbox", background="red").pixels[0]
    wide, high = round(24 * min(1, width / height)), round(24 * min(1, height / width))
    left, top = (24 - wide) // 2, (24 - high) // 2
    expected = np.full((24, 24, 3), (255, 0, 0), np.uint8)
    expected[top : top + high, left : left + wide] = 0
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [(1, 200_000), (200_000, 1), (1, 1)])
@pytest.mark.parametrize("fit", ["crop", "letterbox"])
def test_strips_and_dots(size, fit):
    data = saved(Image.new("RGB", size, "black"), "PNG")
    assert read_frames(data, resolution=16, fit=fit).pixels.shape == (1, 16, 16, 3)


@pytest.mark.parametrize("aspect", [1e-9, 1e9])
@pytest.mark.parametrize("fit", ["crop", "letterbox"])
def test_pixels_may_claim_any_shape(fit, aspect):
    squared = Resizer(resolution=16, fit=fit, background=(0, 0, 0))
    assert squared(Image.new("RGB", (64, 48), "white"), aspect).shape == (16, 16, 3)


def test_what_content_is_no_name_decides(tmp_path):
    (image := tmp_path / "picture.mp4").write_bytes(saved(picture(), "PNG"))
    (clip := tmp_path / "clip.png").write_bytes(video(levels(3)))
    assert not read_frames(image, resolution=8).is_video
    assert read_frames(str(clip), resolution=8).is_video


# Videos


STREAMS = {
    "mp4": ("mp4", "libx264", {"g": "10", "crf": "1"}),
    "mp4-hevc": ("mp4", "libx265", {"x265-params": "log-level=none:keyint=12:crf=1"}),
    "mkv": ("matroska", "ffv1", {}),
    "webm": ("webm", "libvpx", {"crf": "4", "b": "4M", "g": "9", "auto-alt-ref": "0"}),
    "avi": ("avi", "mpeg4", {"bf": "2", "qmax": "2", "g": "12"}),
    "ts": ("mpegts", "libx264", {"g": "12", "crf": "1"}),
    "mpeg": ("mpeg", "mpeg2video", {"g": "12", "qmax": "2"}),
    "raw": ("h264", "libx264", {"crf": "1"}),
    "flv": ("flv", "flv", {"qmax": "2"}),
}


@pytest.mark.parametrize("stream", STREAMS)
def test_the_frames_of_lwm_from_every_container(stream):
    kind, codec, options = STREAMS[stream]
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    data = video(levels(80), kind, codec, **options)
    tolerance = 1e-3 if kind in ("matroska", "webm", "flv") else 1e-9
    for most in (1, 2, 7, 79, None):
        frames = read_frames(data, resolution=8, max_frames=most)
        wanted = np.linspace(0, 79, most, dtype=int) if most else np.arange(80)
        assert numbers(frames.pixels) == wanted.tolist()
        np.testing.assert_allclose(frames.times, wanted / 30, atol=tolerance)
        assert frames.is_video
        assert (frames.count, frames.width, frames.height) == (80, 64, 48)
        assert frames.duration == pytest.approx(80 / 30, abs=2e-3)


def test_what_is_never_shown_is_no_frame():
    # VP8 has packets without a picture, as references for later ones: bit 4 marks them.
    options = {"crf": "4", "b": "4M", "g": "999", "auto-alt-ref": "0"}
    plain, hidden = io.BytesIO(video(levels(40), "webm", "libvpx", **options)), io.BytesIO()
    with av.open(plain) as source, av.open(hidden, "w", format="webm") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            data = bytearray(bytes(packet))
            if number in (9, 30):
                data[0] &= ~16
            made = av.Packet(bytes(data))
            made.pts, made.dts, made.time_base = packet.pts, packet.dts, packet.time_base
            made.stream, made.is_keyframe = stream, packet.is_keyframe
            if data:
                target.mux(made)
    frames = read_frames(hidden.getvalue(), resolution=8)
    assert numbers(frames.pixels) == [i for i in range(40) if i not in (9, 30)]
    np.testing.assert_allclose(frames.times * 30, numbers(frames.pixels), atol=0.04)
    frames = read_frames(hidden.getvalue(), resolution=8, max_frames=14)
    assert numbers(frames.pixels)[:4] == [0, 3, 6, 8]


def test_times_are_the_stamps():
    base = Fraction(1, 90000)
    stamps = [5000, 5001, 8000, 50_000, 50_003, 900_017, 900_018, 1_200_000]
    data = video(levels(8), stamps=stamps, base=base, g="3", crf="1", video_track_timescale="90000")
    exact = [(stamp - stamps[0]) / 90000 for stamp in stamps]
    for most, wanted in ((None, range(8)), (3, (0, 3, 7))):
        frames = read_frames(data, resolution=8, max_frames=most)
        assert frames.times.tolist() == [exact[i] for i in wanted]
        assert numbers(frames.pixels) == list(wanted)


def test_a_rate_takes_what_is_shown_then():
    data = video(levels(60), crf="1", g="7")
    for fps, wanted in (
        (10.0, range(0, 60, 3)),
        (4.0, [0, 7, 15, 22, 30, 37, 45, 52]),
        (99.0, range(60)),
    ):
        frames = read_frames(data, resolution=8, fps=fps)
        assert numbers(frames.pixels) == list(wanted)
    thinned = read_frames(data, resolution=8, fps=10.0, max_frames=3)
    assert numbers(thinned.pixels) == [0, 27, 57]
    # A long still is shown more than once, but is one frame.
    slow = video(levels(3), stamps=[0, 90, 93], crf="1")
    assert numbers(read_frames(slow, resolution=8, fps=10.0).pixels) == [0, 1, 2]


def test_few_frames_of_a_long_video_cost_little():
    data = video(levels(75) * 8, crf="20", g="20", preset="ultrafast")
    # Packets are charged too; all frames would be 600 times 64 x 48.
    few = Limits(work=600 * 4096 * 2 + 150 * (64 * 48 + 4096) + len(data), work_per_byte=0)
    assert len(read_frames(data, resolution=8, max_frames=5, limits=few).times) == 5
    with pytest.raises(UserError, match="asks for more decoding"):
        read_frames(data, resolution=8, limits=few)


@pytest.mark.parametrize("kind", ["mp4", "h264", "gif"])
def test_a_stream_decodes_frames_as_they_are_taken(kind):
    if kind == "gif":
        first, *others = map(Image.fromarray, levels(40))
        first.save(buffer := io.BytesIO(), "GIF", save_all=True, append_images=others, duration=40)
        data = buffer.getvalue()
    else:
        data = video(levels(75) * 4, kind, crf="20", g="20", preset="ultrafast")
    whole = read_frames(data, resolution=8)
    pixels, times = [], []
    gc.collect()
    gc.freeze()  # so that only later objects are looked at below
    gc.disable()  # frames are freed without it
    try:
        with open_frames(data, resolution=8, limits=Limits(returned_bytes=0)) as stream:
            assert (stream.num_selected, stream.count) == (len(whole.times), whole.count)
            for number, frame in enumerate(stream):
                pixels.append(frame.pixels)
                times.append(frame.time)
                if number % 100 == 39:
                    live = sum(type(each) is av.VideoFrame for each in gc.get_objects())
                    assert live <= 4 + (os.cpu_count() or 1)  # those of threads wait their turn
            assert stream.duration == whole.duration
    finally:
        gc.enable()
    np.testing.assert_array_equal(np.stack(pixels), whole.pixels)
    assert times == whole.times.tolist()


def test_time_between_frames_is_not_counted_as_reading():
    data, quick = video(levels(3), crf="1"), Limits(seconds=2.0)
    with open_frames(data, resolution=8, limits=quick) as stream:
        frames = iter(stream)
        next(frames)
        time.sleep(2.5)
        assert len(list(frames)) == 2


def test_the_time_is_checked_between_the_frames_of_an_animation(monkeypatch):
    first, *others = map(Image.fromarray, levels(80))
    data = saved(first, "GIF", save_all=True, append_images=others)
    clock = itertools.count()
    slow = types.SimpleNamespace(monotonic=lambda: float(next(clock)))
    monkeypatch.setattr("lwm.media.limits.time", slow)
    taken = []
    with open_frames(data, resolution=8, limits=Limits(seconds=20.0)) as stream:
        with pytest.raises(UserError, match="was not read within 20 s"):
            taken.extend(stream)
        assert stream.kind == "animation"
    assert 5 < len(taken) < 20


TURNS = {
    # What the first corner's neighbours become: a, b, c, d of the display matrix.
    (1, 0, 0, 1): lambda a: a,
    (0, 1, -1, 0): lambda a: np.rot90(a, -1),
    (-1, 0, 0, -1): lambda a: a[::-1, ::-1],
    (0, -1, 1, 0): lambda a: np.rot90(a),
    (-1, 0, 0, 1): lambda a: a[:, ::-1],
    (1, 0, 0, -1): lambda a: a[::-1],
}


@pytest.mark.parametrize("turn", TURNS)
def test_phones_turn_videos(turn):
    array = np.asarray(picture(64, 64))
    matrix = [0] * 9
    matrix[0], matrix[1], matrix[3], matrix[4] = (65536 * each for each in turn)
    matrix[8] = 1 << 30
    data = video([array] * 2, "mov", "png", pix_fmt="rgb24", turned=matrix)
    found = read_frames(data, resolution=64).pixels[0]
    np.testing.assert_array_equal(found, TURNS[turn](array))


def test_pixels_that_are_not_square():
    array = np.zeros((40, 40, 3), np.uint8)
    array[:, :10] = 255
    options = {"pix_fmt": "yuv444p", "crf": "1", "aspect": Fraction(2, 1)}
    data = video([array] * 2, **options)
    frames = read_frames(data, resolution=20, fit="letterbox", background="red")
    assert (frames.width, frames.height) == (80, 40)
    rows = frames.pixels[0]
    assert (rows[:5, :, 1] == 0).all()  # 80 x 40 in a square: a quarter of red above and below
    assert (rows[5:15, :4] > 250).all()
    assert (rows[5:15, 6:] < 5).all()
    cropped = read_frames(data, resolution=20).pixels[0]
    assert (cropped < 5).all()  # the middle 40 of 80 columns begin where the white ends
    matrix = [0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30]
    turned = video([array] * 2, **options, turned=matrix)
    frames = read_frames(turned, resolution=20)
    assert (frames.width, frames.height) == (40, 80)


def test_videos_may_be_transparent():
    array = np.zeros((16, 16, 4), np.uint8)
    array[:, :8] = (0, 0, 255, 255)
    data = video([array] * 2, "mov", "qtrle", pix_fmt="argb")
    found = read_frames(data, resolution=16, background="red").pixels[0]
    assert found[0, 0].tolist() == [0, 0, 255]
    assert found[0, 15].tolist() == [255, 0, 0]


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_webm_may_be_transparent(codec):
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    arrays = [
        np.concatenate([np.full((48, 64, 3), g, np.uint8)] * 2, 2)[..., :4]
        for g in range(40, 160, 4)
    ]
    for array in arrays:
        array[..., 3] = 255
        array[:, 32:, 3] = 0
    options = {"pix_fmt": "yuva420p", "g": "5", "auto-alt-ref": "0", "b": "2M"}
    data = video(arrays, "webm", codec, **options)
    for most in (None, 3):  # 3 seek to key frames
        found = read_frames(data, resolution=48, background="red", max_frames=most)
        wanted = np.linspace(0, 29, most or 30, dtype=int)
        np.testing.assert_allclose(found.times, wanted / 30, atol=1e-3)
        left, right = found.pixels[:, 20, 4].astype(int), found.pixels[:, 20, 44]
        assert np.abs(left - (40 + 4 * wanted)[:, None]).max() <= 6
        assert right.tolist() == [[255, 0, 0]] * len(wanted)


def test_a_transparent_video_that_cannot_be_decoded_is_refused(monkeypatch):
    array = np.zeros((16, 16, 4), np.uint8)
    options = {"pix_fmt": "yuva420p", "auto-alt-ref": "0"}
    data = video([array] * 2, "webm", "libvpx", **options)
    monkeypatch.setattr(av, "codecs_available", {"vp8"})
    with pytest.raises(UserError, match=r"is a transparent video, which .* for lack of libvpx"):
        read_frames(data, resolution=16)


def test_titles_may_be_in_any_encoding():
    data = video(levels(2), "avi", "mpeg4")
    assert b"Zoe in Koln" in data
    read_frames(data.replace(b"Zoe in Koln", b"Zo\xeb in K\xf6ln"), resolution=8)


def test_colours_are_those_that_were_written():
    array = np.asarray(picture(64, 64))
    data = video([array] * 2, pix_fmt="yuv444p", crf="1")
    assert np.abs(read_frames(data, resolution=64).pixels[0].astype(int) - array).max() <= 6


@pytest.mark.parametrize("kind", ["yuv420p10le", "yuv422p10le", "yuv444p10le"])
def test_deep_colours_are_as_light_as_others(kind):
    """White is 940 of 1023, and the rest lies evenly between."""
    greys = [0, 40, 100, 128, 255]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.height, stream.width, stream.pix_fmt = 48, 64, kind
        for grey in greys:
            frame = av.VideoFrame(64, 48, kind)
            for number, plane in enumerate(frame.planes):
                level = 512 if number else 64 + round(grey / 255 * 876)
                plane.update(np.full(plane.buffer_size // 2, level, np.uint16).tobytes())
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    found = read_frames(buffer.getvalue(), resolution=8).pixels
    assert [np.unique(frame).tolist() for frame in found] == [[grey] for grey in greys]


# What cannot be


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resolution": 0}, "resolution is 0"),
        ({"max_frames": 0}, "max_frames is 0"),
        ({"fps": 0.0}, "fps is 0.0"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"background": "greenish"}, "'greenish' is not a colour"),
        ({"background": (1, 2, 300)}, "is not a colour"),
    ],
)
def test_settings_that_cannot_be(options, words):
    with pytest.raises(UserError, match=words):
        read_frames(saved(picture(), "PNG"), **{"resolution": 8} | options)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.png").write_text("no picture\n" * 100)
    (tmp_path / "photo.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(400))
    os.mkfifo(tmp_path / "pipe.mp4")
    for name, words in [
        ("none.png", "No such file"),
        (".", "is not a file"),
        ("pipe.mp4", "is not a file"),
        ("empty.png", "is empty"),
        ("notes.png", "is not a readable image or video"),
        ("photo.jpg", "is HEIC"),
    ]:
        with pytest.raises(UserError, match=words) as raised:
            read_frames(tmp_path / name, resolution=8)
        assert str(raised.value).startswith(str(tmp_path / name))
    with pytest.raises(UserError, match="the third of them is not a readable image"):
        read_frames(b"text", resolution=8, name="the third of them")


def test_sound_is_no_video(tmp_path):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(UserError, match="holds no video"):
        read_frames(buffer.getvalue(), resolution=8)


def test_playlists_open_no_other_file(tmp_path):
    (tmp_path / "other.mp4").write_bytes(video(levels(3)))
    for text in ("#EXTM3U\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile {}\n"):
        (path := tmp_path / "list.m3u8").write_text(text.format(tmp_path / "other.mp4"))
        with pytest.raises(UserError, match="not a readable image or video"):
            read_frames(path, resolution=8)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(frame_pixels=48 * 64 - 1), "claims 64 × 48 pixels, more than frame_pixels"),
        (Limits(returned_bytes=2 * 8 * 8 * 3), "would give 9 frames, more than the 2"),
        (Limits(work=9 * 48 * 64, work_per_byte=0), "asks for more decoding"),
        (Limits(seconds=0.0), "was not read within 0 s"),
    ],
)
@pytest.mark.parametrize("kind", ["mp4", "WEBP"])
def test_limits(limits, words, kind):
    frames = [Image.fromarray(frame) for frame in levels(9)]
    options = {"save_all": True, "append_images": frames[1:], "duration": 40, "lossless": True}
    data = video(levels(9)) if kind == "mp4" else saved(frames[0], kind, **options)
    with pytest.raises(UserError, match=words):
        read_frames(data, resolution=8, limits=limits)


def test_limits_of_images():
    data = saved(picture(), "PNG")
    with pytest.raises(UserError, match="more than pixels"):
        read_frames(data, resolution=8, limits=Limits(pixels=SIDE * SIDE - 1))
    with pytest.raises(UserError, match="not a readable image"):
        read_frames(data, resolution=8, limits=Limits(image_bytes=len(data) - 1))


PHOTOS = {
    "plain": {},
    "progressive": {"progressive": True},
    "CMYK": {"mode": "CMYK"},
    "grey": {"mode": "L"},
}


@pytest.mark.parametrize("kind", PHOTOS)
def test_a_photo_of_more_pixels_than_allowed_is_decoded_at_a_reduced_size(kind):
    options = dict(PHOTOS[kind])
    exif = Image.Exif()
    exif[274] = 6
    data = saved(
        picture(600, 400).convert(options.pop("mode", "RGB")), "JPEG", exif=exif, **options
    )
    whole = read_frames(data, resolution=32)
    few = Limits(pixels=150_000)
    reduced = read_frames(data, resolution=32, limits=few)
    assert (reduced.width, reduced.height) == (whole.width, whole.height) == (400, 600)
    assert 0 < np.abs(reduced.pixels.astype(int) - whole.pixels).max() <= 4
    # By a half is a quarter of the pixels; more is an eighth, and no less.
    least = Limits(pixels=75 * 50)
    assert read_frames(data, resolution=32, limits=few).count == 1
    if kind == "progressive":
        with pytest.raises(UserError, match="make it smaller, or save it as a JPEG that is not"):
            read_frames(data, resolution=32, limits=least)
    else:
        read_frames(data, resolution=32, limits=least)
        with pytest.raises(UserError, match="claims 75 × 50 pixels"):
            read_frames(data, resolution=32, limits=Limits(pixels=75 * 50 - 1))


def test_a_photo_of_108_megapixels_is_read():
    image = Image.new("L", (12_000, 9_000), 200)
    frames = read_frames(saved(image, "JPEG"), resolution=8)
    assert (frames.width, frames.height) == (12_000, 9_000)
    assert (frames.pixels == 200).all()
    blank = Image.new("L", (12_000, 9_000)).convert("1")
    with pytest.raises(UserError, match=r"more .* allows; make it smaller, or save it as a JPEG"):
        read_frames(saved(blank, "PNG"), resolution=8)


def test_of_a_phones_two_pictures_the_first_is_read():
    first, second = picture(), Image.new("RGB", (SIDE, SIDE), "red")
    data = saved(first, "MPO", save_all=True, append_images=[second], quality=95)
    found = read_frames(data + b"more", resolution=SIDE)
    assert not found.is_video
    assert np.abs(found.pixels[0].astype(int) - np.asarray(first)).mean() < 4


LONG = bytes(2 << 20)
TEXTS = {
    "profile": chunk(b"iCCP", b"a\0\0" + zlib.compress(LONG)),
    "zTXt": chunk(b"zTXt", b"a\0\0" + zlib.compress(LONG)),
    "iTXt": chunk(b"iTXt", b"a\0\1\0en\0a\0" + zlib.compress(LONG)),
    "plain": chunk(b"tEXt", b"a\0" + LONG),
    "incompressible": chunk(b"zTXt", b"a\0\0" + np.random.default_rng(0).bytes(2 << 20)),
}


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("text", TEXTS)
def test_png_of_long_texts_is_read(text, place):
    data = saved(picture(), "PNG")
    at = 33 if place == "before" else data.index(b"IEND") - 4
    found = read_frames(data[:at] + TEXTS[text] + data[at:], resolution=SIDE)
    np.testing.assert_array_equal(found.pixels[0], np.asarray(picture()))


def test_png_of_many_texts_is_read(monkeypatch):
    monkeypatch.setattr("PIL.PngImagePlugin.MAX_TEXT_MEMORY", 5 << 20)
    data = saved(picture(), "PNG")
    found = read_frames(data[:33] + TEXTS["plain"] * 3 + data[33:], resolution=SIDE)
    np.testing.assert_array_equal(found.pixels[0], np.asarray(picture()))


def test_png_of_long_texts_is_still_turned_by_a_short_one():
    exif = Image.Exif()
    exif[274] = 6
    profile = b"\nexif\n%8d\n%s\n" % (len(exif.tobytes()), exif.tobytes().hex().encode())
    turns = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile))
    data = saved(picture(40, 20), "PNG")
    for parts in ([turns, TEXTS["zTXt"]], [TEXTS["profile"], turns]):
        found = read_frames(data[:33] + b"".join(parts) + data[33:], resolution=8)
        assert (found.width, found.height) == (20, 40)


@pytest.mark.parametrize("missing", ["av", "PIL"])
def test_the_extra_is_named(monkeypatch, missing):
    for name in [name for name in sys.modules if name.split(".")[0] == missing]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"needs {missing}: pip install 'lwm\[media\]'"):
        read_frames(video_bytes() if missing == "av" else b"text", resolution=8)


def video_bytes():
    return b"\x1a\x45\xdf\xa3" + bytes(100)
