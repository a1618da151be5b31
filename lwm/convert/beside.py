"""Files beside the weights of a model: default sampling, and the VQGAN of its images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lwm.convert.huggingface import OWN
from lwm.errors import UserError
from lwm.files import parse_json, read_json, reading
from lwm.sampling_params import LWM_SAMPLING, VisionSampling
from lwm.vqgan.config import CONFIG as VQGAN_CONFIG
from lwm.vqgan.vqmodel import CONFIG as VQMODEL_CONFIG, FOLDER as VQMODEL


def sampling_of(path: Path) -> VisionSampling:
    """Returns the default sampling of images and video in a model folder."""
    file = path / "generation_config.json"
    return _named(file, read_json(file).get(OWN)) if file.is_file() else LWM_SAMPLING


def sampling_in(metadata: Mapping[str, Any], path: Path) -> VisionSampling:
    """Returns the default sampling of images and video in a GGUF file."""
    text = metadata.get(f"{OWN}.sampling")
    if text is None:
        return LWM_SAMPLING
    with reading(path):
        values = parse_json(text)
    return _named(path, values)


def _named(file: Path, values: Any) -> VisionSampling:
    try:
        return VisionSampling.of(values)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def vqgan_in(folder: Path) -> Path | None:
    """Returns the folder of the VQGAN in a model's folder; None if there is none."""
    if (folder / VQGAN_CONFIG).is_file():
        return folder
    return folder / VQMODEL if (folder / VQMODEL / VQMODEL_CONFIG).is_file() else None
