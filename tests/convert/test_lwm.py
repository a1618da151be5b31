"""LWM's own weights from every form in which they are stored, and what is said of others."""

import dataclasses
import json
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import msgpack
import numpy as np
import pytest

from lwm.convert.lwm import TABLE, LwmTensors, open_lwm, split_prefix
from lwm.convert.names import LWM_NAMES, dimensions
from lwm.convert.weights import build_llama
from lwm.errors import UserError
from lwm.formats.flax_file import FlaxFile
from lwm.formats.flax_writer import write_stream
from lwm.model.config import LlamaConfig, ModelOverrides, Rope
from lwm.sharding import make_mesh
from lwm.tokens import TokenSpace

forward = jax.jit(lambda model, tokens, packing: model(tokens, packing))

CONFIG = LlamaConfig(
    tokens=TokenSpace(text=256, vision=8448, codes=8192),
    dim=16,
    num_layers=3,
    num_heads=2,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=24,
    max_context=4096,
    rope=Rope(theta=5e7),
)
VALUES: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "rms_norm_eps": 1e-6,
    "max_sequence_length": 4096,
    "theta": 5e7,
}


def draw(config=CONFIG, dtype=np.float32):
    """Returns random weights under LWM's names, by layer."""
    rng, sizes = np.random.default_rng(0), dimensions(config)
    for path, layout in LWM_NAMES.items():
        if "vision" in path and not config.tokens.vision:
            continue
        for layer in range(config.num_layers) if "*" in layout.name else ("",):
            array = rng.normal(size=layout.shape(sizes)).astype(dtype)
            yield layout.name.replace("*", str(layer)), array


def stacked(arrays, axis):
    """Stacks the layers as `scan_layers` does, with `param_scan_axis`."""
    whole, layers = {}, {}
    for name, array in arrays.items():
        parts = name.split("/")
        if parts[1] == "h":
            layers.setdefault("/".join([*parts[:2], "scan_decoder", *parts[3:]]), []).append(array)
        else:
            whole[name] = array
    return whole | {
        name: np.stack(found, min(axis, found[0].ndim)) for name, found in layers.items()
    }


def nested(arrays):
    """Makes the nested map that Flax writes in one piece."""
    tree = {}
    for name, array in arrays.items():
        *folders, last = name.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        packed = msgpack.packb((array.shape, array.dtype.name, array.tobytes()))
        place[last] = msgpack.ExtType(1, packed)
    return msgpack.packb(tree)


@pytest.fixture
def given(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(VALUES))
    return ModelOverrides(config=f"json::{file}")


STORED = {
    "by layer": lambda arrays, path: write_stream(path, arrays.items()),
    "stacked": lambda arrays, path: write_stream(path, stacked(arrays, 0).items()),
    "stacked on axis 1": lambda arrays, path: write_stream(path, stacked(arrays, 1).items()),
    "in pieces": lambda arrays, path: write_stream(path, stacked(arrays, 0).items(), piece=20_000),
    "in pieces on axis 1": lambda arrays, path: write_stream(
        path, stacked(arrays, 1).items(), piece=20_000
    ),
    "train state": lambda arrays, path: write_stream(path, train_state(stacked(arrays, 0))),
    "Flax's map": lambda arrays, path: path.write_bytes(nested(arrays)),
    "Flax's map of params": lambda arrays, path: path.write_bytes(
        nested({f"params/{name}": array for name, array in stacked(arrays, 0).items()})
    ),
}


def train_state(arrays):
    yield "step", np.array(7)
    for name, array in arrays.items():
        yield f"params/params/{name}", array
    for name, array in arrays.items():
        yield f"opt_state/0/mu/params/{name}", array * 0


@pytest.mark.parametrize("large", [True, False], ids=["slices", "whole"])
@pytest.mark.parametrize("stored", STORED)
def test_every_form_holds_the_same_weights(tmp_path, given, monkeypatch, stored, large):
    if large:  # of which slices are read one by one
        monkeypatch.setattr("lwm.formats.flax_file._SMALL", 0)
    arrays = dict(draw())
    STORED[stored](arrays, tmp_path / "params")
    config, tensors = open_lwm(tmp_path / "params", given=given)
    assert config == CONFIG
    assert {*tensors} == {name for name in arrays if "vte" not in name and "vision" not in name}
    for name in tensors:
        wanted = arrays[name]
        if name == "transformer/wte/embedding":
            wanted = np.concatenate([wanted, arrays["transformer/vte/embedding"]])
        if name == "lm_head/kernel":
            wanted = np.concatenate([wanted, arrays["vision_head/kernel"]], axis=1)
        np.testing.assert_array_equal(tensors[name], wanted, err_msg=name)
        assert tensors.shapes[name] == wanted.shape


