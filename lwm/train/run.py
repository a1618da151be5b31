"""What `lwm train` does: opens all that a run names, trains, and saves the model."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.random as jr
from jax.sharding import Mesh

from lwm.convert.export import save_model
from lwm.convert.folder import require_ours
from lwm.data.loader import Loader
from lwm.data.sets import open_set, texts
from lwm.data.stream import Mixture
from lwm.data.tokenizer import Tokenizer
from lwm.data.vocabulary import train_tokenizer
from lwm.errors import UserError
from lwm.loading import Opened, open_model_files, read_llama
from lwm.model.config import LlamaConfig
from lwm.model.llama import Llama, check_mesh
from lwm.sharding import make_mesh, require_batch
from lwm.tokens import TokenSpace
from lwm.train.config import Run, require_same, to_json, write_run
from lwm.train.loop import train
from lwm.train.optimizer import build_optimizer
from lwm.train.placing import own_rows
from lwm.train.together import all_or_none, first_alone
from lwm.train.trackers import Kind, Tracker, open_tracker, require_trackers
from lwm.train.validate import HeldOut
from lwm.train.watch import Watch

_MOST_CHARACTERS = 50_000_000
"""What a tokenizer is trained on; more changes it little, and takes memory."""


def run(config: Run, folder: Path, *, track: tuple[Kind, ...] = (), profile: int = 0) -> Path:
    """Trains as `config` says, going on where the run in `folder` stopped; returns the model's.

    Args:
        config: What decides the run; `run.json` in the folder keeps it.
        folder: Gets everything. Several processes share it.
        track: Other programs that are told the numbers.
        profile: Updates of which a trace is written.

    Raises:
        Stopped: The run was asked to stop; run again, it goes on.
        UserError: Something cannot be had, does not fit, or went wrong on the way.
    """
    with all_or_none():
        goes_on = require_same(config, folder / "run.json")
        require_trackers(track)
        require_ours(folder / "model")
        build_optimizer(config.training.optimizer, config.training.steps)
        mesh = make_mesh(config.mesh)
        require_batch(mesh, rows=config.data.rows, length=config.data.packing.length)
        opened = None if config.init is None else open_model_files(config.init)
        tokenizer = _tokenizer(config, opened, folder, goes_on)
        model = _shape(config, opened, tokenizer)
        check_mesh(model, mesh)
        loader = _loader(config, tokenizer, model, mesh)
        held_out = _held_out(config, tokenizer, model)
    # Not before: what was refused so far can be mended and tried again.
    with first_alone() as is_first:
        if is_first and not goes_on:
            write_run(config, folder / "run.json")

    def draw() -> Llama:
        return Llama.init(model, key=jr.key(config.seed))

    def start() -> Llama:
        if opened is None:
            return jax.jit(draw)()
        return read_llama(opened, model, mesh=mesh, seed=config.seed)

    with _followed(config, model, folder, mesh, track) as follower:
        state = train(
            config.training,
            model,
            start,
            loader,
            mesh,
            folder,
            follower=follower,
            held_out=held_out,
            profile=profile,
        )
    with jax.set_mesh(mesh):
        save_model(state.model, tokenizer, folder / "model")
    return folder / "model"


def _tokenizer(config: Run, opened: Opened | None, folder: Path, goes_on: bool) -> Tokenizer:
    data = config.data
    if opened is not None:
        if data.tokenizer is not None:
            raise UserError(
                f"data.tokenizer {data.tokenizer} is given beside init {config.init}, which brings "
                "its own; leave one of them out"
            )
        return opened.tokenizer
    if data.tokenizer is not None:
        return Tokenizer.open(Path(data.tokenizer))
    if not data.vocabulary:
        raise UserError("give a tokenizer: init, data.tokenizer, or data.vocabulary to train one")
    place = folder / "tokenizer"
    with first_alone() as is_first:
        if is_first and not goes_on:
            given = (text for one in data.sets for text in texts(one.files, most=_MOST_CHARACTERS))
            train_tokenizer(given, size=data.vocabulary, folder=place)
    return Tokenizer.open(place)


def _shape(config: Run, opened: Opened | None, tokenizer: Tokenizer) -> LlamaConfig:
    """Returns the model that the run trains, its token space included."""
    model, codes = config.model, config.data.codes
    if opened is not None:
        model = opened.training_config(
            codes=codes,
            dtype=model.dtype,
            remat=model.remat,
            mlp_chunk=model.mlp_chunk,
            loss_chunk=model.loss_chunk,
        )
    else:
        model = dataclasses.replace(model, tokens=TokenSpace.of(tokenizer.vocab_size, codes))
    length = config.data.packing.length
    if length > model.max_context and jax.process_index() == 0:
        print(
            f"rows of {length} tokens are longer than the {model.max_context} that the model was "
            f"made for; RoPE's theta stays {model.rope.theta:g}",
            file=sys.stderr,
        )
    return dataclasses.replace(model, max_context=max(model.max_context, length))


def _loader(config: Run, tokenizer: Tokenizer, model: LlamaConfig, mesh: Mesh) -> Loader:
    data = config.data
    mixture = Mixture(
        weights=tuple(one.weight for one in data.sets),
        streams=data.streams,
        seed=config.seed,
        shuffle=data.shuffle,
    )
    return Loader(
        [open_set(one.files, one.format, tokenizer, model.tokens) for one in data.sets],
        model.tokens,
        data.packing,
        mixture,
        rows=data.rows,
        own=own_rows(mesh, data.rows),
        max_bad_share=data.max_bad_share,
        threads=data.threads,
    )


def _held_out(config: Run, tokenizer: Tokenizer, model: LlamaConfig) -> dict[str, HeldOut]:
    data = config.data
    if len({one.name for one in data.held_out}) < len(data.held_out):
        raise UserError("two held-out sets have one name; logs could not tell them apart")
    return {
        one.name: HeldOut.read(
            open_set(one.files, one.format, tokenizer, model.tokens),
            data.packing,
            model.tokens,
            most=data.held_out_rows,
            num_rows=data.rows,
            layout=config.training.layout,
        )
        for one in data.held_out
    }


class _Followers:
    """Those who are told of a run: a person, and other programs."""

    def __init__(self, watch: Watch, open_trackers: Callable[[int], list[Tracker]]):
        self._watch, self._open = watch, open_trackers
        self._trackers: list[Tracker] = []

    def begin(self, last: int) -> None:
        self._trackers = self._open(last)

    def __call__(self, line: dict[str, Any]) -> None:
        self._watch(line)
        for tracker in self._trackers:
            tracker(line)

    def warn(self, text: str) -> None:
        if jax.process_index():
            print(f"process {jax.process_index()}: {text}", file=sys.stderr)
        else:
            self._watch.say(text)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


@contextlib.contextmanager
def _followed(
    config: Run, model: LlamaConfig, folder: Path, mesh: Mesh, track: tuple[Kind, ...]
) -> Iterator[_Followers]:
    def open_trackers(last: int) -> list[Tracker]:
        if jax.process_index():
            return []
        return [open_tracker(kind, folder, to_json(config), last=last) for kind in track]

    if jax.process_index() == 0:
        size = f"{_num_parameters(model, mesh):,} parameters, {model.tokens.size:,} ids"
        print(f"{size}, mesh {config.mesh}, folder {folder}", file=sys.stderr)
    with Watch(config.training.steps, model, list(mesh.devices.flat)) as watch:
        followers = _Followers(watch, open_trackers)
        try:
            yield followers
        finally:
            followers.close()


def _num_parameters(model: LlamaConfig, mesh: Mesh) -> int:
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(lambda: Llama.init(model, key=jr.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
