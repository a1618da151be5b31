"""`lwm train RECIPE --plan`: stages, tokens, operations and hours of chips, without training."""

from collections.abc import Sequence

from lwm.cli.common import print_line, print_table
from lwm.model.config import Dtype, LlamaConfig
from lwm.train.config import Curriculum, Run, Stage
from lwm.train.cost import CHIPS, MFU, Cost
from lwm.train.planned import planned
from lwm.train.vqgan.config import VQGANRun


def print_plan(name: str, run: Run | Curriculum | VQGANRun) -> None:
    """Prints the plan of a recipe, with the options that were given.

    Raises:
        UserError: It is of a VQGAN, or the model that it starts from is not there.
    """
    stages = planned(name, run)
    print_table(
        [
            ("stage", "tokens", "steps", "rows", "context", "theta", "mesh", "FLOPs", *CHIPS),
            *(_row(stage, cost) for stage, cost in stages),
        ],
        numbers=True,
    )
    found = [cost for _, cost in stages]
    tokens, flops = sum(cost.tokens for cost in found), sum(cost.flops for cost in found)
    print()
    print_line(f"in all {tokens:.3g} tokens and {flops:.3g} FLOPs; {_described(found[0].model)}")
    types = sorted({cost.dtype for cost in found})
    print_line(
        f"hours of chips are at {MFU:.0%} of their peak in {' or '.join(types)}{_slower(types)}"
    )


def _slower(types: Sequence[Dtype]) -> str:
    if "float32" not in types:
        return ""
    return "; bfloat16 takes a TPU a sixth of the time of float32"


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
