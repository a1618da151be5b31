"""Images, clips, documents and drawings on the page of the server, and results of evaluations."""

import base64
import io
import json
import re

import pytest
from PIL import Image

from lwm.media.text import read_text

from .page_steps import JS, finished, give, picture, send

PHONE = {"width": 390, "height": 780}


@pytest.mark.browser
def test_a_pasted_picture_is_shown_as_the_model_sees_it_and_described(visit):
    page = visit()
    give(page, "paste", picture(), "red.png", "image/png")
    page.wait_for_selector(".composer .strip img")
    assert re.search(r"\d+ tokens", page.locator(".composer .attachment").inner_text())
    page.wait_for_function("() => document.querySelector('.meter').innerText[0] !== '0'")
    send(page, "What is in the picture?")
    assert finished(page).locator(".markdown").inner_text().strip()
    assert page.locator("article.user .attachment").inner_text().startswith("red.png")


@pytest.mark.browser
def test_a_dropped_clip_shows_its_frames_and_is_described(visit, video):
    page = visit()
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Frames at most").fill("4")
    page.get_by_label("Frames at most").press("Tab")
    page.get_by_role("button", name="Close").click()
    give(page, "drop", base64.b64encode(video).decode(), "grey.mp4", "video/mp4")
    page.wait_for_selector(".composer .strip img >> nth=3")
    assert "4 frames" in page.locator(".composer .attachment").inner_text()
    send(page, "What happens?")
    assert finished(page).locator(".parts").count() == 1
    assert not page.locator(".error").count()


@pytest.mark.browser
@pytest.mark.representative
def test_two_pictures_appear_while_they_are_drawn(visit):
    page = visit()
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Images or clips at once").fill("2")
    page.get_by_label("Images or clips at once").press("Tab")
    page.get_by_role("button", name="Close").click()
    page.evaluate(
        """() => new MutationObserver(() => {
          if (document.querySelectorAll(".media.partial img").length) window.partial = true;
        }).observe(document.body, { subtree: true, childList: true, attributes: true })"""
    )
    send(page, "a red circle", kind="image")
    answer = finished(page).first
    assert page.evaluate("window.partial") is True
    seeds = [int(each.split()[1]) for each in answer.locator("figcaption span").all_inner_texts()]
    assert seeds[1] == (seeds[0] + 1) % 2**32
    with page.expect_download() as saved:
        answer.get_by_role("link", name="Save").nth(1).click()
    stored = json.loads(read_text(saved.value.path()) or "")
    assert stored["prompt"] == "a red circle"
    assert stored["seed"] == seeds[1]
    answer.get_by_role("button", name="Again with the next seed").click()
    page.wait_for_selector("text=2/2")
    later = finished(page).first.locator("figcaption span").first
    assert int(later.inner_text().split()[1]) == (seeds[0] + 2) % 2**32
    page.get_by_role("link", name="Gallery").click()
    page.wait_for_selector(".gallery img >> nth=3")
    assert page.locator(".gallery").inner_text().count("a red circle") == 4


@pytest.mark.browser
def test_clips_play(visit):
    page = visit()
    send(page, "a skull", kind="clip")
    video = finished(page).locator("video")
    page.wait_for_function("() => document.querySelector('video').videoWidth > 0")
    video.evaluate("each => each.play()")
    page.wait_for_function("() => document.querySelector('video').currentTime > 0.2")
    assert page.evaluate("document.querySelector('video').error") is None


@pytest.mark.browser
def test_where_h264_does_not_play_clips_are_of_another_format(visit, browser):
    page = visit()
    page.evaluate("HTMLVideoElement.prototype.canPlayType = () => ''")
    send(page, "a skull", kind="clip")
    source = finished(page).locator(".media img").get_attribute("src")
    image = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    assert (image.format, getattr(image, "n_frames", 1)) == ("WEBP", 8)


@pytest.mark.browser
def test_a_long_paste_becomes_a_file_and_one_that_does_not_fit_is_refused_in_a_line(visit):
    page = visit()
    text = base64.b64encode(("It was a dark and stormy night. " * 3200).encode()).decode()
    give(page, "paste", text)
    page.wait_for_selector(".composer .attachment >> text=/[0-9,]+ tokens/")
    assert page.locator("#message").input_value() == ""
    page.wait_for_selector(".meter .error")
    send(page, "What is this?")
    assert "has a context of 2,048" in page.get_by_role("alert").inner_text()
    assert "pasted text" in page.locator("article.user").inner_text()
    assert [fault for fault in page.faults if "400" in fault] == page.faults
    page.faults.clear()  # the browser notes the refusal, too


