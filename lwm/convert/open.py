"""Finds and opens the files of a model; weights are read later."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from jax.sharding import Mesh

from lwm.convert.beside import sampling_in, sampling_of, vqgan_in
from lwm.convert.checkpoint import TABLE as CHECKPOINT_TABLE, open_language_model
from lwm.convert.huggingface import (
    is_not_weight,
    read_config,
)
from lwm.convert.lora import AdapterFiles, adapter_of, base_of, is_adapter, merged, read_adapter
from lwm.convert.lwm import TABLE, open_lwm, read_token_space, split_prefix
from lwm.convert.names import HUGGING_FACE, TensorLayout
from lwm.convert.vocabulary import require_tokens
from lwm.convert.weights import build_llama, layout_of, with_vision_rows
from lwm.errors import UserError
from lwm.files import ASSETS, read_json
from lwm.fingerprint import model_files
from lwm.formats.gguf import PackedArrays, read_gguf
from lwm.formats.gguf_file import find_gguf, first_part, is_gguf
from lwm.formats.run_folder import TOKENIZER, base_of_stage, find_in_run, is_checkpoint
from lwm.formats.safetensor_files import holds_weights, open_safetensors
from lwm.hub import catalog
from lwm.model.config import (
    NO_OVERRIDES,
    Compute,
    Held,
    LlamaConfig,
    ModelOverrides,
    Storage,
)
from lwm.model.llama import Llama
from lwm.progress import Progress
from lwm.sampling_params import LWM_SAMPLING, VisionSampling
from lwm.tokenizer.tokenizer import Tokenizer, with_format
from lwm.tokens import TokenSpace
from lwm.vqgan.checkpoint import locate_vqgan, read_vqgan_config

HELD_AS: dict[str, Held] = {
    "F32": "float32",
    "F16": "float32",
    "BF16": "bfloat16",
    "Q8_0": "int8",
    "Q4_0": "int4",
    "Q4_1": "q4_1",
    "Q5_0": "q5_0",
    "Q5_1": "q5_1",
}
"""GGUF's types; others are rounded to eight bits."""

_LWM_FILES = ("params", "streaming_params", "streaming_train_state")
"""Files of parameters in folders of LWM: as released, and as its training writes them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """An opened model: everything but its weights, which are not read yet."""

    config: LlamaConfig
    tensors: Mapping[str, np.ndarray] = dataclasses.field(repr=False)
    table: dict[str, TensorLayout] = dataclasses.field(repr=False)
    """Names and layouts of the tensors, by path of the weight."""
    tokenizer: Tokenizer
    source: Path
    vqgan: Path | None = None
    """The file or folder of the VQGAN beside the model; None if there is none."""
    sampling: VisionSampling = LWM_SAMPLING
    """Default sampling of images and video."""
    known: catalog.KnownModel | None = None
    """The entry of a known model."""
    adapter: Path | None = None
    """The folder of an adapter that is added to the tensors; `source` is then its base."""

    @property
    def place(self) -> Path:
        """The file or folder whose card and run describe the model."""
        return self.adapter or self.source

    @property
    def files(self) -> list[Path]:
        """The files that decide what the model computes."""
        return model_files(self.source) + (
            [] if self.adapter is None else model_files(self.adapter)
        )

    def held_as(self, dtype: Storage | Literal["stored"]) -> Held:
        """Returns the type of the matrices, loaded so."""
        if dtype != "stored":
            return dtype
        name = layout_of(self.table, "blocks.0.mlp.w_gate").name
        if isinstance(self.tensors, PackedArrays):
            return HELD_AS.get(self.tensors.kinds[name], "int8")
        return "bfloat16" if str(self.tensors[name].dtype) == "bfloat16" else "float32"

    @property
    def tokens_per_frame(self) -> int | None:
        """Codes of a frame of the VQGAN beside the model; None if there is none, or LWM's own."""
        if self.table is TABLE or self.vqgan is None:
            return None
        return read_vqgan_config(self.vqgan).tokens_per_frame

    @property
    def written_tokenizer(self) -> Tokenizer:
        """The tokenizer for files of this model: with LWM's chat format, if it was trained on it.

        Files of LWM do not say so, and without a template `lwm chat` takes that format anyway.
        """
        chats = self.known is not None and "Chat" in self.known.name
        return with_format(self.tokenizer, chats=chats or self.config.tokens.vision > 0)

    def training_config(self, *, vision: int = 0, codes: int = 0) -> LlamaConfig:
        """Returns what `read_llama` is to make of this model.

        Args:
            vision: Vision ids, unused ones included; 0 for `codes` and the two that end a frame.
            codes: Entries of the vision codebook; 0 to leave the token space as it is.

        Raises:
            UserError: The model has other vision ids.
        """
        try:
            return dataclasses.replace(self.config, tokens=self._token_space(vision, codes))
        except ValueError as error:
            raise UserError(f"{self.source} cannot be trained so: {error}") from None

    def _token_space(self, vision: int, codes: int) -> TokenSpace:
        there = self.config.tokens
        if not vision and not codes:
            return there
        if codes < 1 or vision < 0:
            raise UserError(
                f"{vision} vision ids for {codes} codes: codes is at least 1 where there are vision"
                " ids, and vision at least codes + 2, or 0 for just that"
            )
        if not there.vision:
            least = TokenSpace.of(there.text, codes)
            return dataclasses.replace(least, vision=vision) if vision else least
        if (vision or there.vision, codes) != (there.vision, there.codes):
            asked = f"{vision} for {codes}" if vision else f"those for {codes}"
            raise UserError(
                f"{self.source} has {there.vision} vision ids for {there.codes} codes, but {asked} "
                "are asked for; leave both out to train it as it is"
            )
        return there


