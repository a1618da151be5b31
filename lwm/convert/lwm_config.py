"""Configurations of original LWM models, from tensor shapes, metadata, names and settings."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lwm.convert.huggingface import OWN, is_theta, read_config, read_flag, shown
from lwm.convert.names import LWM_NAMES
from lwm.errors import UserError
from lwm.files import read_json
from lwm.hub.catalog import KnownModel
from lwm.model.config import PRESETS, LlamaConfig, ModelOverrides, Rope, preset
from lwm.tokens import TokenSpace

CODES = 8192
"""Entries of LWM's vision codebook; the ids after them are end-of-frame, end-of-vision, unused."""
VISION = TokenSpace(text=32_000, vision=8448, codes=CODES)
"""The token space of the models that read images and video."""

CONFIG = "llama_config.json"
"""File of the configuration in folders that are written here; the original is given its name."""

_AS_HUGGING_FACE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "rms_norm_eps",
)
"""Keys of LWM's configuration that `config.json` has, too."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LwmSizes:
    """Sizes of a model that its tensors show."""

    text: int
    vision: int
    dim: int
    mlp_dim: int
    num_layers: int

    @classmethod
    def read(cls, shapes: Mapping[str, tuple[int, ...]], path: Path) -> "LwmSizes":
        """Reads sizes from the shapes of unstacked tensors.

        Raises:
            UserError: A tensor that shows a size is missing.
        """

        def shape(name: str) -> tuple[int, int]:
            found = shapes.get(name, ())
            if len(found) != 2:
                raise UserError(f"{path} holds no matrix {name}; it is not all of a model of LWM's")
            return found[0], found[1]

        text, dim = shape(LWM_NAMES["embedding"].name)
        vision_table = LWM_NAMES["vision_embedding"].name
        layer = LWM_NAMES["blocks.*.mlp.w_gate"].name
        numbers = 0
        while layer.replace("*", str(numbers)) in shapes:
            numbers += 1
        return cls(
            text=text,
            vision=shape(vision_table)[0] if vision_table in shapes else 0,
            dim=dim,
            mlp_dim=shape(layer.replace("*", "0"))[1],
            num_layers=numbers,
        )

    @property
    def preset(self) -> str | None:
        """LWM's name for a model of this size; None if there is none."""
        sizes = self.dim, self.mlp_dim, self.num_layers
        for name in PRESETS:
            config = preset(name)
            if (config.dim, config.mlp_dim, config.num_layers) == sizes:
                return name
        return None

    def __str__(self):
        """Returns a description for messages."""
        known = f"LWM's {self.preset}" if self.preset else "a model"
        layers = f"{self.num_layers} layers of {self.dim} and {self.mlp_dim}"
        return f"{known} ({layers}, {self.text} text and {self.vision} vision ids)"


def known_config(entry: KnownModel) -> LlamaConfig | None:
    """Returns the configuration of an original LWM model; None for others."""
    if not any(repo.startswith("LargeWorldModel/") for repo in entry.repos):
        return None
    tokens = VISION if "image" in entry.modality else TokenSpace(text=32_000)
    return preset("7b", tokens=tokens, max_context=entry.context, rope=Rope(theta=entry.theta))


def describe(config: LlamaConfig) -> str:
    """Returns a description of a model for messages."""
    tokens = config.tokens
    sizes = LwmSizes(
        text=tokens.text,
        vision=tokens.vision,
        dim=config.dim,
        mlp_dim=config.mlp_dim,
        num_layers=config.num_layers,
    )
    return str(sizes)


def read_config_of(
    sizes: LwmSizes, path: Path, given: ModelOverrides, known: KnownModel | None
) -> tuple[LlamaConfig, ModelOverrides]:
    """Finds the shape of a file's model, and RoPE's theta and the context as far as known.

    With `given.stretch`, the theta and the context are those before it.

    Args:
        sizes: Sizes from the file.
        path: The file; metadata of LWM's run may be beside it.
        given: Settings from the user, which take precedence.
        known: The entry of a known model.

    Raises:
        UserError: The number of heads is not known, or a configuration cannot be read.
    """
    source, values = "", {}
    if given.config is not None:
        source, values = given.config, _values(given.config)
    elif (file := path.with_name(CONFIG)).is_file():
        source, values = str(file), read_json(file)
    elif (metadata := _metadata_of(path)) is not None:
        source, values = str(metadata), _llama_config(metadata)
    config, vision = (
        _from_values(values, sizes, source) if values else _from_sizes(sizes, path, given.config)
    )
    tokens = token_space(config.tokens.text, vision, path, given.codes)
    config = dataclasses.replace(config, tokens=tokens)
    theta, context = values.get("theta"), values.get("max_sequence_length")
    if not (theta is None or is_theta(theta)):
        raise UserError(f"{source}: theta {shown(theta)} is no number above 1")
    if not (context is None or _is_size(context)):
        raise UserError(f"{source}: max_sequence_length {shown(context)} is no number above 0")
    if known is not None:
        theta, context = theta or known.theta, context or known.context
    theta = given.theta or theta
    theta = None if theta is None else float(theta)
    if given.stretch is None:
        context = given.context or context
    return config, dataclasses.replace(given, theta=theta, context=context, stretch=None)


