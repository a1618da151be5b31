"""Prompts read and continued: what is written is the same together, alone, again and later."""

import jax
import numpy as np
import pytest

from lwm.errors import UserError
from lwm.generate.engine import LONG, SHORT, Session, chunks
from lwm.generate.plan import GenerationPlan
from lwm.generate.sampling import (
    GREEDY,
    MinP,
    RepetitionPenalty,
    Sampler,
    Temperature,
    TopK,
    TopP,
)
from lwm.model.llama import Llama
from lwm.sharding import make_mesh

NONE = -7
"""No id, but a stop: as many of them as there are elsewhere, so that nothing is compiled anew."""


def collect(bursts):
    return np.concatenate([burst.ids for burst in bursts], axis=1)


def prompts(*lengths):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, length).tolist() for length in lengths]


@pytest.mark.parametrize("length", [1, 63, 64, 65, 256, 257, 511, 512, 513, 5000])
def test_chunks_hold_the_prompt_with_little_padding(length):
    sizes = chunks(length)
    assert set(sizes) <= {LONG, SHORT}
    assert sizes == sorted(sizes)
    assert length <= sum(sizes) < length + LONG // 2


@pytest.mark.parametrize("mesh_text", ["1,1,1,1", "2,2,2,1"])
def test_greedy_answers_are_those_of_the_original(fixtures, original, mesh_text):
    given = np.load(fixtures / "generation.npz")
    mesh = make_mesh(mesh_text)
    session = Session(original(mesh, stored="scan"), mesh, rows=3, slots=256)
    ids, mask = given["text.input_ids"], given["text.attention_mask"]
    session.read([row[seen > 0].tolist() for row, seen in zip(ids, mask, strict=True)])
    written = collect(session.generate(GenerationPlan(max_tokens=32, stop_ids=[2])))
    wanted = given["text.greedy.sequences"][:, ids.shape[1] :]
    np.testing.assert_array_equal(np.where(written < 0, 0, written), wanted)


def test_unequal_prompts_together_are_as_alone(mesh, tiny, kept):
    model = kept(tiny(num_heads=16))
    given = prompts(3, 70, 20)
    together = Session(model, mesh, rows=3, slots=256)
    together.read(given)
    written = collect(together.generate(GenerationPlan(max_tokens=20)))
    for row, prompt in enumerate(given):
        alone = Session(model, mesh, slots=256)
        alone.read([prompt])
        np.testing.assert_array_equal(
            written[row], collect(alone.generate(GenerationPlan(max_tokens=20)))[0]
        )


def test_sampling_depends_on_the_seed_and_not_on_the_batch(mesh, tiny, kept):
    model = kept(tiny(num_heads=16))

    def sample(given, seed):
        session = Session(model, mesh, rows=len(given), slots=256)
        session.read(given)
        return collect(
            session.generate(GenerationPlan(max_tokens=24, sampler=Sampler(), seed=seed))
        )

    given = prompts(5, 9, 14)
    first = sample(given, 1)
    np.testing.assert_array_equal(first, sample(given, 1))
    np.testing.assert_array_equal(first[1:2], sample(given[1:2], 1))
    assert (first != sample(given, 2)).any()


def test_generation_goes_on_where_it_was_left(mesh, tiny, kept):
    model = kept(tiny(num_heads=16))
    session = Session(model, mesh, slots=256)
    session.read(prompts(30))
    whole = collect(session.generate(GenerationPlan(max_tokens=30)))
    other = Session(model, mesh, slots=256)
    other.read(prompts(30))
    pieces = [collect(other.generate(GenerationPlan(max_tokens=n))) for n in (5, 20, 5)]
    np.testing.assert_array_equal(whole, np.concatenate(pieces, axis=1))


def test_a_stop_id_ends_its_row_only(mesh, tiny, kept):
    session = Session(kept(tiny(num_heads=16)), mesh, rows=3, slots=256)
    session.read(prompts(10, 12, 5))
    free = collect(session.generate(GenerationPlan(max_tokens=20, stop_ids=[NONE])))
    stop = int(free[0, 3])
    session.rewind(0)
    session.read(prompts(10, 12, 5))
    stopped = collect(session.generate(GenerationPlan(max_tokens=20, stop_ids=[stop])))
    end = list(free[0]).index(stop)
    np.testing.assert_array_equal(stopped[0, : end + 1], free[0, : end + 1])
    assert (stopped[0, end + 1 :] == -1).all()
    assert stop not in free[1:]
    np.testing.assert_array_equal(stopped[1:], free[1:])


def test_a_row_that_had_ended_goes_on_from_where_it_did(mesh, tiny, kept):
    model, given = kept(tiny(num_heads=16)), prompts(10, 12, 5)
    session = Session(model, mesh, rows=3, slots=256)
    session.read(given)
    free = collect(session.generate(GenerationPlan(max_tokens=20, stop_ids=[NONE])))
    stop = int(free[0, 2])
    end = list(free[0]).index(stop) + 1
    session.rewind(0)
    session.read(given)
    collect(session.generate(GenerationPlan(max_tokens=8, stop_ids=[stop])))
    np.testing.assert_array_equal(
        collect(session.generate(GenerationPlan(max_tokens=8, stop_ids=[NONE])))[0],
        free[0, end : end + 8],
    )


