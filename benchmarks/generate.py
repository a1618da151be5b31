"""Times reading and writing of SmolLM2-135M beside transformers (SDPA) and llama.cpp.

    python benchmarks/generate.py --llama-bench llama.cpp/build/bin/llama-bench

All have the weights of one folder of float32 safetensors, as `lwm convert` writes it; llama.cpp
reads GGUF files made from it by `lwm convert`. Each library runs in processes of its own, in turn,
so that each has a peak of memory of its own; a process warms up first, then measures. Medians over
the rounds are reported.
"""

import contextlib
import dataclasses
import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tyro

MODEL = "smollm2-135m-instruct"
PAGES, TOKENS_TO_A_PAGE = 20, 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Options: sizes to time, and the folder of the table."""

    prompts: tuple[int, ...] = (2048, 8000)
    """Lengths of the prompts that are read; the model's context is 8192."""
    new_tokens: int = 128
    """Tokens written after the first prompt."""
    together: tuple[int, ...] = (1, 4)
    """Rows that lwm writes together, each after `together_after` tokens."""
    together_after: int = 256
    sides: tuple[str, ...] = ()
    """Some of `SIDES`, such as "lwm int8"; by default all."""
    llama_bench: Path | None = None
    """The program of llama.cpp; without it, llama.cpp is left out."""
    long_prompt: int = 32_768
    """A length that only lwm reads, for its peak of memory; 0 leaves it out."""
    rounds: int = 3
    results: Path = Path(__file__).parent / "results"
    folder: Path | None = None
    """Where the model lies as safetensors, with int8.gguf and int4.gguf beside it for llama.cpp; by
    default all are written into a temporary folder."""
    only: str | None = None
    """Measures one of `MEASURES` in this process, and prints JSON; the others call it so."""

    @property
    def model(self) -> Path:
        """The folder of the model."""
        assert self.folder is not None
        return self.folder

    @property
    def dtype(self) -> Any:
        """The type named at the end of `only`."""
        assert self.only is not None
        return self.only.partition(" ")[2]


