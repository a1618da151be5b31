"""Adapters in PEFT's folders: written, read by PEFT too, merged, and kept beside the weights."""

import dataclasses
import json

import equinox as eqx
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lwm
from lwm.convert.convert import convert_model
from lwm.convert.export import save_model
from lwm.convert.gguf import write_gguf
from lwm.convert.lora import read_adapter, require_own_adapter, save_adapter
from lwm.convert.open import open_model_files, open_tokens
from lwm.errors import UserError
from lwm.model.config import LoRA
from lwm.model.quantize import QuantizedWeight
from lwm.sharding import make_mesh
from lwm.tokens import TokenSpace

RANK = 3
LORA = LoRA(rank=RANK, alpha=6.0)
TOKENS = np.random.default_rng(0).integers(0, 256, (2, 40))


@pytest.fixture(scope="module")
def base(tiny, init, byte_tokenizer, tmp_path_factory):
    """The folder of a model."""
    folder = tmp_path_factory.mktemp("models") / "base"
    config = tiny(tokens=TokenSpace(text=byte_tokenizer.vocab_size), num_kv_heads=4)
    with jax.set_mesh(make_mesh()):
        save_model(init(config).unstack(), byte_tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base, adapt, byte_tokenizer):
    """The folder of an adapter of all linear layers."""
    folder = base.with_name("adapter")
    config = open_model_files(base).config
    with jax.set_mesh(make_mesh()):
        save_adapter(
            adapt(config, LORA),
            LORA,
            folder,
            base=str(base),
            tokenizer=byte_tokenizer,
            texts={"README.md": "an adapter\n"},
        )
    return folder


@pytest.fixture(scope="module")
def logits(place):
    forward = jax.jit(lambda model, tokens, packing: model(tokens, packing))

    def run(model):
        with jax.set_mesh(model.mesh):
            found = forward(model.llama, *place(model.mesh, TOKENS))
        return np.asarray(found)[..., :256]

    return run


@pytest.fixture(scope="module")
def wanted(base, adapter, logits):
    """Logits of the base with factors added to its tensors by hand."""
    config, tensors = json.loads((adapter / "adapter_config.json").read_text()), {}
    factors = load_file(adapter / "adapter_model.safetensors")
    for name, tensor in load_file(base / "model.safetensors").items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{module}.lora_A.weight" in factors:
            a, b = (factors[f"{module}.lora_{factor}.weight"] for factor in "AB")
            tensor = tensor + config["lora_alpha"] / config["r"] * (b @ a)
        tensors[name] = tensor
    folder = base.with_name("by hand")
    folder.mkdir()
    for file in base.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return logits(lwm.load(folder))


def close(found, wanted, part=1e-5):
    return np.abs(found - wanted).max() <= part * np.abs(wanted).max()


def test_an_adapter_is_a_model(base, adapter, logits, wanted, tmp_path):
    assert not close(logits(lwm.load(base)), wanted, 0.1)
    assert close(logits(lwm.load(adapter)), wanted)
    convert_model(open_model_files(adapter), tmp_path / "merged")
    assert close(logits(lwm.load(tmp_path / "merged")), wanted)
    assert open_tokens(adapter)[1].text == 258
    write_gguf(open_model_files(adapter), tmp_path / "merged.gguf")
    assert close(logits(lwm.load(tmp_path / "merged.gguf")), wanted)


def test_the_tokenizer_of_an_adapter_is_the_one_that_it_was_trained_with(adapter, tmp_path):
    place = broken(adapter, tmp_path / "own")
    assert open_model_files(place).tokenizer.chat_template != "own"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (place / name).write_bytes((adapter / name).read_bytes())
    values = json.loads((place / "tokenizer_config.json").read_text())
    values |= {"chat_template": "own"}
    (place / "tokenizer_config.json").write_text(json.dumps(values))
    assert open_model_files(place).tokenizer.chat_template == "own"


