"""Questions to models on the machines of a Ray cluster with shared files."""

import contextlib
import dataclasses
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

import jax

from lwm.cluster import connected, local_errors, require_room
from lwm.convert.open import open_tokenizer
from lwm.errors import UserError
from lwm.eval.answer import ModelAnswerer, describe_model, model_fingerprints
from lwm.eval.question import Question, Response
from lwm.eval.report.facts import devices
from lwm.eval.subject import Subject
from lwm.files import require_package
from lwm.folders import cache_folder
from lwm.generate.language_model import LanguageModel
from lwm.loading import load

_RESTARTS = 3
"""Deaths that are survived: of the worker that answers a question, and for each worker."""
_TICK = 0.2
"""Seconds between calls of `progress`, at most."""
_DIED = (
    "a Ray worker died repeatedly, perhaps for lack of memory; run the same command with fewer "
    "workers to continue: the answers so far are kept"
)


@contextlib.contextmanager
def ray_subject(
    name: str,
    options: Mapping[str, Any],
    *,
    workers: int = 1,
    resources: Mapping[str, float] | None = None,
    rows: int = 1,
) -> Generator[Subject]:
    """Loads a model on workers of a Ray cluster, which end with the context.

    The answers are those of the model loaded here, to the last bit on devices of one kind. Runs on
    the cluster that Ray is configured for, for instance by RAY_ADDRESS, else on this machine. Paths
    must lead to the same files on all machines.

    Args:
        name: The model, as for `load`.
        options: Keyword arguments of `load`.
        workers: Number of workers.
        resources: What each worker needs, by Ray's names; by default a CPU core, and a GPU if the
            cluster has some.
        rows: Prompts that a worker answers together.

    Raises:
        UserError: The model cannot be loaded, or the cluster has no room for the workers.
    """
    ray = require_package("ray", "--engine ray", "ray")
    if workers < 1:
        raise UserError(f"{workers} Ray workers are too few; give at least 1")
    template = options.get("template")
    tokenizer = open_tokenizer(name).under(template)
    with connected(ray), local_errors(ray, _DIED):
        there = ray.cluster_resources()
        needs = dict(resources or {"CPU": 1, "GPU": min(1, there.get("GPU", 0))})
        require_room(there, workers, needs)
        made = ray.remote(
            num_cpus=needs.pop("CPU", 0),
            num_gpus=needs.pop("GPU", 0),
            resources=needs,
            max_concurrency=rows,
        )(_Worker)

        def start() -> Any:
            return made.remote(name, dict(options), rows, os.getcwd())

        actors = [start() for _ in range(workers)]
        facts: _Facts = ray.get([actor.facts.remote() for actor in actors])[0]
        pool = _Pool(ray, actors, start, facts, rows)
        yield Subject(
            description=facts.description,
            files=facts.files,
            tokenizer=tokenizer,
            template=template,
            context=facts.context,
            rows=rows,
            elsewhere=f"Ray workers ({workers}), each with {facts.devices}",
            answerer=lambda tokens, progress: RayAnswerer(pool, tokens=tokens, progress=progress),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Facts:
    """Facts of a model that a worker has loaded."""

    description: dict[str, Any]
    files: dict[str, str]
    context: int
    devices: str


class _Worker:
    """An actor that loads a model and answers questions, several at a time in threads."""

    def __init__(self, name: str, options: dict[str, Any], rows: int, folder: str) -> None:
        self._name, self._options, self._rows, self._folder = name, options, rows, folder
        self._lock = threading.Lock()
        self._model: LanguageModel | None = None
        self._answerer: ModelAnswerer | None = None
        self._tokens = 0

    def facts(self) -> _Facts:
        """Returns the facts of the model, loaded if needed: Ray wraps errors of a constructor."""
        with self._lock:
            model = self._loaded()
            return _Facts(
                description=describe_model(model),
                files=model_fingerprints(model),
                context=model.context,
                devices=devices(),
            )

    def answer(self, question: Question, tokens: int, expected: dict[str, Any]) -> Response:
        """Returns the response to a question.

        Args:
            question: The ids of the prompt, and the room for its answer.
            tokens: Tokens in the cache.
            expected: The description of the model.
        """
        with self._lock:
            if self._answerer is None or tokens > self._tokens:
                if describe_model(model := self._loaded()) != expected:
                    raise UserError("the model is not the same on all machines; give each the same")
                self._answerer = ModelAnswerer(model, tokens=tokens, rows=self._rows)
                self._tokens = tokens
            answerer = self._answerer
        ((_, response),) = answerer.answers([question])
        return response

    def _loaded(self) -> LanguageModel:
        if self._model is None:
            if os.path.isdir(self._folder):  # relative paths are as on the machine that asks
                os.chdir(self._folder)
            compiled = cache_folder() / "compiled"
            jax.config.update("jax_compilation_cache_dir", str(compiled))
            self._model = load(self._name, **self._options)
        return self._model


class _Slot:
    """A worker, and the questions that it has."""

    def __init__(self, actor: Any) -> None:
        self.actor, self.waiting, self.is_new = actor, 0, True


class _Pool:
    """The workers; one that dies is replaced."""

    def __init__(
        self, ray: Any, actors: Iterable[Any], start: Callable[[], Any], facts: _Facts, rows: int
    ) -> None:
        self.ray, self.facts, self._start = ray, facts, start
        self.slots = [_Slot(actor) for actor in actors]
        # The next questions are there when a worker has answered.
        self._most = 2 * rows
        self._deaths = 0

    def free(self) -> _Slot | None:
        """Returns the worker with the fewest questions if it may have more, a loaded one first."""
        slots = [slot for slot in self.slots if slot.waiting < self._most]
        return min(slots, key=lambda slot: (slot.is_new, slot.waiting), default=None)

    def replace(self, slot: _Slot) -> None:
        """Starts another worker in place of one that has died.

        Raises:
            UserError: This has happened too often.
        """
        if slot not in self.slots:  # another of its questions was first
            return
        self._deaths += 1
        if self._deaths > _RESTARTS * len(self.slots):
            raise UserError(_DIED)
        self.slots[self.slots.index(slot)] = _Slot(self._start())


class RayAnswerer:
    """Answers questions on the workers; those of a worker that dies are asked again."""

    def __init__(
        self,
        pool: _Pool,
        *,
        tokens: int,
        progress: Callable[[int], None] = lambda done: None,
    ):
        """Sends nothing yet.

        Args:
            pool: The workers.
            tokens: Tokens in the cache of each worker.
            progress: Called with 0 a few times a second; may raise.
        """
        self._pool, self._tokens, self._progress = pool, tokens, progress

    def answers(self, questions: Iterable[Question]) -> Generator[tuple[Question, Response]]:
        """Yields each question with its response.

        Raises:
            UserError: A question cannot be answered, or workers died repeatedly.
        """
        pool, ray = self._pool, self._pool.ray
        waiting = iter(questions)
        again: deque[_Sent] = deque()
        running: dict[Any, _Sent] = {}
        try:
            while True:
                while slot := pool.free():
                    sent = again.popleft() if again else None
                    if sent is None:
                        if (question := next(waiting, None)) is None:
                            break
                        sent = _Sent(question)
                    running[self._send(sent, slot)] = sent
                if not running:
                    return
                ready, _ = ray.wait(list(running), timeout=_TICK)
                self._progress(0)
                for ref in ready:
                    sent = running.pop(ref)
                    if (response := self._receive(ref, sent)) is None:
                        again.append(sent)
                    else:
                        yield sent.question, response
        finally:
            for sent in running.values():
                sent.slot.waiting -= 1

    def _send(self, sent: "_Sent", slot: _Slot) -> Any:
        sent.slot = slot
        slot.waiting += 1
        # The worker needs no more than the ids.
        question = dataclasses.replace(sent.question, cell=None, message="", parts=(), truth={})
        return slot.actor.answer.remote(question, self._tokens, self._pool.facts.description)

    def _receive(self, ref: Any, sent: "_Sent") -> Response | None:
        """Returns the response; None if the worker has died."""
        sent.slot.waiting -= 1
        try:
            response = self._pool.ray.get(ref)
        except self._pool.ray.exceptions.RayActorError:
            sent.deaths += 1
            if sent.deaths > _RESTARTS:
                raise UserError(_DIED) from None
            self._pool.replace(sent.slot)
            return None
        sent.slot.is_new = False
        return response


class _Sent:
    """A question on its way."""

    slot: _Slot

    def __init__(self, question: Question) -> None:
        self.question, self.deaths = question, 0
