"""Figures of evaluations."""

import itertools
import re
import struct
import xml.etree.ElementTree as ElementTree

import pytest

from lwm.eval.figures import COLOURS, DPI, Series, curve, heat_map, in_tokens, png, svg


def map_of_three():
    return heat_map([[0.0, 0.5], [None, 1.0]], [1024, 700], [0.0, 50.0], title="costs $5 or $6")


def line():
    ends = {"low": [0.5, 0.1], "high": [1.0, 0.4]}
    points = Series(name="single <needle>", xs=[1024, 2048], ys=[0.9, 0.2], **ends)
    return curve([points], title="by length", level=("chance", 0.1))


@pytest.mark.parametrize("make", [map_of_three, line])
def test_equal_values_give_equal_files_also_when_drawn_again(make):
    figure, again = make(), make()
    assert png(figure) == png(again) == png(figure)
    assert svg(figure) == svg(again) == svg(figure)
    assert png(figure).startswith(b"\x89PNG")


def test_a_heat_map_shows_shares_where_something_was_asked():
    text = svg(map_of_three()).decode()
    found = re.findall(r">([^<>]+)</text>", text)
    assert {"0%", "50%", "100%", "1K", "700", "costs $5 or $6"} <= set(found)
    assert "nan%" not in found


def test_a_figure_within_a_page_has_ids_and_colours_of_its_own():
    figure = line()
    pages = [svg(figure, name=name).decode() for name in ("one", "two")]
    roots = [ElementTree.fromstring(page) for page in pages]
    ids = [{each.get("id") for each in root.iter()} - {None} for root in roots]
    assert ids[0]
    assert not ids[0] & ids[1]
    for page, known in zip(pages, ids, strict=True):
        used = re.findall(r"(?:url\(|href=\")#([^)\"]+)", page)
        assert used
        assert set(used) <= known
        assert "#000000" not in page
        assert "single &lt;needle&gt;" in page


@pytest.mark.parametrize("size", [(20, 20), (1, 1)])
def test_a_heat_map_grows_with_its_cells(size):
    columns, rows = size
    made = heat_map([[0.5] * columns] * rows, range(columns), range(rows), title="m")
    width, height = struct.unpack(">II", png(made)[16:24])
    assert width == pytest.approx(DPI * (3.2 + 0.6 * columns), abs=1)
    assert height == pytest.approx(DPI * (1.9 + 0.4 * rows), abs=1)


def test_colours_grow_lighter():
    def grey(colour):
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        return 0.299 * red + 0.587 * green + 0.114 * blue

    shades = [grey(colour) for colour in COLOURS]
    assert all(later - earlier > 20 for earlier, later in itertools.pairwise(shades))


def test_a_heat_map_has_counts_a_note_and_a_label_for_its_last_column():
    columns = [1024 * (32 * number + 32) for number in range(32)]
    many = heat_map([[0.5] * 32], columns, [0.0], title="m", note="32 questions, a book")
    found = re.findall(r">([^<>]+)</text>", svg(many).decode())
    assert {"32K", "1M", "m", "32 questions, a book"} <= set(found)
    assert "992K" not in found
    few = heat_map([[0.8, None]], [1024, 2048], [0.0], title="m", counts=[["4/5", None]])
    found = re.findall(r">([^<>]+)</text>", svg(few).decode())
    assert "4/5" in found
    assert "80%" not in found


def test_lengths_are_written_short():
    shown = [in_tokens(n) for n in (1024, 3 << 20, 1000, 1536, "length")]
    assert shown == ["1K", "3M", "1,000", "1,536", "length"]
