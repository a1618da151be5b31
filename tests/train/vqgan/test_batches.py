"""Batches of frames: the same whoever reads them, and gone on with where they stopped."""

import itertools
import re

import numpy as np
import pytest

from lwm.cache import LRUCache
from lwm.data.media.inputs import open_items
from lwm.data.media.read import Sampling
from lwm.errors import UserError
from lwm.train.vqgan.batches import FrameBatches, FrameFiles, RandomCrop, evenly

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

WHOLE = RandomCrop(resolution=8)


@pytest.fixture
def pictures(tmp_path):
    """Six pictures of one grey each, 20 levels apart, a clip of two, and a file that is bad."""
    for number in range(6):
        Image.new("RGB", (8, 8), (20 * number,) * 3).save(tmp_path / f"{number}.png")
    clip = [Image.new("RGB", (8, 8), (level,) * 3) for level in (200, 240)]
    clip[0].save(tmp_path / "clip.webp", save_all=True, append_images=clip[1:], lossless=True)
    (tmp_path / "torn.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    return tmp_path


def files(folder, pattern, *, resolution=8, name="set"):
    sampling = Sampling(resolution=resolution, max_frames=4)
    return FrameFiles(open_items([str(folder / pattern)]), sampling, LRUCache(1 << 20), name)


def batches(sets, *, weights=(1.0,), cut=WHOLE, **options):
    return FrameBatches(sets, cut, weights=weights, rows=4, **options)


def take(made, count):
    return list(itertools.islice(iter(made), count))


def test_a_pass_shows_each_picture_once_in_another_order(pictures):
    shown = take(batches([files(pictures, "[0-9].png")]), 6)
    levels = np.concatenate([one.batch[:, 0, 0, 0] for one in shown]).reshape(4, 6)
    assert (np.sort(levels) == 20 * np.arange(6)).all()
    assert len({tuple(one) for one in levels}) > 1
    assert shown[0].examples[0][0] in [f"{number}.png" for number in range(6)]


def test_threads_and_processes_change_nothing(pictures):
    whole = take(batches([files(pictures, "*")], threads=1), 8)
    parts = [
        take(batches([files(pictures, "*")], own=own, threads=3), 8) for own in ([0, 3], [1, 2])
    ]
    for one, first, second in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(one.batch[[0, 3]], first.batch)
        np.testing.assert_array_equal(one.batch[[1, 2]], second.batch)
    other = take(batches([files(pictures, "*")], seed=1), 8)
    assert any((one.batch != two.batch).any() for one, two in zip(whole, other, strict=True))


def test_goes_on_where_it_stopped(pictures):
    sets = [files(pictures, "[0-9].png"), files(pictures, "clip.webp", name="clip")]
    whole = take(batches(sets, weights=(1.0, 1.0)), 6)
    again = batches(sets, weights=(1.0, 1.0))
    again.restore(FrameBatches.merge([whole[2].state()]))
    for one, two in zip(whole[3:], take(again, 3), strict=True):
        np.testing.assert_array_equal(one.batch, two.batch)
    with pytest.raises(UserError, match=r"from sets of \[6, 1\] items, not 4 and \[6\]"):
        batches(sets[:1]).restore(whole[2].state())


def test_counts_go_on_whoever_reads(pictures):
    """Those of all processes are added up."""

    def made(own):
        return batches([files(pictures, "*.png")], own=own)

    whole = take(made(None), 9)
    parts = [take(made(own), 4)[-1] for own in ([0, 3], [1, 2])]
    again = [made(own) for own in ([0, 1], [2, 3])]
    for each in again:
        each.restore(FrameBatches.merge([part.state() for part in parts]))
    ends = [take(each, 5)[-1].read for each in again]
    for what in ("read", "bad"):
        assert sum(end[what] for end in ends) == whole[-1].read[what] > 0


def test_sets_are_drawn_by_their_weights_and_clips_by_all_their_frames(pictures):
    sets = [files(pictures, "[0-9].png"), files(pictures, "clip.webp", name="clip")]
    levels = np.concatenate(
        [one.batch[:, 0, 0, 0] for one in take(batches(sets, weights=(1.0, 3.0)), 40)]
    )
    assert 0.7 < np.mean(levels >= 200) < 0.8
    assert 0.3 < np.mean(levels[levels >= 200] == 240) < 0.7
    alone = take(batches(sets, weights=(0.0, 1.0)), 4)
    assert min(one.batch.min() for one in alone) == 200
    for wrong in ((0.0, 0.0), (1.0, float("nan")), (1.0, -1.0)):
        with pytest.raises(UserError, match=r"weights \(.*\) must"):
            batches(sets, weights=wrong)


def test_bad_files_are_named_and_another_takes_their_place(pictures):
    shown = take(batches([files(pictures, "*.png")]), 7)
    faults = [fault for one in shown for fault in one.faults]
    # Each pass meets it once; what takes its place is drawn, and may be the same again.
    assert len(faults) >= 4
    assert all("torn.png" in fault for fault in faults)
    assert shown[-1].read["bad"] == len(faults)
    assert shown[-1].read["read"] == 28 + len(faults)
    with pytest.raises(
        UserError, match=r"1000 items in a row of a set of 1 are bad; the last: .*torn"
    ):
        take(batches([files(pictures, "torn.png")]), 1)


def test_a_part_of_a_larger_frame_is_taken_and_half_are_mirrored(tmp_path):
    ramp = np.repeat(np.arange(12, dtype=np.uint8)[None, :, None] * 20, 12, 0)
    Image.fromarray(np.repeat(ramp, 3, 2)).save(tmp_path / "ramp.png")
    sets = [files(tmp_path, "ramp.png", resolution=12)]
    shown = take(batches(sets, cut=RandomCrop(resolution=8, flip=True)), 40)
    rows = np.concatenate([one.batch for one in shown])[:, 0, :, 0].astype(int)
    rises = rows[:, -1] > rows[:, 0]
    assert 0.4 < rises.mean() < 0.6
    assert set(np.unique(rows[rises][:, 0])) == {0, 20, 40, 60, 80}
    assert (np.abs(np.diff(rows)) == 20).all()


def test_held_out_frames_lie_evenly_over_a_set(pictures):
    told = []
    every = evenly(files(pictures, "*"), 100, threads=3, warn=told.append)
    assert len(told) == 1
    assert re.match(r"1 of 8 items cannot be read; the first: .*torn", told[0])
    assert every[:, 0, 0, 0].tolist() == [0, 20, 40, 60, 80, 100, 200, 240]
    assert evenly(files(pictures, "[0-9].png"), 3)[:, 0, 0, 0].tolist() == [0, 40, 100]
    with pytest.raises(UserError, match=r"nothing can be read of a held-out set: .*torn"):
        evenly(files(pictures, "torn.png"), 3)
