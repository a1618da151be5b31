"""The page of the server in Debian's Chromium, without any other network: its chats."""

import hashlib
import json
import re
import subprocess
from pathlib import Path

import pytest

from .hostile_markdown import CASES as HOSTILE
from .page_steps import JS, busy, finished, give, picture, send, until

WEB = Path(__file__).parents[2] / "lwm/serve/web"
CODE_LINES = 1_300
"""Lines of our own JavaScript at most, without comments and empty ones."""
ACTIVE = "script,style,iframe,object,embed,form,input,link,base,meta,svg,video"


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
