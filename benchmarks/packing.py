"""Repeats LWM's ablation of packing, small: masked against naive packing, judged on questions.

    python benchmarks/packing.py --folder runs/packing

Both train on the same rows in the same order, from the same first weights and with the same
schedule. Masked packing is that of `lwm train`: examples of a row do not attend to each other,
positions restart, and each example has the weight that it has alone. Naive packing treats a row as
one text: tokens attend to all before them, positions run on, and all targets of a modality in a row
weigh alike, as in the loss of LWM's released code (`no_pad`).

Each run keeps checkpoints and answers in a folder of its own; the same command goes on after an
interruption, and writes the table once all runs are judged.
"""

import contextlib
import dataclasses
import datetime
import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from attention import hardware, versions
from jaxtyping import Array, Float, Int
from packing_tables import WAYS, Found, Way, tables

import lwm
from lwm.data.chat import chat_ids
from lwm.data.example import Batch, Example, stack
from lwm.data.format import Captions, ExampleFormat
from lwm.data.loader import Delivered, Loader
from lwm.data.pack import PackingConfig, Placed, fill_row
from lwm.eval.qa.config import QAConfig
from lwm.eval.qa.run import evaluate
from lwm.eval.qa.world import WorldQuestions
from lwm.eval.subject import Subject
from lwm.files import exclusive, write_bytes
from lwm.formats.run_folder import MODEL, SETTINGS, steps_of
from lwm.generate.loaded import LoadedModel
from lwm.model.config import LlamaConfig
from lwm.model.layers import Packing
from lwm.model.llama import Llama
from lwm.sharding import make_mesh
from lwm.tokenizer.message import Message, Vision
from lwm.tokens import TokenSpace
from lwm.train.config import AdamW, Data, DataSet, Keep, Run, Schedule, Training
from lwm.train.inputs import keep_inputs
from lwm.train.loop import LogLine, train
from lwm.train.placing import shard_batch
from lwm.train.run_json import require_same, write_run
from lwm.train.task import LanguageTask, open_task
from lwm.world.language import QuestionAnswer
from lwm.world.world import World, WorldConfig

ANSWERS = "answers.json"
BACKGROUNDS = ("white",)
"""The VQGAN shows colours on white only."""
_ROWS = 8
"""Questions that are answered together."""
_JUDGED_SEED = 1000
"""Seed of the clips that are asked about; training has another."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Sizes of model, training and judgement."""

    folder: Path = Path("runs/packing")
    """Gets a folder for each run."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the first weights and the order of the data; each is trained in both ways."""
    steps: int = 3000
    length: int = 1024
    """Slots of a row."""
    rows: int = 1
    """Rows of an update."""
    dim: int = 128
    layers: int = 3
    rate: float = 2e-3
    pictures: int = 6000
    """Pictures to train on, half of them with captions, half with questions."""
    clips: int = 1500
    """Clips to train on."""
    frames: int = 4
    """Frames of a clip."""
    most: int = 1
    """Things in a clip at most."""
    asked: int = 60
    """Pictures, and clips, of each split that the model is asked about."""
    vqgan: str = "vqgan-64"
    file: Path | None = None
    """File of the table; `results/packing-cpu-DATE.md` by default."""


def naive(batch: Batch, text: int) -> Batch:
    """Returns a batch whose rows are one text each; tokens and targets stay.

    Args:
        batch: Rows of packed examples.
        text: Number of ids of text; those of vision follow.
    """
    filled, trained = batch.segments >= 0, batch.weights > 0
    running = np.broadcast_to(np.arange(filled.shape[-1]), filled.shape)
    weights = np.zeros_like(batch.weights)
    for is_kind in (batch.targets < text, batch.targets >= text):
        of_row = trained & is_kind
        weights += of_row / np.maximum(of_row.sum(-1, keepdims=True), 1)
    return batch._replace(
        segments=np.where(filled, 0, -1).astype(np.int32),
        positions=np.where(filled, running, 0).astype(np.int32),
        weights=weights.astype(np.float32),
        counts=np.ones_like(batch.counts),  # the mean over rows
    )


class NaiveBatches:
    """The batches of a loader, packed naively."""

    def __init__(self, loader: Loader, text: int):
        self._loader, self._text = loader, text
        self.rows, self.max_bad_share = loader.rows, loader.max_bad_share
        self.restore, self.merge = loader.restore, loader.merge

    def __iter__(self) -> Generator[Delivered]:
        with contextlib.closing(iter(self._loader)) as batches:
            for one in batches:
                yield one._replace(batch=naive(one.batch, self._text))


