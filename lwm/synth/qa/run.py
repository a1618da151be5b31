"""Questions and answers about long documents, written by a model, as a set to train on."""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import jax

import lwm
from lwm.data.paths import Warn
from lwm.data.sets import open_records
from lwm.data.sources import files_of
from lwm.eval.results import ResultRow, Results
from lwm.eval.subject import Subject, Work, ask_subject, require_context
from lwm.files import exclusive, json_line, make_folder, replacing, write_bytes
from lwm.fingerprint import fingerprints, named
from lwm.generate.loaded import LoadedModel
from lwm.progress import Progress
from lwm.synth.qa.chunks import Chunk, read_chunks
from lwm.synth.qa.config import QASetConfig
from lwm.synth.qa.conversations import Conversation, conversations
from lwm.synth.qa.pairs import INSTRUCTION, WORDS, Pair, Pairs
from lwm.tokenizer.tokenizer import Tokenizer

PAIRS, EXAMPLES, REPORT = "pairs.jsonl", "examples.jsonl", "report.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class QASet:
    """Report of a set, and the work that this call did for it."""

    chunks: int
    pairs: int
    malformed: dict[str, int]
    """Answers that hold no pair, by reason."""
    examples: int
    chunks_used: int
    """Chunks in examples; the others stand where no chunk has a pair, or do not fit the length."""
    tokens: int
    """Tokens of all examples."""
    work: Work

    @property
    def malformed_share(self) -> float:
        """Share of the answers that hold no pair."""
        return sum(self.malformed.values()) / self.chunks

    def to_json(self) -> str:
        """Returns the report, which is the same however often the work was stopped."""
        values = dataclasses.asdict(self) | {"malformed_share": self.malformed_share}
        del values["work"]
        return json.dumps(values, indent=2) + "\n"


def write_qa(
    subject: Subject | LoadedModel,
    files: Sequence[str],
    out: Path,
    config: QASetConfig = QASetConfig(),
    *,
    tokenizer: Tokenizer | None = None,
    warn: Warn = lambda text: None,
    progress: Progress = lambda done, total: None,
) -> QASet:
    """Asks a model for a question and its answer about each chunk; joins chunks to long examples.

    As LWM's set of questions about books (Liu et al. 2024, section 3.2). Each answer is appended to
    `pairs.jsonl` at once; the same call continues a stopped one, and one with more chunks asks
    about the new ones. `examples.jsonl` is then written anew, in the form that `lwm train` reads,
    with the loss on the answers alone.

    Args:
        subject: The model that writes; see `Subject` for others than a loaded one.
        files: Texts, as for `lwm train`: each record is a document.
        out: The folder for the set.
        config: Sizes of chunks and examples.
        tokenizer: That of the model to be trained, which counts the tokens of examples; by default,
            the writer's.
        warn: Receives warnings of files.
        progress: Called with tokens done and their total; may raise.

    Raises:
        UserError: A text cannot be read, a prompt is longer than the context of the model, or the
            folder holds another set, or another process writes to it.
        KeyboardInterrupt: `progress` raised it; the message names the answers kept so far.
    """
    if isinstance(subject, LoadedModel):
        subject = Subject.of_model(subject)
    encode = subject.encoder
    around = Pairs.around(encode, config.max_tokens)
    require_context(
        config.chunk_tokens + around, subject.context, subject.name, remedy="lower chunk_tokens"
    )
    source = open_records(files, warn=warn)
    chunks = read_chunks(
        source,
        subject.tokenizer,
        tokens=config.chunk_tokens,
        around=around,
        most=config.chunks,
    )
    asked = Pairs(chunks, encode, max_tokens=config.max_tokens)
    make_folder(out)
    with exclusive(out):
        header = _header(config, chunks, files_of(source), subject)
        results = Results(out / PAIRS, header)
        work = ask_subject(asked, subject, results, progress=progress)
        pairs, malformed = _sorted(results.rows, {asked.key(chunk) for chunk in chunks})
        made = _write(chunks, pairs, out, config, tokenizer or subject.tokenizer)
        report = QASet(
            chunks=len(chunks),
            pairs=len(pairs),
            malformed=malformed,
            examples=len(made),
            chunks_used=sum(len(one.chunks) for one in made),
            tokens=sum(one.tokens for one in made),
            work=work,
        )
        write_bytes(out / REPORT, report.to_json().encode())
    return report


def _header(
    config: QASetConfig, chunks: Sequence[Chunk], files: Sequence[Path], subject: Subject
) -> dict[str, Any]:
    """Returns what the answers depend on, and apart from it the chunks, which may grow."""
    return {
        "evaluation": "qa-pairs",
        "model": dict(subject.description),
        "config": {"chunk_tokens": config.chunk_tokens, "max_tokens": config.max_tokens},
        "instruction": hashlib.sha256(repr((INSTRUCTION, WORDS)).encode()).hexdigest()[:16],
        "grid": {"chunks": len(chunks)},
        "texts": fingerprints(named(files)),
        "versions": {"lwm": lwm.__version__, "jax": jax.__version__},
        "files": subject.files,
    }


def _sorted(
    rows: Sequence[ResultRow], keys: Set[Hashable]
) -> tuple[dict[tuple[int, int], Pair], dict[str, int]]:
    """Returns the pairs by document and chunk, and the number of answers without one by reason.

    A question that stands in an earlier chunk of the document counts as malformed.
    """
    pairs: dict[tuple[int, int], Pair] = {}
    faults: collections.Counter[str] = collections.Counter()
    seen: set[tuple[int, str]] = set()
    for row in sorted(rows, key=lambda row: (row["document"], row["chunk"])):
        key = row["document"], row["chunk"]
        if key not in keys:
            continue
        fault = row.get("fault")
        if fault is None and (key[0], row["question"]) in seen:
            fault = "asked before"
        if fault is not None:
            faults[fault] += 1
            continue
        seen.add((key[0], row["question"]))
        pairs[key] = Pair(question=row["question"], answer=row["answer"])
    return pairs, dict(faults.most_common())


def _write(
    chunks: Sequence[Chunk],
    pairs: Mapping[tuple[int, int], Pair],
    out: Path,
    config: QASetConfig,
    tokenizer: Tokenizer,
) -> list[Conversation]:
    made = []
    with replacing(out / EXAMPLES) as partial, partial.open("wb") as file:
        for one in conversations(chunks, pairs, tokenizer, length=config.length, seed=config.seed):
            file.write(json_line(one.record))
            made.append(one)
    return made
