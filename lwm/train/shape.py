"""The model that a run trains: its shape, token space and position embedding, and their checks."""

import dataclasses
import functools
from pathlib import Path

from lwm.convert.open import ModelFiles
from lwm.data.paths import Warn
from lwm.data.sets import require_codes_of
from lwm.errors import UserError
from lwm.model.config import LlamaConfig
from lwm.tokenizer.tokenizer import Tokenizer
from lwm.tokens import TokenSpace
from lwm.train.config import Run
from lwm.vqgan.checkpoint import read_vqgan
from lwm.vqgan.model import VQGAN


def require_model(config: Run) -> None:
    """Refuses wrong settings of the model, before a tokenizer for it is trained.

    Raises:
        UserError: The run names no model, or two, or rows are longer than its context.
    """
    if config.init is None:
        if config.model is None:
            raise UserError(
                "the run has no model; give its shape, or init to start from another model"
            )
        if config.config is not None or config.codes is not None:
            raise UserError("--config and --codes are of a model to start from; give --init, too")
    length = config.data.packing.length
    if config.context is not None and length > config.context:
        raise UserError(
            f"rows of {length} tokens exceed --context {config.context}; give at least {length}, "
            "or shorter rows with --data.packing.length"
        )


def model_config(
    config: Run,
    files: ModelFiles | None,
    tokenizer: Tokenizer,
    vqgan: VQGAN | None,
    warn: Warn,
) -> LlamaConfig:
    """Returns the shape of the model to train, with its token space.

    Raises:
        UserError: Sizes do not fit together.
    """
    codes = config.data.codes
    if vqgan is not None:
        if codes not in (0, vqgan.config.codes):
            raise UserError(
                f"data.codes is {codes}, but {config.data.vqgan} has {vqgan.config.codes}; "
                "leave it out"
            )
        codes = vqgan.config.codes
    _require_own_codes(config, None if files is None else files.vqgan, vqgan, warn)
    if files is not None:
        model = files.training_config(codes=codes)
        _require_shape_of(model, config)
        _warn_of_rope(config, model, warn)
    else:
        assert config.model is not None  # see `require_model`
        tokens = TokenSpace.of(tokenizer.vocab_size, codes)
        model = config.applied(dataclasses.replace(config.model, tokens=tokens))
    length = config.data.packing.length
    if length <= model.max_context:
        return model
    warn(
        f"rows of {length} tokens exceed the model's context of {model.max_context}; RoPE's theta "
        f"stays {model.rope.theta:g}: --theta and --context change both"
    )
    return dataclasses.replace(model, max_context=length)


def _require_own_codes(config: Run, beside: Path | None, vqgan: VQGAN | None, warn: Warn) -> None:
    """Refuses codes of another VQGAN than the run's, or if it has none, than that of its base."""
    if vqgan is None and (beside is None or not beside.exists()):
        return

    @functools.cache
    def own() -> VQGAN:
        if vqgan is not None:
            return vqgan
        assert beside is not None
        return read_vqgan(beside)

    for one in config.data.sets + config.data.held_out:
        require_codes_of(one.files, own, warn=warn)


def _require_shape_of(there: LlamaConfig, config: Run) -> None:
    """Refuses a run whose model has another shape than the one that it starts from."""
    for field in dataclasses.fields(config.model or there):
        if config.model is None or field.name in ("tokens", "init_std"):
            continue
        asked, found = getattr(config.model, field.name), getattr(there, field.name)
        if asked != found:
            raise UserError(
                f"the run's model has {field.name} {asked}, but init {config.init} has {found}; "
                "leave the model out, and change RoPE and context by theta, context and "
                "rope_scaling of the run"
            )


def _warn_of_rope(config: Run, model: LlamaConfig, warn: Warn) -> None:
    """Warns of the position embedding that a run changes, and of what of it stays."""
    changes = (config.theta, config.context, config.stretch, config.rope_scaling)
    if all(change is None for change in changes):
        return
    rope, scaling = model.rope, ""
    if rope.scaling is not None:
        kept = "kept; --rope-scaling none drops it" if config.rope_scaling is None else "as given"
        scaling = f", and its scaling is {kept}"
    warn(f"RoPE's theta is {rope.theta:g} for a context of {model.max_context:,} tokens{scaling}")
