import json
import os

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import lwm
from lwm.convert.huggingface import is_not_weight, read_config
from lwm.convert.names import HUGGING_FACE, LWM_NAMES, dimensions
from lwm.convert.weights import build_llama
from lwm.errors import UserError
from lwm.files import read_json
from lwm.formats.lazy import require_finite
from lwm.formats.safetensor_files import open_safetensors
from lwm.model.config import LinearScaling, RopeScaling
from lwm.model.llama import Llama
from lwm.sharding import make_mesh
from lwm.tokens import TokenSpace

SIZES = dict(
    vocab_size=200,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=4096,
    rms_norm_eps=1e-5,
)
LLAMA = SIZES | {"model_type": "llama", "rope_theta": 10_000.0}

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

FAMILIES = {
    "llama-2": ("llama", {"num_key_value_heads": 8}),
    "llama-3": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "smollm2": ("llama", {"tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 16}),
}


def random_tensors(config, rng):
    sizes = dimensions(config)
    for layout in HUGGING_FACE.values():
        for layer in range(config.num_layers) if "*" in layout.name else [None]:
            name = layout.name.replace("*", str(layer))
            yield name, rng.normal(size=layout.shape(sizes)).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    """A model folder without a tokenizer: random weights of the Llama kind in two shards."""
    values = LLAMA | {"tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(values))
    optional = (".bias", "q_norm.weight", "k_norm.weight")
    tensors = {
        name: array
        for name, array in random_tensors(read_config(values), np.random.default_rng(0))
        if not name.endswith(optional)
    }
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, tmp_path / file)
    index = {name: file for file, held in shards.items() for name in held}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": index}))
    return tmp_path


def build(folder, mesh="1,1,1,1", **changes):
    values = json.loads((folder / "config.json").read_text()) | changes
    return build_llama(
        read_config(values), open_safetensors(folder), HUGGING_FACE, mesh=make_mesh(mesh)
    )


@pytest.mark.torch
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(tmp_path, mesh, place, family):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    kind, changes = FAMILIES[family]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **SIZES | changes)
    theirs = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():  # biases and norms start trivial
            weight.copy_(torch.randn_like(weight) * (0.1 if weight.ndim > 1 else 0.5))
            if "norm" in name:
                weight.add_(1.0)
    theirs.save_pretrained(tmp_path)

    config = read_config(json.loads((tmp_path / "config.json").read_text()))
    model = build_llama(
        config,
        open_safetensors(tmp_path),
        HUGGING_FACE,
        mesh=mesh,
        ignore=lambda name: is_not_weight(name, config),
    )
    tokens = np.random.default_rng(0).integers(0, 200, (2, 300))
    with torch.no_grad():
        wanted = theirs(torch.tensor(tokens)).logits.numpy()
    logits = jax.jit(lambda m, t, p: m(t, p))(model, *place(mesh, tokens))
    assert wanted.std() > 0.5
    assert np.abs(np.asarray(logits)[..., :200] - wanted).max() <= 1e-4


def test_shards_are_read_and_put_on_the_mesh(folder):
    one, many = build(folder), build(folder, "1,2,2,1")
    assert isinstance(many.blocks, tuple)
    wq = many.blocks[1].attention.wq
    assert wq.shape == (64, 8, 8)
    assert jax.typeof(wq).sharding.spec == jax.sharding.PartitionSpec(("fsdp", "sp"), "tp", None)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(many))


def test_config_and_weights_of_different_models(folder):
    with pytest.raises(
        UserError, match=r"gate_proj.weight has \(96, 64\), not \(80, 64\), .* more"
    ):
        build(folder, intermediate_size=80)
    with pytest.raises(UserError, match=r"missing: model.layers.2.input_layernorm.weight, .* more"):
        build(folder, num_hidden_layers=3)
    with pytest.raises(UserError, match=r"unexpected: model\.layers\.1"):
        build(folder, num_hidden_layers=1)


def test_truncated_shard_names_the_tensor(folder):
    path = folder / "b.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"b.safetensors is cut off in tensor model\.\S+; fetch"):
        build(folder)


