"""Training of byte-level BPE tokenizers, which reproduce every text exactly."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from lwm.errors import UserError
from lwm.tokenizer.tokenizer import Tokenizer

_BOS, _EOS = "<s>", "</s>"
_SPECIAL = (_BOS, _EOS)
_LEAST = 256 + len(_SPECIAL)


def train_tokenizer(texts: Iterable[str], *, size: int, folder: Path) -> Tokenizer:
    """Trains byte-pair encoding on texts, and saves it for Hugging Face and `Tokenizer`.

    Words are split as in GPT-2, and digits one by one. `<s>` begins a document and `</s>` ends it;
    in the texts these names are plain text. The same texts and size give the same tokenizer.

    Args:
        texts: The training texts; each is read once.
        size: Number of ids, including special ones. If too few pairs occur twice in the texts,
            the vocabulary is smaller.
        folder: Receives `tokenizer.json` and `tokenizer_config.json`; other files are kept.

    Raises:
        UserError: The size is below the number of bytes and special tokens, there is no text, or
            the folder is not writable.
    """
    from tokenizers import Tokenizer as Trained, decoders, models, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer

    texts = (texts,) if isinstance(texts, str) else texts
    if size < _LEAST:
        raise UserError(
            f"a vocabulary of {size} has no room for the 256 bytes and {len(_SPECIAL)} special "
            f"tokens; take {_LEAST} or more"
        )
    trained = Trained(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trained.decoder = decoders.ByteLevel()
    # GPT-2's split separates letters from punctuation: merges never spell a special token.
    trainer = BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(_some(texts), trainer)
    trained.post_processor = processors.TemplateProcessing(
        single=f"{_BOS} $A",
        pair=f"{_BOS} $A {_BOS} $B:1",
        special_tokens=[(token, i) for i, token in enumerate(_SPECIAL)],
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _BOS,
        "eos_token": _EOS,
        "pad_token": _EOS,
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(trained.to_str(pretty=True), "utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    except OSError as error:
        raise UserError(f"cannot store a tokenizer in {folder}: {error.strerror}") from None
    return Tokenizer.open(folder)


def _some(texts: Iterable[str]) -> Iterator[str]:
    """Yields the texts; refuses if all are empty."""
    found = False
    for text in texts:
        found = found or bool(text)
        # Half of a surrogate pair, which JSON may hold, has no UTF-8 bytes.
        yield text.encode("utf-8", "replace").decode("utf-8")
    if not found:
        raise UserError("there is no text to train a tokenizer on")
