"""One update of a VQGAN, of its codebook, and of the discriminator."""

import dataclasses
from functools import partial
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

from lwm.media.pixels import from_bytes
from lwm.sharding import AXES, manual
from lwm.train.vqgan.config import VQGANTraining
from lwm.train.vqgan.discriminator import Discriminator
from lwm.train.vqgan.perceptual import LPIPS
from lwm.vqgan.model import VQGAN, scaled_to_unit

VQGANMetrics = dict[str, Float[Array, ""]]
"""Measurements of one update, by their names in the log."""


class Usage(eqx.Module):
    """Moving means of the latents assigned to each code; the codebook is `sums / counts`."""

    counts: Float[Array, " K"]
    sums: Float[Array, "K E"]

    @classmethod
    def start(cls, codebook: Float[Array, "K E"], chosen: float = 0.0) -> "Usage":
        """Returns first means, with each code `chosen` times; with 0, latents replace the codes."""
        # With the type that an update returns, or the step would compile twice.
        return cls(jnp.full(len(codebook), chosen, codebook.dtype), codebook * chosen)


class VQGANState(eqx.Module):
    """State of a run: weights, optimizers, codebook usage and counters."""

    model: VQGAN
    optimizer: optax.OptState
    usage: Usage
    discriminator: Discriminator
    discriminator_optimizer: optax.OptState
    step: Int[Array, ""]
    """Number of updates, with skipped ones."""
    bad: Int[Array, ""]
    """Number of updates in a row that were skipped as not finite."""

    @classmethod
    def start(
        cls,
        model: VQGAN,
        discriminator: Discriminator,
        optimizer: optax.GradientTransformation,
        chosen: float = 0.0,
    ) -> "VQGANState":
        """Returns the first state; see `Usage.start` for `chosen`."""
        codebook = model.quantizer.codebook
        if model.config.unit_codes:  # as long as the latents whose means the codes will be
            codebook = scaled_to_unit(codebook)
        return cls(
            model=model,
            optimizer=optimizer.init(cast(Any, model)),
            usage=Usage.start(codebook, chosen),
            discriminator=discriminator,
            discriminator_optimizer=optimizer.init(cast(Any, discriminator)),
            # Two zeros, not one twice: both are donated at the first step.
            step=jnp.zeros((), jnp.int32),
            bad=jnp.zeros((), jnp.int32),
        )


