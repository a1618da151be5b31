"""Tokenizers written to a folder, and opened again by us and by transformers."""

import json

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from lwm.tokenizer.tokenizer import Tokenizer

TEXTS = [
    "",
    "hello world",
    "  two  spaces\n\n12345 it's they'LL",
    "héllo 日本語 😀",
    "<s>a<|im_end|> b</s>",
    "\u2581 as typed",
]


def bytewise_tables(pre="llama-bpe", kind=3):
    """Returns byte-level BPE as a GGUF file holds it; its special tokens are of a kind."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "ll", "hell", "hello"]
    tokens += ["<s>", "</s>", "<|im_end|>"]
    special = [tokens.index(name) for name in ("<s>", "</s>", "<|im_end|>")]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [kind if i in special else 1 for i in range(len(tokens))],
        "tokenizer.ggml.merges": ["h e", "l l", "he ll", "hell o"],
        "tokenizer.ggml.bos_token_id": special[0],
        "tokenizer.ggml.eos_token_id": special[1],
        "tokenizer.chat_template": "{{ messages }} ä",
    }


def sentencepiece_tables():
    """Returns a SentencePiece model as a GGUF file holds it."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["\u2581", *"abcdehlorw", "he", "ll", "hell", "hello", "\u2581hello"]
    words = len(tokens) - 259
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(words)],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * words],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def write_json(folder):
    """Writes a `tokenizer.json` that says itself how a text starts, and one that pads."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>"])
    tokenizer.add_tokens(["lo wor"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 256)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text("{{ messages }}")


@pytest.fixture(
    params=["tables", "no-bos", "ordinary", "json", "pieces", "pieces-no-bos", "added", "original"]
)
def tokenizer(request, tmp_path):
    """A tokenizer from each kind of file."""
    match request.param:
        case "tables":
            return Tokenizer.from_gguf(bytewise_tables())
        case "no-bos":
            return Tokenizer.from_gguf(
                bytewise_tables("qwen2") | {"tokenizer.ggml.bos_token_id": None}
            )
        case "ordinary":
            return Tokenizer.from_gguf(bytewise_tables(kind=1))
        case "pieces":
            return Tokenizer.from_gguf(sentencepiece_tables())
        case "pieces-no-bos":
            tables = sentencepiece_tables() | {"tokenizer.ggml.add_space_prefix": False}
            return Tokenizer.from_gguf(tables | {"tokenizer.ggml.bos_token_id": None})
        case "json":
            write_json(tmp_path)
        case "added":
            Tokenizer.from_gguf(sentencepiece_tables()).save(tmp_path)
            (tmp_path / "tokenizer_config.json").unlink()
            (tmp_path / "added_tokens.json").write_text('{"<|im_end|>": 300}')
        case "original":
            fixtures = request.getfixturevalue("fixtures")
            return Tokenizer.open(fixtures / "tokenizer_addbos" / "tokenizer.model")
    return Tokenizer.open(tmp_path)


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    tokenizer.save(folder)
    found = Tokenizer.open(folder)
    assert found.backend.special == tokenizer.backend.special
    for name in ("bos_id", "eos_id", "eos_ids", "add_bos", "chat_template", "vocab_size"):
        assert getattr(found, name) == getattr(tokenizer, name), name
    if tokenizer.pad_id in tokenizer.backend.special.values():
        assert found.pad_id == tokenizer.pad_id
    for text in TEXTS:
        for special in (True, False):
            assert found.encode(text, special=special) == tokenizer.encode(text, special=special)
    ids = range(-1, tokenizer.vocab_size + 2)
    assert [found.text_of(i) for i in ids] == [tokenizer.text_of(i) for i in ids]
    assert found.decode(ids) == tokenizer.decode(ids)
    for path in folder.iterdir():
        assert "\ufdd0".encode() not in path.read_bytes(), "a mark of ours is in the file"


def test_saving_changes_nothing(tokenizer, tmp_path):
    before = [tokenizer.encode(text, special=False) for text in TEXTS]
    tokenizer.save(tmp_path)
    assert [tokenizer.encode(text, special=False) for text in TEXTS] == before


@pytest.mark.torch
def test_transformers_encodes_the_same(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = tmp_path / "saved"
    folder.mkdir()
    tokenizer.save(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs.chat_template == tokenizer.chat_template
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    start = [tokenizer.bos_id] if tokenizer.add_bos else []
    for text in ("hello world", "abc  hell", "héllo 日本語 😀"):
        assert theirs(text)["input_ids"] == start + tokenizer.encode(text)


def test_half_a_surrogate_pair_in_a_template_is_saved(tmp_path):
    tables = bytewise_tables() | {"tokenizer.chat_template": "{{ messages }} \ud83d"}
    Tokenizer.from_gguf(tables).save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["chat_template"] == "{{ messages }} \ud83d"
