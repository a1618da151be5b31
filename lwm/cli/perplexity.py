"""`lwm eval perplexity`: loss by position over long documents, and by limited context."""

from pathlib import Path
from typing import Annotated

import tyro

from lwm.cli.common import (
    Flat,
    LoadOptions,
    Model,
    open_model,
    print_line,
    record_command,
    stoppable,
)
from lwm.eval.perplexity.config import PerplexityConfig


def eval_perplexity(
    model: Model,
    files: Annotated[tuple[Path, ...], tyro.conf.Positional] = (),
    /,
    *,
    out: Path = Path("perplexity"),
    perplexity: Flat[PerplexityConfig] = PerplexityConfig(),
    load: Flat[LoadOptions] = LoadOptions(),
) -> None:
    """Measures perplexity by position in long documents, and how much context a model uses.

    Args:
        model: A name from `lwm models`, a Hugging Face folder, a GGUF file, or a hub's org/name.
        files: Text files, JSONL files (`{"text": ...}` per line) or folders of .txt files; by
            default three chapters of Moby-Dick.
        out: Folder for results, report.json, curve.png and curve.svg; run again to continue.
        perplexity: Segments of the documents, and windows.
        load: How the model is loaded.
    """
    from lwm.eval.perplexity.run import PICTURE, REPORT, check, evaluate

    check(perplexity, files, out)
    loaded = open_model(model, load)
    try:
        with stoppable("scoring", "tokens") as progress:
            report = evaluate(loaded, files, perplexity, out, progress=progress)
    except KeyboardInterrupt:
        print_line(f"stopped; run the same command to continue in {out}", error=True)
        raise
    record_command(out / REPORT)
    print(report.table())
    print_line(out / PICTURE)
