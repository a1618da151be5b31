"""Metrics in Prometheus' text form, by the names that dashboards of vLLM and llama.cpp ask for."""

import dataclasses
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal

import jax

from lwm.model.pool import PAGE

if TYPE_CHECKING:
    from lwm.generate.engine import Engine
    from lwm.serve.service import Service

Kind = Literal["counter", "gauge"]
Labels = Mapping[str, str]
Number = int | float

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FIRST = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_BETWEEN = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_WHOLE = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0),
    *(240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_TOKENS = tuple(float(lead * 10**power) for power in range(7) for lead in (1, 2, 5))
_TIMES = {
    "time_to_first_token_seconds": ("Time from a request to the first token", _FIRST),
    "inter_token_latency_seconds": ("Time from one token to the next", _BETWEEN),
    "time_per_output_token_seconds": ("Time from one token to the next", _BETWEEN),
    "e2e_request_latency_seconds": ("Time from a request to the end of its answer", _WHOLE),
    "request_queue_time_seconds": ("Time in line", _WHOLE),
    "request_prefill_time_seconds": ("Time of reading a prompt", _WHOLE),
    "request_decode_time_seconds": ("Time of writing an answer, after its first token", _WHOLE),
    "request_inference_time_seconds": ("Time of reading and writing", _WHOLE),
    "request_prompt_tokens": ("Tokens of a prompt", _TOKENS),
    "request_generation_tokens": ("Tokens of an answer", _TOKENS),
    "request_params_n": ("Answers that a request asks for", (1.0, 2.0, 5.0, 10.0, 20.0)),
    "request_params_max_tokens": ("Tokens of an answer at most", _TOKENS),
}
"""Histograms that vLLM has as well: help and upper bounds."""
_COUNTERS = {
    "vllm:prompt_tokens": "Tokens of prompts",
    "vllm:generation_tokens": "Tokens of answers",
    "vllm:request_success": "Answers that have ended, by the reason",
    "vllm:prefix_cache_queries": "Tokens of prompts, looked up in the cache",
    "vllm:prefix_cache_hits": "Of these, tokens that were in the cache",
    "vllm:num_preemptions": "Answers that were interrupted; always 0, as none are",
    "llamacpp:prompt_tokens": "Tokens of prompts that were read",
    "llamacpp:prompt_seconds": "Time of reading prompts",
    "llamacpp:tokens_predicted": "Tokens of answers",
    "llamacpp:tokens_predicted_seconds": "Time of writing answers",
    "lwm:frames_drawn": "Frames of images and videos that were generated",
    "lwm:compile_seconds": "Time of compiling programs",
    "lwm:refusals": "Requests that were refused, by the HTTP status",
}
_OF_REASON = {"vllm:request_success": "finished_reason", "lwm:refusals": "status"}


class _Histogram:
    """Counts of values up to each bound."""

    def __init__(self, bounds: tuple[float, ...]):
        self._bounds, self._counts = (*bounds, math.inf), [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: Number, times: int = 1) -> None:
        place = next(i for i, bound in enumerate(self._bounds) if value <= bound)
        self._counts[place] += times
        self._sum += value * times

    def lines(self, name: str, labels: Labels) -> Iterator[str]:
        total = 0
        for bound, count in zip(self._bounds, self._counts, strict=True):
            total += count
            yield _line(f"{name}_bucket", {**labels, "le": _number(bound)}, total)
        yield _line(f"{name}_sum", labels, self._sum)
        yield _line(f"{name}_count", labels, total)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Reading:
    """A value that is read when it is asked for."""

    kind: Kind
    help: str
    read: Callable[[], Number]


class Metrics:
    """Counts of a server; any thread may call its methods."""

    def __init__(self, model: str, *, clock: Callable[[], float] = time.monotonic):
        """Starts with no request.

        Args:
            model: The model's name, a label of all values.
            clock: Returns the time in seconds.
        """
        self.clock = clock
        self._labels = {"model_name": model, "engine": "0"}
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str | None], Number] = {}
        for name in _COUNTERS:
            if name not in _OF_REASON:
                self._counts[name, None] = 0
        for reason in ("stop", "length", "abort"):
            self._counts["vllm:request_success", reason] = 0
        self._histograms = {name: _Histogram(bounds) for name, (_, bounds) in _TIMES.items()}
        self._readings: dict[str, _Reading] = {}
        self._facts: dict[str, tuple[str, Callable[[], Labels]]] = {}

    def watch(self, name: str, kind: Kind, about: str, read: Callable[[], Number]) -> None:
        """Adds a value that is read when the metrics are asked for, such as the length of a queue.

        Args:
            name: Its name; `_total` is added to that of a counter.
            kind: A gauge goes up and down, a counter only up.
            about: What it is, in a line.
            read: Returns the value.
        """
        self._readings[name] = _Reading(kind=kind, help=about, read=read)

    def state(self, name: str, about: str, read: Callable[[], Labels]) -> None:
        """Adds facts, read when they are asked for, as labels of a value that is always 1."""
        self._facts[name] = (about, read)

    def count(self, name: str, amount: Number = 1, *, reason: str | None = None) -> None:
        """Adds to a counter, such as `lwm:frames_drawn`.

        Args:
            name: Its name without `_total`.
            amount: What is added.
            reason: The value of its label, if it has one.
        """
        assert name in _COUNTERS
        assert (reason is None) == (name not in _OF_REASON)
        with self._lock:
            self._counts[name, reason] = self._counts.get((name, reason), 0) + amount

    def asked(self, answers: int) -> None:
        """Notes a request that is admitted, for so many answers."""
        with self._lock:
            self._histograms["request_params_n"].add(answers)

    def started(self, prompt_tokens: int, max_tokens: int) -> "AnswerTimes":
        """Notes an answer that is asked for, and returns what follows its times."""
        with self._lock:
            self._histograms["request_params_max_tokens"].add(max_tokens)
        return AnswerTimes(self, prompt_tokens)

    def text(self) -> str:
        """Returns all metrics in Prometheus' text form."""
        with self._lock:
            return "".join(f"{line}\n" for line in self._lines())

    def _lines(self) -> Iterator[str]:
        for name, about in _COUNTERS.items():
            yield from _head(f"{name}_total", "counter", about)
            for (of, reason), count in self._counts.items():
                if of == name:
                    more = {} if reason is None else {_OF_REASON[name]: reason}
                    yield _line(f"{name}_total", {**self._labels, **more}, count)
        for name, (about, _) in _TIMES.items():
            yield from _head(f"vllm:{name}", "histogram", about)
            yield from self._histograms[name].lines(f"vllm:{name}", self._labels)
        for name, reading in self._readings.items():
            full = f"{name}_total" if reading.kind == "counter" else name
            yield from _head(full, reading.kind, reading.help)
            yield _line(full, self._labels, reading.read())
        for name, (about, read) in self._facts.items():
            yield from _head(name, "gauge", about)
            yield _line(name, {**self._labels, **read()}, 1)

    def _add(self, counts: Mapping[str, Number], values: Mapping[str, Number]) -> None:
        with self._lock:
            for name, amount in counts.items():
                self._counts[name, None] += amount
            for name, value in values.items():
                self._histograms[name].add(max(0.0, value))

    def _add_tokens(self, count: int, seconds: float | None) -> None:
        with self._lock:
            self._counts["vllm:generation_tokens", None] += count
            self._counts["llamacpp:tokens_predicted", None] += count
            if seconds is not None:
                self._counts["llamacpp:tokens_predicted_seconds", None] += seconds
                for name in ("inter_token_latency_seconds", "time_per_output_token_seconds"):
                    self._histograms[name].add(seconds / count, count)


