"""Writes a model of random weights in the shape of one of LWM's sizes, to measure memory and speed.

    python tools/random_model.py 7b random-7b-int4.gguf --dtype int4

The file has the tokenizer of `tiny-vision`, and answers nonsense.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from lwm.convert.gguf import write_gguf
from lwm.convert.lwm_config import preset
from lwm.convert.names import HUGGING_FACE
from lwm.convert.open import open_model_files
from lwm.convert.weights import layout_of, sizes_in, weight_paths
from lwm.errors import UserError
from lwm.formats.lazy import LazyArrays
from lwm.tokens import TokenSpace

_REPEATED = 1 << 22
"""Random numbers, which each weight repeats: more would take longer and show nothing else."""


def write(
    size: str,
    file: Path,
    /,
    *,
    dtype: Literal["float32", "bfloat16", "int8", "int4"] = "int4",
    ids: int = 32_000,
    overwrite: bool = False,
) -> None:
    """Writes the file.

    Args:
        size: One of LWM's sizes, such as 7b.
        file: The GGUF file.
        dtype: Type of matrices.
        ids: Rows of the token table.
        overwrite: Replaces a file.
    """
    small = open_model_files("tiny-vision")
    config = dataclasses.replace(preset(size), tokens=TokenSpace(text=ids), tie_embeddings=False)
    sizes = sizes_in(HUGGING_FACE, config)
    numbers = np.random.default_rng(0).normal(0, config.init_std, _REPEATED).astype(np.float32)
    layouts = (layout_of(HUGGING_FACE, path) for path in weight_paths(config))
    shapes = {layout.name: layout.shape(sizes) for layout in layouts}
    tensors = LazyArrays(shapes, lambda name: np.resize(numbers, shapes[name]))
    opened = dataclasses.replace(small, config=config, tensors=tensors, known=None, vqgan=None)
    write_gguf(opened, file, dtype=dtype, overwrite=overwrite)


if __name__ == "__main__":
    try:
        tyro.cli(write)
    except UserError as error:
        sys.exit(f"random_model: {error}")
