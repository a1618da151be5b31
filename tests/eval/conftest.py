"""Tokenizers, a small model and a program that reads, for evaluations."""

import re
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from lwm.generate.language_model import LanguageModel
from lwm.hub.catalog import find_model, locate
from lwm.sharding import make_mesh
from lwm.tokenizer.backends import FastTokenizer
from lwm.tokenizer.tokenizer import Tokenizer
from lwm.tokens import TokenSpace

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """A token to a byte, and two to frame a turn."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return Tokenizer(
        backend=FastTokenizer(made),
        bos_id=None,
        eos_id=257,
        eos_ids=frozenset({257}),
        pad_id=257,
        add_bos=False,
        chat_template=TEMPLATE,
    )


@pytest.fixture(params=["bytes", "lwm", "smollm2"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Bytes, LLaMA-2's kind of pieces, and a real model's; the latter two where they are had."""
    if request.param == "bytes":
        return request.getfixturevalue("byte_tokenizer")
    if request.param == "lwm":
        return Tokenizer.open(request.getfixturevalue("fixtures") / "tokenizer_addbos")
    path = locate(find_model("smollm2-135m-instruct"))
    if path is None:
        pytest.skip("smollm2-135m-instruct is not on this machine")
    return Tokenizer.open(path)


@pytest.fixture(scope="session")
def tiny_model(tiny, byte_tokenizer) -> LanguageModel:
    """A model that answers nonsense, but always the same."""
    import jax
    import jax.random as jr

    from lwm.model.llama import Llama

    mesh = make_mesh()
    config = tiny(tokens=TokenSpace(text=258), max_context=2560)
    with jax.set_mesh(mesh):
        llama = jax.jit(lambda key: Llama.init(config, key=key))(jr.key(0))
    return LanguageModel(name="tiny", llama=llama, tokenizer=byte_tokenizer, mesh=mesh)


class Oracle:
    """Finds the number in the prompt, as a program can, and counts how often it was asked."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self.asked: list[tuple[int, ...]] = []

    def __call__(self, ids) -> str:
        self.asked.append(tuple(ids))
        text = self._tokenizer.decode(ids)
        asked = re.findall(r"What is the special magic (.+?) number\?", text)
        assert len(asked) == 1
        found = re.findall(rf"\nThe special magic {asked[0]} number is: (\d{{7}})\n", text)
        assert len(found) == 1
        return f"It is {found[0]}."


@pytest.fixture(scope="session")
def oracle():
    """Makes an oracle that reads with a tokenizer."""
    return Oracle


@pytest.fixture
def prose(tmp_path: Path):
    """Writes a text of so many sentences, all of them different."""

    def write(sentences: int, name: str = "prose.txt") -> Path:
        path = tmp_path / name
        text = " ".join(f"Sentence number {i} ends here." for i in range(sentences))
        path.write_text(text, encoding="utf-8")
        return path

    return write
