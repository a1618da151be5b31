"""The training of a VQGAN: what `lwm train vqgan-64` does."""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.sharding import Mesh, PartitionSpec as P

from lwm.convert.folder import require_ours
from lwm.data.loader import Delivered
from lwm.data.media.inputs import open_items
from lwm.data.media.read import Sampling
from lwm.errors import UserError
from lwm.files import LRUCache, make_folder
from lwm.processes import all_or_none, first_alone
from lwm.sharding import AXES, make_mesh, on_mesh, require_divisible
from lwm.train.config import require_same, write_run
from lwm.train.loop import train
from lwm.train.monitor.sinks import open_sinks
from lwm.train.monitor.trackers import TrackerKind, require_trackers
from lwm.train.optimizer import build_optimizer, build_schedule
from lwm.train.step import updates_made
from lwm.train.vqgan.batches import FrameBatches, FrameFiles, RandomCrop, evenly
from lwm.train.vqgan.config import FrameData, FrameSet, VQGANRun, VQGANTraining
from lwm.train.vqgan.discriminator import Discriminator
from lwm.train.vqgan.perceptual import LPIPS, installed
from lwm.train.vqgan.step import VQGANState, VQGANStep
from lwm.train.vqgan.validate import HeldOutFrames, measure_frames
from lwm.vqgan.checkpoint import read_vqgan, save_vqgan
from lwm.vqgan.model import VQGAN

_FRAMES = P(None, AXES)
"""How batches of frames are spread."""
_LOOKED_AT = 4
"""Frames of a held-out video."""


class VQGANTask:
    """A VQGAN, frames to learn, and others to be measured by."""

    def __init__(
        self,
        config: VQGANTraining,
        model: VQGAN,
        batches: FrameBatches,
        mesh: Mesh,
        *,
        held_out: Mapping[str, HeldOutFrames],
        sheets: Path,
        seed: int,
        trained: bool = False,
    ) -> None:
        """Prepares to train.

        Args:
            config: How.
            model: The weights to start from, whole on each device.
            batches: Not yet begun.
            mesh: The devices.
            held_out: Sets that are only looked at, by name.
            sheets: The folder for contact sheets.
            seed: Of the discriminator and of the latents that replace dead codes.
            trained: Whether the model is no random one: then its codes are kept, and used at once.

        Raises:
            UserError: A loss needs a package that is not installed, or larger frames.
        """
        if trained:
            codebook = dataclasses.replace(config.codebook, warmup=0)
            config = dataclasses.replace(config, codebook=codebook)
        self.batches, self._trained = batches, trained
        self._config, self._model, self._mesh = config, model, mesh
        self._held_out, self._sheets = held_out, sheets
        self._key = jr.key(seed)
        self._optimizer = build_optimizer(config.optimizer, config.steps)
        self._rate = build_schedule(config.optimizer.schedule, config.steps)
        self._step = VQGANStep(self._optimizer, config)
        self._lpips = None
        if config.loss.perceptual:
            lpips = LPIPS.read(config.loss.network)
            if (side := model.config.resolution) < lpips.smallest:
                raise UserError(
                    f"frames of {side} pixels are too small for LPIPS by {lpips.network}, which "
                    f"needs {lpips.smallest}; leave it out with --training.loss.perceptual 0"
                )
            self._lpips = jax.device_put(lpips, on_mesh(mesh, P()))

    def abstract(self) -> VQGANState:
        """Makes a state of any weights."""
        return self._state(VQGAN.init(self._model.config, key=jr.key(0)))

    def start(self) -> VQGANState:
        """Makes the first state, once: it takes the weights."""
        # Given away, as there would be two of them to the end of the run.
        return jax.jit(self._state, donate_argnums=0)(self._model)

    def _state(self, model: VQGAN) -> VQGANState:
        channels, width = model.config.channels, self._config.discriminator_width
        discriminator = Discriminator.init(channels, width, key=self._key)
        latents = self.batches.rows * self._config.accumulate * model.config.tokens_per_frame
        chosen = latents / model.config.codes if self._trained else 0.0
        return VQGANState.start(model, discriminator, self._optimizer, chosen)

    def update(self, state: VQGANState, given: list[Delivered]) -> tuple[VQGANState, dict]:
        """Returns the state after one more update, and what the log says."""
        frames = _placed(np.stack([one.batch for one in given]), self._mesh, self.batches)
        rate = self._rate(updates_made(state.optimizer))
        key = jr.fold_in(self._key, int(state.step))
        state, found = self._step(state, frames, key, self._lpips)
        line: dict[str, Any] = {name: float(each) for name, each in found.items()}
        line |= {"finite": bool(found["finite"]), "frames": frames.shape[0] * frames.shape[1]}
        return state, line | {"learning_rate": float(np.asarray(rate))}

    def measure(self, state: VQGANState, number: int) -> dict[str, Any]:
        """Measures each held-out set; draws `sheets/NAME-STEP.png` of each."""
        make_folder(self._sheets)
        file = self._sheets / f"{number:07}.png"
        return measure_frames(self._held_out, state.model, file, count=self._config.sheet)