def test_an_adapter_stays_beside_the_weights(base, adapter, logits, wanted):
    model = lwm.load(base, lora=adapter)
    assert model.llama.held == "float32"
    assert close(logits(model), wanted)
    two = lwm.load(base, lora=adapter, mesh="1,2,2,1")
    assert close(logits(two), wanted, 1e-4)
    assert two.generate("The sea", max_tokens=12, temperature=0.0) == lwm.load(adapter).generate(
        "The sea", max_tokens=12, temperature=0.0
    )


def slope(model, place):
    """Returns the gradient of an adapter before `w_down`."""

    def find(llama):
        return llama.blocks[0].mlp.w_up.a

    def loss(a, llama, tokens, packing):
        return (eqx.tree_at(find, llama, a)(tokens, packing) ** 2).mean()

    with jax.set_mesh(model.mesh):
        return np.asarray(
            jax.jit(jax.grad(loss))(find(model.llama), model.llama, *place(model.mesh, TOKENS))
        )


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_an_adapter_beside_weights_of_few_bits(base, adapter, logits, place, dtype):
    model = lwm.load(base, lora=adapter, dtype=dtype)
    alone = lwm.load(base, dtype=dtype)

    def is_few(leaf):
        return isinstance(leaf, QuantizedWeight)

    few = [leaf for leaf in jax.tree.leaves(alone.llama, is_leaf=is_few) if is_few(leaf)]
    assert model.llama.held == dtype
    assert len(few) == 16
    wide = jax.tree.map(
        lambda leaf: leaf.astype(np.float32) if is_few(leaf) else leaf, model.llama, is_leaf=is_few
    )
    wide = eqx.tree_at(lambda llama: llama.embedding, wide, wide.embedding.T)
    found = logits(model)
    assert close(found, logits(dataclasses.replace(model, llama=wide)), 1e-4)
    assert not close(found, logits(alone), 0.1)
    # Two groups of 32 rows of `w_down` do not divide over four devices, which have 16 rows each.
    four = lwm.load(base, lora=adapter, dtype=dtype, mesh="1,1,4,1")
    assert close(logits(four), found, 1e-4)
    assert close(slope(four, place), slope(model, place), 1e-4)


def test_ranks_and_scales_of_each_module(base, adapter, logits, tmp_path):
    """PEFT's patterns, RSLoRA, and modules without an adapter."""
    factors = load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    module = "base_model.model.model.layers.1.self_attn.q_proj"
    names = [name for name in factors if "layers.0.mlp" not in name]
    kept = {name: factors[name] for name in names}
    kept[f"{module}.lora_A.weight"] = np.ascontiguousarray(factors[f"{module}.lora_A.weight"][:2])
    kept[f"{module}.lora_B.weight"] = np.ascontiguousarray(
        factors[f"{module}.lora_B.weight"][:, :2]
    )
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(kept, folder / "adapter_model.safetensors")
    values = config | {
        "use_rslora": True,
        "alpha_pattern": {"q_proj": 10.0},
        "rank_pattern": {"layers.1.self_attn.q_proj": 2},
    }
    (folder / "adapter_config.json").write_text(json.dumps(values))
    read = read_adapter(folder)
    a, b = read.factors["model.layers.1.self_attn.q_proj.weight"]
    np.testing.assert_allclose(
        a @ b,
        (10 / 2**0.5 * kept[f"{module}.lora_B.weight"] @ kept[f"{module}.lora_A.weight"]).T,
        atol=1e-6,
    )
    a, b = read.factors["model.layers.0.self_attn.v_proj.weight"]
    name = "base_model.model.model.layers.0.self_attn.v_proj"
    product = factors[f"{name}.lora_B.weight"] @ factors[f"{name}.lora_A.weight"]
    np.testing.assert_allclose(a @ b, 6 / 3**0.5 * product.T, atol=1e-6)
    assert close(logits(lwm.load(base, lora=folder)), logits(lwm.load(folder)))


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_peft_reads_and_writes_the_same(base, adapter, logits, wanted, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    peft = pytest.importorskip("peft", reason="PEFT is not installed")

    def of_base():
        return transformers.AutoModelForCausalLM.from_pretrained(base)

    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(of_base(), adapter).eval()
        found = theirs(torch.tensor(TOKENS)).logits.numpy()[..., :256]
        assert close(found, wanted, 1e-4)
        assert not close(found, logits(lwm.load(base)), 0.1)
        theirs.save_pretrained(tmp_path / "again")
        assert close(logits(lwm.load(base, lora=tmp_path / "again")), wanted, 1e-4)

        own = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["v_proj", "down_proj"])
        made = peft.get_peft_model(of_base(), own).eval()
        for name, weight in made.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2)
        made.save_pretrained(tmp_path / "own")
        found = made(torch.tensor(TOKENS)).logits.numpy()[..., :256]
    assert close(logits(lwm.load(tmp_path / "own")), found, 1e-4)
    assert not close(found, logits(lwm.load(base)), 0.1)


