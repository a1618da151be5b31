"""Facts for model cards: of opened models and of training runs."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lwm.convert.card import (
    AdapterFacts,
    CardFacts,
    LanguageFacts,
    Measured,
    card,
    is_written,
    sections_of,
)
from lwm.convert.card_scores import of_reports, of_run
from lwm.convert.names import HUGGING_FACE
from lwm.convert.open import ModelFiles
from lwm.convert.weights import layout_of, sizes_in, weight_paths
from lwm.formats.gguf_file import is_gguf
from lwm.formats.run_facts import Licence, Lineage, Root, RunFacts, read_run_facts
from lwm.formats.run_folder import MODEL, SETTINGS, is_checkpoint
from lwm.hub.catalog import KnownModel
from lwm.model.config import LlamaConfig
from lwm.tokenizer.markers import VisionMarkers
from lwm.tokenizer.tokenizer import Tokenizer
from lwm.vqgan.checkpoint import read_vqgan_config
from lwm.vqgan.config import VQGANConfig

_KNOWN_LICENCES = {"Llama 2 Community License": "llama2", "Apache-2.0": "apache-2.0"}
_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_LANGUAGE = re.compile(r"[a-z]{2,3}")
_MOST_BYTES = 1_000_000


def name_of(source: Path) -> str:
    """Returns a name for a model: of its run, of its file, or of its folder."""
    run = run_of(source)
    if run is not None:
        name = run.resolve().name
        return f"{name}, step {int(source.name):,}" if is_checkpoint(source) else name
    if source.is_dir():
        return source.resolve().name
    return source.parent.name if source.name in ("params", "vqgan") else source.stem


def run_of(source: Path) -> Path | None:
    """Returns the folder of the run that a model or a checkpoint is of; None for others."""
    if is_checkpoint(source):
        return source.parents[1]
    run = source.resolve().parent
    return run if source.resolve().name == MODEL and (run / SETTINGS).is_file() else None


def facts_of(
    opened: ModelFiles,
    dtype: str,
    *,
    target: Literal["hf", "lwm-original"] = "hf",
    licence_files: Sequence[str] = (),
    reports: Sequence[Path] = (),
) -> CardFacts:
    """Returns the facts of a model that is converted.

    Args:
        opened: The model.
        dtype: Type of the stored weights.
        target: The format that it is converted to.
        licence_files: Names of files with licences in the folder.
        reports: Reports of evaluations of the model, or their folders; those in the folder of its
            run are found.

    Raises:
        UserError: A report is of another model, or cannot be read; or the VQGAN is damaged.
    """
    place = opened.place
    run = _run_facts(place)
    scores = [] if run is None else of_run(run)
    scores += of_reports(place, opened.config, run_of(place), reports)
    return CardFacts(
        name=opened.known.name if opened.known else name_of(place),
        dtype=dtype,
        lineage=lineage_of(place, opened.known),
        converted=place.name if place.is_file() else "",
        run=run,
        language=language_facts(opened.config, opened.tokenizer),
        vqgan=None if opened.vqgan is None else read_vqgan_config(opened.vqgan),
        target=target,
        licence_files=licence_files,
        measured=scores,
        kept=_kept(place),
    )


def run_card(
    run: Path,
    place: Path,
    *,
    dtype: str,
    language: LanguageFacts | None = None,
    vqgan: VQGANConfig | None = None,
    adapter: AdapterFacts | None = None,
    licence_files: Sequence[str] = (),
    measured: Sequence[Measured] = (),
) -> str | None:
    """Returns the card of the model at the end of a run; the one that somebody wrote is kept.

    Args:
        run: The folder of the run.
        place: The folder of the model, which may have a card.
        dtype: Type of the stored weights.
        language: The language model, unless the run is of a VQGAN.
        vqgan: The VQGAN beside it, or that of the run.
        adapter: The adapter that the run trained, if it did not train the whole model.
        licence_files: Names of files with licences in the folder.
        measured: Scores besides those of the last validation.

    Returns:
        The card; None if the run's folder does not say what it is of.
    """
    file = place / "README.md"
    there = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    if there and not is_written(there):
        return there
    facts = read_run_facts(run)
    if facts is None:
        return there or None
    return card(
        CardFacts(
            name=facts.name,
            dtype=dtype,
            lineage=_lineage(facts),
            run=facts,
            language=language,
            vqgan=vqgan,
            adapter=adapter,
            licence_files=licence_files,
            measured=[*of_run(facts), *measured],
        )
    )


def language_facts(config: LlamaConfig, tokenizer: Tokenizer) -> LanguageFacts:
    """Returns the facts of a language model and its tokenizer."""
    marks = VisionMarkers.of(tokenizer, config.tokens) if config.tokens.vision else None
    ends = sorted(tokenizer.eos_ids)
    sizes = sizes_in(HUGGING_FACE, config)
    layouts = [layout_of(HUGGING_FACE, path) for path in weight_paths(config)]
    return LanguageFacts(
        config=config,
        parameters=sum(math.prod(layout.shape(sizes)) for layout in layouts),
        special={
            "beginning of text": (tokenizer.bos_id,) if tokenizer.bos_id is not None else (),
            "end of text": tuple(ends),
            "padding": (tokenizer.pad_id,),
        },
        markers=None if marks is None else (marks.opening, marks.closing),
    )


def lineage_of(source: Path, known: KnownModel | None = None) -> Lineage:
    """Returns the origin of a model's weights, as far as it is known.

    Args:
        source: File or folder of a language model or a VQGAN.
        known: The entry of a known model.
    """
    run = _run_facts(source)
    return Lineage(root=_root(source, known)) if run is None else _lineage(run)


def _run_facts(source: Path) -> RunFacts | None:
    run = run_of(source)
    if run is None:
        return None
    return read_run_facts(run, int(source.name) if is_checkpoint(source) else None)


def _lineage(run: RunFacts) -> Lineage:
    before = run.lineage
    if before is None:  # of a run of an earlier version
        before = Lineage(root=None if run.init is None else Root(name=Path(run.init).name))
    return Lineage(root=before.root, stages=(*before.stages, run.stage))


def _root(source: Path, known: KnownModel | None) -> Root:
    if known is not None:
        licence = Licence(name=known.licence, identifier=_KNOWN_LICENCES.get(known.licence))
        repo = known.repos[0] if known.repos else None
        return Root(name=known.name, repo=repo, licence=licence)
    if source.is_file() and is_gguf(source):
        return Root(name=name_of(source), licence=_gguf_licence(source))
    folder = source if source.is_dir() else source.parent
    head = _head(folder / "README.md")
    cached = [part for part in folder.absolute().parts if part.startswith("models--")]
    repo = cached[-1].removeprefix("models--").replace("--", "/") if cached else None
    return Root(
        name=repo or name_of(source),
        repo=repo,
        licence=_licence(head),
        base=tuple(name for name in _texts(head, "base_model") if _REPO.fullmatch(name)),
        languages=tuple(name for name in _texts(head, "language") if _LANGUAGE.fullmatch(name)),
    )


def _licence(head: Mapping[str, Any]) -> Licence | None:
    """Returns the licence that a card states in its head."""
    stated, name, link = (
        next(iter(_texts(head, key)), None) for key in ("license", "license_name", "license_link")
    )
    if stated is None:
        return None
    identifier = stated.lower() if _IDENTIFIER.fullmatch(stated.lower()) else None
    return Licence(name=name or stated, identifier=identifier, link=link)


def _gguf_licence(file: Path) -> Licence | None:
    from lwm.formats.gguf import read_gguf

    values = read_gguf(file).metadata
    keys = {"license": "general.license", "license_name": "general.license.name"}
    keys["license_link"] = "general.license.link"
    return _licence({key: values.get(theirs) for key, theirs in keys.items()})


def _head(file: Path) -> dict[str, Any]:
    """Returns the head of a model's card; nothing if there is none that can be read."""
    from huggingface_hub import metadata_load

    try:
        if not file.is_file() or file.stat().st_size > _MOST_BYTES:
            return {}
        return metadata_load(file) or {}
    except Exception:  # of the YAML of others
        return {}


def _texts(values: Mapping[str, Any], key: str) -> list[str]:
    found = values.get(key)
    return [one for one in (found if isinstance(found, list) else [found]) if isinstance(one, str)]


def _kept(source: Path) -> dict[str, str]:
    """Returns sections of the card of a model folder that this program wrote."""
    file = (source.parent if source.name == "params" else source) / "README.md"
    if not file.is_file() or file.stat().st_size > _MOST_BYTES:
        return {}
    text = file.read_text(encoding="utf-8", errors="replace")
    return sections_of(text) if is_written(text) else {}
