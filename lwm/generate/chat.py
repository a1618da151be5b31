"""Questions and answers in text, over the engine that knows ids only."""

import dataclasses
import math
from collections.abc import Generator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lwm.data.template import Message, render_chat
from lwm.data.tokenizer import TextStream, Tokenizer
from lwm.errors import UserError
from lwm.fit import require_fit
from lwm.generate.engine import LONG, Progress, Session, chunks
from lwm.generate.sampling import sampler
from lwm.generate.stopping import StoppingText
from lwm.generate.writing import Writing
from lwm.model.cache import KVCache
from lwm.model.devices import machine
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

    def require_memory(
        self, slots: int, *, rows: int = 1, instead_of: KVCache | None = None
    ) -> None:
        """Refuses a cache that the devices have no room for beside the model.

        Args:
            slots: Tokens and padding of each row.
            rows: Prompts that are continued together.
            instead_of: A cache that is given up for it.

        Raises:
            UserError: What is needed, what there is, and what can be done.
        """
        dp, fsdp, tp, sp = self.mesh.devices.shape
        held = sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves((self.llama, instead_of))
        )
        here = machine(list(self.mesh.devices.flat)).without(held, self.mesh.size)
        require_fit(
            self.llama.config,
            name=self.name,
            context=slots,
            rows=rows,
            mesh=(dp, fsdp, tp, sp),
            int8=any(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(self.llama)),
            machine=dataclasses.replace(here, count=jax.device_count()),
            shorter=False,
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
        """Reads a whole prompt, then yields the text that follows as it is written.

        Raises:
            UserError: Prompt and answer do not fit into the context or the devices' memory.
        """
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
        if self._session is not None and self._session.is_lost:
            self._session, self._ids, self._ends = None, [], []
        shared = min(_common(self._ids, ids), len(ids) - 1)
        start = self._ends[shared - 1] if shared else 0
        slots = start + sum(chunks(len(ids) - shared)) + max_tokens
        if slots > self._most:
            # Padding takes up the room: all is read again, without that of earlier turns.
            shared, start, slots = 0, 0, sum(chunks(len(ids))) + max_tokens
        session = self._with_room(slots)
        session.rewind(start)
        new = list(ids[shared:])
        del self._ids[shared:], self._ends[shared:]
        session.read([new], progress=progress)
        self._remember(session, new)
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
