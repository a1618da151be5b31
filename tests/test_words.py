"""Plain English: docstrings begin with a verb or a noun, and private idiom stays out."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
RELATIVE = re.compile(r"(What|Who|Whom|Whose|Those|Whatever|Which)\b")
IDIOM = re.compile(r"\b(told|tells|learnt|drawn on)\b", re.IGNORECASE)
READ_FROM_OLD_FILES = {
    "lwm/convert/card_scores.py": {"told"},  # a key of `report.json`
    "lwm/eval/vision.py": {"told"},  # the same key
    "lwm/recipes/small.py": {"told"},  # the name of a held-out set in `log.jsonl`
}
"""File to the words in it that are names in files of an earlier version."""


def string_statements(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the line and text of each docstring, and of each string after a field."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            text = node.value.value
            if isinstance(text, str):
                yield node.lineno, text


def test_docstrings_begin_with_a_verb_or_a_noun():
    files = sorted((ROOT / "lwm").rglob("*.py"))
    assert len(files) > 100
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text.strip()[:60]}"
        for path in files
        for line, text in string_statements(path)
        if RELATIVE.match(text.strip())
    ]
    assert not found


def test_every_module_and_package_has_a_docstring():
    files = sorted((ROOT / "lwm").rglob("*.py"))
    bare = [
        str(path) for path in files if not ast.get_docstring(ast.parse(path.read_text("utf-8")))
    ]
    assert not bare


def test_no_private_idiom():
    texts = [*(ROOT / "lwm").rglob("*.py"), *(ROOT / "lwm").rglob("*.j2")]
    # All but the book that comes with the package.
    texts += [*(ROOT / "lwm").rglob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    found = []
    for path in texts:
        name = path.relative_to(ROOT).as_posix()
        allowed = READ_FROM_OLD_FILES.get(name, set())
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            words = {match.group().lower() for match in IDIOM.finditer(line)} - allowed
            if words:
                found.append(f"{name}:{number}: {', '.join(sorted(words))}")
    assert not found
