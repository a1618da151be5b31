"""Training a tokenizer: every text comes back, and other libraries read what is stored."""

import json
from pathlib import Path

import pytest

from lwm.errors import UserError
from lwm.tokenizer.bpe import train_tokenizer
from lwm.tokenizer.template import render_chat
from lwm.tokenizer.tokenizer import Tokenizer

BOOK = (Path(__file__).parents[2] / "lwm/assets/moby-dick/chapter-1.txt").read_text("utf-8")
LEARNT = [BOOK, "a <s>b</s> <s></s>" * 500, "in 1851 " * 500]
TEXTS = [
    "",
    "Call me Ishmael.",
    "  two spaces, \n\n\ta tab\r\nand a line ",
    "naïve — 日本語 🐋👩‍👩‍👧 \ud7ff\U0010ffff\x00",
    "1851, 12345 and x2",
    "don't </s>stop<s> it</s>",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a vocabulary of 600 learnt from a chapter, special tokens' names and a year."""
    made = tmp_path_factory.mktemp("vocabulary")
    train_tokenizer(iter(LEARNT), size=600, folder=made)
    return made


@pytest.fixture(scope="module")
def trained(folder: Path) -> Tokenizer:
    return Tokenizer.open(folder)


def test_every_text_comes_back(trained: Tokenizer):
    for text in [*TEXTS, BOOK, *map(chr, range(0, 0x3000, 7))]:
        ids = trained.encode(text, special=False)
        assert trained.decode(ids) == text
        assert not {trained.bos_id, trained.eos_id} & set(ids), "typed names control nothing"
        assert max(ids, default=0) < trained.vocab_size


def test_what_is_special(trained: Tokenizer):
    assert (trained.bos_id, trained.eos_id, trained.pad_id) == (0, 1, 1)
    assert trained.eos_ids == {1}
    assert trained.add_bos
    assert trained.chat_template is None
    assert trained.backend.special == {"<s>": 0, "</s>": 1}
    assert trained.encode("<s>a</s>") == [0, *trained.encode("a"), 1]


def test_words_are_learnt_and_digits_stand_alone(trained: Tokenizer):
    assert trained.vocab_size == 600
    assert len(trained.encode(BOOK)) < 0.5 * len(BOOK.encode())
    assert len(trained.encode(" the")) == 1
    spelt = [trained.text_of(i) for i in range(600)]
    assert [text for text in spelt if sum(letter.isdigit() for letter in text) > 1] == []
    assert trained.decode(trained.encode("18511851")[:3]) == "185"


def test_the_same_texts_give_the_same_files(folder: Path, tmp_path: Path):
    train_tokenizer(LEARNT, size=600, folder=tmp_path / "a" / "b")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / "b" / name).read_bytes() == (folder / name).read_bytes()
    assert "model_max_length" not in json.loads((folder / "tokenizer_config.json").read_text())


def test_few_texts_give_fewer_ids(tmp_path: Path):
    tokenizer = train_tokenizer(["abab abab \ud800"], size=300, folder=tmp_path)
    assert 258 < tokenizer.vocab_size < 270
    assert tokenizer.decode(tokenizer.encode("Ω")) == "Ω"
    assert train_tokenizer(["abab"], size=258, folder=tmp_path).vocab_size == 258


def test_what_cannot_be_trained_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"of 257 has no room .*; take 258 or more"):
        train_tokenizer(["abc"], size=257, folder=tmp_path)
    for texts in ([], ["", ""]):
        with pytest.raises(UserError, match="there is no text to train a tokenizer on"):
            train_tokenizer(texts, size=300, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot store a tokenizer in .*/file: File exists"):
        train_tokenizer(["abc"], size=300, folder=tmp_path / "file")


def test_a_conversation_without_a_template_is_text(trained: Tokenizer):
    prompt = render_chat([{"role": "user", "content": "Who </s>?"}], trained)
    assert [i for i in prompt if i in (trained.bos_id, trained.eos_id)] == [trained.bos_id]
    assert prompt[0] == trained.bos_id
    assert trained.decode(prompt).endswith("USER: Who </s>? ASSISTANT:")


@pytest.mark.torch
def test_transformers_gives_the_same_ids(folder: Path, trained: Tokenizer):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 1, 1)
    for text in [*TEXTS[:-1], BOOK]:
        ids = theirs(text).input_ids
        assert ids == [trained.bos_id, *trained.encode(text)]
        assert theirs.decode(ids, skip_special_tokens=True) == text
    assert theirs("a</s>").input_ids == [0, *trained.encode("a"), 1]
