"""A small evaluation: each message holds the number that it asks for."""

import dataclasses
import re

from lwm.eval.question import Question


@dataclasses.dataclass(frozen=True)
class Cell:
    """The place of a question."""

    index: int
    length: int = 400


class Numbers:
    """An evaluation: each message holds the number that it asks for."""

    def __init__(self, encoder, count, opening=""):
        self._encoder, self._opening = encoder, opening
        self.cells = [Cell(index) for index in range(count)]
        self.built = []

    def key(self, cell):
        return cell.index

    def row_key(self, row):
        return row["index"]

    def question(self, cell):
        self.built.append(cell.index)
        message = f"{'word ' * (20 + cell.index)}the number is {cell.index}"
        return Question(
            cell=cell,
            message=message,
            opening=self._opening,
            form=self._encoder.form,
            ids=self._encoder(message, self._opening),
            overhead=self._encoder.overhead,
            max_tokens=16,
            truth={"number": cell.index},
        )

    def row(self, question, response):
        right = question.truth["number"]
        score = float(str(right) == response.text)
        return {"index": question.cell.index, "response": response.text, "score": score}


def program(prompt):
    return re.findall(r"number is (\d+)", prompt)[-1]
