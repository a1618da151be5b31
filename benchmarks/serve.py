"""Measures the server under load, beside llama.cpp's server, and what its users wait for.

    python benchmarks/serve.py --llama-server build/bin/llama-server

Servers run one after another, each as a program of its own on loopback. Clients send prompts of
random ids one after another, and read the answers as streams. llama.cpp's server reads the same
weights as F16 and as Q8_0, which `lwm convert` writes.
"""

import asyncio
import contextlib
import dataclasses
import datetime
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import tyro

LWM = sys.executable, "-c", "from lwm.cli import main; main()"
CASES = "load", "reading", "gone", "document", "draw"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Options: sizes to measure, and the folder of the table."""

    model: str = "smollm2-135m-instruct"
    llama_server: Path | None = None
    """The program `llama-server`; None: it is left out."""
    cases: tuple[str, ...] = CASES
    clients: tuple[int, ...] = (1, 4, 16)
    slots: tuple[int, ...] = (8,)
    """Slots of our server; each is measured."""
    peer_slots: int = 8
    """Slots of llama.cpp's server."""
    prompt: int = 256
    """Tokens of each prompt."""
    answer: int = 64
    """Tokens of each answer."""
    requests: int = 32
    """Requests of all clients together, at least two of each."""
    document: int = 16_384
    """Tokens of a document about which two questions are asked."""
    rounds: int = 5
    """Rounds of single requests, of which medians are reported."""
    results: Path = Path(__file__).parent / "results"


class Answer(NamedTuple):
    """Times of a request, in seconds."""

    first: float
    """Until the first text."""
    total: float
    tokens: int
    gaps: list[float]
    """Between events with text."""

    @property
    def per_token(self) -> float:
        """Time between two tokens, on average over the answer."""
        return (self.total - self.first) / max(1, self.tokens - 1)


