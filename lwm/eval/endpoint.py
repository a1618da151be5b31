"""Questions to an OpenAI-compatible server: vLLM, SGLang, llama.cpp, OpenAI and others."""

import concurrent.futures
import dataclasses
import hashlib
import json
import queue
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, Literal

from lwm.errors import UserError
from lwm.eval.prompt import plain_text
from lwm.eval.question import Question, Response
from lwm.eval.server import Refused, Server, Session
from lwm.eval.subject import Subject
from lwm.tokenizer.tokenizer import Tokenizer

Opening = Literal["message", "continue"]
"""Where the start of an answer goes: at the end of the message, as all servers take it, or in a
turn of the assistant that vLLM and SGLang let the model continue."""

_PROBES = 3
"""Retries of the first request, which a user waits for."""
_TICK = 0.2
"""Seconds between calls of `progress`."""
_LIMIT, _NEWER_LIMIT = "max_tokens", "max_completion_tokens"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model on a server."""

    name: str
    context: int | None = None
    """Tokens of prompt and answer at most, if the server names them."""

    @classmethod
    def find(cls, server: Server, name: str | None = None) -> "ServedModel":
        """Asks a server for its models.

        Args:
            server: The server.
            name: The model's name there; None: it serves only one.

        Raises:
            UserError: There is no such server, it does not accept the key, or it serves several
                models and no name is given.
        """
        try:
            with server.session() as session:
                listed = session.start(session.get("/models", retries=_PROBES)).result()
        except Refused as refused:
            if name is None:
                raise UserError(
                    f"{server.url} does not list its models ({refused}); correct the URL, or name "
                    "the model"
                ) from None
            return cls(name=name)
        models = _models(listed)
        if name is None and len(models) != 1:
            there = f"serves {', '.join(models)}" if models else "lists no model"
            raise UserError(f"{server.url} {there}; name the model that is to answer")
        chosen = next(iter(models)) if name is None else name
        return cls(name=chosen, context=models.get(chosen))


def _models(listed: Mapping[str, Any]) -> dict[str, int | None]:
    """Returns the names of a server's models, each with its context if that is known."""
    found = {}
    data = listed.get("data")
    for each in data if isinstance(data, list) else []:
        if isinstance(each, dict) and isinstance(name := each.get("id"), str):
            context = each.get("max_model_len")
            found[name] = context if isinstance(context, int) else None
    return found


