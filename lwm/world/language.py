"""Captions of scenes, and questions with one right answer of a word or two."""

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from lwm.world.attributes import COLOURS, DIGITS, KINDS, Split, in_split
from lwm.world.choices import Choices
from lwm.world.facts import Facts, Thing

QuestionKind = Literal["what", "colour", "count", "direction", "first", "second", "exists"]

NUMBERS = ("zero", "one", "two", "three")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
_PLURALS = {"cross": "crosses", "fish": "fish"} | {digit: f"{digit}s" for digit in DIGITS}
_WAYS = {"left": "to the left", "right": "to the right", "up": "up", "down": "down"}


class QuestionAnswer(NamedTuple):
    """A question about a clip, and its answer."""

    kind: QuestionKind
    question: str
    answer: str


def caption(facts: Facts) -> str:
    """Returns a caption that states all facts; its form is one of several, by the facts alone."""
    choices = Choices("caption", zlib.crc32(json.dumps(facts.to_json()).encode()))
    clauses = [_clause(facts, thing) for thing in choices.shuffled(facts.things)]
    joined = clauses[0] if len(clauses) == 1 else f"{', '.join(clauses[:-1])} and {clauses[-1]}"
    form = choices.choice(
        (
            "{things} on a {background} background.",
            "On a {background} background, {things}.",
            "{things}. The background is {background}.",
            "{background} background: {things}.",
        )
    )
    text = form.format(things=joined, background=facts.background)
    return text[0].upper() + text[1:]


def questions(
    facts: Facts, choices: Choices, *, split: Split = "train", kinds: Sequence[str] = KINDS
) -> tuple[QuestionAnswer, ...]:
    """Returns a question of each kind that the facts answer, in the order of the kinds.

    Args:
        facts: Facts of a clip.
        choices: Chooses what is asked about, and how.
        split: Split of the clip; no question names a combination of the other one.
        kinds: Kinds of things that may be asked about.
    """
    makers: tuple[Callable[[], Iterator[QuestionAnswer]], ...] = (
        lambda: _what(facts, choices),
        lambda: _colour(facts, choices),
        lambda: _count(facts, choices),
        lambda: _direction(facts, choices),
        lambda: _first(facts, choices),
        lambda: _second(facts, choices),
        lambda: _exists(facts, choices, split, kinds),
    )
    return tuple(question for make in makers for question in make())


def guessing(asked: Iterable[QuestionAnswer]) -> dict[str, float]:
    """Returns by kind the share of questions that the most frequent answer is right for.

    A question which of two things changes first names them both, and is guessed half the time.
    """
    answers: dict[str, Counter[str]] = {}
    for question in asked:
        answers.setdefault(question.kind, Counter())[question.answer] += 1
    shares = {kind: max(each.values()) / each.total() for kind, each in answers.items()}
    return shares | ({"first": 0.5} if "first" in shares else {})


def noun(kind: str) -> str:
    """Returns the noun for a kind."""
    return f"digit {kind}" if kind in DIGITS else kind


def name(thing: Thing) -> str:
    """Returns colour and noun of a thing."""
    return f"{thing.colour} {noun(thing.kind)}"


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _clause(facts: Facts, thing: Thing) -> str:
    """Returns a thing and what it does."""
    subject = _article(f"{thing.size} {name(thing)}")
    if facts.frames == 1:
        return subject
    if thing.event is None:
        return f"{subject} {_moves(thing)}"
    when = _when(facts, thing)
    if thing.event in ("appears", "disappears"):
        return f"{subject} {thing.event}{when}"
    if thing.event == "collides":
        still = thing.motion == "still"
        return (
            f"{subject} {'is hit' if still else f'{_moves(thing)} until it hits something'}{when}"
        )
    return f"{subject} {_moves(thing)} and {thing.event}{when}"


def _moves(thing: Thing) -> str:
    return "stands still" if thing.motion == "still" else f"moves {_WAYS[thing.motion]}"