@pytest.fixture
def needles(start, tmp_path):
    """A server with results of an evaluation that is not complete."""
    rows = [
        {
            "depth_percent": depth,
            "answer": "1234567",
            "seed": number,
            "city": "Oslo",
            "response": "The special magic Oslo number is: 1234567",
            "correct": depth < 50,
            "score": float(depth < 50),
            "context_length": length,
            "prompt_tokens": length - 9,
            "prompt_sha256": "0" * 16,
        }
        for length in (1024, 2048)
        for depth in (0.0, 100.0)
        for number in range(2)
    ]
    header = {
        "evaluation": "needle",
        "model": {"name": "small"},
        "config": {"needles": 1, "ask": 1},
        "grid": {"lengths": [1024, 2048, 4096], "depths": [0.0, 100.0], "rounds": 2},
    }
    folder = tmp_path / "small"
    folder.mkdir()
    lines = [json.dumps(each) for each in (header, *rows[:-1])]
    (folder / "results.jsonl").write_text("\n".join(lines) + "\n")
    server = start(evaluations=tmp_path)
    server.later = folder / "results.jsonl", json.dumps(rows[-1]) + "\n"
    return server


@pytest.mark.browser
def test_a_heat_map_grows_and_opens_questions_and_answers(visit, needles):
    page = visit(needles, "/#needle")
    page.wait_for_selector("text=7 of 12 answers")
    cell = page.get_by_role("button", name="2K tokens, depth 100%: 0/1")
    assert page.get_by_role("button", name="4K tokens, depth 0%: not asked yet").count() == 1
    cell.focus()
    page.keyboard.press("Enter")
    assert "Not found" in page.locator("article.card").inner_text()
    file, line = needles.later
    with file.open("a") as results:
        results.write(line)
    page.wait_for_selector("text=8 of 12 answers")
    page.wait_for_selector("article.card >> nth=1")
    page.locator("summary").first.click()
    page.wait_for_selector("details pre >> text=another model")
    page.faults.clear()  # a prompt that cannot be built again is answered by 404
    page.set_input_files("main input[type=file]", file)
    page.wait_for_function("() => !document.querySelector('article.card')")
    page.get_by_role("button", name="1K tokens, depth 0%: 2/2").click()
    page.wait_for_selector("article.card >> nth=1")


@pytest.mark.browser
@pytest.mark.representative
def test_nothing_serious_is_found_by_axe_and_a_phone_shows_all(visit, npm, needles):
    axe = npm("page", JS) / "node_modules/axe-core/axe.min.js"

    def check(page, place):
        page.evaluate(axe.read_text())
        found = page.evaluate("axe.run().then((all) => all.violations)")
        serious = [each for each in found if each["impact"] in ("serious", "critical")]
        assert not serious, (place, json.dumps(serious, indent=1)[:3000])
        wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not page.evaluate(wide), place

    for colours, options in (
        ("light", {}),
        ("dark", {}),
        ("dark", {"viewport": PHONE, "has_touch": True, "is_mobile": True}),
    ):
        page = visit(needles, color_scheme=colours, **options)
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(245, 246, 248)", "dark": "rgb(15, 19, 27)"}[colours]
        send(page, "a skull", kind="image")
        finished(page)
        give(page, "paste", picture(), "red.png", "image/png")
        page.wait_for_selector(".composer .strip img")
        check(page, (colours, options, "chat"))
        page.get_by_role("button", name="Settings").click()
        check(page, (colours, options, "settings"))
        page.get_by_role("button", name="Close").click()
        if options:
            page.get_by_role("button", name="List of chats").click()
            check(page, (colours, options, "list"))
        page.get_by_role("link", name="Gallery").click()
        page.wait_for_selector(".gallery img")
        check(page, (colours, options, "gallery"))
        page.goto(needles.root + "/#needle")
        page.locator(".cell").first.click()
        page.wait_for_selector("article.card")
        check(page, (colours, options, "needle"))
