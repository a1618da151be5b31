"""Stages of a recipe with the shapes that they train, known before any of them begins."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp

from lwm.convert.open import open_model_files
from lwm.errors import UserError
from lwm.model.config import LlamaConfig
from lwm.plan.memory import MeshSizes
from lwm.plan.training import TrainingNeed, training_need
from lwm.tokenizer.tokenizer import Tokenizer
from lwm.tokens import TokenSpace
from lwm.train.config import Curriculum, Run, Stage
from lwm.train.cost import Cost, costs
from lwm.train.shape import require_model
from lwm.train.vqgan.config import VQGANRun
from lwm.vqgan.checkpoint import read_vqgan_config


def planned(name: str, recipe: Run | Curriculum | VQGANRun) -> list[tuple[Stage, Cost]]:
    """Returns the stages of a recipe, one if it is a run, with their shapes and costs.

    Args:
        name: The recipe's name.
        recipe: Its settings.

    Raises:
        UserError: It is of a VQGAN, names no model, or the model that it starts from, its
            tokenizer or its VQGAN cannot be opened.
    """
    if isinstance(recipe, VQGANRun):
        raise UserError(f"{name} trains a VQGAN; plans are of language models")
    if isinstance(recipe, Run):
        recipe = Curriculum(stages=(Stage(name=name.rpartition(":")[2], run=recipe),))
    stages = tuple(_with_codes(stage) for stage in recipe.stages)
    first = _first_shape(stages[0].run)
    return list(zip(stages, costs(Curriculum(stages=stages), first), strict=True))


def _with_codes(stage: Stage) -> Stage:
    """Returns a stage whose run states the codes of its VQGAN."""
    run = stage.run
    if run.data.vqgan is None:
        return stage
    data = dataclasses.replace(run.data, codes=read_vqgan_config(run.data.vqgan).codes)
    return dataclasses.replace(stage, run=dataclasses.replace(run, data=data))


def _first_shape(run: Run) -> LlamaConfig:
    """Returns the shape of the model that the first stage trains."""
    require_model(run)
    if run.model is None:
        assert run.init is not None
        return run.shape_from(open_model_files(run.init, given=run).config)
    if run.init is not None:
        return run.shape_from(run.model)
    # The model is new, and its ids are those of a tokenizer that may not exist yet.
    text = run.data.vocabulary or run.model.tokens.text
    if run.data.tokenizer is not None:
        text = Tokenizer.open(Path(run.data.tokenizer)).vocab_size
    return run.shape_from(dataclasses.replace(run.model, tokens=TokenSpace(text=text)))


def memory_of(run: Run, model: LlamaConfig, mesh: MeshSizes) -> TrainingNeed:
    """Returns an estimate of the memory that the updates of a run need on each device."""
    optimizer, data = run.training.optimizer, run.data
    types = optimizer.moment_dtype, optimizer.second_moment_dtype
    return training_need(
        model,
        run.compute,
        rows=data.rows,
        length=data.packing.length,
        mesh=mesh,
        accumulate=run.training.accumulate,
        moments=sum(jnp.dtype(each).itemsize for each in types),
        lora=run.lora,
    )
