"""Files of an earlier version: each opens, goes on, and gives the numbers it gave then."""

import dataclasses
import hashlib
import json
import tarfile
from pathlib import Path

import jax
import jax.random as jr
import numpy as np
import pytest

import lwm
import lwm.train.loop
from lwm.convert.export import save_model
from lwm.data.fields import RecordEncoder
from lwm.data.format import ExampleFormat
from lwm.data.media.inputs import open_items
from lwm.data.media.read import Sampling
from lwm.data.media.shards import MediaJob, write_media
from lwm.data.media.summary import SUMMARY, MediaSummary
from lwm.data.pack import PackingConfig
from lwm.data.sets import open_set
from lwm.data.sources import open_source
from lwm.data.tokenize import write_shards
from lwm.eval.answer import describe_model
from lwm.eval.needle import run as needle
from lwm.eval.needle.config import NeedleConfig
from lwm.model.config import LlamaConfig
from lwm.model.llama import Llama
from lwm.sampling_params import FrameSampling
from lwm.tokenizer.tokenizer import Tokenizer
from lwm.tokens import TokenSpace
from lwm.train.config import AdamW, Data, DataSet, Keep, Run, Schedule, Training
from lwm.train.optimizer import matrices
from lwm.train.run import run
from lwm.train.vqgan.config import (
    CodebookConfig,
    FrameData,
    FrameSet,
    VQGANLoss,
    VQGANRun,
    VQGANTraining,
)
from lwm.train.vqgan.discriminator import Discriminator
from lwm.vqgan.checkpoint import read_vqgan, save_vqgan
from lwm.vqgan.config import VQGANConfig
from lwm.vqgan.model import VQGAN
from lwm.vqgan.tokenizer import VisionTokenizer, vqgan_fingerprint

pytest.importorskip("array_record", reason="array_record is not installed")
pytest.importorskip("PIL.Image", reason="Pillow is not installed")

FOLDER = Path(__file__).parent / "fixtures" / "before"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
LITERALS = EXPECTED["literals"]

LLAMA = LlamaConfig(
    tokens=TokenSpace(text=1),
    dim=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=32,
    max_context=64,
)
TEXT_RUN = Run(
    model=LLAMA,
    data=Data(
        sets=(DataSet(files=("texts.jsonl",), name="texts"),),
        held_out=(DataSet(files=("held-out.jsonl",), name="few"),),
        held_out_rows=4,
        vocabulary=280,
        packing=PackingConfig(length=64),
        rows=2,
        streams=2,
    ),
    training=Training(
        steps=4,
        accumulate=2,
        optimizer=AdamW(schedule=Schedule(peak=1e-2, warmup=2)),
        keep=Keep(every=2, last=1),
        validate_every=2,
    ),
)
VQGAN_SHAPE = VQGANConfig(
    resolution=16,
    hidden=32,
    multipliers=(1,),
    res_blocks=1,
    z_channels=4,
    codes=16,
    code_dim=4,
)
VQGAN_RUN = VQGANRun(
    model=VQGAN_SHAPE,
    data=FrameData(
        sets=(FrameSet(files=("frames",), name="frames"),),
        held_out=(FrameSet(files=("frames",), name="same"),),
        held_out_frames=4,
        batch=4,
        shift=1,
    ),
    training=VQGANTraining(
        steps=4,
        optimizer=AdamW(
            schedule=Schedule(peak=1e-3, warmup=2),
            b2=0.98,
            moment_dtype="bfloat16",
            second_moment_dtype="bfloat16",
        ),
        loss=VQGANLoss(
            absolute=0.5, squared=1.0, perceptual=0.0, adversarial=0.5, adversarial_from=1
        ),
        codebook=CodebookConfig(warmup=1),
        discriminator_width=16,
        keep=Keep(every=2, last=1),
        validate_every=2,
        sheet=2,
    ),
)
RUNS: dict[str, Run | VQGANRun] = {"text-run": TEXT_RUN, "vqgan-run": VQGAN_RUN}