def open_model_files(
    name_or_path: str | Path, *, given: ModelOverrides = NO_OVERRIDES
) -> ModelFiles:
    """Finds a model as `load` does, and reads all but its weights.

    Raises:
        UserError: The model cannot be fetched or read.
    """
    path = find_files(name_or_path)
    if is_adapter(path):
        return _open_adapter(path, given)
    checkpoint = is_checkpoint(path)
    params = None if checkpoint else _lwm_file(path, name_or_path)
    known = _entry(name_or_path, params or path)
    if params is not None:
        opened = _open_lwm(params, given, known)
    elif given.config is not None:
        raise UserError(f"{path} has a configuration of its own; leave out --config")
    elif given.codes is not None:
        raise UserError(f"{path} has a token space of its own; leave out --codes")
    else:
        opened = _open_checkpoint(path) if checkpoint else _open(path)
        opened = dataclasses.replace(opened, config=given.applied(opened.config))
    _require_vocabulary(opened)
    return dataclasses.replace(opened, known=known, vqgan=_vqgan_of(opened, known))


def _vqgan_of(opened: ModelFiles, known: catalog.KnownModel | None) -> Path | None:
    if opened.vqgan is None and known is not None and known.vqgan is not None:
        return ASSETS / known.vqgan  # and no folder of this name
    return opened.vqgan


def open_tokens(name_or_path: str | Path) -> tuple[Tokenizer, TokenSpace]:
    """Returns a model's tokenizer and token space; a folder without weights is enough.

    Raises:
        UserError: The model cannot be found or read.
    """
    path = find_files(name_or_path)
    if is_adapter(path):
        return open_tokens(base_of(path))
    checkpoint = is_checkpoint(path)
    params = None if checkpoint else _lwm_file(path, name_or_path)
    if params is not None:
        tokenizer, tokens = Tokenizer.open(params.parent), read_token_space(params)
        require_tokens(params, tokenizer, tokens, is_lwm=True)
        return tokenizer, tokens
    opened = _open_checkpoint(path) if checkpoint else _open(path, weights=False)
    _require_vocabulary(opened)
    return opened.tokenizer, opened.config.tokens


