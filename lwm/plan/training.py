"""Memory that a training step needs on each device, estimated without a compiler.

Weights and optimizer are exact. The rest counts the buffers of the compiled step; its factors were
fitted to TPU's own compiler, see `benchmarks/pods.py`.

Letters as in `lwm.model.llama`; b and s are the rows and tokens of a device.
"""

import dataclasses

from lwm.model.config import Compute, LlamaConfig
from lwm.plan.memory import MeshSizes

_FLOAT32 = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingNeed:
    """Bytes of each device's memory."""

    state: int
    """Weights, and the moments of the optimizer."""
    saved: int
    """Results of layers that are kept for the backward pass."""
    work: int
    """Gradients, one layer, its ring, and pieces of feed-forward layers and loss."""
    host: int
    """Of the host's memory, for each device: what `offload` keeps there."""

    @property
    def total(self) -> int:
        """Sum of the first three."""
        return self.state + self.saved + self.work


def training_need(
    config: LlamaConfig,
    compute: Compute,
    *,
    rows: int,
    length: int,
    mesh: MeshSizes,
    accumulate: int = 1,
    moments: int = 2 * _FLOAT32,
) -> TrainingNeed:
    """Returns the memory that an update needs.

    Args:
        config: The model.
        compute: Type of activations, rematerialisation and sizes of pieces.
        rows: Rows of a batch, over all devices.
        length: Tokens of a row.
        mesh: dp, fsdp, tp, sp.
        accumulate: Batches of an update.
        moments: Bytes of the optimizer's moments for each weight.
    """
    dp, fsdp, tp, sp = mesh
    weights = _num_weights(config) / (fsdp * tp * sp)
    tokens = rows * length / (dp * fsdp * sp)
    step = _Step(config=config, compute=compute, rows=rows / (dp * fsdp), tokens=tokens, tp=tp)
    gradients = (1 if accumulate == 1 else 2) * _FLOAT32 * weights
    offloaded = compute.remat == "offload"
    inputs = step.inputs()
    return TrainingNeed(
        state=round((_FLOAT32 + moments) * weights),
        saved=round(step.kept() + (0 if offloaded else inputs)),
        work=round(gradients + step.ring() + step.pieces() + step.layer()),
        host=round(inputs if offloaded else 0),
    )


def _num_weights(config: LlamaConfig) -> int:
    tables = 1 if config.tie_embeddings else 2
    return config.num_layers * _of_layer(config) + tables * config.tokens.rows * config.dim


def _of_layer(config: LlamaConfig) -> int:
    heads = 2 * (config.num_heads + config.num_kv_heads) * config.head_dim
    return config.dim * (heads + 3 * config.mlp_dim)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Step:
    """Bytes of the buffers of a step on one device, beside weights and gradients."""

    config: LlamaConfig
    compute: Compute
    rows: float
    tokens: float
    tp: int

    def inputs(self) -> float:
        """Counts the inputs of the layers."""
        return self.config.num_layers * self._states(self._width)

    def kept(self) -> float:
        """Counts what the layers keep beside their inputs."""
        config, width = self.config, self._width
        heads = config.num_heads * config.head_dim
        queries = width * (heads + 2 * config.num_kv_heads * config.head_dim) / self.tp
        attention = (width * heads + _FLOAT32 * config.num_heads) / self.tp
        columns = width * config.mlp_dim / self.tp
        each = {
            "full": 0,
            "attention": attention,
            "offload": attention,
            "dots": attention + queries + 3 * columns + 2 * width * config.dim,
            "none": 2 * (attention + queries) + 5 * columns + 8 * width * config.dim,
        }[self.compute.remat]
        return config.num_layers * self.tokens * each

    def ring(self) -> float:
        """Counts queries, keys and values, their gradients, and what the ring receives."""
        heads = 4 * self.config.num_heads + 8 * self.config.num_kv_heads
        return self.tokens * _FLOAT32 * heads * self.config.head_dim / self.tp

    def pieces(self) -> float:
        """Counts the columns of a piece of a feed-forward layer, and the logits of one."""
        compute, config = self.compute, self.config
        together = self.tokens
        if compute.mlp_chunk is not None:
            together = min(together, self.rows * compute.mlp_chunk)
        columns = together * config.mlp_dim
        logits = min(self.tokens, compute.loss_chunk) * config.tokens.rows
        return 3 * _FLOAT32 * (columns + logits) / self.tp

    def layer(self) -> float:
        """Counts the gathered weights of a layer and of a table, and states beside the inputs."""
        table = self.config.tokens.rows * self.config.dim
        gathered = 2 * _FLOAT32 * (_of_layer(self.config) + table) / self.tp
        return gathered + 10 * self._states(self._width)

    def _states(self, width: int) -> float:
        return width * self.tokens * self.config.dim

    @property
    def _width(self) -> int:
        return 2 if self.compute.dtype == "bfloat16" else _FLOAT32
