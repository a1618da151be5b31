"""Measures how smoothly the server's page shows a long answer that is being written.

    python benchmarks/page.py

The page of a running server is opened in Debian's chromium. Its request for an answer is given a
text of Markdown at a steady rate, in events of one token as the server writes them. Frames and long
tasks are those of the browser's own trace. The peer parses the whole answer again at each painting,
as a page does that keeps it as one text.
"""

import dataclasses
import datetime
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from attention import hardware, versions
from playwright.sync_api import Browser, sync_playwright

import lwm
from lwm.serve.config import ServeConfig
from lwm.serve.run import Server
from lwm.serve.service import Service

SIDES = {"lwm": "", "whole text": "WHOLE"}
LONG = 50.0
"""Milliseconds of a task that a user notices."""
CATEGORIES = "disabled-by-default-devtools.timeline.frame,devtools.timeline,toplevel"
STREAM = """([text, size, rate, whole]) => {
  const tokens = text.match(new RegExp(`[^]{1,${size}}`, "g"));
  const plain = window.fetch;
  window.fetch = (path, options) => {
    if (!String(path).endsWith("/chat/completions")) return plain(path, options);
    let sent = 0;
    const started = performance.now();
    const write = (value) => new TextEncoder().encode(`data: ${value}\\n\\n`);
    const event = (choice) => write(JSON.stringify({ choices: [choice] }));
    const body = new ReadableStream({
      async pull(control) {
        await new Promise((resolve) => setTimeout(resolve, 15));
        const due = Math.min(tokens.length, ((performance.now() - started) / 1000) * rate);
        for (; sent < due; sent++)
          control.enqueue(event({ delta: { content: tokens[sent] } }));
        if (sent < tokens.length) return control.enqueue(new TextEncoder().encode(": \\n\\n"));
        control.enqueue(event({ delta: {}, finish_reason: "stop" }));
        control.enqueue(write("[DONE]"));
        control.close();
      },
    });
    return Promise.resolve(new Response(body));
  };
  if (whole) return import("/web/markdown.js").then(({ Markdown, rendered }) => {
    Markdown.prototype.update = function (source) { this.last.replaceChildren(rendered(source)); };
  });
}"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Sizes, and the folder of the table."""

    tokens: int = 20_000
    size: int = 4
    """Characters of a token."""
    rate: float = 200.0
    """Tokens in a second."""
    rounds: int = 1
    results: Path = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Frames:
    """Frames of a trace."""

    seconds: list[int]
    """Frames that were drawn in each whole second."""
    longest: float
    """The longest task of the main thread, in milliseconds."""
    num_long: int
    """Tasks that a user notices."""


def document(characters: int) -> str:
    """Returns Markdown of all kinds: headings, paragraphs, lists, tables and code."""
    parts, number = [], 0
    while sum(map(len, parts)) < characters:
        number += 1
        words = " ".join(f"word{(number * 31 + place * 7) % 997}" for place in range(120))
        items = "\n".join(f"- item {place} with *emphasis* and `code`" for place in range(8))
        lines = "\n".join(f"    value_{place} = compute({place}, {number})" for place in range(25))
        rows = "\n".join(f"| {place} | {place * number} | text |" for place in range(6))
        parts.append(
            f"## Section {number}\n\n{words}.\n\n**{words[:200]}** and [a link](https://a.test)\n\n"
            f"{items}\n\n```python\ndef f():\n{lines}\n```\n\n"
            f"| a | b | c |\n|---|---|---|\n{rows}\n\n"
        )
    return "".join(parts)[:characters]


def frames(events: Sequence[dict[str, Any]]) -> Frames:
    """Counts frames and long tasks of a trace."""
    drawn = sorted(each["ts"] / 1e6 for each in events if each["name"] == "DrawFrame")
    seconds = [0] * int(drawn[-1] - drawn[0])
    for at in drawn:
        if (second := int(at - drawn[0])) < len(seconds):
            seconds[second] += 1
    main = {
        (each["pid"], each["tid"])
        for each in events
        if each["name"] == "thread_name" and each["args"]["name"] == "CrRendererMain"
    }
    tasks = [
        each["dur"] / 1e3
        for each in events
        if each["name"].endswith("RunTask") and (each["pid"], each["tid"]) in main and "dur" in each
    ]
    return Frames(seconds, max(tasks), sum(each > LONG for each in tasks))


def measure(browser: Browser, url: str, side: str, config: Benchmark) -> Frames:
    """Shows an answer, and returns the frames until it was complete."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    session = page.context.new_cdp_session(page)
    page.goto(url)
    page.wait_for_selector("#message")
    text = document(config.tokens * config.size)
    page.evaluate(STREAM, [text, config.size, config.rate, SIDES[side]])
    events: list[dict[str, Any]] = []
    session.on("Tracing.dataCollected", lambda found: events.extend(found["value"]))
    session.send("Tracing.start", {"categories": CATEGORIES, "transferMode": "ReportEvents"})
    page.fill("#message", "Write a lot.")
    page.keyboard.press("Enter")
    page.wait_for_selector("article.assistant .actions", timeout=1e6)
    ended: list[Any] = []
    session.on("Tracing.tracingComplete", lambda found: ended.append(found))
    session.send("Tracing.end")
    while not ended:
        page.wait_for_timeout(100)
    shown = len(page.locator("article.assistant .markdown").text_content() or "")
    assert shown > 0.8 * len(text), shown  # the marks of Markdown are not shown
    page.close()
    return frames(events)


def main(config: Benchmark) -> None:
    """Measures both sides, and writes the table."""
    served = ServeConfig(port=0)
    server = Server(served)
    server.serve(Service(lwm.load("tiny-vision"), served))
    url = server.url.removesuffix("/v1")
    found: dict[str, list[Frames]] = {side: [] for side in SIDES}
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        about = f"chromium {browser.version}, {versions('playwright')}"
        for _ in range(config.rounds):
            for side in SIDES:
                found[side].append(measure(browser, url, side, config))
        browser.close()
    server.stop()
    lines = [
        f"# Showing an answer of {config.tokens:,} tokens\n",
        f"{hardware()}; {about}; {config.rate:g} tokens/s, {datetime.date.today()}\n",
        "| page | frames/s, median | 5% of seconds below | worst second "
        "| longest task, ms | tasks over 50 ms |",
        "|---|---|---|---|---|---|",
    ]
    for side, all_runs in found.items():
        seconds = sorted(each for run in all_runs for each in run.seconds)
        cells = (
            side,
            statistics.median(seconds),
            seconds[len(seconds) // 20],
            seconds[0],
            f"{max(run.longest for run in all_runs):.0f}",
            sum(run.num_long for run in all_runs),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    text = "\n".join(lines) + "\n"
    print(text)
    config.results.mkdir(exist_ok=True)
    (config.results / f"page-cpu-{datetime.date.today()}.md").write_text(text)


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
