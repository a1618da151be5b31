"""Checkpoints: bit for bit, onto other meshes, and after damage, a full disk and a kill."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.errors import UserError
from lwm.formats import run_folder
from lwm.model.llama import Llama
from lwm.sharding import make_mesh
from lwm.train import checkpoint
from lwm.train.checkpoint import Checkpoints, abstract_state, named_leaves
from lwm.train.config import AdamW, Keep
from lwm.train.optimizer import build_optimizer
from lwm.train.step import TrainState

OPTIMIZER = build_optimizer(AdamW(moment_dtype="bfloat16"), 1000)
KEEP = Keep(last=2)


@pytest.fixture(scope="module")
def abstract(tiny):
    """Shapes and shardings of a small state on a mesh."""

    def make(mesh="1,1,1,1", **changes) -> TrainState:
        key = jax.random.key(0)
        config = tiny(**changes)
        return abstract_state(
            lambda: TrainState.start(Llama.init(config, key=key), OPTIMIZER), make_mesh(mesh)
        )

    return make


def fill(abstract, seed=0):
    """A state of random bits, and so with NaN, infinities and subnormal numbers."""
    draw = np.random.default_rng(seed)

    def bits(leaf):
        raw = draw.bytes(leaf.size * leaf.dtype.itemsize)
        if leaf.sharding.num_devices > 1 and leaf.dtype == jnp.bfloat16:
            # The compiler flags of the tests give slices of bfloat16 one kind of NaN. The process
            # that is killed has none of these flags, and saves shards with every kind.
            words = np.frombuffer(raw, np.uint16)
            raw = np.where(words & 0x7FFF > 0x7F80, words & 0x8000 | 0x7FC0, words).tobytes()
        values = np.frombuffer(raw, leaf.dtype).reshape(leaf.shape)
        return jax.device_put(values, leaf.sharding)

    return jax.tree.map(bits, abstract)


def same(one, other):
    """Whether all bits, types, shardings and static fields of two states are the same."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(
        a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs
    )


def steps(folder):
    return sorted(int(path.name) for path in folder.iterdir())


def fails(line):
    raise AssertionError(line)


def open_quietly(folder, keep=KEEP):
    """Checkpoints that may not warn."""
    return Checkpoints(folder, keep, warn=fails)


def newest(checkpoints, abstract):
    restored = checkpoints.restore(abstract)
    assert restored is not None
    return restored


@pytest.fixture(scope="module")
def saved(abstract, tmp_path_factory):
    """A folder with checkpoints of steps 1 and 2, which tests copy."""
    folder = tmp_path_factory.mktemp("checkpoints") / "run"
    with open_quietly(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, fill(abstract(), step), {"rows": step})
    return folder


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("1,1,1,1", "1,1,1,1"),
        ("1,1,1,1", "1,2,2,2"),
        ("1,2,2,2", "1,1,1,1"),
        ("1,2,2,2", "2,1,4,1"),
    ],
)
def test_what_is_restored_is_what_was_saved(abstract, tmp_path, source, target):
    state, data = fill(abstract(source)), {"streams": [3, 4], "seed": "a", "mean": 0.1}
    assert {"bfloat16", "float32", "int32"} == {str(leaf.dtype) for leaf in jax.tree.leaves(state)}
    with open_quietly(tmp_path) as checkpoints:
        assert checkpoints.restore(abstract(source)) is None
        checkpoints.save(7, state, data)
        data["seed"] = "changed after it was saved"
    with open_quietly(tmp_path) as checkpoints:
        step, restored, found = newest(checkpoints, abstract(target))
    assert (step, found) == (7, {"streams": [3, 4], "seed": "a", "mean": 0.1})
    assert same(state, restored)
    for leaf, wanted in zip(
        jax.tree.leaves(restored), jax.tree.leaves(abstract(target)), strict=True
    ):
        assert leaf.sharding == wanted.sharding


