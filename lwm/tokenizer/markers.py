"""How images and videos stand among the ids of a stream.

    <vision> c c … c EOF c c … c EOV </vision>
    text ids ^ codes     ^ codes     text ids

The two marks are ordinary text, each encoded by itself.
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
    """All runs of ids that the tokenizer may write for `<vision>`: alone, in a line, in a word."""

    @classmethod
    def of(cls, tokenizer: Tokenizer, tokens: TokenSpace) -> "VisionMarkers":
        """Returns those of a model.

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
        """Returns the ids of frames, the marker after each included: of the last, end of vision.

        Raises:
            UserError: A code is not in the codebook.
        """
        tokens = self.tokens
        flat = codes.ravel()
        outside = np.flatnonzero((flat < 0) | (flat >= tokens.codes))
        if outside.size:
            raise UserError(
                f"{flat[outside[0]]} at place {outside[0]} is not a code from 0 to "
                f"{tokens.codes - 1}; leave ends of frames out, they are added"
            )
        ids = np.full((len(codes), codes.shape[1] + 1), tokens.end_of_frame, np.int32)
        # Not added before: codes may be of a type too narrow for ids.
        ids[:, :-1] = codes
        ids[:, :-1] += tokens.text
        ids[-1, -1] = tokens.end_of_vision
        return ids.ravel()

    def wrap(self, codes: Int[np.ndarray, "frames codes"]) -> Int[np.ndarray, " n"]:
        """Returns `<vision>`, each frame's codes and its end, `</vision>`."""
        ids = [self.opening, self.frames(codes), self.closing]
        return np.concatenate(ids).astype(np.int32)
