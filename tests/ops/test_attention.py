"""Blockwise attention against the quadratic one, and what only tiles can get wrong."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec as P

from lwm.ops import attention as module, reference
from lwm.ops.attention import attention
from lwm.ops.blockwise import _fwd as tiles, block_sizes, bwd, fwd
from lwm.ops.mask import Mask
from lwm.ops.ring import ring_attention
from lwm.sharding import make_mesh


def draw(B, S, T, N, K, H, dtype=jnp.float32):
    """Queries, keys, values and a cotangent."""
    rng = np.random.default_rng(S + T + N)
    shapes = (B, S, N, H), (B, T, K, H), (B, T, K, H), (B, S, N, H)
    # Converted here, as JAX would compile a program for each shape.
    return tuple(jnp.asarray(rng.normal(size=shape).astype(dtype)) for shape in shapes)


def where(segments, index=None):
    """The mask of a row that attends to itself."""
    segments = np.asarray(segments, np.int32)
    index = np.arange(segments.shape[1]) if index is None else np.asarray(index)
    index, segments = (jnp.asarray(x, jnp.int32) for x in (index.astype(np.int32), segments))
    return Mask(index, index, segments, segments)


blockwise = partial(attention, implementation="blockwise")
forward = jax.jit(partial(fwd, blocks=(8, 8)))
backward = jax.jit(partial(bwd, blocks=(8, 8)))


def by_reference(q, k, v, mask):
    return reference.attention(q, k, v, mask)[0]


@cache
def compiled(attend, **options):
    """One program for all calls alike; what the mask holds is data."""

    @jax.jit
    def run(q, k, v, dout, mask):
        out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, mask, **options), q, k, v)
        return out, pull(dout)

    return run


def value_and_grads(attend, tensors, mask, **options):
    return jax.device_get(compiled(attend, **options)(*tensors, mask))


def agree(tensors, mask, blocks=None):
    """Asserts that tiles change neither the output nor the gradients."""
    got, grads = value_and_grads(blockwise, tensors, mask, blocks=blocks)
    want, true_grads = value_and_grads(by_reference, tensors, mask)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    for g, t in zip(grads, true_grads, strict=True):
        assert np.all(np.isfinite(g))
        assert np.abs(g - t).max() <= 1e-4 * np.abs(t).max()


@pytest.mark.parametrize("blocks", [(8, 8), (8, 32), None])
@pytest.mark.parametrize("length", [8, 37, 64])
def test_causal(length, blocks):
    agree(draw(2, length, length, 2, 2, 8), where(np.zeros((2, length))), blocks)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_weights_summed_by_a_column_of_ones_or_apart_are_alike(dtype):
    """The column is for CPUs; the first six queries are padding."""
    q, k, v, _ = draw(2, 40, 40, 4, 2, 8, dtype)
    mask = where(np.repeat([[-1, 0, 1]] * 2, [6, 20, 14], axis=1))
    forms = [jax.jit(partial(tiles, blocks=(8, 16), ones=ones)) for ones in (True, False)]
    got, apart = (form(q, k, v, mask) for form in forms)
    tolerance = 1e-6 if dtype == jnp.float32 else 1e-2
    for one, other in zip(got, apart, strict=True):
        assert np.isfinite(one).any()
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


def test_each_platform_gets_its_own_program():
    """The column of ones makes products of width 9; tiles of long rows differ in their keys."""
    rows = jax.ShapeDtypeStruct((1, 4096, 2, 8), jnp.float32)
    segments = jax.ShapeDtypeStruct((1, 4096), jnp.int32)
    index = jnp.arange(4096)
    traced = jax.jit(lambda q, row: fwd(q, q, q, Mask(index, index, row, row))).trace(
        rows, segments
    )
    text = {
        platform: traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "tpu", "cuda")
    }
    assert [name for name in text if "tensor<2x512x9xf32>" in text[name]] == ["cpu", "tpu"]
    assert [name for name in text if "tensor<2x512x1024xf32>" in text[name]] == ["tpu", "cuda"]
    assert [name for name in text if "tensor<2x512x512xf32>" in text[name]] == ["cpu"]


@pytest.mark.parametrize("key_heads", [1, 4])
def test_the_quadratic_gradient_is_that_of_its_value(key_heads):
    tensors = draw(2, 24, 24, 4, key_heads, 8)
    mask = where(np.repeat([[0, 1, 2], [0, 0, -1]], 8, axis=1))
    _, got = value_and_grads(attention, tensors, mask, implementation="reference")
    _, want = value_and_grads(by_reference, tensors, mask)
    for g, t in zip(got, want, strict=True):
        np.testing.assert_allclose(g, t, rtol=0, atol=1e-5)


def test_one_token():
    q, k, v, dout = draw(2, 1, 1, 2, 2, 8)
    out, (dq, dk, dv) = value_and_grads(blockwise, (q, k, v, dout), where(np.zeros((2, 1))))
    for got, want in ((out, v), (dv, dout), (dq, np.zeros(q.shape)), (dk, np.zeros(k.shape))):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_grouped_queries(key_heads):
    segments = np.repeat([[0, 1, 2], [0, 0, 1]], 15, axis=1)
    agree(draw(2, 45, 45, 4, key_heads, 8), where(segments), (8, 16))


def packings():
    documents = np.repeat(np.arange(6), [1, 20, 3, 16, 8, 16])
    left = np.where(np.arange(64) < 21, -1, 0)
    return {
        "documents": np.stack([documents, documents // 3]),
        "left padding": np.stack([left, np.zeros(64)]),
        "right padding": np.stack([np.where(np.arange(64) < 50, 3, -1), documents]),
        "empty row": np.stack([np.full(64, -1), documents]),
        "holes": np.stack([np.where(np.arange(64) % 3, 0, -1), documents]),
    }


@pytest.mark.parametrize("name", packings())
def test_packing(name):
    agree(draw(2, 64, 64, 2, 1, 8), where(packings()[name]), (16, 16))


def test_rows_that_see_nothing():
    q, k, v, dout = draw(1, 16, 16, 2, 2, 8)
    mask = where(np.where(np.arange(16) < 5, -1, 0)[None])
    out, lse = jax.device_get(forward(q, k, v, mask))
    assert not out[:, :5].any()
    assert np.all(lse[:, :5] == -np.inf)
    grads = jax.device_get(backward(q, k, v, out, lse, dout, mask))
    assert all(not g[:, :5].any() and np.all(np.isfinite(g)) for g in grads)


def zigzag(length, devices):
    """Each device's two chunks, one from either end, one device after the other."""
    chunks = np.arange(length).reshape(2 * devices, -1)
    return np.concatenate([chunks[[i, -1 - i]].ravel() for i in range(devices)])


