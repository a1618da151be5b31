"""The model behind a server: answers of its engine for many requests, admission, and the end."""

import asyncio
import hashlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import lwm
from lwm.errors import UserError
from lwm.fingerprint import content_of
from lwm.generate.answer import room
from lwm.generate.language_model import LanguageModel
from lwm.sampling_params import SamplingParams
from lwm.serve.config import ServeConfig
from lwm.serve.errors import ApiError
from lwm.serve.evaluations import Evaluations
from lwm.serve.media import MediaReader
from lwm.serve.metrics import metrics_of
from lwm.serve.running import Answers, Ask, Caller
from lwm.serve.schema import Body
from lwm.serve.streams import Streams
from lwm.text import printable
from lwm.tokenizer.lwm_format import LWM_JINJA, LWM_TEMPLATE

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")
_IGNORED = ("user", "metadata", "store", "service_tier", "parallel_tool_calls", "reasoning_effort")
"""Fields of OpenAI that change no answer of this server."""
_MEDIA_THREADS = 2
_LEAST_POOL = 1 << 15
"""Tokens of the cache of a model with a short context, if memory allows."""
_WINDOW = 20.0
"""Seconds over which the speed is measured."""


class Service:
    """A loaded model and the requests that it works on."""

    def __init__(self, model: LanguageModel, config: ServeConfig):
        """Takes a model; `warm_up` compiles its programs.

        Raises:
            UserError: There are more slots than the model can write together.
        """
        self.model, self.config = model, config
        self.name = config.served_name or model.name
        self.lane = model.lane(config.slots)
        if self.lane < config.slots:
            raise UserError(
                f"slots {config.slots} are more than the {self.lane} answers that are written "
                f"together at most; give --slots {self.lane}"
            )
        self.media = MediaReader(model, config.media)
        self.evaluations = Evaluations(config.evaluations)
        self.rebuilding = asyncio.Lock()
        """Held while a prompt of an evaluation is built, which may take a thread for long."""
        self.draws = _draws(model)
        """True if the model writes images."""
        self.fingerprint = _fingerprint(model)
        """Changes with the weights and the version of this package."""
        self.created = int(time.time())
        self.is_draining = False
        self.queue_tokens = config.queue_tokens or max(1 << 16, 4 * model.context)
        self.open: dict[Answers, None] = {}
        self.streams = Streams(config.detached_seconds)
        self.waiting: dict[Answers, int] = {}
        """Tokens of requests of which nothing has been read yet."""
        self._unknown: set[str] = set()
        self._worked: deque[tuple[float, int]] = deque()
        self.metrics = metrics_of(self)
        self._threads = ThreadPoolExecutor(8, "lwm-serve")
        self._media_threads = ThreadPoolExecutor(_MEDIA_THREADS, "lwm-media")

    def warm_up(self) -> None:
        """Allocates the cache and compiles the programs of answers, so that none waits for it.

        Those are two for chunks of prompts, one for copies of pages, one that seats a row, and the
        decoding loop. Programs of scores and of images are compiled when they are first asked for.

        Raises:
            UserError: There is no memory for the cache.
        """
        model = self.model
        if model.pool_tokens is None:
            sp = model.mesh.devices.shape[-1]
            model.engine.reserve(-(-_ample(model) // sp))
        model.engine.warm_up([self.lane], scores=False)

    @property
    def facts(self) -> str:
        """The room for answers, in words."""
        tokens = self.model.engine.pool_tokens * self.model.engine.groups
        return f"{self.lane} slots, a cache of {tokens:,} tokens"

    def close(self) -> None:
        """Ends all answers and threads."""
        for answers in list(self.open):
            answers.close()
        for threads in (self._threads, self._media_threads):
            threads.shutdown(wait=False, cancel_futures=True)

    async def on_thread(self, function: Callable[..., _T], *args: Any, media: bool = False) -> _T:
        """Runs a function that may wait or compute, so that other requests go on."""
        threads = self._media_threads if media else self._threads
        return await asyncio.get_running_loop().run_in_executor(threads, function, *args)

    def ask(self, ids: Sequence[int], params: SamplingParams, **options: Any) -> Ask:
        """Returns an answer to ask for, after a check that it fits.

        Raises:
            ApiError: It does not fit into the context.
            UserError: It does not fit into the pool.
        """
        count, context = len(ids), self.model.context
        asked = 1 if params.max_tokens is None else params.max_tokens
        if count + asked > context + (asked == 0):
            raise ApiError(
                f"the prompt has {count:,} tokens and the answer {asked:,} at most, but "
                f"{self.name} has a context of {context:,}; shorten the prompt or max_tokens",
                "exceed_context_size_error",
                code="context_length_exceeded",
                n_prompt_tokens=count,
                n_ctx=context,
            )
        most = room(self.model, count, params)
        return Ask(ids=ids, params=params, options=options, size=count + most)

    async def answer(self, asks: Sequence[Ask], caller: Caller) -> Answers:
        """Sends a request to the engine, if there is room in the queue.

        Raises:
            ApiError: The server stops, too much waits, or too much is asked for at once.
            UserError: An answer does not fit.
        """
        size = sum(ask.size for ask in asks)
        if len(asks) > 1 and size > self.queue_tokens:
            raise ApiError(
                f"the request asks for {size:,} tokens of prompts and answers, more than the "
                f"{self.queue_tokens:,} that may wait; lower max_tokens or n, or divide it"
            )
        self._admit(size, caller)
        answers = Answers(
            self.model,
            asks,
            caller,
            lane=self.lane,
            metrics=self.metrics,
            begun=self._note_begun,
            worked=self._note_work,
        )
        self.open[answers] = None
        self.waiting[answers] = size
        try:
            await self.on_thread(answers.send)
        except BaseException:
            self.end(answers)
            raise
        return answers

    def end(self, answers: Answers) -> None:
        """Ends the answers of a request; called once it is over, whatever happens."""
        answers.close()
        self.open.pop(answers, None)
        self.waiting.pop(answers, None)

    def _admit(self, size: int, caller: Caller) -> None:
        if self.is_draining:
            raise ApiError("the server is stopping; ask another one", "unavailable_error")
        # A key of which nothing waits is let in, whatever others have in line.
        own = [other.caller.client in (None, caller.client) for other in self.waiting]
        ahead = sum(self.waiting.values())
        if not any(own) or ahead + size <= self.queue_tokens:
            return
        seconds = min(60, max(1, math.ceil(ahead / max(self.speed, 1.0))))
        raise ApiError(
            f"the server is busy: {ahead:,} tokens wait in line; try again in {seconds} s",
            "rate_limit_error",
            code="rate_limit_exceeded",
            headers={"retry-after": str(seconds)},
        )

    def _note_begun(self, answers: Answers, size: int) -> None:
        """Notes that one of the answers does not wait any more."""
        left = self.waiting.get(answers, 0) - size
        if left > 0:
            self.waiting[answers] = left
        else:
            self.waiting.pop(answers, None)

    def _note_work(self, tokens: int) -> None:
        self._worked.append((time.monotonic(), tokens))

    def fail(self, error: Exception) -> None:
        """Ends all requests with an error; any thread may do so."""
        for answers in list(self.open):
            answers.fail(error)

    @property
    def speed(self) -> float:
        """Tokens read and written in a second, of late."""
        now = time.monotonic()
        while self._worked and self._worked[0][0] < now - _WINDOW:
            self._worked.popleft()
        if not self._worked:
            return 0.0
        return sum(count for _, count in self._worked) / max(1.0, now - self._worked[0][0])

    def require_n(self, n: int) -> None:
        """Refuses more answers than a request may ask for.

        Raises:
            ApiError: Their number.
        """
        if n > self.config.max_n:
            raise ApiError(
                f"n {n} is more than the {self.config.max_n} answers that a request may have; ask "
                "for fewer, or start the server with a larger --max-n",
                param="n",
            )

    def require_model(self, name: str | None) -> None:
        """Refuses another model than the one that is served.

        Raises:
            ApiError: Status 404.
        """
        if name and name != self.name:
            raise ApiError(
                f"the model {name!r} does not exist; this server has {self.name!r}",
                "not_found_error",
                param="model",
                code="model_not_found",
            )

    def note_unknown(self, body: Body) -> None:
        """Logs fields of requests that the server does not know, each once."""
        for name in body.model_extra or ():
            name = name[:64]
            if name not in _IGNORED and name not in self._unknown and len(self._unknown) < 256:
                self._unknown.add(name)
                _LOG.warning("requests have the field %s, which has no effect", printable(name))

    @property
    def template(self) -> str:
        """The source of the chat template."""
        own = self.model.template
        if own is not None and "{" in own:
            return own
        return LWM_JINJA if own == LWM_TEMPLATE else self.model.tokenizer.jinja or LWM_JINJA

    @property
    def num_waiting(self) -> int:
        """Requests of which nothing has been read yet."""
        return len(self.waiting)


def _ample(model: LanguageModel) -> int:
    """Returns the tokens of a cache that is large enough for most, or as large as memory allows."""
    tokens = max(model.context, _LEAST_POOL)
    while tokens > _LEAST_POOL // 8:
        try:
            model.require_memory(tokens)
        except UserError:
            tokens //= 2
        else:
            break
    return tokens


def _draws(model: LanguageModel) -> bool:
    if not model.sees or model.vqgan_file is None:
        return False
    try:
        model.vision.require_decoder()
    except UserError:
        return False
    return True


def _fingerprint(model: LanguageModel) -> str:
    places = [place for place in (model.source, model.adapter) if place is not None]
    found = [sorted(place.iterdir()) if place.is_dir() else [place] for place in places]
    files = [path for paths in found for path in paths if path.is_file()]
    contents = [(path.name, content_of(path)) for path in files]
    how = model.llama.config, model.llama.compute, model.template, model.cache_dtype
    facts = contents, lwm.__version__, *how
    return f"fp_{hashlib.sha256(repr(facts).encode()).hexdigest()[:10]}"
