"""Recipes are what they were; a change of a default shows in the files of `golden`.

python tests/test_recipes.py    writes these files anew
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
import tyro
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec as P

from lwm.cli.train import commands, without_model
from lwm.errors import UserError
from lwm.model.config import Compute, Rope
from lwm.model.llama import Llama
from lwm.recipes import RECIPES, debug, find_recipe, tiny_vision
from lwm.recipes.find import recipes_in
from lwm.renamed import new_setting
from lwm.sharding import AXES
from lwm.tokens import TokenSpace
from lwm.train.config import AdamW, Curriculum, DataSet, Run, Schedule, Training
from lwm.train.cost import costs
from lwm.train.optimizer import build_optimizer
from lwm.train.run_json import read_run, require_same, settings, to_json, write_run
from lwm.train.step import TrainState
from lwm.train.vqgan.config import CodebookConfig, VQGANRun
from lwm.train.vqgan.discriminator import Discriminator
from lwm.train.vqgan.step import VQGANState, VQGANStep
from lwm.vqgan.checkpoint import read_vqgan
from lwm.vqgan.model import VQGAN

GOLDEN = Path(__file__).parent / "golden"


def resolved(name):
    return json.dumps(to_json(RECIPES[name]()), indent=1) + "\n"


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_what_they_were(name):
    assert resolved(name) == (GOLDEN / f"{name}.json").read_text()


# Much is traced for 256 pixels, and little of it is not of the tokenizer of 64 pixels, too.
_SLOW = pytest.param("vqgan-256", marks=[pytest.mark.slow, pytest.mark.representative])


_ON_ONE_MACHINE = [name for name in RECIPES if not name.startswith("lwm")]
"""For the others see `test_recipes_at_size.py`."""


@pytest.mark.parametrize(
    "name", [_SLOW if name == "vqgan-256" else name for name in _ON_ONE_MACHINE]
)
def test_recipes_can_be_built(name):
    """On the mesh that they ask for, of which not a device is there."""
    run: Any = RECIPES[name]()
    if isinstance(run, Curriculum):
        curriculum, run = run, cast(Any, run.stages[0].run)
        # The later stages start from its weights.
        found = costs(curriculum, run.model)
        for stage, cost in zip(curriculum.stages, found, strict=True):
            assert cost.model.max_context >= stage.run.data.packing.length
    sizes = tuple(map(int, run.mesh.split(",")))
    explicit = (AxisType.Explicit,) * len(AXES)
    mesh = AbstractMesh(sizes, AXES, axis_types=explicit)
    optimizer = build_optimizer(run.training.optimizer, run.training.steps)
    with jax.sharding.use_abstract_mesh(mesh):
        if isinstance(run, VQGANRun):
            tokenizer_can_be_built(run, optimizer)
        else:
            model_can_be_built(run, optimizer)


@pytest.mark.parametrize("name", sorted(path.stem for path in (GOLDEN / "before").iterdir()))
def test_recipes_of_the_last_release_are_the_same_settings(name):
    """Golden files change in names alone."""
    now = settings(RECIPES[name]())
    before = read_run(GOLDEN / "before" / f"{name}.json", known=now)
    assert dict.fromkeys(now) | before == now


def model_can_be_built(run, optimizer):
    assert run.model.max_context >= run.data.packing.length
    codes = read_vqgan(run.data.vqgan).config.codes if run.data.vqgan else 0
    tokens = TokenSpace.of(run.data.vocabulary, codes)
    model = dataclasses.replace(run.model, tokens=tokens)
    made = jax.eval_shape(lambda: TrainState.start(Llama.init(model, key=jr.key(0)), optimizer))
    assert made.model.embedding.shape == (tokens.rows, model.dim)


def tokenizer_can_be_built(run, optimizer):
    """And updated, by frames that are spread over all devices."""
    model, training = run.model, run.training
    assert math.prod(map(int, run.mesh.split(","))) <= run.data.batch
    zeros = jax.ShapeDtypeStruct

    def make():
        tokenizer = VQGAN.init(model, key=jr.key(0))
        against = Discriminator.init(3, training.discriminator_width, key=jr.key(0))
        return VQGANState.start(tokenizer, against, optimizer)

    frames = zeros(
        (training.accumulate, run.data.batch, model.resolution, model.resolution, 3),
        jnp.uint8,
        sharding=NamedSharding(jax.sharding.get_abstract_mesh(), P(None, AXES)),
    )
    step = VQGANStep(optimizer, training)
    made = jax.eval_shape(make)
    state, metrics = jax.eval_shape(step, made, frames, jax.eval_shape(lambda: jr.key(0)), None)
    assert jax.tree.structure(state) == jax.tree.structure(made)
    assert metrics["psnr"].shape == ()


OWN = """
import dataclasses
from lwm.recipes import debug

def short():
    run = debug()
    return dataclasses.replace(run, training=dataclasses.replace(run.training, steps=20))

