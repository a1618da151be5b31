"""Text to ids and back: both libraries, every kind of file, and nothing added on the way."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from sentencepiece import SentencePieceProcessor
from tokenizers import decoders, models, pre_tokenizers, trainers

from lwm.errors import UserError
from lwm.tokenizer.tokenizer import TextStream, Tokenizer

from .texts import BOOK, TEXTS

FOLDERS = ["tokenizer", "tokenizer_addbos"]
NAMED = ["<s>inside</s> text<unk>x", "</s></s>", "a <s> b", "<s>"]


@pytest.fixture(params=FOLDERS)
def folder(request: pytest.FixtureRequest, fixtures) -> Path:
    """Return a folder with both tokenizer files."""
    return fixtures / request.param


def train_bytewise(path: Path, *, post_bos: bool = False) -> tokenizers.Tokenizer:
    """Train byte-level BPE with chat tokens on the sample book, and save it as a folder."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|bos|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([BOOK.read_text(encoding="utf-8")], trainer)
    if post_bos:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="<|bos|> $A", special_tokens=[("<|bos|>", 3)]
        )
    path.mkdir(exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"bos_token": "<|bos|>", "eos_token": {"content": "<|endoftext|>"}}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer


def gguf_metadata(tokenizer: tokenizers.Tokenizer, pre: str) -> dict[str, Any]:
    """Return byte-level BPE as a GGUF file would hold it."""
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if t.startswith("<|") else 1 for t in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": 3,
        "tokenizer.ggml.eos_token_id": 0,
    }


def sentencepiece_metadata(file: Path) -> dict[str, Any]:
    """Return a SentencePiece model as a GGUF file would hold it."""
    model = SentencePieceProcessor(model_file=str(file))
    tests = [model.is_unknown, model.is_control, model.is_byte, model.is_unused]
    kinds = [2, 3, 6, 5]
    size = range(model.vocab_size())
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in size],
        "tokenizer.ggml.scores": [model.get_score(i) for i in size],
        "tokenizer.ggml.token_type": [
            next((kind for kind, test in zip(kinds, tests, strict=True) if test(i)), 1)
            for i in size
        ],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def test_both_libraries_agree_with_the_reference(folder: Path):
    fast, pieces = Tokenizer.open(folder), Tokenizer.open(folder / "tokenizer.model")
    reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in TEXTS + NAMED:
        ids = reference.encode(text, add_special_tokens=False).ids
        assert fast.encode(text) == pieces.encode(text) == ids
        for skip in (True, False):
            expected = reference.decode(ids, skip_special_tokens=skip)
            assert fast.decode(ids, skip_special=skip) == expected
            assert pieces.decode(ids, skip_special=skip) == expected


def test_typed_special_tokens_stay_text(folder: Path):
    fast, pieces = Tokenizer.open(folder), Tokenizer.open(folder / "tokenizer.model")
    for text in TEXTS + NAMED:
        ids = fast.encode(text, special=False)
        assert ids == pieces.encode(text, special=False)
        assert not {0, 1, 2} & set(ids)
        if "\u2581" not in text:  # which SentencePiece cannot tell from a space
            assert fast.decode(ids) == pieces.decode(ids) == text


def test_what_the_configs_say(folder: Path):
    for path in (folder, folder / "tokenizer.model", folder / "tokenizer.json"):
        tokenizer = Tokenizer.open(path)
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 0)
        assert tokenizer.eos_ids == {2}
        assert tokenizer.add_bos == (folder.name == "tokenizer_addbos")
        assert tokenizer.vocab_size == 512
        assert tokenizer.encode("x")[0] != 1, "no beginning of text unasked"


