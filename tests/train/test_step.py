"""The loss of packed rows, and updates, against the original's and against examples alone."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.convert.names import LWM_NAMES
from lwm.convert.weights import build_llama
from lwm.data.example import Batch, Example, stack
from lwm.data.pack import Packer, PackingConfig, Placed, fill_row
from lwm.model.config import LlamaConfig
from lwm.model.llama import Llama
from lwm.ops.layout import order
from lwm.sharding import ROWS, TOKENS, make_mesh, on_mesh
from lwm.tokens import TokenSpace
from lwm.train.config import AdamW, Loss, Schedule
from lwm.train.loss import loss
from lwm.train.optimizer import build_optimizer
from lwm.train.placing import shard_batch
from lwm.train.step import TrainState, TrainStep


def put(mesh, batch):
    """A batch on the mesh, and the order of its rows."""
    there = order("zigzag", batch.tokens.shape[1], mesh.shape["sp"])
    *fields, counts = batch
    placed = [jax.device_put(x[:, there], on_mesh(mesh, TOKENS)) for x in fields]
    placed = Batch._make([*placed, jax.device_put(counts, on_mesh(mesh, ROWS))])
    return placed, jnp.asarray(there)


def put_together(mesh, batches):
    """Batches of one update on the mesh, and the order of their rows."""
    stacked = Batch._make(np.stack(field) for field in zip(*batches, strict=True))
    return shard_batch(stacked, mesh, "zigzag", rows=stacked.tokens.shape[1])


def of_the_original(given, name):
    """The original's batch of unpacked rows, each of which counts as one example."""
    masks = given[f"{name}.loss_masks"]
    tokens = given[f"{name}.input_tokens"]
    return Batch(
        tokens=tokens,
        targets=given[f"{name}.target_tokens"],
        segments=np.zeros_like(tokens),
        positions=np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape),
        weights=masks / np.maximum(masks.sum(1, keepdims=True), 1e-10),
        counts=np.ones((len(tokens), 2), np.float32),
    )


@jax.jit
def differentiate(model, batch, index):
    counts = batch.counts.sum(0)
    (value, sums), grads = jax.value_and_grad(loss, has_aux=True)(
        model, batch, index, counts, Loss()
    )
    return value, sums, grads


def test_loss_and_gradients_are_those_of_the_original(fixtures, mesh, original):
    model = original(mesh)
    given = np.load(fixtures / "text_tiny_grads.npz")
    value, sums, grads = differentiate(model, *put(mesh, of_the_original(given, "batch")))
    assert abs(value - given["loss"]) <= 1e-5
    assert sums.targets[0] == given["batch.loss_masks"].sum()
    named = {k.removeprefix("grad."): given[k] for k in given.files if k.startswith("grad.")}
    want = build_llama(model.config, named, LWM_NAMES, mesh=mesh)
    grads, want = jax.device_get((grads, want))
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(want), strict=True):
        assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max()


def update_twenty_times(given, name, *, fixtures, mesh, original):
    """Compares the losses of an optimizer's updates with the original's; returns the last state."""
    config = json.loads((fixtures / "adamw_configs.json").read_text())[name]
    micro, theirs = config["accumulate_gradient_steps"], config["adamw_optimizer"]
    schedule = Schedule(
        peak=theirs["lr"], warmup=theirs["lr_warmup_steps"], shape="cosine", end=theirs["end_lr"]
    )
    adamw = AdamW(
        schedule=schedule,
        decays="all",
        moment_dtype="bfloat16" if theirs["bf16_momentum"] else "float32",
    )
    optimizer = build_optimizer(adamw, theirs["lr_decay_steps"])
    step, state = TrainStep(optimizer, Loss()), TrainState.start(original(mesh).stack(), optimizer)
    for number in range(0, 20, micro):
        names = [f"batch{number + part:02}" for part in range(micro)]
        batches = [of_the_original(given, name) for name in names]
        state, metrics = step(state, *put_together(mesh, batches))
        want = given[f"{name}.loss"][number : number + micro].mean()
        assert abs(metrics.loss - want) <= 2e-5, number
        assert metrics.finite
    return state


