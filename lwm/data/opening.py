"""What the commands about training data open: records, a tokenizer, and the model's token space."""

from pathlib import Path

from lwm.data.sources import Source, open_source
from lwm.data.tokenizer import Tokenizer
from lwm.errors import UserError
from lwm.tokens import TokenSpace


def open_data(
    files: tuple[str, ...], *, model: str | None, tokenizer: Path | None, codes: int
) -> tuple[Source, Tokenizer, TokenSpace]:
    """Opens records, and what turns them into examples.

    Args:
        files: See `open_source`.
        model: The model to be trained, which says what the tokens are; or
        tokenizer: A tokenizer's folder or file, which does with
        codes: The entries of the vision codebook; 0 is no vision.

    Raises:
        UserError: Something is not there, or is given twice or not at all.
    """
    if not files:
        raise UserError("give the files to read")
    if (model is None) == (tokenizer is None):
        raise UserError("give --model or --tokenizer: either says what the tokens are")
    source = open_source(*files)
    if len(source) == 0:
        raise UserError(f"{', '.join(files)}: no record, only blank lines")
    if tokenizer is not None:
        return source, *tokenizer_alone(tokenizer, codes)
    assert model is not None
    return source, *of_model(model)


def tokenizer_alone(path: Path, codes: int) -> tuple[Tokenizer, TokenSpace]:
    """Returns a tokenizer, and the token space of it and a codebook."""
    if codes < 0:
        raise UserError(f"codes {codes} must be 0 (no vision) or above")
    tokenizer = Tokenizer.open(path)
    vision = codes + 2 if codes else 0
    return tokenizer, TokenSpace(text=tokenizer.vocab_size, vision=vision, codes=codes)


def of_model(name: str) -> tuple[Tokenizer, TokenSpace]:
    """Returns a model's tokenizer and token space; no weight is read."""
    from lwm.convert.gguf import read_gguf
    from lwm.convert.huggingface import read_config, read_json
    from lwm.loading import find

    path = find(name)
    tokenizer = Tokenizer.open(path)
    if (path / "config.json").is_file():
        values = read_json(path / "config.json")
    else:
        gguf = path if path.is_file() else next(iter(path.glob("*.gguf")), path)
        values = read_gguf(gguf).config
    return tokenizer, read_config(values, source=str(path), dtype="float32").tokens


def require_share(max_bad_share: float) -> None:
    """Refuses a share that is none."""
    if not 0 <= max_bad_share <= 1:
        raise UserError(f"max_bad_share {max_bad_share} must be from 0 to 1")
