"""Requests to an engine, a small model that draws, and the VQGAN of its codes."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
import tokenizers

from lwm.generate.language_model import LanguageModel
from lwm.generate.work import Finished, Reading, Scores, Work, Written
from lwm.sharding import make_mesh
from lwm.tokens import TokenSpace

CODES, SIDE = 16, 16
"""Codes of the codebook, and pixels along a side."""
OPENING = "<vision>"


@dataclasses.dataclass
class Found:
    """Events of a request."""

    ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    scores: list[float] = dataclasses.field(default_factory=list)
    is_likeliest: list[bool] = dataclasses.field(default_factory=list)
    tops: list[list[tuple[int, float]]] = dataclasses.field(default_factory=list)
    prompt_tops: list[list[tuple[int, float]]] = dataclasses.field(default_factory=list)
    last: Any = None
    """`Finished`, or an exception."""

    @property
    def bits(self):
        """Everything written, to be compared exactly."""
        assert isinstance(self.last, Finished), self.last
        return self.ids, self.logprobs, self.last.reason


def _await(request):
    """Collects the events of a request until the last."""
    found = Found()
    while found.last is None:
        match request.events.get(timeout=300):
            case Written(ids, logprobs, tops):
                found.ids += ids
                found.logprobs += logprobs
                found.tops += tops
            case Scores(start, logprobs, is_likeliest, tops):
                found.prompt_tops += tops
                assert start == len(found.scores) + (request.work.scores_from or 0)
                found.scores += logprobs
                found.is_likeliest += is_likeliest
            case Reading():
                pass
            case last:
                found.last = last
    return found


@pytest.fixture(scope="session")
def ask():
    """Sends requests to an engine together, and returns what comes of each."""

    def send(engine, *requests):
        # On the engine's thread, so that no step comes between them.
        engine.run(lambda: [engine.submit(request) for request in requests])
        return [_await(request) for request in requests]

    return send


@pytest.fixture(scope="session")
def request_for():
    """Makes a request of prompts and a plan; several prompts are a guided pair."""

    def make(plan, *prompts, lane=1, scores_from=None, read=None, **options):
        how = {} if read is None else {"read": read}
        work = Work(plan=plan, scores_from=scores_from, **how)
        return work.request(*prompts, lane=lane, **options)

    return make


@pytest.fixture(scope="module")
def kept(init):
    """Draws each model once on each mesh."""
    drawn = {}

    def make(config):
        of = config, jax.sharding.get_mesh()
        if of not in drawn:
            drawn[of] = init(config).unstack()
        return drawn[of]

    return make


@pytest.fixture(scope="module")
def eager_tokenizer(open_tokenizer):
    """A token for each byte, and one for `<vision>`, which a random model may well write."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    starts = [OPENING[:end] for end in range(2, len(OPENING) + 1)]
    vocabulary = {piece: number for number, piece in enumerate([*letters, *starts])}
    merges = [(start[:-1], start[-1]) for start in starts]
    built = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    pre_tokenizers = tokenizers.pre_tokenizers
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return open_tokenizer(built)


@pytest.fixture(scope="module")
def open_painter(tiny, init, eager_tokenizer, draw_vqgan):
    """Makes a model that sees and draws; `eager` is how much it likes to."""
    folder = draw_vqgan(SIDE, codes=CODES)
    opening = eager_tokenizer.encode(OPENING, special=False)
    assert len(opening) == 1

    def make(mesh, eager=6.0, context=512):
        tokens = TokenSpace.of(eager_tokenizer.vocab_size, CODES)
        llama = init(tiny(num_layers=1, tokens=tokens, max_context=context)).unstack()
        scale = np.ones(llama.head.shape, np.float32)
        scale[:, opening[0]] = eager
        scale = jax.device_put(scale, llama.head.sharding)
        llama = dataclasses.replace(llama, head=llama.head * scale)
        return LanguageModel(
            name="tiny",
            llama=llama,
            tokenizer=eager_tokenizer,
            mesh=mesh,
            vqgan_file=folder,
            pool_tokens=8 * context,
        )

    return make


@pytest.fixture(scope="module")
def drawer(open_painter):
    with jax.set_mesh(mesh := make_mesh()):
        yield open_painter(mesh)
