"""Questions about long documents: chunks, pairs, conversations, and a set that survives kills."""

import json
import re

import jax
import pytest

from lwm.cli.qa import data_qa
from lwm.convert.export import save_model
from lwm.data.check import check
from lwm.data.fields import RecordEncoder
from lwm.data.format import ExampleFormat
from lwm.data.sets import open_set
from lwm.data.sources import open_source
from lwm.errors import UserError
from lwm.eval.question import Response
from lwm.eval.subject import Subject
from lwm.sharding import make_mesh
from lwm.synth.qa.chunks import Chunk, cut
from lwm.synth.qa.config import QASetConfig
from lwm.synth.qa.conversations import conversations
from lwm.synth.qa.pairs import INSTRUCTION, Pair, read_pair
from lwm.synth.qa.run import EXAMPLES, PAIRS, REPORT, write_qa
from lwm.tokens import TokenSpace

SENTENCE = "In the year {0} the ship number {0} came home to Bristol with wool and tin. "
BOOK = "".join(SENTENCE.format(1700 + number) for number in range(60))
CONFIG = QASetConfig(chunk_tokens=300, length=1500, max_tokens=120)


class Writer:
    """Writes a pair about the first year of a text; of each fifth text, an answer without one."""

    def __init__(self, asked, stop=None):
        self.asked, self.stop = asked, stop

    def answers(self, questions):
        for question in questions:
            if len(self.asked) == self.stop:
                raise KeyboardInterrupt
            text = question.message.removesuffix(INSTRUCTION)
            year = int(re.findall(r"\d{4}", text)[0])
            self.asked.append(year)
            answer = f" ship came home in {year}?\nAnswer: Number {year}.\n\nQuestion: Another?"
            if question.cell.number % 5 == 4:
                answer = " is it?"
            yield (
                question,
                Response(text=answer, prompt_tokens=len(question.ids), completion_tokens=20),
            )


@pytest.fixture
def book(tmp_path):
    file = tmp_path / "book.txt"
    file.write_text(BOOK)
    return str(file)


@pytest.fixture
def write(byte_tokenizer, book, tmp_path):
    """Makes a set with that writer; returns the report, and the years that were asked about."""

    def run(folder, config=CONFIG, *, files=(book,), stop=None, context=4096):
        asked = []
        subject = Subject(
            description={"name": "writer"},
            tokenizer=byte_tokenizer,
            context=context,
            answerer=lambda tokens, progress: Writer(asked, stop),
        )
        try:
            return write_qa(subject, files, tmp_path / folder, config), asked
        except KeyboardInterrupt:
            return None, asked

    return run


def test_chunks_end_with_sentences_and_hold_the_text(byte_tokenizer):
    parts = list(cut(BOOK, byte_tokenizer, 300))
    assert " ".join(parts) == BOOK.strip()
    assert all(part.endswith("tin.") for part in parts)
    assert all(200 < len(part) <= 300 for part in parts[:-1])
    assert list(cut("x" * 700, byte_tokenizer, 300)) == ["x" * 300, "x" * 300, "x" * 100]
    assert list(cut(" \n ", byte_tokenizer, 300)) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "Who is Ruth?\nAnswer: A Moabitess.",
            Pair(question="Who is Ruth?", answer="A Moabitess."),
        ),
        (
            "**Who is\nRuth?**\n\n**Answer:** A Moabitess\nof Moab.\n\nQuestion: Who else?",
            Pair(question="Who is Ruth?", answer="A Moabitess of Moab."),
        ),
        (
            "Who is Ruth?\nAnswer: The answer is: The answer is: A Moabitess.",
            Pair(question="Who is Ruth?", answer="A Moabitess."),
        ),
        ("Who is Ruth?", "no answer"),
        ("Who is Ruth?\nAnswer: ...", "no answer"),
        ("Ruth was here.\nAnswer: Yes.", "no question"),
        ("Who is Ruth? Who is Boaz?\nAnswer: They.", "no question"),
        ("Who wrote this text?\nAnswer: Moses.", "about the text itself"),
    ],
)
def test_pairs_are_read_or_refused_with_a_reason(text, found):
    assert read_pair(text, is_cut=False) == found


def test_an_answer_that_is_cut_off_is_none():
    assert read_pair("Who is Ruth?\nAnswer: A Moabi", is_cut=True) == "cut off"
    whole = read_pair("Who is Ruth?\nAnswer: A Moabitess.\n\nQuestion: Wh", is_cut=True)
    assert whole == Pair(question="Who is Ruth?", answer="A Moabitess.")


