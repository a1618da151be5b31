"""The one range of ids that text and vision share; the only place that knows its numbers.

    [0, V)        text
    [V, V + U)    vision: the codebook, then end-of-frame, end-of-vision, then unused ids
    [V + U, rows) padding of the table, never produced

A text model has U = 0.
"""

import dataclasses

# Tables are padded to a multiple of this, so that they split evenly over `tp` on any mesh and
# the shape of a weight never depends on the mesh.
_ROW_MULTIPLE = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenSpace:
    """The ids of one model: how many are text, how many vision, and what the vision ids mean."""

    text: int
    """V: the size of the text tokenizer's vocabulary."""
    vision: int = 0
    """U: all vision ids, special and unused ones included."""
    codes: int = 0
    """Entries of the vision codebook: the first of the vision ids."""

    @classmethod
    def of(cls, text: int, codes: int) -> "TokenSpace":
        """Returns the space of a vocabulary and a codebook; 0 codes are no vision."""
        return cls(text=text, vision=codes + 2 if codes else 0, codes=codes)

    def __post_init__(self):
        """Refuses a space in which the codebook and its two markers do not fit."""
        if self.vision and self.codes + 2 > self.vision:
            raise ValueError(
                f"{self.codes} codes, end-of-frame and end-of-vision need "
                f"{self.codes + 2} vision ids, but there are {self.vision}"
            )

    @property
    def size(self) -> int:
        """V + U: the ids that mean something."""
        return self.text + self.vision

    @property
    def rows(self) -> int:
        """Rows of the embedding table and columns of the head, padding included."""
        return -(-self.size // _ROW_MULTIPLE) * _ROW_MULTIPLE

    @property
    def end_of_frame(self) -> int:
        """The id after every frame of a video but the last."""
        return self.text + self.codes

    @property
    def end_of_vision(self) -> int:
        """The id after an image or the last frame of a video."""
        return self.text + self.codes + 1
