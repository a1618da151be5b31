"""What a model writes as text and frames, whatever the tokens that its text is cut into."""

import dataclasses
import itertools

import numpy as np
import pytest
import tokenizers

from lwm.generate.grammar import VisionGrammar
from lwm.generate.output import AnswerReader, Frame, FrameReader, joined
from lwm.tokenizer.markers import CLOSING, OPENING, VisionMarkers
from lwm.tokenizer.tokenizer import TextStream, Tokenizer
from lwm.tokens import TokenSpace

SIZE = 3


@pytest.fixture(scope="module")
def grammar(byte_tokenizer):
    tokens = TokenSpace.of(byte_tokenizer.vocab_size, 8)
    marks = VisionMarkers.of(byte_tokenizer, tokens)
    return VisionGrammar(tokens=tokens, opening=marks.openings, tokens_per_frame=SIZE)


@pytest.fixture(scope="module")
def ids(byte_tokenizer, grammar):
    """Returns the ids of texts, and of lists of frames."""

    def make(*parts):
        given = []
        for part in parts:
            if isinstance(part, str):
                given += byte_tokenizer.encode(part, special=False)
                continue
            tokens = grammar.tokens
            for codes in part:
                given += [*(code + tokens.text for code in codes), tokens.end_of_frame]
            given[-1] = tokens.end_of_vision
        return given

    return make


@pytest.fixture
def written(byte_tokenizer, grammar, ids):
    """Reads an answer id by id, and returns its texts, and its frames as codes."""

    def read(*parts, stops=()):
        reader = AnswerReader(TextStream(byte_tokenizer), stops, grammar)
        found = [*itertools.chain.from_iterable(map(reader.push, ids(*parts))), reader.finish()]
        return [
            piece.codes.tolist() if isinstance(piece, Frame) else piece
            for piece in joined(filter(lambda piece: isinstance(piece, Frame) or piece, found))
        ]

    return read


ONE, TWO = [1, 2, 3], [4, 5, 6]


def test_frames_are_counted_in_their_own_video(grammar, ids):
    reader = FrameReader(grammar)
    found = list(map(reader.push, ids("a", [ONE, TWO], "b", [ONE])))
    texts = [each for each in found if isinstance(each, int)]
    frames = [each for each in found if isinstance(each, Frame)]
    assert texts == ids("ab")
    assert [(frame.number, frame.is_last) for frame in frames] == [(0, False), (1, True), (0, True)]
    assert [frame.codes.tolist() for frame in frames] == [ONE, TWO, ONE]
    assert found.count(None) == 3 * SIZE, "a frame is there with its marker, and not before"


def test_frames_that_were_given_count_in_the_first_video_only(grammar, ids):
    reader = FrameReader(grammar, given=2)
    found = list(map(reader.push, ids([ONE, TWO], [ONE])))
    assert [each.number for each in found if isinstance(each, Frame)] == [2, 3, 0]


def test_text_and_frames_come_out_in_the_order_they_are_written(written):
    answer = [
        *("Here: ", OPENING),
        *([ONE, TWO], CLOSING, " and ", OPENING, [TWO], CLOSING + OPENING, [ONE]),
        *(CLOSING, " done"),
    ]
    assert written(*answer) == ["Here: ", ONE, TWO, " and ", TWO, ONE, " done"]


def test_text_that_only_resembles_a_mark_is_shown(written):
    for text in ("<visio", "a<b", "</vision", "< vision>", "<Vision>", "1 <", "<</"):
        assert written(text) == [text]
        assert written(text + "x", OPENING, [ONE], "x" + text) == [text + "x", ONE, "x" + text]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A tokenizer with every piece of a text for a token, and the text."""
    text = f"a{OPENING}b{CLOSING}{CLOSING}c<d{OPENING}</e"
    length = len(text)
    ends = [(start, end) for start in range(length) for end in range(start + 1, length + 1)]
    spans = dict.fromkeys(text[start:end] for start, end in ends)
    vocabulary = {span: number for number, span in enumerate(spans)}
    folder = tmp_path_factory.mktemp("pieces")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return Tokenizer.open(folder), vocabulary, text


@pytest.mark.parametrize("count", [0, 1, 3, 10, 25, 39])
def test_marks_are_never_shown_however_tokens_divide_them(grammar, pieces, count):
    tokenizer, vocabulary, text = pieces
    grammar = dataclasses.replace(grammar, tokens=TokenSpace.of(len(vocabulary), 8), opening=())
    rng = np.random.default_rng(count)
    for _ in range(20):
        cuts = np.sort(rng.choice(np.arange(1, len(text)), count, replace=False)).tolist()
        spans = itertools.pairwise([0, *cuts, len(text)])
        ids = [vocabulary[text[start:end]] for start, end in spans]
        assert tokenizer.decode(ids) == text
        reader = AnswerReader(TextStream(tokenizer), (), grammar)
        found = [*itertools.chain.from_iterable(map(reader.push, ids))]
        assert "".join(map(str, [*found, reader.finish()])) == "abc<d</e"


def test_text_is_shown_as_soon_as_it_can_be_no_mark(byte_tokenizer, grammar, ids):
    reader = AnswerReader(TextStream(byte_tokenizer), (), grammar)
    found = [list(reader.push(token)) for token in ids("a<v<b")]
    assert found == [["a"], [], [], ["<v"], ["<b"]]
    assert reader.finish() == ""


def test_text_without_a_grammar_keeps_its_marks(byte_tokenizer, ids):
    reader = AnswerReader(TextStream(byte_tokenizer))
    found = [*itertools.chain.from_iterable(map(reader.push, ids(f"a{OPENING}b")))]
    assert "".join(map(str, found)) == f"a{OPENING}b"


def test_stop_strings_end_an_answer_beside_frames(written):
    answer = ["One ", OPENING, [ONE], CLOSING, " two END three"]
    assert written(*answer, stops=("END",)) == ["One ", ONE, " two "]
    assert written(*answer, stops=("END", "two")) == ["One ", ONE, " "]
    assert written(*answer, stops=("never",)) == ["One ", ONE, " two END three"]


def test_a_stop_string_may_have_a_mark_within_and_none_across_a_frame(written):
    assert written("a", CLOSING, "b", "c", stops=("ab",)) == []
    assert written("a", OPENING, [ONE], "b", "c", stops=("ab",)) == ["a", ONE, "bc"]


def test_what_might_begin_a_stop_string_is_shown_before_the_frame(written):
    assert written("a EN", OPENING, [ONE], "D", stops=("END",)) == ["a EN", ONE, "D"]
    assert written("a EN", stops=("END",)) == ["a EN"]


def test_an_answer_says_that_it_has_stopped(byte_tokenizer, grammar, ids):
    reader = AnswerReader(TextStream(byte_tokenizer), ("b",), grammar)
    for token in ids("a"):
        assert list(reader.push(token)) == ["a"]
    assert not reader.is_stopped
    for token in ids("bc"):
        assert list(reader.push(token)) == []
    assert reader.is_stopped
    assert reader.finish() == ""


def test_pieces_of_text_side_by_side_are_one():
    frames = [Frame(np.array(codes, np.int32), 0, True) for codes in (ONE, TWO)]
    assert list(joined(["a", "b", *frames, "c"])) == ["ab", *frames, "c"]
    assert list(joined([])) == []
