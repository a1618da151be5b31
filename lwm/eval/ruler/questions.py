"""RULER's question answering: a question about documents, a few of many; generated or of a file."""

import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lwm.errors import UserError
from lwm.eval.ruler.encyclopedia import Encyclopedia
from lwm.eval.ruler.sample import Draft, Sample, random_of
from lwm.files import parse_json, reading

MESSAGE = (
    "Answer the question based on the given documents. Only give me the answer and do not output "
    "any other words.\n\nThe following are given documents.\n\n{context}\n\nAnswer the question "
    "based on the given documents. Only give me the answer and do not output any other words.\n\n"
    "Question: {query}"
)
OPENING = " Answer:"
DOCUMENT = "Document {number}:\n{text}"


class Item(NamedTuple):
    """A question of a file; documents are given by their numbers."""

    query: str
    answers: tuple[str, ...]
    needed: tuple[int, ...]
    """Documents that answer it."""
    related: tuple[int, ...]
    """Documents that are added before any others."""


class Questions(NamedTuple):
    """Questions and documents of a file."""

    name: str
    sha256: str
    documents: tuple[str, ...]
    items: tuple[Item, ...]


class QuestionSample(Sample):
    """A question, the documents that answer it, and others; a unit is a document."""

    def __init__(
        self,
        generator: random.Random,
        *,
        query: str,
        answers: Sequence[str],
        needed: Sequence[str],
        others: Iterator[str],
    ):
        """Takes other documents as they are needed."""
        self.least = len(needed)
        self._query, self._answers = query, tuple(answers)
        self._documents, self._others = list(needed), others
        self._order = generator.random()

    def draft(self, units: int) -> Draft:
        """Returns the question with so many documents, in random order."""
        missing = max(0, units - len(self._documents))
        self._documents += itertools.islice(self._others, missing)
        documents = self._documents[:units]
        random_of(self._order, units).shuffle(documents)
        context = "\n\n".join(
            DOCUMENT.format(number=number, text=text) for number, text in enumerate(documents, 1)
        )
        return Draft(
            message=MESSAGE.format(context=context, query=self._query),
            opening=OPENING,
            answers=self._answers,
        )


def generated(generator: random.Random, *, hops: int) -> QuestionSample:
    """Returns a sample from a generated encyclopedia, with one or two hops."""
    made = Encyclopedia(generator)
    asked = made.one_hop() if hops == 1 else made.two_hops()
    return QuestionSample(
        # The order of documents and the documents are drawn apart, since both go on for ever.
        random_of(generator.random()),
        query=asked.query,
        answers=asked.answers,
        needed=asked.needed,
        others=made.paragraphs() if hops == 1 else made.articles(),
    )


def of_file(generator: random.Random, questions: Questions, sample: int) -> QuestionSample:
    """Returns a sample with the question of a number in a file, which has as many, as upstream."""
    item = questions.items[sample]
    own = set(item.needed) | set(item.related)
    related = generator.sample(item.related, len(item.related))
    rest = [number for number in range(len(questions.documents)) if number not in own]
    generator.shuffle(rest)
    texts = questions.documents
    first = [*item.needed, *related, *rest]
    # All documents come again where the file has too few.
    return QuestionSample(
        generator,
        query=item.query,
        answers=item.answers,
        needed=[texts[number] for number in item.needed],
        others=itertools.islice(
            (texts[number] for number in itertools.cycle(first)), len(item.needed), None
        ),
    )


def read_squad(file: Path) -> Questions:
    """Reads SQuAD's JSON, version 1 or 2; a document is a paragraph.

    Raises:
        UserError: It cannot be read, or is no such file.
    """

    def parse(data: Any) -> tuple[list[str], list[Item]]:
        articles = [[p["context"] for p in article["paragraphs"]] for article in data["data"]]
        documents, number = _numbers(itertools.chain.from_iterable(articles))
        items = []
        for article, texts in zip(data["data"], articles, strict=True):
            for paragraph in article["paragraphs"]:
                needed = number[paragraph["context"]]
                related = {number[text] for text in texts} - {needed}
                items += [
                    Item(
                        query=asked["question"],
                        answers=tuple(answer["text"] for answer in asked["answers"]),
                        needed=(needed,),
                        related=tuple(sorted(related)),
                    )
                    for asked in paragraph["qas"]
                    if not asked.get("is_impossible", False) and asked["answers"]
                ]
        return documents, items

    return _read(file, parse, "SQuAD")


def read_hotpotqa(file: Path) -> Questions:
    """Reads HotpotQA's JSON; a document is a title and a paragraph.

    Raises:
        UserError: It cannot be read, or is no such file.
    """

    def parse(data: Any) -> tuple[list[str], list[Item]]:
        contexts = [
            {title: f"{title}\n{''.join(sentences)}" for title, sentences in asked["context"]}
            for asked in data
        ]
        documents, number = _numbers(text for texts in contexts for text in texts.values())
        items = []
        for asked, texts in zip(data, contexts, strict=True):
            supporting = {title for title, _ in asked["supporting_facts"]} & texts.keys()
            needed = {number[texts[title]] for title in supporting or texts}
            related = {number[text] for text in texts.values()} - needed
            items.append(
                Item(
                    query=asked["question"],
                    answers=(asked["answer"],),
                    needed=tuple(sorted(needed)),
                    related=tuple(sorted(related)),
                )
            )
        return documents, items

    return _read(file, parse, "HotpotQA")


def _numbers(texts: Iterator[str]) -> tuple[list[str], dict[str, int]]:
    """Returns the sorted distinct texts, and the number of each."""
    documents = sorted(set(texts))
    return documents, {text: number for number, text in enumerate(documents)}


def _read(file: Path, parse: Any, what: str) -> Questions:
    with reading(file):
        data = file.read_bytes()
    try:
        documents, items = parse(parse_json(data))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(
            f"{file} is not {what}'s JSON; leave it out for generated questions"
        ) from None
    if not items:
        raise UserError(f"{file} has no question with an answer; leave it out for generated ones")
    return Questions(
        name=file.name,
        sha256=hashlib.sha256(data).hexdigest(),
        documents=tuple(documents),
        items=tuple(items),
    )