@pytest.mark.parametrize(
    "order", [zigzag(64, 4), np.arange(64)[::-1], np.random.default_rng(0).permutation(64)]
)
def test_order_is_data(order):
    tensors = draw(2, 64, 64, 2, 2, 8)
    mask = where(packings()["documents"])
    order = np.asarray(order)
    shuffled = where(np.asarray(mask.q_segments)[:, order], order)
    moved = tuple(np.asarray(x)[:, order] for x in tensors)
    agree(moved, shuffled, (8, 16))
    straight, _ = value_and_grads(blockwise, tensors, mask, blocks=(8, 16))
    moved, _ = value_and_grads(blockwise, moved, shuffled, blocks=(8, 16))
    np.testing.assert_allclose(moved, straight[:, order], rtol=0, atol=1e-5)


def test_chunk_against_a_cache():
    tensors = draw(2, 8, 40, 4, 2, 8)
    filled = np.arange(40)[None] < np.array([[24], [24]])
    segments = np.where(filled & (np.arange(40) >= np.array([[0], [5]])), 0, -1).astype(np.int32)
    segments = jnp.asarray(segments)

    def attend(q, k, v, start, *, implementation):
        own = jnp.zeros((2, 8), jnp.int32)
        index = start + jnp.arange(8)
        mask = Mask(index, jnp.arange(40), own, segments)
        return attention(q, k, v, mask, implementation=implementation)

    start = jnp.int32(16)
    got, grads = value_and_grads(attend, tensors, start, implementation="blockwise")
    want, true_grads = value_and_grads(attend, tensors, start, implementation="reference")
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    for g, t in zip(grads, true_grads, strict=True):
        assert np.abs(g - t).max() <= 1e-4 * np.abs(t).max()


