"""Runs that train adapters: little is stored, they go on exactly, and the model is as it was."""

import dataclasses
import json
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import lwm
from lwm.convert.export import save_model
from lwm.errors import UserError
from lwm.formats.run_folder import open_checkpoint
from lwm.model.config import Compute, LoRA, preset
from lwm.model.lora import num_parameters
from lwm.plan.program import used
from lwm.sharding import make_mesh
from lwm.tokens import TokenSpace
from lwm.train.abstract import training_programs
from lwm.train.config import AdamW, Keep, Schedule
from lwm.train.cost import cost_of
from lwm.train.planned import memory_of
from lwm.train.run import run

replace = dataclasses.replace
small = runpy.run_path(str(Path(__file__).parents[1] / "small_run.py"))["small"]
LORA = LoRA(rank=4, alpha=8.0, targets=("q_proj", "v_proj", "down_proj"))


@pytest.fixture(scope="module")
def base(tiny, init, byte_tokenizer, tmp_path_factory):
    """The folder of a model."""
    folder = tmp_path_factory.mktemp("models") / "base"
    with jax.set_mesh(make_mesh()):
        model = init(tiny(tokens=TokenSpace(text=byte_tokenizer.vocab_size))).unstack()
        save_model(model, byte_tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def adapting(base):
    """A run that trains adapters of that model for some steps."""

    def make(steps, lora=LORA, init=base):
        recipe = small(
            steps=steps,
            keep=Keep(every=2),
            validate_every=0,
            optimizer=AdamW(schedule=Schedule(peak=1e-2, warmup=1, shape="constant")),
        )
        data = replace(recipe.data, vocabulary=0)
        return replace(recipe, model=None, init=str(init), lora=lora, data=data)

    return make


@pytest.fixture(scope="module")
def whole(adapting, base):
    folder = base.with_name("whole")
    run(adapting(6), folder)
    return folder


def weights(folder):
    return load_file(folder / "model" / "adapter_model.safetensors")


def same(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one | other)


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_run_learns_and_goes_on_where_it_stopped(adapting, whole, tmp_path):
    losses = [line["loss"] for line in log(whole) if "loss" in line]
    assert losses[-1] < losses[0] - 0.05
    run(adapting(4), tmp_path / "stopped")
    assert not same(weights(tmp_path / "stopped"), weights(whole))
    run(adapting(6), tmp_path / "stopped")
    assert same(weights(tmp_path / "stopped"), weights(whole))


def test_only_the_adapter_is_stored(whole, adapting, base):
    shapes = open_checkpoint(whole / "checkpoints" / "6").shapes
    assert {name.split(".")[0] for name in shapes} == {"layers"}
    config = lwm.load(base).llama.config
    held = sum(int(np.prod(shape)) for shape in shapes.values())
    assert held == num_parameters(config, LORA) == 2 * 4 * (2 * (32 + 64) + (64 + 32))
    facts = json.loads((whole / "checkpoints" / "6" / "data" / "metadata").read_text())
    moments = [name for name in facts["leaves"] if ".mu." in name or ".nu." in name]
    assert len(moments) == 2 * len(shapes)


def test_the_result_is_a_folder_of_peft(whole, base):
    found = sorted(path.name for path in (whole / "model").iterdir())
    assert found[:3] == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    values = json.loads((whole / "model" / "adapter_config.json").read_text())
    assert values["base_model_name_or_path"] == str(base)
    assert (values["r"], values["lora_alpha"]) == (4, 8.0)
    assert values["target_modules"] == ["q_proj", "v_proj", "down_proj"]
    card = (whole / "model" / "README.md").read_text()
    assert 'library_name: "peft"' in card
    assert "A LoRA adapter of base" in card
    assert str(base.parent) not in card


def test_checkpoint_and_result_are_models(whole, base, monkeypatch):
    monkeypatch.chdir(whole.parent)
    last, result = (lwm.load(f"{whole.name}{at}") for at in ("@6", ""))
    earlier = lwm.load(f"{whole}@4")
    beside = lwm.load(base, lora=whole / "model")

    def weight(model):
        weight = model.llama.blocks[1].attention.wq
        if model is beside:
            return np.asarray(weight.weight + np.einsum("dr,rnh->dnh", weight.a, weight.b))
        return np.asarray(weight)

    first = weight(lwm.load(base))
    np.testing.assert_array_equal(weight(last), weight(result))
    np.testing.assert_allclose(weight(beside), weight(result), atol=1e-6)
    assert np.abs(weight(earlier) - weight(result)).max() > 1e-4
    assert np.abs(weight(earlier) - first).max() > 1e-4


def test_a_run_may_start_from_an_adapter_and_from_weights_of_few_bits(adapting, whole, tmp_path):
    few = replace(LORA, frozen_dtype="int8")
    run(adapting(2, few, init=whole / "model"), tmp_path / "second")
    values = json.loads((tmp_path / "second" / "model" / "adapter_config.json").read_text())
    assert values["base_model_name_or_path"] == str(whole / "model")
    second, first = (
        log(folder)[-1]["held_out"]["chapter 3"] for folder in (tmp_path / "second", whole)
    )
    assert second["text_loss"] < first["text_loss"] + 0.01
    lwm.load(tmp_path / "second")


def test_weights_of_few_bits_are_the_same_on_every_mesh(adapting, tmp_path):
    lora = replace(LORA, frozen_dtype="int8")
    found = []
    for mesh in ("1,1,1,1", "1,2,2,2"):
        config = replace(adapting(2, lora), mesh=mesh)
        compute = replace(config.compute, dtype="float32")
        run(replace(config, compute=compute), tmp_path / mesh)
        found.append([line["loss"] for line in log(tmp_path / mesh) if "loss" in line])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_what_an_adapter_cannot_do_is_refused(adapting, tmp_path):
    recipe = small()
    with pytest.raises(UserError, match=r"lora.rank 4 needs a model to adapt; give --init"):
        run(replace(recipe, lora=LORA), tmp_path / "new")
    seeing = adapting(2)
    seeing = replace(seeing, data=replace(seeing.data, codes=16))
    with pytest.raises(UserError, match="has no ids for the codes, whose rows an adapter does not"):
        run(seeing, tmp_path / "seeing")


def test_a_run_goes_on_with_the_same_adapter_alone(adapting, whole):
    with pytest.raises(UserError, match=r"lora.rank was 4 and is 8"):
        run(adapting(6, replace(LORA, rank=8)), whole)


def test_what_it_takes_is_planned():
    config = preset("7b")
    recipe = small(steps=6)
    whole = replace(recipe, model=config, compute=Compute(dtype="bfloat16", remat="full"))
    state = {}
    for held in ("float32", "bfloat16", "int8", "int4"):
        some = replace(whole, lora=LoRA(rank=16, frozen_dtype=held))
        state[held] = memory_of(some, config, (1, 1, 1, 1)).state / 1e9
    parameters = num_parameters(config, LoRA(rank=16))
    assert parameters == 32 * 16 * (8 * 4096 + 3 * (4096 + 11008))
    assert state["float32"] == pytest.approx(4 * 6.738 + 12e-9 * parameters, rel=0.01)
    assert state["int4"] < state["int8"] < state["bfloat16"] < 0.2 * 16 * 6.738
    costs = [cost_of(run, config).flops for run in (whole, replace(whole, lora=LoRA(rank=16)))]
    assert 0.6 < costs[1] / costs[0] < 0.7


def test_an_update_is_traced_without_weights(tiny):
    config, mesh = tiny(), make_mesh("1,2,2,2")
    run = replace(small(steps=6), lora=replace(LORA, frozen_dtype="bfloat16"))
    init, update = training_programs(run, config, mesh)
    with used(mesh):
        made = init.traced()
        state, _ = update.traced()
    assert set(made.layers) == {"attention.wq", "attention.wv", "mlp.w_down"}
    assert state.model.layers["attention.wq"].a.shape == (2, 32, 4)
    with pytest.raises(UserError, match="cannot be traced with frozen weights in int8"):
        training_programs(replace(run, lora=replace(LORA, frozen_dtype="int8")), config, mesh)