def test_neighbouring_chunks_are_joined_with_their_questions(write, tmp_path, byte_tokenizer):
    report, asked = write("set")
    lines = [json.loads(line) for line in (tmp_path / "set" / EXAMPLES).read_text().splitlines()]
    chunks = list(cut(BOOK, byte_tokenizer, 300))
    assert report.chunks == len(chunks) == len(asked)
    assert report.malformed == {"no answer": len(chunks) // 5}
    assert report.pairs == len(chunks) - len(chunks) // 5
    assert report.examples == len(lines) > 3
    assert sum(line["chunks"] for line in lines) == report.chunks_used == len(chunks)
    for line in lines:
        assert line["tokens"] <= 1500
        first, count = line["first_chunk"], line["chunks"]
        text = "\n\n".join(chunks[first : first + count])
        asked_first, *_ = line["messages"]
        assert asked_first["content"].startswith(f"{text}\n\n")
        questions = [turn["content"].removeprefix(text).strip() for turn in line["messages"][::2]]
        answers = [turn["content"] for turn in line["messages"][1::2]]
        for question, answer in zip(questions, answers, strict=True):
            year = re.findall(r"\d{4}", question)[0]
            assert answer == f"Number {year}."
            assert year in text
        whole = [place for place in range(first, first + count) if place % 5 != 4]
        assert len(questions) == len(whole)
    # One more chunk with its question would not have fitted.
    assert all(line["tokens"] > 1000 for line in lines[:-1])


def test_examples_are_read_as_training_data(write, tmp_path, byte_tokenizer):
    report, _ = write("set")
    format = ExampleFormat()
    space = TokenSpace(text=byte_tokenizer.vocab_size)
    file = str(tmp_path / "set" / EXAMPLES)
    found = check(
        open_source(file), RecordEncoder(tokenizer=byte_tokenizer, tokens=space, format=format)
    )
    assert (found.num_bad, len(found.lengths)) == (0, report.examples)
    first = open_set((file,), format, byte_tokenizer, space)[0]
    trained = byte_tokenizer.decode([int(i) for i in first.ids[first.loss_mask]])
    assert "Number 17" in trained
    assert "Bristol" not in trained


@pytest.mark.parametrize("stops", [(0,), (1, 5), (2, 3, 4)])
def test_a_stopped_set_goes_on_and_is_the_same(write, tmp_path, stops):
    write("whole")
    asked = []
    for stop in stops:
        report, part = write("parts", stop=stop)
        assert report is None
        asked += part
    with (tmp_path / "parts" / PAIRS).open("ab") as file:
        file.write(b'{"document": 0, "chu')
    _, part = write("parts")
    asked += part
    assert len(asked) == len(set(asked))
    for name in (PAIRS, EXAMPLES, REPORT):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_set_grows_by_chunks(write, tmp_path):
    few = QASetConfig(chunk_tokens=300, length=1500, max_tokens=120, chunks=4)
    report, asked = write("set", few)
    assert (report.chunks, len(asked)) == (4, 4)
    _, more = write("set")
    write("whole")
    assert (tmp_path / "set" / EXAMPLES).read_bytes() == (
        tmp_path / "whole" / EXAMPLES
    ).read_bytes()
    assert not set(asked) & set(more)


def test_a_question_asked_before_is_malformed(write, tmp_path):
    file = tmp_path / "twice.txt"
    file.write_text(SENTENCE.format(1700) * 40)
    report, _ = write("set", files=(str(file),))
    assert report.pairs == 4  # one for each first word but the fifth
    assert report.malformed["asked before"] > 2


def test_conversations_without_pairs_are_left_out(byte_tokenizer):
    chunks = [
        Chunk(document=0, name="a", number=number, text="word " * 40, length=300)
        for number in range(6)
    ]
    pairs = {(0, 4): Pair(question="Who?", answer="Nobody.")}
    made = list(conversations(chunks, pairs, byte_tokenizer, length=600, seed=0))
    assert [[chunk.number for chunk in one.chunks] for one in made] == [[4, 5]]
    assert list(conversations(chunks, pairs, byte_tokenizer, length=100, seed=0)) == []


def test_what_cannot_work_is_refused(write, tmp_path, book):
    with pytest.raises(UserError, match="length 300 has no room for a chunk of 250 tokens"):
        QASetConfig(chunk_tokens=250, length=300)
    with pytest.raises(UserError, match="chunks 0 must be 1 or more"):
        QASetConfig(chunks=0)
    with pytest.raises(UserError, match="above the context of writer, 400 tokens; lower chunk_t"):
        write("set", context=400)
    write("set", QASetConfig(chunk_tokens=300, length=1500, max_tokens=120, chunks=2))
    with pytest.raises(UserError, match=r"config.chunk_tokens was 300, is 200"):
        write("set", QASetConfig(chunk_tokens=200, length=1500, max_tokens=120))
    with open(book, "a") as file:
        file.write("And more.")
    with pytest.raises(UserError, match="belongs to another evaluation"):
        write("set")
    (tmp_path / "none.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(UserError, match=r"none.jsonl:1: the record has no field `text`"):
        write("other", files=(str(tmp_path / "none.jsonl"),))


def test_the_command_says_what_was_made(tiny, init, byte_tokenizer, tmp_path, book, capsys):
    tokens = TokenSpace(text=byte_tokenizer.vocab_size)
    with jax.set_mesh(make_mesh()):
        model = init(tiny(tokens=tokens, max_context=2048)).unstack()
        save_model(model, byte_tokenizer, tmp_path / "model")
    config = QASetConfig(chunk_tokens=300, length=1500, max_tokens=8, chunks=2)
    for asked in (2, 0):
        data_qa((book,), out=tmp_path / "set", model=str(tmp_path / "model"), set=config)
        lines = capsys.readouterr().out.splitlines()
        assert re.match(rf"chunks +2, {asked} asked about now in \d+ s", lines[0])
        assert re.match(r"malformed +100.0%: (no|cut)", lines[2])
    with pytest.raises(UserError, match="give the model, or --endpoint"):
        data_qa((book,), out=tmp_path / "set")
