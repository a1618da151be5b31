"""Token ids of text and vision in one range; the only place that knows their numbers.

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
    """Token space of one model: numbers of text and vision ids, and the vision markers."""

    text: int
    """V: size of the text tokenizer's vocabulary."""
    vision: int = 0
    """U: number of vision ids, markers and unused ids included."""
    codes: int = 0
    """Entries of the vision codebook, which come first among the vision ids."""

    @classmethod
    def of(cls, text: int, codes: int) -> "TokenSpace":
        """Returns the space of a vocabulary and a codebook; without codes, of text alone."""
        return cls(text=text, vision=codes + 2 if codes else 0, codes=codes)

    def __post_init__(self):
        """Checks that the codebook and its two markers fit.

        Raises:
            ValueError: They do not.
        """
        if self.vision and self.codes + 2 > self.vision:
            raise ValueError(
                f"{self.codes} codes, end-of-frame and end-of-vision need "
                f"{self.codes + 2} vision ids, but there are {self.vision}"
            )

    @property
    def size(self) -> int:
        """V + U: number of ids in use."""
        return self.text + self.vision

    @property
    def rows(self) -> int:
        """Number of rows of the embedding table and columns of the head, padding included."""
        return -(-self.size // _ROW_MULTIPLE) * _ROW_MULTIPLE

    @property
    def end_of_frame(self) -> int:
        """Id after every frame of a video but the last."""
        return self.text + self.codes

    @property
    def end_of_vision(self) -> int:
        """Id after an image or the last frame of a video."""
        return self.text + self.codes + 1