class Printed:
    """Prints each tenth line of a log."""

    def __init__(self, name: str):
        self._name = name

    def busy(self, text: str) -> None:
        """Ignores it."""

    def begin(self, last: int) -> None:
        """Prints where the run goes on."""
        print(f"{self._name}: from step {last}", flush=True)

    def __call__(self, line: LogLine) -> None:
        """Prints a line."""
        if "loss" in line and line["step"] % 10 == 0:
            kinds = ("text", "vision")
            shown = [
                f"{kind} {line[f'{kind}_loss']:.3f}" for kind in kinds if f"{kind}_loss" in line
            ]
            print(f"{self._name}: step {line['step']}, {', '.join(shown)}", flush=True)

    def warn(self, text: str) -> None:
        """Prints a warning."""
        print(f"{self._name}: {text}", flush=True)


def recipe(config: Benchmark, seed: int) -> Run:
    """Returns the run of `lwm train` that is masked packing."""
    head = 32
    heads = config.dim // head
    form = ExampleFormat(captions=Captions(vision_first=0.3, variants=2))
    sets = (
        DataSet(
            files=(_world(config, config.pictures, frames=1),),
            name="pictures",
            weight=2.0,
            format=form,
        ),
        DataSet(
            files=(_world(config, config.clips, frames=config.frames),),
            name="clips",
            format=form,
        ),
    )
    warmup = min(100, config.steps // 10)
    schedule = Schedule(peak=config.rate, warmup=warmup, end=config.rate / 20)
    return Run(
        model=LlamaConfig(
            tokens=TokenSpace(text=1),  # the run has those of its tokenizer
            dim=config.dim,
            num_layers=config.layers,
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=head,
            mlp_dim=8 * config.dim // 3 // 16 * 16,
            max_context=config.length,
            tie_embeddings=True,
        ),
        data=Data(
            sets=sets,
            vocabulary=512,
            vqgan=config.vqgan,
            packing=PackingConfig(length=config.length),
            rows=config.rows,
            streams=4,
        ),
        training=Training(
            steps=config.steps,
            optimizer=AdamW(schedule=schedule),
            keep=Keep(every=100, last=1),
            validate_every=0,
        ),
        seed=seed,
    )


def _world(config: Benchmark, count: int, *, frames: int) -> str:
    """Returns the name of a set in which captions and questions take turns."""
    form = f"most={config.most},backgrounds={'+'.join(BACKGROUNDS)},vqgan={config.vqgan}"
    return f"world:train,count={count},frames={frames},text=mixed,{form}"


def train_run(run: Run, folder: Path, way: Way) -> Path:
    """Trains, or goes on from the newest checkpoint; returns the folder of the model.

    All is as in `lwm.train.run.run`, except for the batches of naive packing.
    """
    model, log = folder / MODEL, Printed(folder.name)
    mesh, resumed = make_mesh(run.mesh), bool(steps_of(folder))
    if resumed:
        require_same(run, folder / SETTINGS, ignore=("model",), reached=max(steps_of(folder)))
    opened = open_task(run, folder, mesh, warn=log.warn, resumed=resumed)
    assert isinstance(opened.task, LanguageTask)
    assert opened.model is not None
    if way == "naive":
        loader: Any = NaiveBatches(opened.task.batches, opened.model.tokens.text)
        opened.task.batches = loader
    keep_inputs(opened.inputs, folder, resumed=resumed)
    write_run(dataclasses.replace(run, model=opened.model), folder / SETTINGS)
    state = train(run.training, opened.task, mesh, folder, sink=log)
    with jax.set_mesh(mesh):
        opened.save(state, model)
    return model


def judge(model: LoadedModel, config: Benchmark, folder: Path) -> list[dict[str, Any]]:
    """Returns a row for each question, in the same order for all models."""
    rows = []
    for frames in (1, config.frames):
        world = WorldConfig(
            frames=frames, most=config.most, backgrounds=BACKGROUNDS, seed=_JUDGED_SEED
        )
        questions = WorldQuestions(world, splits=("heldout", "train"), clips=config.asked)
        form = QAConfig(rule="world", instruction="", max_tokens=8)
        subject = Subject.of_model(model, rows=_ROWS)
        found = evaluate(subject, questions, form, folder / f"answers-{frames}").report.rows
        right, examples = right_answers(model, world, config.asked)
        losses = answer_losses(model, examples)
        for row, asked, loss in zip(found, right, losses, strict=True):
            assert row["question"] == asked.question
            rows.append(
                {
                    "split": row["group"],
                    "shown": "pictures" if frames == 1 else "clips",
                    "kind": asked.kind,
                    "question": asked.question,
                    "answer": asked.answer,
                    "response": row["response"],
                    "score": row["score"],
                    "loss": loss,
                }
            )
    return rows


def right_answers(
    model: LoadedModel, world: WorldConfig, clips: int
) -> tuple[list[QuestionAnswer], list[Example]]:
    """Returns the questions of `WorldQuestions`, and examples with the loss on their answers."""
    asked, examples = [], []
    size = model.vision.resolution
    worlds = [
        World(dataclasses.replace(world, split=split, resolution=size))
        for split in ("heldout", "train")
    ]
    for number in range(clips):
        for one in worlds:
            clip = one.clip(number)
            vision = Vision(codes=model.encode_frames(clip.pixels), is_video=len(clip.pixels) > 1)
            for question in clip.questions:
                said = (
                    Message("user", (question.question, vision)),
                    Message("assistant", (question.answer,)),
                )
                ids, learn = chat_ids(
                    said, model.tokenizer, template=model.template, marks=model.marks
                )
                asked.append(question)
                examples.append(Example(ids=ids, loss_mask=learn, name=question.question))
    return asked, examples


def answer_losses(model: LoadedModel, examples: Sequence[Example]) -> list[float]:
    """Returns the mean loss of the trained tokens of each example, alone on its row."""
    length = -(-max(map(len, examples)) // 64) * 64
    packing, tokens = PackingConfig(length=length), model.llama.config.tokens
    rows = [fill_row([Placed(one, 0, len(one) - 1)], packing, tokens) for one in examples]
    found: list[float] = []
    with jax.set_mesh(model.mesh):
        for start in range(0, len(rows), _ROWS):
            some = rows[start : start + _ROWS]
            batch = stack([*some, *[some[-1]] * (_ROWS - len(some))])
            given = Batch._make(field[None] for field in batch)
            placed, index = shard_batch(given, model.mesh, "contiguous", rows=_ROWS)
            means = _mean_losses(model.llama, jax.tree.map(lambda x: x[0], placed), index)
            found += np.asarray(means).tolist()[: len(some)]
    return found


@jax.jit
def _mean_losses(model: Llama, batch: Batch, index: Int[Array, " S"]) -> Float[Array, " B"]:
    packing = Packing(segments=batch.segments, positions=batch.positions, index=index)
    found = model.losses(batch.tokens, batch.targets, packing)
    trained = batch.weights > 0
    return jnp.sum(jnp.where(trained, found.nll, 0), -1) / jnp.sum(trained, -1)


def one_run(config: Benchmark, way: Way, seed: int) -> dict[str, Any]:
    """Trains and judges, unless that is done; returns the answers and the tokens trained on."""
    folder = config.folder / f"{way}-{seed}"
    # Lists and not tuples, as in the file.
    sizes = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    sizes = {name: size for name, size in sizes.items() if name not in ("folder", "seeds", "file")}
    if (folder / ANSWERS).exists():
        found = json.loads((folder / ANSWERS).read_text())
        if found["sizes"] != sizes:
            raise SystemExit(f"{folder} is of other sizes; give another --folder")
        return found
    with exclusive(folder):
        model = lwm.load(train_run(recipe(config, seed), folder, way))
        lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
        found = {
            "sizes": sizes,
            "tokens": sum(line.get("tokens", 0) for line in lines),
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.llama)),
            "answers": judge(model, config, folder),
        }
        write_bytes(folder / ANSWERS, json.dumps(found, indent=1).encode())
    return found


