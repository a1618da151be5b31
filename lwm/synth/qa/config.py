"""Configuration of questions and answers about long documents."""

import dataclasses

from lwm.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class QASetConfig:
    """Sizes of the chunks that a model is asked about, and of the examples that are made of them.

    The defaults are those of LWM (Liu et al. 2024, section 3.2).
    """

    chunk_tokens: int = 1000
    """Tokens of a chunk, at most; it ends with a sentence."""
    length: int = 32_768
    """Tokens of an example, at most: neighbouring chunks of a document, and the questions about
    them."""
    max_tokens: int = 128
    """Largest length of a question with its answer, in tokens."""
    chunks: int | None = None
    """Number of chunks to ask about, the first ones; by default all."""
    seed: int = 1234
    """Seed of the order in which an example asks its questions."""

    def __post_init__(self):
        """Refuses sizes out of range.

        Raises:
            UserError: The value.
        """
        for name in ("chunk_tokens", "max_tokens", "chunks"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} {value} must be 1 or more")
        if self.length < self.chunk_tokens + self.max_tokens:
            raise UserError(
                f"length {self.length:,} has no room for a chunk of {self.chunk_tokens:,} tokens "
                f"and {self.max_tokens:,} of a question with its answer; raise it"
            )