number = 3
"""


def test_recipes_of_ones_own(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN)
    assert list(recipes_in(file)) == [f"{file}:short"]
    found: Any = find_recipe(f"{file}:short")()
    assert found.training.steps == 20
    for name, said in (
        (f"{file}:long", "has no function 'long'; it has short"),
        (f"{file}:number", "has no function 'number'"),
        (f"{tmp_path / 'none.py'}:short", "is no Python file"),
        ("debugg", "no recipe is called 'debugg'; there are debug"),
    ):
        with pytest.raises(UserError, match=said):
            find_recipe(name)
    file.write_text("1 / 0")
    with pytest.raises(UserError, match="fails: ZeroDivisionError"):
        find_recipe(f"{file}:short")


def test_a_folder_keeps_to_its_run(tmp_path):
    run, path = debug(), tmp_path / "run" / "run.json"
    write_run(run, path)
    require_same(dataclasses.replace(run, mesh="1,2,1,1"), path)
    (own,) = run.data.sets
    named = dataclasses.replace(run.data, sets=(dataclasses.replace(own, name="other"),))
    require_same(dataclasses.replace(run, data=named), path)
    other = dataclasses.replace(run, seed=1)
    with pytest.raises(UserError, match="holds another run: seed was 0 and is 1; give the same"):
        require_same(other, path)
    data = dataclasses.replace(run.data, rows=4, sets=(*run.data.sets, *run.data.sets))
    said = r"data.rows was 8 and is 4; data.sets.1.files was None and is \[.*; .* and \d+ more"
    with pytest.raises(UserError, match=said):
        require_same(dataclasses.replace(run, data=data), path)
    path.write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        require_same(run, path)


def test_more_steps_are_taken_where_the_schedule_allows(tmp_path):
    path = tmp_path / "run.json"

    def of(steps, **schedule):
        adam = AdamW(schedule=Schedule(warmup=10, **schedule))
        training = dataclasses.replace(debug().training, steps=steps, optimizer=adam)
        return dataclasses.replace(debug(), training=training)

    wsd = {"shape": "wsd", "decay": 20}
    for schedule, steps, reached, said in (
        ({"shape": "constant"}, 90, 60, None),
        ({"shape": "constant"}, 50, 40, None),
        ({"shape": "constant"}, 50, 60, "step 60 is made already"),
        (wsd, 90, 40, None),
        (wsd, 90, 41, "decays from step 41, and step 41 is made"),
        (wsd, 50, 31, "decays from step 31, and step 31 is made"),
        ({"shape": "cosine"}, 90, 30, "a cosine depends on its last step from the first"),
    ):
        write_run(of(60, **schedule), path)
        if said is None:
            require_same(of(steps, **schedule), path, reached=reached)
        else:
            with pytest.raises(UserError, match=f"steps was 60 and is {steps} .*{said}"):
                require_same(of(steps, **schedule), path, reached=reached)


def test_a_file_of_a_newer_version_is_refused(tmp_path):
    path = tmp_path / "run.json"
    write_run(debug(), path)
    values = json.loads(path.read_text())
    assert values["version"] == 3
    path.write_text(json.dumps(values | {"version": 4}))
    with pytest.raises(UserError, match=r"run\.json has version 4, and this lwm reads up to 3"):
        require_same(debug(), path)
    path.write_text(json.dumps(values | {"version": "new"}))
    with pytest.raises(UserError, match="is damaged"):
        require_same(debug(), path)


def test_old_names_of_settings_work_in_recipes():
    """As keywords, in `replace`, and read."""
    with pytest.warns(DeprecationWarning, match=r"Schedule\.course is now shape"):
        old = Schedule(**cast(Any, {"course": "wsd", "decay": 5}))
    assert old == Schedule(shape="wsd", decay=5)
    with pytest.warns(DeprecationWarning, match="course"):
        assert cast(Any, old).course == "wsd"
    with pytest.warns(DeprecationWarning, match=r"CodebookConfig\.continuous is now warmup"):
        assert CodebookConfig(**cast(Any, {"continuous": 3})).warmup == 3
    run, found = debug(), tiny_vision().sampling
    assert run.model is not None
    with pytest.warns(DeprecationWarning, match=r"Run\.drawings is now sampling"):
        assert dataclasses.replace(run, **cast(Any, {"drawings": found})).sampling == found
    with pytest.warns(DeprecationWarning, match="dtype is now dtype of `compute` in a run"):
        model = dataclasses.replace(run.model, **cast(Any, {"dtype": "bfloat16"}))
    assert dataclasses.replace(run, model=model).compute == Compute(dtype="bfloat16")
    assert dataclasses.replace(run, model=model).model == run.model
    with pytest.raises(AttributeError, match="'Run' object has no attribute 'drawing'"):
        _ = cast(Any, run).drawing
    with pytest.raises(TypeError, match="courses"):
        Schedule(**cast(Any, {"courses": "wsd"}))


@pytest.mark.parametrize(
    ("recipe", "old", "new"),
    [
        ("debug", "--training.optimizer.schedule.course", "--training.optimizer.schedule.shape"),
        ("vqgan-64", "--training.codebook.continuous=9", "--training.codebook.warmup=9"),
        ("debug", "--model.loss-chunk", "--compute.loss-chunk"),
        ("debug", "--drawings.image.top_k", "--sampling.image.top-k"),
    ],
)
def test_old_options_work_with_a_hint(capsys, recipe, old, new):
    _, arguments = commands([recipe, old, "wsd"])
    assert arguments == [recipe, new, "wsd"]
    old, new = (option.partition("=")[0] for option in (old, new))
    hint = f"lwm: {old} is now {new}; the old name goes with the next release\n"
    assert capsys.readouterr().err == hint
    kept = [["debug", "--seed", "1"], ["vqgan-64", "--model.dtype", "bfloat16"], []]
    assert [commands(arguments)[1] for arguments in kept] == kept
    assert not capsys.readouterr().err


def test_names_still_in_use_are_not_replaced():
    assert new_setting("drawings.a", {"drawings.a"}) == "drawings.a"
    assert new_setting("drawings.a", {"sampling.a"}) == "sampling.a"
    assert new_setting("drawings_of", {"sampling.a"}) == "drawings_of"


def test_options_without_effect_are_refused():
    run = debug()
    assert run.model is not None
    for change, said in (
        ({"mlp_dim": 99}, r"--model\.mlp-dim is for a new model, .* its own; leave it out"),
        ({"rope": Rope(theta=1e6)}, r"--model\.rope\.theta is for a new model, .* use --theta"),
        ({"max_context": 512}, r"--model\.max-context is for a new model, .* use --context"),
    ):
        wide = dataclasses.replace(run, model=dataclasses.replace(run.model, **cast(Any, change)))
        assert without_model(wide, run, trains=True) == wide
        with pytest.raises(UserError, match=said):
            without_model(dataclasses.replace(wide, init="some/model"), run, trains=True)
    low = Compute(dtype="bfloat16", remat="full", mlp_chunk=64)
    other = dataclasses.replace(run, compute=low, init="some/model")
    assert without_model(other, run, trains=True) == dataclasses.replace(other, model=None)
    with pytest.raises(UserError, match="decay 9 has no effect with shape cosine"):
        Schedule(decay=9)
    with pytest.raises(UserError, match=r"end 0\.1 has no effect with shape constant"):
        Schedule(shape="constant", end=0.1)
    with pytest.raises(
        UserError, match=r"end 0\.1 has no effect with shape wsd without decay; give both"
    ):
        Schedule(shape="wsd", end=0.1)
    with pytest.raises(UserError, match="a warm-up of -1 and a decay of 0 steps"):
        Schedule(warmup=-1)


def test_a_recipe_s_context_and_rope_change_with_options():
    run = RECIPES["lwm-text-32k"]()
    assert isinstance(run, Run)
    given = named_options("lwm-text-32k", "--theta", "2e6", "--stretch", "none")
    assert given.model is None, "else it would not be the one that init gives at this theta"
    assert given.shape_from(run.model).rope.theta == 2e6
    longer = named_options("lwm-text-32k", "--context", "65536", "--data.packing.length", "65536")
    assert (longer.model, longer.shape_from(run.model).rope.theta) == (None, 1e7)
    assert named_options("lwm-text-32k", "--seed", "1") == dataclasses.replace(run, seed=1)
    # A plan has no files to ask.
    assert named_options("lwm-text-32k", "--theta", "2e6", "--stretch", "none", "--plan").model


def named_options(*arguments):
    """Returns the settings that `lwm train` makes of its arguments."""
    made: list[Any] = []
    found, rest = commands([*arguments], lambda name, run, options: made.append(run))
    tyro.extras.subcommand_cli_from_dict(found, args=rest, config=(tyro.conf.AvoidSubcommands,))
    return made[0]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def f(): debug()", "f returns NoneType, but must return a Run"),
        ("def f(a): pass", "f needs a, and"),
    ],
)
def test_functions_that_are_no_recipe(tmp_path, source, says):
    file = tmp_path / "my.py"
    file.write_text(f"from lwm.recipes import debug\n{source}\n")
    with pytest.raises(UserError, match=says):
        commands([f"{file}:f"])


def test_what_cannot_be_is_refused():
    run = debug()
    two = DataSet(files=("a",)), DataSet(files=("b",))
    with pytest.raises(UserError, match="two held-out sets are called 'data'"):
        dataclasses.replace(run.data, held_out=two)
    for change in ({"sets": ()}, {"rows": 0}, {"held_out_rows": 0}, {"codes": -1}, {"streams": -1}):
        with pytest.raises(UserError):
            dataclasses.replace(run.data, **cast(Any, change))
    with pytest.raises(UserError, match="mlp_chunk None and loss_chunk 0 must be at least 1"):
        Compute(loss_chunk=0)
    with pytest.raises(UserError, match="validation every -1 steps"):
        Training(steps=1, validate_every=-1)


if __name__ == "__main__":
    for name in RECIPES:
        (GOLDEN / f"{name}.json").write_text(resolved(name))
