"""How an answer is to be written. Free of JAX, so that a command line can show it at once."""

import dataclasses

from lwm.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writing:
    """How an answer is written."""

    max_tokens: int = 512
    """Tokens that the answer may have; they are kept free in the context."""
    temperature: float = 0.0
    """Randomness; 0 takes the most likely token each time."""
    seed: int = 0
    """The same seed draws the same answer."""

    def __post_init__(self):
        """Refuses what no answer can be written with.

        Raises:
            UserError: The value.
        """
        if self.max_tokens < 1:
            raise UserError(f"max_tokens {self.max_tokens} leaves no room for an answer")
        if not self.temperature >= 0:
            raise UserError(f"temperature {self.temperature} must be 0 or above")
