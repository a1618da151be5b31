"""Writes the parts of README and docs that are made from the code: maps and tables of old names.

python tools/code_map.py
"""

import ast
import functools
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/code.md", "docs/jobs.md", "docs/renamed.md")
_PART = re.compile(r"(<!-- made from the code: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def caption(module: Path) -> str:
    """Returns the first line of a module's docstring, without its full stop."""
    text = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].rstrip(".")


def modules() -> str:
    """Returns every package and module of `lwm` with its caption, one a line."""
    lines = []
    for package, depth in _packages():
        lines.append((f"{'  ' * depth}{package.name}/", caption(package / "__init__.py")))
        lines += [
            (f"{'  ' * depth}  {module.name}", caption(module))
            for module in sorted(package.glob("*.py"))
            if module.name != "__init__.py"
        ]
    return _tree(lines)


def folders() -> str:
    """Returns the packages of `lwm` with their captions, one a line."""
    return _tree(
        (f"{'  ' * depth}{package.name}/", caption(package / "__init__.py"))
        for package, depth in _packages()
    )


def names() -> str:
    """Returns the table of renamed modules, classes and functions."""
    renamed = _renamed()
    return _table("name", renamed["MODULES"] | renamed["NAMES"])


def settings() -> str:
    """Returns the table of renamed settings of a run."""
    return _table("setting", _renamed()["SETTINGS"])


def journey(file: Path) -> str:
    """Returns a script of a job as a block; tests run it."""
    return f"```bash\n{file.read_text(encoding='utf-8').strip()}\n```"


def current(page: Path) -> str:
    """Returns a page with each of its made parts as the code is now."""
    makers = {made.__name__: made for made in (modules, folders, names, settings)}
    for file in (ROOT / "tests" / "journeys").glob("*.sh"):
        makers[file.stem] = functools.partial(journey, file)

    def fill(part: re.Match[str]) -> str:
        begin, maker, end = part.groups()
        return f"{begin}\n{makers[maker]()}\n\n{end}"

    text, count = _PART.subn(fill, page.read_text(encoding="utf-8"))
    if not count:
        raise ValueError(f"{page} has no part that is made from the code")
    return text


def _packages() -> Iterator[tuple[Path, int]]:
    """Yields `lwm` and its packages with their depth, in the order of the import contract."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    order = [name for layer in layers for name in re.findall(r"\w+", layer)]
    lwm = ROOT / "lwm"
    yield lwm, 0
    for package in sorted(_inside(lwm), key=lambda package: order.index(package.name)):
        yield package, 1
        yield from ((inner, 2) for inner in _inside(package))


def _inside(package: Path) -> list[Path]:
    return sorted(file.parent for file in package.glob("*/__init__.py"))


def _renamed() -> dict[str, dict[str, str]]:
    """Returns the tables of `lwm/renamed.py`, read without importing it."""
    body = ast.parse((ROOT / "lwm" / "renamed.py").read_text(encoding="utf-8")).body
    return {
        target.id: ast.literal_eval(node.value)
        for node in body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id in ("MODULES", "NAMES", "SETTINGS")
    }


def _tree(lines: Iterator[tuple[str, str]] | list[tuple[str, str]]) -> str:
    lines = list(lines)
    width = max(len(name) for name, _ in lines)
    body = "\n".join(f"{name:<{width}}  {text}".rstrip() for name, text in lines)
    return f"```text\n{body}\n```"


def _table(what: str, renamed: Mapping[str, str]) -> str:
    rows = [f"| `{old}` | `{new}` |" for old, new in renamed.items()]
    return "\n".join([f"| old {what} | new |", "|---|---|", *rows])


def main() -> None:
    """Writes the pages."""
    for page in PAGES:
        file = ROOT / page
        file.write_text(current(file), encoding="utf-8")
        print(page, file=sys.stderr)


if __name__ == "__main__":
    main()
