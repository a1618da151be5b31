"""Makes the pictures of pages in the docs, in Debian's chromium.

    python tools/screenshots.py --evaluations eval/smollm2

Chats and drawings are those of the small model of the package, with fixed seeds.
"""

import base64
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tyro
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

import lwm
from lwm.cli.data import data_show
from lwm.data.tokenized import CLIPS
from lwm.serve.config import ServeConfig
from lwm.serve.run import Server
from lwm.serve.service import Service

CLIP = "1f419.webp"
WIDE, PHONE = {"width": 1180, "height": 760}, {"width": 390, "height": 760}
SETTINGS = '{"temperature": 0, "draw": {"n": 4, "seed": 3}}'
DROP = """([name, content]) => {
  const bytes = Uint8Array.from(atob(content), (each) => each.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, { type: "image/webp" }));
  const drop = new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: data });
  document.querySelector("#message").dispatchEvent(drop);
}"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Screenshots:
    """Options."""

    evaluations: Path | None = None
    """A folder with results of `lwm eval needle`; None: no picture of the needle page."""
    out: Path = Path(__file__).parents[1] / "docs/assets"


@contextmanager
def opened(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """Opens the page in a browser without history."""
    with browser.new_context(reduced_motion="reduce", **options) as context:
        context.add_init_script(f"localStorage.setItem('lwm-settings', '{SETTINGS}')")
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector("h1")
        yield page


def ask(page: Page, text: str, kind: str = "chat") -> None:
    """Sends a message, and waits for its answer."""
    before = page.locator("article.assistant .actions").count()
    page.select_option("select[aria-label='Kind of answer']", kind)
    page.fill("#message", text)
    page.get_by_role("button", name="Send").click()
    page.locator("article.assistant .actions").nth(before).wait_for(timeout=120_000)
    page.wait_for_timeout(800)


def drop(page: Page) -> None:
    """Drops a clip, and waits for the frames that the model sees."""
    content = base64.b64encode((CLIPS / CLIP).read_bytes()).decode()
    page.evaluate(DROP, ["octopus.webp", content])
    page.wait_for_selector(".composer .strip img")


def main(options: Screenshots) -> None:
    """Writes the pictures."""
    config = ServeConfig(port=0, evaluations=options.evaluations)
    server = Server(config)
    server.serve(Service(lwm.load("tiny-vision"), config))
    url = server.url.removesuffix("v1")
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        with opened(browser, url, viewport=WIDE) as page:
            drop(page)
            ask(page, "What is shown in this video?")
            ask(page, "birthday cake", "image")
            page.screenshot(path=options.out / "page-chat.png")
        with opened(browser, url, viewport=PHONE, color_scheme="dark") as page:
            ask(page, "tiger", "clip")
            drop(page)
            page.screenshot(path=options.out / "page-phone.png")
        if options.evaluations is not None:
            with opened(browser, f"{url}#needle", viewport=WIDE) as page:
                page.locator(".cell:not(.open)").last.click()
                page.screenshot(path=options.out / "page-needle.png")
        files(browser, options.out, options.evaluations)
        browser.close()
    server.stop()


CHATS = [
    {
        "messages": [
            {"role": "user", "content": "What is the capital of France?"},
            {"role": "assistant", "content": "The capital of France is Paris."},
        ]
    },
    {"text": "Call me Ishmael. Some years ago, never mind how long precisely."},
]


def files(browser: Browser, out: Path, evaluations: Path | None) -> None:
    """Writes the pictures of pages in files: records as tokens, and a report."""
    with tempfile.TemporaryDirectory() as folder:
        records = Path(folder) / "chats.jsonl"
        records.write_text("".join(json.dumps(each) + "\n" for each in CHATS))
        page = Path(folder) / "tokens.html"
        data_show((str(records),), model="smollm2-135m-instruct", out=page)
        shoot(browser, page, out / "data-tokens.png", {"width": 900, "height": 620})
    if evaluations is not None and (report := evaluations / "report.html").exists():
        shoot(browser, report, out / "evaluation.png", {"width": 900, "height": 1100})


def shoot(browser: Browser, page: Path, out: Path, size: ViewportSize) -> None:
    """Writes the picture of the top of a page in a file."""
    with browser.new_context(viewport=size) as context:
        tab = context.new_page()
        tab.goto(page.absolute().as_uri())
        tab.screenshot(path=out)


if __name__ == "__main__":
    main(tyro.cli(Screenshots, description=__doc__))
