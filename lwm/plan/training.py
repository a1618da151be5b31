"""Memory that a training step needs on each device, estimated without a compiler.

Weights and optimizer are exact, but for norms and biases. The rest counts buffers of the compiled
step at its two fullest moments; `benchmarks/pods.py` compares it with TPU's own compiler.

Letters as in `lwm.model.llama`.
"""

import dataclasses
import math

from lwm.model.config import Compute, LlamaConfig, LoRA
from lwm.model.lora import num_parameters
from lwm.ops.blockwise import block_sizes
from lwm.plan.memory import MeshSizes, held_bytes

_FLOAT32 = 4


LONG = 32 * 1024
"""Tokens of a device from which attention is differentiated head by head, see `lwm.ops.ring`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """Numbers of arrays of heads that exist at a time in the attention of a layer.

    Narrow ones have the type of activations, wide ones are float32. Queries stand for all arrays
    of their shape: outputs, gradients.
    """

    narrow_queries: float
    wide_queries: float
    narrow_keys: float
    wide_keys: float


ALONE = Counts(narrow_queries=3.0, wide_queries=1.0, narrow_keys=2.0, wide_keys=2.0)
"""Where one device of `sp` has whole rows."""
RING = Counts(narrow_queries=3.0, wide_queries=4.0, narrow_keys=6.0, wide_keys=8.0)
"""Where keys, values and their gradients travel."""
WAITING = Counts(narrow_queries=4.0, wide_queries=0.0, narrow_keys=4.0, wide_keys=0.0)
"""Of all heads, while one after the other is differentiated."""
ALONE_BY_HEAD = Counts(narrow_queries=2.0, wide_queries=1.0, narrow_keys=2.0, wide_keys=2.0)
"""Of that head, beside those of all heads."""
RING_BY_HEAD = Counts(narrow_queries=2.0, wide_queries=3.0, narrow_keys=4.0, wide_keys=8.0)
"""The same where keys, values and their gradients travel."""
RING_FORWARD = Counts(narrow_queries=2.0, wide_queries=5.0, narrow_keys=6.0, wide_keys=0.0)
"""Of all heads in the forward pass, which is made once more before a layer's backward pass."""
STATES = 2.0
"""Arrays of states beside the inputs of the layers, and their gradients."""
LAYERS = 2.0
"""Gathered weights and gradients of a layer, in float32."""
TABLES = 2.0
"""Gathered token tables and gradients of one, in float32."""
TILES = 2.0
"""Arrays of the scores of a tile of attention, in float32."""
COLUMNS = 3.0
"""Arrays of the columns of a piece of a feed-forward layer, in float32."""
LOGITS = 3.0
"""Arrays of the logits of a piece, in float32."""
PROGRAM = 5_000_000
"""Bytes of any step, however small."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingNeed:
    """Bytes of each device's memory."""

    state: int
    """Weights, and the moments of the optimizer."""
    saved: int
    """Results of layers that are kept for the backward pass."""
    work: int
    """Gradients, and the fullest moment: a layer, or the loss."""
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
    lora: LoRA = LoRA(),
) -> TrainingNeed:
    """Returns the memory that an update needs.

    Args:
        config: The model.
        compute: Type of activations, rematerialisation and sizes of pieces.
        rows: Rows of a batch, over all devices.
        length: Tokens of a row.
        mesh: dp, fsdp, tp, sp.
        accumulate: Batches of an update.
        moments: Bytes of the optimizer's moments for each weight that is trained.
        lora: Adapters that are trained in place of the weights, if any.

    Raises:
        UserError: The mesh does not divide the weights beside adapters.
    """
    dp, fsdp, tp, sp = mesh
    trained, frozen = _num_weights(config) / (fsdp * tp * sp), 0
    if lora.rank:
        trained = num_parameters(config, lora) / (fsdp * tp * sp)
        frozen = held_bytes(config, mesh, lora.frozen_dtype)
    step = _Step(
        config=config,
        compute=compute,
        rows=rows / (dp * fsdp),
        tokens=rows * length / (dp * fsdp * sp),
        local=length / sp,
        tp=tp,
        is_ring=sp > 1,
    )
    # Of several batches, the sum and those of the last one.
    gradients = (1 if accumulate == 1 else 2) * _FLOAT32 * trained
    saved, offloads = step.inputs() + step.kept(), compute.remat == "offload"
    return TrainingNeed(
        state=round(frozen + (_FLOAT32 + moments) * trained),
        saved=0 if offloads else round(saved),
        work=round(PROGRAM + gradients + max(step.layer(), step.loss())),
        host=round(saved) if offloads else 0,
    )