def test_log_sum_exp_and_partial_keys():
    """The halves of the keys, each given the whole's lse, add up to the whole's gradients."""
    q, k, v, dout = draw(1, 32, 32, 2, 1, 8)
    mask = where(np.zeros((1, 32)))
    out, lse = forward(q, k, v, mask)
    want = jax.jit(reference.attention)(q, k, v, mask)[1]
    np.testing.assert_allclose(lse, want, rtol=0, atol=1e-5)
    whole = backward(q, k, v, out, lse, dout, mask)
    k, v, index, segments = jax.device_get((k, v, mask.k_index, mask.k_segments))

    def half(keys):
        part = mask._replace(k_index=index[keys], k_segments=segments[:, keys])
        return backward(q, k[:, keys], v[:, keys], out, lse, dout, part)

    first, second = half(slice(0, 16)), half(slice(16, 32))
    first, second, whole = jax.device_get((first, second, whole))
    np.testing.assert_allclose(first[0] + second[0], whole[0], rtol=0, atol=1e-5)
    for a, b, c in list(zip(first, second, whole, strict=True))[1:]:
        np.testing.assert_allclose(np.concatenate([a, b], 1), c, rtol=0, atol=1e-5)


def test_large_scores_do_not_overflow():
    q, k, v, dout = draw(1, 32, 32, 2, 2, 16)
    # Whole numbers and a scale of 1/4, so that scores of some hundreds have no rounding error.
    q, k = (np.round(8 * np.asarray(x)) for x in (q, k))
    assert np.abs(np.einsum("bsnh,btnh->bnst", q, k)).max() / 4 > 2 * np.log(3e38)
    agree((q, k, v, dout), where(np.zeros((1, 32))), (8, 8))


@pytest.mark.parametrize("blocks", [(16, 16), None])
@pytest.mark.parametrize("key_heads", [1, 4])
def test_bfloat16(key_heads, blocks):
    tensors = draw(2, 48, 48, 4, key_heads, 16, jnp.bfloat16)
    mask = where(np.repeat([[0, 1, 2], [0, 0, -1]], 16, axis=1))
    got, grads = value_and_grads(blockwise, tensors, mask, blocks=blocks)
    exact = tuple(np.asarray(x, np.float32) for x in tensors)
    want, true_grads = value_and_grads(by_reference, exact, mask)
    assert got.dtype == jnp.bfloat16
    for g, t in zip((got, *grads), (want, *true_grads), strict=True):
        assert g.dtype == jnp.bfloat16
        assert np.abs(g.astype(np.float32) - t).max() <= 2e-2 * np.abs(t).max()


@pytest.mark.parametrize("changed", [0, 1, 2])
def test_documents_do_not_leak(changed):
    q, k, v, dout = draw(1, 48, 48, 2, 1, 8)
    segments = np.repeat(np.arange(3), [10, 22, 16])[None]
    inside = (segments == changed)[0]
    rng = np.random.default_rng(7)
    noise = np.float32(9 * inside[None, :, None, None] * rng.normal(size=k.shape))
    mask, blocks = where(segments), (16, 16)
    q, k, v, dout = map(np.asarray, (q, k, v, dout))
    before = value_and_grads(blockwise, (q, k, v, dout), mask, blocks=blocks)
    after = value_and_grads(blockwise, (q, k + noise, v - noise, dout), mask, blocks=blocks)
    for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(x[:, ~inside], y[:, ~inside])
        assert np.any(x[:, inside] != y[:, inside])


