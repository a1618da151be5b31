"""How an answer is to be written. Free of JAX, so that a command line can show it at once."""

import dataclasses
import math

from lwm.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writing:
    """How an answer is written."""

    max_tokens: int = 512
    """Tokens that the answer may have; they are kept free in the context."""
    temperature: float = 0.0
    """Randomness; 0 takes the most likely token each time."""
    top_k: int = 0
    """Draw from this many likeliest tokens only; 0 is all."""
    top_p: float = 1.0
    """Draw from the fewest tokens that have this probability together."""
    min_p: float = 0.0
    """Draw from tokens at least this many times as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Above 1, tokens of the prompt and the answer become less likely."""
    seed: int = 0
    """The same seed, from 0 to 2³² - 1, draws the same answer, whatever the batch."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these."""

    def __post_init__(self):
        """Refuses what no answer can be written with.

        Raises:
            UserError: The value.
        """
        if self.max_tokens < 1:
            raise UserError(f"max_tokens {self.max_tokens} leaves no room for an answer")
        for name, allowed, wanted in (
            # Below, logits overflow, and it would not be the likeliest token that is taken.
            (
                "temperature",
                self.temperature == 0 or 1e-4 <= self.temperature < math.inf,
                "0 or a number from 0.0001 up",
            ),
            ("top_k", self.top_k >= 0, "0 (all) or above"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
            ("repetition_penalty", 0.01 <= self.repetition_penalty <= 100, "from 0.01 to 100"),
            ("seed", 0 <= self.seed < 2**32, "from 0 to 4294967295"),
            ("stop", all(self.stop), "texts of at least one character"),
        ):
            if not allowed:
                raise UserError(f"{name} {getattr(self, name)} must be {wanted}")
