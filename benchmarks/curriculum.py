"""Measures what the stages of a curriculum have learned, from its folder, of the finished ones.

    python benchmarks/curriculum.py runs/laptop-curriculum

Each stage of text is asked for the same held-out tokens twice: those that lie beyond the context of
the stage before, with all that stands before them, and with no more than fitted that context. They
are of whole works that were held out, and of held-out excerpts in which numbers are stated again
late. Then come the loss on the works after the stages with images, and the answers of the last one.
"""

import dataclasses
import datetime
import itertools
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from attention import hardware, versions

import lwm
from lwm.data.books import fetch_books
from lwm.data.recalls import Recalls, RecallSet
from lwm.errors import UserError
from lwm.eval.answer import ModelAnswerer
from lwm.eval.perplexity.config import PerplexityConfig
from lwm.eval.perplexity.segments import Segment, read_segments
from lwm.eval.prompt import PromptEncoder
from lwm.eval.qa.config import QAConfig
from lwm.eval.qa.run import evaluate, open_questions
from lwm.eval.question import Question
from lwm.eval.scoring import ScoreRequest, score
from lwm.eval.statistics import bootstrap_interval, mean_interval
from lwm.files import read_json
from lwm.formats.run_folder import CURRICULUM, MODEL, SETTINGS
from lwm.generate.language_model import LanguageModel
from lwm.tokenizer.tokenizer import Tokenizer

NO_WORSE, GAIN, FORGOTTEN = 0.01, 0.3, 0.05
"""Losses with more context: at most so much above on works, and so much below on excerpts; and the
share by which that on works may rise in stages with images."""
_LINE = 25
"""Tokens of a line that states a number, about."""
_FEWEST = 2.5
"""Characters of a token of excerpts that have many for their length."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Sizes of the measurements."""

    targets: int = 100_000
    """Tokens that are scored in each stage, of works and of excerpts each; fewer if there are not
    as many."""
    questions: int = 200
    """Numbers asked for in chats of each length."""
    clips: int = 50
    """Clips of the world that are asked about, with several questions each."""
    stages: tuple[str, ...] = ()
    """Only these stages, by their names."""
    rows: int = 8
    """Prompts that are worked on together."""
    file: Path | None = None
    """File of the tables; `results/curriculum-cpu-DATE.md` by default."""


@dataclasses.dataclass(frozen=True)
class Finished:
    """A finished stage of a curriculum."""

    name: str
    folder: Path
    settings: dict[str, Any]

    @property
    def context(self) -> int:
        """Tokens of its rows."""
        return self.settings["data"]["packing"]["length"]

    @property
    def sees(self) -> bool:
        """True if it has images."""
        return self.settings["data"]["vqgan"] is not None

    def load(self) -> LanguageModel:
        """Returns its model."""
        return lwm.load(self.folder / MODEL)


