"""Many requests of all kinds, from several threads: nothing is compiled, lost or changed."""

import gc
import random
import resource
import subprocess
import sys
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

from lwm.generate.answer import Answer
from lwm.generate.batch import TextRequest
from lwm.generate.engine import Engine
from lwm.generate.plan import GenerationPlan
from lwm.generate.sampling import RepetitionPenalty, Sampler, Temperature, TopP
from lwm.generate.vision import DrawRequest, generate_frames
from lwm.generate.work import Finished, Scores, Written
from lwm.sampling_params import FrameSampling, SamplingParams, VisionSampling
from lwm.sharding import make_mesh
from lwm.tokenizer.message import Message, Vision
from lwm.tokens import TokenSpace

LANE = 8


@pytest.fixture
def compiled():
    """Names of the programs that have been compiled, or found in the cache on the disk."""
    names = []

    def note(event, duration_secs, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(about["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(note)
    yield names
    jax.monitoring.unregister_event_duration_listener(note)


class Client:
    """Asks for random things, the same for the same seed."""

    def __init__(self, model, seed):
        self.model, self.random = model, random.Random(seed)
        self.count = 0
        """Answers so far."""

    def text(self, most):
        return "".join(self.random.choices("abcdefghijklmnop .", k=self.random.randint(1, most)))

    def vision(self, frames):
        rng = np.random.default_rng(self.random.randrange(99))
        codes = rng.integers(0, 16, (frames, self.model.grammar.tokens_per_frame))
        return Vision(codes=codes.astype(np.int32), is_video=frames > 1)

    def params(self, most):
        choice = self.random.choice
        return SamplingParams(
            max_tokens=self.random.randint(0, most),
            temperature=choice([0.0, 0.5, 1.0]),
            top_k=choice([0, 3, 1000]),
            top_p=choice([1.0, 1.0, 0.5]),
            min_p=choice([0.0, 0.05]),
            repetition_penalty=choice([1.0, 1.3]),
            seed=self.random.randrange(2**32 - LANE),
            stop=choice([(), ("a",), ("e", "ab", "<vi")]),
        )

    def sampling(self, *scales):
        choice = self.random.choice
        image, video = (
            FrameSampling(
                guidance=choice(scales),
                temperature=choice([0.0, 1.0]),
                top_k=choice([0, 5]),
                top_p=choice([1.0, 0.7]),
            )
            for _ in range(2)
        )
        return VisionSampling(image=image, video=video)

    def batch(self):
        """Texts and chats with pictures; several answers to some."""
        requests = []
        for n in self.random.choice([[1] * LANE, [2] * (LANE // 2), [1, 3, LANE - 4]]):
            prompt = self.text(440)
            if self.random.random() < 0.4:
                seen = [self.vision(self.random.randint(1, 3)) for _ in range(2)]
                prompt = [Message("user", [*seen, self.text(40)])]
            requests.append(TextRequest(prompt=prompt, params=self.params(3), n=n))
        results = list(self.model.batch(requests))
        assert [result.error for result in results] == [None] * LANE
        self.count += LANE

    def answer(self):
        """A text that may go on with pictures, maybe with log-probabilities of its prompt."""
        ids = self.model.encode_prompt(self.text(440))
        first = self.random.choice([None, None, 1, self.random.randint(1, len(ids))])
        sampling = self.sampling(1.0) if self.random.random() < 0.4 else None
        answer = Answer(
            self.model,
            ids,
            self.params(4 if sampling is None else 20),
            continues=True,
            sampling=sampling,
            lane=self.random.choice([1, LANE]),
            scores_from=first,
        )
        for _ in answer:
            pass
        scored = 0 if first is None else len(ids) - first
        assert len(answer.prompt_logprobs) == len(answer.prompt_is_likeliest) == scored
        self.count += 1

    def drawings(self):
        """Images or videos, with guidance or without."""
        is_guided, frames = self.random.random() < 0.7, self.random.randint(1, 2)
        prompts = [self.text(60) for _ in range(LANE // 2 if is_guided else LANE)]
        request = DrawRequest(
            prompts=prompts,
            kind="video" if frames > 1 else "image",
            frames=frames,
            sampling=self.sampling(2.0, 3.5) if is_guided else self.sampling(1.0),
            seed=self.random.randrange(2**31),
        )
        assert len(list(generate_frames(self.model, request))) == frames * len(prompts)
        self.count += len(prompts)

    def ask(self, count):
        """Asks for so many answers."""
        kinds = self.batch, self.answer, self.drawings
        while self.count < count:
            self.random.choices(kinds, weights=(12, 6, 1))[0]()


@pytest.mark.slow
@pytest.mark.representative
def test_after_a_warm_up_nothing_is_compiled(drawer, compiled):
    """Whatever the lengths, sampling, media, stop strings and the company."""
    drawer.engine.warm_up([1, LANE])
    assert "jit(burst)" in compiled
    compiled.clear()
    clients = [Client(drawer, seed) for seed in range(4)]
    with ThreadPoolExecutor(len(clients)) as threads:
        list(threads.map(lambda client: client.ask(125), clients))
    assert sum(client.count for client in clients) >= 500
    assert not compiled


SAMPLERS = (
    Sampler(is_greedy=True),
    Sampler(),
    Sampler(rules=(Temperature(0.7), TopP(0.8))),
    Sampler(rules=(RepetitionPenalty(1.3), Temperature(1.2))),
)


def different(count, request_for):
    """Functions that make requests; some begin alike, some are pairs."""
    chance = random.Random(0)

    def ids(length):
        return chance.choices(range(64), k=length)

    beginnings = [ids(length) for length in (300, 520, 520, 530)]

    def prompt():
        begins = chance.choice(beginnings) if chance.random() < 0.2 else []
        return begins + ids(chance.randint(1, 80))

    def make():
        plan = GenerationPlan(
            max_tokens=chance.randint(0, 12),
            stop_ids=ids(chance.choice([0, 0, 2])),
            sampler=chance.choice(SAMPLERS),
            seed=chance.randrange(2**32),
        )
        given = [prompt() for _ in range(chance.choice([1, 1, 1, 1, 1, 2]))]
        first = 1 if chance.random() < 0.1 else None
        return lambda: request_for(plan, *given, lane=LANE, scores_from=first)

    return [make() for _ in range(count)]


def collect(request, patience=-1):
    """Collects all that is written, or cancels the request after so many events."""
    found = []
    while True:
        if patience == 0:
            request.is_cancelled = True
        patience -= 1
        match request.events.get(timeout=300):
            case Written() as written:
                found += zip(written.ids, written.logprobs, strict=True)
            case Scores() as scores:
                found.append(scores)
            case Finished(reason, _):
                return [*found, reason]
            case CancelledError():
                assert request.is_cancelled
                return None
            case BaseException() as error:
                raise error


def memory():
    """Returns the bytes of memory that the process uses."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def soak(engine, makers, alone, *, rounds, each):
    """Sends requests of four threads, some of which are cancelled; returns the memory used.

    Nothing runs between two rounds: the engine then checks its pages and slots.
    """
    used, answered = [], [0, 0]

    def rest():
        engine.run(engine._runner.check)
        assert engine._runner.is_idle
        used.append(memory())

    pause = threading.Barrier(4, rest)

    def ask(chance):
        left = each
        while left:
            numbers = chance.choices(range(len(makers)), k=min(left, chance.randint(1, 8)))
            requests = [makers[number]() for number in numbers]
            for request in requests:
                engine.submit(request)
            for number, request in zip(numbers, requests, strict=True):
                cancels = chance.random() < 0.3
                found = collect(request, chance.randint(0, 6) if cancels else -1)
                assert found == alone[number] or (cancels and found is None)
                answered[found is None] += 1
            left -= len(numbers)

    def client(seed):
        chance = random.Random(seed)
        try:
            for _ in range(rounds):
                ask(chance)
                pause.wait(timeout=300)
        except BaseException:
            pause.abort()  # the others end as well
            raise

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(client, range(4)))
    assert sum(answered) == 4 * rounds * each
    assert min(answered) > 0.05 * sum(answered)
    return used


@pytest.mark.slow
def test_ten_thousand_answers_are_as_alone(tiny, init, request_for):
    """Two thousand on two devices. No page is lost or freed twice, and no memory."""
    for mesh_text, rounds in (("1,1,1,1", 10), ("2,1,1,1", 2)):
        answers_are_as_alone(tiny, init, request_for, mesh_text, rounds)


def answers_are_as_alone(tiny, init, request_for, mesh_text, rounds):
    sizes = {"dim": 16, "num_heads": 2, "num_kv_heads": 1, "mlp_dim": 32, "num_layers": 1}
    with jax.set_mesh(mesh := make_mesh(mesh_text)):
        model = init(tiny(tokens=TokenSpace(text=64), max_context=1024, **sizes)).unstack()
        # The pool holds fewer pages than eight rows may need.
        engine, one_by_one = (Engine(model, mesh, pool_tokens=5120) for _ in range(2))
    makers = different(200, request_for)
    alone = []
    for make in makers:
        one_by_one.submit(request := make())
        alone.append(collect(request))
    used = soak(engine, makers, alone, rounds=rounds, each=250)
    assert used[-1] - used[1] <= max(0.05 * used[1], 30e6)


PROGRAM = """
import jax
from lwm.generate.engine import Engine
from lwm.generate.plan import GenerationPlan
from lwm.generate.requests import Request
from lwm.generate.work import Work
from lwm.model.config import Compute, LlamaConfig
from lwm.model.llama import Llama
from lwm.sharding import make_mesh
from lwm.tokens import TokenSpace

sizes = dict(dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32, num_layers=1)
config = LlamaConfig(tokens=TokenSpace(text=64), max_context=50_000, **sizes)
with jax.set_mesh(mesh := make_mesh()):
    engine = Engine(Llama.init(config, Compute(), key=jax.random.key(0)), mesh)
most = 40_000
work = Work(plan=GenerationPlan(max_tokens=most))
events = engine.stream(Request((1, 2, 3), max_tokens=most, work=work))
print(type(next(events)).__name__, type(next(events)).__name__, flush=True)
"""


@pytest.mark.slow
def test_a_program_ends_in_the_middle_of_an_answer():
    """The answer would take much longer."""
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.split()[-1] == "Written"