def read_book(num_tokens: int, model: Path) -> list[int]:
    """Returns as many tokens of the book that comes with the package, repeated as needed."""
    import lwm
    from lwm.tokenizer.tokenizer import Tokenizer

    folder = Path(lwm.__file__).parent / "assets" / "moby-dick"
    text = "\n".join(path.read_text() for path in sorted(folder.glob("*.txt")))
    ids = Tokenizer.open(model).encode(text)
    return (ids * (num_tokens // len(ids) + 1))[:num_tokens]


class Engine:
    """Reads prompts and writes after them, in one slot."""

    def __init__(self, config: Benchmark, longest: int, **options: Any):
        import lwm
        from lwm.model.config import ModelOverrides

        given = ModelOverrides(**options)
        self.model = lwm.load(config.model, dtype=config.dtype, given=given)
        self.model.engine.reserve(longest)

    def events(self, ids: list[int], count: int, lane: int = 1) -> Iterator[Any]:
        """Yields the events of a request that shares nothing with those before it."""
        from lwm.generate.plan import GenerationPlan
        from lwm.generate.requests import Request
        from lwm.generate.work import Work

        work = Work(plan=GenerationPlan(max_tokens=count))
        request = Request(tuple(ids), max_tokens=count, lane=lane, reuse=0, work=work)
        return self.model.engine.stream(request)

    def write_together(self, rows: int, ids: list[int], count: int) -> float:
        """Returns the tokens a second of rows that are written together, all of them begun."""
        from lwm.generate.work import Written

        times: list[tuple[float, int]] = []

        def write(row: int) -> None:
            for event in self.events([row, *ids], count, lane=rows):
                if isinstance(event, Written):
                    times.append((time.perf_counter(), len(event.ids)))

        with ThreadPoolExecutor(rows) as pool:
            list(pool.map(write, range(rows)))
        # From the last row's first token to the first row's last.
        begun, ended = sorted(times)[rows - 1][0], sorted(times)[-1][0]
        return sum(written for at, written in times if begun < at <= ended) / (ended - begun)

    def read(self, ids: list[int]) -> list[int]:
        """Reads a prompt, and chooses the first token after it."""
        for _ in self.events(ids, 1):
            pass
        return ids


def measure_lwm(config: Benchmark) -> dict[str, float]:
    from lwm.generate.work import Written

    engine = Engine(config, 2 * max(config.prompts) + config.new_tokens)

    def write(ids: list[int]) -> tuple[int, float]:
        begun, written = None, 0
        for event in engine.events(ids, config.new_tokens + 1):
            if isinstance(event, Written):
                # The first token comes with reading, as it does from transformers.
                written += 0 if begun is None else len(event.ids)
                begun = begun or time.perf_counter()
        assert begun is not None
        return written, time.perf_counter() - begun

    found = measure(config, engine.read, write)
    ids = read_book(config.together_after, config.model)
    for rows in config.together:
        name = f"write {rows} rows after {len(ids)}"
        engine.write_together(rows, ids, 8)
        found[name] = engine.write_together(rows, ids, config.new_tokens)
    return found


def measure_llama_cpp(config: Benchmark) -> dict[str, float]:
    """Runs llama.cpp's own benchmark, with flash attention and a thread for each core."""
    file = config.model.with_name(f"{config.dtype}.gguf")
    cores = str(len(os.sched_getaffinity(0)))
    depth, count = config.prompts[0], config.new_tokens

    def run(*sizes: int) -> float:
        options = dict(zip(("-p", "-n", "-d"), map(str, sizes), strict=True))
        arguments = ["-m", str(file), "-t", cores, "-fa", "1", "-r", "2", "-o", "json"]
        for option in options.items():
            arguments += option
        program = [str(config.llama_bench), *arguments]
        done = subprocess.run(program, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)[-1]["avg_ts"]

    found = {f"read {depth}": run(depth, 0, 0)}
    return found | {f"write {count} after {depth}": run(0, count, depth)}


def measure_transformers(config: Benchmark) -> dict[str, float]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        str(config.model),
        dtype=getattr(torch, config.dtype),
        attn_implementation="sdpa",
    ).eval()

    @torch.inference_mode()
    def read(ids: list[int]) -> list[int]:
        # Logits of the last position only, as its own `generate` asks for.
        model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
        return ids

    @torch.inference_mode()
    def write(ids: list[int]) -> tuple[int, float]:
        def generate(count: int) -> tuple[int, float]:
            begun = time.perf_counter()
            out = model.generate(
                torch.tensor([ids]),
                do_sample=False,
                min_new_tokens=count,
                max_new_tokens=count,
                pad_token_id=0,
            )
            return out.shape[1] - len(ids), time.perf_counter() - begun

        # `generate` reads the prompt, too: that is taken off, with the first token.
        first, reading = generate(1)
        written, seconds = generate(config.new_tokens + 1)
        return written - first, seconds - reading

    return measure(config, read, write)


def measure(config: Benchmark, read: Callable, write: Callable) -> dict[str, float]:
    """Times both after a warm-up; returns tokens a second, and the peak of memory in GiB."""
    found = {}
    for length in config.prompts:
        ids = read_book(length, config.model)
        read(ids)
        begun = time.perf_counter()
        state = read(ids)
        found[f"read {length}"] = length / (time.perf_counter() - begun)
        if length == config.prompts[0]:
            write(state)
            state = read(ids)
            written, seconds = write(state)
            found[f"write {written} after {length}"] = written / seconds
    found["peak GiB"] = peak()
    return found


def measure_long(config: Benchmark) -> dict[str, float]:
    """Reads a prompt of four times the model's context, for the memory that it takes."""
    length = config.long_prompt + 1
    engine = Engine(config, length, context=length)
    ids = read_book(config.long_prompt, config.model)
    begun = time.perf_counter()
    engine.read(ids)
    seconds = time.perf_counter() - begun
    return {
        f"read {config.long_prompt}": config.long_prompt / seconds,
        f"peak GiB at {config.long_prompt}": peak(),
    }


def measure_perplexity(config: Benchmark) -> dict[str, float]:
    """Scores 20 pages of a book in pieces of 1,024 tokens, each token after at least 512 others."""
    import jax
    import numpy as np

    import lwm
    from lwm.model.layers import Packing
    from lwm.sharding import TOKENS, on_mesh

    model = lwm.load(config.model, dtype=config.dtype)
    ids = np.array(read_book(PAGES * TOKENS_TO_A_PAGE, config.model))
    pieces = [ids[start : start + 1024] for start in range(0, len(ids) - 1023, 512)]

    @jax.jit
    def score(llama, tokens):
        hidden = llama.hidden(tokens, Packing.whole(*tokens.shape))
        return jax.nn.log_softmax(llama.logits(hidden[:, 511:-1])[0])

    found = []
    with jax.set_mesh(model.mesh):
        for piece in pieces:
            tokens = jax.device_put(piece[None], on_mesh(model.mesh, TOKENS))
            chances = np.asarray(score(model.llama, tokens))
            found.append(chances[np.arange(512), piece[512:]])
    return {f"perplexity of {PAGES} pages": float(np.exp(-np.mean(found)))}


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


OURS = "float32", "bfloat16", "int8", "int4"
SIDES = (
    *(f"lwm {dtype}" for dtype in OURS),
    *("transformers float32", "transformers bfloat16", "llama.cpp int8", "llama.cpp int4"),
)
"""Libraries to compare, each with the type of its weights. llama.cpp's are Q8_0 and Q4_0."""

MEASURES = {
    "lwm": measure_lwm,
    "transformers": measure_transformers,
    "llama.cpp": measure_llama_cpp,
    "perplexity": measure_perplexity,
    "long": measure_long,
}


def run_apart(config: Benchmark, library: str) -> dict[str, float]:
    """Measures one library in a new process."""
    arguments = ["--only", library, "--folder", config.model, "--prompts", *config.prompts]
    arguments += ["--new-tokens", config.new_tokens, "--long-prompt", config.long_prompt]
    if config.llama_bench:
        arguments += ["--llama-bench", config.llama_bench]
    done = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    return json.loads(done.stdout.splitlines()[-1])


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def table(found: dict[str, dict[str, float]]) -> str:
    peer = found.get("transformers float32", {})
    lines = [f"| | {' | '.join(found)} |", f"| --- |{' --- |' * len(found)}"]
    for name in dict.fromkeys(name for side in found.values() for name in side):
        cells = []
        for side, values in found.items():
            value, other = values.get(name), peer.get(name)
            ratio = f" ({value / other:.2f}×)" if value and other and "lwm" in side else ""
            cells.append(f"{value:.2f}{ratio}" if value else "-")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def heading(config: Benchmark) -> str:
    from attention import hardware, versions

    return (
        f"# Reading and writing, {datetime.date.today().isoformat()}\n\n"
        f"SmolLM2-135M-Instruct from float32 safetensors, greedy; {hardware()}; "
        f"{versions('torch', 'transformers', 'accelerate')}; llama.cpp's llama-bench with -fa 1; "
        f"medians of {config.rounds} processes each, in turn. "
        "Reading and writing in tokens a second, lwm's also in times transformers' float32; "
        "peaks of resident memory, one process each.\n\n"
    )


@contextlib.contextmanager
def converted(config: Benchmark) -> Iterator[Benchmark]:
    """Gives the folder of the model, written where none is given."""
    if config.folder:
        yield config
        return
    from lwm.convert.convert import convert_model
    from lwm.convert.gguf import write_gguf
    from lwm.convert.open import open_model_files

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / MODEL
        convert_model(open_model_files(MODEL), folder, dtype="float32")
        for dtype in ("int8", "int4") if config.llama_bench else ():
            write_gguf(open_model_files(folder), folder.with_name(f"{dtype}.gguf"), dtype=dtype)
        yield dataclasses.replace(config, folder=folder)


def main(config: Benchmark) -> None:
    if config.only:
        print(json.dumps(MEASURES[config.only.partition(" ")[0]](config)))
        return
    with converted(config) as config:
        text = compare(config)
    config.results.mkdir(parents=True, exist_ok=True)
    path = config.results / f"generate-cpu-{datetime.date.today().isoformat()}.md"
    path.write_text(text)
    print(text)


def compare(config: Benchmark) -> str:
    """Measures all sides; returns the page of the results."""
    has_peer = find_spec("transformers") and find_spec("torch")
    is_there = {"lwm": True, "transformers": has_peer, "llama.cpp": config.llama_bench}
    sides = [side for side in config.sides or SIDES if is_there[side.partition(" ")[0]]]
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for number in range(config.rounds):
        for side in sides:
            runs[side].append(run_apart(config, side))
            print(number + 1, side, runs[side][-1], flush=True)
    found = {side: medians(results) for side, results in runs.items()}
    for dtype in (each for each in OURS if f"lwm {each}" in found):
        found[f"lwm {dtype}"] |= run_apart(config, f"perplexity {dtype}")
        if config.long_prompt and dtype in ("float32", "bfloat16"):
            found[f"lwm {dtype}"] |= run_apart(config, f"long {dtype}")
    return heading(config) + table(found) + "\n"


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
