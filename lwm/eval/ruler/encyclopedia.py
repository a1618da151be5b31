"""Generated encyclopedia of invented towns, people and ships, with questions that have one answer.

Its names are invented, so that no answer is known without the documents. A question of one hop is
answered by one document; one of two hops asks about a person that is named in another document.
"""

import dataclasses
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

_ONSETS = (
    *"bcdfghklmnprstvwyz",
    *("br", "dr", "gr", "kr", "st", "tr"),
)
_VOWELS = tuple("aeiou")
_CODAS = ("", "", "", "", "l", "m", "n", "r", "s")
_TOWNS = tuple(["berg", "ford", "holm", "mouth", "port", "stad", "ton", "vale", "wick", "by"])
_TRADES = ("weaving", "salt mining", "boat building", "glassmaking", "sheep farming", "printing")
_BUILDINGS = ("lighthouse", "granary", "observatory", "guildhall", "chapel", "covered market")
_MONTHS = ("March", "May", "June", "August", "September", "November")
_PROFESSIONS = ("botanist", "cartographer", "composer", "engineer", "physician", "poet")
_ANIMALS = ("parrot", "greyhound", "tortoise", "goat", "raven", "pony")
_VESSELS = ("schooner", "barque", "paddle steamer", "brig", "cutter", "trawler")
_CARGO = ("timber", "tea", "copper ore", "grain", "wool", "machine parts")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """A question, its answers, and the documents that it needs."""

    query: str
    answers: tuple[str, ...]
    needed: tuple[str, ...]


class _Entry(NamedTuple):
    """A document about a town, a person or a ship."""

    title: str
    text: str
    role: str
    """The role that the document gives to a person."""
    questions: tuple[tuple[str, str], ...]
    """Questions that it answers, each with its answer."""


class _Names:
    """Invents names, none of them twice."""

    def __init__(self, generator: random.Random):
        self._choose = generator.choice
        self._draw = generator
        self._seen: set[str] = set()

    def town(self) -> str:
        return self._once(lambda: self._word(2) + self._choose(_TOWNS))

    def person(self) -> str:
        return self._once(lambda: f"{self._word(2)} {self._word(2)}")

    def thing(self) -> str:
        return self._once(lambda: self._word(3))

    def number(self) -> str:
        return self._once(lambda: str(self._draw.randrange(10_000, 1_000_000)))

    def _word(self, syllables: int) -> str:
        parts = [
            self._choose(_ONSETS) + self._choose(_VOWELS) + self._choose(_CODAS)
            for _ in range(syllables)
        ]
        return "".join(parts).capitalize()

    def _once(self, make: Callable[[], str]) -> str:
        while (made := make()) in self._seen:
            pass
        self._seen.add(made)
        return made


class Encyclopedia:
    """Documents in the order in which they are invented; the same generator gives the same ones."""

    def __init__(self, generator: random.Random):
        """Starts without any document."""
        self._names = _Names(generator)
        self._choose, self._draw = generator.choice, generator.randrange

    def one_hop(self) -> Asked:
        """Invents a document and a question that it answers."""
        make = self._choose((self._town, self._life, self._ship))
        entry = make(self._names.person())
        query, answer = self._choose(entry.questions)
        return Asked(query=query, answers=(answer,), needed=(entry.text,))

    def two_hops(self) -> Asked:
        """Invents two documents and a question about a person whom the first one names."""
        person = self._names.person()
        make = self._choose((self._town, self._ship))
        first, second = make(person), self._life(person)
        query, answer = self._choose(second.questions)
        return Asked(
            query=query.replace(person, first.role),
            answers=(answer,),
            needed=tuple(f"{entry.title}\n{entry.text}" for entry in (first, second)),
        )

    def paragraphs(self) -> Iterator[str]:
        """Yields documents without titles, as SQuAD's."""
        while True:
            yield from self.one_hop().needed

    def articles(self) -> Iterator[str]:
        """Yields documents with titles, as HotpotQA's, each followed by the one it leads to."""
        while True:
            yield from self.two_hops().needed

    def _years(self) -> tuple[int, int]:
        first = self._draw(1650, 1900)
        return first, first + self._draw(20, 90)

    def _town(self, founder: str) -> "_Entry":
        names, choose = self._names, self._choose
        town, province, river, feast = names.town(), names.thing(), names.thing(), names.thing()
        people, architect, building = names.number(), names.person(), choose(_BUILDINGS)
        founded, burned = self._years()
        text = (
            f"{town} is a town in the province of {province}, on the river {river}. It was founded "
            f"in {founded} by {founder}, and has {people} inhabitants, most of whom live by "
            f"{choose(_TRADES)}. Its {building} was designed by {architect} and burned down in "
            f"{burned}, but was rebuilt within {choose('3456789')} years. Every "
            f"{choose(_MONTHS)} the people of the town celebrate the feast of {feast}."
        )
        questions = (
            (f"On which river does the town of {town} lie?", river),
            (f"Who founded the town of {town}?", founder),
            (f"How many inhabitants does the town of {town} have?", people),
            (f"Who designed the {building} of {town}?", architect),
            (f"Which feast do the people of {town} celebrate?", feast),
        )
        return _Entry(town, text, f"the founder of {town}", questions)

    def _life(self, person: str) -> "_Entry":
        names, choose = self._names, self._choose
        born, died, teacher, work = names.town(), names.town(), names.person(), names.thing()
        animal, pet, (birth, death) = choose(_ANIMALS), names.thing(), self._years()
        text = (
            f"{person} ({birth}-{death}) was a {choose(_PROFESSIONS)}, born in {born} to a family "
            f"known for {choose(_TRADES)}, and a student of {teacher}. The largest work of those "
            f"years, the {work} Letters, appeared in {choose('23456')} volumes. Wherever the "
            f"journeys led, a {animal} with the name of {pet} came along. The last years were "
            f"spent in {died}."
        )
        questions = (
            (f"In which town was {person} born?", born),
            (f"Of whom was {person} a student?", teacher),
            (f"What was the name of the {animal} of {person}?", pet),
            (f"In which town did {person} spend the last years?", died),
        )
        return _Entry(person, text, person, questions)

    def _ship(self, captain: str) -> "_Entry":
        names, choose = self._names, self._choose
        ship, yard, start, end = names.thing(), names.thing(), names.town(), names.town()
        tonnes, bell, (built, lost) = names.number(), names.thing(), self._years()
        text = (
            f'The "{ship}" was a {choose(_VESSELS)}, built in {built} by the yard of {yard}. '
            f"Under {captain}, the first captain, it carried {choose(_CARGO)} from {start} to "
            f"{end}, in all {tonnes} tonnes in {choose('3456789')} years. In {lost} it ran aground "
            f"in fog; all of the crew were saved. Its bell now hangs in the church of {bell}."
        )
        questions = (
            (f'Which yard built the "{ship}"?', yard),
            (f'Who was the first captain of the "{ship}"?', captain),
            (f'To which town did the "{ship}" carry its cargo?', end),
            (f'How many tonnes did the "{ship}" carry in all?', tonnes),
            (f'In the church of which place does the bell of the "{ship}" hang?', bell),
        )
        return _Entry(ship, text, f'the first captain of the "{ship}"', questions)
