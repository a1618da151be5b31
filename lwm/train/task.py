"""Training task of a language model, of text and vision alike."""

import functools
import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.random as jr
import numpy as np
from jax.sharding import Mesh

from lwm.convert.card_facts import language_facts, run_card
from lwm.convert.card_scores import of_reports
from lwm.convert.convert import legal_texts
from lwm.convert.export import generation_config, save_model
from lwm.convert.folder import to_text
from lwm.convert.lora import save_adapter
from lwm.convert.open import ModelFiles, open_model_files, read_llama
from lwm.data.captions import PHRASES
from lwm.data.example import MODALITIES, Batch
from lwm.data.lengths import Bounded
from lwm.data.loader import Delivered, Loader
from lwm.data.paths import Warn
from lwm.data.sets import open_set, texts
from lwm.data.sources import files_of
from lwm.data.stream import Examples, Mixture
from lwm.errors import UserError
from lwm.files import make_folder, write_bytes, writing
from lwm.fingerprint import model_files, named
from lwm.formats.run_folder import TOKENIZER, is_checkpoint
from lwm.model.config import Compute, LlamaConfig
from lwm.model.llama import Llama, check_mesh
from lwm.model.lora import Adapter
from lwm.plan.flops import matmul_parameters
from lwm.processes import first_alone
from lwm.sampling_params import VisionSampling
from lwm.sharding import require_batch
from lwm.tokenizer.bpe import train_tokenizer
from lwm.tokenizer.lwm_format import LWM_TEMPLATE
from lwm.tokenizer.tokenizer import Tokenizer, with_format
from lwm.tokens import TokenSpace
from lwm.train.config import DataSet, Run, Training
from lwm.train.inputs import keep_lineage
from lwm.train.loop import OpenTask
from lwm.train.lora import (
    adapter_facts,
    base_name,
    first_adapter,
    read_frozen,
    require_adaptable,
)
from lwm.train.optimizer import build_optimizer, build_schedule
from lwm.train.placing import own_rows, shard_batch
from lwm.train.shape import model_config, require_model
from lwm.train.step import StepMetrics, TrainState, TrainStep, whole_model
from lwm.train.validate import HeldOut
from lwm.vqgan.checkpoint import locate_vqgan, read_vqgan
from lwm.vqgan.model import VQGAN

_MOST_CHARACTERS = 50_000_000
"""Characters that a tokenizer is trained on; more take memory and change it little."""


class LanguageTask:
    """A language model, packed rows to train on, and held-out sets."""

    def __init__(
        self,
        config: Training,
        init: Callable[[], Llama | Adapter],
        make_model: Callable[[], Llama | Adapter],
        loader: Loader,
        mesh: Mesh,
        held_out: Mapping[str, HeldOut] | None = None,
        frozen: Callable[[], Llama] | None = None,
        after: Callable[[int, Llama], None] | None = None,
    ) -> None:
        """Prepares training.

        Args:
            config: Optimizer, loss and layout.
            init: Calls `Llama.init` or `Adapter.init`; only the shapes of its result are used.
            make_model: Initialises or reads the first weights, under the mesh in use; they are
                stacked, and placed as by `Llama.init`.
            loader: Batches, from their beginning.
            mesh: The devices.
            held_out: Held-out sets by name.
            frozen: Reads the model whose adapters are trained; called once. None: the whole model
                is trained.
            after: Called with each update that is validated and the model, in a run of one process.
        """
        self._after = after if jax.process_count() == 1 else None
        self.batches = loader
        self._config, self._init, self._make = config, init, make_model
        self._mesh, self._held_out = mesh, held_out or {}
        self._optimizer = build_optimizer(config.optimizer, config.steps)
        self._rate = build_schedule(config.optimizer.schedule, config.steps)
        self._step = TrainStep(self._optimizer, config.loss)
        self._frozen = functools.cache(frozen or (lambda: None))

    def abstract(self) -> TrainState:
        """Makes a state of any weights."""
        return TrainState.start(self._init(), self._optimizer)

    def start(self) -> TrainState:
        """Makes the first state."""
        return TrainState.start(self._make(), self._optimizer)

    def update(
        self, state: TrainState, batches: list[Delivered]
    ) -> tuple[TrainState, dict[str, Any]]:
        """Returns the state after one more update, and its line of the log."""
        fields = zip(*(one.batch for one in batches), strict=True)
        stacked = Batch._make(np.stack(field) for field in fields)
        layout, rows = self._config.layout, self.batches.rows
        placed, index = shard_batch(stacked, self._mesh, layout, rows=rows)
        state, metrics = self._step(state, placed, index, self._frozen())
        line = _describe(jax.device_get(metrics), placed.segments.size)
        return state, line | {"learning_rate": float(np.asarray(self._rate(metrics.updates)))}

    def measure(self, state: TrainState, number: int) -> dict[str, Any]:
        """Returns the losses on each held-out set."""
        model, sets = whole_model(state.model, self._frozen()), self._held_out.items()
        found = {name: held_out.measure(model, self._mesh) for name, held_out in sets}
        if self._after is not None:
            self._after(number, model)
        return found


