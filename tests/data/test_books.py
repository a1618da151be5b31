"""Books: clean texts, one edition of each work, and whole works held out."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from lwm.data import books
from lwm.data.books import clean, collect_works, fetch_books, write_books
from lwm.data.sources import open_source
from lwm.errors import UserError
from lwm.hub import fetch

MACBETH = """MACBETH

by William Shakespeare




ACT I.

SCENE I. An open Place. Thunder and Lightning.\x20

[Enter three Witches.]

FIRST WITCH.
When shall we three meet again?
In thunder, lightning, or in rain?

[Exeunt.]


THE END"""
HAMLET = "HAMLET, PRINCE OF DENMARK\n\nBer.\nWho's there?\n\n1 Clown.\nWhat is he"
CYMBELINE = (
    "The Tragedie of Cymbeline\n\nActus Primus. Scoena Prima.\n\n   2 Gent. But what's the matter?"
    "\n\nExeunt.\n\n\nFINIS. THE TRAGEDIE OF CYMBELINE."
)
REGAINED = (
    "\ufeff\n\nPARADISE REGAINED\n\nWith wonder; then, with envy fraught and rage,\r\n"
    "Into the desert, his victorious field\r\n"
    "Against the spiritual foe, and brought'st him thence        10\r\n"
    "  At thirty years\r\n@@@@\r\n\x1a"
)
VERSES = [
    ("Ruth", 1, "Now it came to pass in the days when the judges ruled,"),
    ("Ruth", 1, "And the name of the man was Elimelech, "),
    ("Ruth", 2, "And Naomi had a kinsman of her husband's,"),
    ("3 John", 1, "Greet the friends by name."),
    ("3 John", 1, "[]"),
]


def packed() -> dict[str, bytes]:
    """Return files as the packages hold them."""
    texts = {
        "shksprdata/texts/hamlet_gut.txt": HAMLET,
        "shksprdata/texts/hamlet_gut_f.txt": "The Tragedie of Hamlet",
        "shksprdata/texts/macbeth_gut.txt": MACBETH,
        "shksprdata/texts/twelfe-night_gut_f.txt": "Twelfe Night, Or what you will",
        "shksprdata/texts/cymbeline_gut.txt": "CYMBELINE\n\nACT FIRST.",
        "shksprdata/texts/cymbeline_gut_f.txt": CYMBELINE,
        "shksprdata/texts/lear_gut.txt": "THE TRAGEDY OF KING LEAR",
        "shksprdata/texts/metadata.txt": "[lear_gut]",
        "miltondata/texts/paradise_regained_gut.txt": REGAINED,
        "miltondata/texts/paradiseregained.txt": REGAINED,
        "miltondata/texts/comus_gut.txt": "FOOTNOTES:",
    }
    lines = [json.dumps({"book": b, "chapter": c, "text": t}) for b, c, t in VERSES]
    texts["bible/data/kjv.jsonl"] = "\n".join(lines) + "\n"
    return {name: text.encode() for name, text in texts.items()}


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            MACBETH,
            "MACBETH||by William Shakespeare||ACT I.||SCENE I. An open Place. Thunder and "
            "Lightning.||[Enter three Witches.]||FIRST WITCH.|When shall we three meet again?|"
            "In thunder, lightning, or in rain?||[Exeunt.]|",
        ),
        (HAMLET, "HAMLET, PRINCE OF DENMARK||Ber.|Who's there?||1 Clown.|What is he|"),
        (
            CYMBELINE,
            "The Tragedie of Cymbeline||Actus Primus. Scoena Prima.||"
            "   2 Gent. But what's the matter?||Exeunt.|",
        ),
        (
            REGAINED,
            "PARADISE REGAINED||With wonder; then, with envy fraught and rage,|Into the desert, "
            "his victorious field|Against the spiritual foe, and brought'st him thence|"
            "  At thirty years|",
        ),
    ],
)
def test_only_the_authors_lines_stay(text: str, lines: str):
    assert clean(text).split("\n") == lines.split("|")
    assert clean(clean(text)) == clean(text)


def test_one_edition_of_each_work_is_taken():
    works = collect_works(packed())
    assert sorted(works) == [
        "bible-3-john",
        "bible-ruth",
        "milton-paradise-regained",
        "shakespeare-cymbeline",
        "shakespeare-hamlet",
        "shakespeare-king-lear",
        "shakespeare-macbeth",
    ]
    assert works["shakespeare-hamlet"].startswith("HAMLET, PRINCE")
    assert works["shakespeare-cymbeline"] == clean(CYMBELINE), "whole in the folio only"
    assert works["bible-ruth"].split("\n") == [
        *("RUTH", "", "CHAPTER 1", "", VERSES[0][2], VERSES[1][2].strip()),
        *("", "CHAPTER 2", "", VERSES[2][2], ""),
    ]
    assert works["bible-3-john"].endswith("\n\nGreet the friends by name.\n")


def test_whole_works_are_held_out(tmp_path: Path):
    works = collect_works(packed())
    digest = write_books(works, tmp_path)
    sides = {side: {p.stem for p in (tmp_path / side).iterdir()} for side in ("train", "held-out")}
    assert sides["held-out"] == {"bible-ruth", "milton-paradise-regained", "shakespeare-macbeth"}
    assert sides["train"] == works.keys() - sides["held-out"]
    texts = [
        record.value["text"]
        for record in map(open_source(tmp_path / "train").__getitem__, range(4))
    ]
    assert texts == [works[name] for name in sorted(sides["train"])]
    readme = (tmp_path / "README.md").read_text()
    assert "4 works to train on" in readme
    assert "3 held out" in readme
    assert digest in readme
    other = tmp_path / "other"
    other.mkdir()
    assert write_books(works | {"bible-ruth": "RUTH\n"}, other) != digest


def test_books_that_are_there_cost_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fetched: list[Path] = []
    monkeypatch.setenv("LWM_CACHE", str(tmp_path))
    monkeypatch.setattr(fetch, "download_sources", lambda archives, folder: fetched.append(folder))
    (tmp_path / "books").mkdir()
    readme = tmp_path / "books" / "README.md"
    readme.write_text(f"SHA-256: {books._DIGEST}")
    assert fetch_books(progress=False) == tmp_path / "books"
    assert fetched == []
    readme.write_text("Books of another version")
    with pytest.raises(UserError, match="holds no source release"):
        fetch_books(progress=False)
    assert len(fetched) == 1


@pytest.mark.network
def test_the_real_books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LWM_CACHE", str(tmp_path))
    folder = fetch_books(progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["books"]
    texts = {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("*/*.txt"))
    }
    digest = hashlib.sha256()
    by_name = sorted(texts, key=lambda name: Path(name).stem)
    for name in by_name:
        digest.update(f"{name}\0{len(texts[name])}\0".encode() + texts[name])
    assert digest.hexdigest() == books._DIGEST

    sizes = {
        side: sum(len(data) for name, data in texts.items() if name.startswith(side))
        for side in ("train", "held-out")
    }
    assert len(texts) == 111
    assert sum(sizes.values()) > 9.5e6
    assert 0.05 < sizes["held-out"] / sum(sizes.values()) < 0.1
    assert {Path(name).stem for name in texts if name.startswith("held-out")} == books._HELD_OUT
    whole = b"".join(texts.values())
    assert not re.search(rb"gutenberg|copyright|transcri(?:ber|ption)|https?:", whole, re.I)
    assert not re.search(rb"\r|\x1a|[ \t]\n|\n\n\n", whole)

    def phrases(name: str) -> list[bytes]:
        words = re.findall(rb"[a-z']+", texts[name].lower())
        return [b" ".join(words[i : i + 10]) for i in range(len(words) - 9)]

    held_out = {name: set(phrases(name)) for name in texts if name.startswith("held-out")}
    all_held_out = set().union(*held_out.values())
    seen = {p for name in texts.keys() - held_out for p in phrases(name) if p in all_held_out}
    for name, found in held_out.items():
        assert len(found & seen) < 0.003 * len(found), name

    monkeypatch.setattr(fetch, "download_sources", None)
    assert fetch_books(progress=False) == folder
