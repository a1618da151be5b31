"""The suite asked of programs that read, and its report."""

import dataclasses
import html.parser
import json
import re

import pytest

from lwm.cli.evaluate import eval_compare, run_all
from lwm.errors import UserError
from lwm.eval.question import Response
from lwm.eval.subject import Subject
from lwm.eval.suite.config import SuiteConfig
from lwm.eval.suite.run import PAGE, REPORT, TIMES, evaluate_all
from lwm.eval.suite.times import Times

SCRIPT = "<script>alert('1')</script> & \x00\u202e"


class Reader:
    """Finds numbers; `wrong` says of a question whether the answer is a script instead."""

    def __init__(self, oracle, wrong=lambda question: False):
        self._oracle, self._wrong = oracle, wrong
        self.asked = []
        self.most = 1 << 30

    def answers(self, questions):
        for question in questions:
            if len(self.asked) == self.most:
                raise KeyboardInterrupt("killed")
            self.asked.append(question.message)
            if self._wrong(question):
                size = len(question.ids)
                yield question, Response(text=SCRIPT, prompt_tokens=size, completion_tokens=9)
            else:
                yield from self._oracle.answers([question])


@pytest.fixture
def reader(oracle, byte_tokenizer):
    return lambda wrong=lambda question: False: Reader(oracle(byte_tokenizer), wrong)


@pytest.fixture
def subject(byte_tokenizer):
    """Makes a subject of a program."""

    def make(program, name="reader", context=None):
        return Subject(
            description={"name": name},
            tokenizer=byte_tokenizer,
            context=context,
            answerer=lambda tokens, progress: program,
        )

    return make


@pytest.fixture
def small(prose):
    """All parts, on a short text."""
    return SuiteConfig(
        lengths=(1536, 2048),
        samples=(2, 1),
        depths=(0.0, 100.0),
        tasks=("niah_single_1",),
        haystack=prose(150),
    )


@pytest.fixture
def needles(small):
    """The parts of needles."""
    return dataclasses.replace(small, parts=("needle", "multi"))


def is_ruler(question):
    return question.cell.part == "ruler"


VOID = ("meta", "br", "img", "link", "input", "hr")


