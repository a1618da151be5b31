"""Help of commands: common options first, all on request."""

import re
import sys

import pytest

from lwm.cli import help as helps
from lwm.cli.app import main

OPTION = re.compile(r"^│ (?:-\w, )?(--[\w.-]+)", re.MULTILINE)
COMMANDS = (
    *("chat", "generate text", "generate image", "generate video", "serve", "eval all"),
    *("eval needle", "eval ruler", "eval visual-needle", "data qa", "convert", "plan", "tokenize"),
)
RECIPES = "train tiny-vision", "train vqgan-64", "train laptop-curriculum", "plan lwm"


@pytest.fixture
def shown(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")

    def run(command: str) -> str:
        monkeypatch.setattr(sys, "argv", ["lwm", *command.split()])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("command", [*COMMANDS, *RECIPES])
def test_help_is_short_and_says_how_to_see_the_rest(shown, command):
    short, full = shown(f"{command} --help"), shown(f"{command} --help-all")
    some, every = OPTION.findall(short), OPTION.findall(full)
    assert 3 <= len(some) <= 25
    assert [name for name in every if name in some] == some
    # The entries that remain are whole, and in the boxes of their groups.
    assert {line for line in short.splitlines()[:-1]} <= set(full.splitlines())
    assert short.splitlines()[-1] == (
        f"{len(every) - len(some)} more options: lwm {command} --help-all"
    )


def test_options_that_are_chosen_exist(shown):
    rare = {name for command in COMMANDS for name in OPTION.findall(shown(f"{command} --help-all"))}
    assert rare >= helps._RARE
    recipes = " ".join(shown(f"{command} --help-all") for command in RECIPES)
    assert set(re.findall(r"--[\w.-]+", recipes)) >= helps._TRAINING


def test_help_of_all_commands_is_whole(shown):
    assert "more options" not in shown("--help")
    assert shown("eval --help") == shown("eval --help-all")


def test_a_question_may_hold_the_word(monkeypatch):
    seen = []
    helps.with_short_help(["chat", "tiny", "--", "--help"], seen.append, command="lwm")
    assert seen == [["chat", "tiny", "--", "--help"]]
