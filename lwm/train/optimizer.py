"""AdamW, its schedule, and which weights decay."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from lwm.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate: a linear warm-up from 0, then one of three courses."""

    peak: float = 3e-4
    warmup: int = 100
    """Steps until the peak."""
    course: Literal["constant", "cosine", "wsd"] = "cosine"
    """After the warm-up: the peak; half a cosine down to `end`; or the peak, and linearly to `end`
    over the last `decay` steps (warm-up, stable, decay)."""
    end: float = 0.0
    decay: int = 0
    """Steps of the fall of `wsd`."""

    def build(self, steps: int) -> optax.Schedule:
        """Returns the rate of each of `steps` updates, the first of which is numbered 0.

        Raises:
            UserError: The warm-up and the fall do not fit into the run.
        """
        if self.warmup + self.decay >= steps:
            raise UserError(
                f"a warm-up of {self.warmup} steps and a fall of {self.decay} do not fit into "
                f"{steps} steps; shorten them"
            )
        if self.course == "cosine":
            return optax.warmup_cosine_decay_schedule(0.0, self.peak, self.warmup, steps, self.end)
        warmup = optax.linear_schedule(0.0, self.peak, self.warmup)
        if self.course == "constant":
            return optax.join_schedules([warmup, optax.constant_schedule(self.peak)], [self.warmup])
        fall = optax.linear_schedule(self.peak, self.end, self.decay)
        stable = optax.constant_schedule(self.peak)
        return optax.join_schedules([warmup, stable, fall], [self.warmup, steps - self.decay])


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019); defaults are LWM's."""

    schedule: Schedule = Schedule()
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decays: Literal["matrices", "all"] = "matrices"
    """Which weights decay: all but norms and biases, or, as in LWM, all."""
    clip: float = 1.0
    """The largest norm of all gradients together; longer ones are scaled down to it."""
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """What the first moment is stored in."""

    def build(self, steps: int) -> optax.GradientTransformation:
        """Returns the transformation of gradients into updates for a run of `steps`."""
        return optax.chain(
            optax.clip_by_global_norm(self.clip),
            optax.scale_by_adam(self.b1, self.b2, self.eps, mu_dtype=jnp.dtype(self.moment_dtype)),
            optax.add_decayed_weights(
                self.weight_decay, mask=matrices if self.decays == "matrices" else None
            ),
            optax.scale_by_learning_rate(self.schedule.build(steps)),
        )


def matrices(model: PyTree) -> PyTree:
    """Says which weights are matrices: not those of norms, and not biases."""

    def is_matrix(path, _):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return "norm" not in name and not name.endswith((".bq", ".bk", ".bv"))

    return jax.tree_util.tree_map_with_path(is_matrix, model)
