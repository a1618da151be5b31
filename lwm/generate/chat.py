"""Conversations in text, images and video."""

import dataclasses
import itertools
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lwm import renamed
from lwm.errors import UserError
from lwm.generate.answer import Answer
from lwm.generate.loaded import LoadedModel
from lwm.generate.output import Frame, assemble
from lwm.progress import Progress
from lwm.sampling_params import SamplingParams, VisionSampling
from lwm.tokenizer.markers import OPENING
from lwm.tokenizer.message import Message, Part, Vision
from lwm.tokenizer.template import render_chat


class Turn(NamedTuple):
    """A question and its answer."""

    asked: tuple[Part, ...]
    """The question without the document."""
    messages: Sequence[Message]


def with_document(question: Message, document: str) -> Message:
    """Returns a question after a document."""
    is_text_first = bool(question.parts) and isinstance(question.parts[0], str)
    first, *rest = question.parts if is_text_first else ("", *question.parts)
    return dataclasses.replace(question, parts=(f"{document.strip()}\n\n{first}", *rest))


class Conversation:
    """Questions and answers in turn, optionally about a document."""

    @renamed.keywords(drawings="sampling")
    def __init__(
        self,
        model: LoadedModel,
        *,
        document: str | None = None,
        system: str | None = None,
        sampling: VisionSampling | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ):
        """Starts an empty conversation.

        Args:
            model: The model that answers.
            document: A text that is put before the first question.
            system: A text that says how to answer, before all turns.
            tools: JSON schemas of functions for the chat template; calls of them are text.
            sampling: Sampling of images and videos in answers; None: answers are text only.

        Raises:
            UserError: The model cannot generate images, or guidance is asked for.
        """
        if sampling is not None:
            sampling = sampling.unguided().over(model.sampling)
            if sampling.is_guided:
                raise UserError(
                    "guidance needs a row without the prompt, which a conversation does not have; "
                    "give guidance 1, or use `lwm generate image`"
                )
            model.grammar  # noqa: B018  (raises if there is no VQGAN)
            model.vision.require_decoder()
        self._model = model
        self._last: Answer | None = None
        self._document = document
        self.system = system
        self._sampling = sampling
        self._tools = tools
        self._busy = threading.Lock()
        self.messages: list[Message] = []
        self._asked: list[tuple[Part, ...]] = []
        """The question of each turn as it was asked, without the document."""

    @renamed.keywords(writing="params")
    def ask(
        self,
        question: str | Sequence[Part],
        *,
        params: SamplingParams = SamplingParams(),
        progress: Progress = lambda done, total: None,
    ) -> Generator[str | Frame]:
        """Yields the answer in pieces of text and frames, as they are generated.

        The answer, with the pixels of its images, is then the last of `messages`. Closing the
        generator keeps the pieces so far; an empty answer leaves no turn. Without `sampling` of
        the conversation, an answer ends before its first image.

        Args:
            question: A text, or texts, images and videos in any order.
            params: Length, sampling and end of the text.
            progress: Called with the number of prompt tokens read.

        Raises:
            UserError: The conversation and the answer do not fit into the context, or another
                answer is not finished; the question is then not part of the conversation.
        """
        if not self._busy.acquire(blocking=False):
            raise UserError(
                "this conversation has not finished its last answer: read or close that first; "
                "each thread needs a conversation of its own"
            )
        try:
            yield from self._answer(question, params, progress)
        finally:
            self._busy.release()

    def _answer(
        self, question: str | Sequence[Part], params: SamplingParams, progress: Progress
    ) -> Generator[str | Frame]:
        turns = [*self.messages, self.question(question)]
        answer: list[str | Frame] = []
        self._last = Answer(
            self._model,
            self.ids(turns),
            params,
            is_turn=True,
            sampling=self._sampling,
            progress=progress,
        )
        try:
            for piece in self._last:
                answer.append(piece)
                yield piece
        finally:
            self._last.close()
            if answer:
                self.messages = [*turns, Message("assistant", tuple(self._parts(answer)))]
                self._asked.append((question,) if isinstance(question, str) else tuple(question))

    def __repr__(self) -> str:
        """Names the model and the number of turns."""
        return f"<Conversation with {self._model.name}: {len(self._asked)} questions>"

    def ids(self, turns: Sequence[Message]) -> list[int]:
        """Returns the prompt for an answer to these turns, after the system's text."""
        first = [] if self.system is None else [Message("system", (self.system,))]
        return render_chat(
            [*first, *turns],
            self._model.tokenizer,
            template=self._model.template,
            marks=self._model.marks if self._model.sees else None,
            tools=self._tools,
        )

    def question(self, question: str | Sequence[Part]) -> Message:
        """Returns a question as the next message; the first one follows the document.

        Raises:
            UserError: It is empty, or an image is encoded for another model.
        """
        parts = (question,) if isinstance(question, str) else tuple(question)
        if not parts:
            raise UserError("the question is empty; give a text, an image or a video")
        for part in parts:
            if isinstance(part, Vision):
                self._model.require_frames(part)
        message = Message("user", parts)
        if self._document is not None and not self.messages:
            return with_document(message, self._document)
        return message

    def _parts(self, answer: Sequence[str | Frame]) -> Iterator[Part]:
        """Yields the pieces of an answer as texts, images and videos."""
        for is_text, group in itertools.groupby(answer, lambda piece: isinstance(piece, str)):
            same: list[Any] = list(group)
            if is_text:
                if text := "".join(same).strip():
                    yield text
                continue
            begun: list[Frame] = []
            for frame in same:
                begun.append(frame)
                if frame.is_last or frame is same[-1]:
                    yield assemble(self._model, begun)
                    begun = []

    @property
    def was_cut(self) -> bool:
        """True if the last answer ended because it reached its largest length."""
        return self._last is not None and self._last.was_cut

    @property
    def is_without_picture(self) -> bool:
        """True if the last answer ended before an image for want of `sampling`."""
        last = self._last
        return self._sampling is None and last is not None and last.stopped_by == OPENING

    @property
    def num_tokens(self) -> int:
        """Tokens of the last prompt and answer."""
        if self._last is None:
            return 0
        return self._last.usage.prompt_tokens + self.num_written

    @property
    def num_written(self) -> int:
        """Tokens of the last answer."""
        return 0 if self._last is None else self._last.usage.completion_tokens

    def clear(self) -> None:
        """Removes all turns, not the document."""
        self.messages, self._asked = [], []

    def undo(self) -> Turn:
        """Removes the last question and its answer, and returns them.

        Raises:
            UserError: There is none.
        """
        if not self._asked:
            raise UserError("there is no question yet")
        turn = Turn(self._asked.pop(), self.messages[-2:])
        self.messages = self.messages[:-2]
        return turn

    def put_back(self, turn: Turn) -> None:
        """Adds a question and its answer that `undo` has removed."""
        self._asked.append(turn.asked)
        self.messages = [*self.messages, *turn.messages]

    def resume(self, messages: Sequence[Message]) -> None:
        """Goes on from other turns, in place of these and of the document.

        Raises:
            UserError: Questions and answers do not take turns.
        """
        first = [message for message in messages if message.role == "system"]
        turns = [message for message in messages if message.role != "system"]
        if [turn.role for turn in turns] != ["user", "assistant"] * (len(turns) // 2):
            raise UserError("a conversation has a question and an answer in turn")
        for message in turns:
            self.question(message.parts)
        self.messages, self._document = turns, None
        self._asked = [tuple(message.parts) for message in turns[::2]]
        self.system = first[0].text if first else None