def run(
    config: VQGANRun, folder: Path, *, track: tuple[TrackerKind, ...] = (), profile: int = 0
) -> Path:
    """Trains as `config` says, going on where the run in `folder` stopped; returns the VQGAN's.

    Args:
        config: What decides the run; `run.json` in the folder keeps it.
        folder: Gets everything. Several processes share it.
        track: Other programs that are told the numbers.
        profile: Updates of which a trace is written.

    Raises:
        Stopped: The run was asked to stop; run again, it goes on.
        UserError: Something cannot be had, does not fit, or went wrong on the way.
    """
    data, training = config.data, config.training
    with all_or_none():
        goes_on = require_same(config, folder / "run.json")
        require_trackers(track)
        require_ours(folder / "model")
        mesh = make_mesh(config.mesh)
        require_divisible(mesh, "frames of the batch", data.batch, AXES)
        batches = open_batches(config, mesh)
        held_out = open_held_out(data, config.model.resolution)
        task = VQGANTask(
            training,
            _first(config, mesh),
            batches,
            mesh,
            held_out=held_out,
            sheets=folder / "sheets",
            seed=config.seed,
            trained=config.init is not None,
        )
    # Not before: what was refused so far can be mended and tried again.
    with first_alone() as is_first:
        if is_first and not goes_on:
            write_run(config, folder / "run.json")
    size = f"{_num_weights(config):,} parameters, {config.model.codes:,} codes"
    with open_sinks(config, folder, mesh, track, size=size) as follower:
        state = train(training, task, mesh, folder, follower=follower, profile=profile)
    with first_alone() as is_first:
        if is_first:
            save_vqgan(state.model, folder / "model")
    return folder / "model"


def open_batches(config: VQGANRun, mesh: Mesh) -> FrameBatches:
    """Opens what a run learns from.

    Raises:
        UserError: There is nothing, or it cannot be read.
    """
    data, resolution = config.data, config.model.resolution
    sampling, kept = _sampling(data, round(data.zoom * resolution)), LRUCache(data.cache)
    return FrameBatches(
        [
            # Not by name, which several may have.
            FrameFiles(open_items(one.files), sampling, kept, str(place))
            for place, one in enumerate(data.sets)
        ],
        RandomCrop(
            resolution=resolution, shift=data.shift, background=data.background, flip=data.flip
        ),
        weights=[one.weight for one in data.sets],
        rows=data.batch,
        own=_own_frames(mesh, data.batch),
        seed=config.seed,
        threads=data.threads,
        max_bad_share=data.max_bad_share,
    )


def _sampling(data: FrameData, resolution: int) -> Sampling:
    return Sampling(
        resolution=resolution,
        max_frames=data.max_frames,
        fit=data.fit,
        background=data.background,
    )


def _first(config: VQGANRun, mesh: Mesh) -> VQGAN:
    """Draws or reads the weights to start from."""
    if config.init is None:
        with jax.set_mesh(mesh):
            return jax.jit(lambda: VQGAN.init(config.model, key=jr.key(config.seed)))()
    model = read_vqgan(config.init, mesh=mesh)
    shape = dataclasses.replace(config.model, dtype=model.config.dtype)
    if model.config != shape:
        raise UserError(f"{config.init} has another shape than --model: it is {model.config}")
    weights = jax.tree.map(lambda x: x.astype(jnp.float32), model)
    return dataclasses.replace(weights, config=config.model)


def open_held_out(data: FrameData, resolution: int) -> dict[str, HeldOutFrames]:
    """Reads what is only looked at, and says on stderr what of it is bad.

    Raises:
        UserError: Of a set nothing can be read, or two have one name.
    """
    if len({one.name for one in data.held_out}) < len(data.held_out):
        raise UserError("two held-out sets have one name; logs could not tell them apart")
    lpips = LPIPS.read("alexnet") if installed() and data.held_out else None
    sampling = dataclasses.replace(_sampling(data, resolution), max_frames=_LOOKED_AT)

    def read(one: FrameSet) -> HeldOutFrames:
        files = FrameFiles(open_items(one.files), sampling, LRUCache(0), one.name)
        frames = evenly(
            files,
            data.held_out_frames,
            threads=data.threads,
            warn=lambda text: _say(f"held-out {one.name}: {text}"),
        )
        return HeldOutFrames(frames, background=data.background, lpips=lpips)

    return {one.name: read(one) for one in data.held_out}


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, file=sys.stderr)


def _num_weights(config: VQGANRun) -> int:
    shapes = jax.eval_shape(lambda: VQGAN.init(config.model, key=jr.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def _own_frames(mesh: Mesh, count: int) -> list[int]:
    """Returns which frames of a batch the devices of this process hold."""
    held = on_mesh(mesh, P(AXES)).addressable_devices_indices_map((count,))
    return sorted({frame for at in held.values() if at for frame in range(count)[at[0]]})


def _placed(frames: np.ndarray, mesh: Mesh, batches: FrameBatches) -> jax.Array:
    """Spreads frames, of which this process gives its own, over all devices."""
    local = {frame: place for place, frame in enumerate(batches.own)}

    def part(at: tuple[slice, ...] | None) -> np.ndarray:
        assert at is not None
        held = [local[frame] for frame in range(batches.rows)[at[1]]]
        return frames[:, held[0] : held[-1] + 1]

    shape = (len(frames), batches.rows, *frames.shape[2:])
    return jax.make_array_from_callback(shape, on_mesh(mesh, _FRAMES), part)
