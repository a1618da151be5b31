"""Times many rows, shared documents and needles, beside an earlier commit.

    git worktree add ../before a3e756b
    python benchmarks/batch.py --worktree ../before

Two processes, of this code and of the earlier one, load the model once and measure the same tasks
in turn, so that only one of them works at a time. Each task runs once on short prompts before it
is timed. Without `--worktree`, only this code is measured.
"""

import dataclasses
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

HERE = Path(__file__).resolve().parents[1]
CASES = "rows", "document", "needle", "one"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Options: sizes to time, and the folder of the table."""

    model: str = "smollm2-135m-instruct"
    worktree: Path | None = None
    """A checkout of the commit to compare with."""
    cases: tuple[str, ...] = CASES
    lengths: tuple[int, ...] = (256, 512, 1024, 2048, 2048, 4096, 4096, 8128)
    """Tokens of the prompts of unequal rows."""
    new_tokens: int = 64
    """Tokens written to each row."""
    document: int = 8000
    """Tokens of a document that eight questions are about."""
    question: int = 24
    """Tokens of each question."""
    answer: int = 16
    """Tokens of each answer."""
    needle_lengths: tuple[int, ...] = (512, 1024, 2048)
    single: int = 2048
    """Tokens of the prompt of a single row, after which 128 are written."""
    rounds: int = 3
    """Rounds of single rows and needles, of which medians are reported."""
    long_rounds: int = 1
    """Rounds of eight rows and of the document."""
    results: Path = Path(__file__).parent / "results"
    worker: bool = False
    """Measures what standard input asks for; the benchmark calls itself so."""


def random_ids(count: int, seed: int) -> list[int]:
    """Returns ids that no other seed shares a prefix with."""
    return np.random.default_rng(seed).integers(10, 250, count).tolist()


def eight_questions(config: Benchmark, seed: int) -> list[list[int]]:
    document = random_ids(config.document, seed)
    return [document + random_ids(config.question, seed + 1 + each) for each in range(8)]


class Now:
    """Measures this code."""

    def __init__(self, config: Benchmark):
        import lwm

        self.config, self.loaded = config, lwm.load(config.model)
        rows = sum(config.lengths) + 8 * config.new_tokens
        # A request is admitted once it would fit by itself, whatever it then shares.
        questions = 8 * (config.document + config.question + config.answer)
        single = max(config.single + 128, 4 * max(config.needle_lengths))
        self.pool = max(rows, questions, single) + 8 * 512  # pages are filled in part

    def fresh(self) -> Any:
        """Returns the model with an engine that has read nothing."""
        model = dataclasses.replace(self.loaded)
        model.engine.reserve(self.pool)
        return model

    def requests(self, prompts: list[list[int]], count: int, lane: int) -> list[Any]:
        """Asks for so many ids after each prompt."""
        from lwm.generate.plan import GenerationPlan
        from lwm.generate.work import Work

        work = Work(plan=GenerationPlan(max_tokens=count))
        return [work.request(ids, lane=lane) for ids in prompts]

    def gather(self, prompts: list[list[int]], count: int, lane: int) -> dict[str, float]:
        """Reads and continues prompts together."""
        from lwm.generate.work import Written

        engine = self.fresh().engine
        for _ in engine.gather(self.requests([random_ids(600, 7)] * 2, 2, lane)):
            pass
        begun = time.perf_counter()
        written = 0
        for _, event in engine.gather(self.requests(prompts, count, lane)):
            written += len(event.ids) if isinstance(event, Written) else 0
        assert written == count * len(prompts)
        return {"reading and writing, s": time.perf_counter() - begun}

    def rows(self, seed: int, lane: int) -> dict[str, float]:
        """Times rows of unequal length."""
        config = self.config
        prompts = [random_ids(length, seed + i) for i, length in enumerate(config.lengths)]
        found = self.gather(prompts, config.new_tokens, lane)
        groups = [prompts] if lane > 1 else [[prompt] for prompt in prompts]
        seconds = sum(self.write(group, lane) for group in groups)
        return found | {"writing, s": seconds}

    def write(self, prompts: list[list[int]], lane: int) -> float:
        """Times the loop that the engine runs; the speed does not depend on what pages hold."""
        import jax

        from lwm.generate.decoding import BURST
        from lwm.generate.pages import Holding
        from lwm.generate.plan import GenerationPlan
        from lwm.generate.slots import Slots
        from lwm.model.pool import PAGE, PagePool

        llama, mesh, count = self.loaded.llama.unstack(), self.loaded.mesh, self.config.new_tokens
        with jax.set_mesh(mesh):
            size = -(-self.pool // PAGE) + 1
            pool = PagePool.empty(llama.config, llama.compute.dtype, per_device=size)
            slots = Slots(llama, mesh, lane, grammar=None, stop_places=8)
            plan, page = GenerationPlan(max_tokens=count + 1), 1
            for slot, ids in enumerate(prompts):
                pages = range(page, page + -(-(len(ids) + count) // PAGE))
                holding = Holding()
                holding.pages += pages
                slots.seat(slot, plan, ids, holding)
                page = pages.stop
            pool, *_ = slots.decode(pool, 1)  # compiles
            begun = time.perf_counter()
            for start in range(0, count, BURST):
                pool, *_ = slots.decode(pool, min(BURST, count - start))
            return time.perf_counter() - begun

    def document(self, seed: int, lane: int) -> dict[str, float]:
        """Times questions on one document."""
        return self.gather(eight_questions(self.config, seed), self.config.answer, lane)

    def one(self, seed: int, lane: int) -> dict[str, float]:
        """Times a single row."""
        from lwm.generate.work import Written

        engine = self.fresh().engine
        for _ in engine.stream(*self.requests([random_ids(600, 7)], 2, lane)):
            pass
        begun = time.perf_counter()
        first = written = 0
        for event in engine.stream(*self.requests([random_ids(self.config.single, seed)], 128, 1)):
            if isinstance(event, Written):
                first = first or time.perf_counter()
                written += len(event.ids)
        end = time.perf_counter()
        return {"until the first token, s": first - begun, "tokens/s": 127 / (end - first)}

    def answerer(self, longest: int) -> Any:
        """Returns what answers needle prompts, with nothing read yet."""
        from lwm.eval.answer import ModelAnswerer

        return ModelAnswerer(self.fresh(), tokens=4 * longest)

    def ask(self, answerer: Any, ids: Sequence[int]) -> str:
        """Returns the answer to a prompt."""
        from lwm.eval.question import Question

        question = Question(cell=None, message="", ids=ids, max_tokens=self.config.answer)
        return next(answerer.answers([question]))[1].text

    def needle(self, seed: int, lane: int) -> dict[str, float]:
        """Times a needle grid in the order of its cells, and shuffled."""
        from lwm.eval.needle.config import NeedleConfig
        from lwm.eval.needle.prompts import Prompts

        lengths = self.config.needle_lengths
        grid = NeedleConfig(lengths=lengths, depths=(0.0, 50.0, 100.0), max_tokens=16)
        prompts = Prompts(grid, self.loaded.tokenizer, template=self.loaded.template)
        built = [prompts.build(cell).ids for cell in prompts.cells]
        self.ask(self.answerer(max(lengths)), random_ids(600, 7))
        found, answers = {}, {}
        for name, order in {
            "in order": range(len(built)),
            "shuffled": np.random.default_rng(seed).permutation(len(built)).tolist(),
        }.items():
            answer = self.answerer(max(lengths))
            begun = time.perf_counter()
            answers[name] = {number: self.ask(answer, built[number]) for number in order}
            found[f"{name}, s"] = time.perf_counter() - begun
            found[f"{name}, tokens read"] = answer.num_read
        found["answers that are the same"] = sum(
            answers["in order"][number] == answers["shuffled"][number]
            for number in range(len(built))
        )
        return found


class Before(Now):
    """Measures the commit before, whose batches share a cache of one length."""

    def session(self, rows: int, longest: int, count: int) -> Any:
        """Allocates a cache for rows of the same length."""
        from lwm.generate.engine import Session, chunks  # pyrefly: ignore[missing-module-attribute]

        model = self.loaded
        slots = sum(chunks(longest)) + count
        return Session(model.llama, model.mesh, rows=rows, slots=slots)

    def gather(self, prompts: list[list[int]], count: int, lane: int) -> dict[str, float]:
        """Reads and continues prompts together."""
        import jax

        from lwm.generate.plan import GenerationPlan

        longest = max(map(len, prompts))
        warm = self.session(len(prompts), longest, count)
        warm.read([random_ids(min(600, longest), 7)] * len(prompts))
        for _ in warm.generate(GenerationPlan(max_tokens=2)):
            pass
        del warm
        begun = time.perf_counter()
        session = self.session(len(prompts), longest, count)
        session.read(prompts)
        jax.block_until_ready(session.cache)
        read, written = time.perf_counter(), 0
        for burst in session.generate(GenerationPlan(max_tokens=count)):
            written += burst.ids.shape[1]
        end = time.perf_counter()
        assert written == count
        return {"reading and writing, s": end - begun, "writing, s": end - read}

    def rows(self, seed: int, lane: int) -> dict[str, float]:
        """Times rows of unequal length."""
        prompts = [random_ids(length, seed + i) for i, length in enumerate(self.config.lengths)]
        return self.gather(prompts, self.config.new_tokens, lane)

    def document(self, seed: int, lane: int) -> dict[str, float]:
        """Times questions on one document."""
        found = self.gather(eight_questions(self.config, seed), self.config.answer, lane)
        return {"reading and writing, s": found["reading and writing, s"]}

    def one(self, seed: int, lane: int) -> dict[str, float]:
        """Times a single row."""
        found = self.gather([random_ids(self.config.single, seed)], 128, lane)
        writing = found["writing, s"]
        # The first token is written with the others: one part of 128.
        first = found["reading and writing, s"] - 127 / 128 * writing
        return {"until the first token, s": first, "tokens/s": 128 / writing}

    def answerer(self, longest: int) -> Any:
        """Returns what answers needle prompts, with nothing read yet."""
        from lwm.eval.answer import ModelAnswerer

        options: dict[str, Any] = {"longest": longest, "max_tokens": self.config.answer}
        return ModelAnswerer(self.loaded, **options)

    def ask(self, answerer: Any, ids: Sequence[int]) -> str:
        """Returns the answer to a prompt."""
        return answerer(ids)


def serve(config: Benchmark) -> None:
    """Measures the cases named on standard input, one a line."""
    side = (Now if config.worktree is None else Before)(config)
    for line in sys.stdin:
        case, seed, lane = json.loads(line)
        print("found", json.dumps(getattr(side, case)(seed, lane)), flush=True)


class Worker:
    """A process that measures one side."""

    def __init__(self, config: Benchmark, worktree: Path | None):
        command = [sys.executable, __file__, "--worker", *arguments(config)]
        if worktree is not None:
            command += ["--worktree", str(worktree)]
        code = str((worktree or HERE).resolve())
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": code},
        )

    def measure(self, case: str, seed: int, lane: int) -> dict[str, float]:
        """Measures one case once."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([case, seed, lane]), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("found "):
                return json.loads(line.removeprefix("found "))
        raise SystemExit(f"the process that measures {case} has ended")

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def arguments(config: Benchmark) -> list[str]:
    """Returns the options that a worker needs."""
    found = []
    for name in ("model", "lengths", "new_tokens", "document", "question", "answer", "single"):
        value = getattr(config, name)
        found += [f"--{name.replace('_', '-')}", *map(str, value if name == "lengths" else [value])]
    return [*found, "--needle-lengths", *map(str, config.needle_lengths)]


