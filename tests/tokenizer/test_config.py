"""The files beside a tokenizer: ids that end a text."""

import json

import pytest

from lwm.errors import UserError
from lwm.tokenizer.config import TokenizerConfig
from lwm.tokenizer.tokenizer import Tokenizer

from .test_controls import bytewise


def eos_ids(folder, **files):
    bytewise("<|a|>", "<|b|>").save(str(folder / "tokenizer.json"))
    files = {"tokenizer_config": {"eos_token": "</s>"}} | files
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return Tokenizer.open(folder).eos_ids


def test_each_eos_id_of_a_config_alone_stops(tmp_path):
    assert eos_ids(tmp_path, config={"eos_token_id": [256, 257, 258]}) == {256, 257, 258}


@pytest.mark.parametrize(
    ("files", "stops"),
    [
        ({"config": {"eos_token_id": 258}}, {256, 258}),
        ({"config": {"text_config": {"eos_token_id": [257, 258]}}}, {256, 257, 258}),
        ({"config": {"eos_token_id": 3, "text_config": {"eos_token_id": 4}}}, {256, 3}),
        ({"config": {"eos_token_id": None, "text_config": {"eos_token_id": 4}}}, {256, 4}),
        # As in transformers, the file for generation counts where there is one.
        ({"config": {"eos_token_id": 5}, "generation_config": {"eos_token_id": [257]}}, {256, 257}),
        ({"config": {"eos_token_id": [5]}, "generation_config": {"pad_token_id": 0}}, {256, 5}),
        ({"config": {"eos_token_id": -1}, "generation_config": {"pad_token_id": -1}}, {256}),
        ({"tokenizer_config": {"eos_token": {"content": "<|a|>"}}}, {257}),
        ({"tokenizer_config": {}, "special_tokens_map": {"eos_token": "<|b|>"}}, {258}),
    ],
)
def test_ids_that_stop_come_of_whichever_file_names_them(tmp_path, files, stops):
    assert eos_ids(tmp_path, **files) == stops
    assert Tokenizer.open(tmp_path).pad_id >= 0


@pytest.mark.parametrize("value", ["2", [[2]], True, 2.5])
def test_what_is_no_id_is_refused_by_name(tmp_path, value):
    with pytest.raises(UserError, match=r"eos_token_id .* is none of the tokenizer's ids"):
        eos_ids(tmp_path, config={"eos_token_id": value})


def test_the_only_template_of_a_list_is_taken(tmp_path):
    eos_ids(tmp_path, tokenizer_config={"chat_template": [{"name": "chat", "template": "C"}]})
    assert Tokenizer.open(tmp_path).chat_template == "C"


def test_gguf_files_may_name_several_ends(tmp_path):
    table = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*map(chr, range(97, 107))],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.eot_token_id": 2,
        "tokenizer.ggml.eom_token_id": 3,
    }
    assert Tokenizer.from_gguf(table).eos_ids == {1, 2, 3}
    assert Tokenizer.from_gguf(table | {"tokenizer.ggml.eos_token_ids": [4, 5]}).eos_ids == {
        *range(1, 6)
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("added_tokens_decoder", [1]),
        ("added_tokens_decoder", {"257": "<|a|>"}),
        ("added_tokens_decoder", {"x": {"content": "<|a|>"}}),
        ("added_tokens_decoder", {"257": {"content": 1}}),
        ("bos_token", ["<|a|>"]),
        ("eos_token", 257),
        ("eos_token", {"content": [1]}),
        ("eos_token", "\ud800"),
        ("pad_token", True),
        ("add_bos_token", "yes"),
        ("chat_template", 1),
        ("chat_template", [1]),
        ("chat_template", [{"name": "default", "template": ["x"]}]),
        ("chat_template", {"default": 1}),
    ],
)
def test_values_of_wrong_types_are_named(tmp_path, key, value):
    bytewise("<|a|>").save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({key: value}))
    read = TokenizerConfig(tmp_path)
    with pytest.raises(UserError, match=rf"tokenizer_config\.json: {key} is ") as caught:
        assert (read.added, Tokenizer.open(tmp_path)) is None
    assert "\n" not in str(caught.value)


def test_templates_in_bytes_that_are_no_text_are_refused(tmp_path):
    bytewise("<|a|>").save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"chat_template\.jinja cannot be read"):
        Tokenizer.open(tmp_path)
