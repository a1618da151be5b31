"""Where a text may be cut, how its tokens are counted, and every kind of source."""

import itertools
import json

import pytest

from lwm.errors import UserError
from lwm.eval.needle.haystack import (
    BOOK,
    Haystack,
    blocks_of,
    name_of,
    read_documents,
    require_readable,
)


def opened(source, tokenizer, *, most):
    return Haystack.read(name_of(source), blocks_of(read_documents(source)), tokenizer, most=most)


def test_the_book_is_at_hand(tokenizer):
    found = opened(None, tokenizer, most=10**9)
    assert found.name == BOOK
    assert found.text.startswith("CHAPTER 1")
    assert "Spouter-Inn" in found.text
    assert found.num_tokens == pytest.approx(len(tokenizer.encode(found.text)), rel=1e-3)
    assert found.tokens_before(len(found.text)) == found.num_tokens


def test_sentences_end_where_they_end(byte_tokenizer, tmp_path):
    path = tmp_path / "h.txt"
    ends = [
        "One.",
        " “Two!”",
        " Is 3.5 three?",
        " 文章。",
        "次の文！",
        "\n\nA heading",
        "\n\nThe end.",
    ]
    path.write_text("".join(ends), encoding="utf-8")
    found = opened(path, byte_tokenizer, most=1000)
    wanted = [len("".join(ends[: i + 1])) for i in range(len(ends))]
    assert found.sentence_ends.tolist() == wanted


def test_tokens_are_counted_up_to_each_place(tokenizer, tmp_path):
    path = tmp_path / "h.txt"
    path.write_text("Plain words. Ünïcödé, 日本語。 Emoji 😀 too. The end.\n", encoding="utf-8")
    found = opened(path, tokenizer, most=1000)
    for place in found.sentence_ends.tolist():
        alone = len(tokenizer.encode(found.text[:place], special=False))
        assert abs(found.tokens_before(place) - alone) <= 1
        assert found.sentence_at(found.tokens_before(place) + 1, start=0) == place


def test_no_more_is_read_than_asked_for(byte_tokenizer, tmp_path):
    path = tmp_path / "long.jsonl"
    with path.open("w") as file:
        for i in range(14):
            file.write(json.dumps({"text": f"{i} " + "word " * 2000}) + "\n")
        file.write("not JSON\n")
    found = opened(path, byte_tokenizer, most=70_000)
    assert 70_000 <= found.num_tokens < 140_000
    with pytest.raises(UserError, match='line 15: not a JSON object with a "text"'):
        opened(path, byte_tokenizer, most=10**9)


def test_stretches_lie_side_by_side_or_overlap(byte_tokenizer, prose):
    wide = opened(prose(300), byte_tokenizer, most=10**6)
    assert next(wide.start(i, 3, 1000) for i in range(3)) == 0
    starts = [wide.start(i, 3, 1000) for i in range(3)]
    assert all(later - earlier >= 1000 - 40 for earlier, later in itertools.pairwise(starts))
    assert all(wide.text[start:].startswith("Sentence number") for start in starts)
    assert [wide.start(i, 3, 10**6) for i in range(3)] == [0, 0, 0]


def test_a_short_text_is_repeated_when_asked(byte_tokenizer, prose):
    once = opened(prose(10), byte_tokenizer, most=1000)
    twice = once.repeated(once.num_tokens + 1)
    assert not once.is_repeated
    assert twice.is_repeated
    assert twice.text == once.text * 2
    assert twice.tokens_before(len(once.text)) == once.num_tokens
    assert twice.num_tokens == 2 * once.num_tokens


def test_folders_and_lines_of_json_are_read(byte_tokenizer, tmp_path):
    (tmp_path / "b.txt").write_text("Second.")
    (tmp_path / "a.txt").write_text("First.")
    assert opened(tmp_path, byte_tokenizer, most=99).text.split() == ["First.", "Second."]
    lines = tmp_path / "x.jsonl"
    lines.write_text('{"text": "One. \\ud800"}\n\n{"text": "Two.", "other": 1}\n')
    assert opened(lines, byte_tokenizer, most=99).text.split() == ["One.", "?", "Two."]


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("absent.txt", None, "does not exist"),
        ("bytes.txt", b"\xff\xfe\x00", "cannot be read as UTF-8"),
        ("list.jsonl", b"[1]\n", "line 1: not a JSON object"),
        ("number.jsonl", b'{"text": 1}\n', "line 1: not a JSON object"),
        ("folder", None, "holds no .txt file"),
        ("empty.txt", b"", "too few for 10 tokens"),
        ("short.txt", b"short", "has 6 bytes, too few for 10 tokens"),
    ],
)
def test_bad_sources_are_named(tmp_path, name, data, match):
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    elif name == "folder":
        path.mkdir()
    with pytest.raises(UserError, match=match):
        require_readable(path, least=10, repeat=False)


def test_a_byte_order_mark_is_no_part_of_a_haystack(byte_tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("One. Two.", "utf-8-sig")
    (tmp_path / "b.JSONL").write_text('{"text": "Three."}\n', "utf-8-sig")
    assert opened(tmp_path / "a.txt", byte_tokenizer, most=99).text == "One. Two.\n"
    assert opened(tmp_path / "b.JSONL", byte_tokenizer, most=99).text == "Three.\n\n"


def test_files_of_systems_are_no_part_of_a_haystack(byte_tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("One.")
    (tmp_path / "._a.txt").write_bytes(b"\x00\x05\x16\x07\xff")
    (tmp_path / ".hidden.txt").write_text("Hidden.")
    assert opened(tmp_path, byte_tokenizer, most=99).text == "One.\n"


def test_a_compressed_haystack_is_refused_by_name(tmp_path):
    (tmp_path / "a.txt").write_text("One.")
    (tmp_path / "b.txt.gz").write_bytes(b"\x1f\x8b\x08\x00\x00\x00\x00\x00")
    for source in (tmp_path, tmp_path / "b.txt.gz"):
        with pytest.raises(UserError, match=r"/b\.txt\.gz is compressed; unpack it first: gunzip"):
            require_readable(source, least=9, repeat=False)