@dataclasses.dataclass(frozen=True)
class Text:
    """Held-out tokens: those of each segment from `first` on are scored."""

    segments: Sequence[Segment]
    first: int
    numbers: Sequence[Sequence[slice]] = ()
    """For each segment, the digits of the numbers that were stated beyond the shorter context."""

    @property
    def count(self) -> int:
        """Number of tokens that are scored."""
        return sum(len(segment.ids) - self.first for segment in self.segments)

    def digits(self, losses: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the values at the digits of these numbers, of the segments that have some."""
        return [
            np.concatenate([values[number] for number in numbers])
            for values, numbers in zip(losses, self.numbers, strict=True)
            if numbers
        ]


def finished(folder: Path) -> list[Finished]:
    """Returns the finished stages in order.

    Raises:
        UserError: The folder is not one of a curriculum.
    """
    if not (folder / CURRICULUM).is_file():
        raise UserError(f"{folder} has no finished stage of a curriculum")
    names = read_json(folder / CURRICULUM)["finished"]
    places = [next(folder.glob(f"[0-9][0-9]-{name}")) for name in names]
    return [
        Finished(name, place, read_json(place / SETTINGS))
        for name, place in zip(names, places, strict=True)
    ]


def works(tokenizer: Tokenizer, context: int, first: int, targets: int) -> Text:
    """Returns parts of the works that were held out."""
    size = context - first
    wanted = PerplexityConfig(
        length=context, windows=(), targets=size, segments=-(-targets // size)
    )
    return Text(read_segments([fetch_books() / "held-out"], tokenizer, wanted), first)


def excerpts(tokenizer: Tokenizer, context: int, first: int, targets: int) -> Text:
    """Returns held-out excerpts in which both statements of a number are far apart."""
    # So many that knowing them all is worth more than `GAIN` for a token.
    recalls = max(2, context // 80)
    characters = math.ceil(_FEWEST * max(40, context - 2 * _LINE * recalls))
    sets = RecallSet(
        books="held-out", count=100_000, characters=characters, recalls=recalls, apart=0.9, seed=77
    )
    bos = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    segments, numbers, source = [], [], Recalls(sets)
    found = 0
    for index in range(len(source)):
        text = source[index].value["text"]
        ids = [*bos, *tokenizer.encode(text, special=False)]
        if found >= targets or index > 100 + 10 * len(segments):
            break
        if first < len(ids) <= context:
            segments.append(Segment(document=str(index), number=0, ids=ids, starts=len(bos)))
            numbers.append(list(_far(ids, text, tokenizer, first)))
            found += len(ids) - first
    return Text(segments, first, numbers)


def _far(ids: Sequence[int], text: str, tokenizer: Tokenizer, first: int) -> Iterator[slice]:
    """Yields the digits of numbers stated `first` tokens before or earlier, counted from there."""
    words = text.split()
    for number in {word for word in words if word[:-1].isdigit() and len(word) == 8}:
        wanted = tokenizer.encode(f" {number[:-1]}", special=False)
        digits = sum(bool(tokenizer.decode([each]).strip()) for each in wanted)
        ends = [
            end
            for end in range(len(wanted), len(ids) + 1)
            if list(ids[end - len(wanted) : end]) == wanted
        ]
        if len(ends) == 2 and ends[1] - digits - ends[0] >= first:
            yield slice(ends[1] - digits - first, ends[1] - first)


def losses(
    model: LanguageModel, text: Text, context: int | None, rows: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Scores the last tokens of each segment.

    Args:
        model: The model.
        text: The segments.
        context: Tokens before each token at most; None: all.
        rows: Prompts that are scored together.

    Returns:
        For each segment, the losses in nats and whether the tokens are the likeliest ones.
    """
    requests = []
    for number, segment in enumerate(text.segments):
        count = len(segment.ids) - text.first
        parts: Iterator[ScoreRequest] | list[ScoreRequest] = (
            [dataclasses.replace(segment.whole(), first=text.first)]
            if context is None
            else segment.windows(context, count)
        )
        requests += [dataclasses.replace(one, tag=(number, n)) for n, one in enumerate(parts)]
    model.engine.reserve(rows * max(len(one.ids) for one in requests))
    found = {one.request.tag: one for one in score(model, requests, rows=rows)}
    nll: list[list[float]] = [[] for _ in text.segments]
    right: list[list[bool]] = [[] for _ in text.segments]
    for number, part in sorted(found):
        nll[number] += [-value for value in found[number, part].logprobs]
        right[number] += found[number, part].is_likeliest
    return [np.asarray(one) for one in nll], [np.asarray(one) for one in right]


def pooled(values: Sequence[np.ndarray]) -> float:
    """Returns the mean over all tokens."""
    return float(np.concatenate(values).mean())


def paired(more: Sequence[np.ndarray], less: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Returns the mean of `more - less` over all tokens, and its interval over segments."""
    gaps = [a - b for a, b in zip(more, less, strict=True)]
    size = np.mean([len(gap) for gap in gaps])
    low, high = bootstrap_interval([gap.sum() / size for gap in gaps])
    return pooled(gaps), low, high


def met(value: bool) -> str:
    """Returns a word for the table."""
    return "met" if value else "NOT MET"


HEADER = (
    "| stage | held-out tokens | scored | loss, whole context | at most {} before "
    "| difference (95%) | model before | must hold |"
)


def text_stage(stage: Finished, before: Finished, config: Benchmark) -> Iterator[str]:
    """Yields the table of a stage of text."""
    longer = stage.context > before.context
    first = before.context if longer else stage.context // 2
    # With the token that is scored, so many fill the context of the stage before.
    window = first - 1 if longer else None
    now, old = stage.load(), before.load()
    shown = f"{window:,}" if window else "…"
    yield HEADER.format(shown)
    yield "| --- " * 8 + "|"
    copied: list[bool] = []
    kinds = {"works": works, "recalls": excerpts}
    for name, make in kinds.items():
        text = make(now.tokenizer, stage.context, first, config.targets)
        whole, right = losses(now, text, None, config.rows)
        short, _ = losses(now, text, window, config.rows) if longer else (whole, right)
        earlier, _ = losses(old, text, window, config.rows)
        parts = [(name, [whole, short, earlier])]
        if text.numbers:
            digits = [text.digits(each) for each in (whole, short, earlier)]
            parts.append(("digits of numbers stated further back", digits))
        for what, found in parts:
            if found[0]:
                yield _row(stage, what, *found, longer=longer)
        copied += [
            bool(values[number].all())
            for values, numbers in zip(right, text.numbers, strict=False)
            for number in numbers
        ]
    yield ""
    yield f"Numbers of which each digit is the likeliest, with the whole context: {share(copied)}."


def _row(
    stage: Finished,
    what: str,
    whole: Sequence[np.ndarray],
    short: Sequence[np.ndarray],
    earlier: Sequence[np.ndarray],
    *,
    longer: bool,
) -> str:
    gap = paired(whole, short)
    below = pooled(whole) < pooled(earlier)
    holds = f"below the model before: {met(below)}"
    if longer and what == "works":
        holds = f"interval below {NO_WORSE:+}: {met(gap[2] < NO_WORSE)}; {holds}"
    elif longer and what == "recalls":
        holds = f"lower by {GAIN}: {met(gap[0] <= -GAIN)}; {holds}"
    cells = [
        stage.name,
        what,
        f"{sum(map(len, whole)):,} of {len(whole)} segments",
        f"{pooled(whole):.3f}",
        f"{pooled(short):.3f}" if longer else "",
        f"{gap[0]:+.3f} ({gap[1]:+.3f} to {gap[2]:+.3f})" if longer else "",
        f"{pooled(earlier):.3f}",
        holds,
    ]
    return f"| {' | '.join(cells)} |"


def share(right: Sequence[float]) -> str:
    """Returns a share with its interval."""
    if not right:
        return "none asked"
    low, high = mean_interval(right)
    return f"{np.mean(right):.0%} ({low:.0%} to {high:.0%}) of {len(right)}"


def seeing_stage(stage: Finished, last: Finished, config: Benchmark) -> Iterator[str]:
    """Yields the loss on works after a stage with images, and that of the last model of text."""
    model, first = last.load(), last.context // 2
    text = works(model.tokenizer, last.context, first, config.targets)
    before, _ = losses(model, text, None, config.rows)
    after, _ = losses(stage.load(), text, None, config.rows)
    gap, low, high = (100 * each / pooled(before) for each in paired(after, before))
    yield (
        f"Loss on {text.count:,} tokens of works: {pooled(before):.3f} after {last.name}, "
        f"{pooled(after):.3f} after {stage.name}: {gap:+.1f}% ({low:+.1f}% to {high:+.1f}%); "
        f"at most {100 * FORGOTTEN:+.0f}%: {met(gap <= 100 * FORGOTTEN)}."
    )


def answers(stage: Finished, config: Benchmark) -> Iterator[str]:
    """Yields the shares of right answers: numbers of held-out excerpts, and facts of clips."""
    model = stage.load()
    names = [name for one in stage.settings["data"]["held_out"] for name in one["files"]]
    for name in names:
        if not name.startswith("recalls:") or "form=chat" not in name:
            continue
        held_out = RecallSet.parse(name)
        for part in (8, 1):
            asked = dataclasses.replace(
                held_out, characters=held_out.characters // part, count=config.questions
            )
            found = list(recalled(model, asked, config.rows))
            tokens = np.mean([length for length, _ in found])
            yield (
                f"Numbers asked for in chats of {tokens:,.0f} tokens: right "
                f"{share([right for _, right in found])}."
            )
            yield ""
    clips = f"world:heldout,count={config.clips},frames=8,backgrounds=white"
    asking = QAConfig(instruction="")
    yield from [f"Questions about clips, `{clips}`:", ""]
    with tempfile.TemporaryDirectory() as folder:
        try:
            questions = open_questions((clips,), asking)
            yield evaluate(model, questions, asking, Path(folder)).report.table()
        except UserError as error:  # the context may be too short for a clip
            yield f"not asked: {error}"


def recalled(model: LanguageModel, asked: RecallSet, rows: int) -> Iterator[tuple[int, bool]]:
    """Yields the tokens of each chat, and whether the greedy answer has the number."""
    encode = PromptEncoder(tokenizer=model.tokenizer, template=model.template)
    source, questions = Recalls(asked), []
    for index in range(len(source)):
        user, answer = (turn["content"] for turn in source[index].value["messages"])
        ids = encode(user)
        if len(ids) + 40 <= model.context:
            number = answer.rpartition(" ")[2].rstrip(".")
            questions.append(
                Question(cell=index, message=user, ids=ids, max_tokens=40, truth={"number": number})
            )
    answerer = ModelAnswerer(model, tokens=rows * model.context, rows=rows)
    for question, response in answerer.answers(questions):
        yield len(question.ids), question.truth["number"] in response.text


def main(folder: tyro.conf.Positional[Path], config: tyro.conf.OmitArgPrefixes[Benchmark]) -> None:
    """Writes the tables, after each stage."""
    date = datetime.date.today().isoformat()
    lines = [f"# A curriculum, {date}", "", f"{hardware()}; {versions('numpy')}.", ""]
    file = config.file or Path(__file__).parent / "results" / f"curriculum-cpu-{date}.md"
    stages = finished(folder)
    names = [stage.name for stage in stages[1:]]
    if unknown := sorted(set(config.stages) - set(names)):
        raise UserError(f"{unknown[0]} is no stage that can be measured; these are: {names}")
    texts = [stage for stage in stages if not stage.sees]
    for before, stage in itertools.pairwise(stages):
        if config.stages and stage.name not in config.stages:
            continue
        begun = time.monotonic()
        parts: list[Iterator[str]] = [iter([f"## {stage.name}", ""])]
        parts.append(
            seeing_stage(stage, texts[-1], config)
            if stage.sees
            else text_stage(stage, before, config)
        )
        if any("form=chat" in str(one) for one in stage.settings["data"]["held_out"]):
            parts += [iter([""]), answers(stage, config)]
        for line in itertools.chain(*parts):
            print(line, flush=True)
            lines.append(line)
        lines += ["", f"Measured in {time.monotonic() - begun:.0f} s.", ""]
        print("\n".join(lines[-3:]), flush=True)
        file.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except UserError as error:
        raise SystemExit(f"curriculum.py: {error}") from None
