"""RingAttention against the quadratic oracle, on meshes of virtual devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import reshard

from lwm.ops import reference
from lwm.ops.layout import order
from lwm.ops.mask import Mask
from lwm.ops.ring import ring_attention
from lwm.sharding import HEADS, TOKENS, make_mesh

S, HEAD = 128, 8
MESHES = {1: "1,1,1,1", 2: "1,2,2,2", 4: "2,1,1,4", 8: "1,1,1,8"}
LAYOUTS = ("contiguous", "zigzag", "striped")


def packings():
    documents = np.repeat(np.arange(5), [50, 3, 30, 25, 20])
    padded = np.where(np.arange(S) < 37, -1, 0)
    return {
        "full": np.zeros((2, S)),
        "packed": np.stack([documents, documents[::-1]]),
        "left-padded": np.stack([padded, np.zeros(S)]),
    }


def draw(key_heads):
    rng = np.random.default_rng(key_heads)
    shapes = [(2, S, heads, HEAD) for heads in (4, key_heads, key_heads, 4)]
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@functools.cache
def ring(sp, implementation):
    """A compiled ring and its gradients; layout and packing are data."""
    mesh = make_mesh(MESHES[sp])
    blocks = (8, 8) if implementation == "blockwise" else None

    @jax.jit
    def run(q, k, v, dout, mask):
        attend = functools.partial(
            ring_attention, mask=mask, implementation=implementation, blocks=blocks
        )
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(dout)

    def call(tensors, mask):
        with jax.set_mesh(mesh):
            placed = [reshard(x, HEADS) for x in tensors]
            index = [jnp.asarray(x) for x in mask[:2]]
            segments = [reshard(jnp.asarray(x, jnp.int32), TOKENS) for x in mask[2:]]
            return jax.device_get(run(*placed, Mask(*index, *segments)))

    return call


def around(sp, tensors, segments, layout, implementation="blockwise"):
    """Output and gradients in the order of the row."""
    q_segments, k_segments = segments if isinstance(segments, tuple) else (segments, segments)
    there = order(layout, q_segments.shape[1], sp)
    laid = [x[:, there] for x in tensors]
    mask = Mask._make((there, there, q_segments[:, there], k_segments[:, there]))
    found = ring(sp, implementation)(laid, mask)
    return [x[:, np.argsort(there)] for x in found]


@functools.cache
def quadratic(packing, key_heads):
    q, k, v, dout = draw(key_heads)
    segments = jnp.asarray(packings()[packing], jnp.int32)
    mask = Mask(jnp.arange(S), jnp.arange(S), segments, segments)

    @jax.jit
    def run(q, k, v, dout, mask):
        out, pull = jax.vjp(lambda q, k, v: reference.attention(q, k, v, mask)[0], q, k, v)
        return out, *pull(dout)

    return jax.device_get(run(q, k, v, dout, mask))


@pytest.mark.parametrize("packing", packings())
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("sp", "key_heads"), [*((sp, 2) for sp in MESHES), (4, 4)])
def test_is_the_quadratic_attention(sp, layout, packing, key_heads):
    out, *grads = around(sp, draw(key_heads), packings()[packing], layout)
    true_out, *true_grads = quadratic(packing, key_heads)
    np.testing.assert_allclose(out, true_out, rtol=0, atol=1e-5)
    for grad, true in zip(grads, true_grads, strict=True):
        assert np.abs(grad - true).max() <= 1e-4 * np.abs(true).max()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("sp", "layout"), [(2, "striped"), (8, "zigzag"), (8, "contiguous")])
def test_the_original(fixtures, sp, layout, packed, padded):
    """The ringattention package's outputs and gradients, at queries that see a key."""
    case = "causal" + "_bias" * padded + "_segments" * packed
    with np.load(fixtures / "ringattention.npz") as file:
        tensors = [file[x] for x in "qkvg"]
        segments = file["segment_ids"] * packed
        filled = file["padding_mask"] > 0
        want = [file[f"{case}.{x}"] for x in ("out", "dq", "dk", "dv")]
        alive = file[f"{case}.alive"]
    # The original's padding empties keys but not queries.
    keys = np.where(filled, segments, -1) if padded else segments
    tensors[3] = tensors[3] * alive[:, :, None, None]
    found = around(sp, tensors, (segments, keys), layout)
    for x, y in zip(found, want, strict=True):
        np.testing.assert_allclose(x[alive], y[alive], rtol=0, atol=5e-6)


@pytest.mark.parametrize("changed", [0, 2])
@pytest.mark.parametrize(
    ("sp", "implementation"),
    [*((sp, "blockwise") for sp in MESHES), (1, "reference"), (4, "reference")],
)
def test_documents_do_not_leak(sp, implementation, changed):
    q, k, v, dout = draw(2)
    segments = packings()["packed"]
    inside = (segments == changed)[:, :, None, None]
    rng = np.random.default_rng(0)
    noise = [np.float32(9 * inside * rng.normal(size=x.shape)) for x in (q, k, v)]
    other = [q + noise[0], k + noise[1], v - noise[2], dout]
    before = around(sp, (q, k, v, dout), segments, "zigzag", implementation)
    after = around(sp, other, segments, "zigzag", implementation)
    for x, y in zip(before, after, strict=True):
        outside = np.broadcast_to(~inside, x.shape)
        np.testing.assert_array_equal(x[outside], y[outside])
        assert np.any(x[~outside] != y[~outside])