def test_a_bare_sentencepiece_model_is_llamas(folder: Path, tmp_path: Path):
    (tmp_path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    tokenizer = Tokenizer.open(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 0)
    assert tokenizer.add_bos
    (tmp_path / "added_tokens.json").write_text('{"<|im_end|>": 600}')
    tokenizer = Tokenizer.open(tmp_path)
    assert tokenizer.encode("a<|im_end|>")[-1] == 600
    assert tokenizer.eos_ids == {2, 600}
    assert tokenizer.vocab_size == 601


def test_sentencepiece_from_gguf(folder: Path):
    expected = Tokenizer.open(folder / "tokenizer.model")
    tokenizer = Tokenizer.from_gguf(sentencepiece_metadata(folder / "tokenizer.model"))
    assert tokenizer.add_bos
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (1, {2}, 0)
    for text in [*TEXTS, *NAMED, BOOK.read_text(encoding="utf-8")]:
        ids = tokenizer.encode(text)
        assert ids == expected.encode(text)
        assert tokenizer.decode(ids) == expected.decode(ids)


def test_sentencepiece_from_gguf_without_prefix(folder: Path):
    metadata = sentencepiece_metadata(folder / "tokenizer.model")
    tokenizer = Tokenizer.from_gguf(metadata | {"tokenizer.ggml.add_space_prefix": False})
    expected = Tokenizer.open(folder)
    assert tokenizer.encode(" hello") == expected.encode("hello")
    assert tokenizer.decode(tokenizer.encode(" hello")) == " hello"


def test_bytewise_folder_and_gguf(tmp_path: Path):
    reference = train_bytewise(tmp_path)
    folder = Tokenizer.open(tmp_path)
    tables = Tokenizer.from_gguf(gguf_metadata(reference, "smollm"))
    for tokenizer in (folder, tables):
        assert (tokenizer.bos_id, tokenizer.eos_id) == (3, 0)
        assert tokenizer.eos_ids == {0, 2}, "the chat's end of turn counts"
        assert not tokenizer.add_bos
        for text in [*TEXTS, "<|im_start|>user\nhi<|im_end|>\n", "<|bos|>"]:
            ids = tokenizer.encode(text)
            assert ids == reference.encode(text, add_special_tokens=False).ids
            assert tokenizer.decode(ids, skip_special=False) == text
            assert tokenizer.decode(ids) == reference.decode(ids)
            literal = tokenizer.encode(text, special=False)
            assert not {0, 1, 2, 3} & set(literal)
            assert tokenizer.decode(literal) == text


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("gpt-2", ["it", "'s", " 12345", " DON", "'", "T", "\n\n", " x"]),
        ("smollm", ["it", "'s", " ", "1", "2", "3", "4", "5", " DON", "'", "T", "\n\n", " x"]),
        ("llama-bpe", ["it", "'s", " ", "123", "45", " DON", "'T", "\n\n", " x"]),
        ("qwen2", ["it", "'s", " ", "1", "2", "3", "4", "5", " DON", "'T", "\n\n", " x"]),
    ],
)
def test_word_splitting(tmp_path: Path, pre: str, words: list[str]):
    """Each split is checked through a vocabulary that holds all words, joined by every merge."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    spelled = [word.replace(" ", "Ġ").replace("\n", "Ċ") for word in words]
    text = "".join(words)
    whole = text.replace(" ", "Ġ").replace("\n", "Ċ")
    # Left to right, every prefix of every stretch of the text is a token.
    stretches = {whole[i:j] for i in range(len(whole)) for j in range(i + 2, len(whole) + 1)}
    tokens = [*sorted(alphabet), *sorted(stretches, key=lambda s: (len(s), s))]
    merges = [f"{s[:-1]} {s[-1]}" for s in sorted(stretches, key=lambda s: (len(s), s))]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
    }
    tokenizer = Tokenizer.from_gguf(metadata)
    bounds, at = {0}, 0
    for token in tokenizer.encode(text):
        at += len(tokenizer.text_of(token))
        bounds.add(at)
    ends = {len("".join(words[:i])) for i in range(len(words) + 1)}
    assert ends <= bounds, "a token spans two words"
    if pre == "llama-bpe":  # which looks whole words up before merging
        assert tokenizer.encode(text) == [tokens.index(word) for word in spelled]


def test_post_processing_says_whether_to_add_bos(tmp_path: Path):
    train_bytewise(tmp_path, post_bos=True)
    tokenizer = Tokenizer.open(tmp_path)
    assert tokenizer.add_bos
    assert tokenizer.encode("a")[0] != 3


def test_ids_come_from_every_config(tmp_path: Path):
    train_bytewise(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 9], "pad_token_id": 5}')
    tokenizer = Tokenizer.open(tmp_path)
    assert tokenizer.eos_ids == {0, 2, 9}
    assert tokenizer.pad_id == 5
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": {"content": "<|bos|>"}}')
    tokenizer = Tokenizer.open(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (3, 2, 0)
    assert tokenizer.add_bos


@pytest.mark.parametrize("wrong", [-5, 10**6, True, "2", [0, 10**6]])
def test_end_ids_beyond_the_vocabulary_are_refused(tmp_path: Path, wrong: Any):
    train_bytewise(tmp_path)
    config = tmp_path / "generation_config.json"
    config.write_text(json.dumps({"eos_token_id": wrong}))
    with pytest.raises(UserError, match=r"eos_token_id \S+ is none of the tokenizer's ids, 0 to"):
        Tokenizer.open(tmp_path)
    config.write_text(json.dumps({"eos_token_id": 0, "pad_token_id": -1}))  # as Llama's first
    assert Tokenizer.open(tmp_path).pad_id >= 0


def test_chat_template_from_every_place(tmp_path: Path):
    train_bytewise(tmp_path)
    assert Tokenizer.open(tmp_path).chat_template is None
    config = tmp_path / "tokenizer_config.json"
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert Tokenizer.open(tmp_path).chat_template == "D"
    config.write_text(json.dumps({"chat_template": "C"}))
    assert Tokenizer.open(tmp_path).chat_template == "C"
    (tmp_path / "chat_template.jinja").write_text("J")
    assert Tokenizer.open(tmp_path).chat_template == "J"


@pytest.mark.parametrize("kind", ["bytewise", "fast", "pieces"])
def test_stream_joins_to_decode(tmp_path: Path, fixtures, kind: str):
    if kind == "bytewise":
        train_bytewise(tmp_path)
        tokenizer = Tokenizer.open(tmp_path)
    else:
        name = "tokenizer.json" if kind == "fast" else "tokenizer.model"
        tokenizer = Tokenizer.open(fixtures / "tokenizer" / name)
    rng = random.Random(1)
    noise = [[rng.randrange(-2, tokenizer.vocab_size + 9) for _ in range(99)] for _ in range(30)]
    for ids in [*map(tokenizer.encode, TEXTS), *noise]:
        for continues in (True, False):
            stream = TextStream(tokenizer, continues=continues)
            pieces = [stream.push(token) for token in ids]
            joined = "".join([*pieces, stream.finish()])
            assert joined == tokenizer.decode(ids, continues=continues)
    for text in TEXTS:
        stream = TextStream(tokenizer)
        assert not any("\ufffd" in stream.push(token) for token in tokenizer.encode(text))


def test_continuing_text_keeps_its_space(folder: Path):
    tokenizer = Tokenizer.open(folder)
    ids = tokenizer.encode("the license")
    assert tokenizer.decode(ids[:1]) + tokenizer.decode(ids[1:], continues=True) == "the license"
    assert tokenizer.decode(np.array(ids)) == "the license", "arrays will do"


def test_halves_of_characters(folder: Path):
    for path in (folder, folder / "tokenizer.model"):
        tokenizer = Tokenizer.open(path)
        assert tokenizer.encode("a\ud83d\ude00") == tokenizer.encode("a😀")
        assert tokenizer.decode(tokenizer.encode("a\ud83d b")) == "a\ufffd b"
        assert tokenizer.decode(tokenizer.encode("a\0b")) == "a\0b"


def test_parts_keep_ids_and_text_apart(folder: Path):
    for path in (folder, folder / "tokenizer.model"):
        tokenizer = Tokenizer.open(path)
        assert tokenizer.encode_parts([1, "a</s>", 2, 7, "b"]) == [
            1,
            *tokenizer.encode("a</s>", special=False),
            2,
            7,
            *tokenizer.encode("b"),
        ]


def test_missing_and_corrupted_files_are_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"no tokenizer in .*tokenizer\.json, tokenizer\.model"):
        Tokenizer.open(tmp_path)
    with pytest.raises(UserError, match="no such file or folder"):
        Tokenizer.open(tmp_path / "absent")
    for name in ("tokenizer.json", "tokenizer.model"):
        for content in (b"", b"{]", b'{"version": "1.0"}', bytes(range(256))):
            file = tmp_path / name
            file.write_bytes(content)
            with pytest.raises(UserError, match=rf"{name} is corrupted"):
                Tokenizer.open(file)
    train_bytewise(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config\.json is corrupted"):
        Tokenizer.open(tmp_path)


def test_unsupported_gguf_tokenizers_are_named(tmp_path: Path):
    metadata = gguf_metadata(train_bytewise(tmp_path), "smollm")
    with pytest.raises(UserError, match="'tekken'; supported: default, gpt-2, smollm"):
        Tokenizer.from_gguf(metadata | {"tokenizer.ggml.pre": "tekken"})
    with pytest.raises(UserError, match="kind 'bert'; supported: gpt2, llama"):
        Tokenizer.from_gguf(metadata | {"tokenizer.ggml.model": "bert"})
    with pytest.raises(UserError, match="tables are corrupted"):
        Tokenizer.from_gguf(metadata | {"tokenizer.ggml.token_type": [1]})
    with pytest.raises(UserError, match="tables are corrupted"):
        Tokenizer.from_gguf(metadata | {"tokenizer.ggml.merges": ["nothing"]})
