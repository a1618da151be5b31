"""Long texts in pieces, and normalizers that make much of little."""

import random

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from lwm.errors import UserError
from lwm.tokenizer import long, pieces
from lwm.tokenizer.backends import FastTokenizer, SentencePiece
from lwm.tokenizer.splits import word_splitter

WORDS = (
    "the",
    "whale",
    "it's",
    "Ahab",
    "e\u0301te\u0301",
    "日本語",
    "1851",
    "x_y",
    "<b c>",
    "👩‍🚀",
    "ﬁn",
)
ENDS = (
    " ",
    " ",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\n  ",
    ", ",
    ". ",
    "。",
    "",
    "\t",
    "\r\n",
    ";\n",
    ")\n\n",
)
KINDS = ("gpt-2", "llama-bpe", "qwen2", "default", "prepend", "metaspace", "bpe", "unigram", "nfkc")


def texts(seed, length):
    """Yields texts of words and what stands between them, that both repeat."""
    choose = random.Random(seed)
    while True:
        count = max(2, length // 4)
        yield "".join(choose.choice(WORDS) + choose.choice(ENDS) for _ in range(count))


def train(kind, tmp_path):
    """Train a tokenizer of a kind on such texts, so that tokens hold spaces and ends of lines."""
    corpus = [next(texts(seed, 200)) for seed in range(50)]
    if kind in ("bpe", "unigram", "nfkc"):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus),
            model_prefix=str(tmp_path / "model"),
            vocab_size=400,
            hard_vocab_limit=False,
            model_type="bpe" if kind == "bpe" else "unigram",
            byte_fallback=kind != "nfkc",
            normalization_rule_name="nmt_nfkc" if kind == "nfkc" else "identity",
            remove_extra_whitespaces=kind == "nfkc",
            user_defined_symbols=["<b c>"],
            minloglevel=2,
        )
        return SentencePiece(pieces.load((tmp_path / "model.model").read_bytes(), kind), {})
    if kind == "metaspace":
        made = tokenizers.Tokenizer(models.Unigram())
        made.normalizer = normalizers.NFKC()
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=120, show_progress=False, unk_token="?")
    else:
        made = tokenizers.Tokenizer(models.BPE(unk_token="?", fuse_unk=True))
        letters = pre_tokenizers.ByteLevel.alphabet()
        if kind == "prepend":  # the fast tokenizer of Llama 2
            steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
            made.normalizer, letters = normalizers.Sequence(steps), []
        else:
            made.pre_tokenizer, made.decoder = word_splitter(kind), decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=500, initial_alphabet=letters, show_progress=False, special_tokens=["?"]
        )
    made.train_from_iterator(corpus, trainer)
    made.add_tokens(["<b c>"])
    return FastTokenizer(made)


@pytest.mark.parametrize("kind", KINDS)
def test_the_pieces_of_a_long_text_have_the_ids_of_the_whole(kind, tmp_path, monkeypatch):
    tokenizer = train(kind, tmp_path)
    monkeypatch.setattr(long, "_CONTEXT", 64)
    monkeypatch.setattr(long, "_STEP", 64)  # so that each kind of place is met
    for seed in range(100, 105):
        text = next(texts(seed, 4000))
        whole, ends = tokenizer.encode([text]), tokenizer.ends(text)
        monkeypatch.setattr(long, "PIECE", 150 * tokenizer.growth + seed)
        assert tokenizer.encode([text]) == whole
        assert tokenizer.ends(text) == ends
        found = list(tokenizer.pieces(text))
        assert len(found) > 2
        monkeypatch.setattr(long, "PIECE", 1 << 18)


def test_ids_that_are_given_stay_between_the_pieces(monkeypatch, byte_tokenizer):
    parts = ["a whale " * 200, 7, "and the sea " * 200, 9]
    whole = byte_tokenizer.encode_parts(parts)
    monkeypatch.setattr(long, "PIECE", 600)
    assert byte_tokenizer.encode_parts(parts) == whole
    assert whole[-1] == 9


def test_a_long_text_without_words_is_refused_by_its_limit(monkeypatch, byte_tokenizer):
    monkeypatch.setattr(long, "PIECE", 600)
    monkeypatch.setenv("LWM_MAX_WORD", "1_000")
    with pytest.raises(UserError, match=r"5,000 characters, .* raise LWM_MAX_WORD"):
        byte_tokenizer.encode("a" * 5000)
    monkeypatch.setenv("LWM_MAX_WORD", "many")
    with pytest.raises(UserError, match="LWM_MAX_WORD is 'many'"):
        byte_tokenizer.encode("a" * 5000)
    monkeypatch.delenv("LWM_MAX_WORD")
    assert byte_tokenizer.encode("a" * 5000) == byte_tokenizer.encode("a") * 5000


@pytest.mark.parametrize(
    "steps",
    [
        [normalizers.Replace("a", "b" * 2000)],
        [normalizers.Replace("a", "b" * 40), normalizers.Replace("b", "c" * 40)],
        [normalizers.Sequence([normalizers.Prepend("b" * 400_000)])],
    ],
)
def test_a_normalizer_that_makes_very_much_of_a_character_is_refused(steps, monkeypatch):
    built = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    built.normalizer = normalizers.Sequence(steps)
    with pytest.raises(UserError, match=r"characters of one, .* raise LWM_MAX_GROWTH"):
        FastTokenizer(built)
    monkeypatch.setenv("LWM_MAX_GROWTH", "10_000")
    assert FastTokenizer(built).growth > 1024


def test_the_usual_normalizers_are_taken(tmp_path):
    assert train("nfkc", tmp_path).growth < 100
    assert train("prepend", tmp_path).growth == 1
