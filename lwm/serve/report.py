"""Fields that answers of several routes share: head, usage, times and log-probabilities."""

import math
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from lwm.generate.answer import Answer
from lwm.generate.loaded import LoadedModel
from lwm.serve.running import Answers
from lwm.serve.schema import StreamOptions
from lwm.serve.service import Service
from lwm.serve.sse import DONE, event


def head(service: Service, kind: str, prefix: str) -> dict[str, Any]:
    """Returns the fields with which an answer, and each chunk of a stream, begins."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": service.name,
        "system_fingerprint": service.fingerprint,
    }


class Chunks:
    """Makes the events of a stream."""

    def __init__(
        self,
        same: dict[str, Any],
        options: StreamOptions | None,
        count: Callable[[], dict[str, Any]],
    ):
        """Takes what the events share.

        Args:
            same: Fields of every event.
            options: Events in which tokens are counted.
            count: Counts them.
        """
        self._same, self._count = same, count
        self._always = bool(options and options.continuous_usage_stats)
        self._last = bool(options and (options.include_usage or options.continuous_usage_stats))

    def __call__(self, *choices: dict[str, Any], **more: Any) -> bytes:
        """Returns an event with choices."""
        made = self._same | {"choices": choices} | more
        if self._last:
            made["usage"] = self._count() if self._always else None
        return event(made)

    def end(self) -> bytes:
        """Returns the last events of a stream."""
        counted = self._same | {"choices": [], "usage": self._count()} if self._last else None
        return (b"" if counted is None else event(counted)) + DONE


def usage(
    model: LoadedModel, answers: Sequence[Answer], *, image_tokens: int = 0, prompts: int = 1
) -> dict[str, Any]:
    """Returns the tokens of a request; a prompt counts once, whatever the number of its answers.

    Args:
        model: The model.
        answers: The answers, those to one prompt together.
        image_tokens: Tokens of images and videos in the prompt.
        prompts: The number of prompts.
    """
    text = model.llama.config.tokens.text
    codes = sum(each >= text for answer in answers for each in answer.ids) if model.sees else 0
    firsts = answers[:: max(1, len(answers) // prompts)]
    read = sum(answer.usage.prompt_tokens for answer in firsts)
    written = sum(answer.usage.completion_tokens for answer in answers)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {
            "cached_tokens": sum(answer.usage.cached_tokens for answer in firsts),
            "image_tokens": image_tokens,
        },
        "completion_tokens_details": {"image_tokens": codes},
    }


def timings(answers: Answers) -> dict[str, Any]:
    """Returns tokens and times as llama.cpp's server names them."""
    all_answers, times = answers.answers, answers.times
    now = time.monotonic()
    first = now if math.isnan(times.first) else times.first
    cached = sum(answer.usage.cached_tokens for answer in all_answers)
    read = sum(answer.usage.prompt_tokens for answer in all_answers) - cached
    written = sum(answer.usage.completion_tokens for answer in all_answers)
    reading, writing = max(first - times.arrived, 1e-9), max(now - first, 1e-9)
    return {
        "cache_n": cached,
        "prompt_n": read,
        "prompt_ms": 1e3 * reading,
        "prompt_per_token_ms": 1e3 * reading / max(1, read),
        "prompt_per_second": read / reading,
        "predicted_n": written,
        "predicted_ms": 1e3 * writing,
        "predicted_per_token_ms": 1e3 * writing / max(1, written),
        "predicted_per_second": written / writing,
    }


def token(model: LoadedModel, token_id: int, logprob: float) -> dict[str, Any]:
    """Returns the text, the bytes and the log-probability of an id."""
    data = spelled(model, token_id)
    return {
        "token": data.decode(errors="replace"),
        "logprob": finite(logprob),
        "bytes": list(data),
    }


def spelled(model: LoadedModel, token_id: int) -> bytes:
    """Returns the bytes of an id; ids of vision have names."""
    if token_id >= model.llama.config.tokens.text:
        return f"<vision {token_id - model.llama.config.tokens.text}>".encode()
    if token_id >= model.tokenizer.vocab_size:
        return b""  # padding of the table
    return model.tokenizer.backend.spell(token_id)


def finite(logprob: float) -> float:
    """Returns a log-probability that JSON can hold."""
    return max(logprob, -9999.0)
