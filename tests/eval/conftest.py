"""Tokenizers, a small model and programs that read or do not, for evaluations."""

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from lwm.eval.question import Answerer, Question, Response
from lwm.eval.subject import Subject
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
        return opened(request.getfixturevalue("fixtures") / "tokenizer_addbos")
    path = locate(find_model("smollm2-135m-instruct"))
    if path is None:
        pytest.skip("smollm2-135m-instruct is not on this machine")
    return opened(path)


@functools.cache
def opened(path: Path) -> Tokenizer:
    return Tokenizer.open(path)


@pytest.fixture(scope="session")
def tiny_model(tiny, byte_tokenizer) -> LanguageModel:
    """A model that answers nonsense, but always the same."""
    import jax
    import jax.random as jr

    from lwm.model.llama import Llama

    mesh = make_mesh()
    config = tiny(num_layers=1, tokens=TokenSpace(text=258), max_context=2560)
    with jax.set_mesh(mesh):
        llama = jax.jit(lambda key: Llama.init(config, key=key))(jr.key(0))
    return LanguageModel(name="tiny", llama=llama, tokenizer=byte_tokenizer, mesh=mesh)


@pytest.fixture(scope="session")
def tiny_vision() -> LanguageModel:
    """The vision model in the package, with a small cache of keys and values."""
    import lwm

    return lwm.load("tiny-vision", pool_tokens=1024)


class Program:
    """Answers from the text of a prompt, and counts how often it was asked."""

    def __init__(self, tokenizer: Tokenizer, answer: Callable[[str], str]):
        self._tokenizer, self._answer = tokenizer, answer
        self.asked: list[tuple[int, ...]] = []

    def answers(self, questions: Iterable[Question]) -> Iterator[tuple[Question, Response]]:
        for question in questions:
            self.asked.append(tuple(question.ids))
            text = self._answer(self._tokenizer.decode(question.ids))
            size = len(question.ids)
            yield question, Response(text=text, prompt_tokens=size, completion_tokens=1)


def find_numbers(text: str) -> str:
    """Answers the questions for needles, as a program that reads can."""
    place = text.rindex("What ")
    if single := re.match(r"What is the special magic (.+?) number\?", text[place:]):
        cities = [single[1]]
    else:
        listed = re.match(r"What (?:is|are) .* numbers? for (.+)\?", text[place:])
        assert listed
        cities = re.split(r", and |, ", listed[1])
    found = []
    for city in cities:
        numbers = re.findall(rf"\nThe special magic {city} number is: (\d{{7}})\n", text[:place])
        assert len(numbers) == 1
        found += numbers
    return f"{' and '.join(found)}."


@pytest.fixture(scope="session", name="find_numbers")
def _find_numbers():
    """Answers the questions for needles from the text of a prompt."""
    return find_numbers


@pytest.fixture(scope="session")
def oracle():
    """Makes a program that reads needles with a tokenizer."""
    return lambda tokenizer: Program(tokenizer, find_numbers)


@pytest.fixture(scope="session")
def blind():
    """Makes a program that does not read."""
    return lambda tokenizer: Program(tokenizer, lambda text: "1234567 1111111")


@pytest.fixture(scope="session")
def subject_of():
    """Makes the subject of an evaluation from a program."""

    def made(program: Answerer, tokenizer: Tokenizer, **changes: Any) -> Subject:
        return Subject(
            description={"name": "program"},
            tokenizer=tokenizer,
            answerer=lambda tokens, progress: program,
            **changes,
        )

    return made


@pytest.fixture
def prose(tmp_path: Path):
    """Writes a text of so many sentences, all of them different."""

    def write(sentences: int, name: str = "prose.txt") -> Path:
        path = tmp_path / name
        text = " ".join(f"Sentence number {i} ends here." for i in range(sentences))
        path.write_text(text, encoding="utf-8")
        return path

    return write
