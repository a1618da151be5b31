"""How byte-level BPE of GGUF files splits words: by the names of llama.cpp."""

import pytest
import tokenizers

from lwm.errors import UserError
from lwm.tokenizer.splits import family_of, word_splitter
from lwm.tokenizer.tokenizer import Tokenizer

TEXT = "It'S <b>we're</b>  12345 x²½ $5.00 e\u0301 é\n\n\tdef f(x): #日本語 😀"


def table(pre):
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    values = {"model": "gpt2", "tokens": letters, "merges": [], "bos_token_id": 0}
    values |= {} if pre is None else {"pre": pre}
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


def words(pre):
    letters = word_splitter(family_of(pre)).pre_tokenize_str(TEXT)
    return [TEXT[start:end] for _, (start, end) in letters]


@pytest.mark.parametrize("pre", [None, ""])
def test_a_gguf_that_does_not_say_how_it_splits_words_is_refused(pre):
    with pytest.raises(UserError, match=r"tokenizer\.ggml\.pre is missing.*--pre-tokenizer NAME"):
        Tokenizer.from_gguf(table(pre))


def test_the_default_is_that_of_llama_cpp():
    """Its punctuation stands alone, and numbers are cut into threes; GPT-2 does neither."""
    assert "|".join(words("default")) == (
        "It|'|S| |<|b|>|we|'|re|</|b|>| | |123|45| x|²½| |$|5|.|00| e|\u0301| é|\n\n|\t|def| f"
        "|(|x|):| |#|日本語| 😀"
    )
    assert words("gpt-2")[:4] == ["It", "'", "S", " <"]


@pytest.mark.parametrize(
    ("known", "alike"),
    [
        ("qwen2", "deepseek-r1-qwen megrez stablelm2 hunyuan grok-2"),
        ("llama-bpe", "llama3 llama-v3 falcon3 pixtral smaug-bpe dbrx glm4 chatglm-bpe"),
        ("gpt-2", "phi-2 olmo mpt gigachat trillion a.x-4.0 exaone4"),
        ("smollm", "starcoder refact command-r exaone minerva-7b"),
    ],
)
def test_names_that_llama_cpp_splits_alike_are_known(known, alike):
    expected = Tokenizer.from_gguf(table(known))
    for pre in alike.split():
        assert words(pre) == words(known)
        made = Tokenizer.from_gguf(table(pre))
        assert made.encode("It'S 12345 é") == expected.encode("It'S 12345 é")
    assert len({tuple(words(pre)) for pre in ("qwen2", "llama-bpe", "gpt-2", "smollm")}) == 4


def test_only_files_of_llama_3_start_texts_by_default():
    names = ("llama3", "llama-v3", "falcon3", "dbrx", "glm4", "qwen2")
    starting = {pre for pre in names if Tokenizer.from_gguf(table(pre)).add_bos}
    assert starting == {"llama3", "llama-v3", "falcon3"}