class EndpointAnswerer:
    """Answers questions with a model on a server, several at a time, greedily."""

    def __init__(
        self,
        server: Server,
        model: str,
        *,
        opening: Opening = "message",
        extra: Mapping[str, Any] | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ):
        """Connects to nothing yet.

        Args:
            server: The server; as many questions are asked at a time as it has connections.
            model: The model's name there.
            opening: Where the start of an answer goes, in chats.
            extra: Further fields of each request; those that are None are left out of it.
            progress: Called with 0 a few times a second; may raise, which ends all requests.
        """
        self._server, self._model = server, model
        self._opening, self._extra, self._progress = opening, dict(extra or {}), progress
        self._limit = _LIMIT

    def answers(self, questions: Iterable[Question]) -> Generator[tuple[Question, Response]]:
        """Yields each question with its response.

        Raises:
            UserError: The server refuses a question, or has failed too often.
        """
        waiting = iter(questions)
        inbox: queue.SimpleQueue[concurrent.futures.Future[dict[str, Any]]] = queue.SimpleQueue()
        running: dict[concurrent.futures.Future[dict[str, Any]], Question] = {}
        with self._server.session() as session:
            while True:
                while len(running) < self._server.connections and (question := next(waiting, None)):
                    future = session.start(self._ask(session, question))
                    running[future] = question
                    future.add_done_callback(inbox.put)
                if not running:
                    return
                try:
                    future = inbox.get(timeout=_TICK)
                except queue.Empty:
                    self._progress(0)
                    continue
                question = running.pop(future)
                yield question, self._response(future.result())

    async def _ask(self, session: Session, question: Question) -> dict[str, Any]:
        if not question.is_text:
            raise UserError(
                f"{self._server.url} is asked in text only; images and videos need a model in this "
                "process"
            )
        path = "/chat/completions" if question.form == "chat" else "/completions"
        values = self._values(question)
        try:
            try:
                return await session.post(path, values)
            except Refused as refused:
                # OpenAI's newer models; another request may have found it out meanwhile.
                if _NEWER_LIMIT not in refused.message or _LIMIT not in values:
                    raise
                self._limit = _NEWER_LIMIT
                return await session.post(path, self._values(question))
        except Refused as refused:
            raise UserError(
                f"{self._server.url}{path} refuses a prompt of {len(question.ids):,} tokens for "
                f"{self._model}: {refused}"
            ) from None

    def _values(self, question: Question) -> dict[str, Any]:
        """Returns the JSON of a request."""
        values: dict[str, Any] = {
            "model": self._model,
            "temperature": 0,
            self._limit: question.max_tokens,
        }
        message, opening = question.message, question.opening
        if question.form != "chat":
            values["prompt"] = plain_text(question.form, message, opening)
        elif opening and self._opening == "continue":
            user = {"role": "user", "content": message}
            values["messages"] = [user, {"role": "assistant", "content": opening}]
            values |= {"continue_final_message": True, "add_generation_prompt": False}
        else:
            values["messages"] = [{"role": "user", "content": message + opening}]
        values |= self._extra
        return {key: value for key, value in values.items() if value is not None}

    def _response(self, values: Mapping[str, Any]) -> Response:
        """Returns the response in a server's JSON.

        Raises:
            UserError: It holds no answer, or does not count the tokens of the prompt.
        """
        try:
            choice = values["choices"][0]
            text = choice["message"]["content"] if "message" in choice else choice["text"]
        except (KeyError, IndexError, TypeError):
            raise UserError(
                f"{self._server.url} answers in another form than OpenAI's API; is it the URL of "
                "one?"
            ) from None
        usage = values.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        if not isinstance(usage.get("prompt_tokens"), int):
            raise UserError(
                f"{self._server.url} does not count the tokens of prompts (usage.prompt_tokens), "
                "so that it may have cut them; use a server that does"
            )
        written = usage.get("completion_tokens")
        return Response(
            text=text if isinstance(text, str) else "",
            prompt_tokens=usage["prompt_tokens"],
            completion_tokens=written if isinstance(written, int) else 0,
        )


def endpoint_subject(
    server: Server,
    model: ServedModel,
    tokenizer: Tokenizer,
    *,
    template: str | None = None,
    opening: Opening = "message",
    extra: Mapping[str, Any] | None = None,
) -> Subject:
    """Returns a model on a server that is to be evaluated.

    Its description is without the URL: a folder of results continues on another server.

    Args:
        server: The server.
        model: The model there.
        tokenizer: The model's; the lengths of prompts are counted with it.
        template: A chat template in place of the tokenizer's.
        opening: See `EndpointAnswerer`.
        extra: See `EndpointAnswerer`.
    """
    tokenizer = tokenizer.under(template)

    def answerer(tokens: int, progress: Callable[[int], None]) -> EndpointAnswerer:
        return EndpointAnswerer(server, model.name, opening=opening, extra=extra, progress=progress)

    return Subject(
        description={
            "name": model.name,
            "tokenizer": tokenizer_digest(tokenizer, template),
            "requests": {"opening": opening, "extra": dict(extra or {})},
        },
        tokenizer=tokenizer,
        template=template,
        context=model.context,
        elsewhere="those of a server",
        answerer=answerer,
    )


def tokenizer_digest(tokenizer: Tokenizer, template: str | None = None) -> str:
    """Returns a digest that differs between tokenizers and chat templates, wherever they are."""
    found = hashlib.sha256()
    for token in range(tokenizer.vocab_size):
        found.update(tokenizer.backend.spell(token) + b"\n")
    probe = tokenizer.encode("Tokens are counted: 1234567, αβγ,\n\tand so on.")
    special = [tokenizer.bos_id, sorted(tokenizer.eos_ids), tokenizer.add_bos]
    chat = template or tokenizer.chat_template
    found.update(json.dumps([probe, special, chat]).encode())
    return found.hexdigest()[:16]