def test_a_folder_of_others_is_kept(base, adapter, tmp_path):
    require_own_adapter(adapter)
    for name in ("adapter_config.json", "README.md"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="holds a model that was not written here"):
        require_own_adapter(tmp_path)
    with pytest.raises(UserError, match=r"holds config\.json that was not written here"):
        require_own_adapter(base)


def broken(adapter, place, *, config=None, tensors=None):
    """A copy of an adapter's folder with other settings or tensors."""
    place.mkdir()
    values = json.loads((adapter / "adapter_config.json").read_text())
    (place / "adapter_config.json").write_text(json.dumps(values | (config or {})))
    found = load_file(adapter / "adapter_model.safetensors")
    save_file(tensors(found) if tensors else found, place / "adapter_model.safetensors")
    return place


def without_first(tensors):
    return dict(list(tensors.items())[1:])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (dict(config={"peft_type": "IA3"}), "of type IA3; only LORA"),
        (dict(config={"use_dora": True}), "has use_dora, which is more than low-rank"),
        (dict(config={"modules_to_save": ["lm_head"]}), "has modules_to_save"),
        (dict(config={"lora_alpha": "much"}), "no number for lora_alpha of model.layers"),
        (dict(config={"base_model_name_or_path": None}), "does not name the model"),
        (dict(tensors=without_first), "factors of model.layers.* do not fit"),
        (
            dict(tensors=lambda found: found | {"base_model.model.lm_head.weight": np.eye(3)}),
            "has the tensor base_model.model.lm_head.weight, which is no low-rank",
        ),
        (
            dict(
                tensors=lambda found: {n.replace("layers.1", "layers.7"): found[n] for n in found}
            ),
            "adapts model.layers.7.* the model has not",
        ),
    ],
)
def test_what_cannot_be_read_is_named(adapter, tmp_path, changes, match):
    with pytest.raises(UserError, match=match):
        lwm.load(broken(adapter, tmp_path / "broken", **changes))


def test_an_adapter_of_another_model_is_refused(
    base, adapter, tiny, init, byte_tokenizer, tmp_path
):
    other = tmp_path / "other"
    config = tiny(tokens=TokenSpace(text=byte_tokenizer.vocab_size), mlp_dim=96, num_kv_heads=4)
    with jax.set_mesh(make_mesh()):
        save_model(init(config).unstack(), byte_tokenizer, other)
    with pytest.raises(
        UserError, match=r"down_proj from 64 to 32, which the model has from 96 to 32"
    ):
        lwm.load(other, lora=adapter)
    with pytest.raises(UserError, match="holds no adapter"):
        lwm.load(base, lora=base)
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "self")})
    )
    with pytest.raises(UserError, match="names its own folder"):
        lwm.load(tmp_path / "self")
