"""Questions and answers in text, images and video, over the engine that knows ids only."""

import dataclasses
import itertools
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from lwm.errors import UserError
from lwm.generate.engine import LONG, Session, chunks
from lwm.generate.grammar import FrameLimits
from lwm.generate.loaded import LoadedModel
from lwm.generate.output import AnswerReader, Frame, assemble, joined
from lwm.generate.plan import GenerationPlan, VisionPlan
from lwm.generate.prefix import Prefix
from lwm.generate.sampling import sampler
from lwm.progress import Progress
from lwm.sampling_params import SamplingParams, VisionSampling
from lwm.tokenizer.markers import OPENING
from lwm.tokenizer.message import Message, Part, Vision
from lwm.tokenizer.template import render_chat
from lwm.tokenizer.tokenizer import TextStream


def _silent(done: int, total: int) -> None:
    """Shows no progress."""


class Reader:
    """One row of the engine that reads a prompt again only from where it has changed."""

    def __init__(self, model: LoadedModel):
        """Starts with nothing read."""
        self._model = model
        self._session: Session | None = None
        self._prefix = Prefix()
        self.was_cut = False
        """True if the last answer ended because `max_tokens` were written."""
        self.stopped_by: str | None = None
        """The stop string that ended the last answer."""

    @property
    def num_tokens(self) -> int:
        """Tokens that are read and written so far."""
        return len(self._prefix.ids)

    def answer(
        self,
        ids: Sequence[int],
        stream: TextStream,
        writing: SamplingParams,
        progress: Progress = _silent,
        *,
        drawings: VisionSampling | None = None,
    ) -> Generator[str | Frame]:
        """Reads a whole prompt, then yields what follows as it is written.

        Args:
            ids: The prompt.
            stream: Makes ids text.
            writing: How text is written.
            progress: Told how much of the prompt is read.
            drawings: How pictures are drawn; None: the answer is text only.

        Raises:
            UserError: Prompt and answer do not fit into the context or the devices' memory.
        """
        self._model.require_fit(len(ids), writing.max_tokens)
        session = self._read(ids, writing.max_tokens, progress)
        stops = self._model.tokenizer.eos_ids
        grammar = None if drawings is None else self._model.grammar
        parts = AnswerReader(stream, writing.stop, grammar)
        plan = GenerationPlan(
            max_tokens=writing.max_tokens,
            stop_ids=stops,
            sampler=sampler(writing),
            seed=writing.seed,
            vision=None if drawings is None else self._vision_plan(drawings, writing.max_tokens),
        )
        self.was_cut, self.stopped_by = True, None
        for burst in session.generate(plan):
            written = burst.ids[0].tolist()
            self._prefix.add(session, written)
            self.was_cut = written[-1] not in stops
            found = [parts.push(token) for token in written if token not in stops]
            yield from joined(itertools.chain.from_iterable(found))
            if parts.is_stopped:
                self.was_cut, self.stopped_by = False, parts.met
                return
        if piece := parts.finish():
            yield piece

    def _vision_plan(self, drawings: VisionSampling, room: int) -> VisionPlan:
        grammar = self._model.grammar
        return VisionPlan(
            grammar=grammar,
            state=grammar.start([FrameLimits()], room=room),
            image=sampler(drawings.image.writing()),
            video=sampler(drawings.video.writing()),
        )

    def _read(self, ids: Sequence[int], max_tokens: int, progress: Progress) -> Session:
        """Reads what the cache does not hold yet: at least the last id, to go on from it."""
        if self._session is not None and self._session.is_lost:
            self._session, self._prefix = None, Prefix()
        shared = self._prefix.match(ids)
        slots = self._prefix.end(shared) + sum(chunks(len(ids) - shared)) + max_tokens
        if slots > self._most:
            # Padding takes up the room: all is read again, without that of earlier turns.
            shared, slots = 0, sum(chunks(len(ids))) + max_tokens
        session = self._with_room(slots)
        self._prefix.rewind(session, shared)
        self._prefix.read(session, ids[shared:], progress)
        return session

    @property
    def _most(self) -> int:
        """Slots that a whole context takes, with the padding of one reading."""
        return self._model.context + LONG // 2

    def _with_room(self, slots: int) -> Session:
        """Returns the session with a cache for so many slots, and for more if memory allows."""
        session = self._session
        cache = None if session is None else session.cache
        if cache is None or slots > cache.slots:
            ample = min(_room(slots), self._most)
            try:
                self._model.require_memory(ample, instead_of=cache)
                slots = ample
            except UserError:
                self._model.require_memory(slots, instead_of=cache)
        if session is None:
            session = Session(self._model.llama, self._model.mesh, slots=slots)
            self._session = session
        session.reserve(slots)
        return session


