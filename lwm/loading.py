"""Opens a model, by name or by path, on the devices at hand: to talk to it, or to train it."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh

from lwm import catalog
from lwm.convert.gguf import read_gguf
from lwm.convert.huggingface import (
    SafetensorsFolder,
    is_not_weight,
    read_config,
    read_json,
)
from lwm.convert.names import HUGGING_FACE
from lwm.convert.weights import VisionRows, build_llama, build_stacked
from lwm.data.tokenizer import Tokenizer
from lwm.errors import UserError
from lwm.generate.chat import LanguageModel
from lwm.model.config import Dtype, LlamaConfig, Remat
from lwm.model.llama import Llama
from lwm.sharding import make_mesh
from lwm.tokens import TokenSpace


def load(
    name_or_path: str | Path,
    *,
    mesh: str = "1,1,1,1",
    dtype: Dtype | Literal["int8"] = "float32",
    template: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LanguageModel:
    """Opens a model; one that `lwm models` lists or a hub holds is fetched if need be.

    Args:
        name_or_path: A known name, a Hugging Face folder, a GGUF file or a hub's `org/name`.
        mesh: The devices, such as `1,1,4,1` for tensor parallelism over four.
        dtype: What the weights are stored and computed in; `int8` stores the matrices in eight
            bits and computes in float32.
        template: `lwm` or Jinja source in place of the model's own chat template.
        progress: Told how many tensors of how many are loaded.

    Raises:
        UserError: The model cannot be had, read or put on the mesh.
    """
    opened = open_model_files(name_or_path)
    is_int8 = dtype == "int8"
    devices = make_mesh(mesh)
    llama = build_llama(
        dataclasses.replace(opened.config, dtype="float32" if is_int8 else dtype),
        opened.tensors,
        HUGGING_FACE,
        mesh=devices,
        int8=is_int8,
        ignore=lambda name: is_not_weight(name, opened.config),
        progress=progress,
    )
    return LanguageModel(
        name=str(name_or_path),
        llama=llama,
        tokenizer=opened.tokenizer,
        mesh=devices,
        template=template,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """A model of which all is known but its weights, which are not read yet."""

    config: LlamaConfig
    tensors: Mapping[str, np.ndarray] = dataclasses.field(repr=False)
    """Under Hugging Face's names and in its layout."""
    tokenizer: Tokenizer
    source: Path

    def training_config(
        self,
        *,
        vision: int = 0,
        codes: int = 0,
        dtype: Dtype = "float32",
        remat: Remat = "none",
        mlp_chunk: int | None = None,
        loss_chunk: int = 1024,
    ) -> LlamaConfig:
        """Returns what `read_llama` is to make of this model.

        Args:
            vision: Vision ids, unused ones included; 0 for `codes` and the two that end a frame.
            codes: Entries of the vision codebook; 0 to leave the token space as it is.
            dtype: What activations are computed in.
            remat: See `LlamaConfig`, as for the others.
            mlp_chunk: See there.
            loss_chunk: See there.

        Raises:
            UserError: The model has other vision ids, or a setting is out of range.
        """
        try:
            return dataclasses.replace(
                self.config,
                tokens=self._token_space(vision, codes),
                dtype=dtype,
                remat=remat,
                mlp_chunk=mlp_chunk,
                loss_chunk=loss_chunk,
            )
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


def open_model_files(name_or_path: str | Path) -> Opened:
    """Finds a model as `load` does, and reads all but its weights.

    Raises:
        UserError: The model cannot be had or read.
    """
    path = find(name_or_path)
    values, tensors, tokenizer = _open(path)
    config = read_config(values, source=str(path))
    if tokenizer.vocab_size > config.tokens.text:
        raise UserError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens but the model only "
            f"{config.tokens.text}; they are of different models"
        )
    return Opened(config=config, tensors=tensors, tokenizer=tokenizer, source=path)


def read_llama(
    opened: Opened,
    config: LlamaConfig,
    *,
    mesh: Mesh,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Llama:
    """Reads the weights into a model to be trained: float32, stacked, placed as by `Llama.init`.

    Rows of the token table that the files lack, and columns of the head, are drawn from a normal
    distribution as wide as those that they have. The scores of text ids do not change by them.

    Args:
        opened: Where the weights are.
        config: What to make of them: `opened.training_config(…)`.
        mesh: The devices; what is drawn does not depend on them.
        seed: Of what is drawn.
        progress: Told how many tensors of how many are loaded.

    Raises:
        UserError: The weights cannot be read or put on the mesh.
    """
    there, tensors = opened.config.tokens, opened.tensors
    if config.tokens != there:
        assert there.vision == 0, "see Opened.training_config"
        assert config.tokens.text == there.text
        tensors = VisionRows(tensors, config.tokens.vision, seed=seed)
    return build_stacked(
        config,
        tensors,
        HUGGING_FACE,
        mesh=mesh,
        ignore=lambda name: is_not_weight(name, config),
        progress=progress,
    )


def find(name_or_path: str | Path) -> Path:
    """Returns a model's file or folder, fetched if need be.

    Raises:
        UserError: It cannot be had, or is in a format that cannot be opened yet: that is said
            before gigabytes are fetched.
    """
    entry = catalog.known(str(name_or_path))
    if entry and "params" in entry.files and not Path(name_or_path).exists():
        found = catalog.locate(entry)
        if found is None or not (found / "config.json").is_file():
            raise UserError(
                f"{entry.name} is published in LWM's own format, which cannot be opened yet; "
                "give a Hugging Face folder of the model instead"
            )
    return catalog.resolve(name_or_path)


def _open(path: Path) -> tuple[dict[str, Any], Mapping[str, np.ndarray], Tokenizer]:
    """Returns configuration, tensors and tokenizer, nothing large of which is read yet."""
    if path.suffix == ".gguf":
        gguf = read_gguf(path)
        return gguf.config, gguf.tensors, Tokenizer.from_gguf(gguf.metadata)
    if path.is_file():
        raise UserError(f"{path} is no model: give a GGUF file or a Hugging Face folder")
    if not (path / "config.json").is_file():
        ggufs = sorted(path.glob("*.gguf"))
        if len(ggufs) == 1:
            return _open(ggufs[0])
        if (path / "params").is_file():
            raise UserError(f"{path} is in LWM's own format, which cannot be opened for chat yet")
    values = read_json(path / "config.json")
    return values, SafetensorsFolder(path), Tokenizer.open(path)