def test_arrays_may_be_given_away_once_saved(abstract, tmp_path):
    state = fill(abstract("1,2,2,2"))
    before = jax.tree.map(lambda leaf: np.array(leaf, copy=True), state)
    change = jax.jit(lambda x: jax.tree.map(lambda leaf: leaf * 0 + 1, x), donate_argnums=0)
    with open_quietly(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        jax.block_until_ready(change(state))
        _, restored, _ = newest(checkpoints, abstract("1,2,2,2"))
    assert same(before, restored)


def test_the_last_and_the_milestones_are_kept(abstract, tmp_path):
    state, keep = fill(abstract()), Keep(every=2, last=2, milestones=5)
    due = [step for step in range(1, 15) if keep.due(step)]
    assert due == [2, 4, 5, 6, 8, 10, 12, 14]
    for part in (due[:4], due[4:]):  # the second has to know what the first left
        with open_quietly(tmp_path, keep) as checkpoints:
            for step in part:
                checkpoints.save(step, state, {})
    assert steps(tmp_path) == [5, 10, 12, 14]


def test_a_step_is_not_written_over(abstract, run):
    with open_quietly(run) as checkpoints:
        step, state, _ = newest(checkpoints, abstract())
        checkpoints.save(step, fill(abstract(), 9), {})  # the end of a run that was at its end
        assert same(newest(checkpoints, abstract())[1], state)
    with open_quietly(run) as checkpoints, pytest.raises(UserError, match="holds step 2"):
        checkpoints.save(1, state, {})


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("damage", [truncate, flip, lambda path: path.unlink()])
def test_any_damage_to_the_newest_is_seen_and_the_one_before_used(
    abstract, saved, tmp_path, damage
):
    names = [p.relative_to(saved / "2") for p in sorted((saved / "2").rglob("*")) if p.is_file()]
    assert len(names) > 8
    for number, name in enumerate(names):
        folder, lines = shutil.copytree(saved, tmp_path / str(number)), []
        damage(folder / "2" / name)
        with Checkpoints(folder, KEEP, warn=lines.append) as checkpoints:
            step, state, data = newest(checkpoints, abstract())
            assert same(state, fill(abstract(), step)), name
            assert data == {"rows": step}
            # Orbax's own notes are not needed to read.
            if len(name.parts) == 1 and name.name != checkpoint.CHECKSUMS:
                continue
            assert step == 1, name
            assert len(lines) == 1
            assert "checkpoint 2 (" in lines[0]
            assert str(name) in lines[0] or name.name == checkpoint.CHECKSUMS


def test_a_damaged_step_is_written_anew(abstract, run):
    lines = []
    with Checkpoints(run, KEEP, warn=lines.append) as checkpoints:
        checkpoints.save(3, fill(abstract(), 3), {})
        checkpoints.wait()
        truncate(run / "3" / "data" / "metadata")
        assert newest(checkpoints, abstract())[0] == 2
        assert len(lines) == 1
        checkpoints.save(3, fill(abstract(), 5), {})
    with open_quietly(run) as checkpoints:
        step, state, _ = newest(checkpoints, abstract())
    assert step == 3
    assert same(state, fill(abstract(), 5))


def test_all_damaged(abstract, run):
    flip(run / "1" / "data" / "metadata")
    truncate(run / "2" / checkpoint.CHECKSUMS)
    with (
        open_quietly(run) as checkpoints,
        pytest.raises(UserError, match=r"2 \(checksums.json is no JSON\), 1 \(data/metadata") as e,
    ):
        checkpoints.restore(abstract())
    assert str(run) in str(e.value)


def test_another_model_is_refused(abstract, run):
    with open_quietly(run) as checkpoints:
        with pytest.raises(UserError, match=r"float32\[2,32,64\] there, float32\[2,32,96\] here"):
            checkpoints.restore(abstract(mlp_dim=96))
        with pytest.raises(UserError, match=r"model.head is float32\[32,256\] there, absent here"):
            checkpoints.restore(abstract(tie_embeddings=True))


def test_too_little_space(abstract, run, monkeypatch):
    state = fill(abstract())
    usage = namedtuple("usage", "total used free")
    with open_quietly(run) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 100_000))
            with pytest.raises(UserError, match=r"needs .* GB and 0.0001 GB are free"):
                checkpoints.save(3, state, {})
        assert steps(run) == [1, 2]
        assert same(newest(checkpoints, abstract())[1], fill(abstract(), 2))
        checkpoints.save(3, state, {})
    assert steps(run) == [2, 3]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        ValueError("RESOURCE_EXHAUSTED: No space left on device"),
    ],
)
def test_a_disk_that_fills_up_meanwhile(abstract, run, monkeypatch, error):
    def full(path):
        raise error

    monkeypatch.setattr(run_folder, "_checksum", full)
    with open_quietly(run) as checkpoints:
        checkpoints.save(3, fill(abstract()), {})
        with pytest.raises(UserError, match="no space for the checkpoint of step 3"):
            checkpoints.wait()
        assert steps(run) == [1, 2]
        monkeypatch.undo()
        checkpoints.save(3, fill(abstract(), 3), {})
        assert same(newest(checkpoints, abstract())[1], fill(abstract(), 3))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EIO, os.strerror(errno.EIO)), "Input/output error"),
        (ValueError("Failed writing [os_error_code='13'] [source]"), "Permission denied"),
    ],
)
def test_a_disk_that_refuses_to_be_written_is_one_line(abstract, run, monkeypatch, error, said):
    def refuse(path):
        raise error

    monkeypatch.setattr(run_folder, "_checksum", refuse)
    with open_quietly(run) as checkpoints:
        checkpoints.save(3, fill(abstract()), {})
        message = f"step 3 cannot be written to .*: {said}; the checkpoint of step 2 is whole"
        with pytest.raises(UserError, match=message):
            checkpoints.wait()
        assert steps(run) == [1, 2]


