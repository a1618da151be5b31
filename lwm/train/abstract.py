"""Programs of a training run as shapes on a mesh: the first weights, and one update."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
from jax.sharding import AbstractMesh, Mesh, PartitionSpec as P

from lwm.data.example import MODALITIES, Batch
from lwm.errors import UserError
from lwm.model.config import Dtype, LlamaConfig, Storage
from lwm.model.llama import Llama, check_mesh
from lwm.model.lora import Adapter
from lwm.ops.layout import order
from lwm.plan.program import Program, on, placed, used
from lwm.sharding import BATCH, ROWS, TOKENS, require_divisible
from lwm.train.config import Run
from lwm.train.optimizer import build_optimizer
from lwm.train.step import TrainState, TrainStep


def training_programs(
    run: Run, model: LlamaConfig, mesh: Mesh | AbstractMesh
) -> tuple[Program, Program]:
    """Returns the programs that make the first weights and that update them.

    Args:
        run: The settings.
        model: Shape of the model that the run trains.
        mesh: The devices.

    Raises:
        UserError: Weights or batches do not divide over the mesh, or the schedule over the steps.
    """
    require_trainable(run, model, mesh)
    optimizer = build_optimizer(run.training.optimizer, run.training.steps)

    def init_model() -> Llama:
        return Llama.init(model, run.compute, key=jr.key(run.seed))

    def init_adapter() -> Adapter:
        return Adapter.init(model, run.lora, key=jr.key(run.seed))

    init, frozen = init_model, None
    with used(mesh):
        if run.lora.rank:
            init, dtype = init_adapter, jnp.dtype(_plain(run.lora.frozen_dtype))
            frozen = placed(jax.eval_shape(init_model), mesh, dtype=dtype)
        state = jax.eval_shape(lambda: TrainState.start(init(), optimizer))
    index = on(mesh, run.data.packing.length, dtype=jnp.int32, spec=P())
    step = TrainStep(optimizer, run.training.loss)
    given = step, placed(state, mesh), _batches(run, mesh), index, frozen
    return Program("init", jax.jit(init), ()), Program("update", TrainStep.__call__, given)


def _plain(held: Storage) -> Dtype:
    if held not in ("float32", "bfloat16"):
        raise UserError(
            f"the update cannot be traced with frozen weights in {held}; give bfloat16, or plan "
            "without --topology"
        )
    return held


def require_trainable(run: Run, model: LlamaConfig, mesh: Mesh | AbstractMesh) -> None:
    """Checks that weights, rows and tokens divide over a mesh.

    Raises:
        UserError: They do not; names the size and its divisor.
    """
    length = run.data.packing.length
    check_mesh(model, mesh)
    require_divisible(mesh, "rows of the batch", run.data.rows, BATCH)
    require_divisible(mesh, "tokens of a row", length, ("sp",))
    order(run.training.layout, length, mesh.shape["sp"])


def _batches(run: Run, mesh: Mesh | AbstractMesh) -> Batch:
    shape = run.training.accumulate, run.data.rows
    tokens = functools.partial(on, mesh, *shape, run.data.packing.length, spec=P(None, *TOKENS))
    ids = tokens(dtype=jnp.int32)
    return Batch(
        tokens=ids,
        targets=ids,
        segments=ids,
        positions=ids,
        weights=tokens(dtype=jnp.float32),
        counts=on(mesh, *shape, len(MODALITIES), dtype=jnp.float32, spec=P(None, *ROWS)),
    )
