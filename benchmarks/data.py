"""Times how fast batches are packed, from shards of tokens and from raw text, beside named peers.

    python benchmarks/data.py

The texts are three chapters of Moby Dick, cut into documents of some length and repeated. Beside
packing from shards stands Grain's own first-fit packing of the same examples; beside raw text,
`tokenizers` alone, which packs nothing. All in one process.
"""

import dataclasses
import datetime
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import tyro
from attention import hardware, versions

from lwm.convert.open import open_tokens
from lwm.data.fields import RecordEncoder
from lwm.data.loader import Loader
from lwm.data.pack import PackingConfig
from lwm.data.sets import Corpus
from lwm.data.shards import TokenShards
from lwm.data.sources import open_source
from lwm.data.stream import Examples, Mixture
from lwm.data.tokenize import write_shards
from lwm.tokenizer.tokenizer import Tokenizer
from lwm.tokens import TokenSpace

TEXTS = Path(__file__).parents[1] / "lwm" / "assets" / "moby-dick"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Options: sizes to time, and the folder of the table."""

    model: str = "smollm2-135m-instruct"
    """Whose tokenizer."""
    characters: tuple[int, ...] = (500, 4000)
    """Of a document."""
    documents: int = 4000
    length: int = 4096
    rows: int = 8
    threads: tuple[int, ...] = (0, 2)
    """How many read for each of eight streams."""
    seconds: float = 4.0
    """How long each case runs."""
    repeats: int = 3
    results: Path = Path(__file__).parent / "results"


def write_documents(config: Benchmark, characters: int, file: Path) -> None:
    """Writes JSON lines; no two documents are alike."""
    text = "".join(path.read_text() for path in sorted(TEXTS.glob("*.txt")))
    starts = np.random.default_rng(0).integers(0, len(text) - characters, config.documents)
    with file.open("w") as out:
        for start in starts:
            out.write(json.dumps({"text": text[start : start + characters]}) + "\n")


def ours(examples: Examples, tokens: TokenSpace, config: Benchmark, threads: int) -> Iterator[int]:
    """Yields how many tokens each batch of ours holds."""
    packing = PackingConfig(length=config.length)
    loader = Loader([examples], tokens, packing, Mixture(), rows=config.rows, threads=threads)
    for delivered in loader:
        yield int((delivered.batch.segments >= 0).sum())


def grains(examples: Examples, config: Benchmark) -> Iterator[int]:
    """Yields how many tokens each batch of Grain's packing holds, shuffled likewise."""
    import grain

    packed = grain.experimental.FirstFitPackIterDataset(
        grain.MapDataset.source(examples)  # pyrefly: ignore
        .shuffle(seed=0)
        .repeat()
        .map(lambda example: {"ids": example.ids[: config.length]})
        .to_iter_dataset(),
        length_struct={"ids": config.length},
        num_packing_bins=config.rows,
    ).batch(config.rows)
    for batch in packed:
        yield int((batch["ids_segment_ids"] > 0).sum())


def tokenizers(file: Path, tokenizer: Tokenizer) -> Iterator[int]:
    """Yields how many tokens `tokenizers` makes of each text, given one by one."""
    encode = tokenizer.backend._tokenizer.encode  # pyrefly: ignore
    texts = [json.loads(line)["text"] for line in file.read_text().splitlines()]
    for text in itertools.cycle(texts):
        yield len(encode(text, add_special_tokens=False).ids)


def rate(make: Callable[[], Iterator[int]], config: Benchmark) -> float:
    """Returns tokens a second, the median of some runs; their first batches are not counted."""
    found = []
    for _ in range(config.repeats):
        counts = make()
        for _ in range(4):
            next(counts)
        tokens, begun = 0, time.perf_counter()
        while (taken := time.perf_counter() - begun) < config.seconds:
            tokens += next(counts)
        found.append(tokens / taken)
        counts.close()  # pyrefly: ignore
    return statistics.median(found)


def main(config: Benchmark) -> None:
    """Prints the table and writes it to `results`."""
    tokenizer, tokens = open_tokens(config.model)
    encoder = RecordEncoder(tokenizer=tokenizer, tokens=tokens)
    lines = [
        f"# Packed batches, {datetime.date.today()}",
        "",
        f"{hardware()}; {versions('grain', 'array_record', 'tokenizers')}; tokens a"
        f" second in one process, medians of {config.repeats} runs of {config.seconds:g} s;"
        f" {config.rows} rows of {config.length}, tokenizer of {config.model}.",
        "",
        "| from | characters a document | | tokens a second |",
        "| --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)

    def add(source: str, characters: int, name: str, make: Callable[[], Iterator[int]]) -> None:
        cells = source, f"{characters:,}", name, f"{rate(make, config):,.0f}"
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)

    with tempfile.TemporaryDirectory() as name:
        for characters in config.characters:
            file, folder = Path(name) / f"{characters}.jsonl", Path(name) / f"{characters}"
            write_documents(config, characters, file)
            source = open_source(file)
            write_shards(source, encoder, folder)
            shards, corpus = TokenShards(folder), Corpus(source, encoder)
            peers = (
                ("shards", shards, "Grain's packing", partial(grains, shards, config)),
                ("text", corpus, "tokenizers alone", partial(tokenizers, file, tokenizer)),
            )
            for kind, examples, peer, theirs in peers:
                for threads in config.threads:
                    label = f"lwm, {threads} threads a stream"
                    add(kind, characters, label, partial(ours, examples, tokens, config, threads))
                add(kind, characters, peer, theirs)
    config.results.mkdir(parents=True, exist_ok=True)
    path = config.results / f"data-cpu-{datetime.date.today()}.md"
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