def metrics_of(service: "Service") -> Metrics:
    """Returns metrics with all that can be read of a service at any time."""
    metrics, engine, media = Metrics(service.name), service.model.engine, service.media
    gauges: tuple[tuple[str, str, Callable[[], Number]], ...] = (
        ("vllm:num_requests_running", "Requests that are worked on", lambda: _running(service)),
        ("vllm:num_requests_waiting", "Requests in line", lambda: service.num_waiting),
        ("vllm:kv_cache_usage_perc", "Share of the cache in use, 1 is all", lambda: _usage(engine)),
        ("llamacpp:requests_processing", "Requests that are worked on", lambda: _running(service)),
        ("llamacpp:requests_deferred", "Requests in line", lambda: service.num_waiting),
    )
    counters: tuple[tuple[str, str, Callable[[], Number]], ...] = (
        (
            "llamacpp:n_decode",
            "Chunks of prompts, and steps of decoding",
            lambda: engine.load.chunks + engine.load.steps,
        ),
        ("lwm:chunks", "Chunks of prompts that were read", lambda: engine.load.chunks),
        ("lwm:bursts", "Calls of the decoding loop", lambda: engine.load.bursts),
        ("lwm:burst_steps", "Steps of the decoding loop", lambda: engine.load.steps),
        ("lwm:frames_encoded", "Frames that were encoded", lambda: media.frames_encoded),
        ("lwm:media_cache_queries", "Images and videos of requests", lambda: media.queries),
        ("lwm:media_cache_hits", "Of these, those encoded before", lambda: media.hits),
    )
    for name, about, read in gauges:
        metrics.watch(name, "gauge", about, read)
    for name, about, read in counters:
        metrics.watch(name, "counter", about, read)
    metrics.state("vllm:cache_config_info", "The cache", lambda: _cache(service))
    _watch_compiling(metrics)
    return metrics


