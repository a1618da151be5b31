"""Programs that answer RULER's questions from the text of a prompt, or without reading it."""

import functools
import re
from collections import Counter
from collections.abc import Callable

import pytest

from lwm.eval.question import Response
from lwm.eval.subject import Subject
from lwm.tokenizer.tokenizer import Tokenizer

ROLES = (
    (r"the founder of (\w+)", r"{0} is a town [^\n]*? founded in \d+ by (.+?), and has"),
    (r'the first captain of the "(\w+)"', r'The "{0}" was a [^\n]*?Under (.+?), the first'),
)
FACTS = (
    (r"On which river does the town of (.+) lie", r"{0} is a town [^\n]*?, on the river (\w+)\."),
    (r"Who founded the town of (.+)\?", r"{0} is a town [^\n]*? founded in \d+ by (.+?), and has"),
    (r"How many inhabitants does the town of (.+) have", r"{0} is a town [^\n]*? has (\d+) inh"),
    (r"Who designed the .+ of (.+)\?", r"{0} is a town [^\n]*? was designed by (.+?) and burned"),
    (r"Which feast do the people of (.+) cel", r"{0} is a town [^\n]*? the feast of (\w+)\."),
    (r"In which town was (.+) born", r"{0} \(\d+-\d+\) [^\n]*? born in (\w+) to"),
    (r"Of whom was (.+) a student", r"{0} \(\d+-\d+\) [^\n]*? student of (.+?)\."),
    (r"What was the name of the \w+ of (.+)\?", r"{0} \(\d+-\d+\) [^\n]*? the name of (\w+) came"),
    (r"In which town did (.+) spend", r"{0} \(\d+-\d+\) [^\n]*? were spent in (\w+)\."),
    (r'Which yard built the "(.+)"', r'The "{0}" was a [^\n]*? by the yard of (\w+)\.'),
    (r'Who was the first captain of the "(.+)"', r'The "{0}" was a [^\n]*?Under (.+?), the first'),
    (r'To which town did the "(.+)" carry', r'The "{0}" was a [^\n]*? from \w+ to (\w+), in all'),
    (r'How many tonnes did the "(.+)" carry', r'The "{0}" was a [^\n]*? in all (\d+) tonnes'),
    (
        r'church of which place does the bell of the "(.+)" h',
        r'The "{0}" was [^\n]*church of (\w+)',
    ),
)


def read_needles(text: str) -> str:
    asked = re.findall(r"What (?:is|are all) the special magic \w+ for (.+?) mentioned", text)
    keys = re.split(r", and |, ", asked[-1])
    found = re.findall(r"One of the special magic \w+ for (.+?) is: ([\w-]+)\.", text)
    return ", ".join(value for key, value in found if key in keys)


def read_variables(text: str) -> str:
    question = text[text.rindex("Memorize and track") :]
    held = {re.findall(r"are assigned the value (\d+) in", question)[0]}
    for name, value in re.findall(r"^VAR (\w+) = (?:VAR )?(\w+)", question, re.MULTILINE):
        if value in held:
            held.add(name)
    return " ".join(sorted(held))


def read_common_words(text: str) -> str:
    listed = text[text.rindex("Below is") : text.rindex("\nQuestion:")].partition("often.\n")[2]
    words = re.findall(r"\d+\. (.+?)(?= \d+\. |$)", listed)
    return ", ".join(word for word, _ in Counter(words).most_common(10))


def read_frequent_words(text: str) -> str:
    coded = text.partition("appeared coded words. ")[2].partition("\nQuestion:")[0]
    counts = Counter(word for word in coded.split() if word != "...")
    return " ".join(word for word, _ in counts.most_common(3))


def read_documents(text: str) -> str:
    question = re.findall(r"Question: (.+\?)", text)[-1]
    answer = look_up(text, question)
    if answer is None:
        for asked, written in ROLES:
            if role := re.search(asked, question):
                name = re.findall(written.format(re.escape(role[1])), text)[0]
                answer = look_up(text, question.replace(role[0], name))
    assert answer is not None, question
    return answer


def look_up(text: str, question: str) -> str | None:
    """Returns the answer of the one document about the question's subject."""
    for asked, written in FACTS:
        if (subject := re.search(asked, question)) and (
            found := re.search(written.format(re.escape(subject[1])), text)
        ):
            return found[1]
    return None


READERS = {
    "special magic": read_needles,
    "variable assignment": read_variables,
    "numbered list": read_common_words,
    "coded text": read_frequent_words,
    "given documents": read_documents,
}


def read(text: str) -> str:
    """Answers a prompt from its text alone."""
    (reader,) = [reader for words, reader in READERS.items() if words in text]
    return reader(text)


class Program:
    """Answers the text of a prompt, and keeps the prompts that it was asked."""

    def __init__(self, tokenizer: Tokenizer, answer: Callable[[str], str]):
        self._spell, self._answer = functools.cache(tokenizer.backend.spell), answer
        self.asked: list[str] = []

    def answers(self, questions):
        for question in questions:
            text = b"".join(map(self._spell, question.ids)).decode()
            self.asked.append(text)
            response = Response(
                text=self._answer(text), prompt_tokens=len(question.ids), completion_tokens=1
            )
            yield question, response


@pytest.fixture(scope="session")
def reading():
    """The answer of a program that reads."""
    return read


@pytest.fixture
def subject_of(byte_tokenizer):
    """Makes the subject of a program, and returns both."""

    def make(answer: Callable[[str], str]) -> tuple[Subject, Program]:
        program = Program(byte_tokenizer, answer)
        subject = Subject(
            description={"name": "program"},
            tokenizer=byte_tokenizer,
            answerer=lambda tokens, progress: program,
        )
        return subject, program

    return make
