import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.errors import UserError
from lwm.generate.answer import Answer
from lwm.generate.decoding import Scale, burst
from lwm.generate.sampling import (
    GREEDY,
    MinP,
    RepetitionPenalty,
    Sampler,
    Temperature,
    TopK,
    TopP,
    _kth_largest,
    sampler,
)
from lwm.sampling_params import SamplingOptions, SamplingParams

RNG = np.random.default_rng(0)
LOGITS = (3 * RNG.normal(size=(64, 20))).astype(np.float32)
SEEN = RNG.random((64, 20)) < 0.3


def softmax(logits):
    e = np.exp(logits - logits.max())
    return e / e.sum()


# Each rule stated for one row, in the plainest way.


def penalise(row, seen, penalty):
    return [
        (x / penalty if x > 0 else x * penalty) if s else x for x, s in zip(row, seen, strict=True)
    ]


def top_k(row, seen, k):
    kth = sorted(row)[-k]
    return [x if x >= kth else -np.inf for x in row]


def top_p(row, seen, p):
    chances, total, kept = softmax(row), 0.0, set()
    for i in np.argsort(-row):
        if total >= p:
            break
        kept.add(i)
        total += chances[i]
    return [x if i in kept else -np.inf for i, x in enumerate(row)]


def min_p(row, seen, p):
    chances = softmax(row)
    return [x if c >= p * chances.max() else -np.inf for x, c in zip(row, chances, strict=True)]


@pytest.mark.parametrize(
    ("rule", "stated", "value"),
    [
        (RepetitionPenalty, penalise, 1.3),
        (RepetitionPenalty, penalise, 0.7),
        (Temperature, lambda row, seen, t: row / t, 0.6),
        (TopK, top_k, 1),
        (TopK, top_k, 7),
        (TopK, top_k, 20),
        (TopP, top_p, 0.05),
        (TopP, top_p, 0.5),
        (TopP, top_p, 0.95),
        (MinP, min_p, 0.02),
        (MinP, min_p, 1.0),
    ],
)
def test_rule_is_as_stated(rule, stated, value):
    ours = rule(value)(jnp.asarray(LOGITS), seen=jnp.asarray(SEEN))
    theirs = [stated(row, seen, value) for row, seen in zip(LOGITS, SEEN, strict=True)]
    np.testing.assert_allclose(ours, np.array(theirs), rtol=1e-6)


def test_top_k_of_more_than_there_are_keeps_all():
    np.testing.assert_array_equal(TopK(1000)(jnp.asarray(LOGITS), seen=jnp.asarray(SEEN)), LOGITS)


@pytest.mark.parametrize(
    "rule",
    [RepetitionPenalty(1.3), Temperature(0.5), TopK(3), TopK(8), TopP(0.5), TopP(0.999), MinP(0.1)],
)
def test_ids_ruled_out_before_count_for_nothing(rule):
    legal = np.arange(20) % 4 == 1
    ruled = rule(jnp.where(legal, LOGITS, -jnp.inf), seen=jnp.asarray(SEEN))
    alone = rule(jnp.asarray(LOGITS[:, legal]), seen=jnp.asarray(SEEN[:, legal]))
    assert np.isneginf(ruled[:, ~legal]).all()
    np.testing.assert_allclose(ruled[:, legal], alone, rtol=1e-6)


@pytest.mark.parametrize(
    "writing",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=1.5, top_k=6),
        SamplingParams(temperature=1.0, top_p=0.8),
        SamplingParams(temperature=1.2, min_p=0.1),
        SamplingParams(temperature=0.9, top_k=8, top_p=0.9, min_p=0.05, repetition_penalty=1.5),
    ],
)
def test_draws_follow_the_distribution(writing):
    row, seen = LOGITS[0, :10] / 2, SEEN[0, :10]
    wanted = np.array(penalise(row, seen, writing.repetition_penalty)) / writing.temperature
    if writing.top_k:
        wanted = np.array(top_k(wanted, seen, writing.top_k))
    wanted = np.array(top_p(wanted, seen, writing.top_p))
    wanted = softmax(np.array(min_p(wanted, seen, writing.min_p)))
    count = 20_000
    drawn = sampler(writing)(
        jnp.broadcast_to(row, (count, 10)),
        seen=jnp.broadcast_to(seen, (count, 10)),
        keys=jax.random.split(jax.random.key(1), count),
    )
    counted = np.bincount(drawn, minlength=10)
    possible = wanted > 0
    assert counted[~possible].sum() == 0
    chi_square = (np.square(counted - wanted * count)[possible] / (wanted * count)[possible]).sum()
    bound = {3: 16.3, 4: 18.5, 5: 20.6, 6: 22.5, 7: 24.4, 8: 26.2, 9: 27.9}  # p = 0.001
    assert chi_square < bound[possible.sum() - 1]