@pytest.mark.parametrize(("tiles", "block"), [(1, 16), (4, 16), (16, 8)])
def test_causal_tiles(count_tiles, tiles, block):
    mask = where(np.zeros((3, tiles * block)))
    assert count_tiles(mask, block=block) == 3 * tiles * (tiles + 1) // 2


def test_packed_tiles(count_tiles):
    mask = where(np.repeat(np.arange(16), 32)[None])
    assert count_tiles(mask, block=16) <= 0.1 * 32**2
    assert count_tiles(mask, block=32) == 16


def test_tiles_of_each_row(count_tiles):
    empty, whole = np.full(64, -1), np.zeros(64)
    assert count_tiles(where([empty, empty]), block=16) == 0
    assert count_tiles(where([empty, whole]), block=16) == 10


def test_tiles_of_an_unfilled_cache(count_tiles):
    index = jnp.arange(64)
    cached = jnp.where(index < 20, 0, -1)[None]
    mask = Mask(index[16:20], index, jnp.zeros((1, 4), jnp.int32), cached)
    assert count_tiles(mask, block=4, key_block=8) == 3


def test_skipped_tiles_are_not_read():
    """A NaN in a tile that no query sees would spread, were the tile computed."""
    q, k, v, dout = draw(1, 32, 32, 2, 2, 8)
    segments = np.repeat([[0, -1, 1, 1]], 8, axis=1)
    hole = (segments == -1)[0][None, :, None, None]
    k, v = (np.where(hole, np.float32(np.nan), np.asarray(x)) for x in (k, v))
    out, grads = value_and_grads(blockwise, (q, k, v, dout), where(segments), blocks=(8, 8))
    assert all(np.all(np.isfinite(x)) for x in (out, *grads))


def test_blocks_divide_evenly():
    assert block_sizes(513, 1, 1) == (257, 1)
    assert block_sizes(2048, 2048, 4) == (512, 512)
    assert block_sizes(2048, 2048, 32) == (256, 512)
    assert block_sizes(16_384, 16_384, 8) == (1024, 512)
    assert block_sizes(2048, 2048, 4, on_cpu=False) == (512, 512)
    assert block_sizes(16_384, 16_384, 8, on_cpu=False) == (1024, 1024)
    assert block_sizes(65_536, 65_536, 32, on_cpu=False) == (256, 2048)


def test_memory_grows_with_the_length():
    def temporary(length):
        x = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
        mask = where(np.zeros((1, length)))

        def loss(q, k, v):
            return blockwise(q, k, v, mask, blocks=(64, 64)).sum()

        memory = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    assert temporary(4096) <= 2.1 * temporary(2048)
    assert temporary(4096) < 4096 * 4096


@pytest.mark.parametrize("check_vma", [True, False])
def test_inside_shard_map(check_vma):
    mesh = jax.make_mesh((2, 2, 2), ("dp", "tp", "sp"), axis_types=(AxisType.Explicit,) * 3)
    q, k, v, dout = draw(2, 32, 32, 4, 2, 8)
    mask = where(packings()["documents"][:, :32])
    want, true_grads = value_and_grads(by_reference, (q, k, v, dout), mask)

    def local(q, k, v, dout, mask):
        out, pull = jax.vjp(lambda q, k, v: blockwise(q, k, v, mask, blocks=(8, 8)), q, k, v)
        return out, pull(dout)

    heads, rows = P("dp", None, "tp", None), P("dp", None)
    with jax.set_mesh(mesh):
        tensors = [jax.reshard(x, heads) for x in (q, k, v, dout)]
        specs = (P(), P(), rows, rows)
        placed = Mask(*(jax.reshard(x, spec) for x, spec in zip(mask, specs, strict=True)))
        run = jax.shard_map(local, out_specs=heads, check_vma=check_vma)
        got, grads = jax.jit(run)(*tensors, placed)
    for g, t in zip((got, *grads), (want, *true_grads), strict=True):
        np.testing.assert_allclose(np.asarray(g), t, rtol=0, atol=1e-5)