def random_ids(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(300, 40_000, count).tolist()


@contextlib.contextmanager
def running(command: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Starts a server; yields its address, and the seconds until it was ready."""
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        port = command[command.index("--port") + 1]
        url = f"http://127.0.0.1:{port}"
        try:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"{url}/health", timeout=1).status_code == 200:
                        break
                if process.poll() is not None or time.monotonic() > begun + 300:
                    log.seek(0)
                    raise RuntimeError(f"{command[0]} did not start: {log.read()[-2000:]}")
                time.sleep(0.05)
            yield url, time.monotonic() - begun
        finally:
            process.terminate()
            process.wait(60)


def ours(model: str, *options: str) -> list[str]:
    return [*LWM, "serve", model, "--port", "8765", *options]


async def ask(client: httpx.AsyncClient, ids: Sequence[int], tokens: int) -> Answer:
    """Asks for an answer as a stream, and times it."""
    body = {
        "prompt": list(ids),
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    begun = time.monotonic()
    times, written = [], 0
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if (usage := event.get("usage")) is not None:
                written = usage["completion_tokens"]
            if event["choices"] and event["choices"][0].get("text"):
                times.append(time.monotonic() - begun)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    return Answer(times[0], times[-1], written, gaps)


async def load(url: str, config: Benchmark, clients: int, seed: int) -> dict[str, float]:
    """Lets clients send requests one after another; returns speeds and times."""
    each = max(2, config.requests // clients)
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=0)

    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def work(number: int) -> list[Answer]:
            return [
                await ask(
                    client, random_ids(config.prompt, seed + 1000 * number + i), config.answer
                )
                for i in range(each)
            ]

        begun = time.monotonic()
        answers = [a for one in await asyncio.gather(*map(work, range(clients))) for a in one]
        seconds = time.monotonic() - begun
    firsts = [a.first for a in answers]
    tokens = [a.per_token for a in answers]
    gaps = [gap for a in answers for gap in a.gaps]
    return {
        "tokens/s": sum(a.tokens for a in answers) / seconds,
        "first p50": percentile(firsts, 50),
        "first p99": percentile(firsts, 99),
        "token p50": percentile(tokens, 50),
        "token p99": percentile(tokens, 99),
        "gap p99": percentile(gaps, 99),
    }


def percentile(values: Sequence[float], share: float) -> float:
    return float(np.percentile(values, share))


def measure_load(config: Benchmark, weights: Path) -> str:
    """Returns the table of servers under load."""
    servers: dict[str, list[str]] = {}
    for slots in config.slots:
        servers[f"lwm, float32, {slots} slots"] = ours(config.model, "--slots", str(slots))
    if config.llama_server is not None:
        room = (config.prompt + config.answer + 64) * config.peer_slots
        for kind in ("float16", "q8_0"):
            path = weights / f"{kind}.gguf"
            if not path.exists():
                command = [*LWM, "convert", config.model, str(path)]
                subprocess.run([*command, "--to", "gguf", "--dtype", kind], check=True)
            servers[f"llama.cpp, {kind}, {config.peer_slots} slots"] = [
                *(str(config.llama_server), "-m", str(path), "--port", "8766"),
                *("-c", str(room), "-np", str(config.peer_slots), "-t", str(os.cpu_count())),
            ]
    lines = [
        "| server | clients | tokens/s | first token, s: p50 | p99 | between tokens, ms: p50 | p99 "
        "| between events, ms: p99 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, command in servers.items():
        with running(command) as (url, _):
            asyncio.run(load(url, config, 1, seed=10**6))  # warm
            for clients in config.clients:
                found = asyncio.run(load(url, config, clients, seed=clients * 10**5))
                cells = [
                    f"{found['tokens/s']:.1f}",
                    *(f"{found[key]:.2f}" for key in ("first p50", "first p99")),
                    *(f"{1e3 * found[key]:.0f}" for key in ("token p50", "token p99", "gap p99")),
                ]
                lines.append(f"| {name} | {clients} | {' | '.join(cells)} |")
                print(lines[-1], flush=True)
    return "\n".join(lines)


async def first_times(url: str, config: Benchmark, *, reads: bool) -> list[float]:
    """Returns the times until the first token of short requests, perhaps beside a long prompt."""
    found = []
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        for number in range(config.rounds):
            long = None
            if reads:
                prompt = random_ids(8000, 70 + number)
                long = asyncio.create_task(ask(client, prompt, 1))
                await asyncio.sleep(1)
            found.append((await ask(client, random_ids(32, 90 + number), 2)).first)
            if long is not None:
                long.cancel()
                await asyncio.gather(long, return_exceptions=True)
                await idle(client)
    return found


async def idle(client: httpx.AsyncClient) -> float:
    """Waits until no slot is busy, and returns the seconds that it took."""
    begun = time.monotonic()
    while any(slot["is_processing"] for slot in (await client.get("/slots")).json()):
        await asyncio.sleep(0.005)
    return time.monotonic() - begun


def measure_reading(config: Benchmark) -> str:
    """Returns the wait for a short request while a prompt of 8,000 tokens is read."""
    with running(ours(config.model)) as (url, start):
        alone = asyncio.run(first_times(url, config, reads=False))
        beside = asyncio.run(first_times(url, config, reads=True))
        chunk = asyncio.run(seconds_of_chunk(url))
    return (
        f"Start to ready, compile cache warm: {start:.1f} s.\n\n"
        f"First token of a request of 32 tokens: {statistics.median(alone):.3f} s on an idle "
        f"server, {statistics.median(beside):.3f} s while a prompt of 8,000 tokens is read "
        f"(at most {max(beside):.3f} s). The first chunk of 512 tokens takes {chunk:.3f} s, later "
        "ones more."
    )


async def seconds_of_chunk(url: str) -> float:
    """Returns the time of the first chunk of a prompt, and of one step."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        return (await ask(client, random_ids(513, 5), 1)).first


def measure_gone(config: Benchmark) -> str:
    """Returns the time until slots are free after their client has gone."""

    async def times(url: str) -> list[float]:
        found = []
        async with httpx.AsyncClient(base_url=url, timeout=600) as client:
            for number in range(config.rounds):
                prompt = random_ids(2000, 200 + number)
                task = asyncio.create_task(ask(client, prompt, 1000))
                await asyncio.sleep(0.7 + number)  # reading first, then writing
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                found.append(await idle(client))
        return found

    with running(ours(config.model)) as (url, _):
        found = asyncio.run(times(url))
    shown = ", ".join(f"{each:.3f}" for each in found)
    return f"Seconds until a slot is free after its client has gone: {shown}."


def measure_document(config: Benchmark) -> str:
    """Returns the wait for the first and the second question about one document."""

    async def times(url: str) -> list[float]:
        async with httpx.AsyncClient(base_url=url, timeout=3600) as client:
            document = random_ids(config.document, 3)
            return [(await ask(client, [*document, *random_ids(24, i)], 2)).first for i in range(2)]

    with running(ours(config.model, "--context", str(2 * config.document))) as (url, _):
        first, second = asyncio.run(times(url))
    return (
        f"First token of a question about {config.document:,} tokens: {first:.2f} s; of a second "
        f"question about them: {second:.2f} s, {first / second:.1f} times sooner."
    )


def measure_draw(config: Benchmark) -> str:
    """Returns the time of an image of the small model in the package."""
    found = []
    with running(ours("tiny-vision")) as (url, start):
        body: dict[str, Any] = {"prompt": "a skull", "response_format": "b64_json"}
        for seed in range(config.rounds + 1):
            begun = time.monotonic()
            answer = httpx.post(
                f"{url}/v1/images/generations", json=body | {"seed": seed}, timeout=60
            )
            answer.raise_for_status()
            found.append(time.monotonic() - begun)
    return (
        f"`lwm serve tiny-vision` is ready after {start:.1f} s; its first image takes "
        f"{found[0]:.2f} s, later ones {statistics.median(found[1:]):.2f} s."
    )


def main(config: Benchmark) -> None:
    import lwm

    parts = []
    with tempfile.TemporaryDirectory() as folder:
        for case in config.cases:
            if case == "load":
                parts.append(measure_load(config, Path(folder)))
            else:
                measure = {
                    "reading": measure_reading,
                    "gone": measure_gone,
                    "document": measure_document,
                    "draw": measure_draw,
                }[case]
                parts.append(measure(config))
            print(parts[-1], flush=True)
    day = datetime.date.today()
    text = (
        f"# The server under load, {day}\n\n{config.model}; prompts of {config.prompt} random ids, "
        f"{config.answer} tokens written, greedy; {os.cpu_count()} cores; lwm {lwm.__version__}."
        "\n\n" + "\n\n".join(parts) + "\n"
    )
    path = config.results / f"serve-cpu-{day}.md"
    path.write_text(text)
    print(path)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
