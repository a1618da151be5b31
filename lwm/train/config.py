"""Settings of a training run."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lwm.data.format import ExampleFormat
from lwm.data.pack import PackingConfig
from lwm.errors import UserError, several
from lwm.model.config import Compute, LlamaConfig, LoRA, ModelOverrides
from lwm.ops.layout import Layout
from lwm.renamed import takes_old_settings
from lwm.sampling_params import LWM_SAMPLING, VisionSampling
from lwm.tokens import TokenSpace


@takes_old_settings("training.optimizer.schedule")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate schedule: linear warm-up, then one of three shapes."""

    start: float = 0.0
    """The first learning rate, from which the warm-up rises; at 0 the first update changes
    nothing, as in LWM."""
    peak: float = 3e-4
    warmup: int = 100
    """Steps until the peak."""
    shape: Literal["constant", "cosine", "wsd"] = "cosine"
    """After the warm-up: constant; half a cosine down to `end`; or `wsd` (warmup-stable-decay):
    constant, then linear to `end` over the last `decay` steps."""
    end: float = 0.0
    """The last learning rate."""
    decay: int = 0
    """Steps of the linear decay of `wsd`."""

    def __post_init__(self):
        """Refuses values that the shape would ignore, and a first rate that is out of range."""
        if self.start > self.peak or self.start < 0:
            raise UserError(
                f"the first learning rate, start {self.start}, must be from 0 to the peak, "
                f"{self.peak}; change both"
            )
        if self.warmup < 0 or self.decay < 0:
            raise UserError(
                f"a warm-up of {self.warmup} and a decay of {self.decay} steps: both must be 0 or "
                "above"
            )
        if self.decay and self.shape != "wsd":
            raise UserError(f"decay {self.decay} has no effect with shape {self.shape}; use wsd")
        if self.end and self.shape == "wsd" and not self.decay:
            raise UserError(f"end {self.end} has no effect with shape wsd without decay; give both")
        if self.end and self.shape == "constant":
            raise UserError(f"end {self.end} has no effect with shape constant; use cosine or wsd")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019); defaults are LWM's."""

    schedule: Schedule = Schedule()
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decays: Literal["matrices", "all"] = "matrices"
    """Weights that decay: all but norms and biases, or, as in LWM, all."""
    clip: float = 1.0
    """Largest global norm of the gradients; larger ones are scaled down to it; inf for no limit."""
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that the first moment is stored in."""
    second_moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that the second moment is stored in. In bfloat16 changes below 1/256 are lost, so b2
    is then at most 0.98."""

    def __post_init__(self):
        """Refuses a second moment that would never change."""
        if self.second_moment_dtype == "bfloat16" and self.b2 > 0.98:
            raise UserError(
                f"a second moment in bfloat16 never changes with b2 {self.b2}; use 0.98"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """Weights of the parts of the loss."""

    text: float = 0.5
    """Weight of the text loss in a model with vision."""
    vision: float = 0.5
    """Weight of the vision loss."""
    z: float = 0.0
    """Weight of z-loss: the square of the log-sum-exp of the logits (PaLM, section 5)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keep:
    """Checkpoints: interval and retention."""

    every: int = 500
    """Steps between checkpoints."""
    last: int = 3
    """Number of the newest that are kept."""
    milestones: int = 0
    """Steps between checkpoints that are kept for ever; 0 for none."""

    def __post_init__(self):
        """Refuses values that keep no checkpoint."""
        if self.every < 1 or self.last < 1 or self.milestones < 0:
            raise UserError(
                f"checkpoints every {self.every} steps, the last {self.last} kept and milestones "
                f"each {self.milestones}: the first two are at least 1, the third at least 0"
            )

    def due(self, step: int) -> bool:
        """Returns whether a checkpoint is due after `step` updates."""
        return step % self.every == 0 or bool(self.milestones and step % self.milestones == 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Training loop of any model: steps, optimizer, checkpoints, validation."""

    steps: int
    accumulate: int = 1
    """Batches whose gradients are summed for one update."""
    optimizer: AdamW = AdamW()
    keep: Keep = Keep()
    validate_every: int = 500
    """Steps between validations on the held-out sets; 0: only at the end."""

    def __post_init__(self):
        """Refuses a run without steps."""
        if self.steps < 1 or self.accumulate < 1:
            raise UserError(
                f"{self.steps} steps of {self.accumulate} batches: both must be at least 1"
            )
        if self.validate_every < 0:
            raise UserError(f"validation every {self.validate_every} steps: 0 is at the end only")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training(LoopConfig):
    """Training of a language model, apart from model and data."""

    loss: Loss = Loss()
    layout: Layout = "zigzag"
    """Layout of rows over `sp`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSet:
    """Training or held-out examples."""

    files: Sequence[str]
    """JSON lines, Parquet, ArrayRecord or text files, folders of them, patterns, folders of
    tokenized shards; `books:train` and `books:held-out` are fetched, `shipped:moby-dick/*` comes
    with the package, `world:train,count=1000` is rendered."""
    name: str = "data"
    """Name in logs."""
    weight: float = 1.0
    """Sampling weight relative to other sets."""
    group: str | None = None
    """Sets of different groups never share a row."""
    format: ExampleFormat = ExampleFormat()
    least_tokens: int | None = None
    """Shorter examples are left out, such as books below 10,000 tokens at a context of 32K."""
    most_tokens: int | None = None
    """Longer examples are left out, before rows split or drop any."""

    def __post_init__(self):
        """Takes a single path as one file.

        Raises:
            UserError: No number of tokens is within the bounds.
        """
        object.__setattr__(self, "files", several(self.files))
        least, most = self.least_tokens or 0, self.most_tokens
        if least < 0 or (most is not None and most < max(1, least)):
            raise UserError(
                f"data set {self.name}: no example has at least {least} and at most {most} "
                "tokens; correct least_tokens or most_tokens"
            )


def named_after(files: Sequence[str]) -> str:
    """Returns the name of a set of files in logs: that of the first, and how many more there are.

    Of a generated set it is the source, such as `world:train`.
    """
    first, *others = several(files)
    source = first.partition(",")[0]
    name = source if ":" in source else Path(first).stem or first
    return f"{name} + {len(others)}" if others else name


def require_names(held_out: Sequence[Any]) -> None:
    """Refuses held-out sets that share a name.

    Raises:
        UserError: The name.
    """
    names = [one.name for one in held_out]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two held-out sets are called {twice[0]!r}; give each a name of its own")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Data of a language model: sets, tokenizer and batches."""

    sets: tuple[DataSet, ...]
    held_out: tuple[DataSet, ...] = ()
    """Sets for validation only."""
    held_out_rows: int = 64
    """Largest number of rows of each held-out set."""
    tokenizer: str | None = None
    """Folder or file of a tokenizer; by default that of the model in `init`."""
    vocabulary: int = 0
    """Number of ids of a tokenizer that is trained on the sets first, if none is given."""
    codes: int = 0
    """Entries of the vision codebook; 0: text only, or as many as `vqgan` has."""
    vqgan: str | None = None
    """VQGAN of the codes, saved with the model: a folder, LWM's file, or `vqgan-64`."""
    packing: PackingConfig
    rows: int
    """Rows of a batch over all devices."""
    streams: int = 8
    """Logical streams that rows are packed from; they make rows independent of the mesh. 0: as many
    as rows, so that each process reads its own."""
    shuffle: bool = True
    max_bad_share: float = 0.01
    """Share of bad examples above which the run ends."""
    threads: int = 0
    """Threads that read ahead for each stream, for slow files; 0: one thread for all."""

    def __post_init__(self):
        """Refuses sizes out of range."""
        if not self.sets:
            raise UserError("there is no data set to train on; give its files")
        require_names(self.held_out)
        if self.held_out_rows < 1 or self.rows < 1:
            raise UserError(
                f"{self.rows} rows a batch and {self.held_out_rows} held-out rows: "
                "both must be at least 1"
            )
        if min(self.vocabulary, self.codes, self.threads, self.streams) < 0:
            raise UserError("vocabulary, codes, threads and streams must be 0 or above")


@takes_old_settings("")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(ModelOverrides):
    """All settings of a training run, changes to the model that it starts from included."""

    model: LlamaConfig | None = None
    """Shape of the model; its token space comes from the tokenizer. None with `init`, which brings
    its own."""
    compute: Compute = Compute()
    init: str | None = None
    """Model to start from: a known name, a folder, a GGUF file, a run (`runs/a`, `runs/a@300`) or a
    hub's org/name."""
    data: Data
    training: Training
    lora: LoRA = LoRA()
    """Adapters that are trained in place of the weights of `init`, if their rank is above 0."""
    mesh: str = "1,1,1,1"
    """Devices: dp,fsdp,tp,sp such as 1,8,1,4 (one -1 is inferred), or sp=8."""
    seed: int = 0
    """Seed of the first weights and of the order of the data."""
    sampling: VisionSampling = LWM_SAMPLING
    """Default sampling of images and videos by the trained model; saved with it."""

    def shape_from(self, model: LlamaConfig) -> LlamaConfig:
        """Returns the shape that the run makes of a model that it starts from."""
        tokens = model.tokens
        if self.data.codes and not tokens.codes:
            tokens = TokenSpace.of(tokens.text, self.data.codes)
        changed = self.applied(dataclasses.replace(model, tokens=tokens))
        length = self.data.packing.length
        return dataclasses.replace(changed, max_context=max(length, changed.max_context))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of a curriculum."""

    name: str
    """Name of its folder, after its number."""
    run: Run
    """Settings; all but the first start from the weights of the stage before."""
    evaluations: tuple[str, ...] = ()
    """Evaluations of the model after the stage, by name; they do not change the training."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curriculum:
    """Stages of training, one after another: each may change context, data, mesh and schedule."""

    stages: tuple[Stage, ...]

    def __post_init__(self):
        """Refuses stages that cannot follow each other.

        Raises:
            UserError: Names the stage.
        """
        names = [stage.name for stage in self.stages]
        if not names:
            raise UserError("a curriculum needs at least one stage")
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"two stages are called {twice[0]!r}; give each a name of its own")
        for name in names:
            if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name):
                raise UserError(
                    f"stage {name!r} would name a folder; use lower-case letters, digits, . and -"
                )
        for stage in self.stages[1:]:
            if stage.run.init is not None or stage.run.model is not None:
                raise UserError(
                    f"stage {stage.name} starts from the stage before; leave out its model and init"
                )
