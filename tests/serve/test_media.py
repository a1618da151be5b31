"""Images, videos and texts of requests: where they may come from, and how often they are read."""

import base64
import binascii
import os
import threading
import time
import types
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from bombs import Image

from lwm.generate.language_model import LanguageModel
from lwm.serve.config import MediaConfig
from lwm.serve.fetch import FetchError
from lwm.serve.media import MediaReader

from .media_requests import PARAM, address, picture, read, refused, saved


def test_an_image_is_the_same_from_every_place_and_is_encoded_once(drawing, reader, tmp_path):
    data = picture()
    (tmp_path / "a folder").mkdir()
    (file := tmp_path / "a folder" / "ä%20.png").write_bytes(data)
    fetched = []

    def fetching(url, **options):
        fetched.append((url, options))
        return data

    config = {"allow_media_host": ("media.test",), "media_seconds": 9.0, "media_bytes": 5000}
    found = reader(fetching, media_path=tmp_path, **config)
    escaped = urllib.parse.quote_from_bytes(data)
    base = base64.b64encode(data).decode()
    urls = [
        address(data),
        f"DATA:;base64,{urllib.parse.quote(base)}",
        f"data:Application/Octet-Stream;BASE64,{base}",
        f'data:image/png;name="a;b";base64,{base}',
        f"data:image/png,{escaped}",
        file.as_uri(),
        f"FILE://localhost{urllib.parse.quote(str(file))}",
        "file://a%20folder/%C3%A4%2520.png",
        "file://a%20folder%2F.%2F%C3%A4%2520.png",
        "http://media.test/a.png",
        "HTTPS://media.test/a.png",
    ]
    seen = drawing.see(data)
    for url in urls:
        vision = read(found, url)
        np.testing.assert_array_equal(vision.codes, seen.codes)
        assert (vision.is_video, vision.pixels) == (False, None)
    found.read_bytes(data, kind="image", param=PARAM)
    assert (found.queries, found.hits, found.frames_encoded) == (12, 11, 1)
    assert [url for url, _ in fetched] == urls[-2:]
    limits = {"max_bytes": 5000, "seconds": 9.0, "allow": ("media.test",)}
    assert all(options == limits for _, options in fetched)


def test_frames_of_a_video_are_chosen_and_cached_by_what_is_asked(drawing, reader, video):
    found = reader(media_frames=5, max_media_frames=12)
    url = address(video, "video/mp4")
    seen = drawing.see(video, max_frames=5)
    usual = read(found, url, kind="video")
    np.testing.assert_array_equal(usual.codes, seen.codes)
    np.testing.assert_array_equal(usual.times, seen.times)
    assert usual.is_video
    assert len(read(found, url, kind="video", max_frames=3).codes) == 3
    assert len(read(found, url, kind="video", fps=2.0).codes) == 8
    assert len(read(found, url, kind="video", fps=5.0).codes) == 12
    assert len(read(found, url, kind="video", fps=2.0, max_frames=3).codes) == 3
    assert (found.hits, found.frames_encoded) == (0, 5 + 3 + 8 + 12 + 3)
    read(found, url, kind="video", fps=2.0)
    assert found.hits == 1
    for count in (0, 13, 1 << 40):
        status, message = refused(read, found, url, kind="video", max_frames=count)
        assert (status, message) == (400, f"frames are {count}; ask for 1 to 12")
    for fps in (0.0, -1.0, float("nan"), float("inf")):
        assert refused(read, found, url, kind="video", fps=fps)[0] == 400


def test_the_content_decides_between_images_and_videos(drawing, reader, video):
    found = reader()
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue", "lime")]
    moving = saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)
    first = read(found, address(moving, "image/gif"))
    np.testing.assert_array_equal(first.codes, drawing.see(saved(frames[0], "GIF")).codes)
    assert not first.is_video
    assert read(found, address(moving, "image/gif"), kind="video").is_video
    assert not read(found, address(picture()), kind="video").is_video
    status, message = refused(read, found, address(video, "image/png"))
    assert (status, message) == (400, "the image is a video; send it as video_url")


def test_old_codes_make_room_for_new_ones(reader):
    found = reader(media_cache_bytes=4000)
    for level in range(6):
        read(found, address(picture((level, 0, 0))))
    read(found, address(picture((5, 0, 0))))
    assert found.hits == 1
    read(found, address(picture((0, 0, 0))))
    assert found.hits == 1


def test_a_file_in_many_requests_at_once_is_encoded_for_one(reader, monkeypatch):
    found, see, calls = reader(), LanguageModel.see, []

    def slow(*arguments, **options):
        calls.append(threading.get_ident())
        deadline = time.monotonic() + 60
        while found.queries < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        return see(*arguments, **options)

    monkeypatch.setattr(LanguageModel, "see", slow)
    with ThreadPoolExecutor(4) as threads:
        visions = list(threads.map(read, [found] * 4, [address(picture())] * 4))
        assert (len(calls), found.frames_encoded, found.hits) == (1, 1, 3)
        assert all(vision is visions[0] for vision in visions)
        found.queries = 0
        bad = [address(b"no picture")] * 4
        outcomes = list(threads.map(refused, [read] * 4, [found] * 4, bad))
    assert len(calls) == 2
    assert len(set(outcomes)) == 1
    assert outcomes[0][0] == 400
    refused(read, found, bad[0])
    assert len(calls) == 3, "a failure is no answer to later requests"


