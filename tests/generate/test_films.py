"""Films in files, which are longer than memory or a context has room for."""

import weakref

import numpy as np
import pytest

from lwm.cli import chat as talk
from lwm.errors import UserError
from lwm.media.frames import read_frames
from lwm.media.limits import Resizer
from lwm.media.write import write_video
from lwm.sampling_params import SamplingParams

SIZE, SIDE = 16, 16
"""Codes of a frame, and its pixels along a side."""


@pytest.fixture
def resized(monkeypatch):
    """References to the pixels of all frames that have been decoded."""
    found, resize = [], Resizer.__call__

    def noted(self, *args):
        pixels = resize(self, *args)
        found.append(weakref.ref(pixels))
        return pixels

    monkeypatch.setattr(Resizer, "__call__", noted)
    return found


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A film of 200 frames."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    levels = np.linspace(0, 255, 200).astype(np.uint8)
    write_video(path, np.broadcast_to(levels[:, None, None, None], (200, 32, 32, 3)), 24.0)
    return path


def test_a_long_film_is_encoded_as_it_is_read(drawer, open_painter, film, resized):
    drawer = open_painter(drawer.mesh, context=4096)
    whole = drawer.encode_frames(read_frames(film, resolution=SIDE).pixels)
    resized.clear()
    reports = []

    def progress(done, total):
        reports.append((done, total, len(resized)))
        held = sum(each() is not None for each in resized)
        assert held <= drawer.vision.frames_per_batch + 1

    seen = drawer.see(film, max_frames=None, progress=progress)
    np.testing.assert_array_equal(seen.codes, whole)
    assert seen.pixels is None, "too many to be kept"
    np.testing.assert_allclose(seen.times, np.arange(200) / 24, atol=1e-3)
    assert all(done == decoded and total == 200 for done, total, decoded in reports)
    assert [reports[0][0], reports[-1][0]] == [0, 200]
    assert max(np.diff([done for done, *_ in reports])) <= drawer.vision.frames_per_batch
    few = drawer.see(film, fps=1.0)
    assert few.pixels.shape == (8, SIDE, SIDE, 3)

    def stop(done, total):
        raise KeyError(done)

    with pytest.raises(KeyError):  # no fault of the file
        drawer.see(film, progress=stop)


def test_a_film_that_exceeds_the_context_is_refused_before_it_is_decoded(drawer, film, resized):
    fit = (512 - len(drawer.marks.opening) - len(drawer.marks.closing)) // (SIZE + 1)
    says = rf"film.mp4: 200 frames, 3,\d+ tokens; .* 512 .*: {fit} frames fit; give max_frames"
    with pytest.raises(UserError, match=says):
        drawer.see(film, max_frames=None)
    chat = talk.TerminalChat(drawer, sampling=SamplingParams(max_tokens=100), max_frames=None)
    with pytest.raises(UserError, match=r"context of 512: \d\d frames fit; lower --max-frames"):
        chat.see(film)
    assert not resized
    assert len(drawer.see(film, max_frames=fit).codes) == fit
