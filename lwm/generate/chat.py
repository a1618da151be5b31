"""Questions and answers in text, over the engine that knows ids only."""

import dataclasses
from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from lwm.data.template import Message, render_chat
from lwm.data.tokenizer import TextStream, Tokenizer
from lwm.errors import UserError
from lwm.generate.engine import Progress, Session, chunks
from lwm.generate.sampling import sampler
from lwm.generate.stopping import StoppingText
from lwm.generate.writing import Writing
from lwm.model.llama import Llama


def _silent(done: int, total: int) -> None:
    """Shows no progress."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """A model on its mesh with its tokenizer, ready to answer."""

    name: str
    llama: Llama
    tokenizer: Tokenizer
    mesh: Mesh
    template: str | None = None
    """`lwm`, Jinja source, or None for the model's own chat template."""
    vqgan_file: Path | None = None
    """What turns images into codes and back, as `lwm.convert.vqgan.read_vqgan` opens it."""

    @property
    def context(self) -> int:
        """Tokens that the model can read and write in all."""
        return self.llama.config.max_context

    def require_fit(self, num_ids: int, max_tokens: int) -> None:
        """Refuses a prompt that leaves no room for the answer.

        Raises:
            UserError: How many tokens there are, and how many would fit.
        """
        if num_ids + max_tokens > self.context:
            raise UserError(
                f"the prompt has {num_ids:,} tokens, but {self.name} has a context of "
                f"{self.context:,}: {max(0, self.context - max_tokens):,} fit beside an answer "
                f"of {max_tokens:,}; shorten the prompt or lower max_tokens"
            )

    def encode_prompt(self, prompt: str) -> list[int]:
        """Returns the ids of a text to continue, after the model's beginning of text if it has one.

        Raises:
            UserError: There is nothing to continue.
        """
        ids = self.tokenizer.encode(prompt, special=False)
        if self.tokenizer.add_bos and self.tokenizer.bos_id is not None:
            ids = [self.tokenizer.bos_id, *ids]
        if not ids:
            raise UserError("the prompt is empty; give some text to continue")
        return ids

    def chat(self, question: str, *, document: str | None = None, **writing) -> str:
        """Answers one question, about a document if one is given.

        Args:
            question: What to ask.
            document: A text that is put before the question.
            **writing: The fields of `Writing`, such as max_tokens, temperature, seed.

        Raises:
            UserError: The prompt and the answer do not fit into the context.
        """
        conversation = Conversation(self, document=document)
        return "".join(conversation.ask(question, writing=Writing(**writing)))

    def generate(self, prompt: str, **writing) -> str:
        """Continues a text.

        Args:
            prompt: The text; the beginning-of-text token is put before it where the model
                was trained so.
            **writing: The fields of `Writing`, such as max_tokens, temperature, seed.

        Raises:
            UserError: The prompt is empty, or it and the continuation do not fit.
        """
        ids = self.encode_prompt(prompt)
        reader = Reader(self)
        stream = TextStream(self.tokenizer, continues=True)
        return "".join(reader.answer(ids, stream, Writing(**writing)))


class Reader:
    """One row of the engine that reads a prompt again only from where it has changed."""

    def __init__(self, model: LanguageModel):
        """Starts with nothing read."""
        self._model = model
        self._session: Session | None = None
        self._ids: list[int] = []
        self._ends: list[int] = []  # the slot after each id; padding makes it run ahead
        self.was_cut = False
        """Whether the last answer ended for want of tokens."""

    @property
    def num_tokens(self) -> int:
        """Tokens that are read and written so far."""
        return len(self._ids)

    def answer(
        self,
        ids: Sequence[int],
        stream: TextStream,
        writing: Writing,
        progress: Progress = _silent,
    ) -> Generator[str]:
        """Reads a whole prompt, then yields the text that follows as it is written."""
        self._model.require_fit(len(ids), writing.max_tokens)
        session = self._read(ids, writing.max_tokens, progress)
        stops = self._model.tokenizer.eos_ids
        text = StoppingText(stream, writing.stop)
        bursts = session.generate(
            max_tokens=writing.max_tokens,
            stop_ids=stops,
            sampler=sampler(writing),
            seed=writing.seed,
        )
        self.was_cut = True
        for burst in bursts:
            written = burst.ids[0].tolist()
            self._remember(session, written)
            self.was_cut = written[-1] not in stops
            if piece := "".join(text.push(token) for token in written if token not in stops):
                yield piece
            if text.is_stopped:
                self.was_cut = False
                return
        if piece := text.finish():
            yield piece

    def _read(self, ids: Sequence[int], max_tokens: int, progress: Progress) -> Session:
        """Reads what the cache does not hold yet: at least the last id, to go on from it."""
        shared = min(_common(self._ids, ids), len(ids) - 1)
        start = self._ends[shared - 1] if shared else 0
        new = list(ids[shared:])
        slots = _room(start + sum(chunks(len(new))) + max_tokens)
        if self._session is None:
            self._session = Session(self._model.llama, self._model.mesh, slots=slots)
        session = self._session
        session.reserve(slots)
        session.rewind(start)
        del self._ids[shared:], self._ends[shared:]
        session.read([new], progress=progress)
        self._remember(session, new)
        return session

    def _remember(self, session: Session, ids: list[int]) -> None:
        """Notes that the last slots of the session hold these ids."""
        end = session.length + 1
        self._ids += ids
        self._ends += range(end - len(ids), end)


class Conversation:
    """Turns of questions and answers, perhaps about a document; the cache is kept between them."""

    def __init__(self, model: LanguageModel, *, document: str | None = None):
        """Starts without a turn."""
        self._model = model
        self._reader = Reader(model)
        self._document = document
        self.messages: list[Message] = []

    def ask(
        self,
        question: str,
        *,
        writing: Writing = Writing(),
        progress: Progress = _silent,
    ) -> Generator[str]:
        """Yields the answer in pieces; a turn that is given up halfway is kept as far as it went.

        Raises:
            UserError: The conversation and the answer do not fit into the context; the question
                is then not part of the conversation.
        """
        content = question
        if self._document is not None and not self.messages:
            content = f"{self._document.strip()}\n\n{question}"
        turns = [*self.messages, {"role": "user", "content": content}]
        ids = render_chat(turns, self._model.tokenizer, template=self._model.template)
        stream = TextStream(self._model.tokenizer)
        answer: list[str] = []
        pieces = self._reader.answer(ids, stream, writing, progress)
        try:
            for piece in pieces:
                answer.append(piece)
                yield piece
        finally:
            if answer:
                said = {"role": "assistant", "content": "".join(answer).strip()}
                self.messages = [*turns, said]

    @property
    def was_cut(self) -> bool:
        """Whether the last answer ended because it had `max_tokens`."""
        return self._reader.was_cut

    @property
    def num_tokens(self) -> int:
        """Tokens that are read and written so far."""
        return self._reader.num_tokens

    def clear(self) -> None:
        """Forgets all turns, not the document."""
        self.messages = []


def _room(slots: int) -> int:
    """Rounds up so that a growing conversation compiles few programs and wastes little."""
    step = 8192
    return -(-slots // step) * step if slots > step else 1 << max(10, (slots - 1).bit_length())


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Counts the ids with which both begin."""
    length = min(len(first), len(second))
    differs = np.asarray(first[:length]) != np.asarray(second[:length])
    return int(np.argmax(differs)) if differs.any() else length