HEADERS = (
    b"[]",
    b"[" * 99_999,
    b'{"a": 1}',
    b'{"a": {}}',
    b'{"a": {"data_offsets": "xy"}}',
    b'{"a": {"data_offsets": 5}}',
)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 64, *(len(each).to_bytes(8, "little") + each for each in HEADERS)],
    ids=range(8),
)
def test_file_that_is_no_safetensors_is_named(folder, content):
    (folder / "a.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"a.safetensors is damaged"):
        build(folder)


def test_missing_shard_and_missing_weights(folder):
    (folder / "a.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks a.safetensors, named in model.safetensors.index"):
        build(folder)
    (folder / "b.safetensors").unlink()
    (folder / "model.safetensors.index.json").unlink()
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match=r"no \*.safetensors file; pytorch_model.bin is a pickle"):
        build(folder)


def test_one_file_of_weights_counts_before_a_stale_index(folder):
    """As in transformers; other safetensors beside it, such as adapters, are not merged."""
    tensors = dict(open_safetensors(folder))
    name = "model.embed_tokens.weight"
    save_file(tensors | {name: tensors[name] + 1}, folder / "model.safetensors")
    save_file({name: tensors[name] - 1}, folder / "model_ema.safetensors")
    save_file({"lora_A.weight": tensors[name]}, folder / "adapter_model.safetensors")
    found = open_safetensors(folder)
    assert {*found} == {*tensors}
    np.testing.assert_array_equal(found[name], tensors[name] + 1)
    # config.json of transformers 5 may name another.
    found = open_safetensors(folder, named="model.safetensors.index.json")
    np.testing.assert_array_equal(found[name], tensors[name])


def test_weights_are_not_collected_by_pattern(folder):
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match=r"neither model.safetensors nor .*, but a.safetensors, b"):
        open_safetensors(folder)
    (folder / "a.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"but model-00001-of-00002.safetensors; fetch the index"):
        open_safetensors(folder)
    (folder / "model-00001-of-00002.safetensors").rename(folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"an adapter alone, adapter_model.safetensors; give its"):
        open_safetensors(folder)
    (folder / "adapter_model.safetensors").rename(folder / "some.safetensors")
    (folder / "._some.safetensors").write_bytes(b"of macOS")
    assert open_safetensors(folder)  # the only file


def test_an_index_and_shards_that_disagree(folder):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())["weight_map"]
    path.write_text(json.dumps({"weight_map": index | {"model.extra": "a.safetensors"}}))
    with pytest.raises(UserError, match=r"a.safetensors lacks tensor model.extra, which the index"):
        open_safetensors(folder)
    path.write_text(json.dumps({"weight_map": index | {"lm_head.weight": "a.safetensors"}}))
    assert open_safetensors(folder)
    (folder / "b.safetensors").write_bytes((folder / "a.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"tensor \S+ is both in \S*a.safetensors and in \S*b.saf"):
        open_safetensors(folder)


@pytest.mark.parametrize(
    "name",
    ["../c.safetensors", "/proc/self/mem", "link/c.safetensors", "a/../../c.safetensors", ""],
)
def test_an_index_that_leads_out_of_its_folder_is_refused(folder, name, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "c.safetensors").write_bytes((folder / "a.safetensors").read_bytes())
    (folder / "link").symlink_to(outside)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match=r'index.json names "\S*", which is no file in '):
        open_safetensors(folder)


def test_links_of_the_hubs_cache_are_followed_and_pipes_are_not_waited_for(folder, tmp_path):
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "1a2b"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for name in ("a.safetensors", "b.safetensors", "model.safetensors.index.json"):
        (folder / name).rename(blobs / f"blob-{name[0]}")
        (snapshot / name).symlink_to(f"../../blobs/blob-{name[0]}")
    assert open_safetensors(snapshot)
    (blobs / "blob-a").unlink()
    os.mkfifo(blobs / "blob-a")
    with pytest.raises(UserError, match=r"lacks a.safetensors"):
        open_safetensors(snapshot)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path, dtype, value):
    array = np.full((3, 5), np.finfo(np.float16).min).astype(dtype)
    tensors = {"a": array, "b": array.copy()}
    tensors["b"][2, 4] = value
    save_file(tensors, tmp_path / "model.safetensors")
    found = open_safetensors(tmp_path)
    np.testing.assert_array_equal(found["a"], array)
    with pytest.raises(UserError, match=r"model.safetensors is corrupted: tensor 'b' holds NaN or"):
        found["b"]