@dataclasses.dataclass(frozen=True)
class VQGANStep:
    """Update from frames sharded over all devices; all else is replicated."""

    optimizer: optax.GradientTransformation
    config: VQGANTraining

    @partial(jax.jit, static_argnums=0, donate_argnums=1)
    def __call__(
        self,
        state: VQGANState,
        frames: UInt8[Array, "A B H W C"],
        key: PRNGKeyArray,
        lpips: LPIPS | None,
    ) -> tuple[VQGANState, VQGANMetrics]:
        """Updates all; if a number is not finite, only the counters change.

        Args:
            state: Consumed.
            frames: A batches of B frames; the gradients of the batches are averaged.
            key: Key for the choice of latents that replace dead codes.
            lpips: Network of the perceptual loss, if it has a weight.
        """
        local = manual(self._local, in_specs=(P(), P(None, AXES), P(), P()), out_specs=P())
        return local(state, frames, key, lpips)

    def _local(
        self, state: VQGANState, frames: Array, key: PRNGKeyArray, lpips: LPIPS | None
    ) -> tuple[VQGANState, VQGANMetrics]:
        def accumulate(total: Any, batch: Array) -> tuple[Any, Array]:
            found, latents = self._differentiate(state, batch, lpips)
            return jax.tree.map(jnp.add, total, found), latents

        first, latents = self._differentiate(state, frames[0], lpips)
        grads, opposed, metrics = first
        if len(frames) > 1:
            (grads, opposed, metrics), more = jax.lax.scan(accumulate, first, frames[1:])
            latents = jnp.concatenate([latents, more.reshape(-1, latents.shape[-1])])
        mean = partial(jax.tree.map, lambda x: jax.lax.pmean(x, AXES) / len(frames))
        grads, opposed, metrics = mean(grads), mean(opposed), mean(metrics)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        finite &= jnp.isfinite(optax.tree.norm(opposed))
        usage, revived = self._used(state, latents, key)
        new = self._updated(state, grads, opposed, usage)
        old = dataclasses.replace(state, step=new.step, bad=state.bad + 1)
        state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
        return state, metrics | {
            "gradient_norm": norm,
            "finite": finite,
            "psnr": 10 * jnp.log10(4 / metrics["squared"]),
            "perplexity": _perplexity(usage.counts),
            "revived": revived,
        }

    def _differentiate(
        self, state: VQGANState, frames: Array, lpips: LPIPS | None
    ) -> tuple[tuple[VQGAN, Discriminator, VQGANMetrics], Float[Array, "n E"]]:
        """Returns the gradients of both models, measurements, and the latents."""
        config, weights = self.config, self.config.loss
        real = from_bytes(frames)
        quantized = state.step >= config.codebook.warmup

        def reconstruct(model: VQGAN) -> Any:
            latents = model.latents(real)
            codes = model.quantize(jax.lax.stop_gradient(latents))
            nearest = model.quantizer.codebook[codes]
            if model.config.unit_codes:
                nearest = scaled_to_unit(nearest)
            nearest = jax.lax.stop_gradient(nearest)
            # Straight-through: the gradient skips the quantization.
            chosen = latents + jax.lax.stop_gradient(nearest - latents)
            pixels = model.pixels(jnp.where(quantized, chosen, latents))
            commitment = jnp.mean(jnp.square(latents - nearest)) * quantized
            return (pixels, commitment), latents

        (pixels, commitment), back, latents = jax.vjp(reconstruct, state.model, has_aux=True)

        def compare(pixels: Array) -> tuple[Array, VQGANMetrics]:
            apart = pixels - real
            parts = {"absolute": jnp.mean(jnp.abs(apart)), "squared": jnp.mean(jnp.square(apart))}
            loss = weights.absolute * parts["absolute"] + weights.squared * parts["squared"]
            if lpips is not None and weights.perceptual:
                parts["perceptual"] = jnp.mean(lpips(pixels, real))
                loss += weights.perceptual * parts["perceptual"]
            return loss, parts

        (loss, metrics), grad = jax.value_and_grad(compare, has_aux=True)(pixels)
        opposed = jax.tree.map(jnp.zeros_like, state.discriminator)
        if weights.adversarial:
            active = self._is_opposed(state)
            more, opposed, losses = oppose(state.discriminator, pixels, real)
            scale = _norm(grad) / jnp.maximum(_norm(more), 1e-8)
            grad += jnp.where(active, weights.adversarial * scale, 0) * more
            opposed = jax.tree.map(lambda x: jnp.where(active, x, 0), opposed)
            metrics |= losses
        (grads,) = back((grad, jnp.asarray(weights.commitment, jnp.float32)))
        loss += weights.commitment * commitment
        metrics |= {"loss": loss, "commitment": commitment}
        return (grads, opposed, metrics), latents.reshape(-1, latents.shape[-1])

    def _is_opposed(self, state: VQGANState) -> Bool[Array, ""]:
        loss = self.config.loss
        return (state.step >= loss.adversarial_from) & bool(loss.adversarial)

    def _used(
        self, state: VQGANState, latents: Float[Array, "n E"], key: PRNGKeyArray
    ) -> tuple[Usage, Float[Array, ""]]:
        """Returns the moving means with dead codes replaced, and the number of these."""
        config, codebook = self.config.codebook, state.model.quantizer.codebook
        codes = state.model.quantize(latents[None, None])[0, 0]
        counts = jax.lax.psum(jnp.zeros(len(codebook)).at[codes].add(1.0), AXES)
        sums = jax.lax.psum(jnp.zeros_like(codebook).at[codes].add(latents), AXES)
        share = 1 - config.decay
        counts = config.decay * state.usage.counts + share * counts
        sums = config.decay * state.usage.sums + share * sums
        mean = len(latents) * jax.lax.axis_size(AXES) / len(codebook)
        dead = counts < config.dead_below * mean
        others = _sample(latents, len(codebook), key)
        # Counted as used half as often as the mean, so that they stay for some updates.
        counts = jnp.where(dead, mean / 2, counts)
        sums = jnp.where(dead[:, None], others * mean / 2, sums)
        return Usage(counts, sums), jnp.sum(dead).astype(jnp.float32)

    def _updated(
        self, state: VQGANState, grads: VQGAN, opposed: Discriminator, usage: Usage
    ) -> VQGANState:
        # optax's own type knows no modules.
        model, discriminator = cast(Any, state.model), cast(Any, state.discriminator)
        updates, optimizer = self.optimizer.update(cast(Any, grads), state.optimizer, model)
        model = optax.apply_updates(model, updates)
        codebook = usage.sums / usage.counts[:, None]
        model = eqx.tree_at(lambda model: model.quantizer.codebook, model, codebook)
        updates, against = self.optimizer.update(
            cast(Any, opposed), state.discriminator_optimizer, discriminator
        )
        # Before it starts, nothing decays and its steps are not counted.
        discriminator, against = jax.tree.map(
            partial(jnp.where, self._is_opposed(state)),
            (optax.apply_updates(discriminator, updates), against),
            (discriminator, state.discriminator_optimizer),
        )
        return VQGANState(
            model=model,
            optimizer=optimizer,
            usage=usage,
            discriminator=discriminator,
            discriminator_optimizer=against,
            step=state.step + 1,
            bad=jnp.zeros_like(state.bad),
        )


def oppose(
    discriminator: Discriminator, pixels: Array, real: Array
) -> tuple[Array, Discriminator, VQGANMetrics]:
    """Returns the gradients of the pixels and of a discriminator, and both losses.

    The discriminator has the hinge loss (Lim and Ye 2017).
    """

    def generator_loss(pixels: Array) -> Array:
        return -jnp.mean(discriminator(pixels))

    def hinge_loss(discriminator: Discriminator) -> Array:
        on_real = jnp.mean(jax.nn.relu(1 - discriminator(real)))
        return (on_real + jnp.mean(jax.nn.relu(1 + discriminator(pixels)))) / 2

    adversarial, more = jax.value_and_grad(generator_loss)(pixels)
    hinge, opposed = jax.value_and_grad(hinge_loss)(discriminator)
    return more, opposed, {"adversarial": adversarial, "discriminator": hinge}


def _norm(x: Array) -> Array:
    """Returns the norm over all devices."""
    return jnp.sqrt(jax.lax.psum(jnp.sum(jnp.square(x)), AXES))


def _sample(latents: Float[Array, "n E"], count: int, key: PRNGKeyArray) -> Float[Array, "K E"]:
    """Samples from the latents of all devices, the same on each."""
    own = len(latents)
    places = jr.randint(key, (count,), 0, own * jax.lax.axis_size(AXES))
    here = places // own == jax.lax.axis_index(AXES)
    return jax.lax.psum(jnp.where(here[:, None], latents[places % own], 0), AXES)


def _perplexity(counts: Float[Array, " K"]) -> Float[Array, ""]:
    """Returns the number of equally used codes of the same entropy."""
    shares = counts / jnp.sum(counts)
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(shares, shares)))
