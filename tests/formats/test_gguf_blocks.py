"""GGUF files of few bits, held as they are stored: the numbers are those of their decoder."""

import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

import lwm
from lwm.convert.open import HELD_AS, open_model_files
from lwm.convert.weights import build_llama
from lwm.formats import gguf as reader
from lwm.model.quantize import CONTRACTED, QuantizedWeight
from lwm.plan.memory import inference_need
from lwm.sharding import dotted, make_mesh

from .gguf_files import LAYERS, LETTERS, LINEAR, hugging_face_weights, write

KINDS = Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1


@pytest.fixture
def written(tmp_path):
    def make(kind, *, tied=False):
        weights = hugging_face_weights(tied=tied)
        return write(tmp_path / "m.gguf", weights, kind=kind, extra=LETTERS)

    return make


def read(path, bits):
    opened = open_model_files(path)
    return build_llama(opened.config, opened.tensors, opened.table, mesh=make_mesh(), bits=bits)


def is_weight(leaf):
    return isinstance(leaf, QuantizedWeight)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_exactly_those_that_are_decoded(written, kind, tied):
    path = written(kind, tied=tied)
    held, wide = read(path, "stored"), read(path, None)
    found = jax.tree.leaves_with_path(held, is_leaf=is_weight)
    packed = 0
    for (where, leaf), wanted in zip(found, jax.tree.leaves(wide), strict=True):
        name = ".".join(dotted(where).split(".")[-2:])
        if is_weight(leaf):
            packed += 1
            assert leaf.kind == HELD_AS[kind.name]
            leaf = leaf.astype(np.float32)
            leaf = leaf.T if name == "embedding" else leaf
        else:
            # A head of 16 numbers would cut the groups of 32 that lie across heads.
            assert name not in CONTRACTED or name == "attention.wo"
        np.testing.assert_array_equal(leaf, wanted)
    assert packed == 6 * LAYERS + (1 if tied else 2)


def test_types_that_cannot_be_taken_apart_have_eight_bits(written, monkeypatch):
    path = written(Kind.Q5_1)
    monkeypatch.setattr(reader, "KINDS", {"Q8_0"})
    held, wide = read(path, "stored"), read(path, None)
    weight, exact = (jax.tree.leaves(model.head, is_leaf=is_weight)[0] for model in (held, wide))
    assert weight.kind == "int8"
    error = np.abs(weight.astype(np.float32) - exact).max()
    assert 0 < error < np.abs(np.asarray(exact)).max() / 127


@pytest.mark.parametrize("kind", [Kind.Q4_1, Kind.BF16])
def test_answers_are_those_of_decoded_weights(written, kind):
    path = written(kind)
    texts = []
    for dtype in ("float32", "stored"):
        model = lwm.load(path, dtype=dtype)
        texts.append(
            [model.generate(text, max_tokens=8, temperature=0.0) for text in ("AB", "QRS")]
        )
    assert texts[0] == texts[1]
    assert model.llama.held == HELD_AS[kind.name]


def test_plans_count_the_bits_of_each_type(written):
    config, mesh = open_model_files(written(Kind.Q8_0)).config, (1, 1, 1, 1)
    eight, five = (
        inference_need(config, context=128, mesh=mesh, dtype=dtype).weights
        for dtype in ("int8", "q5_0")
    )
    # The table has eight bits, and so has a matrix whose groups heads would cut.
    shapes = [np.prod(shape) for name, (_, shape) in LINEAR.items() if name != "attn_output"]
    head = config.dim * config.tokens.rows
    assert eight - five == (LAYERS * sum(shapes) + head) * 3 / 8
