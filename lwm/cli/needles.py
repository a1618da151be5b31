"""`lwm data needles`: training and test sets of needles."""

from pathlib import Path

from lwm.cli.common import Flat, print_line, print_table
from lwm.errors import UserError
from lwm.eval.needle.config import NeedleSetConfig


def data_needles(
    *,
    out: Path,
    model: str | None = None,
    tokenizer: Path | None = None,
    overwrite: bool = False,
    needles: Flat[NeedleSetConfig] = NeedleSetConfig(),
) -> None:
    """Makes questions for numbers hidden in long texts, with the answers, to train and to test.

    Args:
        out: JSONL file of the training set; that of the test set has `-test` after its name.
        model: The model to be trained: a name from `lwm models`, a folder, or a GGUF file.
        tokenizer: In place of a model, a tokenizer's folder or file.
        overwrite: Replace files that exist.
        needles: The sets.
    """
    from lwm.console import waiting
    from lwm.convert.open import open_tokenizer
    from lwm.eval.needle.dataset import test_file, write_sets
    from lwm.files import require_absent

    named = model if tokenizer is None else tokenizer
    if named is None or (model is not None and tokenizer is not None):
        raise UserError("give either --model or --tokenizer")
    if needles.train:
        require_absent(out, overwrite=overwrite)
    if needles.test:
        require_absent(test_file(out), overwrite=overwrite)
    opened = open_tokenizer(named)
    with waiting("hiding", "examples") as progress:
        made = write_sets(needles, opened, out, progress=progress)
    counts = {made.train: needles.train, made.test: needles.test}
    print_table([(str(path), f"{counts[path]:,} examples") for path in counts if path])
    if made.shares_text:
        print_line(
            "lwm: the haystack is too short for texts of their own: both sets are from all of it",
            error=True,
        )
