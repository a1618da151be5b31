"""Pairs of a question and its answer: the prompt that asks for one, and how an answer is read."""

import dataclasses
import re
from collections.abc import Hashable, Sequence
from typing import Any

from lwm.eval.prompt import PromptEncoder
from lwm.eval.question import Question, Response
from lwm.eval.results import ResultRow
from lwm.synth.qa.chunks import Chunk

INSTRUCTION = (
    "\n\nWrite one question that is answered above, and then its answer in a few words. Use the "
    "names of people and places."
)
LABEL = "Question: "
WORDS = "What", "Who", "Where", "How", "Why"
"""First words of questions, in turn, so that those about a book are not all alike."""
_PAIR = re.compile(r"\s*(.+?)\s*\n\s*\**Answer:\**\s*(.+)", re.DOTALL)
_LABEL = re.compile(r"\s*\**Question\b[^:\n]{0,4}:\**\s*")
_VAGUE = re.compile(
    r"\b(?:this|the) (?:text|passage|excerpt|chapter|quote|question|answer|author|speaker)\b", re.I
)
"""A long document has many texts, so that such a question has no answer there."""
_SAID = re.compile(r"^(?:(?:the )?(?:short )?answer is:?\s*)+", re.I)
_NEXT = re.compile(r"\n\s*(?:\**Question\b.*|\**Q:.*|---.*|Text:.*|\n.*)", re.DOTALL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """A question about a chunk, and its answer."""

    question: str
    answer: str


def opening_of(number: int) -> str:
    """Returns the start of the answer about a chunk, which models then complete in this form."""
    return f"{LABEL}{WORDS[number % len(WORDS)]}"


def read_pair(text: str, *, is_cut: bool) -> Pair | str:
    """Reads a question and its answer; returns the reason if they are malformed.

    If several pairs follow one another, the first one counts.

    Args:
        text: What a model writes after `Question:`.
        is_cut: Whether it ends where it had no more room.
    """
    match = _PAIR.match(text)
    if match is None:
        return "no answer"
    question = " ".join(match[1].split()).strip("* ")
    following = _NEXT.search(match[2])
    answer = (match[2] if following is None else match[2][: following.start()]).strip().strip("*")
    answer = _SAID.sub("", answer)
    if is_cut and following is None:
        return "cut off"
    if not question.endswith("?") or question.count("?") > 1:
        return "no question"
    if not re.search(r"\w", answer):
        return "no answer"
    if _VAGUE.search(question):
        return "about the text itself"
    return Pair(question=question, answer=" ".join(answer.split()))


class Pairs:
    """The pairs of all chunks, as an evaluation that is asked and recorded; see `Evaluation`."""

    def __init__(self, chunks: Sequence[Chunk], encode: PromptEncoder, *, max_tokens: int):
        """Takes the chunks, the encoder of prompts, and the largest length of an answer."""
        self.cells = chunks
        self._encode, self._max_tokens = encode, max_tokens

    @staticmethod
    def around(encode: PromptEncoder, max_tokens: int) -> int:
        """Returns the tokens of prompt and answer beside those of a chunk, at most."""
        # A word may be divided otherwise where the chunk meets the instruction.
        prompts = (encode(INSTRUCTION, opening_of(word)) for word in range(len(WORDS)))
        return max(map(len, prompts)) + max_tokens + 8

    def key(self, cell: Chunk) -> Hashable:
        """Returns what distinguishes a chunk from the others."""
        return cell.document, cell.number

    def row_key(self, row: ResultRow) -> Hashable:
        """Returns the key of the chunk that a row belongs to."""
        return row["document"], row["chunk"]

    def question(self, cell: Chunk) -> Question:
        """Returns the prompt for a pair."""
        message, opening = cell.text + INSTRUCTION, opening_of(cell.number)
        return Question(
            cell=cell,
            message=message,
            opening=opening,
            ids=self._encode(message, opening),
            overhead=self._encode.overhead,
            max_tokens=self._max_tokens,
        )

    def row(self, question: Question, response: Response) -> dict[str, Any]:
        """Returns the pair, or the answer as it is with the reason why it is none."""
        is_cut = response.completion_tokens >= question.max_tokens
        # Servers may begin the turn again that the opening has begun.
        again = _LABEL.match(response.text)
        text = question.opening + response.text if again is None else response.text
        found = read_pair(_LABEL.sub("", text, count=1), is_cut=is_cut)
        place = {"document": question.cell.document, "chunk": question.cell.number}
        if isinstance(found, str):
            return place | {"score": 0.0, "fault": found, "response": response.text}
        return place | {"score": 1.0, **dataclasses.asdict(found)}
