"""Training and test sets of needles: prompts as an evaluation has them, with the right answers."""

import dataclasses
import json
import random
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

from lwm.errors import UserError
from lwm.eval.needle.config import NeedleSetConfig
from lwm.eval.needle.evaluation import facts
from lwm.eval.needle.prompts import Cell, Prompts
from lwm.eval.needle.texts import RoundTexts, Source
from lwm.eval.prompt import plain_text
from lwm.eval.question import Question
from lwm.files import json_line, replacing
from lwm.progress import Progress
from lwm.tokenizer.tokenizer import Tokenizer

_SAMPLE = 1 << 16
"""Characters whose tokens are counted to see how much text a prompt needs."""
_MARGIN = 1.25
"""Part of the text that a prompt may need beyond what such a count says."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeedleSets:
    """Files of a training and a test set, as far as they were wanted."""

    train: Path | None
    test: Path | None
    shares_text: bool
    """True if the haystack is too short for texts of their own."""


def write_sets(
    config: NeedleSetConfig,
    tokenizer: Tokenizer,
    out: Path,
    *,
    progress: Progress = lambda done, total: None,
) -> NeedleSets:
    """Writes JSONL that `lwm train` reads, with the loss on the answers alone.

    Args:
        config: The sets.
        tokenizer: Tokenizer and chat template of the model.
        out: File of the training set; that of the test set has `-test` after its name.
        progress: Called with examples done and all of them; may raise.

    Raises:
        UserError: The haystack is too short, a length has no room, or the file cannot be written.
    """
    source = Source.open(config.haystack)
    parts = _divided(source, config, tokenizer) if config.train and config.test else None
    total, done = config.train + config.test, 0
    files: dict[str, Path | None] = {"train": None, "test": None}
    used: set[str] = set()
    # The test set first: the other leaves out its numbers.
    for name, count in (("test", config.test), ("train", config.train)):
        if not count:
            continue
        text = source if parts is None else parts[name]
        path = files[name] = test_file(out) if name == "test" else out
        with replacing(path) as partial, partial.open("wb") as file:
            for question in _questions(config, tokenizer, text, name, taken=frozenset(used)):
                file.write(json_line(_record(question, tokenizer)))
                if name == "test":
                    used |= {needle.number for needle in question.truth["needles"]}
                done += 1
                progress(done, total)
    shares = parts is None and bool(config.train and config.test)
    return NeedleSets(train=files["train"], test=files["test"], shares_text=shares)


def test_file(out: Path) -> Path:
    """Returns the file of the test set beside that of the training set."""
    return out.with_name(f"{out.stem}-test{out.suffix}")


def _divided(
    source: Source, config: NeedleSetConfig, tokenizer: Tokenizer
) -> dict[str, Source] | None:
    """Divides a source by the sizes of the sets; None if a part would be shorter than a prompt."""
    sample = source.text[:_SAMPLE]
    tokens = len(tokenizer.encode(sample, special=False))
    least = int(_MARGIN * max(config.lengths) * len(sample) / max(tokens, 1))
    share = config.train / (config.train + config.test)
    place = min(int(len(source.text) * share), len(source.text) - least)
    if place < least:
        return None
    place = source.sentence_after(place)
    train, test = source.halves(place)
    return {"train": train, "test": test} if place else None


def _questions(
    config: NeedleSetConfig, tokenizer: Tokenizer, source: Source, name: str, *, taken: Set[str]
) -> Iterator[Question]:
    seed = f"{config.seed}/{name}"
    prompts = {
        length: Prompts(
            config.questions(length),
            tokenizer,
            texts=RoundTexts(source, tokenizer, longest=length),
            seed=seed,
            taken=taken,
        )
        for length in config.lengths
    }
    for number in range(config.train if name == "train" else config.test):
        length = config.lengths[number % len(config.lengths)]
        depth = None
        if config.needles == 1:
            depth = float(random.Random(f"{seed}/depth/{number}").randrange(101))
        yield prompts[length].build(Cell(length=length, depth=depth, round=number))


def _record(question: Question, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns a record of the training data, with the fields of an evaluation beside it."""
    asked = question.truth["asked"]
    response = asked[0].number
    if len(asked) > 1:
        response = ", ".join(f"{needle.city}: {needle.number}" for needle in asked)
    if len(tokenizer.encode(response, special=False)) >= question.max_tokens:
        raise UserError(
            f"max_tokens {question.max_tokens:,} has no room for the answer {json.dumps(response)};"
            " raise it"
        )
    if question.form == "chat":
        record: dict[str, Any] = {
            "messages": [
                {"role": "user", "content": question.message},
                {"role": "assistant", "content": response},
            ]
        }
    else:
        prompt = plain_text(question.form, question.message)
        record = {"fields": "[prompt],response", "prompt": prompt, "response": response}
    return record | {
        "context_length": question.cell.length,
        "built_length": question.built_length,
        **facts(question),
    }