def frame_size(name_or_path: str | Path) -> int | None:
    """Returns the codes of a frame of the VQGAN beside a model; None if there is none.

    Raises:
        UserError: The model cannot be found or read.
    """
    path = find_files(name_or_path)
    if is_adapter(path):
        return frame_size(base_of(path))
    if _lwm_file(path, name_or_path) is not None:
        return None  # as LWM's own
    opened = _open_checkpoint(path) if is_checkpoint(path) else _open(path, weights=False)
    vqgan = _vqgan_of(opened, _entry(name_or_path, path))
    return dataclasses.replace(opened, vqgan=vqgan).tokens_per_frame


def open_tokenizer(name_or_path: str | Path) -> Tokenizer:
    """Returns the tokenizer of a model, of which nothing else is needed.

    Args:
        name_or_path: A name as for `load`, or a folder or file of a tokenizer. Of a model on the
            hub, only the tokenizer is fetched.

    Raises:
        UserError: There is none, or it cannot be fetched or read.
    """
    prefixed = split_prefix(str(name_or_path))
    if prefixed is not None:
        path = find_files(name_or_path)
    else:
        path = find_in_run(name_or_path) or catalog.resolve_tokenizer(name_or_path)
    if is_checkpoint(path):
        return Tokenizer.open(path.parents[1] / TOKENIZER)
    is_lwm = prefixed is not None or (path.name in _LWM_FILES and path.is_file())
    return Tokenizer.open(path.parent if is_lwm else path)


def _open_adapter(folder: Path, given: ModelOverrides) -> ModelFiles:
    """Opens the base of an adapter, with the adapter added to its tensors."""
    base = open_model_files(base_of(folder), given=given)
    opened = with_adapter(base, read_adapter(folder))
    if any((folder / f"tokenizer.{end}").is_file() for end in ("json", "model")):
        # Its chat template may be the one that was trained.
        return dataclasses.replace(opened, tokenizer=Tokenizer.open(folder))
    return opened


def with_adapter(base: ModelFiles, adapter: AdapterFiles) -> ModelFiles:
    """Returns a model with an adapter added to its tensors.

    Raises:
        UserError: The adapter is of another model.
    """
    tensors = merged(base.tensors, base.table, base.config, adapter)
    return dataclasses.replace(base, tensors=tensors, adapter=adapter.folder, known=None)


def _open_lwm(params: Path, given: ModelOverrides, known: catalog.KnownModel | None) -> ModelFiles:
    config, tensors = open_lwm(params, given=given, known=known)
    vqgan = params.with_name("vqgan")
    return ModelFiles(
        config=config,
        tensors=tensors,
        table=TABLE,
        tokenizer=Tokenizer.open(params.parent),
        source=params,
        vqgan=vqgan if config.tokens.vision and vqgan.exists() else None,
        sampling=sampling_of(params.parent),
    )


def _open_checkpoint(place: Path) -> ModelFiles:
    config, tensors, settings = open_language_model(place)
    if settings.get("lora", {}).get("rank"):
        adapter = adapter_of(tensors, settings["lora"], config, place)
        base = open_model_files(base_of_stage(place.parents[1], settings["init"]))
        return with_adapter(dataclasses.replace(base, config=config), adapter)
    vqgan = settings["data"].get("vqgan")
    return ModelFiles(
        config=config,
        tensors=tensors,
        table=CHECKPOINT_TABLE,
        tokenizer=Tokenizer.open(place.parents[1] / TOKENIZER),
        source=place,
        vqgan=None if vqgan is None else locate_vqgan(vqgan),
        sampling=VisionSampling.of(settings["sampling"]),
    )


def _lwm_file(path: Path, name: str | Path) -> Path | None:
    """Returns the file of LWM's parameters; None for other models."""
    if path.is_dir():
        files = [path / name for name in _LWM_FILES if (path / name).is_file()]
        is_other = (path / "config.json").is_file() and holds_weights(path)
        return files[0] if files and not is_other else None
    if not path.is_file():
        raise UserError(f"{path} is neither a file nor a folder; give a model's")
    if split_prefix(str(name)) is None and (path.suffix == ".gguf" or is_gguf(path)):
        return None
    return path


