"""Length of a burst, by the clock."""

from lwm.generate.decoding import BURST

_SECONDS = 0.1
"""Time after which ids are handed out, and rows come and go."""
_SHARE = 2
"""Least time of the steps of a burst, as a multiple of the cost of a burst without steps.

XLA for CPU widens weights of low precision at the start of each burst.
"""


class Pace:
    """Chooses how many steps a burst takes, from the times of those before."""

    def __init__(self):
        """Starts without a measurement."""
        self._single: float | None = None  # seconds of a burst of one step
        self._step: float | None = None  # seconds of each further step

    def note(self, steps: int, seconds: float) -> None:
        """Notes the time of a burst."""
        if steps == 1:
            self._single = seconds
            if self._step is not None:
                self._step = min(self._step, seconds)
        elif self._single is not None and seconds < self._single:
            self._single = None  # it included compilation: a single step is measured again
        elif self._single is not None:
            self._step = max((seconds - self._single) / (steps - 1), seconds / steps / 4)

    def steps(self) -> int:
        """Returns the number of steps of the next burst."""
        if self._single is None:
            return 1
        if self._step is None:
            return BURST // 4
        fixed = max(0.0, self._single - self._step)
        return min(BURST, max(1, round((_SECONDS + _SHARE * fixed) / self._step)))