@pytest.fixture
def before(tmp_path, monkeypatch):
    """The files, in the working directory."""
    with tarfile.open(FOLDER / "files.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)


def same_files(one: Path, other: Path, *, leave: str = "") -> bool:
    """Compares two folders but for one file; what is missing counts."""
    found = [
        {path.name: path.read_bytes() for path in each.iterdir() if path.name != leave}
        for each in (one, other)
    ]
    return bool(found[0]) and found[0] == found[1]


@pytest.mark.parametrize(
    "name",
    [
        "text-run",
        pytest.param("vqgan-run", marks=[pytest.mark.slow, pytest.mark.representative]),
    ],
)
def test_a_run_goes_on(before, monkeypatch, name):
    fetch, batches = lwm.train.loop.fetch, []

    def hashing(*arguments):
        given, *rest = fetch(*arguments)
        arrays = [getattr(one.batch, "tokens", one.batch) for one in given]
        data = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
        batches.append(hashlib.sha256(data).hexdigest())
        return given, *rest

    monkeypatch.setattr(lwm.train.loop, "fetch", hashing)
    run(RUNS[name], Path(name))
    lines = [json.loads(line) for line in (Path(name) / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert batches == EXPECTED[name]["batches"]
    assert len(losses) == 4
    np.testing.assert_allclose(losses[2:], EXPECTED[name]["loss"], rtol=0, atol=1e-4)


def test_another_run_is_refused_by_name(before):
    training = dataclasses.replace(TEXT_RUN.training, steps=5)
    other = dataclasses.replace(TEXT_RUN, training=training)
    with pytest.raises(lwm.UserError, match=r"training\.steps was 4 and is 5"):
        run(other, Path("text-run"))


def encoder() -> RecordEncoder:
    tokenizer = Tokenizer.open(Path("text-run/tokenizer"))
    tokens = TokenSpace.of(tokenizer.vocab_size, 16)
    return RecordEncoder(
        tokenizer=tokenizer, tokens=tokens, format=ExampleFormat(tokens_per_frame=256)
    )


def test_token_shards(before):
    made, source = encoder(), open_source(Path("texts.jsonl"))
    examples = open_set(("tokens",), ExampleFormat(), made.tokenizer, made.tokens)
    fresh = open_set(("texts.jsonl",), made.format, made.tokenizer, made.tokens)
    assert len(examples) == len(fresh) == 48
    for number in range(48):
        np.testing.assert_array_equal(examples[number].ids, fresh[number].ids)
    for folder in ("tokens", "tokens-half"):
        write_shards(source, made, Path(folder), shards=2)
    assert same_files(Path("tokens"), Path("tokens-half"))


def test_media_shards(before):
    vision = VisionTokenizer.open(Path("vqgan"), batch=4)
    for folder in ("media", "media-half"):
        sampling = Sampling(resolution=16, max_frames=2)
        job = MediaJob.of(open_items(["frames"]), sampling, vision.codebook, Path(folder), 2)
        write_media(job, vision)
    # The summary names the path of the VQGAN, which is another here.
    assert same_files(Path("media"), Path("media-half"), leave=SUMMARY)
    old, new = MediaSummary.read(Path("media")), MediaSummary.read(Path("media-half"))
    assert dataclasses.replace(new, codebook=old.codebook) == old
    record = open_source(Path("media"))[0].value
    assert record["caption"] == "picture 0"


def test_vqgan(before):
    vision = VisionTokenizer.open(Path("vqgan"), batch=4)
    pixels = np.arange(2 * 16 * 16 * 3, dtype=np.uint32).astype(np.uint8) * 7
    codes = vision.encode_batch(pixels.reshape(2, 16, 16, 3))
    np.testing.assert_array_equal(codes, EXPECTED["vqgan"]["codes"])
    assert vision.codebook.fingerprint == EXPECTED["vqgan"]["fingerprint"]
    save_vqgan(read_vqgan(Path("vqgan")), Path("again"))
    assert same_files(Path("vqgan"), Path("again"))


@pytest.mark.slow
@pytest.mark.representative
def test_vision_model(before):
    model, expected = lwm.load("vision-model"), EXPECTED["vision-model"]
    assert model.generate("ships sail", max_tokens=12) == expected["text"]
    sampled = model.generate("ships sail", max_tokens=12, temperature=0.8, seed=3)
    assert sampled == expected["sampled"]
    assert model.sampling.image.guidance == 1.5
    assert model.sampling.image != FrameSampling()
    (drawn,) = model.draw("ships", seed=1)
    codes = np.asarray(drawn.codes, np.int32)
    assert hashlib.sha256(codes.tobytes()).hexdigest() == expected["drawn"]
    with jax.set_mesh(model.mesh):
        save_model(
            model.llama,
            model.tokenizer,
            Path("again"),
            card="# A small model\n",
            sampling=model.sampling,
        )
    old, new = (Path(folder) for folder in ("vision-model", "again"))
    assert (new / "model.safetensors").read_bytes() == (old / "model.safetensors").read_bytes()
    tokens = model.llama.config.tokens
    more = {
        # Vision ids are new there: transformers writes text without them.
        "generation_config.json": {"suppress_tokens": [*range(tokens.text, tokens.size)]},
        # The spread of the first weights is not read back.
        "config.json": {"initializer_range": LLAMA.init_std},
    }
    for file, values in more.items():
        was, is_now = (json.loads((folder / file).read_text()) for folder in (old, new))
        assert is_now == was | values


def test_needle_folder(before):
    grid = NeedleConfig(
        haystack=Path("haystack.txt"),
        lengths=(640, 768),
        depths=(0.0, 100.0),
        rounds=1,
        max_tokens=8,
    )
    model = lwm.load("text-model")
    needle.evaluate(model, grid, Path("needle"))
    rows = [json.loads(line) for line in Path("needle/results.jsonl").read_text().splitlines()[1:]]
    for row, wanted in zip(rows, EXPECTED["needle"]["rows"], strict=True):
        assert row.items() >= wanted.items()
    assert describe_model(model).items() >= LITERALS["text-model described"].items()


def test_fingerprints():
    assert vqgan_fingerprint(read_vqgan("vqgan-64")) == LITERALS["vqgan-64 fingerprint"]
    described = describe_model(lwm.load("tiny-vision"))
    assert described.items() >= LITERALS["tiny-vision described"].items()


MODELS = {
    "llama": lambda key: Llama.init(LLAMA, key=key),
    "qwen2": lambda key: Llama.init(
        dataclasses.replace(LLAMA, qkv_bias=True, tie_embeddings=True), key=key
    ),
    "qwen3": lambda key: Llama.init(dataclasses.replace(LLAMA, qk_norm=True), key=key),
    "vqgan": lambda key: VQGAN.init(VQGAN_SHAPE, key=key),
    "discriminator": lambda key: Discriminator.init(3, 16, key=key),
}


@pytest.mark.parametrize("name", MODELS)
def test_weights_that_decay(mesh, name):
    found = matrices(jax.eval_shape(MODELS[name], jr.key(0)))
    decays = {
        jax.tree_util.keystr(path, simple=True, separator="."): bool(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(found)
    }
    assert decays == LITERALS["decays"][name]