class Conversation:
    """Turns of questions and answers, perhaps about a document; the cache is kept between them."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        document: str | None = None,
        drawings: VisionSampling | None = None,
    ):
        """Starts without a turn.

        Args:
            model: Who answers.
            document: A text that is put before the first question.
            drawings: How pictures are drawn in answers; None: answers are text only.

        Raises:
            UserError: The model cannot draw, or not so.
        """
        if drawings is not None:
            drawings = drawings.unguided().over(model.drawings)
            if drawings.are_guided:
                raise UserError(
                    "guidance leads a picture away from one without a prompt, which a conversation "
                    "does not have; give guidance 1, or draw with `lwm generate`"
                )
            model.grammar  # noqa: B018  (whether it can draw)
        self._model = model
        self._reader = Reader(model)
        self._document = document
        self._drawings = drawings
        self.messages: list[Message] = []

    def ask(
        self,
        question: str | Sequence[Part],
        *,
        writing: SamplingParams = SamplingParams(),
        progress: Progress = _silent,
    ) -> Generator[str | Frame]:
        """Yields the answer in pieces; a turn that is given up halfway is kept as far as it went.

        The whole answer, with pixels of what was drawn, is then the last of `messages`; one that
        is empty leaves no turn. Where nothing is drawn, an answer ends before its first picture.

        Args:
            question: A text, or texts, images and videos in any order.
            writing: How the answer is written.
            progress: Told how much is read.

        Raises:
            UserError: The conversation and the answer do not fit into the context; the question
                is then not part of the conversation.
        """
        turns = [*self.messages, self.question(question)]
        ids = self.ids(turns)
        stream = TextStream(self._model.tokenizer)
        answer: list[str | Frame] = []
        if self._drawings is None and self._sees:
            writing = dataclasses.replace(writing, stop=(*writing.stop, OPENING))
        pieces = self._reader.answer(ids, stream, writing, progress, drawings=self._drawings)
        try:
            for piece in pieces:
                if isinstance(piece, str) and not answer:
                    # Formats such as LWM's part an answer from the role by a space.
                    piece = piece.lstrip(" ")
                    if not piece:
                        continue
                answer.append(piece)
                yield piece
        finally:
            if answer:
                self.messages = [*turns, Message("assistant", tuple(self._parts(answer)))]

    def ids(self, turns: Sequence[Message]) -> list[int]:
        """Returns the prompt for an answer to these turns."""
        return render_chat(
            turns,
            self._model.tokenizer,
            template=self._model.template,
            marks=self._model.marks if self._sees else None,
        )

    def question(self, question: str | Sequence[Part]) -> Message:
        """Returns what a question is as the next message: the first one follows the document.

        Raises:
            UserError: There is nothing in it, or a picture is of another model.
        """
        parts = (question,) if isinstance(question, str) else tuple(question)
        if not parts:
            raise UserError("the question is empty; give a text, an image or a video")
        for part in parts:
            if isinstance(part, Vision):
                self._model.require_frames(part)
        if self._document is not None and not self.messages:
            first, *rest = parts if isinstance(parts[0], str) else ("", *parts)
            parts = (f"{self._document.strip()}\n\n{first}", *rest)
        return Message("user", parts)

    def _parts(self, answer: Sequence[str | Frame]) -> Iterator[Part]:
        """Yields what was written as texts and whole pictures; a frame on its way is left out."""
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
        """Whether the last answer ended for want of tokens: see `max_tokens`."""
        return self._reader.was_cut

    @property
    def is_without_picture(self) -> bool:
        """Whether the last answer ended before a picture that was not to be drawn."""
        return self._drawings is None and self._reader.stopped_by == OPENING

    @property
    def num_tokens(self) -> int:
        """Tokens that are read and written so far."""
        return self._reader.num_tokens

    def clear(self) -> None:
        """Forgets all turns, not the document."""
        self.messages = []

    @property
    def _sees(self) -> bool:
        return bool(self._model.llama.config.tokens.vision)


def _room(slots: int) -> int:
    """Rounds up so that a growing conversation compiles few programs and wastes little."""
    step = 8192
    return -(-slots // step) * step if slots > step else 1 << max(10, (slots - 1).bit_length())
