"""Conversations in text, images and video."""

import dataclasses
import itertools
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

from lwm import renamed
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
    """Answers one prompt after another; each is read from where it differs from the one before."""

    def __init__(self, model: LoadedModel):
        """Starts with an empty cache."""
        self._model = model
        self._session: Session | None = None
        self._prefix = Prefix()
        self.was_cut = False
        """True if the last answer ended because `max_tokens` were written."""
        self.stopped_by: str | None = None
        """The stop string that ended the last answer, if one did."""

    @property
    def num_tokens(self) -> int:
        """Tokens in the cache."""
        return len(self._prefix.ids)

    def answer(
        self,
        ids: Sequence[int],
        stream: TextStream,
        params: SamplingParams,
        progress: Progress = _silent,
        *,
        sampling: VisionSampling | None = None,
    ) -> Generator[str | Frame]:
        """Reads a whole prompt, then yields the answer in pieces.

        Args:
            ids: The prompt.
            stream: Decodes ids to text.
            params: Length, sampling and end of the text.
            progress: Called with the number of prompt tokens read.
            sampling: Sampling of images and videos; None: the answer is text only.

        Raises:
            UserError: Prompt and answer do not fit into the context or the devices' memory.
        """
        self._model.require_fit(len(ids), params.max_tokens)
        session = self._read(ids, params.max_tokens, progress)
        stops = self._model.tokenizer.eos_ids
        grammar = None if sampling is None else self._model.grammar
        parts = AnswerReader(stream, params.stop, grammar)
        plan = GenerationPlan(
            max_tokens=params.max_tokens,
            stop_ids=stops,
            sampler=sampler(params),
            seed=params.seed,
            vision=None if sampling is None else self._vision_plan(sampling, params.max_tokens),
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

    def _vision_plan(self, sampling: VisionSampling, room: int) -> VisionPlan:
        grammar = self._model.grammar
        return VisionPlan(
            grammar=grammar,
            state=grammar.start([FrameLimits()], room=room),
            image=sampler(sampling.image.params()),
            video=sampler(sampling.video.params()),
        )

    def _read(self, ids: Sequence[int], max_tokens: int, progress: Progress) -> Session:
        """Reads what the cache does not hold yet: at least the last id, to go on from it."""
        if self._session is not None and self._session.is_lost:
            self._session, self._prefix = None, Prefix()
        shared = self._prefix.match(ids)
        slots = self._prefix.end(shared) + sum(chunks(len(ids) - shared)) + max_tokens
        if slots > self._most:
            # Padding of earlier turns takes too much room: all is read again.
            shared, slots = 0, sum(chunks(len(ids))) + max_tokens
        session = self._reserve(slots)
        self._prefix.rewind(session, shared)
        self._prefix.read(session, ids[shared:], progress)
        return session

    @property
    def _most(self) -> int:
        """Slots that a whole context takes, with the padding of one reading."""
        return self._model.context + LONG // 2

    def _reserve(self, slots: int) -> Session:
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
    """Questions and answers in turn, optionally about a document; turns share one cache."""

    @renamed.keywords(drawings="sampling")
    def __init__(
        self,
        model: LoadedModel,
        *,
        document: str | None = None,
        sampling: VisionSampling | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ):
        """Starts an empty conversation.

        Args:
            model: The model that answers.
            document: A text that is put before the first question.
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
        self._model = model
        self._reader = Reader(model)
        self._document = document
        self._sampling = sampling
        self._tools = tools
        self._busy = threading.Lock()
        self.messages: list[Message] = []

    @renamed.keywords(writing="params")
    def ask(
        self,
        question: str | Sequence[Part],
        *,
        params: SamplingParams = SamplingParams(),
        progress: Progress = _silent,
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
        ids = self.ids(turns)
        stream = TextStream(self._model.tokenizer)
        answer: list[str | Frame] = []
        if self._sampling is None and self._sees:
            params = dataclasses.replace(params, stop=(*params.stop, OPENING))
        pieces = self._reader.answer(ids, stream, params, progress, sampling=self._sampling)
        try:
            for piece in pieces:
                if isinstance(piece, str) and not answer:
                    # Formats such as LWM's put a space between role and answer.
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
        if self._document is not None and not self.messages:
            first, *rest = parts if isinstance(parts[0], str) else ("", *parts)
            parts = (f"{self._document.strip()}\n\n{first}", *rest)
        return Message("user", parts)

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
        """True if the last answer ended because `max_tokens` were written."""
        return self._reader.was_cut

    @property
    def is_without_picture(self) -> bool:
        """True if the last answer ended before an image for want of `sampling`."""
        return self._sampling is None and self._reader.stopped_by == OPENING

    @property
    def num_tokens(self) -> int:
        """Tokens in the cache."""
        return self._reader.num_tokens

    def clear(self) -> None:
        """Removes all turns, not the document."""
        self.messages = []

    @property
    def _sees(self) -> bool:
        return bool(self._model.llama.config.tokens.vision)


def _room(slots: int) -> int:
    """Rounds up so that a growing conversation compiles few programs and wastes little."""
    step = 8192
    return -(-slots // step) * step if slots > step else 1 << max(10, (slots - 1).bit_length())