MALFORMED = [
    *("data:", "data:image/png;base64", "data:image/png", "data:image/png;base64,A"),
    *("data:image/png;base64,AAA", "data:image/png;base64,AA=A", "data:image/png;base64,AAAA="),
    *("data:image/png;base64,AAAA====", "data:image/png;base64,AA==AAAA", "data:;base64,=AAA"),
    *("data:image/png;base64,AA AA", "data:image/png;base64,AAAA\n", "data:image/png;base64,AA-_"),
    *("data:image/png;base64,AAAå", "data:image/png;base64,%4", "data:image/png;base64,AAA%zz"),
    *("data:image/png,%", "data:image/png,%f", "data:image/png,å", "data:image/png,%u0041"),
    *("data:image;base64,AAAA", "data:image/png;base64;x,AAAA", "data:a b/c;base64,AAAA"),
    *("data:/png;base64,AAAA", "data:image/png;=x;base64,AAAA", "data:image/pñg;base64,AAAA"),
    *("data:text/html;base64,AAAA", "data:audio/wav;base64,AAAA", "data:image/png;base64,"),
    *("data:,", "data:image/png,", "data:image/png;base64,AAAA", "data:image/svg+xml,<svg/>"),
    *("", "x", "AAAA", "/etc/passwd", "javascript:1", "blob:1", "ftp://media.test/a.png"),
    *(" data:image/png;base64,AAAA", "dаta:image/png;base64,AAAA", "image/png;base64,AAAA"),
]


def test_malformed_addresses_are_refused(reader):
    found = reader()
    for url in MALFORMED:
        assert refused(read, found, url)[0] == 400, url
    assert found.frames_encoded == 0


def test_base64_that_is_nearly_right_is_refused(reader):
    data = picture()
    base = base64.b64encode(data + bytes(1 - len(data) % 3)).decode()
    assert base.endswith("==")
    found = reader()
    assert len(read(found, f"data:image/png;base64,{base}").codes) == 1
    for wrong in (
        *(base[:-1], base[:-2], base + "=", base + "\n", base + "AAAA", " " + base),
        *(
            base[:80] + "\r\n" + base[80:],
            base[:80] + "%0a" + base[80:],
            base[:80] + "-" + base[80:],
        ),
        *(base[:81] + "_" + base[82:], base[:80] + "==" + base[80:], base + "%", base + "%3"),
    ):
        assert refused(read, found, f"data:image/png;base64,{wrong}")[0] == 400, wrong
    escaped = urllib.parse.quote_from_bytes(data)
    for wrong in (escaped + "%", escaped + "%4", escaped + "%zz", escaped + "å"):
        assert refused(read, found, f"data:image/png,{wrong}")[0] == 400, wrong


def test_a_content_that_is_too_large_is_refused_before_it_is_decoded(reader, monkeypatch):
    data = picture()
    data += bytes(-len(data) % 3)
    exact, less = reader(media_bytes=len(data)), reader(media_bytes=len(data) - 3)
    escaped = "".join(f"%{byte:02X}" for byte in data)
    base = base64.b64encode(data).decode()
    urls = [
        f"data:image/png;base64,{base}",
        f"data:image/png;base64,{''.join(f'%{ord(each):02x}' for each in base)}",
        f"data:image/png,{escaped}",
    ]
    for url in urls:
        read(exact, url)

    def never(*arguments, **options):
        raise AssertionError

    decoder = types.SimpleNamespace(a2b_base64=never, Error=binascii.Error)
    monkeypatch.setattr("lwm.serve.sources.binascii", decoder)
    monkeypatch.setattr("lwm.serve.sources.urllib.parse.unquote_to_bytes", never)
    for url in urls:
        status, message = refused(read, less, url)
        assert (status, message.split(";")[0]) == (
            413,
            f"the file is larger than {len(data) - 3:,} bytes",
        )
    assert refused(less.read_text, urls[0], param=PARAM)[0] == 413
    assert refused(less.read_bytes, data, kind="image", param=PARAM)[0] == 413


