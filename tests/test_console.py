"""Pictures in a terminal."""

import io

import numpy as np
import pytest
from rich.console import Console

from lwm.console import Preview, half_blocks, waiting
from lwm.train.monitor.console import print_line


def test_two_pixels_stand_above_each_other_in_a_character():
    pixels = np.zeros((4, 2, 3), np.uint8)
    pixels[0, 0] = (1, 2, 3)
    pixels[1, 0] = (4, 5, 6)
    pixels[3, 1] = (7, 8, 9)
    first, second = half_blocks(pixels, width=2).split("\n")
    assert first.startswith("\x1b[38;2;1;2;3m\x1b[48;2;4;5;6m▀")
    assert second.endswith("\x1b[38;2;0;0;0m\x1b[48;2;7;8;9m▀\x1b[0m")
    assert first.count("▀") == second.count("▀") == 2


def test_pictures_are_shown_once_all_of_a_row_are_there():
    preview, pixels = Preview(2), np.zeros((8, 8, 3), np.uint8)
    shown = io.StringIO()
    preview.console = Console(file=shown, force_terminal=True, color_system="truecolor", width=16)
    preview.show(1, pixels)
    assert shown.getvalue() == ""
    preview.show(0, pixels)
    assert shown.getvalue().count("▀") == 16 * 4


@pytest.mark.parametrize(
    "unable",
    [
        {"force_terminal": False, "color_system": "truecolor"},
        {"force_terminal": True, "color_system": None},
        {"force_terminal": True, "color_system": "truecolor", "no_color": True},
    ],
)
def test_no_picture_is_shown_where_none_can_be(unable):
    preview, shown = Preview(1), io.StringIO()
    preview.console = Console(file=shown, width=16, **unable)
    preview.show(0, np.zeros((8, 8, 3), np.uint8))
    assert shown.getvalue() == ""


def test_what_is_waited_for_may_have_brackets_in_its_name():
    shown = io.StringIO()
    with waiting("a[b]c[/d]", console=Console(file=shown, force_terminal=True, width=80)) as tell:
        tell(1, 2)
    assert "a[b]c[/d]" in shown.getvalue()


def test_the_bar_and_the_lines_of_a_run_obey_no_file_name():
    shown = io.StringIO()
    console = Console(file=shown, width=80)
    print_line(console, "left out: a\x1b[2J\n.jsonl")
    assert shown.getvalue() == "left out: a\\x1b[2J\\n.jsonl\n"
    console = Console(file=shown, force_terminal=True, width=80)
    with waiting("loading a\x1b[2J\n", console=console) as tell:
        tell(1, 2)
    assert "\x1b[2J" not in shown.getvalue()
    assert "loading a\\x1b[2J\\n" in shown.getvalue()
