"""The ablation of packing: what its naive batches are, and that its masked runs are ordinary."""

import dataclasses
import json
import runpy
from pathlib import Path

import jax
import jax.random as jr
import numpy as np
import pytest

from lwm.data.example import Example, stack
from lwm.data.pack import PackingConfig, Placed, fill_row
from lwm.model.config import Compute, LlamaConfig
from lwm.model.layers import Packing
from lwm.model.llama import Llama
from lwm.tokens import TokenSpace
from lwm.train.config import DataSet, Keep
from lwm.train.placing import shard_batch
from lwm.train.run import run

ROOT = Path(__file__).parents[1]
small = runpy.run_path(str(ROOT / "tests" / "small_run.py"))["small"]
SPACE = TokenSpace.of(30, 8)


@pytest.fixture(scope="module")
def benchmark():
    """The benchmark as a module; it imports others of its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import packing

        yield packing


def example(ids, trained):
    """An example of which the last ids are trained on."""
    learn = np.arange(len(ids)) >= len(ids) - trained
    return Example(ids=np.array(ids, np.int32), loss_mask=learn, name="")


SHORT = example([1, 2, 3, 4], trained=1)
LONG = example([1, 5, 6, *range(30, 36), 7, 8], trained=8)
"""Trained on six codes and two ids of text."""


def packed(first, second):
    config = PackingConfig(length=16)
    return stack(
        [
            fill_row([Placed(one, 0, len(one) - 1) for one in row], config, SPACE)
            for row in ((first, second), (second,))
        ]
    )


def test_naive_rows_are_one_text_in_which_targets_of_a_kind_weigh_alike(benchmark):
    masked = packed(SHORT, LONG)
    made = benchmark.naive(masked, SPACE.text)
    np.testing.assert_array_equal(made.tokens, masked.tokens)
    np.testing.assert_array_equal(made.targets, masked.targets)
    assert masked.positions[0].tolist() == [0, 1, 2, *range(10), 0, 0, 0]
    assert made.positions[0].tolist() == [*range(13), 0, 0, 0]
    assert made.segments[0].tolist() == 13 * [0] + 3 * [-1]
    is_vision = masked.targets[0] >= SPACE.text
    trained = masked.weights[0] > 0
    # Alone, the answer of one id weighs as much as the two ids of the long example together.
    assert masked.weights[0][trained & ~is_vision].tolist() == [1, 0.5, 0.5]
    np.testing.assert_allclose(made.weights[0][trained & ~is_vision], 3 * [1 / 3])
    np.testing.assert_allclose(made.weights[0][trained & is_vision], 6 * [1 / 6])
    assert not made.weights[~(masked.weights > 0)].any()
    # The original averages over rows; masked packing over examples.
    np.testing.assert_array_equal(made.counts, [[1, 1], [1, 1]])
    np.testing.assert_array_equal(masked.counts, [[2, 2], [1, 1]])
    for one, other in zip(made, masked, strict=True):
        assert one.dtype == other.dtype


def test_attention_crosses_examples_in_naive_rows_alone(benchmark, mesh):
    config = LlamaConfig(
        tokens=SPACE,
        dim=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        mlp_dim=16,
        max_context=16,
    )
    model = jax.jit(lambda: Llama.init(config, Compute(), key=jr.key(0)))()

    @jax.jit
    def losses(batch, index):
        packing = Packing(segments=batch.segments, positions=batch.positions, index=index)
        return model.losses(batch.tokens, batch.targets, packing).nll

    def second_example(first, change):
        given = jax.tree.map(lambda field: field[None], change(packed(first, LONG)))
        placed, index = shard_batch(given, mesh, "contiguous", rows=2)
        return np.asarray(losses(jax.tree.map(lambda x: x[0], placed), index))[0, 3:13]

    other = dataclasses.replace(SHORT, ids=np.array([1, 9, 3, 4], np.int32))
    before, after = (second_example(one, lambda batch: batch) for one in (SHORT, other))
    np.testing.assert_array_equal(before, after)
    before, after = (
        second_example(one, lambda batch: benchmark.naive(batch, SPACE.text))
        for one in (SHORT, other)
    )
    assert (np.abs(after - before) > 1e-6).all()


def test_masked_runs_are_those_of_lwm_train_and_naive_ones_are_not(benchmark, tmp_path):
    lines = ({"text": f"{number} whales, and {'no ' * (number % 7)}ship"} for number in range(40))
    files = tmp_path / "short.jsonl"
    files.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    config = small(steps=3, keep=Keep(every=3))
    short = dataclasses.replace(config.data, sets=(DataSet(files=(str(files),)),), held_out=())
    config = dataclasses.replace(config, data=short)
    found = {
        "ours": run(config, tmp_path / "ours"),
        "masked": benchmark.train_run(config, tmp_path / "masked", "masked"),
        "naive": benchmark.train_run(config, tmp_path / "naive", "naive"),
    }
    weights = {way: (place / "model.safetensors").read_bytes() for way, place in found.items()}
    assert weights["masked"] == weights["ours"]
    assert weights["naive"] != weights["ours"]


def test_intervals_are_over_questions_and_over_seeds(benchmark):
    def answers(shift):
        rows = ("pictures", "exists", "yes"), ("clips", "exists", "no"), ("clips", "count", "one")
        return [
            {
                "split": split,
                "shown": shown,
                "kind": kind,
                "question": "",
                "answer": answer,
                "score": float(shift > 0),
                "loss": 1.0 + shift * (number + 1),
            }
            for split in ("heldout", "train")
            for number, (shown, kind, answer) in enumerate(rows)
        ]

    found = {("naive", seed): {"answers": answers(0.0)} for seed in (0, 1)}
    found |= {("masked", seed): {"answers": answers(0.1 + 0.1 * seed)} for seed in (0, 1)}
    text = "\n".join(benchmark.tables(found))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    whole = [line for line in lines if line and line[0] == "held-out combinations"]
    # Of three questions the commonest answers are right for two.
    assert whole[0][1:5] == ["3", "0.0%", "100.0%", "+100.0%"]
    assert whole[0][-1] == "66.7%"
    # Means over seeds are 0.15, 0.30 and 0.45; of the seeds 0.2 and 0.4: 0.3 ± 12.706 × 0.1.
    assert whole[1][2:5] == ["1.000", "1.300", "+0.300"]
    assert whole[1][5] == "+0.150 to +0.450"
    assert whole[1][6] == "-0.971 to +1.571"
