"""Llama 3's tokenizer.model, a tiktoken file."""

import base64
import itertools
import json

import pytest

from lwm.errors import UserError
from lwm.tokenizer.tokenizer import Tokenizer

# In the order of their ranks: the bytes, then pairs.
WORDS = [bytes([byte]) for byte in range(256)]
WORDS += [b"he", b"ll", b"lo", b"hell", b"hello", b" w", b" wo", b"12", b"123", b"\xc3\xa9"]


def write(folder, words=WORDS, *, vocab_size=None, kind="llama"):
    lines = [base64.b64encode(word) + b" %d\n" % rank for rank, word in enumerate(words)]
    (folder / "tokenizer.model").write_bytes(b"".join(lines))
    size = len(words) + 256 if vocab_size is None else vocab_size
    (folder / "config.json").write_text(json.dumps({"model_type": kind, "vocab_size": size}))
    return folder


def _pairs(parts):
    return enumerate(itertools.pairwise(parts))


def tiktoken(text: bytes) -> list[int]:
    """Merges the pair of lowest rank until there is none; a word that is a token is taken."""
    ranks = {word: rank for rank, word in enumerate(WORDS)}
    if text in ranks:
        return [ranks[text]]
    parts = [text[i : i + 1] for i in range(len(text))]
    while found := [(ranks[a + b], i) for i, (a, b) in _pairs(parts) if a + b in ranks]:
        at = min(found)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [ranks[part] for part in parts]


def test_llama_3s_tokenizer_model_is_read(tmp_path):
    tokenizer = Tokenizer.open(write(tmp_path))
    size = len(WORDS)
    assert tokenizer.vocab_size == size + 256
    assert (tokenizer.bos_id, tokenizer.eos_id) == (size, size + 1)
    assert tokenizer.add_bos
    assert tokenizer.eos_ids == {size + 1, size + 8, size + 9}
    assert tokenizer.backend.special["<|start_header_id|>"] == size + 6
    assert tokenizer.text_of(size + 255) == "<|reserved_special_token_245|>"
    words = ["hello", " world", " ", "123", "45", "hel", " é", "\n\n", "'s"]
    split = ("hello", " world", " ", "123", "45")
    expected = [i for word in split for i in tiktoken(word.encode())]
    assert tokenizer.encode("hello world 12345") == expected
    for word in words:
        assert tokenizer.encode(word) == tiktoken(word.encode())
        assert tokenizer.decode(tokenizer.encode(word)) == word
    typed = "<|eot_id|>"
    assert tokenizer.encode(typed) == [size + 9]
    assert tokenizer.decode(tokenizer.encode(typed, special=False)) == typed


def test_a_config_names_special_tokens_of_llama_3(tmp_path):
    listed = {str(len(WORDS) + 8): {"content": "<|own|>", "special": True}}
    config = {"added_tokens_decoder": listed, "pad_token": "<|end_of_text|>"}
    (write(tmp_path) / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.open(tmp_path / "tokenizer.model")
    assert tokenizer.backend.special["<|own|>"] == len(WORDS) + 8
    assert (tokenizer.bos_id, tokenizer.pad_id) == (len(WORDS), len(WORDS) + 1)


@pytest.mark.parametrize("options", [{"vocab_size": 32_000}, {"kind": "kimi"}])
def test_other_tiktoken_files_are_refused_by_name(tmp_path, options):
    write(tmp_path, **options)
    with pytest.raises(UserError, match=r"tiktoken file of 266 tokens, not that of Llama 3"):
        Tokenizer.open(tmp_path)


def test_a_damaged_tiktoken_file_is_refused(tmp_path):
    write(tmp_path, WORDS[5:])
    with pytest.raises(UserError, match="corrupted tiktoken file"):
        Tokenizer.open(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"AA== 0\nnot a line\n")
    with pytest.raises(UserError, match="corrupted tiktoken file"):
        Tokenizer.open(tmp_path)