@pytest.mark.parametrize("dtype", ["float32", "float16", ml_dtypes.bfloat16])
def test_numbers_keep_their_value(tmp_path, given, dtype):
    arrays = dict(draw(dtype=dtype))
    write_stream(tmp_path / "params", stacked(arrays, 0).items())
    _, tensors = open_lwm(tmp_path / "params", given=given)
    name = "transformer/h/1/attention/wq/kernel"
    np.testing.assert_array_equal(tensors[name], arrays[name])
    assert tensors[name].dtype == dtype


def test_the_library_reads_what_is_written(tmp_path):
    arrays = {"a/b": np.arange(6.0).reshape(2, 3), "c": np.array(3, np.int64)}
    write_stream(tmp_path / "file", arrays.items())
    with (tmp_path / "file").open("rb") as file:
        for (path, blob), (name, array) in zip(msgpack.Unpacker(file), arrays.items(), strict=True):
            assert "/".join(path) == name
            shape, dtype, data = msgpack.unpackb(msgpack.unpackb(blob).data)
            np.testing.assert_array_equal(np.frombuffer(data, dtype).reshape(shape), array)


@pytest.mark.parametrize("mesh_text", ["1,1,1,1", "1,2,2,2"])
@pytest.mark.parametrize("stored", ["by layer", "stacked on axis 1"])
def test_a_model_is_the_same_on_every_mesh(tmp_path, given, stored, mesh_text):
    arrays = dict(draw())
    STORED[stored](arrays, tmp_path / "params")
    config, tensors = open_lwm(tmp_path / "params", given=given)
    mesh = make_mesh(mesh_text)
    model = build_llama(config, tensors, TABLE, mesh=mesh)
    seen = []
    other = build_llama(
        config, tensors, TABLE, mesh=mesh, stacked=True, progress=lambda *done: seen.append(done)
    )
    assert seen == [(number + 1, 30) for number in range(30)]
    other = jax.device_get(jax.jit(lambda model: model.unstack())(other))
    for one, two in zip(*map(jax.tree.leaves, (jax.device_get(model), other)), strict=True):
        np.testing.assert_array_equal(one, two)
    wq = arrays["transformer/h/2/attention/wq/kernel"].reshape(16, 2, 4, 2)
    wanted = np.concatenate([wq[..., 0], wq[..., 1]], axis=-1)
    assert isinstance(model.blocks, tuple)
    np.testing.assert_array_equal(model.blocks[2].attention.wq, wanted)


@pytest.mark.parametrize("mesh_text", ["1,1,1,1", "1,2,2,2"])
def test_vision_logits_are_those_of_the_original(fixtures, original, place, mesh_text):
    file = np.load(fixtures / "vision_full_logits.npz")
    ids, seen, at = file["input_ids"], file["vision_masks"], file["positions"]
    with jax.set_mesh(mesh := make_mesh(mesh_text)):
        model = original(mesh, name="vision_full", stored="scan")
        logits = np.asarray(forward(model, *place(mesh, np.where(seen, ids + 512, ids))))
    text, vision = logits[..., :512], logits[..., 512:]
    assert np.abs(text[:, at] - file["text_logits"]).max() <= 5e-5
    assert np.abs(vision[:, at] - file["vision_logits"]).max() <= 5e-5
    for ours, which in ((text, "text"), (vision, "vision")):
        np.testing.assert_array_equal(ours.argmax(-1), file[f"{which}_argmax"])
        largest = jax.scipy.special.logsumexp(ours, axis=-1)
        assert np.abs(largest - file[f"{which}_logsumexp"]).max() <= 5e-5


@pytest.mark.parametrize("stored", STORED)
def test_the_originals_weights_stored_otherwise(fixtures, tmp_path, mesh, place, stored):
    """Logits of the original from forms of which it left no file."""
    source = LwmTensors(fixtures / "text_tiny_params_noscan.msgpack")
    STORED[stored](dict(source.items()), tmp_path / "params")
    given = ModelOverrides(config=f"json::{fixtures / 'text_tiny_config.json'}")
    config, tensors = open_lwm(tmp_path / "params", given=given)
    model = build_llama(config, tensors, TABLE, mesh=mesh)
    file = np.load(fixtures / "text_tiny_logits.npz")
    logits = np.asarray(forward(model, *place(mesh, file["input_ids"])))
    wanted = file["logits.theta10000.plain"]
    assert np.abs(logits[:, file["positions"]] - wanted).max() <= 5e-5
    total = jax.scipy.special.logsumexp(logits, axis=-1)
    assert np.abs(total - file["logsumexp.theta10000.plain"]).max() <= 5e-5


