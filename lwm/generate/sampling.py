"""How the next id is chosen from the logits: small frozen objects, one method each."""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


@runtime_checkable
class Sampler(Protocol):
    """Anything that chooses one id for each row."""

    def __call__(self, logits: Float[Array, "B V"], *, keys: Key[Array, " B"]) -> Int[Array, " B"]:
        """Chooses with one random key a row."""
        ...


@dataclasses.dataclass(frozen=True)
class Greedy:
    """Takes the most likely id; of equals, the first."""

    def __call__(self, logits: Float[Array, "B V"], *, keys: Key[Array, " B"]) -> Int[Array, " B"]:
        """Chooses without using the keys."""
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Temperature:
    """Draws from softmax(logits / temperature)."""

    temperature: float = 1.0

    def __post_init__(self):
        """Refuses a temperature that divides by nothing.

        Raises:
            ValueError: The temperature is not above 0.
        """
        if not self.temperature > 0:
            raise ValueError(f"temperature {self.temperature} must be above 0; use Greedy for 0")

    def __call__(self, logits: Float[Array, "B V"], *, keys: Key[Array, " B"]) -> Int[Array, " B"]:
        """Draws one id for each row with the row's own key."""
        draw = jax.vmap(jax.random.categorical)
        return draw(keys, logits / self.temperature).astype(jnp.int32)


def by_temperature(temperature: float) -> Sampler:
    """Returns `Greedy` for 0 and `Temperature` for anything above."""
    return Greedy() if temperature == 0 else Temperature(temperature)
