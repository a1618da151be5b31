"""How pictures are to be drawn. Free of JAX, so that a command line can show it at once."""

import dataclasses
import math

from lwm.errors import UserError
from lwm.generate.writing import Writing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """How the codes of a frame are drawn; by default as LWM draws an image."""

    guidance: float = 5.0
    """How far to go away from what would be drawn without the prompt; 1 is no guidance."""
    temperature: float = 1.0
    """Randomness; 0 takes the most likely code each time."""
    top_k: int = 8192
    """Draw from this many likeliest codes only; 0 is all."""
    top_p: float = 1.0
    """Draw from the fewest codes that have this probability together."""

    def __post_init__(self):
        """Refuses what nothing can be drawn with.

        Raises:
            UserError: The value.
        """
        if not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise UserError(f"guidance {self.guidance} must be 0 or above; 1 is none")
        self.writing(seed=0)

    def writing(self, *, seed: int) -> Writing:
        """Returns the same rules, as they are for text."""
        return Writing(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, seed=seed)


LWM_VIDEO = Drawing(guidance=1.0, top_k=1000)
"""How LWM draws the frames of a video after the first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawings:
    """How images and videos are drawn; by default as by LWM's scripts."""

    image: Drawing = Drawing()
    """An image, and the first frame of a video."""
    video: Drawing = LWM_VIDEO
    """The frames after the first."""

    @classmethod
    def chat(cls) -> "Drawings":
        """Returns those of a conversation, in which there is nothing to be led away from."""
        return cls(image=Drawing(guidance=1.0))

    @property
    def are_guided(self) -> bool:
        """Whether rows without the prompt are needed."""
        return self.image.guidance != 1 or self.video.guidance != 1


LWM = Drawings()
CHAT = Drawings.chat()
