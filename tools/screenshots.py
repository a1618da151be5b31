"""Makes the pictures of the server's page in the docs, in Debian's chromium.

    python tools/screenshots.py --evaluations eval/smollm2

Chats and drawings are those of the small model of the package, with fixed seeds.
"""

import base64
import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tyro
from playwright.sync_api import Browser, Page, sync_playwright

import lwm
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
        browser.close()
    server.stop()


if __name__ == "__main__":
    main(tyro.cli(Screenshots, description=__doc__))
