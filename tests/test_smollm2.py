"""The real model against transformers, both reading the same published file."""

from pathlib import Path

import jax
import numpy as np
import pytest

import lwm
from lwm.generate.plan import GenerationPlan
from lwm.generate.work import Work, Written
from lwm.hub import catalog

# In one process: to read the file as transformers does takes a minute.
pytestmark = [pytest.mark.torch, pytest.mark.network]

NAME = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def english():
    path = Path(lwm.__file__).parent / "assets" / "moby-dick" / "chapter-1.txt"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def theirs():
    """The file as transformers' own reader of GGUF understands it."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    path = catalog.resolve(NAME)
    return transformers.AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def ours():
    return lwm.load(NAME)


@pytest.mark.filterwarnings("ignore")  # transformers' and gguf's own
def test_logits_of_512_tokens_of_english(theirs, ours, english, place):
    import torch

    tokens = np.array([ours.tokenizer.encode(english, special=False)[:512]])
    with torch.no_grad():
        wanted = theirs(torch.tensor(tokens)).logits.numpy()
    with jax.set_mesh(ours.mesh):
        logits = jax.jit(lambda m, t, p: m(t, p))(ours.llama, *place(ours.mesh, tokens))
    assert np.abs(np.asarray(logits) - wanted).max() <= 2e-3


@pytest.mark.filterwarnings("ignore")
def test_64_greedy_tokens(theirs, ours, english):
    import torch

    prompt = ours.tokenizer.encode(english, special=False)[:200]
    with torch.no_grad():
        wanted = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=64, min_new_tokens=64, do_sample=False
        )[0, len(prompt) :].tolist()
    work = Work(plan=GenerationPlan(max_tokens=64))
    request = work.request(prompt)
    bursts = (each for each in ours.engine.stream(request) if isinstance(each, Written))
    assert [token for burst in bursts for token in burst.ids] == wanted


def test_it_answers(ours):
    assert ours.chat("What is the capital of France?") == "The capital of France is Paris."