@pytest.fixture
def folders(tmp_path):
    """A folder for media, with links and files of every kind, beside one that is not for it."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    (inside / "sub").mkdir(parents=True)
    outside.mkdir()
    for folder in (inside, inside / "sub", outside):
        (folder / "a.png").write_bytes(picture())
    (inside / "link.png").symlink_to("sub/a.png")
    (inside / "out.png").symlink_to(outside / "a.png")
    (inside / "gone.png").symlink_to(outside / "b.png")
    (inside / "out").symlink_to(outside)
    (inside / "circle").symlink_to("circle")
    (inside / "big.png").write_bytes(bytes(5001))
    os.mkfifo(inside / "pipe.png")
    (outside / "circle").symlink_to("circle")
    (tmp_path / "inside.png").write_bytes(picture())
    (tmp_path / "alias").symlink_to("inside")
    pipe = os.open(inside / "pipe.png", os.O_RDWR | os.O_NONBLOCK)
    os.write(pipe, picture())
    yield inside, outside
    os.close(pipe)


def test_files_are_read_below_one_folder_only(reader, folders, tmp_path):
    inside, outside = folders
    for root in (inside, tmp_path / "alias"):
        found = reader(media_path=root, media_bytes=5000)
        for path in (
            "a.png",
            "./a.png",
            "sub//a.png",
            "link.png",
            inside / "a.png",
            root / "a.png",
        ):
            assert len(read(found, f"file://{path}").codes) == 1
    found = reader(media_path=inside, media_bytes=5000)
    not_allowed = [
        *("../outside/a.png", "../inside/a.png", "sub/../a.png", "..", "sub/../../outside/a.png"),
        *("%2e%2e/outside/a.png", "..%2Foutside%2fa.png", "sub/%2E%2E/a.png", "/etc/passwd"),
        *("/etc/no-such-file", "//etc/passwd", "/", "localhost/etc/passwd", "out.png", "gone.png"),
        *(
            "out/a.png",
            outside / "a.png",
            outside / "circle",
            f"{inside}.png",
            f"{inside}/../outside/a.png",
        ),
        *(f"{inside}/%2e%2e/outside/a.png", "/proc/self/environ", "/dev/zero"),
    ]
    for path in not_allowed:
        status, message = refused(read, found, f"file://{path}")
        assert (status, "not under the folder" in message) == (403, True), path
    wrong = [
        *("none.png", "a.png/x", "sub", "", ".", "circle", "pipe.png", "a.png%00.jpg"),
        *("%00", "%ff.png", "a.png?x", "a.png#x", "å.png", "%zz", "a" * 5000, "%252e%252e/a.png"),
        *("evil.test/a.png", "user@evil.test/a.png", "..%5Coutside", "C:\\a.png"),
    ]
    for path in wrong:
        status, message = refused(read, found, f"file://{path}")
        assert (status, str(inside) in message) == (400, False), path
    for url in ("file:a.png", "file:/a.png", f"file:{inside}/a.png", "file:"):
        assert refused(read, found, url)[0] == 400
    assert refused(read, found, "file://big.png")[0] == 413
    status, message = refused(read, reader(), f"file://{inside}/a.png")
    assert (status, "--media-path" in message) == (403, True)


def test_a_link_that_appears_after_the_check_is_not_followed(reader, folders, monkeypatch):
    inside, _ = folders
    found = reader(media_path=inside)
    # As if each link had still been what it replaced.
    monkeypatch.setattr(Path, "resolve", Path.absolute)
    for path in ("out.png", "out/a.png", "link.png"):
        assert refused(read, found, f"file://{path}")[0] == 400, path
    assert len(read(found, "file://sub/a.png").codes) == 1


def test_hosts_are_not_asked_unless_they_are_allowed(reader):
    status, message = refused(read, reader(), "http://example.org/a.png")
    assert (status, "--allow-media-host example.org" in message) == (403, True)
    for url in ("http://127.0.0.1/a.png", "https://[::1]/", "http://169.254.169.254/latest"):
        assert refused(read, reader(allow_media_host=("*",)), url)[0] == 403

    for status in (400, 403, 413, 422):

        def failing(url, *, status=status, **options):
            raise FetchError("it failed", status)

        assert refused(read, reader(failing), "http://media.test/") == (status, "it failed")


def test_a_model_that_does_not_see_fetches_nothing(tiny, init, byte_tokenizer, mesh):
    blind = LanguageModel(name="blind", llama=init(tiny()), tokenizer=byte_tokenizer, mesh=mesh)

    def never(*arguments, **options):
        raise AssertionError

    found = MediaReader(blind, MediaConfig(allow_media_host=("*",)), fetch=never)
    for url in ("http://media.test/a.png", address(picture())):
        assert refused(read, found, url) == (400, "blind reads and writes text only")
    assert found.read_text("data:,a", param=PARAM) == "a"


def test_text_files_are_read(reader):
    found = reader(media_bytes=100)
    texts = {
        "data:text/plain;base64,w6TigqwK": "ä€\n",
        "data:text/markdown;charset=UTF-8,%23%20a%20b": "# a b",
        "data:,a": "a",
        "data:text/plain;base64,": "",
        "data:application/json;charset=utf-8;base64,77u/e30=": "{}",
    }
    for url, text in texts.items():
        assert found.read_text(url, param=PARAM) == text
    for url in (
        *("data:text/plain;base64,/w==", "data:text/plain;base64,7aCA", "data:text/plain,a%00b"),
        *("data:text/plain;charset=latin-1,a", "data:application/pdf;base64,JVBERi0xLjcKJeLjz9M="),
        *("data:text/plain;base64,a", "a text", "file:///etc/passwd", "http://example.org/a.txt"),
    ):
        assert refused(found.read_text, url, param=PARAM)[0] == 400, url
    assert refused(found.read_text, "data:," + "a" * 101, param=PARAM)[0] == 413
