"""Damage to files, from a seed: to their bytes, their values or their programs."""

import copy
import json
import random
import re
from typing import Any

DEEP = "@deep"
"""Stands for lists in lists, which `json` cannot write."""
ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**70, 0.5, 1e308, float("nan"), float("inf")),
    *("", "x", "x" * 100_000, "\ud800", "a\0b", "a\nb", "1", "../../x", "(a|a)+$", "<s>"),
    *([], {}, [None], [[]], [1, "a"], {"a": 1}, {"type": "x"}, ["x"] * 3000, DEEP),
]
PROGRAMS = [
    "{{ 'a' * 9999999999 }}",
    "{{ 10 ** 10 ** 8 }}",
    "{{ '%9999999999d' % 1 }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}" + "{{ messages }}" * 500 + "{% endfor %}",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{{ " + "1 + " * 20000 + "1 }}",
    "{{ " + "-" * 3000 + "1 }}",
    "{% if 1 %}" * 200 + "{% endif %}" * 200,
    "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{{ messages | tojson(indent=99999999999) }}",
    "{{ [1] * 999999999 }}",
    "{{ raise_exception('no\\nno') }}",
    "{{ strftime_now('%9999999999Y') }}",
    "{% set None = 1 %}{{ None }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% include 'x' %}{% extends 'y' %}",
    "{{ messages[0].content.zfill(9999999999) }}",
    "{{ 'x' | center(9999999999) }}",
    "{{ lipsum(n=99999) }}",
    "{% generation %}",
    "{{ {}[[]] }}",
    "{{ messages | map('upper') | groupby('x') | batch(0) | list }}",
]


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flips bits, cuts, overwrites, removes or repeats a part, or writes a huge number."""
    out, place = bytearray(data), rng.randrange(len(data) + 1)
    if rng.random() < 0.5:  # the first bytes say the most
        place = min(place, rng.randrange(400))
    length = rng.choice([1, 2, 4, 8, 100, 5000])
    way = rng.randrange(7)
    if way == 0:
        return bytes(out[:place])
    if way == 1:
        for _ in range(rng.choice([1, 3, 30])):
            at = rng.randrange(max(1, min(len(out), rng.choice([200, 1 << 30]))))
            out[at : at + 1] = bytes([out[at] ^ 1 << rng.randrange(8)]) if out else b""
    if way == 2:
        out[place : place + length] = bytes([rng.choice([0, 255, 127])]) * length
    if way == 3:
        del out[place : place + length]
    if way == 4:
        out[place:place] = out[max(0, place - length) : place + length]
    if way == 5:
        out[place : place + 8] = rng.choice([b"\xff" * 8, b"\xff" * 7 + b"\x7f", bytes(8)])
    if way == 6:
        out[place : place + length] = rng.randbytes(length)
    return bytes(out)


def damaged_values(value: Any, rng: random.Random) -> Any:
    """Returns JSON values with one of them removed, replaced, moved or changed a little."""
    value = copy.deepcopy(value)
    inner: Any = value
    key = rng.choice(places(value))
    while places(inner[key]) and rng.random() < 0.7:
        inner = inner[key]
        key = rng.choice(places(inner))
    old, way = inner[key], rng.randrange(6)
    if way == 0:
        del inner[key]
    elif way == 1 and isinstance(old, str) and old:
        at = rng.randrange(len(old))
        inner[key] = rng.choice([old[:at], old * 2, old[:at] + "\ufffd" + old[at:], old.upper()])
    elif way == 1 and isinstance(old, int | float):
        inner[key] = rng.choice([-old, old + 1, old * 1000, float(old), old / 3, str(old)])
    elif way == 2:
        other = rng.choice(places(value))
        inner[key] = copy.deepcopy(value[other])
    elif way == 3 and isinstance(inner, dict):
        inner[str(rng.choice(ODD))[:100]] = inner.pop(key)
    else:
        inner[key] = rng.choice(ODD)
    return value


def places(value: Any) -> list[Any]:
    """Returns the keys of an object, or the places of a list."""
    return list(value if isinstance(value, dict) else range(len(value))) if is_tree(value) else []


def is_tree(value: Any) -> bool:
    """Returns whether a value is an object or a list."""
    return isinstance(value, dict | list)


def damaged_json(data: bytes, rng: random.Random) -> bytes:
    """Damages a JSON text, mostly its values."""
    if rng.random() < 0.2:
        return damaged_bytes(data, rng)
    value = json.loads(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        if places(value):
            value = damaged_values(value, rng)
    return to_json(value, rng)


def to_json(value: Any, rng: random.Random) -> bytes:
    """Writes JSON, now and then with a key twice."""
    text = json.dumps(value)
    if rng.random() < 0.1 and (keys := list(re.finditer(r'"(\w+)": ', text))):
        key = rng.choice(keys)
        text = f"{text[: key.start()]}{key[0]}{json.dumps(rng.choice(ODD))}, {text[key.start() :]}"
    depth = rng.choice([60, 500, 5000, 200_000])
    return text.replace(json.dumps(DEEP), "[" * depth + "]" * depth).encode()


def damaged_lines(data: bytes, rng: random.Random) -> bytes:
    """Damages one line of JSON lines."""
    lines = data.split(b"\n")
    number = rng.randrange(len(lines))
    lines[number] = damaged_json(lines[number], rng)
    return b"\n".join(lines)


def damaged_template(data: bytes, rng: random.Random) -> bytes:
    """Damages a template, or adds a harmful program to it."""
    text = data.decode()
    tokens = re.findall(r"\{%.*?%\}|\{\{.*?\}\}|[^{]+|\{", text)
    place = rng.randrange(len(tokens))
    way = rng.randrange(4)
    if way == 0:
        del tokens[place]
    if way == 1:
        tokens[place] = damaged_bytes(tokens[place].encode(), rng).decode(errors="replace")
    if way == 2:
        tokens[place:place] = rng.choice(tokens) * rng.choice([1, 1, 100])
    if way == 3:
        tokens.insert(place, rng.choice(PROGRAMS))
    return "".join(tokens).encode(errors="replace")