def test_named_implementations_agree():
    q, k, v, _ = draw(1, 16, 16, 2, 1, 8)
    mask = where(np.zeros((1, 16)))
    want = jax.jit(attention)(q, k, v, mask)
    for name in module.IMPLEMENTATIONS:
        got = jax.jit(partial(attention, implementation=name))(q, k, v, mask)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_the_first_that_accepts_is_taken(monkeypatch):
    q, k, v, _ = draw(1, 16, 16, 2, 1, 8)
    mask = where(np.zeros((1, 16)))
    fast = module.Implementation(lambda q, k, v, mask: (2 * q, q[..., 0]), bwd, lambda *_: None)
    monkeypatch.setattr(module, "IMPLEMENTATIONS", {"fast": fast} | module.IMPLEMENTATIONS)
    np.testing.assert_array_equal(attention(q, k, v, mask), 2 * q)


def test_refusals_are_listed(monkeypatch):
    q, k, v, _ = draw(1, 16, 16, 2, 1, 8)
    mask = where(np.zeros((1, 16)))
    with pytest.raises(ValueError, match=r"fast: unknown.* blockwise, reference"):
        attention(q, k, v, mask, implementation="fast")
    with pytest.raises(ValueError, match=r"blockwise: 3 query heads .*; reference: 3 query heads"):
        attention(jnp.ones((1, 16, 3, 8)), jnp.ones((1, 16, 2, 8)), jnp.ones((1, 16, 2, 8)), mask)
    with pytest.raises(ValueError, match="blockwise: q, k, v are float32, bfloat16, float32"):
        attention(q, k.astype(jnp.bfloat16), v, mask)
    table = {
        name: module.Implementation(fwd, bwd, lambda *_, name=name: f"no {name} here")
        for name in ("gpu", "tpu")
    }
    monkeypatch.setattr(module, "IMPLEMENTATIONS", table)
    with pytest.raises(ValueError, match="gpu: no gpu here; tpu: no tpu here"):
        attention(q, k, v, mask)


def test_implementations_see_the_kind_of_mask_and_the_platform(monkeypatch):
    q, k, v, _ = draw(1, 16, 16, 2, 1, 8)
    rows, seen = where(np.zeros((1, 16))), []
    fussy = module.Implementation(fwd, bwd, lambda *given: seen.append(given[3:]) or "not now")
    monkeypatch.setattr(module, "IMPLEMENTATIONS", {"fussy": fussy} | module.IMPLEMENTATIONS)
    parts = rows._replace(k_index=rows.k_index + 0)
    jax.eval_shape(lambda: attention(q, k, v, rows))
    jax.eval_shape(lambda: attention(q, k, v, parts))
    for mesh in ("sp=1", "sp=2"):
        with jax.set_mesh(make_mesh(mesh)):
            jax.eval_shape(lambda: ring_attention(q, k, v, rows))
    assert seen == [(kind, "cpu") for kind in ("rows", "parts", "rows", "parts")]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_the_original(fixtures, padded, packed):
    """The ringattention package's outputs and gradients; its bias, on keys only, empties slots."""
    case = "causal" + "_bias" * padded + "_segments" * packed
    with np.load(fixtures / "ringattention.npz") as file:
        q, k, v, g = (jnp.asarray(file[x]) for x in "qkvg")
        mask = where(file["segment_ids"] * packed)
        if padded:
            filled = np.where(file["padding_mask"] > 0, np.asarray(mask.k_segments), -1)
            mask = mask._replace(k_segments=jnp.asarray(filled))
        names = ("out", "dq", "dk", "dv", "alive")
        *want, alive = (file[f"{case}.{x}"] for x in names)
    g = g * alive[:, :, None, None]
    out, grads = value_and_grads(blockwise, (q, k, v, g), mask, blocks=(32, 64))
    for x, y in zip((out, *grads), want, strict=True):
        np.testing.assert_allclose(x[alive], y[alive], rtol=0, atol=5e-6)