@pytest.fixture
def tiles(count_tiles_in_ring):
    def count(layout, segments, *, sp=8, block):
        with jax.set_mesh(make_mesh(f"sp={sp}")):
            there = order(layout, segments.shape[1], sp)
            index, laid = jnp.asarray(there), jnp.asarray(segments[:, there], jnp.int32)
            return np.asarray(count_tiles_in_ring(Mask(index, index, laid, laid), block))

    return count


@pytest.mark.parametrize("block", [16, 32, 64])
def test_zigzag_balances_every_step(tiles, block):
    counts = tiles("zigzag", np.zeros((1, 1024)), block=block)
    side = 1024 // block
    assert counts.sum() == side * (side + 1) // 2
    assert counts.max(axis=0).sum() <= 1.05 * counts.sum(axis=1).mean()
    assert counts.sum() <= 0.57 * side**2


def test_contiguous_does_not(tiles):
    counts = tiles("contiguous", np.zeros((1, 1024)), block=32)
    assert counts.max(axis=0).sum() > 1.5 * counts.sum(axis=1).mean()


def test_striped_balances_every_step(tiles):
    counts = tiles("striped", np.zeros((1, 2048)), block=16)
    assert counts.max(axis=0).sum() <= 1.15 * counts.sum(axis=1).mean()


def test_packed_rows_cost_what_their_documents_do(tiles):
    counts = tiles("zigzag", np.repeat(np.arange(16), 64)[None], block=32)
    assert counts.sum() <= 0.1 * 32**2
    np.testing.assert_array_equal(counts.sum(axis=1), counts.sum() // 8)


@pytest.mark.parametrize("length", [8, 16])
def test_parts_may_be_of_one_or_two_tokens(length):
    tensors = [each[:, :length] for each in draw(2)]
    segments = np.zeros((2, length), int)
    found = around(8, tensors, segments, "contiguous", None)
    mask = Mask._make(map(jnp.asarray, (np.arange(length), np.arange(length), segments, segments)))
    *inputs, dout = map(jnp.asarray, tensors)
    out, pull = jax.vjp(lambda q, k, v: reference.attention(q, k, v, mask)[0], *inputs)
    for one, same in zip(found, (out, *pull(dout)), strict=True):
        np.testing.assert_allclose(one, same, atol=1e-5)


def test_long_parts_are_differentiated_head_by_head(monkeypatch):
    """Here, parts of 16 tokens are long."""
    x, k, v, dout = draw(2)
    there = order("zigzag", S, 8)
    segments = packings()["packed"][:, there]
    mask = Mask._make(map(jnp.asarray, (there, there, segments, segments)))

    found = []
    with jax.set_mesh(make_mesh("sp=8")):
        laid = [reshard(each[:, there], HEADS) for each in (x, k, v, dout)]
        for long in (16, 17):
            monkeypatch.setattr("lwm.ops.ring._LONG", long)

            def grads(q, k, v, dout, mask):
                return jax.vjp(functools.partial(ring_attention, mask=mask), q, k, v)[1](dout)

            program = jax.jit(grads).lower(*laid, mask)
            found.append((len(program.as_text()), *jax.device_get(program.compile()(*laid, mask))))
    (by_head_size, *by_head), (at_once_size, *at_once) = found
    assert by_head_size != at_once_size
    for one, same in zip(by_head, at_once, strict=True):
        np.testing.assert_allclose(one, same, atol=1e-6)


def programs(program):
    """A program and those inside it."""
    yield program
    for equation in program.eqns:
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from programs(inner)


def test_keys_leave_before_they_are_used():
    """A step first sends what it holds, not what it has computed, and then attends."""
    x = jnp.zeros((1, 64, 1, 8))
    with jax.set_mesh(make_mesh("sp=8")):
        index, segments = jnp.arange(64), jnp.zeros((1, 64), jnp.int32)
        mask = Mask(index, index, segments, segments)
        whole = jax.make_jaxpr(jax.jit(ring_attention))(x, x, x, mask).jaxpr
    (step,) = [p for p in programs(whole) if any("ppermute" in str(e.primitive) for e in p.eqns)]
    sent = [n for n, e in enumerate(step.eqns) if "ppermute" in str(e.primitive)]
    used = [n for n, e in enumerate(step.eqns) if "while" in str(e) or "scan" in str(e)]
    assert len(sent) == 3, "keys, values and their mask"
    assert max(sent) < min(used)
    for n in sent:
        assert step.eqns[n].invars[0] in step.invars
