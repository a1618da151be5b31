"""What `lwm train` does: opens all that a run names, trains, and saves the model."""

import dataclasses
import itertools
import sys
from pathlib import Path

import jax
import jax.random as jr
from jax.sharding import Mesh

from lwm.convert.export import save_model
from lwm.convert.folder import require_ours
from lwm.convert.open import ModelFiles, open_model_files, read_llama
from lwm.data.captions import PHRASES
from lwm.data.loader import Loader
from lwm.data.sets import open_set, require_codes_of, texts
from lwm.data.stream import Mixture
from lwm.errors import UserError
from lwm.model.config import LlamaConfig
from lwm.model.llama import Llama, check_mesh
from lwm.processes import all_or_none, first_alone
from lwm.sharding import make_mesh, require_batch
from lwm.tokenizer.bpe import train_tokenizer
from lwm.tokenizer.tokenizer import Tokenizer
from lwm.tokens import TokenSpace
from lwm.train.config import Run, require_same, write_run
from lwm.train.loop import train
from lwm.train.monitor.sinks import open_sinks
from lwm.train.monitor.trackers import TrackerKind, require_trackers
from lwm.train.optimizer import build_optimizer
from lwm.train.placing import own_rows
from lwm.train.task import LanguageTask
from lwm.train.validate import HeldOut
from lwm.vqgan.checkpoint import read_vqgan
from lwm.vqgan.model import VQGAN

_MOST_CHARACTERS = 50_000_000
"""What a tokenizer is trained on; more changes it little, and takes memory."""


def run(
    config: Run, folder: Path, *, track: tuple[TrackerKind, ...] = (), profile: int = 0
) -> Path:
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
        vqgan = None if config.data.vqgan is None else read_vqgan(config.data.vqgan)
        model = _shape(config, opened, tokenizer, vqgan)
        check_mesh(model, mesh)
        loader = _loader(config, tokenizer, model, mesh)
        held_out = _held_out(config, tokenizer, model)
    # Not before: what was refused so far can be mended and tried again.
    with first_alone() as is_first:
        if is_first and not goes_on:
            write_run(config, folder / "run.json")

    def draw() -> Llama:
        return Llama.init(model, config.compute, key=jr.key(config.seed))

    def start() -> Llama:
        if opened is None:
            return jax.jit(draw)()
        return read_llama(opened, model, compute=config.compute, mesh=mesh, seed=config.seed)

    task = LanguageTask(config.training, draw, start, loader, mesh, held_out)
    size = f"{_num_parameters(model, mesh):,} parameters, {model.tokens.size:,} ids"
    with open_sinks(config, folder, mesh, track, size=size, model=model) as follower:
        state = train(config.training, task, mesh, folder, follower=follower, profile=profile)
    with jax.set_mesh(mesh):
        save_model(state.model, tokenizer, folder / "model", vqgan=vqgan, drawings=config.sampling)
    return folder / "model"


def _tokenizer(config: Run, opened: ModelFiles | None, folder: Path, goes_on: bool) -> Tokenizer:
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
            around = PHRASES if data.codes or data.vqgan else ()
            train_tokenizer(itertools.chain(around, given), size=data.vocabulary, folder=place)
    return Tokenizer.open(place)


def _shape(
    config: Run, opened: ModelFiles | None, tokenizer: Tokenizer, vqgan: VQGAN | None
) -> LlamaConfig:
    """Returns the model that the run trains, its token space included."""
    model, codes = config.model, config.data.codes
    if vqgan is not None:
        if codes not in (0, vqgan.config.codes):
            raise UserError(
                f"data.codes is {codes}, but {config.data.vqgan} has {vqgan.config.codes}; "
                "leave it out"
            )
        codes = vqgan.config.codes
        for one in config.data.sets + config.data.held_out:
            require_codes_of(one.files, vqgan)
    if opened is not None:
        model = opened.training_config(codes=codes)
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


def _num_parameters(model: LlamaConfig, mesh: Mesh) -> int:
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(lambda: Llama.init(model, key=jr.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
