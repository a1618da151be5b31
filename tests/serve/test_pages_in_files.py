"""Pages in files: the demo, reports of evaluations, data sets; on a phone and a wide screen."""

import json

import numpy as np
import pytest

from lwm.data.example import Example
from lwm.data.media.show import show_world
from lwm.data.show_tokens import show_tokens
from lwm.eval.needle.report import NeedleReport
from lwm.eval.report.page import render, write_page
from lwm.eval.report.tables import grid
from lwm.tokens import TokenSpace

from .page_steps import JS

HEADER = {
    "evaluation": "needle",
    "model": {"name": "tiny", "dtype": "float32"},
    "config": {"needles": 1, "ask": 1, "prompt": "lwm", "haystack": "a book", "max_tokens": 8},
    "grid": {"lengths": [512, 1024], "depths": [0.0, 100.0], "rounds": 2},
    "haystack": {"characters": 9},
    "versions": {"lwm": "0.1.0"},
}
TURN = {
    "question": "Who?",
    "answer": "I " * 200,
    "seconds": 1.0,
    "num_tokens": 9,
    "was_cut": True,
    "document": None,
}


@pytest.fixture(scope="module")
def needles():
    rows = [
        {
            "context_length": length,
            "depth_percent": depth,
            "built_length": length,
            "score": score,
            "correct": bool(score),
        }
        for length in (512, 1024)
        for depth in (0.0, 100.0)
        for score in (1.0, float(depth == 0))
    ]
    return json.loads(NeedleReport(header=HEADER, rows=rows).to_json())


@pytest.fixture(scope="module")
def pages(tmp_path_factory, needles, byte_tokenizer):
    folder = tmp_path_factory.mktemp("pages")
    show_world("world:train,count=6", folder / "clips.html", count=6)
    part = {"kind": "needle", "name": "needle", "report": needles, "examples": []}
    report = {
        "command": "lwm eval all tiny " + "--an-option " * 20,
        "model": HEADER["model"],
        "parts": [part],
        "left_out": [],
        "config": {},
        "versions": {},
        "machine": {},
    }
    write_page(report, folder / "report.html", seconds={"needle": 61.0})
    picture = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
    seen = {"question": "What?", "source": picture, "num_tokens": 64, "seconds": 0.1}
    text = render(
        "demo.html.j2",
        facts={"Model": "tiny"},
        turns=[TURN],
        chapter=TURN | {"document": "Call me. " * 99, "title": "A book"},
        seen=[seen | {"answer": answer} for answer in (None, "octopus")],
        needles=4,
        found=3,
        grid=grid(needles),
        seconds=66.0,
        today="2026-11-30",
    )
    (folder / "demo.html").write_text(text)
    ids = np.arange(40, dtype=np.int32) + 40
    example = Example(ids=ids, loss_mask=ids > 60, name="a.jsonl, line 1")
    space = TokenSpace.of(byte_tokenizer.vocab_size, 4)
    show_tokens([example], byte_tokenizer, space, folder / "tokens.html", title="a.jsonl")
    return [folder / f"{name}.html" for name in ("clips", "tokens", "report", "demo")]


def test_a_heat_map_has_the_numbers_of_each_cell(needles):
    shown = grid(needles)
    assert shown is not None
    assert shown.head == ["depth", "512", "1K"]
    assert shown.rows == [
        ["0%", "2/2\n34–100%", "2/2\n34–100%"],
        ["100%", "1/2\n9–91%", "1/2\n9–91%"],
    ]
    assert shown.shares == [[1.0, 1.0], [0.5, 0.5]]


@pytest.mark.browser
@pytest.mark.representative
@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_serious_is_found_by_axe_and_nothing_is_cut(browser, npm, pages, colours, width):
    axe = npm("page", JS) / "node_modules/axe-core/axe.min.js"
    with browser.new_context(color_scheme=colours, viewport={"width": width, "height": 844}) as one:
        page = one.new_page()
        for file in pages:
            page.goto(file.as_uri())
            page.evaluate(axe.read_text())
            found = page.evaluate("axe.run().then((all) => all.violations)")
            serious = [each for each in found if each["impact"] in ("serious", "critical")]
            assert not serious, (file.name, json.dumps(serious, indent=1)[:3000])
            assert page.evaluate("document.documentElement.scrollWidth") <= width, file.name
        page.goto(pages[0].as_uri())
        page.get_by_role("button", name="next frame").nth(1).click()
        assert page.get_by_role("button", name="Stop clips").get_attribute("aria-pressed") == "true"
        moved = "(all) => all.map((clip) => clip.style.getPropertyValue('--at'))"
        assert page.locator(".clip").evaluate_all(moved)[:3] == ["", "1", ""]
        page.get_by_label("Search").fill("no such text")
        assert page.locator("#count").inner_text() == "0 of 6 shown"
        page.goto(pages[-1].as_uri())
        cell = page.locator(".heat td").first
        assert cell.inner_text() == "2/2\n34–100%"
        worse = page.locator(".heat td").last
        colour = "(cell) => getComputedStyle(cell).backgroundColor"
        assert cell.evaluate(colour) != worse.evaluate(colour)
