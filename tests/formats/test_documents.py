"""Documents of several kinds become text."""

import sys

import pypdf
import pytest
from matplotlib.figure import Figure

from lwm.errors import UserError
from lwm.formats.documents import read_document

PAGE = """<!DOCTYPE html><html><head><title>Unseen</title><style>p {}</style></head><body>
<script>alert("unseen")</script><h1>Whales &amp; ships</h1><p>Call me <b>Ishmael</b>, says
<a href="https://a.b">the book</a>.</p><table><tr><th>Ship</th></tr><tr><td>Pequod</td></tr></table>
<img src="x.png" alt="unseen"></body></html>"""


@pytest.fixture(scope="module")
def pdf(tmp_path_factory):
    """Two pages, as a common program writes them."""
    folder = tmp_path_factory.mktemp("pdf")
    writer = pypdf.PdfWriter()
    for number, text in enumerate(("Call me Ishmael.", "Some years ago.")):
        page = Figure()
        page.text(0.1, 0.5, text)
        page.savefig(folder / f"{number}.pdf")
        writer.append(folder / f"{number}.pdf")
    writer.write(folder / "book.bin")  # known by its content
    return folder / "book.bin"


def test_a_pdf_gives_the_text_of_its_pages(pdf):
    assert read_document(pdf) == "Call me Ishmael.\n\nSome years ago."


def test_a_pdf_with_a_password_without_text_or_damaged_is_refused(pdf, tmp_path):
    writer = pypdf.PdfWriter(pdf)
    writer.encrypt("", "owner")
    writer.write(tmp_path / "open.pdf")
    assert "Ishmael" in read_document(tmp_path / "open.pdf")
    writer = pypdf.PdfWriter(pdf)
    writer.encrypt("secret")
    writer.write(tmp_path / "closed.pdf")
    with pytest.raises(UserError, match=r"closed.pdf has a password; save it without one"):
        read_document(tmp_path / "closed.pdf")
    Figure().savefig(tmp_path / "scan.pdf")
    with pytest.raises(UserError, match="holds no text: its pages may be pictures"):
        read_document(tmp_path / "scan.pdf")
    (tmp_path / "damaged.pdf").write_bytes(pdf.read_bytes()[:600])
    with pytest.raises(UserError, match=r"damaged.pdf cannot be read"):
        read_document(tmp_path / "damaged.pdf")


@pytest.mark.parametrize("name", ["page.html", "page.XHTML", "page"])
def test_a_page_gives_what_it_shows(name, tmp_path):
    (tmp_path / name).write_text(PAGE)
    text = read_document(tmp_path / name)
    assert text.startswith("# Whales & ships\n\nCall me **Ishmael**, says\nthe book.")
    assert "| Pequod |" in text
    assert "unseen" not in text.lower()
    assert "https" not in text


def test_texts_of_windows_are_read(tmp_path):
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "a.txt").write_bytes("Größe\r\n".encode(encoding))
        assert read_document(tmp_path / "a.txt") == "Größe\n"


def test_a_folder_gives_its_documents_in_order_and_names_what_it_leaves_out(tmp_path, pdf):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.html").write_text(PAGE)
    (tmp_path / "b.md").write_text("Second.\n")
    (tmp_path / "a.txt").write_text("First.\n")
    (tmp_path / ".hidden").write_text("unseen")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    left: list[str] = []
    text = read_document(tmp_path, skipped=left.append)
    assert text.startswith("a.txt:\n\nFirst.\n\nb.md:\n\nSecond.\n\nsub/c.html:\n\n# Whales")
    assert len(left) == 1
    assert "picture.png is no text in UTF-8, no HTML and no PDF" in left[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no document"):
        read_document(tmp_path / "empty")


def test_a_missing_reader_is_named(tmp_path, pdf, monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdf", None)
    with pytest.raises(UserError, match=r"reading PDF needs pypdf: pip install 'lwm\[documents\]'"):
        read_document(pdf)