def test_rewinding_and_reading_again_is_as_reading_once(mesh, tiny, kept):
    model, (start, wrong, right) = kept(tiny(num_heads=16)), prompts(40, 25, 33)
    session = Session(model, mesh, slots=256)
    session.read([start])
    session.read([wrong])
    session.rewind(SHORT)
    session.read([right])
    other = Session(model, mesh, slots=256)
    other.read([start + right])
    np.testing.assert_array_equal(
        collect(session.generate(GenerationPlan(max_tokens=16))),
        collect(other.generate(GenerationPlan(max_tokens=16))),
    )


def test_reading_can_be_stopped_between_chunks(mesh, tiny, kept):
    session = Session(kept(tiny(num_heads=16)), mesh, slots=512)
    seen = []

    def stop(done, total):
        seen.append((done, total))
        if done >= 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.read(prompts(200), progress=stop)
    assert seen == [(8, 200), (72, 200)]
    assert session.length == 2 * SHORT
    session.rewind(0)
    session.read(prompts(200))


def test_what_cannot_be_done_is_refused(mesh, tiny, kept):
    model = kept(tiny(num_heads=16))
    session = Session(model, mesh, slots=256)
    with pytest.raises(ValueError, match="read a prompt first"):
        next(session.generate(GenerationPlan(max_tokens=1)))
    with pytest.raises(ValueError, match="at least one id"):
        session.read([[]])
    session.read(prompts(100))
    with pytest.raises(ValueError, match="400 more slots do not fit: 128 of 512"):
        next(session.generate(GenerationPlan(max_tokens=400)))
    with pytest.raises(ValueError, match="129 slots cannot be kept: 128 are in use"):
        session.rewind(129)
    session.reserve(700)
    assert collect(session.generate(GenerationPlan(max_tokens=400))).shape == (1, 400)
    with pytest.raises(UserError, match="the mesh has sp 2"):
        Session(model, make_mesh("sp=2"), slots=256)


def test_taking_the_likeliest_of_one_is_greedy(mesh, tiny, kept):
    session = Session(kept(tiny(num_heads=16)), mesh, rows=3, slots=256)
    session.read(prompts(10, 12, 5))
    greedy = collect(session.generate(GenerationPlan(max_tokens=20)))
    session.rewind(0)
    session.read(prompts(10, 12, 5))
    plan = GenerationPlan(max_tokens=20, sampler=Sampler(rules=(TopK(1),)), seed=5)
    top1 = collect(session.generate(plan))
    np.testing.assert_array_equal(top1, greedy)


def test_each_row_has_its_own_seed(mesh, tiny, kept):
    model, given = kept(tiny(num_heads=16)), prompts(6)

    def sample(rows, seed):
        session = Session(model, mesh, rows=rows, slots=256)
        session.read(given * rows)
        return collect(
            session.generate(GenerationPlan(max_tokens=16, sampler=Sampler(), seed=seed))
        )

    several = sample(3, [4, 9, 4])
    np.testing.assert_array_equal(several[0], several[2])
    np.testing.assert_array_equal(several[:2], np.concatenate([sample(1, 4), sample(1, 9)]))
    assert (several[0] != several[1]).any()


def test_each_row_has_its_own_rules(mesh, tiny, kept):
    model, given = kept(tiny(num_heads=16)), prompts(6)
    samplers = [
        GREEDY,
        Sampler(rules=(Temperature(0.7), TopP(0.8))),
        Sampler(rules=(RepetitionPenalty(1.5), TopK(20), MinP(0.05))),
    ]

    def sample(*samplers):
        session = Session(model, mesh, rows=3, slots=256)
        session.read(given * 3)
        return collect(session.generate(GenerationPlan(max_tokens=16, sampler=samplers, seed=4)))

    together = sample(*samplers)
    for row, each in enumerate(samplers):
        np.testing.assert_array_equal(together[row], sample(each, each, each)[0])
    assert len({tuple(row) for row in together.tolist()}) == 3


def test_logprobs_are_those_of_the_forward_pass(mesh, tiny, kept, place):
    model, given = kept(tiny(num_heads=16)), prompts(12)
    session = Session(model, mesh, slots=256)
    session.read(given)
    bursts = list(session.generate(GenerationPlan(max_tokens=20, sampler=Sampler(), seed=3)))
    ids = np.concatenate([burst.ids for burst in bursts], axis=1)
    logprobs = np.concatenate([burst.logprobs for burst in bursts], axis=1)
    whole = np.concatenate([given, ids], axis=1)
    chances = jax.nn.log_softmax(jax.jit(Llama.__call__)(model, *place(mesh, whole)))[:, 11:-1]
    wanted = np.take_along_axis(np.asarray(chances), ids[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(logprobs, wanted, atol=1e-4)