def _num_weights(config: LlamaConfig) -> int:
    tables = 1 if config.tie_embeddings else 2
    return config.num_layers * _of_layer(config) + tables * config.tokens.rows * config.dim


def _of_layer(config: LlamaConfig) -> int:
    heads = 2 * (config.num_heads + config.num_kv_heads) * config.head_dim
    return config.dim * (heads + 3 * config.mlp_dim)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Step:
    """Bytes of the buffers of a step on one device, beside weights and their gradients."""

    config: LlamaConfig
    compute: Compute
    rows: float
    """Rows of the device."""
    tokens: float
    """Tokens of the device, those that it shares with others of `tp` included."""
    local: float
    """Tokens of one row on the device."""
    tp: int
    is_ring: bool

    def inputs(self) -> float:
        """Counts the inputs of the layers."""
        return self.config.num_layers * self._states

    def kept(self) -> float:
        """Counts what the layers keep beside their inputs."""
        lse = _FLOAT32 * self.tokens * self.config.num_heads / self.tp
        attention = self._queries(self._width) + lse
        columns = self._width * self.tokens * self.config.mlp_dim / self.tp
        each = {
            "full": 0.0,
            "attention": attention,
            "offload": attention,
            "dots": 2 * attention + 2 * self._keys(self._width) + 3 * columns + 2 * self._states,
            "none": 2 * attention + 2 * self._keys(self._width) + 5 * columns + 6 * self._states,
        }[self.compute.remat]
        return self.config.num_layers * each

    def layer(self) -> float:
        """Counts the backward pass of a layer, which begins with its forward pass."""
        weights = LAYERS * _FLOAT32 * _of_layer(self.config) / self.tp
        attention = self._attention() + self._tiles
        return STATES * self._states + attention + self._columns + weights

    def loss(self) -> float:
        """Counts the backward pass of the loss."""
        config = self.config
        table = TABLES * _FLOAT32 * config.tokens.rows * config.dim / self.tp
        together = min(self.tokens, self.compute.loss_chunk)
        logits = LOGITS * _FLOAT32 * together * config.tokens.rows / self.tp
        return STATES * self._states + table + logits

    def _attention(self) -> float:
        if self.local < LONG:
            return self._heads(RING if self.is_ring else ALONE)
        one = self._heads(RING_BY_HEAD if self.is_ring else ALONE_BY_HEAD)
        backward = self._heads(WAITING) + one / (self.config.num_kv_heads / self.tp)
        return max(backward, self._heads(RING_FORWARD) if self.is_ring else 0)

    def _heads(self, counts: Counts) -> float:
        queries = counts.narrow_queries * self._width + counts.wide_queries * _FLOAT32
        keys = counts.narrow_keys * self._width + counts.wide_keys * _FLOAT32
        return self._queries(queries) + self._keys(keys)

    @property
    def _states(self) -> float:
        return self._width * self.tokens * self.config.dim / self.tp

    @property
    def _tiles(self) -> float:
        length, heads = math.ceil(self.local), self.config.num_heads / self.tp
        queries, keys = block_sizes(length, length, math.ceil(heads), on_cpu=False)
        if self.local >= LONG:
            heads = self.config.num_heads / self.config.num_kv_heads
        return TILES * _FLOAT32 * self.rows * heads * queries * keys

    @property
    def _columns(self) -> float:
        together = self.tokens
        if self.compute.mlp_chunk is not None:
            together = min(together, self.rows * self.compute.mlp_chunk)
        return COLUMNS * _FLOAT32 * together * self.config.mlp_dim / self.tp

    def _queries(self, size: int | float) -> float:
        return size * self.tokens * self.config.num_heads * self.config.head_dim / self.tp

    def _keys(self, size: int | float) -> float:
        return size * self.tokens * self.config.num_kv_heads * self.config.head_dim / self.tp

    @property
    def _width(self) -> int:
        return 2 if self.compute.dtype == "bfloat16" else _FLOAT32