@pytest.mark.parametrize("name", ["script", "fast", "fast_accum2", "fast_bf16_momentum"])
def test_losses_of_twenty_updates_are_those_of_the_original(fixtures, mesh, original, name):
    given = np.load(fixtures / "text_tiny_adamw_losses.npz")
    update_twenty_times(given, name, fixtures=fixtures, mesh=mesh, original=original)


@pytest.mark.parametrize("name", ["script", "fast"])
def test_twenty_updates_end_at_the_weights_of_the_original(fixtures, mesh, original, name):
    given = np.load(fixtures / "text_tiny_adamw.npz")
    state = update_twenty_times(given, name, fixtures=fixtures, mesh=mesh, original=original)
    prefix = f"{name}.final_params."
    named = {k.removeprefix(prefix): given[k] for k in given.files if k.startswith(prefix)}
    assert isinstance(state.model, Llama)
    want = build_llama(state.model.config, named, LWM_NAMES, mesh=mesh).stack()
    found, want = jax.device_get((state.model, want))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        assert np.linalg.norm(one - other) <= 1e-4 * np.linalg.norm(other)


def row(space, *given, length=64):
    """Examples side by side on one row."""
    pieces = [Placed(example, 0, len(example.ids) - 1) for example in given]
    return fill_row(pieces, PackingConfig(length=length), space)


SPACES = {
    "text": TokenSpace(text=256),
    "text and vision": TokenSpace(text=200, vision=50, codes=40),
}


def examples(space, lengths=(20, 9, 30, 5, 25, 31, 3, 28, 14, 30, 17, 22)):
    """Examples of all lengths; some without vision, one with nothing to learn."""
    draw = np.random.default_rng(0)
    found = []
    for number, length in enumerate(lengths):
        ids = draw.integers(0, space.text, length + 1)
        if space.vision and number % 3:
            ids[2 : 2 + length // 2] = space.text + draw.integers(0, space.codes, length // 2)
        learn = draw.random(length + 1) < (0.7 if number != 3 else 0)
        found.append(Example(ids=ids.astype(np.int32), loss_mask=learn, name=f"example {number}"))
    return found


@pytest.mark.parametrize(
    ("mesh_text", "name"),
    [("1,1,1,1", "text"), ("1,1,1,8", "text"), ("2,1,2,2", "text and vision")],
)
def test_packed_examples_count_as_alone(tiny, init, mesh_text, name):
    packed_count_as_alone(tiny, init, mesh_text, SPACES[name])


@pytest.mark.slow
@pytest.mark.representative
def test_packed_examples_count_as_alone_on_other_meshes(tiny, init):
    for mesh_text, name in (("2,2,2,1", "text"), ("1,1,8,1", "text and vision")):
        packed_count_as_alone(tiny, init, mesh_text, SPACES[name])


def packed_count_as_alone(tiny, init, mesh_text, space):
    config = PackingConfig(length=64)
    packed = list(Packer(config).pack(examples(space)))
    assert 4 <= len(packed) < len(examples(space)) / 2
    # As many rows as examples, so that one program is compiled.
    packed += [[]] * (len(examples(space)) - len(packed))
    packed = [fill_row(pieces, config, space) for pieces in packed]
    alone = [row(space, example) for example in examples(space)]
    mesh = make_mesh(mesh_text)
    with jax.set_mesh(mesh):
        model = init(tiny(tokens=space))
        results = [differentiate(model, *put(mesh, stack(rows))) for rows in (packed, alone)]
        (value, sums, grads), (want, want_sums, want_grads) = jax.device_get(results)
    assert abs(value - want) <= 1e-5
    for one, other in zip(sums, want_sums, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(want_grads), strict=True):
        assert np.abs(one - other).max() <= 1e-5 * max(np.abs(other).max(), 1e-6)


@pytest.fixture(scope="module")
def optimizer():
    return build_optimizer(AdamW(schedule=Schedule(warmup=0, shape="constant")), 10)


@pytest.fixture(scope="module")
def step(optimizer):
    return TrainStep(optimizer, Loss(z=1e-3))


def two_rows():
    space = SPACES["text and vision"]
    one, two, three, *_ = examples(space)
    return [row(space, one), row(space, two, three)]


def test_batches_of_a_step_are_as_one(mesh, tiny, init, optimizer, step):
    """Also where their counts differ: the mean of their own losses would be another number."""
    space, rows, results = SPACES["text and vision"], two_rows(), []
    model = init(tiny(tokens=space))
    for batches in ([stack(rows)], [stack(rows[:1]), stack(rows[1:])]):
        state = TrainState.start(jax.tree.map(jnp.copy, model), optimizer)
        _, metrics = step(state, *put_together(mesh, batches))
        results.append((metrics.loss, metrics.gradient_norm, metrics.nll))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_nothing_to_learn_is_zero(mesh, tiny, init):
    batch = stack([row(SPACES["text"])] * 12)  # as many as above, which is one program
    value, _, grads = differentiate(init(tiny()), *put(mesh, batch))
    assert value == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))


