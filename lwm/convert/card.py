"""Model cards: README.md of a model's folder, from facts. An unknown fact is left out, or said so.

A card ends in a digest of its text, so that one that somebody changed is known as such, and kept.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import lwm
from lwm.convert.card_markdown import escaped, grid, listed, numbers, plural, table
from lwm.convert.card_use import use
from lwm.formats.run_facts import Licence, Lineage, RunFacts, Stage
from lwm.model.config import LinearScaling, LlamaConfig, LoRA
from lwm.text import printable, well_formed
from lwm.tokenizer.markers import CLOSING, OPENING
from lwm.vqgan.config import VQGANConfig

KEPT = ("Origin", "Training", "Data", "Measured", "Licence")
"""Sections that stay true of the same weights in another format."""
_MARK = re.compile(
    r"<!-- Written by lwm [^\n]*?; sha256 of the text above: ([0-9a-f]{64})\. [^\n]*-->"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """A measurement of a model."""

    what: str
    result: str
    how: str
    """The command, or the settings, with the number of questions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageFacts:
    """Facts of a language model."""

    config: LlamaConfig
    special: Mapping[str, tuple[int, ...]]
    """Special ids of the text by their names."""
    markers: tuple[tuple[int, ...], tuple[int, ...]] | None
    """Ids of `<vision>` and `</vision>`; None without vision."""
    parameters: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterFacts:
    """Facts of a low-rank adapter."""

    base: str
    """The model that it is of."""
    lora: LoRA
    parameters: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class CardFacts:
    """All that a card says."""

    name: str
    dtype: str
    """Type of the stored weights."""
    lineage: Lineage
    converted: str | None = None
    """The name of the file that it was converted from; empty if it was a folder, None if this is
    the model as it was trained."""
    run: RunFacts | None = None
    """The last training."""
    language: LanguageFacts | None = None
    """None for a VQGAN alone."""
    adapter: AdapterFacts | None = None
    """If the folder holds an adapter alone; `language` is then its base."""
    vqgan: VQGANConfig | None = None
    target: Literal["hf", "lwm-original"] = "hf"
    licence_files: Sequence[str] = ()
    """Names of files with licences and notices in the folder."""
    measured: Sequence[Measured] = ()
    kept: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Sections of the card that this program wrote of the converted model, by their titles."""


def card(facts: CardFacts) -> str:
    """Returns the card as Markdown with a head in YAML."""
    sections: dict[str, str] = {
        "Architecture": table(_architecture(facts)),
        "Token space": _token_space(facts),
        "Origin": _origin(facts),
        "Use": use(
            None if facts.language is None else facts.language.config,
            facts.vqgan,
            target=facts.target,
            is_adapter=facts.adapter is not None,
        ),
        "Training": "" if facts.run is None else _training(facts.run, facts.lineage.stages),
        "Data": "" if facts.run is None else _data(facts.run),
        "Measured": _measured(facts),
        "Licence": _licence(facts),
    }
    sections = {title: text or facts.kept.get(title, "") for title, text in sections.items()}
    body = "\n".join(f"## {title}\n\n{text}\n" for title, text in sections.items() if text)
    head = f"{_head(facts)}\n# {escaped(facts.name)}\n\n{_about(facts)}\n"
    return _signed(well_formed(f"{head}\n{body}\n"))


def is_written(text: str) -> bool:
    """Returns whether a card was written by this program and not changed since."""
    *above, last = text.rstrip("\n").rsplit("\n", 1)
    match = _MARK.fullmatch(last)
    return bool(above and match and match[1] == _digest(f"{above[0]}\n"))


def sections_of(text: str) -> dict[str, str]:
    """Returns the sections of a card that stay true of the same weights in another format."""
    parts = re.split(r"^## (.+)\n", _MARK.sub("", text), flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    return {title: found[title].strip("\n") for title in KEPT if title in found}


def _signed(text: str) -> str:
    note = f"Written by lwm {lwm.__version__}; sha256 of the text above: {_digest(text)}."
    return f"{text}<!-- {note} A card that somebody changed is not replaced. -->\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _head(facts: CardFacts) -> str:
    """Returns the head that hubs read; what is not ours is quoted as JSON, and so YAML."""
    root, licence = facts.lineage.root, licence_of(facts)
    values: dict[str, Any] = {}
    if licence is not None:
        values["license"] = licence.identifier or "other"
        if licence.identifier is None or licence.identifier == "other":
            values["license_name"] = re.sub(r"[^a-z0-9.]+", "-", licence.name.lower()).strip("-")
            values["license_link"] = licence.link
    if root is not None:
        base = [root.repo] if root.repo else [*root.base]
        values["base_model"] = base[0] if len(base) == 1 else base
        if root.repo and facts.lineage.stages:
            values["base_model_relation"] = "adapter" if facts.adapter else "finetune"
        values["language"] = [] if facts.lineage.stages else [*root.languages]
    is_hf = facts.language is not None and facts.target == "hf"
    values["library_name"] = "peft" if facts.adapter else "transformers" if is_hf else "lwm"
    values["datasets"] = [repo for one in facts.run.sets for repo in one.repos] if facts.run else []
    if facts.language is None:
        values["tags"] = ["lwm", "vqgan", "image-tokenizer"]
    elif facts.language.config.tokens.vision:
        values["pipeline_tag"] = "any-to-any"
        values["tags"] = ["lwm", "text-to-image", "text-to-video", "video-text-to-text"]
    else:
        values["pipeline_tag"] = "text-generation"
        values["tags"] = ["lwm"]
    if facts.adapter is not None:
        values["tags"] = ["lwm", "lora"]
    lines = [f"{key}: {_yaml(value)}" for key, value in values.items() if value]
    return "\n".join(["---", *lines, "---"])


def _yaml(value: str | Sequence[str]) -> str:
    if isinstance(value, str):
        return json.dumps(printable(value), ensure_ascii=False)
    return f"[{', '.join(map(_yaml, value))}]"


def _about(facts: CardFacts) -> str:
    if facts.language is None:
        assert facts.vqgan is not None, "a card is of a language model or of a VQGAN"
        side, codes = facts.vqgan.resolution, facts.vqgan.tokens_per_frame
        back = ", and back" if facts.vqgan.decoder else ""
        return f"A VQGAN: encodes frames of {side} × {side} pixels as {codes:,} codes{back}."
    config = facts.language.config
    reads = "text, images and video" if config.tokens.vision else "text"
    about = f"Reads and writes {reads}; a context of {config.max_context:,} tokens."
    if facts.adapter is None:
        return about
    return f"A LoRA adapter of {escaped(_file(facts.adapter.base))}, to be used with it. {about}"


def _architecture(facts: CardFacts) -> Iterable[tuple[str, str]]:
    if facts.language is not None:
        config = facts.language.config
        yield "parameters", f"{facts.language.parameters:,}"
        if facts.adapter is not None:
            lora = facts.adapter.lora
            yield "parameters of the adapter", f"{facts.adapter.parameters:,}"
            yield "rank, alpha", f"{lora.rank}, {lora.alpha:g}"
            yield "adapted weights", ", ".join(lora.targets)
        yield (
            "layers, width, feed-forward width",
            numbers(config.num_layers, config.dim, config.mlp_dim),
        )
        yield (
            "query heads, key/value heads, head width",
            numbers(config.num_heads, config.num_kv_heads, config.head_dim),
        )
        extras = {
            "biases of queries, keys and values": config.qkv_bias,
            "normalised queries and keys": config.qk_norm,
            "head tied to the embedding": config.tie_embeddings,
        }
        yield "kind", ", ".join(["Llama", *(name for name, there in extras.items() if there)])
        yield "context", f"{config.max_context:,} tokens"
        yield "RoPE theta", f"{config.rope.theta:g}"
        if config.rope.scaling is not None:
            kind = "linear" if isinstance(config.rope.scaling, LinearScaling) else "llama3"
            values = dataclasses.asdict(config.rope.scaling).items()
            yield "RoPE scaling", f"{kind}: " + ", ".join(f"{k} {v:g}" for k, v in values)
    if facts.vqgan is not None:
        vqgan = facts.vqgan
        yield (
            "VQGAN",
            (
                f"frames of {vqgan.resolution} × {vqgan.resolution} pixels, "
                f"{vqgan.tokens_per_frame:,} codes of {vqgan.codes:,} each"
            ),
        )
    yield "stored weights", facts.dtype


def _token_space(facts: CardFacts) -> str:
    if facts.language is None:
        return ""
    tokens, special = facts.language.config.tokens, facts.language.special
    rows = [("text", f"0 to {tokens.text - 1:,}")]
    rows += [(name, numbers(*ids)) for name, ids in special.items() if ids]
    if not tokens.vision:
        return table(rows, head=("ids", ""))
    rows += [
        ("codes of the VQGAN", f"{tokens.text:,} to {tokens.end_of_frame - 1:,}"),
        ("end of frame", f"{tokens.end_of_frame:,}"),
        ("end of vision", f"{tokens.end_of_vision:,}"),
    ]
    if tokens.end_of_vision + 1 < tokens.size:
        rows.append(("unused", f"{tokens.end_of_vision + 1:,} to {tokens.size - 1:,}"))
    if facts.language.markers is not None:
        opening, closing = (" ".join(map(str, ids)) for ids in facts.language.markers)
        rows += [(f"`{OPENING}`", f"{opening} (text)"), (f"`{CLOSING}`", f"{closing} (text)")]
    layout = (
        f"An image or a video is `{OPENING}`, the codes of each frame in rows from the top left, "
        f"and `{CLOSING}`; end of frame follows each frame but the last, end of vision the last. "
        f"Text and vision share one vocabulary of {tokens.size:,} ids."
    )
    return f"{table(rows, head=('ids', ''))}\n\n{layout}"


def _origin(facts: CardFacts) -> str:
    root, stages = facts.lineage.root, facts.lineage.stages
    first = "random numbers"
    if root is not None:
        at = f" ({root.repo})" if root.repo and root.repo != root.name else ""
        based = f", which is based on {', '.join(root.base)}" if root.base else ""
        first = escaped(f"{root.name}{at}{based}")
    lines = [f"First weights: {first}."] if stages else []
    if stages:
        names = ", ".join(escaped(one.name) for one in stages)
        lines.append(f"Trained in {plural(len(stages), 'run')}: {names}.")
    if facts.converted is not None:
        from_file = f" Read from the file {escaped(facts.converted)}." if facts.converted else ""
        kept = facts.kept.get("Origin")
        what = " again" if kept else "" if stages else f" from {first}"
        lines += [kept] if kept else []
        lines.append(f"Converted{what} by `lwm convert` {lwm.__version__}.{from_file}")
    return "\n".join(lines)


def _training(run: RunFacts, stages: Sequence[Stage]) -> str:
    optimizer = run.optimizer
    schedule = {k: v for k, v in optimizer.get("schedule", {}).items() if v or k != "decay"}
    unit, seen = ("tokens", "tokens, padding not counted") if run.length else ("frames", "frames")
    rows = [
        ("steps", f"{run.step:,}" + ("" if run.step == run.steps else f" of {run.steps:,}")),
        (f"{unit} seen", "unknown" if run.seen is None else f"{run.seen:,} {seen}"),
        ("batch", _batch(run)),
        (
            "learning rate",
            listed(schedule),
        ),
        (
            "AdamW",
            listed(optimizer),
        ),
        ("seed", f"{run.seed}"),
    ]
    if run.dtype is not None:
        rows.insert(3, ("activations", run.dtype))
    if run.loss:
        rows.append(("weights of the loss", listed(run.loss)))
    text = table(rows)
    if len(stages) < 2 or run.length is None:
        return text
    chain = [("run", "steps", "tokens seen", "tokens of a row", "RoPE theta")]
    chain += [
        (
            one.name,
            f"{one.steps:,}",
            *(
                "unknown" if number is None else f"{number:,}"
                for number in (one.tokens, one.length)
            ),
            "unknown" if one.theta is None else f"{one.theta:g}",
        )
        for one in stages
    ]
    return f"{text}\n\nAll runs, first to last:\n\n{grid(chain)}"


def _batch(run: RunFacts) -> str:
    rows = f"{run.rows:,} frames" if run.length is None else f"{run.rows:,} rows"
    rows = f"{run.accumulate:,} × {rows}" if run.accumulate > 1 else rows
    return rows if run.length is None else f"{rows} of {run.length:,} tokens"


def _data(run: RunFacts) -> str:
    rows = [("set", "files", "size", "format", "weight", "licence")]
    for one in run.sets:
        size = "unknown"
        if one.num_files:
            size = f"{plural(one.num_files, 'file')}, {one.num_bytes:,} bytes"
        files = ", ".join(map(_file, one.files))
        kind = one.format or ", ".join(one.endings) or "unknown"
        rows.append((one.name, files, size, kind, f"{one.weight:g}", one.licence or "unknown"))
    return grid(rows)


def _measured(facts: CardFacts) -> str:
    if not facts.measured:
        return ""
    rows = [("what", "result", "how")]
    rows += [(one.what, one.result, one.how) for one in facts.measured]
    return grid(rows)


def licence_of(facts: CardFacts) -> Licence | None:
    """Returns the licence of the weights that a lineage began with; None if it is not known."""
    root = facts.lineage.root
    return None if root is None else root.licence


def _licence(facts: CardFacts) -> str:
    root, licence = facts.lineage.root, licence_of(facts)
    files = ", ".join(map(escaped, facts.licence_files))
    lines = ["The code of `lwm` is under Apache-2.0, which says nothing of these weights."]
    if root is None:
        lines.append("Whoever trained them has not recorded a licence for them.")
    elif licence is None and "Licence" in facts.kept:
        return facts.kept["Licence"]
    elif licence is None:
        lines.append(
            f"They derive from {escaped(root.name)}, whose licence is not known here: look it up "
            "before you pass them on."
        )
    else:
        at = f" ({escaped(licence.link)})" if licence.link else ""
        derived = "training and conversion do" if facts.lineage.stages else "conversion does"
        lines.append(
            f"They derive from {escaped(root.name)}, under {escaped(licence.name)}{at}; {derived} "
            "not change that."
        )
    if files:
        lines.append(f"See {files} beside this card.")
    return "\n".join(lines)


def _file(name: str) -> str:
    """Returns a file's name without the folders of the machine that it was on."""
    is_private = name.startswith(("/", "~", ".."))
    return name.rstrip("/").rpartition("/")[2] if is_private else name
