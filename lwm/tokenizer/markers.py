"""Token layout of images and videos.

    <vision> c c … c EOF c c … c EOV </vision>
    text ids ^ codes     ^ codes     text ids

The two markers are ordinary text, each encoded by itself.
"""

import dataclasses

import numpy as np
from jaxtyping import Int

from lwm.errors import UserError
from lwm.tokenizer.tokenizer import Tokenizer
from lwm.tokens import TokenSpace

OPENING, CLOSING = "<vision>", "</vision>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionMarkers:
    """The ids around the frames of one model."""

    tokens: TokenSpace
    opening: tuple[int, ...]
    closing: tuple[int, ...]
    openings: tuple[tuple[int, ...], ...]
    """All encodings of `<vision>`: alone, after a space, inside a word."""

    @classmethod
    def of(cls, tokenizer: Tokenizer, tokens: TokenSpace) -> "VisionMarkers":
        """Returns the markers of a model.

        Raises:
            UserError: The model reads no vision.
        """
        if not tokens.vision:
            raise UserError("the model reads no vision: it has text ids only")
        opening = tuple(tokenizer.encode(OPENING, special=False))
        runs = {opening}
        for before in ("a", "a "):
            ids = tokenizer.encode(before + OPENING, special=False)
            for length in range(1, len(ids)):
                if tokenizer.decode(ids[-length:], continues=True).strip() == OPENING:
                    runs.add(tuple(ids[-length:]))
                    break
        return cls(
            tokens=tokens,
            opening=opening,
            closing=tuple(tokenizer.encode(CLOSING, special=False)),
            openings=tuple(sorted(runs)),
        )

    def frames(self, codes: Int[np.ndarray, "frames codes"]) -> Int[np.ndarray, " n"]:
        """Returns the ids of frames, each followed by end-of-frame, the last by end-of-vision.

        Raises:
            UserError: A code is not in the codebook.
        """
        tokens = self.tokens
        flat = codes.ravel()
        outside = np.flatnonzero((flat < 0) | (flat >= tokens.codes))
        if outside.size:
            raise UserError(
                f"{flat[outside[0]]} at place {outside[0]} is not a code from 0 to "
                f"{tokens.codes - 1}; leave out ends of frames, they are added"
            )
        ids = np.full((len(codes), codes.shape[1] + 1), tokens.end_of_frame, np.int32)
        # Added in place: the type of the codes may be too narrow for ids.
        ids[:, :-1] = codes
        ids[:, :-1] += tokens.text
        ids[-1, -1] = tokens.end_of_vision
        return ids.ravel()

    def size(self, frames: int, tokens_per_frame: int) -> int:
        """Returns the number of ids of an image or video."""
        return len(self.opening) + frames * (tokens_per_frame + 1) + len(self.closing)

    def wrap(self, codes: Int[np.ndarray, "frames codes"]) -> Int[np.ndarray, " n"]:
        """Returns the ids of `<vision>`, the frames and `</vision>`."""
        ids = [self.opening, self.frames(codes), self.closing]
        return np.concatenate(ids).astype(np.int32)
