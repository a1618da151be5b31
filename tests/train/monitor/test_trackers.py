"""A run's log in TensorBoard's files, read back as bytes, and in W&B's."""

import contextlib
import errno
import importlib
import os
import struct
import sys
from typing import Any

import pytest

from lwm.errors import UserError
from lwm.train.monitor.trackers import WANDB_ID, open_tracker, require_trackers, scalars

UPDATE = {"loss": 3.5, "learning_rate": 3e-4, "finite": True, "memory": None, "examples": ["a:1"]}
HELD_OUT = {"text_loss": 2.9, "vision_loss": None, "tokens": 50, "by_position": [[0, 8, 3.0, 50]]}


def update(step, **changes):
    return {"step": step} | UPDATE | changes


def records(path):
    """Reads a TFRecord file: length, its sum, bytes, their sum."""
    from tensorboardX.record_writer import masked_crc32c

    data, at = path.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        body = data[at + 12 : at + 12 + length]
        sums = struct.unpack_from("<I", data, at + 8) + struct.unpack_from(
            "<I", data, at + 12 + length
        )
        assert sums == (masked_crc32c(data[at : at + 8]), masked_crc32c(body))
        yield body
        at += 16 + length


def shown(folder):
    """Returns {name: [(step, value), ...]} as TensorBoard shows it, and the texts."""
    events = importlib.import_module("tensorboardX.proto.event_pb2")
    numbers, texts = {}, []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for record in records(path):
            event = events.Event.FromString(record)
            if event.session_log.status == events.SessionLog.START:
                for name, found in numbers.items():
                    numbers[name] = [each for each in found if each[0] < event.step]
                texts = [each for each in texts if each[0] < event.step]
            for value in event.summary.value:
                if value.HasField("tensor"):
                    texts.append((event.step, value.tensor.string_val[0].decode()))
                else:
                    numbers.setdefault(value.tag, []).append((event.step, value.simple_value))
    return numbers, texts


def test_what_becomes_a_number():
    assert dict(scalars(update(1))) == {"train/loss": 3.5, "train/learning_rate": 3e-4}
    assert dict(scalars({"step": 1, "held_out": {"books": HELD_OUT}})) == {
        "held_out/books/text_loss": 2.9,
        "held_out/books/tokens": 50,
    }


def test_tensorboard_files(tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    tracker = open_tracker("tensorboard", tmp_path / "run", {"seed": 7, "data": tmp_path})
    for step in (1, 2, 3):
        tracker(update(step, loss=step / 2))
    tracker(update(4, loss=float("nan")))
    tracker({"step": 4, "held_out": {"books": HELD_OUT}})
    tracker.close()
    numbers, texts = shown(tmp_path / "run" / "tensorboard")
    assert numbers["train/loss"][:3] == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert numbers["train/loss"][3][0] == 4
    assert numbers["train/loss"][3][1] != numbers["train/loss"][3][1], "not a number, and said so"
    assert [step for step, _ in numbers["train/learning_rate"]] == [1, 2, 3, 4]
    assert numbers["held_out/books/text_loss"] == [(4, pytest.approx(2.9))]
    assert "train/memory" not in numbers
    ((step, text),) = texts
    assert step == 0
    assert '"seed": 7' in text


def test_a_resumed_run_has_each_step_once(tmp_path):
    """Killed after step 5, it goes on after step 3, within the same second."""
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    for last, first, end, loss in ((0, 1, 5, 1.0), (0, 1, 5, 2.0), (3, 2, 7, 3.0)):
        tracker = open_tracker("tensorboard", tmp_path, {}, last=last)
        for step in range(first, end + 1):
            tracker(update(step, loss=loss))
        tracker.close()
    numbers, texts = shown(tmp_path / "tensorboard")
    assert len(list((tmp_path / "tensorboard").iterdir())) == 3
    assert numbers["train/loss"] == [
        *((s, 2.0) for s in (1, 2, 3)),
        *((s, 3.0) for s in (4, 5, 6, 7)),
    ]
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("kind", "module", "extra"),
    [("tensorboard", "tensorboardX", "tensorboard"), ("wandb", "wandb", "wandb")],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, kind, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"needs {module}: pip install 'lwm\[{extra}\]'$"):
        open_tracker(kind, tmp_path, {})
    with pytest.raises(UserError, match=rf"needs {module}: pip install 'lwm\[{extra}\]'$"):
        require_trackers((kind,))


def test_wandb_offline_goes_on_under_one_name(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for last in (0, 2):
        tracker = open_tracker("wandb", tmp_path, {"seed": 7}, last=last)
        for step in (1, 2, 3):
            tracker(update(step))
        tracker({"step": 3, "held_out": {"books": HELD_OUT}})
        tracker.close()
    known = (tmp_path / WANDB_ID).read_text()
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert [path.name for path in files] == [f"run-{known}.wandb"] * 2
    assert [path.read_bytes().count(b"learning_rate") >= 1 for path in files] == [True, True]


def test_a_record_that_cannot_be_written_ends_the_run_in_one_line(tmp_path, monkeypatch):
    """Otherwise the run would wait for the library's thread, which has ended, for ever."""
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    tracker: Any = open_tracker("tensorboard", tmp_path, {})
    monkeypatch.setattr(tracker._records._writer, "write_event", fail)
    for _ in range(100):
        with contextlib.suppress(UserError):
            tracker(update(1))
    with pytest.raises(UserError, match="tensorboard cannot be written: No space left on device"):
        tracker(update(2))
    with pytest.raises(UserError, match="tensorboard cannot be written"):
        tracker.close()
