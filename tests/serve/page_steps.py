"""Steps of a user of the server's page, for its tests."""

import base64
import io

from PIL import Image

JS = {"axe-core": "4.14.1", "typescript": "7.0.2"}
"""Packages of npm with which the page is checked."""


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
