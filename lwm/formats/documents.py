"""Documents as text: plain text, HTML as Markdown, PDF, and folders of these."""

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from lwm.errors import UserError
from lwm.files import is_data, reading, require_package
from lwm.limits import require_bounded

_EXTRA = "documents"
_PDF = b"%PDF-"
_HTML = re.compile(r"\s*(<!doctype html|<html[\s>])", re.IGNORECASE)
_HTML_SUFFIXES = (".htm", ".html", ".xhtml")
_UNSEEN = ("script", "style", "template", "noscript", "head", "svg")
"""Elements of a page whose text nobody reads."""


def read_document(path: Path, *, skipped: Callable[[str], None] = lambda reason: None) -> str:
    """Reads a document, or all documents of a folder, each after a line with its path there.

    Args:
        path: A file, or a folder. HTML ends in .html or the like; a PDF may have any name.
        skipped: Called with the reason for each file of a folder that is no document.

    Raises:
        UserError: It is missing, too large, empty or no document, or a reader is not installed.
    """
    if not path.is_dir():
        return _read_file(path)
    documents = dict(_read_folder(path, skipped))
    if not documents:
        raise UserError(f"the folder {path} holds no document: no text, HTML or PDF")
    return "\n\n".join(f"{name}:\n\n{text.strip()}" for name, text in documents.items())


def _read_folder(folder: Path, skipped: Callable[[str], None]) -> Iterator[tuple[str, str]]:
    """Yields the documents of a folder and of those in it, by path."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not is_data(name) or not path.is_file():
            continue
        try:
            yield name, _read_file(path)
        except UserError as error:
            skipped(str(error))


def _read_file(path: Path) -> str:
    try:
        require_bounded(path)
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"document {path} does not exist") from None
    except OSError as error:
        raise UserError(f"document {path} cannot be read: {error.strerror}") from None
    if content.startswith(_PDF):
        text, empty = _pdf_text(path), "holds no text: its pages may be pictures of text"
    else:
        text, empty = _decoded(path, content), "is empty"
        if path.suffix.lower() in _HTML_SUFFIXES or (not path.suffix and _HTML.match(text)):
            text, empty = _html_text(path, text), "shows no text"
    if not text.strip():
        raise UserError(f"document {path} {empty}")
    return text


def _decoded(path: Path, content: bytes) -> str:
    is_wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))  # as Windows saves "Unicode"
    try:
        text = content.decode("utf-16" if is_wide else "utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UserError(f"document {path} is no text in UTF-8, no HTML and no PDF")
    return text.replace("\r\n", "\n")


def _pdf_text(path: Path) -> str:
    """Returns the text of a PDF, page by page."""
    pypdf = require_package("pypdf", "reading PDF", _EXTRA)
    # It reports each small fault on stderr; a file that it cannot read is an exception.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    with reading(f"document {path}"):
        reader = pypdf.PdfReader(path)
        # Many files are encrypted with an empty password, so that readers ask nothing.
        if reader.is_encrypted and not reader.decrypt(""):
            raise UserError(f"document {path} has a password; save it without one")
        return "\n\n".join(page.extract_text() for page in reader.pages)


def _html_text(path: Path, text: str) -> str:
    """Returns a page as Markdown, without scripts, pictures and addresses of links."""
    soup = require_package("bs4", "reading HTML", _EXTRA)
    markdownify = require_package("markdownify", "reading HTML", _EXTRA)
    with reading(f"document {path}"):
        page = soup.BeautifulSoup(text, "html.parser")
        for element in page.find_all(_UNSEEN):
            element.decompose()
        converter = markdownify.MarkdownConverter(heading_style="ATX", strip=["a", "img"])
        made = converter.convert_soup(page)
    return re.sub(r"\n{3,}", "\n\n", made).strip()
