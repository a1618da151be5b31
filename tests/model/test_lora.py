"""Low-rank adapters beside the weights of a model: the same numbers merged, and on every mesh."""

import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lwm.errors import UserError
from lwm.model.config import Compute, LoRA
from lwm.model.llama import Llama
from lwm.model.lora import Adapter, num_parameters
from lwm.ops.layout import order
from lwm.ops.stream import region
from lwm.sharding import BATCH, make_mesh, on_mesh

RANK = 4
LORA = LoRA(rank=RANK, alpha=8.0)


def merged(model: Llama, adapter: Adapter) -> Llama:
    """The same weights as arrays without adapters."""
    for path, one in adapter.layers.items():

        def find(model, path=path):
            return operator.attrgetter(path)(model.blocks)

        weight = find(model)
        a = np.asarray(one.a).reshape(len(one.a), -1, RANK)
        b = np.asarray(one.b).reshape(len(one.b), RANK, -1)
        change = adapter.scale * (a @ b).reshape(weight.shape)
        whole = jax.device_put(np.asarray(weight) + change, weight.sharding)
        model = eqx.tree_at(find, model, whole)
    return model


@jax.jit
def measure(model, adapter, tokens, targets, packing):
    """Logits, and the loss with its gradients for the adapter alone."""

    def loss(adapter):
        return adapter.on(model).losses(tokens, targets, packing).nll.mean()

    return adapter.on(model)(tokens, packing), jax.value_and_grad(loss)(adapter)


@pytest.fixture(scope="module")
def given(tiny):
    config = tiny(num_heads=16, num_kv_heads=8, qkv_bias=True, tie_embeddings=True)
    return config, np.random.default_rng(0).integers(0, config.tokens.size, (2, 8, 32))


@pytest.fixture(scope="module")
def alone(given, init, adapt, place):
    """Results on one device, beside the logits of the merged model."""
    config, (tokens, targets) = given
    with jax.set_mesh(mesh := make_mesh()):
        model, adapter = init(config), adapt(config, LORA)
        placed, packing = place(mesh, tokens)
        aims, _ = place(mesh, targets)
        found = jax.device_get(measure(model, adapter, placed, aims, packing))
        whole = jax.jit(lambda m: m(placed, packing))
        return found, whole(merged(model, adapter)), whole(model)


def test_beside_the_weights_is_as_merged(alone):
    (logits, _), as_merged, without = alone
    assert np.abs(logits - without).max() > 0.1
    np.testing.assert_allclose(logits, as_merged, atol=1e-5 * float(np.abs(as_merged).max()))


def test_equal_on_every_mesh(alone, given, init, adapt, place):
    config, (tokens, targets) = given
    (logits, (loss, grads)), _, _ = alone
    compute = Compute(mlp_chunk=3, loss_chunk=5, remat="attention")
    with jax.set_mesh(mesh := make_mesh("1,2,2,2")):
        there = order("zigzag", tokens.shape[1], mesh.shape["sp"])
        model, adapter = init(config, compute=compute), adapt(config, LORA)
        placed, packing = place(mesh, tokens, order=there)
        aims, _ = place(mesh, targets, order=there)
        found, (other_loss, other_grads) = measure(model, adapter, placed, aims, packing)
        found = np.asarray(found)[:, np.argsort(there)]
    assert np.abs(found - logits).max() <= 1e-4
    assert abs(other_loss - loss) <= 1e-4
    for one, other in zip(*map(jax.tree.leaves, (grads, other_grads)), strict=True):
        assert np.abs(one).max() > 0
        assert np.abs(one - other).max() <= 1e-4 * np.abs(one).max()


def test_training_starts_from_the_model_as_it_is(given, mesh):
    config, _ = given
    adapter = Adapter.init(config, LoRA(rank=RANK), key=jr.key(0))
    for one in adapter.layers.values():
        assert not np.asarray(one.b).any()
        bound = np.prod(one.a.shape[1:-1]) ** -0.5
        assert 0.9 * bound < jnp.abs(one.a).max() <= bound
    assert sum(leaf.size for leaf in jax.tree.leaves(adapter)) == num_parameters(
        config, LoRA(rank=RANK)
    )


def test_samples_do_not_depend_on_mesh_and_other_targets(given):
    config, _ = given
    found = []
    for mesh, targets in (("1,1,1,1", ("up_proj",)), ("1,2,2,2", ("q_proj", "up_proj"))):
        with jax.set_mesh(make_mesh(mesh)):
            adapter = Adapter.init(config, LoRA(rank=RANK, targets=targets), key=jr.key(3))
            found.append(np.asarray(adapter.layers["mlp.w_up"].a))
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (dict(rank=-1), "rank -1"),
        (dict(rank=4, alpha=0.0), "alpha 0"),
        (dict(targets=("q_proj", "lm_head")), "no target 'lm_head'; there are q_proj"),
        (dict(targets=()), "needs a target"),
        (dict(targets=("q_proj", "q_proj")), "q_proj twice"),
    ],
)
def test_wrong_settings_are_named(values, match):
    with pytest.raises(UserError, match=match):
        LoRA(**values)


def test_scales_of_frozen_weights_are_gathered_with_all_their_digits():
    """In float16 they have three bits more than the activations beside them."""
    weight = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float16)
    x = np.eye(8, dtype=np.float32)
    with jax.set_mesh(mesh := make_mesh("1,2,1,1")):
        held = jax.device_put(weight, on_mesh(mesh, P("fsdp", None)))
        rows = jax.device_put(x, on_mesh(mesh, P(BATCH, None)))
        found = region(
            lambda weight, x: x @ weight.astype(np.float32),
            held,
            rows,
            in_specs=(P(BATCH, None),),
            out_specs=P(BATCH, ("sp", "tp")),
            dtype="bfloat16",
        )
    np.testing.assert_array_equal(found, weight.astype(np.float32))
