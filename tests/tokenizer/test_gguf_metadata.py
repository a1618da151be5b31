"""Tokenizers as the metadata of a GGUF file, read back: the same ids for every text."""

import json

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers
from tokenizers.normalizers import NFC

from lwm.convert.open import open_model_files
from lwm.errors import UserError
from lwm.tokenizer.gguf_metadata import gguf_metadata
from lwm.tokenizer.lwm_format import LWM_JINJA, LWM_TEMPLATE
from lwm.tokenizer.pieces import UNUSED
from lwm.tokenizer.splits import LLAMA3, splitter
from lwm.tokenizer.tokenizer import Tokenizer

from .texts import BOOK, TEXTS

HARD = [*TEXTS[:20], "<s>a<unk>b</s>", "cafe\u0301 A\u030a", " 1234567 x\n\n\ny", "[PAD3] <0x41>"]


def train(folder, *, split, normalizer=None, whole=False, more=()):
    """Trains byte-level BPE on a chapter, with a split of words and what models add."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = split, decoders.ByteLevel()
    if normalizer is not None:
        made.normalizer = normalizer
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([BOOK.read_text()], trainer)
    made.add_tokens(list(more))
    state = json.loads(made.to_str())
    state["model"]["ignore_merges"] = whole
    state["model"]["vocab"]["Ġqueequeg"] = 600 + len(more)  # a word that no merge makes
    (folder / "tokenizer.json").write_text(json.dumps(state))
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ messages }} ä"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.open(folder)


QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
BYTEWISE = {
    "smollm": dict(
        split=pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
        more=["lo wor"],
    ),
    "gpt-2": dict(split=pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "llama-bpe": dict(split=splitter((LLAMA3,)), whole=True),
    "smaug-bpe": dict(split=splitter((LLAMA3,))),
    "qwen2": dict(split=splitter((QWEN2,)), normalizer=NFC()),
    "stablelm2": dict(split=splitter((QWEN2,))),
}


@pytest.mark.parametrize("pre", BYTEWISE)
def test_byte_pairs_name_the_split_of_llama_cpp(tmp_path, pre):
    ours = train(tmp_path, **BYTEWISE[pre])
    metadata = gguf_metadata(ours, [f"[PAD{ours.vocab_size}]"], [UNUSED]).values
    assert metadata["tokenizer.ggml.pre"] == pre
    assert len(metadata["tokenizer.ggml.tokens"]) == ours.vocab_size + 1
    require_alike(ours, Tokenizer.from_gguf(metadata))


def test_a_split_that_llama_cpp_does_not_know_is_refused(tmp_path):
    ours = train(tmp_path, split=splitter((r"\p{L}{1,4}",)))
    with pytest.raises(UserError, match=r"llama\.cpp knows no rule that splits texts as it does"):
        gguf_metadata(ours, [], [])


@pytest.mark.parametrize("file", ["tokenizer.model", "tokenizer.json"])
def test_pieces_keep_their_order_of_merging(fixtures, file):
    ours = Tokenizer.open(fixtures / f"tokenizer/{file}")
    read = Tokenizer.from_gguf(metadata := gguf_metadata(ours, [], []).values)
    assert metadata["tokenizer.ggml.model"] == "llama"
    assert metadata["tokenizer.ggml.add_space_prefix"] is True
    require_alike(ours, read)


@pytest.mark.parametrize(
    ("scheme", "strips", "note"),
    [
        ("first", False, "llama.cpp encodes a space at the start of a text unlike"),
        ("never", False, None),
        ("never", True, "llama.cpp encodes spaces beside </s> and other special tokens unlike"),
    ],
)
def test_rules_for_spaces_that_gguf_lacks_are_noted(fixtures, tmp_path, scheme, strips, note):
    state = json.loads((fixtures / "tokenizer/tokenizer.json").read_text())
    state["normalizer"] = None
    state["pre_tokenizer"] = {
        "type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False
    }  # fmt: skip
    state["added_tokens"][2]["rstrip"] = strips
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    found = gguf_metadata(Tokenizer.open(tmp_path), [], [])
    assert found.values["tokenizer.ggml.add_space_prefix"] is (scheme == "first")
    assert (found.note or "").startswith(note or "")
    assert (found.note is None) == (note is None)


def test_tokens_added_to_pieces_are_special(fixtures, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(
        (fixtures / "tokenizer/tokenizer.model").read_bytes()
    )
    added = {"514": {"content": "<|im_end|>"}, "512": {"content": "<|im_start|>"}}
    config = {"added_tokens_decoder": added, "eos_token": "</s>", "pad_token": "<|im_start|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = Tokenizer.open(tmp_path)
    metadata, note = gguf_metadata(ours, [], [])
    assert note is None
    assert metadata["tokenizer.ggml.tokens"][512:] == ["<|im_start|>", "[PAD513]", "<|im_end|>"]
    assert metadata["tokenizer.ggml.eot_token_id"] == 514
    require_alike(ours, Tokenizer.from_gguf(metadata))


def test_the_format_of_lwm_is_written_in_jinja():
    ours = open_model_files("tiny-vision").written_tokenizer
    assert ours.chat_template == LWM_TEMPLATE
    metadata, note = gguf_metadata(ours, [], [])
    assert note is None
    assert metadata["tokenizer.chat_template"] == LWM_JINJA
    require_alike(ours, Tokenizer.from_gguf(metadata))


def require_alike(ours, read):
    for text in HARD:
        for special in (True, False):
            ids = ours.encode(text, special=special)
            assert read.encode(text, special=special) == ids, text
        assert read.decode(ids) == ours.decode(ids)
        assert read.decode(ids, skip_special=False) == ours.decode(ids, skip_special=False)
    assert read.backend.special == ours.backend.special
    assert read.backend.added == ours.backend.added
    for name in ("bos_id", "eos_id", "eos_ids", "pad_id", "add_bos", "chat_template", "vocab_size"):
        assert getattr(read, name) == getattr(ours, name), name
