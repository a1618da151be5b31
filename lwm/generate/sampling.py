"""How the next id is chosen from the logits: small frozen rules, one method each, in a row.

The order is that of Hugging Face transformers: penalty, temperature, top-k, top-p, min-p. Each rule
sees what the one before has left.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from lwm.sampling_params import SamplingParams


@runtime_checkable
class Rule(Protocol):
    """Anything that changes logits before one id of each row is chosen."""

    def __call__(
        self, logits: Float[Array, "B V"], *, seen: Bool[Array, "B V"]
    ) -> Float[Array, "B V"]:
        """Returns the logits as changed; -inf rules an id out."""
        ...


@dataclasses.dataclass(frozen=True)
class RepetitionPenalty:
    """Makes ids that the row has read or written less likely (Keskar et al. 2019, section 4.1)."""

    penalty: float

    def __call__(
        self, logits: Float[Array, "B V"], *, seen: Bool[Array, "B V"]
    ) -> Float[Array, "B V"]:
        """Divides positive logits of seen ids by the penalty and multiplies negative ones."""
        lowered = jnp.where(logits > 0, logits / self.penalty, logits * self.penalty)
        return jnp.where(seen, lowered, logits)


@dataclasses.dataclass(frozen=True)
class Temperature:
    """Flattens (above 1) or sharpens (below 1) the distribution."""

    temperature: float

    def __call__(
        self, logits: Float[Array, "B V"], *, seen: Bool[Array, "B V"]
    ) -> Float[Array, "B V"]:
        """Divides by the temperature."""
        return logits / self.temperature


@dataclasses.dataclass(frozen=True)
class TopK:
    """Keeps the k most likely ids, and those as likely as the last of them."""

    k: int

    def __call__(
        self, logits: Float[Array, "B V"], *, seen: Bool[Array, "B V"]
    ) -> Float[Array, "B V"]:
        """Rules out what is less likely than the k-th."""
        kth = jax.lax.top_k(logits, min(self.k, logits.shape[-1]))[0][:, -1:]
        return jnp.where(logits < kth, -jnp.inf, logits)


@dataclasses.dataclass(frozen=True)
class TopP:
    """Keeps the fewest ids whose probability is p together (Holtzman et al. 2020, section 3.1)."""

    p: float

    def __call__(
        self, logits: Float[Array, "B V"], *, seen: Bool[Array, "B V"]
    ) -> Float[Array, "B V"]:
        """Rules out an id if those more likely already have p."""
        falling = -jnp.sort(-logits, axis=-1)
        chances = jax.nn.softmax(falling, axis=-1)
        kept = jnp.cumsum(chances, axis=-1) - chances < self.p
        least = jnp.min(jnp.where(kept, falling, jnp.inf), axis=-1, keepdims=True)
        return jnp.where(logits < least, -jnp.inf, logits)


@dataclasses.dataclass(frozen=True)
class MinP:
    """Keeps ids at least p times as likely as the likeliest (Nguyen et al. 2024)."""

    p: float

    def __call__(
        self, logits: Float[Array, "B V"], *, seen: Bool[Array, "B V"]
    ) -> Float[Array, "B V"]:
        """Rules out the others; a ratio of chances is a difference of logits."""
        least = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(self.p)
        return jnp.where(logits < least, -jnp.inf, logits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """Applies rules in turn, then draws an id, or takes the likeliest (of equals, the first)."""

    rules: tuple[Rule, ...] = ()
    is_greedy: bool = False

    def __call__(
        self,
        logits: Float[Array, "B V"],
        *,
        seen: Bool[Array, "B V"],
        keys: Key[Array, " B"],
    ) -> Int[Array, " B"]:
        """Chooses one id for each row, with the row's own key."""
        for rule in self.rules:
            logits = rule(logits, seen=seen)
        if self.is_greedy:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


GREEDY = Sampler(is_greedy=True)


def sampler(writing: SamplingParams) -> Sampler:
    """Returns the rules that `writing` asks for; those that would change nothing are left out."""
    rules: list[Rule] = []
    if writing.repetition_penalty != 1:
        rules.append(RepetitionPenalty(writing.repetition_penalty))
    if writing.temperature == 0:
        return Sampler(rules=tuple(rules), is_greedy=True)
    if writing.temperature != 1:
        rules.append(Temperature(writing.temperature))
    if writing.top_k:
        rules.append(TopK(writing.top_k))
    if writing.top_p < 1:
        rules.append(TopP(writing.top_p))
    if writing.min_p:
        rules.append(MinP(writing.min_p))
    return Sampler(rules=tuple(rules))
