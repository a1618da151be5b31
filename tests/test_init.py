"""Training starts from a model on disk: placed as a drawn one, and lengthened for vision."""

import jax
import numpy as np
import optax
import pytest

from lwm.convert.export import save_model
from lwm.convert.open import open_model_files, read_llama
from lwm.errors import UserError
from lwm.model.llama import Llama
from lwm.sharding import dotted, make_mesh
from lwm.tokens import TokenSpace
from lwm.train.checkpoint import abstract_state
from lwm.train.step import TrainState

TEXT, VISION, CODES = 258, 66, 64


@pytest.fixture(scope="module")
def make_source(tiny, init, byte_tokenizer, tmp_path_factory):
    """Draws a model and saves it."""

    def make(**changes):
        config = tiny(**{"tokens": TokenSpace(text=TEXT), "num_kv_heads": 4} | changes)
        with jax.set_mesh(make_mesh()):
            model = init(config)
        folder = tmp_path_factory.mktemp("source") / "model"
        save_model(model, byte_tokenizer, folder)
        return model, folder

    return make


@pytest.fixture(scope="module")
def source(make_source):
    """A text model, and the folder that it is saved in."""
    return make_source()


@pytest.fixture(scope="module")
def tied(make_source):
    """The same with its table as its head."""
    return make_source(tie_embeddings=True)


def leaves(model):
    return {dotted(path): leaf for path, leaf in jax.tree.leaves_with_path(model)}


def read(folder, mesh="1,1,1,1", seed=0, **changes):
    opened = open_model_files(folder)
    config = opened.training_config(**changes)
    return read_llama(opened, config, mesh=make_mesh(mesh), seed=seed)


@pytest.mark.parametrize("mesh_text", ["1,1,1,1", "1,2,2,2"])
@pytest.mark.parametrize("codes", [0, CODES])
def test_weights_lie_where_drawn_ones_do(source, mesh_text, codes):
    found = read(source[1], mesh_text, codes=codes)

    def start():
        drawn = Llama.init(found.config, key=jax.random.key(0))
        return TrainState.start(drawn, optax.sgd(1.0))

    mesh = make_mesh(mesh_text)
    wanted = leaves(abstract_state(start, mesh).model)
    assert leaves(found).keys() == wanted.keys()
    for name, leaf in leaves(found).items():
        assert leaf.shape == wanted[name].shape, name
        assert leaf.dtype == wanted[name].dtype == np.float32, name
        assert leaf.sharding == wanted[name].sharding, name


@pytest.mark.parametrize("mesh_text", ["1,1,1,1", "1,2,2,2"])
def test_weights_are_those_that_were_saved(source, mesh_text):
    model, folder = source
    found = leaves(read(folder, mesh_text))
    for name, leaf in leaves(model).items():
        # Behind the text ids, a table has rows that mean nothing.
        real = {"embedding": np.s_[:TEXT], "head": np.s_[:, :TEXT]}.get(name, ...)
        np.testing.assert_array_equal(np.asarray(found[name])[real], np.asarray(leaf)[real], name)


def test_a_read_model_runs_as_a_drawn_one(source, mesh):
    """The types of its arrays are the same, so that nothing is compiled again."""
    model, folder = source
    for name, leaf in leaves(read(folder)).items():
        assert jax.typeof(leaf) == jax.typeof(leaves(model)[name]), name


@pytest.mark.parametrize("kind", ["source", "tied"])
def test_vision_ids_leave_text_as_it_is(request, mesh, place, kind):
    model, folder = request.getfixturevalue(kind)
    found = read(folder, codes=CODES)
    assert found.config.tokens == TokenSpace(text=TEXT, vision=VISION, codes=CODES)
    assert (found.head is None) == (kind == "tied")
    placed = place(mesh, np.random.default_rng(0).integers(0, TEXT, (2, 40)))
    forward = jax.jit(lambda model, tokens, packing: model(tokens, packing))
    wanted, logits = (np.asarray(forward(each, *placed)) for each in (model, found))
    np.testing.assert_allclose(logits[..., :TEXT], wanted[..., :TEXT], rtol=0, atol=1e-6)
    assert logits[..., TEXT : TEXT + VISION].std() > 0.5 * wanted[..., :TEXT].std()


def tables(model):
    return np.asarray(model.embedding), np.asarray(model.head).T


def test_new_rows_are_as_wide_as_the_old(source):
    for table in tables(read(source[1], codes=CODES)):
        old, new = table[:TEXT], table[TEXT : TEXT + VISION]
        assert new.std() == pytest.approx(old.std(), rel=0.05)
        assert abs(new.mean()) < 0.1 * old.std()
    one, other = tables(read(source[1], codes=CODES))
    assert np.abs(np.corrcoef(one[TEXT:-9].ravel(), other[TEXT:-9].ravel())[0, 1]) < 0.1


def test_new_rows_depend_on_the_seed_alone(source):
    folder = source[1]
    one = tables(read(folder, codes=CODES, seed=3))
    many = tables(read(folder, "1,2,2,2", codes=CODES, seed=3))
    other = tables(read(folder, codes=CODES, seed=4))
    for a, b, c in zip(one, many, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a[TEXT : TEXT + VISION] != c[TEXT : TEXT + VISION]).mean() > 0.9


def test_a_model_with_vision_ids_keeps_them(make_source):
    model, folder = make_source(tokens=TokenSpace(text=TEXT, vision=80, codes=CODES))
    opened = open_model_files(folder)
    for vision, codes in ((0, 0), (0, CODES), (80, CODES)):
        config = opened.training_config(vision=vision, codes=codes)
        assert config.tokens == model.config.tokens
    for vision, codes, said in ((0, 32, "those for 32"), (66, CODES, "66 for 64")):
        with pytest.raises(UserError, match=f"has 80 vision ids for 64 codes, but {said} are"):
            opened.training_config(vision=vision, codes=codes)
    found = read_llama(opened, opened.training_config(), mesh=make_mesh())
    size = model.config.tokens.size
    np.testing.assert_array_equal(found.embedding[:size], model.embedding[:size])


def test_settings(source):
    opened = open_model_files(source[1])
    config = opened.training_config(vision=8448, codes=8192)
    assert config.tokens == TokenSpace(text=TEXT, vision=8448, codes=8192)
    assert config.dim == source[0].config.dim


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vision": 66}, "66 vision ids for 0 codes"),
        ({"codes": -1}, "0 vision ids for -1 codes"),
        ({"codes": 64, "vision": 65}, "model cannot be trained so: 64 codes, .* need 66 vision"),
    ],
)
def test_what_cannot_be_trained(source, changes, said):
    opened = open_model_files(source[1])
    with pytest.raises(UserError, match=said):
        opened.training_config(**changes)


def test_every_tensor_is_reported(source):
    opened = open_model_files(source[1])
    seen = []
    read_llama(
        opened,
        opened.training_config(),
        mesh=make_mesh(),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, len(opened.tensors)) for done in range(1, len(opened.tensors) + 1)]


def test_what_does_not_divide_is_refused_before_reading(source):
    opened = open_model_files(source[1])
    with pytest.raises(UserError, match="4 key/value heads do not divide by tp 8"):
        read_llama(opened, opened.training_config(), mesh=make_mesh("1,1,8,1"))
