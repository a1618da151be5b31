"""`lwm convert`: writes any model that opens in a format of others."""

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from lwm.cli.common import print_line
from lwm.errors import UserError
from lwm.model.config import NO_OVERRIDES, ModelOverrides

if TYPE_CHECKING:
    from lwm.convert.open import ModelFiles

Format = Literal["hf", "gguf", "lwm-original"]
Stored = Literal["float32", "bfloat16", "float16", "int8", "int4"]
StoredType = Stored | Literal["q8_0"]

_SHARD_GB = 2.0


def convert(
    source: Annotated[str, tyro.conf.Positional],
    target: Annotated[Path, tyro.conf.Positional],
    /,
    *,
    to: Format = "hf",
    dtype: StoredType | None = None,
    shard_gb: float | None = None,
    overwrite: bool = False,
    reports: tuple[Path, ...] = (),
    lora: Path | None = None,
    given: tyro.conf.OmitArgPrefixes[ModelOverrides] = NO_OVERRIDES,
) -> None:
    """Writes a model in a format of others: safetensors, GGUF, or that of the original LWM.

    Args:
        source: A name from `lwm models`, LWM's parameters (their folder, their file, or
            params::FILE), a Hugging Face folder, a GGUF file, or a hub's org/name.
        target: The folder to write; for gguf, the file. A folder of safetensors that was
            interrupted is continued.
        to: The format: hf for transformers, vLLM and others, with tokenizer, VQGAN and model card;
            gguf for llama.cpp and others, with the tokenizer; lwm-original for LWM's own code.
        dtype: Type of the stored weights; by default, their own. float16, int8 (Q8_0) and int4
            (Q4_0) are for gguf; q8_0 is the former name of int8.
        shard_gb: For hf, the largest size of a file in GB (10⁹ bytes), by default 2; so much is in
            memory at a time.
        overwrite: Replace another model in the folder, and the README beside it, or a file.
        reports: Reports of lwm eval on the model, or their folders, for the model card; those in
            the folder of its run are found.
        lora: Folder of a LoRA adapter of the model, which is merged into the weights. The folder
            of an adapter may also be the source, if it names its model.
        given: Values that the files lack.
    """
    dtype = "int8" if dtype == "q8_0" else dtype
    _require_sense(target, to, dtype, shard_gb)
    if reports and to == "gguf":
        raise UserError("--reports is for a model card, which a GGUF file has not; leave it out")
    from lwm.convert.lora import read_adapter
    from lwm.convert.open import open_model_files, with_adapter

    begun = time.monotonic()
    opened = open_model_files(source, given=given)
    if lora is not None:
        opened = with_adapter(opened, read_adapter(lora))
    notes = _write(
        opened,
        target,
        to,
        dtype,
        reports,
        name=source,
        overwrite=overwrite,
        max_shard_bytes=int((shard_gb or _SHARD_GB) * 1e9),
    )
    print_line(target)
    files = [file for file in target.rglob("*") if file.is_file()] if target.is_dir() else [target]
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    held = "weights in " + (dtype or "their own types")
    notes.append(f"{megabytes:,.1f} MB, {held}, written in {time.monotonic() - begun:,.0f} s")
    notes.append(f"Talk to it: lwm chat {shlex.quote(str(target))}")
    for note in notes:
        print_line(note, error=True)


def _write(
    opened: "ModelFiles",
    target: Path,
    to: Format,
    dtype: Stored | None,
    reports: tuple[Path, ...],
    *,
    name: str,
    overwrite: bool,
    max_shard_bytes: int,
) -> list[str]:
    """Writes the files with a bar, and returns what is to be said of them."""
    from lwm.console import waiting
    from lwm.convert.convert import convert_model
    from lwm.convert.gguf import write_gguf
    from lwm.convert.lwm_original import write_lwm_original

    notes: list[str] = []
    with waiting(f"converting {name}", "MB") as report:

        def progress(done: int, total: int) -> None:
            report(done // 10**6, total // 10**6)

        match to, dtype:
            case "gguf", _:
                notes += write_gguf(
                    opened, target, dtype=dtype, overwrite=overwrite, progress=progress
                )
            case "lwm-original", None | "float32" | "bfloat16":
                write_lwm_original(
                    opened,
                    target,
                    dtype=dtype,
                    overwrite=overwrite,
                    reports=reports,
                    progress=progress,
                )
            case "hf", None | "float32" | "bfloat16":
                convert_model(
                    opened,
                    target,
                    dtype=dtype,
                    max_shard_bytes=max_shard_bytes,
                    overwrite=overwrite,
                    reports=reports,
                    progress=progress,
                )
    return notes


def _require_sense(target: Path, to: Format, dtype: Stored | None, shard_gb: float | None) -> None:
    """Refuses options that do not belong to the format.

    Raises:
        UserError: The option.
    """
    if to != "gguf" and dtype in ("float16", "int8", "int4"):
        raise UserError(f"--dtype {dtype} is for --to gguf; for {to} give float32 or bfloat16")
    if to != "gguf" and target.suffix.lower() == ".gguf":
        raise UserError(f"{target} is named like a GGUF file; give --to gguf, or name a folder")
    if shard_gb is None:
        return
    if to != "hf":
        raise UserError(f"--shard-gb is for --to hf; {to} has all weights in one file")
    if not 0 < shard_gb <= 1000:
        raise UserError(f"--shard-gb {shard_gb:g} must be above 0 and at most 1000")
