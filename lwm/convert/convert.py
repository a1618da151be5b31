"""Converts a model of any format to a folder, one file of weights at a time."""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lwm.convert.card import card, is_written
from lwm.convert.card_facts import facts_of, lineage_of, run_of
from lwm.convert.export import ORIGIN, write_model, write_vqgan
from lwm.convert.folder import require_ours
from lwm.convert.open import ModelFiles
from lwm.convert.source import open_weights, require_other_folder
from lwm.errors import UserError
from lwm.files import edges_of, read_json, reading
from lwm.formats.run_folder import MODEL
from lwm.progress import Progress
from lwm.vqgan.checkpoint import read_vqgan, require_codes

SHARD_BYTES = 2_000_000_000
_LEGAL = ("LICENSE*", "NOTICE*", "USE_POLICY*")
_LLAMA2 = """Llama 2 is licensed under the LLAMA 2 Community License,
Copyright (c) Meta Platforms, Inc. All Rights Reserved.

The weights in this folder are derived from Llama 2. The text of the license and the acceptable use
policy that is part of it are published by Meta at https://ai.meta.com/llama/license/ and
https://ai.meta.com/llama/use-policy/.
"""


def convert_model(
    opened: ModelFiles,
    folder: Path,
    *,
    dtype: Literal["float32", "bfloat16"] | None = None,
    max_shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    reports: Sequence[Path] = (),
    progress: Progress = lambda done, total: None,
) -> None:
    """Writes weights, configuration, tokenizer, VQGAN, model card and licence into a new folder.

    The weights of one file are in memory at a time. Files of an interrupted run are kept beside
    the folder; the next run resumes after them.

    Args:
        opened: The model.
        folder: Folder to make; replaces the same model, converted to it before.
        dtype: Type to store; None for the type of the weights.
        max_shard_bytes: Bytes of weights per file, unless one tensor alone is larger.
        overwrite: Replaces another model, or a changed model card, too.
        reports: Reports of `lwm eval` on the model, or their folders, for the model card; those in
            the folder of its run are found.
        progress: Called with the number of bytes written and their total.

    Raises:
        UserError: The folder holds another model or other files, or cannot be written, the disk
            is full, or the weights cannot be read.
    """
    require_other_folder(opened, folder)
    origin = _origin(opened)
    if not overwrite:
        _require_same(opened, origin, Path(folder).expanduser())
    weights = open_weights(opened)
    stored = dtype or weights.stored
    legal = legal_texts(opened)
    facts = facts_of(opened, stored, licence_files=[*legal], reports=reports)
    write_model(
        folder,
        opened.config,
        opened.written_tokenizer,
        weights.read,
        paths=weights.paths,
        dtype=stored,
        max_shard_bytes=max_shard_bytes,
        sampling=opened.sampling,
        texts={"README.md": card(facts), **legal},
        save_vqgan=functools.partial(_copy_vqgan, opened) if opened.vqgan else None,
        vqgan_bytes=_size(opened.vqgan),
        source=_identity(opened, stored, max_shard_bytes),
        origin=origin,
        progress=progress,
    )


def _former_card(opened: ModelFiles, dtype: str) -> str:
    """Returns the model card as earlier versions wrote it, which is replaced like our own."""
    config, known = opened.config, opened.known
    name = known.name if known else _former_name(opened.source)
    reads = "text, images and video" if config.tokens.vision else "text"
    licence = known.licence if known else "that of the model it was converted from"
    head = ["license: llama2"] if known and "Llama 2" in licence else []
    lines = [
        "---",
        *head,
        "library_name: lwm",
        "---",
        f"# {name}",
        "",
        f"Reads and writes {reads}; a context of {config.max_context:,} tokens.",
        "",
        "| | |",
        "|---|---|",
        f"| layers, width, heads | {config.num_layers}, {config.dim}, {config.num_heads} |",
        f"| text ids, vision ids | {config.tokens.text:,}, {config.tokens.vision:,} |",
        f"| RoPE theta | {config.rope.theta:g} |",
        f"| weights | {dtype} |",
        f"| converted from | {known.repos[0] if known and known.repos else name} |",
        f"| licence | {licence} |",
        "",
        "```sh",
        "lwm chat FOLDER",
        "```",
        "",
    ]
    return "\n".join(lines)


def _former_name(source: Path) -> str:
    if source.is_dir():
        return source.name
    return source.parent.name if source.name == "params" else source.stem


def legal_texts(opened: ModelFiles) -> dict[str, str]:
    """Returns the licence files beside the model, or the notice that its licence requires."""
    source = opened.place
    run = run_of(source)
    beside = source if source.is_dir() else source.parent
    beside = beside if run is None else run / MODEL
    found = {
        path.name: path.read_text(encoding="utf-8", errors="replace")
        for pattern in _LEGAL
        for path in sorted(beside.glob(pattern))
        if path.is_file() and path.stat().st_size < 1_000_000
    }
    root = lineage_of(source, opened.known).root
    licence = None if root is None else root.licence
    if not found and licence is not None and licence.identifier == "llama2":
        return {"LICENSE": _LLAMA2}
    return found


def _identity(opened: ModelFiles, dtype: str, max_shard_bytes: int) -> str:
    """Returns a text that identifies source and target, to resume only the same conversion."""
    files = opened.files
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    values = dataclasses.asdict(opened.config), stats, dtype, max_shard_bytes
    return json.dumps(values)


def _origin(opened: ModelFiles) -> str:
    """Returns a digest of a model's configuration and files, the same wherever it lies."""
    files = [edges_of(path) for path in opened.files]
    values = dataclasses.asdict(opened.config), files
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _require_same(opened: ModelFiles, origin: str, folder: Path) -> None:
    """Refuses to replace another model than this, or a model card that was changed.

    Raises:
        UserError: What is there.
    """
    if not (folder / "config.json").exists():
        return
    require_ours(folder)
    values = read_json(folder / "config.json")
    readme = folder / "README.md"
    with reading(readme):
        text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    is_former = text == _former_card(opened, str(values.get("dtype")))
    is_card = not text or is_former or is_written(text)
    # Folders of earlier versions do not say what they were converted from; their cards do.
    if is_card and values.get(ORIGIN, origin if is_former else None) == origin:
        return
    title = re.search("^# (.+)$", text, re.MULTILINE)
    name = repr(title[1].strip()) if title else f"a {values.get('model_type')} model"
    what = f"{name} and its README.md" if text else name
    raise UserError(
        f"{folder} holds {what}, which would be lost; choose another folder, or give --overwrite "
        "to replace it"
    )


def _copy_vqgan(opened: ModelFiles, folder: Path) -> None:
    assert opened.vqgan is not None
    vqgan = read_vqgan(opened.vqgan)
    require_codes(opened.vqgan, vqgan.config.codes, opened.config.tokens)
    write_vqgan(vqgan, folder)


def _size(path: Path | None) -> int:
    """Returns the size of a VQGAN's files, about that of its copy, in bytes."""
    if path is None:
        return 0
    files = [path] if path.is_file() else [*path.glob("vqgan*"), *path.glob("diffusion*")]
    return sum(each.stat().st_size for each in files)