def test_a_folder_that_goes_away_is_no_reason_to_wait(abstract, tmp_path):
    """Threads that would wait for it for 20 minutes, also at the end of the process, have ended."""
    before = set(threading.enumerate())
    with open_quietly(tmp_path / "run") as checkpoints:
        checkpoints.save(1, fill(abstract()), {})
        checkpoints.wait()
        shutil.rmtree(tmp_path / "run")
        (tmp_path / "run").touch()
        message = "step 2 cannot be written .*: Not a directory; no checkpoint was made before"
        with pytest.raises(UserError, match=message):
            checkpoints.save(2, fill(abstract()), {})
    left = [each for each in set(threading.enumerate()) - before if not each.daemon]
    for each in left:
        each.join(10)
    assert not any(each.is_alive() for each in left)


CHILD = """
import os, signal, sys
from pathlib import Path
import jax
import jax.numpy as jnp
from lwm.formats import run_folder
from lwm.model.config import LlamaConfig, Rope
from lwm.model.llama import Llama
from lwm.sharding import make_mesh
from lwm.tokens import TokenSpace
from lwm.train import checkpoint
from lwm.train.config import AdamW, Keep
from lwm.train.optimizer import build_optimizer
from lwm.train.step import TrainState

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def make():
    return TrainState.start(Llama.init({config}, key=jax.random.key(0)), OPTIMIZER)

OPTIMIZER = build_optimizer(AdamW(moment_dtype="bfloat16"), 1000)
mesh = make_mesh("1,2,2,2")
abstract = checkpoint.abstract_state(make, mesh)
with checkpoint.Checkpoints(Path({folder!r}), Keep(last=2)) as checkpoints:
    step, state, data = checkpoints.restore(abstract)
    assert step == 2
    checkpoints.save(3, state, data)
    checkpoints.wait()
    if {when!r} == "all is written":
        run_folder._checksum = kill
    checkpoints.save(4, state, data)
    if {when!r} == "it is begun":
        kill()
    checkpoints.wait()
"""


@pytest.mark.parametrize("when", ["it is begun", "all is written"])
def test_killed_while_writing(abstract, tiny, run, when):
    code = CHILD.format(config=repr(tiny()), folder=str(run), when=when)
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == -9, done.stderr
    with open_quietly(run) as checkpoints:
        step, state, data = newest(checkpoints, abstract())
        assert step in ((3, 4) if when == "it is begun" else (3,))
        assert same(state, fill(abstract(), 2))
        assert data == {"rows": 2}
        checkpoints.save(5, state, data)
    assert steps(run) == [step, 5]


def test_paths_can_be_read(abstract, saved):
    stored = json.loads((saved / "2" / "data" / "metadata").read_text())["leaves"]
    assert list(stored) == list(named_leaves(abstract()))
    assert stored["model.embedding"] == "float32[256,32]"
    assert stored["optimizer.1.mu.head"] == "bfloat16[32,256]"


@pytest.mark.parametrize("wrong", [{"every": 0}, {"last": 0}, {"milestones": -1}])
def test_senseless_settings(wrong):
    with pytest.raises(UserError, match="at least"):
        Keep(**wrong)


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_checkpoints_in_place_of_which_there_is_a_file(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=f"{name} cannot be written: (File exists|Not a directory)"):
        Checkpoints(tmp_path / name, KEEP)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.representative
def test_a_disk_that_fails_at_any_write_loses_nothing(tmp_path):
    """A line at once, the earlier checkpoints whole, and no traceback of another thread."""
    here, library = Path(__file__).parent, tmp_path / "failing_writes.so"
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc")
    source = here / "failing_writes.c"
    subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", library, "-ldl"], check=True)
    environment = os.environ | {"LD_PRELOAD": str(library), "FAIL_IN": "checkpoints"}
    for error in (errno.ENOSPC, errno.EACCES):
        done = subprocess.run(
            [sys.executable, here / "failing_writes.py", tmp_path / f"runs {error}", str(error)],
            capture_output=True,
            text=True,
            timeout=300,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) > 50
        assert "Traceback" not in done.stderr