def test_finite_numbers_of_all_bits_are_accepted(tmp_path):
    bits = np.arange(2**16, dtype=np.uint16)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        numbers = bits.view(dtype)
        finite = np.isfinite(numbers.astype(np.float32))
        require_finite(numbers[finite], "all", tmp_path)
        require_finite(numbers[finite][:-10].reshape(2, -1).T[::3], "apart", tmp_path)
        for number in numbers[~finite][:: 100 if dtype == np.float16 else 10]:
            with pytest.raises(UserError, match="holds NaN or infinity"):
                require_finite(np.array([0, number], dtype), "one", tmp_path)


@pytest.mark.parametrize("named", ["[]", '{"a": 1}', '{"a": ["b"]}'])
def test_an_index_that_names_no_files(folder, named):
    (folder / "model.safetensors.index.json").write_text(f'{{"weight_map": {named}}}')
    with pytest.raises(UserError, match=r"index.json does not say which file each tensor is in"):
        build(folder)


def test_json_that_cannot_be_read(tmp_path):
    (tmp_path / "deep").write_text("[" * 99_999)
    with pytest.raises(UserError, match="deep is no JSON: it is nested too"):
        read_json(tmp_path / "deep")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_json(tmp_path)


def test_bf16_weights_are_read(folder):
    exact = build(folder)
    tensors = dict(open_safetensors(folder))
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    rounded = {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()}
    save_file(rounded, folder / "model.safetensors")
    model = build(folder)
    assert model.embedding.dtype == np.float32
    np.testing.assert_allclose(model.embedding, exact.embedding, rtol=2**-8)


def test_folder_without_tokenizer_is_refused(folder):
    with pytest.raises(UserError, match="no tokenizer in"):
        lwm.load(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "mixtral"}, "architecture 'mixtral' is not supported"),
        ({"model_type": None}, "architecture None"),
        ({"model_type": "mistral", "sliding_window": 1024}, "sliding-window attention"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "sliding-window attention"),
        ({"layer_types": ["sliding_attention"]}, "sliding-window attention"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "YaRN"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "LongRoPE"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2}}, "scaling dynamic is not supp"),
        ({"rope_scaling": {"rope_type": "linear"}}, "scaling has factor null, no number above 0"),
        ({"rope_scaling": {"factor": 2.0}}, "has a factor but no rope_type"),
        ({"num_experts": 8}, "mixture of experts"),
        ({"attention_bias": True}, "bias in the output projection"),
        ({"mlp_bias": True}, "bias in the feed-forward"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"partial_rotary_factor": 0.5}, "partial rotary"),
        ({"quantization_config": {}}, "quantised"),
        ({"model_type": "mistral", "max_position_embeddings": 8192}, "sliding-window attention"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"hidden_size": "64"}, 'hidden_size "64" is no whole number'),
        ({"num_attention_heads": 0}, "num_attention_heads 0 is no whole number from 1"),
        ({"num_hidden_layers": 10**8}, "num_hidden_layers 100000000 is no .* from 1 to 10,000"),
        ({"rms_norm_eps": "x"}, 'rms_norm_eps "x" is no number between 0 and 1'),
        ({"rope_theta": "x"}, 'rope_theta "x" is no number above 1'),
        ({"rope_theta": -1}, "rope_theta -1 is no number above 1"),
        ({"rope_scaling": [1]}, r"RoPE scaling \[1\] is no JSON object"),
        ({"tie_word_embeddings": "false"}, 'tie_word_embeddings "false" is neither true nor false'),
        ({"model_type": "qwen3", "attention_bias": "false"}, 'attention_bias "false" is neither'),
        ({"use_sliding_window": 0}, "use_sliding_window 0 is neither true nor false"),
        ({"rope_theta": 0}, "rope_theta 0 is no number above 1"),
        ({"rope_theta": {}}, "rope_theta {} is no number above 1"),
        ({"rope_theta": True}, "rope_theta true is no number above 1"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_theta 0 is no number above 1"),
        ({"rope_scaling": {"rope_type": []}}, r"scaling \[\] is not supported"),
        ({"rope_scaling": {"rope_type": "linear", "factor": True}}, "factor true, no number above"),
        ({"rope_scaling": LLAMA3_ROPE | {"low_freq_factor": 4}}, "low_freq_factor 4, which should"),
        ({"rope_scaling": LLAMA3_ROPE | {"low_freq_factor": 8}}, "low_freq_factor 8, which should"),
        ({"rope_parameters": {"full_attention": LLAMA3_ROPE}}, "no JSON object of numbers"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial rotary"),
        ({"num_hidden_layers": True}, "num_hidden_layers true is no whole number"),
        ({"num_key_value_heads": 0}, "num_key_value_heads 0 is no whole number"),
        ({"head_dim": {}}, "head_dim {} is no whole number"),
        ({"num_attention_heads": 12, "num_key_value_heads": 4}, "64 does not divide by 12 heads"),
        ({"rms_norm_eps": True}, "rms_norm_eps true is no number"),
        ({"lwm": {"text": 200, "vision": False, "codes": 0}}, "but it should give text"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "scaling has factor null, no number above 0"),
        ({"num_key_value_heads": 3}, "8 heads do not divide by 3"),
        ({"lwm": {"text": 170, "vision": 40, "codes": 32}}, "170 text and 40 .* vocab_size is 200"),
        ({"lwm": {"text": 160, "vision": 40, "codes": 39}}, "39 codes, .* need 41 vision ids"),
        ({"lwm": {"texts": 200}}, r'"lwm" is \{"texts": 200\}, but it should give text'),
        ({"lwm": 200}, '"lwm" is 200, but it should give text'),
        ({"lwm": {"text": "all"}}, '"lwm" is {"text": "all"}, but it should give text'),
    ],
)
def test_unsupported_features_are_named(changes, says):
    with pytest.raises(UserError, match=says):
        read_config(LLAMA | changes)