def test_what_is_known_of_a_model(tmp_path, given):
    """Presets and shapes say the sizes; theta and context come from the user, a file or a name."""
    path = tmp_path / "streaming_params"
    debug = dataclasses.replace(
        CONFIG, tokens=TokenSpace(text=32_000), dim=256, mlp_dim=256, head_dim=128, num_layers=2
    )
    broad = {name: np.broadcast_to(np.float16(0), array.shape) for name, array in zeros(debug)}
    write_stream(path, broad.items())
    for config in (None, "debug"):
        found, _ = open_lwm(path, given=ModelOverrides(config=config, theta=1e7, context=131_072))
        assert (found.num_heads, found.rope.theta, found.max_context) == (2, 1e7, 131_072)
    with pytest.raises(UserError, match="does not say RoPE's theta and the context; give --theta"):
        open_lwm(path, given=ModelOverrides(config="debug"))
    with pytest.raises(
        UserError, match=r"does not fit LWM's 7b \(32 layers .*missing: .* of LWM's debug"
    ):
        open_lwm(path, given=ModelOverrides(config="7b"))
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "params"
    write_stream(other, draw())
    with pytest.raises(UserError, match="how many heads is not known; give --config json::FILE"):
        open_lwm(other, given=ModelOverrides())
    found, _ = open_lwm(other, given=dataclasses.replace(given, theta=1e6))
    assert found.rope.theta == 1e6


def zeros(config):
    sizes = dimensions(config)
    for path, layout in LWM_NAMES.items():
        if "vision" not in path:
            for layer in range(config.num_layers) if "*" in layout.name else ("",):
                shape = layout.shape(sizes)
                yield layout.name.replace("*", str(layer)), np.zeros(shape, np.float16)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"hidden_size": 20}, r"misshapen: .*has \(16, 256\), not \(20, 256\).* and \d+ more; the"),
        ({"num_hidden_layers": 4}, "missing: transformer/h/3/attention/wk/kernel, .* 6 more"),
        ({"num_hidden_layers": 2}, "unexpected: transformer/h/2/attention/wk/kernel"),
        ({"vision_vocab_size": 0}, "unexpected: transformer/vte/embedding, vision_head/kernel"),
        ({"vision_vocab_size": 100}, r"has 100 vision ids, not those of .* --codes"),
        ({"num_attention_heads": 3}, "hidden_size 16 does not divide by 3 heads"),
        ({"num_attention_heads": None}, "lacks num_attention_heads"),
        ({"hidden_size": -1}, "hidden_size -1 is no whole number from 1 to"),
        (
            {"num_hidden_layers": 10**12},
            r"layers 10+ is no whole number from 1 to 10,000",
        ),
        ({"theta": "x"}, 'theta "x" is no number above 1'),
        ({"theta": 10**400}, r"theta 10+ is no number above 1"),
        ({"theta": float("nan")}, "theta NaN is no number above 1"),
        ({"rms_norm_eps": -1}, "rms_norm_eps -1 is no number between 0 and 1"),
        ({"tie_word_embeddings": "false"}, 'tie_word_embeddings "false" is neither true nor false'),
        ({"tie_vision_embeddings": "no"}, 'tie_vision_embeddings "no" is neither true nor false'),
        ({"vision_vocab_size": True}, "vision_vocab_size true is no number of ids"),
        ({"theta": {}}, "theta {} is no number above 1"),
        ({"tie_word_embeddings": True}, "one table tied to its head and one not"),
    ],
)
def test_what_does_not_fit_is_told_together(tmp_path, values, says):
    write_stream(tmp_path / "params", stacked(dict(draw()), 0).items())
    (tmp_path / "config.json").write_text(json.dumps(VALUES | values))
    with pytest.raises(UserError, match=says) as caught:
        open_lwm(
            tmp_path / "params", given=ModelOverrides(config=f"json::{tmp_path / 'config.json'}")
        )
    assert "\n" not in str(caught.value)


def test_layers_on_axis_one_as_many_as_the_width(tmp_path, given):
    arrays = dict(draw(dataclasses.replace(CONFIG, num_layers=CONFIG.dim)))
    write_stream(tmp_path / "params", stacked(arrays, 1).items())
    tensors = LwmTensors(tmp_path / "params")
    name = "transformer/h/5/attention/wq/kernel"
    np.testing.assert_array_equal(tensors[name], arrays[name])


def test_numbers_that_are_no_weights(tmp_path, given):
    write_stream(tmp_path / "params", draw(dtype=np.int8))
    config, tensors = open_lwm(tmp_path / "params", given=given)
    with pytest.raises(UserError, match="holds int8 numbers, which are no weights; save the model"):
        build_llama(config, tensors, TABLE, mesh=make_mesh())


@pytest.mark.parametrize("name", ["vision_head/kernel", "transformer/h/1/attention/wq/kernel"])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path, given, name):
    arrays = dict(draw(dtype=ml_dtypes.bfloat16))
    arrays[name][0, -1] = np.nan
    write_stream(tmp_path / "params", stacked(arrays, 0).items())
    _, tensors = open_lwm(tmp_path / "params", given=given)
    with pytest.raises(UserError, match=f"params is corrupted: tensor '{name}' holds NaN or inf"):
        dict(tensors.items())


