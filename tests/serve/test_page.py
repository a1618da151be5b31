"""The page of the server in Debian's Chromium, without any other network."""

import base64
import hashlib
import io
import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from lwm.media.text import read_text

WEB = Path(__file__).parents[2] / "lwm/serve/web"
JS = {"axe-core": "4.14.1", "typescript": "7.0.2"}
CODE_LINES = 1_300
"""Lines of our own JavaScript at most, without comments and empty ones."""
HOSTILE = runpy.run_path(str(Path(__file__).parent / "hostile_markdown.py"))["CASES"]
ACTIVE = "script,style,iframe,object,embed,form,input,link,base,meta,svg,video"
PHONE = {"width": 390, "height": 780}


def test_the_page_needs_no_key_and_allows_no_other_source(start):
    server = start(api_key=("secret",))
    page = server.client.get("/")
    policy = dict(
        each.split(" ", 1) for each in page.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in page.headers["content-security-policy"]
    for address in re.findall(r'(?:src|href)="(/[^"]+)"', page.text):
        found = server.client.get(address)
        assert found.status_code == 200
        again = server.client.get(address, headers={"if-none-match": found.headers["etag"]})
        assert again.status_code == 304
    assert server.client.get("/web/types.d.ts").status_code == 401
    assert server.client.get("/v1/models").status_code == 401


def test_files_of_others_are_those_of_their_packages():
    listed = json.loads((WEB / "vendor/packages.json").read_text())
    assert {each["file"] for each in listed} == {each.name for each in WEB.glob("vendor/*.js")}
    for each in listed:
        content = (WEB / "vendor" / each["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == each["sha256"], each["file"]
        assert each["package"].split("@")[0] in (WEB / "vendor/LICENSES.txt").read_text()


def test_own_code_is_short():
    lines = [line.strip() for file in WEB.glob("*.js") for line in file.read_text().splitlines()]
    code = [line for line in lines if line and not line.startswith(("//", "/*", "*"))]
    assert len(code) <= CODE_LINES


@pytest.mark.browser
@pytest.mark.representative
def test_types_of_the_page(npm):
    compiler = npm("page", JS) / "node_modules/.bin/tsc"
    done = subprocess.run([compiler, "-p", WEB], capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stdout


@pytest.fixture(scope="session")
def browser():
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("Debian's chromium is not installed")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    with api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=path, args=arguments)
        yield made
        made.close()


@pytest.fixture
def visit(browser, served):
    """Opens the page; at the end nothing must have failed, or have gone to another server."""
    contexts, faults = [], []

    def open_page(server=served, path="/", **options):
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(60_000)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()

        def asked(request):
            if not request.url.startswith((server.root, "data:", "blob:")):
                faults.append(f"asked for {request.url}")

        page.on("request", asked)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: said.type == "error" and faults.append(said.text))
        page.goto(server.root + path)
        page.faults = faults
        page.wait_for_selector("h1, dialog")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults


def send(page, text, *, kind=None):
    if kind:
        page.select_option("select[aria-label='Kind of answer']", kind)
    page.fill("#message", text)
    page.get_by_role("button", name="Send").click()


def finished(page, count=1):
    """Waits until so many turns are complete, and returns the answers."""
    answers = page.locator("article.assistant")
    page.wait_for_function(
        "n => [...document.querySelectorAll('article.assistant .actions')].length >= n", arg=count
    )
    return answers


def picture(colour="red"):
    image = Image.new("RGB", (64, 64), "white")
    image.paste(Image.new("RGB", (32, 32), colour), (16, 16))
    image.save(buffer := io.BytesIO(), "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


GIVE = """([kind, target, name, media, content]) => {
  const bytes = Uint8Array.from(atob(content), (each) => each.charCodeAt(0));
  const data = new DataTransfer();
  if (name) data.items.add(new File([bytes], name, { type: media }));
  else data.setData("text/plain", new TextDecoder().decode(bytes));
  const options = { bubbles: true, cancelable: true };
  const event = kind === "paste" ? new ClipboardEvent("paste", { ...options, clipboardData: data })
    : new DragEvent("drop", { ...options, dataTransfer: data });
  document.querySelector(target).dispatchEvent(event);
}"""


def give(page, kind, content, name="", media=""):
    """Pastes or drops a file or a text, in base64."""
    page.evaluate(GIVE, [kind, "#message", name, media, content])


def busy(server):
    return sum(slot["is_processing"] for slot in server.client.get("/slots").json())


def until(page, call, what):
    """Waits until something holds."""
    for _ in range(600):
        if call():
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"not reached: {what}")


@pytest.mark.browser
def test_a_message_is_answered_and_kept(visit):
    page = visit()
    send(page, "Generate an image of a skull")
    answers = finished(page)
    assert answers.locator("img").get_attribute("src").startswith("data:image/png")
    assert "tokens/s" in answers.inner_text()
    assert re.search(r"[1-9]\d* of 2,048 tokens", page.locator(".meter").inner_text())
    page.reload()
    assert finished(page).locator("img").count() == 1
    assert page.locator(".sidebar li").inner_text().startswith("Generate an image")
    # A second question sees the first answer's image.
    send(page, "What is in the picture?")
    text = finished(page, 2).nth(1).locator(".markdown").inner_text()
    assert text.strip()
    page.locator("article.assistant").nth(1).get_by_role("button", name="Copy", exact=True).click()
    page.wait_for_function("async () => (await navigator.clipboard.readText()).length > 0")
    assert page.evaluate("navigator.clipboard.readText()").strip() == text.strip()


@pytest.mark.browser
def test_stopping_frees_the_slot_and_the_answer_goes_on(visit, served):
    page = visit()
    send(page, "Generate a video of a skull", kind="chat")
    until(page, lambda: busy(served) == 1, "a busy slot")
    page.get_by_role("button", name="Stop").click()
    until(page, lambda: busy(served) == 0, "a free slot")
    assert "stopped" in finished(page).inner_text()
    page.locator("#message").press("Control+Shift+O")
    page.wait_for_selector(".welcome")
    send(page, "Generate a video of a skull")
    until(page, lambda: busy(served) == 1, "a busy slot")
    page.keyboard.press("Escape")
    until(page, lambda: busy(served) == 0, "a free slot")


@pytest.mark.browser
def test_an_answer_that_was_cut_goes_on(visit):
    page = visit()
    page.get_by_role("button", name="Settings").click()
    for name, value in (("Temperature", "0"), ("Tokens of an answer at most", "2")):
        page.locator("fieldset").first.get_by_label(name).fill(value)
        page.keyboard.press("Tab")
    page.get_by_role("button", name="Close").click()
    give(page, "paste", picture(), "red.png", "image/png")
    page.wait_for_selector(".composer .strip img")
    send(page, "What is in the picture?")
    text = finished(page).locator(".markdown").inner_text()
    assert "cut at the limit of tokens" in page.locator("article.assistant").inner_text()
    page.get_by_role("button", name="Continue").click()
    page.wait_for_function(
        "n => document.querySelector('article.assistant .markdown')?.innerText.length > n",
        arg=len(text),
    )
    assert finished(page).locator(".markdown").inner_text().startswith(text)


@pytest.mark.browser
def test_a_page_that_was_left_attaches_to_its_answer_again(visit, served):
    page = visit()
    send(page, "a skull", kind="clip")
    until(page, lambda: busy(served) == 1, "a busy slot")
    page.wait_for_selector("article.assistant")
    page.reload()
    page.wait_for_selector("article.assistant[aria-busy=true]")
    assert busy(served) == 1
    video = finished(page).locator("video")
    assert video.count() == 1
    assert not page.locator(".error").count()
    page.get_by_role("button", name="Send").wait_for()  # and no more "Stop"


@pytest.mark.browser
def test_a_broken_connection_is_made_again(visit, served):
    page = visit()
    send(page, "a skull", kind="clip")
    until(page, lambda: busy(served) == 1, "a busy slot")
    page.context.set_offline(True)
    page.wait_for_timeout(300)
    page.context.set_offline(False)
    assert finished(page).locator("video").count() == 1
    assert not page.locator(".error").count()
    page.faults.clear()  # the browser notes the broken connection


@pytest.mark.browser
def test_a_chat_that_is_deleted_while_it_is_answered_stays_deleted(visit, served):
    page = visit()
    page.on("dialog", lambda dialog: dialog.accept())
    send(page, "a skull", kind="clip")
    until(page, lambda: busy(served) == 1, "a busy slot")
    page.get_by_role("button", name="Delete a skull").click()
    page.wait_for_selector(".welcome")
    until(page, lambda: busy(served) == 0, "a free slot")
    page.wait_for_timeout(300)
    page.reload()
    page.wait_for_selector("#message")
    assert not page.locator(".sidebar li").count()


@pytest.mark.browser
def test_a_browser_that_keeps_nothing_can_still_ask(visit):
    page = visit()
    page.evaluate("() => { IDBObjectStore.prototype.put = () => { throw new Error('full'); }; }")
    send(page, "Generate an image of a skull")
    assert finished(page).locator("img").count() == 1
    assert "not kept in the browser: full" in page.get_by_role("alert").inner_text()


@pytest.mark.browser
def test_tabs_share_their_chats(visit):
    page = visit()
    other = page.context.new_page()
    other.goto(page.url)
    other.wait_for_selector("#message")
    send(page, "Generate an image of a skull")
    finished(page)
    other.locator(".sidebar li a").click()
    assert finished(other).locator("img").count() == 1
    send(other, "And of a tiger")
    finished(other, 2)
    page.wait_for_selector("article.assistant >> nth=1")


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
def test_branches(visit):
    page = visit()
    send(page, "Generate an image of a skull")
    finished(page)
    page.get_by_role("button", name="Regenerate").click()
    page.wait_for_selector("article.assistant >> text=2/2")
    finished(page)
    page.locator("article.user").get_by_role("button", name="Edit").click()
    page.get_by_label("Your message").fill("Generate an image of a tiger")
    page.get_by_role("button", name="Send as a branch").click()
    page.wait_for_selector("article.user >> text=2/2")
    finished(page)
    page.locator("article.user").get_by_role("button", name="Branch before").click()
    page.wait_for_selector("article.assistant >> text=2/2")
    assert "skull" in page.locator("article.user").inner_text()
    page.once("dialog", lambda dialog: dialog.accept())
    page.locator("article.assistant").get_by_role("button", name="Delete").click()
    page.wait_for_function(
        "() => !document.querySelector('article.assistant').innerText.includes('2/2')"
    )
    page.reload()
    assert "1/2" in page.locator("article.user").inner_text()


@pytest.mark.browser
def test_chats_are_exported_imported_found_renamed_and_deleted(visit):
    page = visit()
    send(page, "Generate an image of a skull")
    finished(page)
    page.get_by_role("button", name="Rename").click()
    page.get_by_label("Title").fill("Bones")
    page.keyboard.press("Enter")
    page.wait_for_selector(".sidebar >> text=Bones")
    page.get_by_role("button", name="Settings").click()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Export chats").click()
    file = saved.value.path()
    page.get_by_role("button", name="Close").click()
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete Bones").click()
    page.wait_for_function("() => !document.querySelector('.sidebar li')")
    page.get_by_role("button", name="Settings").click()
    page.set_input_files("dialog input[type=file]", file)
    page.wait_for_selector("text=1 chats were added.")
    wrong = {"name": "a.json", "mimeType": "application/json", "buffer": b'{"conversations": 3}'}
    page.set_input_files("dialog input[type=file]", wrong)
    page.wait_for_selector("text=This is no file of conversations")
    page.get_by_role("button", name="Close").click()
    page.keyboard.press("Control+k")
    page.keyboard.type("nothing of it")
    page.wait_for_function("() => !document.querySelector('.sidebar li')")
    page.fill("#search", "of a SKULL")
    page.locator(".sidebar li a").click()
    assert finished(page).locator("img").count() == 1


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


@pytest.mark.browser
@pytest.mark.representative
def test_nothing_of_an_answer_runs_or_is_fetched(visit):
    page = visit()
    page.evaluate("() => { window.hits = 0; window.hit = () => { window.hits += 1; }; }")
    turns, parent = {}, None
    for number, text in enumerate(HOSTILE):
        turn = {"id": f"t{number}", "parent": parent, "role": "assistant", "created": number}
        turns[turn["id"]] = turn | {"state": "done", "parts": [{"type": "text", "text": text}]}
        parent = turn["id"]
    chat = {"id": "hostile", "title": "Hostile", "updated": 1, "turns": turns, "leaf": parent}
    file = {"format": "lwm-conversations", "version": 1, "conversations": [chat]}
    page.get_by_role("button", name="Settings").click()
    content = {"name": "a.json", "mimeType": "text/json", "buffer": json.dumps(file).encode()}
    page.set_input_files("dialog input[type=file]", content)
    page.wait_for_selector("text=1 chats were added.")
    page.get_by_role("button", name="Close").click()
    page.get_by_role("link", name="Hostile").click()
    page.wait_for_selector(f"article.assistant >> nth={len(HOSTILE) - 1}")
    page.wait_for_timeout(500)
    assert page.evaluate("window.hits") == 0
    found = page.evaluate(
        """(active) => [...document.querySelectorAll(".markdown *")].flatMap((each) => [
          ...each.getAttributeNames().filter((name) => name.startsWith("on") || name === "style"),
          ...(each.matches(active) ? [each.tagName] : []),
          ...(each.tagName === "IMG" ? [each.outerHTML] : []),
          ...(each.href && !/^(https?|mailto):/.test(each.href) ? [each.href] : []),
        ])""",
        ACTIVE,
    )
    assert found == []
    assert page.locator("#app").count() == 1


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
def test_a_server_with_a_key_asks_for_it(visit, start):
    page = visit(start(api_key=("secret",)))
    page.get_by_role("textbox", name="Key").fill("wrong")
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)
    page.get_by_role("textbox", name="Key").fill("secret")
    page.keyboard.press("Enter")
    page.wait_for_selector("#message")
    assert [fault for fault in page.faults if "401" in fault] == page.faults
    page.faults.clear()