def _entry(name: str | Path, path: Path) -> catalog.KnownModel | None:
    """Returns the known model of this name, or of the name of its folder; None if unknown."""
    folder = path.absolute().parent
    # The hub's cache holds revisions under `models--OWNER--NAME`.
    cached = [part.rpartition("--")[2] for part in folder.parts if part.startswith("models--")]
    names = [str(name), path.name, folder.name, *cached]
    return next((entry for each in names if (entry := catalog.known(each))), None)


def _require_vocabulary(opened: ModelFiles) -> None:
    tokenizer, tokens = opened.tokenizer, opened.config.tokens
    require_tokens(opened.source, tokenizer, tokens, is_lwm=opened.table is TABLE)


def read_llama(
    opened: ModelFiles,
    config: LlamaConfig,
    *,
    compute: Compute = Compute(),
    mesh: Mesh,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Llama:
    """Reads the weights into a model to be trained: float32, stacked, placed as by `Llama.init`.

    Rows of the token table that the files lack, and columns of the head, are sampled from a normal
    distribution with the standard deviation of the others. Logits of text ids do not change.

    Args:
        opened: The files with the weights.
        config: The model to make: `opened.training_config(…)`.
        compute: How the model is computed.
        mesh: The devices; samples do not depend on them.
        seed: Seed of the samples.
        progress: Called with the number of tensors read and their total.

    Raises:
        UserError: The weights cannot be read or put on the mesh.
    """
    there, tensors = opened.config.tokens, opened.tensors
    if config.tokens != there:
        assert there.vision == 0, "see ModelFiles.training_config"
        assert config.tokens.text == there.text
        tensors = with_vision_rows(tensors, opened.table, config.tokens.vision, seed=seed)
    return build_llama(
        config,
        tensors,
        opened.table,
        compute=compute,
        mesh=mesh,
        stacked=True,
        ignore=lambda name: is_not_weight(name, config),
        progress=progress,
    )


def find_files(name_or_path: str | Path) -> Path:
    """Returns the file or folder of a model, fetched if needed.

    Raises:
        UserError: It does not exist or cannot be fetched.
    """
    prefixed = split_prefix(str(name_or_path))
    if prefixed is None and (found := find_in_run(name_or_path)):
        return found
    if prefixed is None:
        return catalog.resolve(name_or_path)
    path = Path(prefixed[1]).expanduser()
    if not os.path.isfile(path):
        raise UserError(f"{path} is no file; give that of LWM's parameters after {prefixed[0]}::")
    return path


def _open(path: Path, *, weights: bool = True) -> ModelFiles:
    """Opens a Hugging Face folder or a GGUF file; weights are read later, if at all."""
    has_config = (path / "config.json").is_file()
    if path.is_dir() and not (has_config and holds_weights(path)):
        if (gguf := find_gguf(path)) is not None:
            path = gguf
        elif not has_config:
            raise UserError(
                f"{path} holds no model: neither config.json nor params nor a GGUF file is there"
            )
    if path.is_file():
        path = first_part(path)
        gguf = read_gguf(path)
        tokenizer = Tokenizer.from_gguf(gguf.metadata, str(path))
        values, tensors, vqgan = gguf.config, gguf.tensors, None
        sampling = sampling_in(gguf.metadata, path)
    else:
        values, tensors = read_json(path / "config.json"), {}
        if weights:
            tensors = open_safetensors(path, named=values.get("transformers_weights"))
        tokenizer = Tokenizer.open(path)
        vqgan = vqgan_in(path)
        sampling = sampling_of(path)
    return ModelFiles(
        sampling=sampling,
        config=read_config(values, source=str(path)),
        tensors=tensors,
        table=HUGGING_FACE,
        tokenizer=tokenizer,
        source=path,
        vqgan=vqgan,
    )
