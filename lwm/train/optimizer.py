"""AdamW, its schedule, and which weights decay."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from lwm.errors import UserError
from lwm.train.config import AdamW, Schedule


def build_schedule(config: Schedule, steps: int) -> optax.Schedule:
    """Returns the learning rate of each of `steps` updates, counted from 0.

    Raises:
        UserError: Warm-up and decay do not fit into the run.
    """
    start, peak, warmup, decay = config.start, config.peak, config.warmup, config.decay
    if warmup + decay >= steps:
        raise UserError(
            f"a warm-up of {warmup} steps and a decay of {decay} do not fit into "
            f"{steps} steps; shorten them"
        )
    if config.shape == "cosine":
        return optax.warmup_cosine_decay_schedule(start, peak, warmup, steps, config.end)
    rise = optax.linear_schedule(start, peak, warmup)
    if config.shape == "constant":
        return optax.join_schedules([rise, optax.constant_schedule(peak)], [warmup])
    falling = optax.linear_schedule(peak, config.end, decay)
    return optax.join_schedules(
        [rise, optax.constant_schedule(peak), falling], [warmup, steps - decay]
    )


@functools.cache
def build_optimizer(config: AdamW, steps: int) -> optax.GradientTransformation:
    """Returns the optimizer of a run of `steps`.

    Equal settings give the same object, so that updates by it are traced and compiled once.

    Raises:
        UserError: See `build_schedule`.
    """
    adam = optax.scale_by_adam(
        config.b1, config.b2, config.eps, mu_dtype=jnp.dtype(config.moment_dtype)
    )
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        _second_moment_stored_as(adam, jnp.dtype(config.second_moment_dtype)),
        optax.add_decayed_weights(
            config.weight_decay, mask=matrices if config.decays == "matrices" else None
        ),
        optax.scale_by_learning_rate(build_schedule(config.schedule, steps)),
    )


def matrices(model: PyTree) -> PyTree:
    """Marks the weights that are matrices: all but those of norms, biases and codebooks."""

    def is_matrix(path, _):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        other = (".bq", ".bk", ".bv", ".bias", ".codebook")
        return "norm" not in name and not name.endswith(other)

    return jax.tree_util.tree_map_with_path(is_matrix, model)


def _second_moment_stored_as(
    adam: optax.GradientTransformation, dtype: jnp.dtype
) -> optax.GradientTransformation:
    """Stores the second moment in a type, as optax offers for the first; computes in float32."""
    if dtype == jnp.float32:
        return adam

    def cast(state: Any, dtype: jnp.dtype) -> Any:
        return state._replace(nu=jax.tree.map(lambda x: x.astype(dtype), state.nu))

    def update(updates: PyTree, state: Any, params: Any = None) -> tuple[PyTree, Any]:
        updates, state = adam.update(updates, cast(state, jnp.dtype("float32")), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(lambda params: cast(adam.init(params), dtype), update)
