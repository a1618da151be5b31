"""RULER's variable tracking: a chain of assignments in noise, and the variables of its value."""

import random
import string
from collections.abc import Callable, Sequence

from lwm.eval.ruler.needles import NOISE
from lwm.eval.ruler.sample import Draft, NoRoomError, Sample, fit, random_of

HOPS = 4
MESSAGE = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    "{context}\nQuestion: Find all variables that are assigned the value {value} in the text above."
)
OPENING = (
    " Answer: According to the chain(s) of variable assignment in the text above, {count} "
    "variables are assigned the value {value}, they are: "
)
EXAMPLE_TOKENS = 500
"""Tokens of the example, at most."""
_LETTERS, _EXAMPLE_LETTERS = 5, 3


class Chain(Sample):
    """A variable that is assigned a number, and others that are assigned the one before."""

    least = HOPS + 1

    def __init__(self, generator: random.Random, *, letters: int):
        """Draws the names and the number."""
        self._value = generator.randrange(10_000, 99_999)
        names: list[str] = []
        while len(names) < HOPS + 1:
            name = "".join(generator.choices(string.ascii_uppercase, k=letters))
            if name not in names:
                names.append(name)
        self.names = tuple(names)
        pairs = zip(names[1:], names[:-1], strict=True)
        self._lines = [f"VAR {names[0]} = {self._value}"]
        # The space at the end of a line is RULER's.
        self._lines += [f"VAR {name} = VAR {before} " for name, before in pairs]
        self._places = generator.random()

    def draft(self, units: int) -> Draft:
        """Returns the question with so many lines of noise."""
        places = sorted(random_of(self._places, units).sample(range(units), len(self._lines)))
        lines = [NOISE] * units
        for shift, (place, line) in enumerate(zip(places, self._lines, strict=True)):
            lines.insert(place + shift, line)
        return Draft(
            message=MESSAGE.format(context="\n".join(lines), value=self._value),
            opening=OPENING.format(count=len(self.names), value=self._value),
            answers=self.names,
        )


class VariableSample(Chain):
    """A chain after a short example with its answer."""

    def __init__(self, generator: random.Random, *, example_units: int):
        """Draws both chains."""
        super().__init__(generator, letters=_LETTERS)
        example = Chain(generator, letters=_EXAMPLE_LETTERS)
        draft = example.draft(example_units)
        self._example = f"{draft.message}{draft.opening} {' '.join(draft.answers)}\n\n"

    def draft(self, units: int) -> Draft:
        """Returns example and question; the question has so many lines of noise."""
        draft = super().draft(units)
        return Draft(
            message=self._example + draft.message, opening=draft.opening, answers=draft.answers
        )


def example_units(encode: Callable[[str], Sequence[int]]) -> int:
    """Returns the lines of noise of an example of at most 500 tokens, with a tokenizer."""
    chain = Chain(random_of("vt example"), letters=_EXAMPLE_LETTERS)
    try:
        fitted = fit(chain, lambda message, opening: encode(message + opening), EXAMPLE_TOKENS)
    except NoRoomError:
        return Chain.least
    return fitted.units