class Balance(html.parser.HTMLParser):
    """Sees to it that all elements end, and records them."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.ids, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_has_all_sections_and_is_whole_and_alone(
    reader, subject, tmp_path, small, needles
):
    program = reader(lambda question: is_ruler(question) or question.cell.length == 2048)
    name = "model </title><script>"
    report = evaluate_all(
        subject(program, name=name), small, tmp_path, command="lwm eval all <model>"
    )
    text = (tmp_path / PAGE).read_text(encoding="utf-8")
    page = Balance(text)
    tags = {tag for tag, _ in page.seen}
    assert not tags & {"script", "img", "link", "iframe", "object"}
    assert len(page.ids) == len(set(page.ids))
    loads = re.findall(r"(?:src|href|data|url)\s*[=(]\s*[\"']?([^\"')\s>]+)", text)
    assert all(each.startswith(("#", "data:image/png;base64,")) for each in loads)
    assert "@import" not in text
    assert "\x00" not in text
    shown = " ".join(page.words)
    for words in (
        "One needle",
        "4 needles, 1 asked",
        "4 needles, 4 asked",
        "RULER",
        "effective length",
        "Left out",
        "perplexity: needs a model in this process",
        "Wrong answers",
        "<script>alert('1')</script>",
        "lwm eval all <model>",
        "What ran",
        "versions",
        "hardware",
        "chance",
        "time: all",
        name,
    ):
        assert words in shown, words
    assert {part["name"] for part in report["parts"]} <= set(page.ids)
    heads = [attrs for tag, attrs in page.seen if tag == "th"]
    assert all(attrs.get("scope") in ("col", "row") for attrs in heads)
    for figure in ("accuracy", "needle/heatmap", "ruler/heatmap"):
        for ending in ("png", "svg"):
            assert (tmp_path / f"{figure}.{ending}").stat().st_size > 1000
    assert text.count("<svg") == 1
    assert text.count('class="heat"') == 2


def test_each_cell_has_its_number_of_samples_and_scores_are_those_of_the_answers(
    reader, subject, tmp_path, needles
):
    program = reader(lambda question: question.cell.length == 2048)
    report = evaluate_all(subject(program), needles, tmp_path)
    needle, one, four = report["parts"]
    assert [part["name"] for part in report["parts"]] == ["needle", "needle-4-1", "needle-4-4"]
    for part, depths in ((needle, 2), (one, 1), (four, 1)):
        entries = part["report"]["by_length"]
        assert [(each["asked"], each["score"]) for each in entries] == [
            (2 * depths, 1),
            (depths, 0),
        ]
    assert len(program.asked) == 6 + 2 * 3
    example = needle["examples"][0]
    assert example["context_length"] == 2048
    assert example["response"].startswith("<script>")
    (around,) = example["around"]
    assert f"number is: {around['answer']}" in around["text"]
    assert example["prompt_end"].startswith("[…] ")
    assert "What is the special magic" in example["prompt_end"]
    assert example["answers"] == [around["answer"]]


def test_questions_about_the_same_text_are_asked_one_after_another(
    reader, subject, tmp_path, needles
):
    program = reader()
    evaluate_all(subject(program), dataclasses.replace(needles, parts=("multi",)), tmp_path)
    texts = [message[: message.rindex("What ")] for message in program.asked]
    assert texts[::2] == texts[1::2]
    assert len(set(texts)) == 3


def test_a_killed_suite_goes_on_and_reports_the_same(reader, subject, tmp_path, small):
    whole, parts = reader(is_ruler), reader(is_ruler)
    evaluate_all(subject(whole), small, tmp_path / "whole", command="c")
    for most in (8, 13, 1 << 30):
        parts.most = most
        if most < len(whole.asked):
            with pytest.raises(KeyboardInterrupt, match="run the same command to continue"):
                evaluate_all(subject(parts), small, tmp_path / "parts", command="c")
            assert not (tmp_path / "parts" / REPORT).exists()
        else:
            evaluate_all(subject(parts), small, tmp_path / "parts", command="c")
    assert sorted(parts.asked) == sorted(whole.asked)
    same = [(tmp_path / name / REPORT).read_bytes() for name in ("whole", "parts")]
    assert same[0] == same[1]
    evaluate_all(subject(parts), small, tmp_path / "parts", command="c")
    assert len(parts.asked) == len(whole.asked)
    assert (tmp_path / "parts" / REPORT).read_bytes() == same[0]


def test_lengths_above_the_context_are_left_out_with_a_note(reader, subject, tmp_path, needles):
    program = reader()
    report = evaluate_all(subject(program, context=1600), needles, tmp_path)
    assert report["left_out"] == [
        "needle at 2,048 tokens: above the model's context of 1,600",
        "multi at 2,048 tokens: above the model's context of 1,600",
    ]
    lengths = {
        each["context_length"] for part in report["parts"] for each in part["report"]["cells"]
    }
    assert lengths == {1536}
    with pytest.raises(UserError, match="nothing is left to ask of reader: needle at 1,536"):
        evaluate_all(subject(program, context=1000), needles, tmp_path / "other")


def test_a_folder_of_another_suite_is_refused_before_anything_is_asked(
    reader, subject, tmp_path, needles
):
    several = dataclasses.replace(needles, parts=("multi",))
    evaluate_all(subject(reader()), several, tmp_path)
    program = reader()
    with pytest.raises(UserError, match=r"needle-4-1.*config\.seed was 1234, is 1"):
        evaluate_all(subject(program), dataclasses.replace(needles, seed=1), tmp_path)
    with pytest.raises(UserError, match="another evaluation"):
        evaluate_all(subject(program, name="other"), several, tmp_path)
    assert program.asked == []


def test_the_command_prints_scores_and_the_page_and_models_are_compared(
    reader, subject, tmp_path, capsys, needles
):
    folders = []
    for name, wrong in (("good", lambda question: False), ("bad", lambda question: True)):
        folders.append(tmp_path / name)
        run_all(subject(reader(wrong), name=name), needles, folders[-1])
    printed = capsys.readouterr().out
    assert "4 needles, 4 asked" in printed
    assert "100.0 (51–100), n = 4" in printed
    assert str(folders[0] / PAGE) in printed
    eval_compare(tuple(folders), out=tmp_path / "out")
    printed = capsys.readouterr().out
    assert "bad less good" in printed
    assert "-100.0 (-100 to -100)" in printed
    text = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    assert "Differences to good" in " ".join(Balance(text).words)
    report = json.loads((tmp_path / "out" / "comparison.json").read_bytes())
    parts = report["comparisons"][0]["parts"]
    assert [part["part"] for part in parts] == ["needle", "needle-4-1", "needle-4-4"]
    assert all(part["paired"] and part["overall"]["difference"] == -1 for part in parts)
    with pytest.raises(UserError, match="exists"):
        eval_compare(tuple(folders), out=tmp_path / "out")


def test_times_of_all_calls_are_added(tmp_path):
    clock = iter([0.0, 0.0, 4.0, 5.0, 100.0, 100.0, 102.0]).__next__
    times = Times(tmp_path / TIMES, clock=clock)
    moved = times.during("needle", lambda done, total: None)
    moved(1, 2)
    times.count("needle", write=True)
    again = Times(tmp_path / TIMES, clock=clock)
    again.during("needle", lambda done, total: None)(2, 2)
    assert (times.seconds, again.seconds) == ({"needle": 5.0}, {"needle": 7.0})
    (tmp_path / TIMES).write_text("[]")
    with pytest.raises(UserError, match=r"times\.json is damaged"):
        Times(tmp_path / TIMES)


def test_presets_have_their_numbers_of_samples():
    full, quick = SuiteConfig(), SuiteConfig(quick=True)
    assert full.grid("ruler") == {1024: 25, 2048: 25, 4096: 25, 8192: 10}
    assert quick.grid("needle") == dict.fromkeys((1024, 2048, 4096, 8192), 2)
    assert quick.grid("multi") == dict.fromkeys((1024, 2048, 4096, 8192), 10)
    assert quick.grid("ruler") == dict.fromkeys((1024, 2048, 4096), 5)
    assert SuiteConfig(lengths=(8, 4), samples=(1, 2)).grid("multi") == {4: 2, 8: 1}
    twice = SuiteConfig(lengths=(2048, 1024, 2048), samples=(25, 10))
    assert twice.grid("needle") == {1024: 10, 2048: 25}
    with pytest.raises(UserError, match="3 numbers for 4 lengths"):
        SuiteConfig(samples=(1, 2, 3))
    with pytest.raises(UserError, match="samples 0"):
        SuiteConfig(samples=(0,))
    with pytest.raises(UserError, match="parts are empty"):
        SuiteConfig(parts=())
    with pytest.raises(UserError, match="prompt text is for ruler"):
        SuiteConfig(prompt="text")


def test_perplexity_is_part_of_the_report_of_a_model(tiny_model, prose, tmp_path):
    config = SuiteConfig(
        parts=("perplexity",), lengths=(128, 256, 512, 4096), samples=(1,), haystack=prose(70)
    )
    report = evaluate_all(tiny_model, config, tmp_path)
    assert report["left_out"] == [
        "perplexity at 4,096 tokens: above the model's context of 2,560",
        "perplexity at 512 tokens: the text has fewer than 7 parts of that length, and no "
        "difference would be significant",
    ]
    (part,) = report["parts"]
    own = part["report"]
    assert own["overall"]["segments"] == 8
    # Nearly uniform over 258 tokens before any training.
    assert 100 < own["overall"]["perplexity"] < 1000
    page = Balance((tmp_path / PAGE).read_text(encoding="utf-8"))
    shown = " ".join(page.words)
    assert "Perplexity by position" in shown
    assert f"Perplexity {own['overall']['perplexity']:.2f}; " in shown
    assert [tag for tag, _ in page.seen].count("svg") == 1
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "results.jsonl").write_bytes((tmp_path / "perplexity" / "results.jsonl").read_bytes())
    eval_compare((tmp_path, copy), out=tmp_path / "out")
    compared = json.loads((tmp_path / "out" / "comparison.json").read_bytes())
    (change,) = compared["comparisons"][0]["parts"]
    assert (change["paired"], change["overall"]["difference"]) == (True, 0)
