"""`/v1/completions`: continues texts, and scores them."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any, NamedTuple

from lwm.generate.answer import Answer
from lwm.serve.errors import ApiError, not_supported
from lwm.serve.params import seeded, text_sampling
from lwm.serve.report import Chunks, finite, head, spelled, timings, usage
from lwm.serve.running import Answers, Caller
from lwm.serve.schema import CompletionRequest, refuse_unsupported
from lwm.serve.service import Service

_MOST_TOKENS = 16
"""Tokens of an answer where the request does not say, as with OpenAI."""


class _Prompt(NamedTuple):
    """A text to continue, or its ids."""

    ids: Sequence[int]
    text: str | None


class Completions:
    """One request to continue texts."""

    def __init__(
        self,
        service: Service,
        body: CompletionRequest,
        prompts: Sequence[_Prompt],
        answers: Answers,
    ):
        """Takes the request and its answers, which have begun."""
        self._service, self._body, self._num_prompts = service, body, len(prompts)
        self.answers = answers
        n = body.n or 1
        self._choices = [
            _Choice(service, body, prompts[number // n], answer)
            for number, answer in enumerate(answers.answers)
        ]

    @classmethod
    async def start(
        cls, service: Service, body: CompletionRequest, caller: Caller
    ) -> "Completions":
        """Encodes the prompts, and sends the request to the engine.

        Raises:
            ApiError: The request is refused.
            UserError: A prompt cannot be continued.
        """
        refuse_unsupported(body)
        service.require_n(body.n or 1)
        if body.stream and body.echo and body.logprobs is not None:
            raise not_supported("echo with logprobs in a stream", "leave out stream")
        prompts = await service.on_thread(_encoded, service, body)
        most = _MOST_TOKENS if body.max_tokens is None else body.max_tokens
        params = seeded(text_sampling(body, most), body.n or 1)
        asks = []
        for prompt in prompts:
            scored = body.echo and body.logprobs is not None and len(prompt.ids) > 1
            options: dict[str, Any] = {"continues": True, "top_logprobs": body.logprobs or 0}
            options["scores_from"] = 1 if scored else None
            asks += [service.ask(prompt.ids, each, **options) for each in params]
        return cls(service, body, prompts, await service.answer(asks, caller))

    async def whole(self) -> dict[str, Any]:
        """Returns the texts once they are complete."""
        async for event in self.answers.events():
            self._choices[event.index].take(event.pieces)
        made = head(self._service, "text_completion", "cmpl")
        made["choices"] = [
            {"index": index} | choice.to_json() for index, choice in enumerate(self._choices)
        ]
        made["usage"] = self._usage()
        made["timings"] = timings(self.answers)
        return made

    async def stream(self) -> AsyncGenerator[bytes]:
        """Yields the texts in events as they are written."""
        same = head(self._service, "text_completion", "cmpl")
        chunk = Chunks(same, self._body.stream_options, self._usage)
        for index, choice in enumerate(self._choices):
            if text := choice.echoed():
                yield chunk(choice.part(index, text))
        async for event in self.answers.events():
            choice = self._choices[event.index]
            text = choice.take(event.pieces)
            if event.answer.finish_reason is not None:
                last = choice.part(event.index, text) | choice.ended()
                yield chunk(last, timings=timings(self.answers))
            elif text:
                yield chunk(choice.part(event.index, text))
        yield chunk.end()

    def _usage(self) -> dict[str, Any]:
        return usage(self._service.model, self.answers.answers, prompts=self._num_prompts)


class _Choice:
    """One text, as it grows."""

    def __init__(self, service: Service, body: CompletionRequest, prompt: _Prompt, answer: Answer):
        self._model, self._body, self._prompt, self._answer = service.model, body, prompt, answer
        self._text: list[str] = []
        self._num_logged = 0
        self._offset = 0

    def take(self, pieces: Sequence[Any]) -> str:
        """Adds pieces, and returns their text."""
        text = "".join(pieces)
        self._text.append(text)
        return text

    def echoed(self) -> str:
        """Returns the text of the prompt if it is asked for."""
        if not self._body.echo:
            return ""
        if self._prompt.text is not None:
            return self._prompt.text
        return self._model.tokenizer.decode(self._prompt.ids, skip_special=False)

    def part(self, index: int, text: str) -> dict[str, Any]:
        """Returns a part of the text as a choice of a chunk."""
        return {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(with_prompt=False),
            "finish_reason": None,
        }

    def ended(self) -> dict[str, Any]:
        """Returns why the text has ended, and its ids if they are asked for."""
        made: dict[str, Any] = {
            "finish_reason": self._answer.finish_reason,
            "stop_reason": self._answer.stopped_by,
        }
        if self._body.return_token_ids:
            made |= {"prompt_token_ids": list(self._prompt.ids), "token_ids": self._answer.ids}
        return made

    def to_json(self) -> dict[str, Any]:
        """Returns the choice of an answer that is not a stream."""
        made = {
            "text": self.echoed() + "".join(self._text),
            "logprobs": self._logprobs(with_prompt=bool(self._body.echo)),
        }
        return made | self.ended()

    def _logprobs(self, *, with_prompt: bool) -> dict[str, Any] | None:
        """Returns log-probabilities in the form of completions, of ids since the last call."""
        if self._body.logprobs is None:
            return None
        answer, start = self._answer, self._num_logged
        self._num_logged = len(answer.ids)
        ids: list[int] = answer.ids[start:]
        logprobs: list[float | None] = [finite(each) for each in answer.logprobs[start:]]
        none = [None] * len(ids)
        tops: list[Any] = list(answer.top_logprobs[start:]) if self._body.logprobs else none
        if with_prompt:
            ids = [*self._prompt.ids, *ids]
            scores = [finite(each) for each in answer.prompt_logprobs]
            logprobs = [None, *scores, *logprobs]
            read = answer.prompt_top_logprobs if self._body.logprobs else [None] * len(scores)
            tops = [None, *read, *tops]
        tokens = [spelled(self._model, each).decode(errors="replace") for each in ids]
        offsets = []
        for each in tokens:
            offsets.append(self._offset)
            self._offset += len(each)
        return {
            "tokens": tokens,
            "token_logprobs": logprobs,
            "top_logprobs": [self._top(*each) for each in zip(ids, logprobs, tops, strict=True)],
            "text_offset": offsets,
        }

    def _top(
        self, own: int, logprob: float | None, tops: Sequence[tuple[int, float]] | None
    ) -> dict[str, float] | None:
        """Returns the likeliest ids and the one that was taken, by their texts."""
        if logprob is None or not self._body.logprobs:
            return None
        made: dict[str, float] = {}
        for each, value in [*(tops or ()), (own, logprob)]:
            text = spelled(self._model, each).decode(errors="replace")
            made[text] = max(finite(value), made.get(text, -9999.0))
        return made


def _encoded(service: Service, body: CompletionRequest) -> list[_Prompt]:
    """Returns the prompts with their ids."""
    given: Any = body.prompt
    if isinstance(given, str) or isinstance(given[0], int):
        given = [given]
    size = service.model.llama.config.tokens.size
    prompts = []
    for number, prompt in enumerate(given):
        if isinstance(prompt, str):
            prompts.append(_Prompt(service.model.encode_prompt(prompt), prompt))
            continue
        if max(prompt) >= size:
            raise ApiError(
                f"prompt {number + 1} has the id {max(prompt)}; ids are from 0 to {size - 1}",
                param="prompt",
            )
        prompts.append(_Prompt(prompt, None))
    return prompts
