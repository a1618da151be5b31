"""`lwm train RECIPE --plan`: stages, tokens, operations and hours of chips, without training."""

from lwm.cli.common import print_line, print_table
from lwm.convert.open import open_model_files
from lwm.errors import UserError
from lwm.model.config import LlamaConfig
from lwm.train.config import Curriculum, Run, Stage
from lwm.train.cost import CHIPS, MFU, Cost, costs
from lwm.train.shape import require_model
from lwm.train.vqgan.config import VQGANRun


def print_plan(name: str, run: Run | Curriculum | VQGANRun) -> None:
    """Prints the plan of a recipe, with the options that were given.

    Raises:
        UserError: It is of a VQGAN, or the model that it starts from is not there.
    """
    if isinstance(run, VQGANRun):
        raise UserError("--plan counts the operations of language models; leave it out for VQGANs")
    if isinstance(run, Run):
        run = Curriculum(stages=(Stage(name=name.rpartition(":")[2], run=run),))
    found = costs(run, _first_shape(run.stages[0].run))
    print_table(
        [
            ("stage", "tokens", "steps", "rows", "context", "theta", "mesh", "FLOPs", *CHIPS),
            *(_row(stage, cost) for stage, cost in zip(run.stages, found, strict=True)),
        ],
        numbers=True,
    )
    tokens, flops = sum(cost.tokens for cost in found), sum(cost.flops for cost in found)
    print()
    print_line(f"in all {tokens:.3g} tokens and {flops:.3g} FLOPs; {_described(found[0].model)}")
    print_line(f"hours of chips are at {MFU:.0%} of their peak in bfloat16")


def _row(stage: Stage, cost: Cost) -> tuple[str, ...]:
    run, hours = stage.run, [cost.chip_hours(chip) for chip in CHIPS]
    rows = run.data.rows * run.training.accumulate
    return (
        stage.name,
        f"{cost.tokens:.3g}",
        f"{run.training.steps:,}",
        f"{rows:,}",
        f"{run.data.packing.length:,}",
        f"{cost.model.rope.theta:g}",
        run.mesh,
        f"{cost.flops:.2g}",
        *(
            "?" if each is None else f"{each:,.3g}" if each < 100 else f"{each:,.0f}"
            for each in hours
        ),
    )


def _described(model: LlamaConfig) -> str:
    layers = f"{model.num_layers} layers of {model.dim} and {model.mlp_dim}"
    return f"model: {layers}, {model.num_heads} heads, {model.num_kv_heads} of keys and values"


def _first_shape(run: Run) -> LlamaConfig:
    """Returns the shape of the model that the first stage trains.

    Raises:
        UserError: The run names no model, or it cannot be opened.
    """
    if run.model is not None:
        return run.shape_from(run.model)
    require_model(run)
    assert run.init is not None
    return run.shape_from(open_model_files(run.init, given=run).config)
