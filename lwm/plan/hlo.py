"""Collectives of a compiled program, counted in its HLO text."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
)
_WIDTHS = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2}
"""Bytes of types whose names do not end in their bits."""

_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|[sufbc]\w*\d\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|\w*computations?\w*)=(\{[^}]*\}|%?[\w.\-]+)"
)
_NAME = re.compile(r"%?([\w.\-]+)")
_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_LIMIT = re.compile(r"%([\w.\-]+) = s32\[\]\S* constant\((\d+)\)")
_BELOW = re.compile(r"ROOT .* compare\(%[\w.\-]+, %([\w.\-]+)\), direction=LT")


class Collective(NamedTuple):
    """Collectives of one kind."""

    count: int
    """Times that one is run."""
    bytes: int
    """Bytes of all their results on a device."""


def collectives(text: str) -> dict[str, Collective]:
    """Counts the collectives of each kind in a program, as often as it runs them.

    A loop counts as often as its condition says, and once where the number is not known before it
    runs, as in loops over the tiles of attention.
    """
    entry, lines = _computations(text)
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, times in _runs(entry, lines).items():
        for line in lines[name]:
            if match := _COLLECTIVE.search(line):
                result, kind, begins = match.groups()
                found[kind][0] += times
                found[kind][1] += times * _result_bytes(result, begins=bool(begins))
    return {kind: Collective(*found[kind]) for kind in KINDS if kind in found}


def _computations(text: str) -> tuple[str, Mapping[str, list[str]]]:
    """Splits a program; returns the name of the first computation, and the lines of each."""
    entry, name, lines = "", "", {}
    for line in text.splitlines():
        if line[:1] not in ("", " ", "}") and (match := _HEAD.match(line)):
            name = match[2]
            lines[name] = []
            entry = name if match[1] else entry
        elif name and line.startswith(" "):
            lines[name].append(line)
    return entry, lines


def _runs(entry: str, lines: Mapping[str, list[str]]) -> dict[str, int]:
    """Returns how often each computation runs."""
    runs: dict[str, int] = defaultdict(int)

    def run(name: str, times: int) -> None:
        runs[name] += times
        for called, turns in calls[name]:
            run(called, times * turns)

    calls = {name: list(_calls(each, lines)) for name, each in lines.items()}
    run(entry, 1)
    return runs


def _calls(own: list[str], lines: Mapping[str, list[str]]) -> Iterator[tuple[str, int]]:
    for line in own:
        if "=" not in line:
            continue
        if match := _WHILE.search(line):
            condition, body = match.groups()
            known = _TRIPS.search(line)
            yield body, int(known[1]) if known else _turns(lines[condition])
            continue
        for group in _CALLED.findall(line):
            for name in _NAME.findall(group):
                if name in lines:
                    yield name, 1


def _turns(condition: list[str]) -> int:
    """Returns how often a loop runs that counts from 0 to a constant; 1 for others."""
    limits = {match[1]: match[2] for line in condition for match in _LIMIT.finditer(line)}
    for line in condition:
        if (match := _BELOW.search(line)) and match[1] in limits:
            return int(limits[match[1]])
    return 1


def _result_bytes(result: str, *, begins: bool) -> int:
    """Returns the bytes of a result; one that only begins has operands and marks beside it."""
    sizes = [_bytes(*each) for each in _ARRAY.findall(result)]
    if begins and result.startswith("("):
        return max(sizes, default=0)
    return sum(sizes)


def _bytes(kind: str, shape: str) -> int:
    bits = re.search(r"\d+", kind)
    width = _WIDTHS.get(kind) or (int(bits[0]) / 8 if bits else 1)
    return int(math.prod(int(size) for size in shape.split(",") if size) * width)