def _when(facts: Facts, thing: Thing) -> str:
    second = facts.second(thing)
    if second is None or facts.seconds < 2 or second >= len(ORDINALS):
        return ""
    return f" in the {ORDINALS[second]} second"


def _alone(facts: Facts) -> list[Thing]:
    """Returns the things that are the only ones of their kind."""
    kinds = [thing.kind for thing in facts.things]
    return [thing for thing in facts.things if kinds.count(thing.kind) == 1]


def _what(facts: Facts, choices: Choices) -> Iterator[QuestionAnswer]:
    thing = choices.choice(facts.things)
    if thing.event is not None and choices.chance(0.5):
        yield QuestionAnswer("what", f"What happens to the {name(thing)}?", f"it {thing.event}")
    else:
        yield QuestionAnswer("what", f"What is the {thing.colour} thing?", thing.kind)


def _colour(facts: Facts, choices: Choices) -> Iterator[QuestionAnswer]:
    if alone := _alone(facts):
        thing = choices.choice(alone)
        yield QuestionAnswer("colour", f"What colour is the {noun(thing.kind)}?", thing.colour)


def _count(facts: Facts, choices: Choices) -> Iterator[QuestionAnswer]:
    if any(thing.event in ("appears", "disappears") for thing in facts.things):
        return  # it depends on the time
    kinds = [thing.kind for thing in facts.things]
    counts = {"things": len(kinds)} | {
        _PLURALS.get(kind, f"{kind}s"): kinds.count(kind) for kind in kinds
    }
    # One would be the answer most often, and is asked for less.
    one = [plural for plural, count in counts.items() if count == 1]
    many = [plural for plural, count in counts.items() if count > 1]
    if not many and choices.chance(0.65):
        return
    plural = choices.choice(one if one and (not many or choices.chance(0.2)) else many)
    yield QuestionAnswer("count", f"How many {plural} are there?", NUMBERS[counts[plural]])


def _direction(facts: Facts, choices: Choices) -> Iterator[QuestionAnswer]:
    moving = [thing for thing in facts.things if thing.motion != "still"]
    if moving:
        thing = choices.choice(moving)
        yield QuestionAnswer("direction", f"Which way does the {name(thing)} move?", thing.motion)


def _first(facts: Facts, choices: Choices) -> Iterator[QuestionAnswer]:
    things = choices.shuffled(facts.things)
    changing = [thing for thing in things if thing.event not in (None, "collides")]
    for first in changing:
        for other in changing:
            if (first.frame or 0) < (other.frame or 0):
                pair = " or the ".join(map(name, choices.shuffled((first, other))))
                question = f"Which changes first, the {pair}?"
                yield QuestionAnswer("first", question, name(first))
                return


def _second(facts: Facts, choices: Choices) -> Iterator[QuestionAnswer]:
    changing = [thing for thing in facts.things if thing.frame is not None]
    if changing and 2 <= facts.seconds <= len(ORDINALS):
        thing = choices.choice(changing)
        question = f"In which second does the {name(thing)} {(thing.event or '')[:-1]}?"
        yield QuestionAnswer("second", question, ORDINALS[facts.second(thing) or 0])


def _exists(
    facts: Facts, choices: Choices, split: Split, kinds: Sequence[str]
) -> Iterator[QuestionAnswer]:
    shown = {(thing.kind, thing.colour) for thing in facts.things}
    absent = [
        (kind, colour)
        for kind in kinds
        for colour in COLOURS
        if in_split(kind, colour, split) and (kind, colour) not in shown
    ]
    if choices.chance(0.5) or not absent:
        kind, colour = choices.choice(sorted(shown))
        answer = "yes"
    else:
        # As a rule one of the two is there, so that both have to be seen together.
        near = [
            pair
            for pair in absent
            if any(pair[0] == kind or pair[1] == colour for kind, colour in shown)
        ]
        kind, colour = choices.choice(near if near and choices.chance(0.75) else absent)
        answer = "no"
    question = f"Is there {_article(f'{colour} {noun(kind)}')}?"
    yield QuestionAnswer("exists", question, answer)
