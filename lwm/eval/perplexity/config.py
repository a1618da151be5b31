"""Configuration of a measurement of perplexity."""

import dataclasses

from lwm.errors import UserError

BLOCKS = 4
"""Blocks of targets to a window: each target has at least 1 - 1/4 of the window before it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerplexityConfig:
    """Segments of documents, and the contexts in which their last tokens are scored."""

    length: int = 1024
    """Tokens of a segment, the beginning-of-text token included if the model has one."""
    windows: tuple[int, ...] = (64, 256)
    """The last tokens of each segment are scored again with no more than so many before them."""
    targets: int = 256
    """Tokens at the end of each segment that are scored in every window."""
    segments: int = 16
    """Segments at most: the first of each document, then the second, and so on."""

    def __post_init__(self):
        """Refuses an impossible configuration.

        Raises:
            UserError: The value.
        """
        for name, least in (("length", 2), ("targets", 1), ("segments", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} {getattr(self, name)} must be {least} or more")
        if not all(window >= 1 for window in self.windows):
            raise UserError(f"windows {min(self.windows)} must be 1 or more")
        if self.targets >= self.length:
            raise UserError(
                f"targets {self.targets:,} must be fewer than the {self.length:,} tokens of a "
                "segment: nothing stands before the first; raise length, or lower targets"
            )
        if max(self.windows, default=0) > self.length - self.targets:
            raise UserError(
                f"a window of {max(self.windows):,} tokens does not shorten the context of the "
                f"last {self.targets:,} of {self.length:,} tokens; raise length, or lower windows "
                "or targets"
            )

    @property
    def all_windows(self) -> tuple[int, ...]:
        """Each window once, ascending."""
        return tuple(sorted(set(self.windows)))