def _from_sizes(sizes: LwmSizes, path: Path, name: str | None) -> tuple[LlamaConfig, int]:
    """Returns the shape of a model of text, and the number of its vision ids."""
    if name is None and sizes.preset is None:
        raise UserError(
            f"{path} holds {sizes}, and how many heads is not known; give --config json::FILE with "
            "num_attention_heads, here or to `lwm convert`"
        )
    return preset(name or sizes.preset or ""), sizes.vision


def _values(text: str) -> dict[str, Any]:
    """Returns the values of LWM's configuration file; none for the name of a preset."""
    kind, colons, file = text.partition("::")
    if not colons:
        preset(text)
        return {}
    if kind not in ("json", "pickle"):
        raise UserError(f"config {text!r} is neither a preset nor json::FILE or pickle::FILE")
    return read_json(Path(file)) if kind == "json" else _llama_config(Path(file))


def _llama_config(path: Path) -> dict[str, Any]:
    from lwm.formats.pickles import read_pickle

    values = read_pickle(path)
    found = values.get("llama_config") if isinstance(values, dict) else None
    if not isinstance(found, dict):
        raise UserError(f'{path} holds no "llama_config"; is it the metadata of a run of LWM?')
    return found


def _from_values(
    values: Mapping[str, Any], sizes: LwmSizes, source: str
) -> tuple[LlamaConfig, int]:
    """Returns the shape of a model of text, and the number of its vision ids."""
    vision = values.get("vision_vocab_size", sizes.vision)
    if not (type(vision) is int and vision >= 0):
        raise UserError(f"{source}: vision_vocab_size {shown(vision)} is no number of ids")
    tied = read_flag(values, "tie_word_embeddings", source)
    if vision and tied != read_flag(values, "tie_vision_embeddings", source):
        raise UserError(f"{source}: one table tied to its head and one not is not supported")
    dim: Any = values.get("hidden_size")
    heads: Any = values.get("num_attention_heads")
    if _is_size(dim) and _is_size(heads) and dim % heads:
        raise UserError(f"{source}: hidden_size {dim} does not divide by {heads} heads")
    theirs = {key: values[key] for key in _AS_HUGGING_FACE if key in values}
    defaults = {"model_type": "llama", "max_position_embeddings": 1, "rms_norm_eps": 1e-6}
    values = defaults | theirs | {"tie_word_embeddings": tied}
    return read_config(values, source=source), vision


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _metadata_of(path: Path) -> Path | None:
    """Returns the metadata that a run of LWM wrote beside its parameters or its train state."""
    name = re.sub(r"^streaming_(params|train_state)", "metadata", path.name)
    file = path.with_name(f"{name}.pkl")
    return file if name != path.name and file.is_file() else None


def token_space(text: int, vision: int, path: Path, codes: int | None = None) -> TokenSpace:
    """Returns the token space of a model of LWM's with so many ids.

    Args:
        text: Text ids.
        vision: Vision ids, unused ones included.
        path: The file; its VQGAN may be beside it.
        codes: Entries of the codebook; None for those of the VQGAN, or LWM's if they can be.

    Raises:
        UserError: The number of entries is not known, or too large for the vision ids.
    """
    if not vision:
        return TokenSpace(text=text)
    codes = codes or _codes(vision, path)
    if vision < codes + 2:
        raise UserError(f"{path} has {vision} vision ids, too few for {codes} codes and two marks")
    return TokenSpace(text=text, vision=vision, codes=codes)


def _codes(vision: int, path: Path) -> int:
    """Returns the entries of the codebook, by the files beside, or LWM's if they can be."""
    config, vqgan = path.with_name(CONFIG), path.with_name("vqgan")
    own = read_json(config).get(OWN) if config.is_file() else None
    codes = own.get("codes") if isinstance(own, dict) else None
    if type(codes) is int and codes > 0:
        return codes
    if vision != VISION.vision and vqgan.exists():
        from lwm.vqgan.checkpoint import read_vqgan_config

        return read_vqgan_config(vqgan).codes
    # With as many unused ids, it would be another codebook.
    if not CODES + 2 <= vision < 2 * CODES + 2:
        raise UserError(
            f"{path} has {vision} vision ids, not those of LWM's {CODES} codes; give the entries "
            "of its codebook with --codes, or its VQGAN as `vqgan` beside it"
        )
    return CODES
