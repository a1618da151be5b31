"""Training task of a VQGAN."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec as P

from lwm.cache import LRUCache
from lwm.convert.card_facts import run_card
from lwm.convert.card_scores import of_reports
from lwm.data.loader import Delivered
from lwm.data.media.inputs import open_items
from lwm.data.media.items import named_files
from lwm.data.media.read import Sampling
from lwm.errors import UserError
from lwm.files import make_folder, write_bytes
from lwm.fingerprint import model_files, named
from lwm.processes import first_alone
from lwm.sharding import AXES, on_mesh, require_divisible
from lwm.train.inputs import keep_lineage
from lwm.train.loop import OpenTask
from lwm.train.optimizer import build_optimizer, build_schedule
from lwm.train.step import updates_made
from lwm.train.vqgan.batches import FrameBatches, FrameFiles, RandomCrop, evenly
from lwm.train.vqgan.config import FrameData, FrameSet, VQGANRun, VQGANTraining
from lwm.train.vqgan.discriminator import Discriminator
from lwm.train.vqgan.perceptual import LPIPS, installed
from lwm.train.vqgan.step import VQGANState, VQGANStep
from lwm.train.vqgan.validate import HeldOutFrames, measure_frames
from lwm.vqgan.checkpoint import locate_vqgan, read_vqgan, save_vqgan
from lwm.vqgan.config import VQGANConfig
from lwm.vqgan.model import VQGAN

_FRAMES = P(None, AXES)
"""Sharding of batches of frames."""
_PER_VIDEO = 4
"""Frames taken of a held-out video."""


class VQGANTask:
    """A VQGAN, frames to train on, and held-out sets."""

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
        """Prepares training.

        Args:
            config: Optimizer, losses and codebook.
            model: First weights, replicated.
            batches: Batches, from their beginning.
            mesh: The devices.
            held_out: Held-out sets by name.
            sheets: Folder for contact sheets.
            seed: Seeds the discriminator and the choice of latents that replace dead codes.
            trained: Whether the model is trained already; its codes then stay, without warm-up.

        Raises:
            UserError: A loss needs a package that is not installed, or larger frames.
        """
        if trained:
            codebook = dataclasses.replace(config.codebook, warmup=0)
            config = dataclasses.replace(config, codebook=codebook)
        self.batches, self._trained = batches, trained
        self._config, self._model, self._mesh = config, model, mesh
        self._held_out, self._sheets = held_out, sheets
        self._seed, self._key = seed, jr.key(seed)
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
        return self._state(initialise(self._model.config, 0))

    def start(self) -> VQGANState:
        """Makes the first state, once: it consumes the weights."""
        return self._state(self._model)

    def _state(self, model: VQGAN) -> VQGANState:
        latents = self.batches.rows * self._config.accumulate * model.config.tokens_per_frame
        return first_state(
            model,
            self._optimizer,
            width=self._config.discriminator_width,
            seed=self._seed,
            chosen=latents / model.config.codes if self._trained else 0.0,
        )

    def update(self, state: VQGANState, batches: list[Delivered]) -> tuple[VQGANState, dict]:
        """Returns the state after one more update, and its line of the log."""
        frames = _placed(np.stack([one.batch for one in batches]), self._mesh, self.batches)
        rate = self._rate(updates_made(state.optimizer))
        key = jr.fold_in(self._key, int(state.step))
        state, metrics = self._step(state, frames, key, self._lpips)
        line: dict[str, Any] = {name: float(each) for name, each in metrics.items()}
        line |= {"finite": bool(metrics["finite"]), "frames": frames.shape[0] * frames.shape[1]}
        return state, line | {"learning_rate": float(np.asarray(rate))}

    def measure(self, state: VQGANState, number: int) -> dict[str, Any]:
        """Returns the scores on each held-out set; writes a contact sheet of each."""
        make_folder(self._sheets)
        file = self._sheets / f"{number:07}.png"
        return measure_frames(self._held_out, state.model, file, count=self._config.sheet)


def open_vqgan_task(
    config: VQGANRun, folder: Path, mesh: Mesh, *, warn: Callable[[str], None]
) -> OpenTask:
    """Opens the weights and frames that a run names.

    Args:
        config: All settings.
        folder: Gets the folder `sheets`, and the lineage of the first weights.
        mesh: The devices.
        warn: Receives warnings.

    Raises:
        UserError: A file or package is missing, or sizes do not fit together.
    """

    def save(state: VQGANState, place: Path) -> None:
        with first_alone() as is_first:
            if is_first:
                save_vqgan(state.model, place)
                card = run_card(
                    folder,
                    place,
                    dtype=str(state.model.quantizer.codebook.dtype),
                    vqgan=state.model.config,
                    measured=of_reports(place, None, folder),
                )
                if card is not None:
                    write_bytes(place / "README.md", card.encode())

    require_divisible(mesh, "frames of the batch", config.data.batch, AXES)
    if config.init is not None:
        keep_lineage(locate_vqgan(config.init), None, folder)
    batches = open_batches(config, mesh)
    held_out = open_held_out(config.data, config.model.resolution, warn)
    task = VQGANTask(
        config.training,
        _first_weights(config, mesh),
        batches,
        mesh,
        held_out=held_out,
        sheets=folder / "sheets",
        seed=config.seed,
        trained=config.init is not None,
    )
    inputs: dict[str, Path] = {}
    for number, one in enumerate(batches.sets):
        files = named_files(one.items).items()
        inputs |= {f"data.sets.{number}/{name}": path for name, path in files}
    if config.init is not None:
        inputs |= named(model_files(locate_vqgan(config.init)), "init/")
    return OpenTask(task=task, units=f"{config.model.codes:,} codes", save=save, inputs=inputs)


def open_batches(config: VQGANRun, mesh: Mesh) -> FrameBatches:
    """Opens the training sets of a run.

    Raises:
        UserError: A set is empty or cannot be read.
    """
    data, resolution = config.data, config.model.resolution
    sampling, kept = _sampling(data, round(data.zoom * resolution)), LRUCache(data.cache)
    return FrameBatches(
        [
            # By number, as several may share a name.
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


def _first_weights(config: VQGANRun, mesh: Mesh) -> VQGAN:
    if config.init is None:
        with jax.set_mesh(mesh):
            return initialise(config.model, config.seed)
    model = read_vqgan(config.init, mesh=mesh)
    shape = dataclasses.replace(config.model, dtype=model.config.dtype)
    if model.config != shape:
        raise UserError(f"{config.init} has another shape than --model: it is {model.config}")
    weights = jax.tree.map(lambda x: x.astype(jnp.float32), model)
    return dataclasses.replace(weights, config=config.model)


@functools.partial(jax.jit, static_argnums=(0, 1))
def initialise(config: VQGANConfig, seed: int) -> VQGAN:
    """Returns first weights, under the mesh in use."""
    return VQGAN.init(config, key=jr.key(seed))


# The weights are donated, or a second copy would stay to the end of the run.
@functools.partial(
    jax.jit, static_argnames=("optimizer", "width", "seed", "chosen"), donate_argnames="model"
)
def first_state(
    model: VQGAN, optimizer: optax.GradientTransformation, *, width: int, seed: int, chosen: float
) -> VQGANState:
    """Returns the first state of a model, which is consumed.

    Args:
        model: The weights, replicated.
        optimizer: Optimizer of the model, and of the discriminator.
        width: Channels of the discriminator's first layer.
        seed: Seeds the discriminator.
        chosen: How often each code counts as used; see `Usage.start`.
    """
    discriminator = Discriminator.init(model.config.channels, width, key=jr.key(seed))
    return VQGANState.start(model, discriminator, optimizer, chosen)


def open_held_out(
    data: FrameData, resolution: int, warn: Callable[[str], None]
) -> dict[str, HeldOutFrames]:
    """Reads held-out sets; warns of bad items.

    Raises:
        UserError: Nothing can be read of a set.
    """
    lpips = LPIPS.read("alexnet") if installed() and data.held_out else None
    sampling = dataclasses.replace(_sampling(data, resolution), max_frames=_PER_VIDEO)

    def read(one: FrameSet) -> HeldOutFrames:
        files = FrameFiles(open_items(one.files), sampling, LRUCache(0), one.name)
        frames = evenly(
            files,
            data.held_out_frames,
            threads=data.threads,
            warn=lambda text: warn(f"held-out {one.name}: {text}"),
        )
        return HeldOutFrames(frames, background=data.background, lpips=lpips)

    return {one.name: read(one) for one in data.held_out}


def _own_frames(mesh: Mesh, count: int) -> list[int]:
    """Returns the frames of a batch that the devices of this process hold."""
    held = on_mesh(mesh, P(AXES)).addressable_devices_indices_map((count,))
    return sorted({frame for at in held.values() if at for frame in range(count)[at[0]]})


def _placed(frames: np.ndarray, mesh: Mesh, batches: FrameBatches) -> jax.Array:
    """Shards frames over all devices; each process gives its own."""
    local = {frame: place for place, frame in enumerate(batches.own)}

    def part(at: tuple[slice, ...] | None) -> np.ndarray:
        assert at is not None
        held = [local[frame] for frame in range(batches.rows)[at[1]]]
        return frames[:, held[0] : held[-1] + 1]

    shape = (len(frames), batches.rows, *frames.shape[2:])
    return jax.make_array_from_callback(shape, on_mesh(mesh, _FRAMES), part)
