"""Metadata of GGUF files that is not what it should be: one line that names the entry."""

import math

import pytest

from lwm.errors import UserError
from lwm.formats.gguf import read_gguf
from lwm.tokenizer.tokenizer import Tokenizer

from ..small_files import gguf, gguf_metadata


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokenizer.ggml.tokens", [1, 2]),
        ("tokenizer.ggml.tokens", "a"),
        ("tokenizer.ggml.token_type", ["1"] * 258),
        ("tokenizer.ggml.token_type", [1] * 3),
        ("tokenizer.ggml.merges", [1.0]),
        ("tokenizer.ggml.merges", ["ab"]),
        ("tokenizer.ggml.pre", ["gpt-2"]),
        ("tokenizer.ggml.model", ["gpt2"]),
        ("tokenizer.ggml.add_bos_token", "yes"),
        ("tokenizer.ggml.bos_token_id", math.nan),
        ("tokenizer.ggml.eos_token_ids", [[1]]),
        ("tokenizer.chat_template", [1]),
    ],
)
def test_tables_of_wrong_types_are_named(key, value):
    with pytest.raises(UserError, match=r"tokenizer\.|tables are corrupted|kind|bos_|eos_") as e:
        Tokenizer.from_gguf(gguf_metadata() | {key: value})
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 300


@pytest.mark.parametrize("scores", [[0.0] * 3, [math.nan] * 258, ["x"] * 258, [1] * 258])
def test_scores_that_are_not_one_number_for_each_token_are_named(scores):
    tables = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": scores}
    with pytest.raises(UserError, match=r"tokenizer\.ggml\.scores"):
        Tokenizer.from_gguf(gguf_metadata() | tables)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "8", [8], True])
@pytest.mark.parametrize("key", ["llama.block_count", "llama.rope.freq_base"])
def test_counts_that_are_no_numbers_are_named(tmp_path, key, value):
    (file := tmp_path / "m.gguf").write_bytes(gguf(gguf_metadata() | {key: value}))
    with pytest.raises(UserError, match=f"metadata entry '{key}' is "):
        read_gguf(file)
