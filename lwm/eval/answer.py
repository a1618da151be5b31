"""Greedy answers for evaluations, each independent of the prompts before it."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from lwm.eval.question import Question, Response
from lwm.eval.scoring import Inbox, text_of, together
from lwm.fingerprint import Fingerprints, fingerprints, model_files, named
from lwm.generate.answer import Answer
from lwm.generate.loaded import LoadedModel
from lwm.generate.output import Frame
from lwm.model.config import usual_cache
from lwm.progress import Progress
from lwm.sampling_params import SamplingParams


class ModelAnswerer:
    """Answers prompts greedily on a model's engine, one after another or several together.

    What a prompt shares with any prompt before it is not read again, as far as it is in the
    engine's pool; an answer is the same to the last bit whether or not it is.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        tokens: int,
        rows: int = 1,
        progress: Callable[[int], None] = lambda done: None,
    ):
        """Reserves pages for `tokens` tokens, or as many as the memory has room for.

        Args:
            model: The model that answers.
            tokens: Tokens of the prompts and answers of all rows, and of those that others may
                share.
            rows: Prompts that are answered together.
            progress: Called with the tokens read of the prompts that have no answer yet; may
                raise.
        """
        self._model, self._progress = model, progress
        self._rows, self._lane = rows, model.lane(rows)
        model.engine.reserve(-(-tokens // model.engine.groups))
        self.num_asked = 0
        """Tokens of all prompts so far."""
        self.num_read = 0
        """Tokens of all prompts that had to be read."""

    def answers(self, questions: Iterable[Question]) -> Iterator[tuple[Question, Response]]:
        """Yields each question with its response, without the token that ends it.

        Raises:
            UserError: The devices have no memory for a prompt and its answer, or the model does
                not generate the images that are asked for.
        """
        for question, answer, pieces in together(
            questions, self._send, self._lane, progress=self._progress
        ):
            usage = answer.usage
            self.num_asked += usage.prompt_tokens
            self.num_read += usage.prompt_tokens - usage.cached_tokens
            yield (
                question,
                Response(
                    text=text_of(pieces),
                    prompt_tokens=usage.prompt_tokens,
                    completion_tokens=usage.completion_tokens,
                    codes=_codes(pieces),
                ),
            )

    def _send(self, question: Question, inbox: Inbox, note: Progress) -> Answer:
        sampling, lane = question.sampling if question.frames else None, self._lane
        if sampling is not None and sampling.is_guided:
            lane = self._model.lane(2 * self._rows, together=2)
        return Answer(
            self._model,
            question.ids,
            SamplingParams(max_tokens=question.max_tokens, seed=question.seed),
            continues=bool(question.opening),
            sampling=sampling,
            frames=question.frames,
            lane=lane,
            progress=note,
            inbox=inbox,
        )


def _codes(pieces: Sequence[str | Frame]) -> Int[np.ndarray, "frames codes"] | None:
    frames = [piece.codes for piece in pieces if isinstance(piece, Frame)]
    return np.stack(frames) if frames else None


def describe_model(model: LoadedModel) -> dict[str, Any]:
    """Returns a description that differs between models, also between stages of training."""
    leaves = jax.tree.leaves(model.llama)
    is_usual = model.cache_dtype in (None, usual_cache(model.llama.held))
    template = model.template or model.tokenizer.chat_template or "lwm"
    return {
        "name": model.name,
        "parameters": sum(leaf.size for leaf in leaves),
        "context": model.context,
        "dtype": model.llama.compute.dtype,
        "weights": _sample(leaves),
        "template": template if len(template) < 16 else _digest(template.encode()),
        # As resolved: RoPE's base, scaling and context may be the user's.
        "config": dataclasses.asdict(model.llama.config),
        **({} if is_usual else {"cache": model.cache_dtype}),
    }


def model_fingerprints(model: LoadedModel) -> Fingerprints:
    """Returns the fingerprints of the files that a model was read from, its VQGAN's included."""
    if model.source is None:
        return {}
    files = named(model_files(model.source))
    if model.adapter is not None:
        files |= named(model_files(model.adapter), "adapter/")
    if model.vqgan_file is not None:
        files |= named(model_files(model.vqgan_file), "vqgan/")
    return fingerprints(files)


def _sample(leaves: Sequence[jax.Array]) -> str:
    """Hashes a few numbers of every tensor, which is fast for any size."""
    found = hashlib.sha256()
    for leaf in leaves:
        shard = leaf.addressable_shards[0].data
        corner = (slice(64), *[0] * (leaf.ndim - 2), slice(8))[: leaf.ndim]
        found.update(np.asarray(shard[corner]).astype(np.float32).tobytes())
    return found.hexdigest()[:16]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
