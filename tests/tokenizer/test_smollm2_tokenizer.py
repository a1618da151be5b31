"""The tokenizer of SmolLM2, out of its GGUF file: against two others."""

from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from lwm.formats.gguf import read_gguf
from lwm.hub.catalog import find_model, locate
from lwm.tokenizer.tokenizer import Tokenizer

from .texts import BOOK, TEXTS, random_texts


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """Return the GGUF file of SmolLM2."""
    path = locate(find_model("smollm2-135m-instruct"))
    if path is None:
        pytest.skip("smollm2-135m-instruct is not on this machine")
    return path


def test_smollm2(smollm2: Path):
    tokenizer = Tokenizer.open(smollm2)
    assert tokenizer.eos_ids == {0, 2}
    assert (tokenizer.bos_id, tokenizer.pad_id, tokenizer.add_bos) == (1, 2, False)
    assert tokenizer.vocab_size == 49152
    assert tokenizer.encode("<|im_start|>user\nHi 42<|im_end|>\n") == [
        *[1, 4093, 198, 26843, 216, 36, 34, 2, 198],
    ]
    assert Tokenizer.open(smollm2.parent).encode("a b") == tokenizer.encode("a b")


def test_smollm2_against_a_tokenizer_made_by_hand(smollm2: Path):
    metadata = read_gguf(smollm2).metadata
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(m.split(" ")) for m in metadata["tokenizer.ggml.merges"]]
    reference = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    reference.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    reference.decoder = decoders.ByteLevel()
    reference.add_special_tokens(tokens[:17])
    tokenizer = Tokenizer.open(smollm2)
    texts = [*TEXTS, *random_texts(200), BOOK.read_text(encoding="utf-8")]
    for text in [*texts, "<repo_name>a<|endoftext|> b<|im_start|>"]:
        ids = tokenizer.encode(text)
        assert ids == reference.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special=False) == text


@pytest.mark.torch
def test_smollm2_against_transformers(smollm2: Path):
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    # It overlooks `tokenizer.ggml.pre`, so digits, which SmolLM2 takes one by one, stay together.
    tokenizer = Tokenizer.open(smollm2)
    for text in [*TEXTS, BOOK.read_text(encoding="utf-8")]:
        text = "".join(letter for letter in text if not letter.isnumeric())
        assert tokenizer.encode(text) == reference(text, add_special_tokens=False)["input_ids"]