def _describe(metrics: StepMetrics, slots: int) -> dict[str, Any]:
    """Returns the line of the log of one update, with the modalities that had targets."""
    line = {
        "loss": float(metrics.loss),
        "gradient_norm": float(metrics.gradient_norm),
        "tokens": int(metrics.tokens),
        "slots": slots,
        "pairs": float(metrics.pairs),
        "packing": int(metrics.tokens) / slots,
        "finite": bool(metrics.finite),
    }
    of_each = zip(MODALITIES, metrics.nll, metrics.accuracy, metrics.targets, strict=True)
    for modality, nll, accuracy, targets in of_each:
        if targets:
            line |= {f"{modality}_loss": float(nll), f"{modality}_accuracy": float(accuracy)}
    return line


def open_task(
    config: Run,
    folder: Path,
    mesh: Mesh,
    *,
    warn: Callable[[str], None],
    resumed: bool,
    base: Path | None = None,
    after: Callable[[int, Llama], None] | None = None,
) -> OpenTask:
    """Opens the model, tokenizer and data that a run names.

    Args:
        config: All settings.
        folder: Gets the tokenizer, if one is trained.
        mesh: The devices.
        warn: Receives warnings.
        resumed: Whether `folder` holds this run already.
        base: The model that `config.init` names, where it is no name that can be opened.
        after: See `LanguageTask`.

    Raises:
        UserError: A file is missing, or sizes do not fit together.
    """
    require_batch(mesh, rows=config.data.rows, length=config.data.packing.length)
    require_model(config)
    files = None if config.init is None else open_model_files(base or config.init, given=config)
    tokenizer = _tokenizer(config, files, folder, resumed=resumed, warn=warn)
    vqgan = None if config.data.vqgan is None else read_vqgan(config.data.vqgan)
    model = model_config(config, files, tokenizer, vqgan, warn)
    check_mesh(model, mesh)
    weights = _weights(config, files, model, mesh)

    place = folder / TOKENIZER
    with first_alone() as is_first:
        trained = files is None and config.data.tokenizer is None
        if is_first and not trained and not (resumed and place.exists()):
            _keep_tokenizer(tokenizer, model, config.sampling, place)
    if files is not None:
        keep_lineage(files.place, files.known, folder)
    frame = _frame_size(vqgan, files)
    sets = [
        _open_set(one, tokenizer, model.tokens, frame=frame, warn=warn) for one in config.data.sets
    ]
    loader = _loader(config, sets, model, mesh)
    held_out = _held_out(config, tokenizer, model, frame)
    return OpenTask(
        task=LanguageTask(
            config.training,
            weights.init,
            weights.start,
            loader,
            mesh,
            held_out,
            weights.frozen,
            after,
        ),
        units=f"{weights.of}{model.tokens.size:,} ids",
        save=_saver(config, model, files, folder, tokenizer, vqgan),
        model=model,
        inputs=_inputs(config, files, sets, folder),
    )


def _frame_size(vqgan: VQGAN | None, files: ModelFiles | None) -> int | None:
    """Returns the codes of a frame of the run's VQGAN, or of that of its base; None if unknown."""
    if vqgan is not None:
        return vqgan.config.tokens_per_frame
    if files is None or files.vqgan is None or not files.vqgan.exists():
        return None
    return files.tokens_per_frame


class _Weights(NamedTuple):
    """Weights of a run: how they begin, and those that are not trained."""

    init: Callable[[], Llama | Adapter]
    start: Callable[[], Llama | Adapter]
    frozen: Callable[[], Llama] | None = None
    of: str = ""
    """The model that is not trained, in words."""


def _weights(config: Run, files: ModelFiles | None, model: LlamaConfig, mesh: Mesh) -> _Weights:
    if config.lora.rank:
        adapted = require_adaptable(config, files, model)
        first = functools.partial(first_adapter, model, config.lora, config.seed)
        frozen = functools.partial(read_frozen, config, adapted, model, mesh)
        return _Weights(first, first, frozen, f"adapters of {matmul_parameters(model):,} weights, ")
    init = functools.partial(_first_weights, model, config.compute, config.seed)
    if files is None:
        return _Weights(init, init)
    read = functools.partial(read_llama, files, model, compute=config.compute, mesh=mesh)
    return _Weights(init, functools.partial(read, seed=config.seed))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _first_weights(config: LlamaConfig, compute: Compute, seed: int) -> Llama:
    return Llama.init(config, compute, key=jr.key(seed))