def test_an_update_that_is_not_finite_is_skipped(mesh, tiny, init, optimizer, step):
    good, index = put_together(mesh, [stack(two_rows())])
    state = TrainState.start(init(tiny(tokens=SPACES["text and vision"])), optimizer)
    broken = good._replace(weights=good.weights * jnp.nan)
    state, metrics = step(state, good, index)
    assert metrics.finite
    before = jax.device_get((state.model, state.optimizer))
    for times in (1, 2):
        state, metrics = step(state, broken, index)
        assert not metrics.finite
        assert int(state.bad) == times
    after = jax.device_get((state.model, state.optimizer))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    state, metrics = step(state, good, index)
    assert metrics.finite
    assert (int(state.bad), int(state.step)) == (0, 4)


def test_micro_batches_of_unequal_examples_add_up_to_the_one_large_batch(init):
    micro_batches_add_up("1,2,1,4", init)


@pytest.mark.slow
def test_micro_batches_add_up_on_other_meshes(init):
    for sizes in ("1,1,1,1", "2,1,2,2", "1,1,1,8", "2,2,2,1"):
        micro_batches_add_up(sizes, init)


def micro_batches_add_up(sizes, init):
    """Loss and norm of the gradients, though some micro-batches hold few long examples, or hardly
    any target."""
    random, space = np.random.default_rng(0), TokenSpace(text=50, vision=10, codes=8)
    lengths = [64, 64, 5, 3, 2, 40, 17, 30, 64, 64, 9, 7, 11, 60, 4, 33, 2, 2]
    examples = [
        Example(
            ids=random.integers(0, 60, length + 1).astype(np.int32),
            loss_mask=random.random(length + 1) < random.choice([0.1, 1.0]),
            name=str(number),
        )
        for number, length in enumerate(lengths)
    ]
    packing = PackingConfig(length=64)
    rows = [fill_row(pieces, packing, space) for pieces in Packer(packing).pack(examples)][:8]
    large = stack(rows)
    assert len({int((row.segments >= 0).sum()) for row in rows}) > 1
    config = LlamaConfig(
        tokens=space,
        dim=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        mlp_dim=32,
        max_context=64,
    )
    with jax.set_mesh(mesh := make_mesh(sizes)):
        found = []
        for parts in (1, 2):
            given = Batch._make(
                field.reshape(parts, 8 // parts, *field.shape[1:]) for field in large
            )
            placed, index = shard_batch(given, mesh, "zigzag", rows=8 // parts)
            optimizer = build_optimizer(AdamW(schedule=Schedule(warmup=0)), 1)
            model = init(config)
            step = TrainStep(optimizer, Loss())
            _, metrics = step(TrainState.start(model, optimizer), placed, index)
            found.append([float(metrics.loss), float(metrics.gradient_norm), *metrics.nll])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
