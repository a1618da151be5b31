"""Measures the world: its speed, the checker's, how often both agree, and what a VQGAN leaves.

    python benchmarks/world.py --vqgan vqgan-64

Speed is by the CPU time of one thread. Rates of agreement have no peer: no other world of this
kind comes with a checker.
"""

import dataclasses
import datetime
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tyro
from attention import hardware, versions

from lwm.vqgan.tokenizer import VisionTokenizer
from lwm.world.attributes import BACKGROUNDS, COLOURS, DIGITS, SPLITS
from lwm.world.checker import agreement, read_facts
from lwm.world.language import QuestionAnswer, guessing
from lwm.world.world import Clip, World, WorldConfig, needle_frame


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Sizes of the measurements."""

    clips: int = 10_000
    """Clips that the checker reads, of 8 frames and of one, in both splits."""
    vqgan: str = "vqgan-64"
    """VQGAN of the round trip; an empty name leaves it out."""
    coded: int = 200
    """Clips of the round trip, and as many pictures, for each set of backgrounds."""
    file: Path | None = None
    """File of the tables; `results/world-cpu-DATE.md` by default."""


def sample(count: int, **options: object) -> Iterator[tuple[WorldConfig, Clip]]:
    """Yields clips of 8 frames and of one, of both splits in turn."""
    worlds = [
        World(WorldConfig(split=split, frames=frames, **options))  # pyrefly: ignore
        for frames in (8, 8, 8, 1)
        for split in SPLITS
    ]
    for index in range(count):
        world = worlds[index % len(worlds)]
        yield world.config, world.clip(index)


def speeds(seconds: float = 5.0) -> list[str]:
    """Returns a table of clips a second, of 8 frames at 64 pixels."""
    world, lines = World(), ["| | clips a second of CPU time |", "| --- | --- |"]
    clips = [world.clip(index) for index in range(100)]
    for name, run in (
        ("drawing, with caption and questions", lambda index: world.clip(index)),
        ("checker", lambda index: read_facts(clips[index % 100].pixels, fps=4.0)),
    ):
        run(0)
        start, done = time.thread_time(), 0
        while time.thread_time() - start < seconds:
            run(100 + done)
            done += 1
        lines.append(f"| {name} | {done / (time.thread_time() - start):,.0f} |")
    return lines


def agreements(count: int) -> list[str]:
    """Returns a sentence on how many clips are read exactly, and the table of guessing."""
    exact, asked = 0, {split: list[QuestionAnswer]() for split in SPLITS}
    for config, clip in sample(count):
        exact += read_facts(clip.pixels, fps=config.fps) == clip.facts
        if config.frames > 1:
            asked[config.split] += clip.questions
    shares = {split: guessing(questions) for split, questions in asked.items()}
    kinds = Counter(str(each.kind) for each in asked["train"])
    return [
        f"All facts, with the frames of events, are read from {exact:,} of {count:,} clips.",
        "",
        "| question | right by the best guess, train | heldout | questions a clip, train |",
        "| --- | --- | --- | --- |",
        *(
            f"| {kind} | {shares['train'][kind]:.0%} | {shares['heldout'][kind]:.0%} "
            f"| {kinds[kind] / (count * 3 // 8):.2f} |"
            for kind in sorted(shares["train"])
        ),
    ]


def round_trips(config: Benchmark) -> list[str]:
    """Returns a table of the share of clips that agree after a VQGAN, by attribute."""
    tokenizer = VisionTokenizer.open(config.vqgan, batch=16)
    rows: list[dict[str, float]] = []
    names: list[str] = []
    for backgrounds in ((name,) for name in BACKGROUNDS):
        for frames in (8, 1):
            world = World(WorldConfig(frames=frames, backgrounds=backgrounds))
            clips = [world.clip(index) for index in range(config.coded)]
            pixels = np.concatenate([clip.pixels for clip in clips])
            back = tokenizer.decode(tokenizer.encode(pixels)).reshape(-1, frames, 64, 64, 3)
            good: Counter[str] = Counter()
            for clip, seen in zip(clips, back, strict=True):
                good.update(agreement(clip.facts, read_facts(np.asarray(seen), fps=4.0)))
            rows.append({name: good[name] / len(clips) for name in good})
            names.append(f"{backgrounds[0]}, {'clips' if frames > 1 else 'pictures'}")
    lines = [f"| {config.vqgan} | {' | '.join(names)} |", f"| --- {'| --- ' * len(names)}|"]
    for name in rows[0]:
        lines.append(f"| {name} | {' | '.join(f'{row[name]:.0%}' for row in rows)} |")
    return [*lines, "", *needles(tokenizer)]


def needles(tokenizer: VisionTokenizer) -> list[str]:
    """Returns a sentence on how many needles are read after a VQGAN."""
    given = [(digit, colour) for digit in DIGITS for colour in COLOURS]
    counts = []
    for background in BACKGROUNDS:
        pixels = np.stack([needle_frame(*each, background) for each in given])
        back = np.asarray(tokenizer.decode(tokenizer.encode(pixels)))
        seen = [read_facts(frame[None], fps=1.0).things for frame in back]
        right = sum(
            [(thing.kind, thing.colour) for thing in things] == [each]
            for things, each in zip(seen, given, strict=True)
        )
        counts.append(f"{right} of {len(given)} on {background}")
    return [f"Needles, digit and colour: {', '.join(counts)}."]


def main(config: Benchmark) -> None:
    """Writes the tables."""
    date = datetime.date.today().isoformat()
    lines = [f"# The world, {date}", "", f"{hardware()}; {versions('numpy')}.", ""]
    parts = [lambda: speeds(), lambda: agreements(config.clips)]
    if config.vqgan:
        parts.append(lambda: round_trips(config))
    for part in parts:
        made = part()
        print("\n".join(made), flush=True)
        lines += [*made, ""]
    default = Path(__file__).parent / "results" / f"world-cpu-{date}.md"
    (config.file or default).write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