def _saver(
    config: Run,
    model: LlamaConfig,
    files: ModelFiles | None,
    folder: Path,
    tokenizer: Tokenizer,
    vqgan: VQGAN | None,
) -> Callable[[TrainState, Path], None]:
    """Returns a function that saves the model of a state, with its card, to a folder."""
    # They hold for what is trained from the model, too.
    licences = {} if files is None else legal_texts(files)
    chats = any(one.format.template == LWM_TEMPLATE for one in config.data.sets)

    kept = with_format(tokenizer, chats=chats)

    def save(state: TrainState, place: Path) -> None:
        describe = functools.partial(
            run_card,
            folder,
            place,
            dtype="float32",
            language=language_facts(model, tokenizer),
            vqgan=None if vqgan is None else vqgan.config,
            licence_files=[*licences],
        )
        if isinstance(state.model, Llama):
            save_model(
                state.model,
                kept,
                place,
                card=describe(),
                licences=licences,
                vqgan=vqgan,
                sampling=config.sampling,
            )
        else:
            assert files is not None
            describe.keywords["adapter"] = adapter_facts(state.model, config, files)
            texts = {"README.md": describe() or "", **licences}
            base = base_name(config, files)
            save_adapter(state.model, config.lora, place, base=base, tokenizer=kept, texts=texts)
        # Reports name the files that they are of, so they are compared with those now there.
        if jax.process_index() == 0 and (scores := of_reports(place, model, folder)):
            write_bytes(place / "README.md", (describe(measured=scores) or "").encode())

    return save


def _inputs(
    config: Run, files: ModelFiles | None, sets: Sequence[Examples], folder: Path
) -> dict[str, Path]:
    """Returns the files that the trained weights depend on."""
    data, found = config.data, {}
    for number, one in enumerate(sets):
        found |= named(files_of(one), f"data.sets.{number}/")
    if files is not None:
        found |= named(files.files, "init/")
        if is_checkpoint(files.source):
            found |= named(model_files(files.source.parents[1] / TOKENIZER), "init/tokenizer/")
    elif data.tokenizer is None:
        found |= named(model_files(folder / TOKENIZER), "tokenizer/")
    else:
        found |= named(model_files(Path(data.tokenizer)), "data.tokenizer/")
    if data.vqgan is not None:
        found |= named(model_files(locate_vqgan(data.vqgan)), "data.vqgan/")
    return found


def _keep_tokenizer(
    tokenizer: Tokenizer, model: LlamaConfig, sampling: VisionSampling, place: Path
) -> None:
    """Writes the tokenizer beside the checkpoints, which are models with it."""
    shutil.rmtree(place, ignore_errors=True)  # of a run that was refused
    make_folder(place)
    with writing(place):
        tokenizer.save(place)
    values = generation_config(tokenizer, model, sampling)
    write_bytes(place / "generation_config.json", to_text(values).encode())


def _tokenizer(
    config: Run, files: ModelFiles | None, folder: Path, *, resumed: bool, warn: Warn
) -> Tokenizer:
    data = config.data
    if files is not None:
        if data.tokenizer is not None:
            raise UserError(
                f"data.tokenizer {data.tokenizer} is given beside init {config.init}, which has "
                "its own; leave one of them out"
            )
        return files.tokenizer
    if data.tokenizer is not None:
        return Tokenizer.open(Path(data.tokenizer))
    if not data.vocabulary:
        raise UserError("give a tokenizer: init, data.tokenizer, or data.vocabulary to train one")
    place = folder / TOKENIZER
    with first_alone() as is_first:
        if is_first and not resumed:
            phrases = PHRASES if data.codes or data.vqgan else ()
            given = (texts(one.files, most=_MOST_CHARACTERS, warn=warn) for one in data.sets)
            train_tokenizer(itertools.chain(phrases, *given), size=data.vocabulary, folder=place)
    return Tokenizer.open(place)


def _open_set(
    config: DataSet,
    tokenizer: Tokenizer,
    tokens: TokenSpace,
    *,
    frame: int | None,
    warn: Callable[[str], None] = lambda text: None,
) -> Examples:
    examples = open_set(config.files, config.format, tokenizer, tokens, frame=frame, warn=warn)
    if config.least_tokens is None and config.most_tokens is None:
        return examples
    return Bounded(examples, config.least_tokens, config.most_tokens)


def _loader(config: Run, sets: Sequence[Examples], model: LlamaConfig, mesh: Mesh) -> Loader:
    data = config.data
    mixture = Mixture(
        weights=tuple(one.weight for one in data.sets),
        groups=tuple(one.group or "" for one in data.sets),
        streams=data.streams or data.rows,
        seed=config.seed,
        shuffle=data.shuffle,
    )
    return Loader(
        sets,
        model.tokens,
        data.packing,
        mixture,
        rows=data.rows,
        own=own_rows(mesh, data.rows),
        max_bad_share=data.max_bad_share,
        threads=data.threads,
    )


def _held_out(
    config: Run, tokenizer: Tokenizer, model: LlamaConfig, frame: int | None
) -> dict[str, HeldOut]:
    data = config.data
    return {
        one.name: HeldOut.read(
            _open_set(one, tokenizer, model.tokens, frame=frame),
            data.packing,
            model.tokens,
            most=data.held_out_rows,
            num_rows=data.rows,
            layout=config.training.layout,
        )
        for one in data.held_out
    }