def _cache(service: "Service") -> Labels:
    engine, model = service.model.engine, service.model
    return {
        "block_size": str(PAGE),
        "num_gpu_blocks": str(engine.pool_tokens * engine.groups // PAGE),
        "enable_prefix_caching": "True",
        "cache_dtype": model.cache_dtype or model.llama.compute.dtype,
    }


def _running(service: "Service") -> int:
    return len(service.open) - service.num_waiting


def _usage(engine: "Engine") -> float:
    load = engine.load
    return load.used / max(1, load.pages)


def _watch_compiling(metrics: Metrics) -> None:
    """Counts the time of compiling programs in this process, from now on."""
    own = weakref.ref(metrics)  # a listener stays to the end of the process

    def note(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration" and (found := own()) is not None:
            found.count("lwm:compile_seconds", duration_secs)

    jax.monitoring.register_event_duration_secs_listener(note)


class AnswerTimes:
    """Times of one answer, from the request to the end; one thread calls its methods."""

    def __init__(self, metrics: Metrics, prompt_tokens: int):
        """Starts with the request; `Metrics.started` makes one."""
        self._metrics, self._prompt_tokens = metrics, prompt_tokens
        self._arrived = metrics.clock()
        self._begun = self._first = self._last = math.nan
        self._written, self._has_ended = 0, False

    def reads(self) -> None:
        """Notes that the prompt is being read: its time in line is over."""
        if math.isnan(self._begun):
            self._begun = self._metrics.clock()
            self._metrics._add({}, {"request_queue_time_seconds": self._begun - self._arrived})

    def writes(self, tokens: int) -> None:
        """Notes tokens that have been written together since the last call."""
        if not tokens:
            return
        self.reads()
        now = self._metrics.clock()
        if not math.isnan(self._first):
            self._metrics._add_tokens(tokens, now - self._last)
        else:
            self._first = now
            self._metrics._add({}, {"time_to_first_token_seconds": now - self._arrived})
            self._metrics._add_tokens(tokens, None)
        self._last, self._written = now, self._written + tokens

    def ends(self, reason: str | None, cached_tokens: int = 0) -> None:
        """Notes the end of the answer; only the first call counts.

        Args:
            reason: `stop` or `length`; None: the client has gone, or there was an error.
            cached_tokens: Tokens of the prompt that did not have to be read.
        """
        if self._has_ended:
            return
        self._has_ended, metrics = True, self._metrics
        metrics.count("vllm:request_success", reason=reason or "abort")
        if reason is None:
            return
        self.reads()
        now, read = metrics.clock(), self._prompt_tokens - cached_tokens
        first = now if math.isnan(self._first) else self._first
        metrics._add(
            {
                "vllm:prompt_tokens": self._prompt_tokens,
                "vllm:prefix_cache_queries": self._prompt_tokens,
                "vllm:prefix_cache_hits": cached_tokens,
                "llamacpp:prompt_tokens": read,
                "llamacpp:prompt_seconds": first - self._begun,
            },
            {
                "request_prompt_tokens": self._prompt_tokens,
                "request_generation_tokens": self._written,
                "e2e_request_latency_seconds": now - self._arrived,
                "request_inference_time_seconds": now - self._begun,
                "request_prefill_time_seconds": first - self._begun,
                "request_decode_time_seconds": now - first,
            },
        )


def _head(name: str, kind: str, about: str) -> Iterator[str]:
    yield f"# HELP {name} {about}."
    yield f"# TYPE {name} {kind}"


def _line(name: str, labels: Labels, value: Number) -> str:
    inside = ",".join(f'{key}="{_escaped(each)}"' for key, each in labels.items())
    return f"{name}{{{inside}}} {_number(value)}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: Number) -> str:
    return "+Inf" if value == math.inf else repr(float(value))