def test_of_equal_logits_the_lower_ids_are_likelier():
    row = np.full(30, 1.0, np.float32)
    row[[4, 7]], row[25:] = 2.0, -np.inf
    rows = jnp.asarray([row, np.where(np.arange(30) % 10 == 3, row, -np.inf)])
    ids, logprobs = map(np.asarray, Scale.of(rows).tops(rows))
    assert ids[0].tolist() == [4, 7, 0, 1, 2, 3, 5, 6, *range(8, 20)]
    assert ids[1, :3].tolist() == [3, 13, 23]
    np.testing.assert_allclose(np.exp(logprobs[1]), [1 / 3] * 3 + [0.0] * 17, rtol=1e-6)
    np.testing.assert_allclose(np.exp(logprobs[0]), softmax(row)[ids[0]], rtol=1e-6)
    few = Scale.of(rows[:, :3]).tops(rows[:, :3])
    assert np.isfinite(few.logprobs).sum() == 3


def test_rules_that_change_nothing_are_left_out():
    assert sampler(SamplingParams()) == GREEDY
    assert sampler(SamplingParams(temperature=1.0)) == Sampler()
    assert sampler(SamplingParams(temperature=0.0, top_k=5)) == GREEDY
    penalised = sampler(SamplingParams(repetition_penalty=2.0))
    assert penalised == Sampler(rules=(RepetitionPenalty(2.0),), is_greedy=True)


def test_options_are_the_fields_of_the_parameters():
    """So that editors complete `model.generate(…, max_tokens=8)` and type checkers check it."""
    fields = {field.name: field.type for field in dataclasses.fields(SamplingParams)}
    assert SamplingOptions.__annotations__ == fields


def test_rules_apply_in_one_order():
    with pytest.raises(ValueError, match="in the order RepetitionPenalty, Temperature, TopK"):
        Sampler(rules=(TopP(0.5), Temperature(2.0)))
    with pytest.raises(ValueError, match="each once"):
        Sampler(rules=(TopK(5), TopK(3)))


@pytest.mark.parametrize("k", [1, 2, 5, 19, 20])
def test_the_kth_largest_is_found_among_all_kinds_of_numbers(k):
    rows = np.array(LOGITS[:8])
    rows[0] = 0
    rows[1, ::2] = -0.0
    rows[2, 3:] = -np.inf
    rows[3] = np.inf
    rows[4] *= 1e37
    rows[5] *= 1e-37
    rows[6] = np.repeat(rows[6, :4], 5)
    found = _kth_largest(jnp.asarray(rows), jnp.full(8, k))
    np.testing.assert_array_equal(found, jax.lax.top_k(rows, k)[0][:, -1])


def test_forty_generations_share_one_decoding_program(model):
    """They differ in all that a request may set; see `burst`."""
    decodings = []
    for number in range(40):
        params = SamplingParams(
            max_tokens=3 + number % 5,
            temperature=[0.0, 0.5, 1.0, 1.3][number % 4],
            top_k=[0, 5, 50][number % 3],
            top_p=[1.0, 0.9, 0.4][number // 2 % 3],
            min_p=[0.0, 0.1][number // 3 % 2],
            repetition_penalty=[1.0, 1.2, 0.8][number // 4 % 3],
            presence_penalty=[0.0, 0.5][number // 2 % 2],
            logit_bias=[{}, {1: 0.5, 2: -1.0}][number // 5 % 2],
            stop_ids=range(number % 4),
            min_tokens=number % 2,
            seed=number,
            stop=tuple("abc"[: number % 3]),
        )
        list(Answer(model, [1, 2, 3, number], params, top_logprobs=number % 3))
        decodings.append(vars(type(burst))["_cache_size"](burst))
    assert len(set(decodings)) == 1, "none after the first"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"max_tokens": -1}, "max_tokens -1"),
        ({"temperature": -1.0}, "temperature -1.0 must be 0 or a number"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"temperature": float("inf")}, "temperature inf"),
        ({"temperature": 1e-40}, "temperature 1e-40"),
        ({"top_k": -1}, "top_k -1"),
        ({"top_p": 0.0}, "top_p 0.0 must be above 0"),
        ({"min_p": 1.1}, "min_p 1.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty 0.0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty inf"),
        ({"presence_penalty": 2.1}, "presence_penalty 2.1 must be from -2 to 2"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty nan"),
        ({"logit_bias": {1: 101.0}}, "at most 64 numbers from -100 to 100"),
        ({"logit_bias": dict.fromkeys(range(65), 0.0)}, "at most 64 numbers"),
        ({"stop_ids": range(17)}, "must be at most 16 ids"),
        ({"min_tokens": -1}, "min_tokens -1"),
        ({"seed": -1}, "seed -1 must be from 0 to 4294967295"),
        ({"seed": 2**32}, "seed 4294967296"),
        ({"stop": ("",)}, "at least one character"),
    ],
)
def test_writing_refuses_what_cannot_be(values, says):
    with pytest.raises(UserError, match=says):
        SamplingParams(**values)
