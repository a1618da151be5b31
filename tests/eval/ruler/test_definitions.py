"""Prompts of RULER beside its published definitions: NVIDIA/RULER, `scripts/data/synthetic`."""

import re
import uuid
from collections import Counter
from itertools import pairwise
from math import pi

import pytest

from lwm.eval.ruler.config import TASKS, RulerConfig, TaskName
from lwm.eval.ruler.task import RULES, Cell, Ruler, match_all, match_any
from lwm.eval.ruler.vocabulary import vocabulary

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = re.compile(r"One of the special magic (numbers|uuids) for (.+?) is: ([\w-]+)\.")


@pytest.fixture(scope="module")
def ask(byte_tokenizer):
    """Builds the question of a task's sample."""
    made: dict[int, Ruler] = {}

    def build(task: TaskName, *, length: int = 4000, sample: int = 0):
        if length not in made:
            made[length] = Ruler(RulerConfig(lengths=(length,)), byte_tokenizer)
        return made[length].question(Cell(task=task, length=length, sample=sample))

    return build


def test_rooms_for_answers_and_thirteen_tasks_are_as_published():
    rooms = {task: rules.max_tokens for task, rules in RULES.items()}
    assert rooms == {
        **{task: 128 for task in TASKS if task.startswith("niah")},
        **{"vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32},
    }
    assert tuple(RULES) == TASKS
    assert len(TASKS) == 13


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("niah_single_1", "number"),
        ("niah_single_2", "number"),
        ("niah_single_3", "uuid"),
        ("niah_multikey_1", "number"),
        ("niah_multikey_2", "number"),
        ("niah_multikey_3", "uuid"),
    ],
)
def test_a_question_about_one_value_has_the_published_words(ask, task, kind):
    question = ask(task)
    start = (
        f"A special magic {kind} is hidden within the following text. Make sure to memorize it. "
        f"I will quiz you about the {kind} afterwards.\n"
    )
    assert question.message.startswith(start)
    asked = re.fullmatch(
        rf"What is the special magic {kind} for (.+) mentioned in the provided text\?",
        question.message.rpartition("\n")[2],
    )
    assert asked
    assert question.opening == (
        f" The special magic {kind} for {asked[1]} mentioned in the provided text is"
    )
    (answer,) = question.truth["answers"]
    assert f"One of the special magic {kind}s for {asked[1]} is: {answer}." in question.message
    needles = NEEDLE.findall(question.message)
    assert {name for name, _, _ in needles} == {f"{kind}s"}
    assert [key for _, key, _ in needles].count(asked[1]) == 1


@pytest.mark.parametrize("task", ["niah_multivalue", "niah_multiquery"])
def test_a_question_about_four_values_has_the_published_words(ask, task):
    question = ask(task)
    assert question.message.startswith(
        "Some special magic numbers are hidden within the following text. Make sure to memorize "
        "it. I will quiz you about the numbers afterwards.\n"
    )
    asked = re.fullmatch(
        r"What are all the special magic numbers for (.+) mentioned in the provided text\?",
        question.message.rpartition("\n")[2],
    )
    assert asked
    assert question.opening == (
        f" The special magic numbers for {asked[1]} mentioned in the provided text are"
    )
    needles = NEEDLE.findall(question.message)
    answers = question.truth["answers"]
    assert len(needles) == len(set(answers)) == 4
    assert {value for _, _, value in needles} == set(answers)
    keys = {key for _, key, _ in needles}
    if task == "niah_multivalue":
        assert keys == {asked[1]}
    else:
        assert re.fullmatch(r"[^,]+, [^,]+, [^,]+, and [^,]+", asked[1])
        assert set(re.split(r", and |, ", asked[1])) == keys
        assert len(keys) == 4


def test_noise_is_a_line_of_five_sentences_around_one_needle(ask):
    lines = ask("niah_single_1").message.split("\n")[1:-1]
    assert Counter(lines)[NOISE] == len(lines) - 1


def test_a_haystack_of_needles_has_no_other_lines_and_no_key_twice(ask):
    for task in ("niah_multikey_2", "niah_multikey_3"):
        lines = ask(task).message.split("\n")[1:-1]
        found = [match for line in lines if (match := NEEDLE.fullmatch(line))]
        assert len(found) == len(lines) > 10
        assert len({match[2] for match in found}) == len(found)


def test_keys_and_values_are_of_the_published_kinds(ask):
    adjectives, nouns = set(vocabulary().adjectives), set(vocabulary().nouns)

    def is_pair(key: str) -> bool:
        ends = [index for index, letter in enumerate(key) if letter == "-"]
        return any(key[:end] in adjectives and key[end + 1 :] in nouns for end in ends)

    for task in TASKS[:8]:
        for _, key, value in NEEDLE.findall(ask(task).message):
            if task == "niah_multikey_3":
                assert uuid.UUID(key).version == 4
            else:
                assert is_pair(key)
            if task in ("niah_single_3", "niah_multikey_3"):
                assert uuid.UUID(value).version == 4
            else:
                assert re.fullmatch(r"[1-9]\d{6}", value)


def test_several_keys_hide_the_one_that_is_asked_for(ask):
    needles = NEEDLE.findall(ask("niah_multikey_1").message)
    assert len({key for _, key, _ in needles}) == 4


def test_essays_have_single_spaces_and_needles_between_sentences(ask):
    message = ask("niah_multikey_1", sample=1).message
    text = message.partition("\n")[2].rpartition("\n")[0]
    assert "Call me Ishmael." in text
    assert not re.search(r"\s\s|\n", text)
    before = [text[: match.start()].rstrip() for match in NEEDLE.finditer(text)]
    assert all(not each or each[-1] in '.?!”"' for each in before)