def heading(config: Benchmark, found: Found) -> str:
    one = next(iter(found.values()))
    least, *_, most = sorted(each["tokens"] / 1e6 for each in found.values())
    pictures = _world(config, config.pictures, frames=1)
    clips = _world(config, config.clips, frames=config.frames)
    return (
        f"# Masked and naive packing, {datetime.date.today().isoformat()}\n\n"
        f"{hardware()}; {versions('numpy')}.\n\n"
        f"A model of {one['parameters'] / 1e6:.1f}M parameters from random weights; "
        f"{config.steps:,} updates of {config.rows} × {config.length:,} slots, {least:.2f}M "
        f"to {most:.2f}M tokens; peak learning rate {config.rate:g}; {len(config.seeds)} seeds. "
        f"Data: `{pictures}` twice as often as `{clips}`. Both ways see the same rows in the same "
        "order.\n\n"
        "Prediction, written before the runs: masked packing answers more questions right, as in "
        "the paper (VQAv2 48.3 to 55.8, SQA 34.8 to 47.7, POPE 62.5 to 75.2).\n\n"
    )


def main(config: Benchmark) -> None:
    """Trains and judges what is not done yet, seed after seed, and writes the table."""
    found = {
        (way, seed): one_run(config, way, seed) for seed in config.seeds for way in reversed(WAYS)
    }
    date = datetime.date.today().isoformat()
    default = Path(__file__).parent / "results" / f"packing-cpu-{date}.md"
    text = heading(config, found) + "\n".join(tables(found)) + "\n"
    (config.file or default).write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