def test_config_is_read():
    config = read_config(LLAMA | {"rope_scaling": LLAMA3_ROPE | {"rope_theta": None}})
    assert config.head_dim == 8
    assert config.num_kv_heads == 4
    assert config.rope.theta == 10_000.0
    assert config.rope.scaling == RopeScaling(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=64
    )
    assert config.tokens == TokenSpace(text=200)
    seeing = read_config(LLAMA | {"lwm": {"text": 160, "vision": 40, "codes": 32}})
    assert seeing.tokens == TokenSpace(text=160, vision=40, codes=32)
    nulls = ("tie_word_embeddings", "partial_rotary_factor", "quantization_config", "rope_scaling")
    assert read_config(LLAMA | dict.fromkeys(nulls)) == read_config(LLAMA)
    window = read_config(LLAMA | {"model_type": "mistral", "sliding_window": 4096})
    assert window.max_context == 4096  # a window as wide as the context hides nothing


def test_linear_scaling_in_config_is_read():
    for key in ("rope_type", "type"):
        config = read_config(LLAMA | {"rope_scaling": {key: "linear", "factor": 4}})
        assert config.rope.scaling == LinearScaling(factor=4.0)


@pytest.mark.parametrize("table", [HUGGING_FACE, LWM_NAMES], ids=["Hugging Face", "LWM_NAMES"])
def test_layouts_are_undone(table, tiny):
    sizes = dimensions(tiny(num_heads=16, num_kv_heads=4))
    rng = np.random.default_rng(0)
    for layout in table.values():
        theirs = rng.normal(size=layout.shape(sizes))
        back = layout.to_theirs(layout.to_ours(theirs, sizes), sizes)
        np.testing.assert_array_equal(back, theirs)


def test_table_names_every_weight(mesh, tiny):
    config = tiny(qkv_bias=True, qk_norm=True)
    model = jax.eval_shape(lambda: Llama.init(config, key=jax.random.key(0)))
    paths = jax.tree.flatten_with_path(model)[0]
    names = {jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths}
    assert {name.replace("blocks.", "blocks.*.") for name in names} == set(HUGGING_FACE)