def test_a_chain_has_four_hops_after_an_example(ask):
    question = ask("vt")
    example, _, rest = question.message.partition("\n\nMemorize and track")
    message = "Memorize and track" + rest
    value = re.findall(r"are assigned the value (\d{5}) in the text above\.$", message)[0]
    assert message.startswith(
        "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    )
    assert message.endswith(
        f"\nQuestion: Find all variables that are assigned the value {value} in the text above."
    )
    assert question.opening == (
        " Answer: According to the chain(s) of variable assignment in the text above, 5 variables "
        f"are assigned the value {value}, they are: "
    )
    names = question.truth["answers"]
    assert all(re.fullmatch("[A-Z]{5}", name) for name in names)
    lines = [line for line in message.split("\n") if line.startswith("VAR")]
    assert lines == [
        f"VAR {names[0]} = {value}",
        *(f"VAR {name} = VAR {before} " for before, name in pairwise(names)),
    ]
    answer = example.rpartition("they are:  ")[2].split()
    assert len(answer) == 5
    assert re.findall(r"^VAR ([A-Z]{3}) =", example, re.MULTILINE) == answer
    assert example.count("5 variables are assigned the value") == 1


@pytest.mark.parametrize(
    ("length", "often", "rarely", "example"),
    [(4000, 6, 1, (10, 3, 1)), (9000, 30, 3, (30, 10, 3))],
)
def test_common_words_are_as_frequent_as_published(ask, length, often, rarely, example):
    question = ask("cwe", length=length)
    start = (
        "Below is a numbered list of words. In these words, some appear more often than others. "
        "Memorize the ones that appear most often.\n"
    )
    end = "\nQuestion: What are the 10 most common words in the above list?"
    opening = " Answer: The top 10 words that appear most often in the list are:"
    _, first, second = question.message.split(start)
    shown, _, answer = first.partition(end + opening + " ")
    assert question.opening == opening
    assert second.endswith(end)
    answers = question.truth["answers"]
    counts = counted(second.removesuffix(end))
    assert {counts[word] for word in answers} == {often}
    others = {word: count for word, count in counts.items() if word not in answers}
    assert set(others.values()) == {rarely}
    counts = counted(shown)
    common = [entry.partition(". ")[2] for entry in re.split(r" (?=\d+\. )", answer.rstrip("\n"))]
    assert len(common) == 10
    assert {counts[word] for word in common} == {example[1]}
    assert [count for word, count in counts.items() if word not in common] == (
        [example[2]] * example[0]
    )


def counted(listed: str) -> Counter:
    """Counts the words of a list that is numbered from 1."""
    entries = re.findall(r"(\d+)\. (.+?)(?= \d+\. |$)", listed)
    assert [int(number) for number, _ in entries] == list(range(1, len(entries) + 1))
    return Counter(word for _, word in entries)


def test_frequent_words_follow_a_zeta_distribution(ask):
    question = ask("fwe")
    start = (
        "Read the following coded text and track the frequency of each coded word. Find the three "
        "most frequently appeared coded words. "
    )
    end = (
        "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the "
        "three most frequently appeared words in the above coded text?"
    )
    assert question.opening == (
        " Answer: According to the coded text above, the three most frequently appeared words are:"
    )
    assert question.message.startswith(start)
    assert question.message.endswith(end)
    counts = Counter(question.message.removeprefix(start).removesuffix(end).split())
    units = question.truth["units"]
    ranked = counts.most_common()
    assert [word for word, _ in ranked[:4]] == ["...", *question.truth["answers"]]
    expected = [int(units / rank**2 / (pi**2 / 6)) for rank in range(1, len(ranked) + 1)]
    assert [count for _, count in ranked] == expected
    assert all(re.fullmatch("[a-z]{6}", word) for word, _ in ranked[1:])


@pytest.mark.parametrize("task", ["qa_1", "qa_2"])
def test_questions_about_documents_have_the_published_words(ask, task):
    question = ask(task)
    order = (
        "Answer the question based on the given documents. Only give me the answer and do not "
        "output any other words.\n\n"
    )
    start = f"{order}The following are given documents.\n\nDocument 1:\n"
    assert question.message.startswith(start)
    documents, _, asked = question.message.removeprefix(order).partition(f"\n\n{order}Question: ")
    assert question.opening == " Answer:"
    assert re.fullmatch(r".+\?", asked)
    numbers = re.findall(r"(?:^|\n\n)Document (\d+):\n", documents)
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]
    assert len(numbers) == question.truth["units"]


def test_a_question_of_two_hops_is_not_answered_where_its_subject_is(ask):
    for sample in range(4):
        question = ask("qa_2", sample=sample)
        asked = question.message.rpartition("Question: ")[2]
        subject = re.findall(r'founder of (\w+)|captain of the "(\w+)"', asked)[0]
        (answer,) = question.truth["answers"]
        parts = question.message.rpartition("\n\nAnswer the question")[0].split("\n\nDocument ")
        first = [part for part in parts if max(subject) in part]
        assert len(first) == 1
        assert answer not in first[0]
        assert len([part for part in parts if answer in part]) == 1


def test_scores_are_shares_of_answers_or_any_of_them_in_any_case():
    assert match_all("the words are Apple and PEAR", ["apple", "pear", "plum", "fig"]) == 0.5
    assert match_all("", ["apple"]) == 0
    assert match_any("in OSLO, Norway", ["Bergen", "Oslo"]) == 1
    assert match_any("in Rome", ["Bergen", "Oslo"]) == 0