def test_a_stack_of_endless_layers_is_refused(tmp_path):
    names = ["transformer", "h", "scan_decoder", "attention", "wq", "kernel"]
    array = msgpack.ExtType(1, msgpack.packb(((2**40, 0), "float32", b"")))
    packed = msgpack.packb([names, msgpack.packb(array)])
    assert packed is not None
    (tmp_path / "params").write_bytes(packed)
    with pytest.raises(UserError, match="declares more than 100,000 tensors; fetch it again"):
        LwmTensors(tmp_path / "params")


def test_prefixes():
    assert split_prefix("params::/a/b") == ("params", "/a/b")
    assert split_prefix("/a/b") is None
    with pytest.raises(UserError, match="huggingface:: is no type of file; LWM's are params, "):
        split_prefix("huggingface::a")


SCRIPT = Path(__file__).parents[1] / "loading_run.py"


def measure(folder, *sizes):
    """Loads a file of such sizes in a process of its own; says what memory that took."""
    if shutil.disk_usage(folder).free < 20 * sizes[0] ** 2 * sizes[2]:
        pytest.skip("the disk has no room")
    for arguments in (("write", folder / "params", *sizes), ("load", folder / "params")):
        command = [sys.executable, SCRIPT, *map(str, arguments)]
        run = subprocess.run(command, capture_output=True, text=True, timeout=900)
        assert run.returncode == 0, run.stderr
    (folder / "params").unlink()
    return json.loads(run.stdout)


linux = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs Linux's account of memory"
)


@linux
def test_loading_needs_little_more_memory_than_the_model(tmp_path):
    found = measure(tmp_path, 1024, 2752, 16)
    assert found["result"] > 4e8
    # As much of the model as 1.5 GiB are of LWM's.
    assert found["over"] <= 1.5 * 2**30 / 13.6e9 * found["result"], found


@linux
@pytest.mark.slow
def test_loading_seven_billion(tmp_path):
    found = measure(tmp_path, 4096, 11008, 32)
    assert found["result"] > 13.6e9
    assert found["over"] <= 1.5 * 2**30, found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a good stream and a good map, and where these are no numbers of an array."""
    folder = tmp_path_factory.mktemp("whole")
    arrays = stacked(dict(draw(dataclasses.replace(CONFIG, tokens=TokenSpace(text=16)))), 0)
    write_stream(folder / "stream", arrays.items(), piece=2000)
    (folder / "map").write_bytes(nested(arrays))
    files = []
    for name in ("stream", "map"):
        data = (folder / name).read_bytes()
        is_head = np.ones(len(data), bool)
        for stored in FlaxFile(folder / name).arrays.values():
            for start, length in stored.pieces:
                is_head[start : start + length] = False
        files.append((data, np.flatnonzero(is_head)))
    return files


def damage(data, heads, kind, rng):
    at = int(rng.choice(heads))
    if kind == "cut":
        return data[: rng.integers(1, len(data))]
    if kind == "a bit of a header":
        return data[:at] + bytes([data[at] ^ 1 << rng.integers(8)]) + data[at + 1 :]
    if kind == "a huge size":
        kinds = [at for at in heads if data[at] in (0xC4, 0xC6, 0xC9, 0x82, 0x83, 0x91, 0x92, 0x93)]
        at = int(rng.choice(kinds))
        head = bytes([rng.choice([0xC6, 0xC9, 0xDB, 0xDD, 0xDF])])
        return data[:at] + head + b"\xff\xff\xff\xf0" + data[at + 5 :]
    if kind == "noise in a header":
        return data[:at] + rng.bytes(8) + data[at + 8 :]
    return rng.bytes(rng.integers(0, 200))


KINDS = ("cut", "a bit of a header", "a huge size", "noise in a header", "random")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", [0, 1], ids=["stream", "map"])
def test_damaged_files_are_refused(tmp_path, whole, which, kind):
    path, config = tmp_path / "params", tmp_path / "config.json"
    config.write_text(json.dumps(VALUES | {"vocab_size": 16}))
    data, heads = whole[which]
    said = []
    tracemalloc.start()
    for number in range(20):
        rng = np.random.default_rng([which, KINDS.index(kind), number])
        path.write_bytes(damage(data, heads, kind, rng))
        with pytest.raises(UserError) as caught:
            open_lwm(path, given=ModelOverrides(config=f"json::{config}"))
        said.append(str(caught.value))
    assert tracemalloc.get_traced_memory()[1] < 1e7
    tracemalloc.stop()
    assert all(str(path) in line and "\n" not in line for line in said)
