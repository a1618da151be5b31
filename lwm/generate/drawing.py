"""How pictures are to be drawn. Free of JAX, so that a command line can show it at once."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lwm.errors import UserError
from lwm.generate.writing import Writing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """How the codes of a frame are drawn; what is not said here the model says, or LWM's scripts.

    Those have guidance 5 and top-k 8192 for an image, 1 and 1000 for the frames of a video.
    """

    guidance: float | None = None
    """How far to go away from what would be drawn without the prompt; 1 is no guidance."""
    temperature: float | None = None
    """Randomness; 0 takes the most likely code each time."""
    top_k: int | None = None
    """Draw from this many likeliest codes only; 0 is all."""
    top_p: float | None = None
    """Draw from the fewest codes that have this probability together."""

    def __post_init__(self):
        """Refuses what nothing can be drawn with.

        Raises:
            UserError: The value.
        """
        if self.guidance is not None and not 0 <= self.guidance <= 1000:
            raise UserError(f"guidance {self.guidance} must be from 0 to 1000; 1 is none")
        self.writing()

    def writing(self) -> Writing:
        """Returns the same rules, as they are for text; those that are not said change nothing."""
        return Writing(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k or 0,
            top_p=1.0 if self.top_p is None else self.top_p,
        )

    def over(self, default: "Drawing") -> "Drawing":
        """Returns this, and `default` where nothing is said."""
        said = {name: value for name, value in vars(self).items() if value is not None}
        return dataclasses.replace(default, **said)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawings:
    """How images and videos are drawn."""

    image: Drawing = Drawing()
    """An image, and the first frame of a video."""
    video: Drawing = Drawing()
    """The frames after the first."""

    @classmethod
    def of(cls, values: Any) -> "Drawings":
        """Reads what a model says in its `generation_config.json`.

        Raises:
            UserError: It says what nothing can be drawn with.
        """
        if not isinstance(values, Mapping):
            return cls()
        try:
            return cls(**{kind: Drawing(**how) for kind, how in values.items()})
        except TypeError:
            raise UserError(
                "its way of drawing is not known here; mend it or leave it out"
            ) from None

    def over(self, default: "Drawings") -> "Drawings":
        """Returns these, and `default` where nothing is said."""
        return Drawings(image=self.image.over(default.image), video=self.video.over(default.video))

    def unguided(self) -> "Drawings":
        """Returns these with no guidance where none is said."""
        none = Drawing(guidance=1.0)
        return self.over(Drawings(image=none, video=none))

    @property
    def are_guided(self) -> bool:
        """Whether rows without the prompt are needed."""
        return any(each.guidance not in (None, 1) for each in (self.image, self.video))


LWM = Drawings(
    image=Drawing(guidance=5.0, temperature=1.0, top_k=8192, top_p=1.0),
    video=Drawing(guidance=1.0, temperature=1.0, top_k=1000, top_p=1.0),
)
"""How LWM's scripts draw."""
