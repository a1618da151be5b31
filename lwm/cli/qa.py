"""`lwm data qa`: questions and answers about long documents, written by a model."""

import time
from pathlib import Path
from typing import Annotated

import tyro

from lwm.cli.answerers import AnswerOptions, open_subject, require_answerer
from lwm.cli.common import Flat, LoadOptions, answering, print_line, print_table
from lwm.synth.qa.config import QASetConfig


def data_qa(
    files: Annotated[tuple[str, ...], tyro.conf.Positional],
    /,
    *,
    out: Path,
    model: str = "",
    trained: str | None = None,
    set: Flat[QASetConfig] = QASetConfig(),
    load: Flat[LoadOptions] = LoadOptions(),
    answers: Flat[AnswerOptions] = AnswerOptions(),
) -> None:
    """Has a model write questions about long documents, chunk by chunk, with their answers.

    A model with a short context is enough. Neighbouring chunks are then joined to examples of the
    length that is to be trained, each with the questions about it as a chat.

    Args:
        files: Texts: JSON lines, Parquet, ArrayRecord or .txt files, folders of them, patterns.
        out: Folder for pairs.jsonl, examples.jsonl and report.json; run again to continue.
        model: The model that writes: a name from `lwm models`, a folder, a GGUF file, or a hub's
            org/name. With --endpoint the name that the server has for it, if it serves several.
        trained: The model to be trained, whose tokenizer counts the tokens of examples; by default,
            the writer.
        set: Sizes of chunks and examples.
        load: How the model is loaded.
        answers: Where the model is, and how it is asked.
    """
    from lwm.convert.open import open_tokenizer
    from lwm.synth.qa.run import EXAMPLES, write_qa

    require_answerer(model, answers)
    tokenizer = None if trained is None else open_tokenizer(trained)
    begun = time.monotonic()
    with open_subject(model, load, answers) as subject, answering("writing") as progress:
        made = write_qa(
            subject,
            files,
            out,
            set,
            tokenizer=tokenizer,
            warn=lambda text: print_line(f"lwm: {text}", error=True),
            progress=progress,
        )
    seconds = time.monotonic() - begun
    faults = ", ".join(f"{reason} {count:,}" for reason, count in made.malformed.items())
    now = f"{made.work.num_new:,} asked about now in {seconds:.0f} s"
    used = f"{made.tokens:,} tokens, {made.chunks_used:,} chunks"
    print_table(
        [
            ("chunks", f"{made.chunks:,}, {now}"),
            ("pairs", f"{made.pairs:,}"),
            ("malformed", f"{made.malformed_share:.1%}" + (f": {faults}" if faults else "")),
            ("examples", f"{made.examples:,} of {used}"),
        ]
    )
    print_line(out / EXAMPLES)
