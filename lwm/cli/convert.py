"""`lwm convert`: writes any model that opens as a Hugging Face folder."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from lwm.cli.common import print_line
from lwm.errors import UserError
from lwm.model.config import NO_OVERRIDES, ModelOverrides


def convert(
    source: Annotated[str, tyro.conf.Positional],
    folder: Annotated[Path, tyro.conf.Positional],
    /,
    *,
    to: Literal["lwm"] = "lwm",
    dtype: Literal["float32", "bfloat16"] | None = None,
    shard_gb: float = 2.0,
    overwrite: bool = False,
    given: tyro.conf.OmitArgPrefixes[ModelOverrides] = NO_OVERRIDES,
) -> None:
    """Writes a model as a folder of safetensors, with tokenizer, VQGAN and model card.

    Args:
        source: A name from `lwm models`, LWM's parameters (their folder, their file, or
            params::FILE), a Hugging Face folder, a GGUF file, or a hub's org/name.
        folder: The folder to write; run again after an interruption to continue.
        to: The format; lwm is a Hugging Face folder whose config names the vision ids.
        dtype: Type of the stored weights; by default, their own.
        shard_gb: The largest size of a file in GB (10⁹ bytes); so much is in memory at a time.
        overwrite: Replace another model in the folder, and the README beside it.
        given: Values that the files lack.
    """
    if not 0 < shard_gb <= 1000:
        raise UserError(f"--shard-gb {shard_gb:g} must be above 0 and at most 1000")
    from lwm.console import waiting
    from lwm.convert.convert import convert_model
    from lwm.convert.open import open_model_files

    assert to == "lwm"
    opened = open_model_files(source, given=given)
    with waiting(f"converting {source}", "MB") as report:
        convert_model(
            opened,
            folder,
            dtype=dtype,
            max_shard_bytes=int(shard_gb * 1e9),
            overwrite=overwrite,
            progress=lambda done, total: report(done // 10**6, total // 10**6),
        )
    print_line(folder)
