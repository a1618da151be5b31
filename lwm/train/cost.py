"""Cost of a run before it is made: tokens, floating-point operations and hours of chips."""

import dataclasses
from collections.abc import Sequence

from lwm.model.config import Dtype, LlamaConfig
from lwm.model.lora import num_parameters
from lwm.plan.flops import known_peak, training_flops
from lwm.train.config import Curriculum, Run

CHIPS = ("TPU v4", "TPU v5p", "NVIDIA H100")
MFU = 0.4
"""Share of the chips' peak that is assumed: that of good runs of this size at short contexts
(PaLM, Chowdhery et al. 2022, table 3, has 46%)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a run."""

    model: LlamaConfig
    tokens: int
    """Slots of all rows; padding counts."""
    dtype: Dtype
    """Type of the computation."""
    flops: float
    """Of rows that hold one example each: packed examples attend to less."""

    def chip_hours(self, chip: str, *, mfu: float = MFU) -> float | None:
        """Returns hours of a kind of chip at a share of its peak; None if unknown."""
        peak = known_peak(chip, self.dtype)
        return None if peak is None else self.flops / (peak * mfu) / 3600


def cost_of(run: Run, model: LlamaConfig) -> Cost:
    """Returns the cost of a run that trains a model of a shape.

    The operations are those of `training_flops`, with the full causal attention of each row.
    """
    training, data = run.training, run.data
    rows = training.steps * training.accumulate * data.rows
    length = data.packing.length
    pairs = rows * length * (length + 1) / 2
    tokens = rows * length
    adapters = num_parameters(model, run.lora)
    flops = training_flops(model, tokens=tokens, pairs=pairs, adapters=adapters)
    return Cost(model=model, tokens=tokens, dtype=run.compute.dtype, flops=flops)


def costs(curriculum: Curriculum, first: LlamaConfig) -> Sequence[Cost]:
    """Returns the cost of each stage; the shapes follow from that of the first stage's model."""
    found, model = [], first
    for number, stage in enumerate(curriculum.stages):
        if number:
            model = stage.run.shape_from(model)
        found.append(cost_of(stage.run, model))
    return found