def compare(config: Benchmark) -> dict[tuple[str, str], dict[str, list[float]]]:
    """Returns all figures of each case and side, measured in turn."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    now = Worker(config, None)
    before = None if config.worktree is None else Worker(config, config.worktree)
    for case in config.cases:
        is_long = case in ("rows", "document")
        for number in range(config.long_rounds if is_long else config.rounds):
            seed = 1000 * (1 + number) + 100 * CASES.index(case)
            turns = [("now, 8 slots", now, 8)] if is_long else [("now, 1 slot", now, 1)]
            if case == "rows":
                turns.append(("now, 1 slot", now, 1))
            if before:
                turns.insert(0, ("before", before, 8 if is_long else 1))
            for side, worker, lane in turns:
                figures = worker.measure(case, seed, lane)
                print(case, side, figures, flush=True)
                kept = found.setdefault((case, side), {})
                for name, value in figures.items():
                    kept.setdefault(name, []).append(value)
    for worker in (now, before):
        if worker:
            worker.close()
    return found


def table(found: dict[tuple[str, str], dict[str, list[float]]]) -> str:
    """Formats medians, and how many times as fast this code is."""
    sides = list(dict.fromkeys(side for _, side in found))
    lines = [f"| | {' | '.join(sides)} |", f"|---|{'---|' * len(sides)}"]
    for case in dict.fromkeys(case for case, _ in found):
        own = {side: found.get((case, side), {}) for side in sides}
        for name in dict.fromkeys(name for figures in own.values() for name in figures):
            median = {
                side: statistics.median(figures[name])
                for side, figures in own.items()
                if name in figures
            }
            cells = [_cell(name, median.get(side), median.get("before")) for side in sides]
            lines.append(f"| {case}: {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(name: str, value: float | None, before: float | None) -> str:
    if value is None:
        return "-"
    if before is None or value == before or not name.endswith((", s", "/s")):
        return f"{value:.4g}"
    times = value / before if name.endswith("/s") else before / value
    return f"{value:.4g} ({times:.2f}×)"


def heading(config: Benchmark) -> str:
    from attention import hardware, versions

    lengths = ", ".join(map(str, config.lengths))
    return (
        f"# Many rows and shared prefixes, {datetime.date.today().isoformat()}\n\n"
        f"{config.model} in float32, greedy; {hardware()}; {versions()}; medians of "
        f"{config.rounds} rounds, of {config.long_rounds} for rows and document.\n\n"
        f"- rows: prompts of {lengths} tokens, {config.new_tokens} written to each\n"
        f"- document: eight questions on {config.document:,} tokens, {config.answer} written each\n"
        f"- needle: lengths {', '.join(map(str, config.needle_lengths))} at three depths\n"
        f"- one: {config.single:,} tokens read and 128 written\n\n"
    )


def main(config: Benchmark) -> None:
    if config.worker:
        serve(config)
        return
    text = heading(config) + table(compare(config)) + "\n"
    config.results.mkdir(parents=True, exist_ok=True)
    path = config.results / f"batch-cpu-{datetime.date.today().isoformat()}.md"
    path.write_text(text)
    print(text)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
