"""Engine against one pass over each whole row, for several kinds of weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lwm.generate.engine import Engine
from lwm.generate.plan import GenerationPlan
from lwm.generate.sampling import Sampler
from lwm.generate.work import Finished
from lwm.model.config import Compute
from lwm.model.llama import Llama
from lwm.model.quantize import CONTRACTED, QuantizedWeight, quantize_to
from lwm.sharding import dotted, make_mesh

LENGTHS = 1, 2, 64, 65, 66, 257, 513, 514, 700
"""At the ends of pages and chunks, and within."""
WIDTH = 768


def quantized(model):
    """Rounds the weights of products to int8."""

    def change(path, leaf):
        name = ".".join(dotted(path).split(".")[-2:])
        if name not in CONTRACTED:
            return leaf
        turned = np.asarray(leaf).T if name == "embedding" else np.asarray(leaf)
        parts = quantize_to(8, turned, CONTRACTED[name])
        # Groups stay whole.
        split = zip(leaf.sharding.spec, parts.scale.shape, strict=True)
        spec = P(*(at if size > 1 else None for at, size in split))
        kept = jax.sharding.NamedSharding(leaf.sharding.mesh, spec)
        return QuantizedWeight(*jax.tree.map(lambda part: jax.device_put(part, kept), parts))

    changed = jax.tree.map_with_path(change, model)
    assert sum(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(changed)) == 2 * 7 + 2
    return changed


@pytest.fixture(scope="module")
def model_of(tiny, init):
    """Makes a model in which two queries share a key, under the mesh in use."""
    config = tiny(num_heads=4, num_kv_heads=2, max_context=1024, init_std=0.1)

    def make(kind):
        if kind == "bfloat16":
            model = init(config, compute=Compute(dtype="bfloat16")).unstack()
            return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model)
        model = init(config).unstack()
        return quantized(model) if kind == "int8" else model

    return make


@jax.jit
def whole(model: Llama, tokens, packing):
    return jax.nn.log_softmax(model(tokens, packing))


def forward(model, place, mesh, rows):
    """Returns the log-probabilities of every id after each position, in one pass."""
    tokens, segments = np.zeros((2, len(rows), WIDTH), np.int32)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = row
        segments[number, len(row) :] = -1
    return np.asarray(whole(model, *place(mesh, tokens, segments)), np.float32)


@pytest.mark.parametrize(
    ("kind", "mesh_text", "lane", "cache", "close"),
    [
        ("float32", "1,1,1,1", 1, None, 1e-5),
        ("float32", "1,1,1,1", 4, None, 1e-5),
        ("float32", "tp=2,sp=4", 4, None, 1e-5),
        ("int8", "sp=2", 4, None, 1e-5),
        ("float32", "1,1,1,1", 4, "int8", 2e-2),
        ("bfloat16", "1,1,1,1", 4, None, 3e-2),
    ],
)
def test_what_is_written_is_that_of_one_pass(one_pass, kind, mesh_text, lane, cache, close):
    one_pass(kind, mesh_text, lane, cache, close)


@pytest.mark.slow
@pytest.mark.representative
def test_what_is_written_on_other_meshes_is_that_of_one_pass(one_pass):
    one_pass("float32", "dp=2,tp=2", 4, None, 1e-5)
    one_pass("float32", "fsdp=2", 2, None, 1e-5)


@pytest.fixture
def one_pass(model_of, place, ask, request_for):
    """Compares what an engine writes with the log-probabilities of one pass over all of it."""

    def compare(kind, mesh_text, lane, cache, close):
        rng = np.random.default_rng(0)
        prompts = [rng.integers(0, 256, length).tolist() for length in LENGTHS]
        with jax.set_mesh(mesh := make_mesh(mesh_text)):
            engine = Engine(model_of(kind), mesh, pool_tokens=4096, cache_dtype=cache)
            plan = GenerationPlan(max_tokens=12)
            free = dataclasses.replace(plan, sampler=Sampler(), seed=3)
            greedy = ask(engine, *(request_for(plan, each, lane=lane) for each in prompts))
            scored = ask(
                engine, *(request_for(free, each, lane=lane, scores_from=1) for each in prompts)
            )
        for each in (*greedy, *scored):
            assert isinstance(each.last, Finished), each.last
        with jax.set_mesh(mesh := make_mesh()):
            model = model_of(kind)
            for found in (greedy, scored):
                rows = [[*prompt, *each.ids] for prompt, each in zip(prompts, found, strict=True)]
                wanted = forward(model, place, mesh, rows)
                for row, each, prompt, logprobs in zip(rows, found, prompts, wanted, strict=True):
                    own = np.take_along_axis(
                        logprobs[: len(row) - 1], np.array(row[1:])[:, None], 1
                    )
                    said = (each.scores + each.logprobs)[-len(row) + 1 :]
                    np.testing.assert_allclose(said, own[-len(said) :, 0], atol=close)
                    require_marked(logprobs[: len(each.scores)], row[1:], each.is_likeliest, close)
                    if found is greedy:
                        require_likeliest(logprobs[len(prompt) - 1 : len(row) - 1], each.ids, close)

    return compare


def require_marked(logprobs, targets, is_likeliest, close):
    """An id is marked as the likeliest wherever none other is as close."""
    for those, target, marked in zip(logprobs, targets, is_likeliest, strict=False):
        second, best = np.sort(those)[-2:]
        if those[target] == best and best - second > 2 * close:
            assert marked
        if best - those[target] > 2 * close:
            assert not marked


def require_likeliest(logprobs, ids, close):
    """Each id is the likeliest wherever the second is not as close."""
    likeliest, best = logprobs.argmax(axis=1), np.sort(logprobs, axis=1)
    apart = best[:, -1] - best[:, -2] > 2 * close
    assert apart.sum() >= 3
    np.testing.assert_array_equal(np.array(ids)[apart], likeliest[apart])
