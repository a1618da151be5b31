"""A model for lm-evaluation-harness (EleutherAI), which brings tasks and metrics.

Texts are encoded as its model class for transformers does, so that both give equal numbers.
Importing this module registers the model there as `lwm`.
"""

import dataclasses
import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lwm.errors import UserError
from lwm.eval.answer import describe_model
from lwm.eval.scoring import Inbox, ScoreRequest, score, text_of, together
from lwm.files import require_package
from lwm.generate.answer import Answer
from lwm.generate.language_model import LanguageModel
from lwm.generate.loaded import WIDEST
from lwm.loading import load
from lwm.model.config import ModelOverrides
from lwm.progress import Progress
from lwm.sampling_params import SamplingParams
from lwm.tokenizer.message import Message
from lwm.tokenizer.template import chat_parts

_LOG = logging.getLogger(__name__)
_GIVEN = {field.name for field in dataclasses.fields(ModelOverrides)}
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


def _library(module: str) -> Any:
    return require_package(f"lm_eval.{module}", "lwm eval harness", "harness")


_base, _registry, _utils, _generation = map(
    _library, ("api.model", "api.registry", "utils", "models.utils")
)


@_registry.register_model("lwm")
class HarnessModel(_base.TemplateLM):
    """Scores and continues texts on a model's engine, many requests together.

    Requests with a common start follow each other, so that it is read once, in chunks of 512
    tokens; see `lwm.generate.pages`.
    """

    def __init__(
        self,
        pretrained: str | LanguageModel,
        *,
        dtype: Any = "float32",
        mesh: str = "1,1,1,1",
        template: str | None = None,
        pool_tokens: int | None = None,
        batch_size: int | str = WIDEST,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        seed: int = 0,
        device: str | None = None,
        max_batch_size: int | None = None,
        **given: Any,
    ):
        """Loads the model.

        Args:
            pretrained: A name for `lwm.load`, or a model that is loaded.
            dtype: See `lwm.load`; `auto` is float32.
            mesh: See `lwm.load`, such as tp=4.
            template: See `lwm.load`.
            pool_tokens: See `lwm.load`.
            batch_size: Requests that are worked on together; `auto` is 16.
            max_length: Tokens of the context; by default the model's.
            max_gen_toks: Tokens of an answer at most, where the task names no number.
            add_bos_token: Begin texts with the beginning-of-text token; None: as the tokenizer.
            prefix_token_id: Comes before a text without context; by default the token that begins
                texts, or else the one that ends them.
            seed: Of sampling; each request has its own.
            device: Not used: JAX chooses.
            max_batch_size: Not used.
            **given: Fields of `lwm.ModelOverrides`, such as theta or context.

        Raises:
            UserError: An argument is unknown or wrong, or the model cannot be loaded.
        """
        super().__init__()
        if unknown := given.keys() - _GIVEN:
            raise UserError(f"{sorted(unknown)[0]} is no argument of --model lwm")
        if device is not None:
            _LOG.warning("device %s is not used: set JAX_PLATFORMS, or mesh", device)
        if isinstance(pretrained, str):
            pretrained = load(
                pretrained,
                mesh=mesh,
                dtype="float32" if dtype == "auto" else dtype,
                template=template,
                pool_tokens=pool_tokens,
                given=ModelOverrides(**given),
            )
        self.model = pretrained
        self.tokenizer = pretrained.tokenizer
        self.batch_size = WIDEST if str(batch_size).startswith("auto") else int(batch_size)
        self.max_length = max_length or pretrained.context
        self.max_gen_toks = max_gen_toks
        self.num_truncated = 0
        """Requests whose context was shortened from the left."""
        self._seed, self._prefix = seed, prefix_token_id
        self._adds_bos = self.tokenizer.add_bos if add_bos_token is None else add_bos_token
        if not 1 <= self.max_length <= pretrained.context:
            raise UserError(
                f"max_length {self.max_length:,} must be from 1 to the context of "
                f"{pretrained.name}, {pretrained.context:,} tokens"
            )

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text.

        Raises:
            UserError: The tokenizer has none.
        """
        if self.tokenizer.eos_id is None:
            raise UserError(f"the tokenizer of {self.model.name} has no token that ends a text")
        return self.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """The id before a text without context."""
        if self._prefix is not None:
            return self._prefix
        bos = self.tokenizer.bos_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """The name of the tokenizer, for the harness's cache of requests."""
        return self.model.name.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Returns the ids of a text, in which names of special tokens are these.

        The beginning-of-text token comes first if texts begin with it, unless the text has it.
        """
        ids = self.tokenizer.encode(string)
        begins = self._adds_bos if add_special_tokens is None else add_special_tokens
        is_there = add_special_tokens is None and string.startswith(
            self.tokenizer.text_of(self.prefix_token_id)
        )
        bos = self.tokenizer.bos_id
        return ids if bos is None or not begins or is_there else [bos, *ids]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list:
        """Returns the log-likelihoods of whole texts, in windows of the context's length."""
        windows = [
            (number, _utils.make_disjoint_window(window))
            for number, request in enumerate(requests)
            for window in _utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
        ]
        found = self._loglikelihood_tokens(
            [(None, before, after) for _, (before, after) in windows], disable_tqdm=disable_tqdm
        )
        sums: list[list[float]] = [[] for _ in requests]
        for (number, _), (value, _) in zip(windows, found, strict=True):
            sums[number].append(value)
        totals = list(map(math.fsum, sums))
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        """Returns the log-likelihood of each continuation, and whether it is the greedy one."""
        numbers: dict[tuple[tuple[int, ...], int], list[int]] = {}
        for number, (_, context, continuation) in enumerate(requests):
            numbers.setdefault(self._fitted(context, continuation), []).append(number)
        found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)  # of no id at all
        # In this order, those with a common start follow each other.
        wanted = (
            ScoreRequest(ids=ids, first=first) for ids, first in sorted(numbers) if first < len(ids)
        )
        with self._bar(len(requests), disable_tqdm, "Scoring") as bar:
            for each in score(self.model, wanted, rows=self.batch_size):
                answer = math.fsum(each.logprobs), all(each.is_likeliest)
                for number in numbers[tuple(each.request.ids), each.request.first]:
                    found[number] = answer
                    if (key := requests[number][0]) is not None:
                        self.cache_hook.add_partial("loglikelihood", key, answer)
                    bar.update()
        return found

    def _fitted(self, context: list[int], continuation: list[int]) -> tuple[tuple[int, ...], int]:
        """Returns the ids of a request with as much context as fits, and the first one to score."""
        if len(continuation) > self.max_length:
            raise UserError(
                f"a continuation has {len(continuation):,} tokens, more than max_length "
                f"{self.max_length:,}"
            )
        ids = [*(context or [self.prefix_token_id]), *continuation]
        kept = self._truncated(ids, self.max_length + 1)  # the last one is not read, only scored
        return tuple(kept), len(kept) - len(continuation)

    def _truncated(self, ids: list[int], most: int) -> list[int]:
        if len(ids) <= most:
            return ids
        self.num_truncated += 1
        _LOG.warning("a prompt of %d tokens was cut on the left to %d", len(ids), most)
        return ids[-most:]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Returns the continuation of each text, up to its first stop string."""
        prompts = [self._prompt(number, request.args) for number, request in enumerate(requests)]
        texts = [""] * len(requests)
        lane = self.model.lane(self.batch_size)

        def send(prompt: _Prompt, inbox: Inbox, note: Progress) -> Answer:
            return Answer(
                self.model, prompt.ids, prompt.params, lane=lane, progress=note, inbox=inbox
            )

        with self._bar(len(requests), disable_tqdm, "Generating") as bar:
            waiting = iter(sorted(prompts, key=lambda prompt: prompt.ids))
            for prompt, _, pieces in together(waiting, send, lane):
                text = text_of(pieces)
                texts[prompt.number] = text
                self.cache_hook.add_partial("generate_until", requests[prompt.number].args, text)
                bar.update()
        return texts

    def _prompt(self, number: int, arguments: tuple[str, Mapping[str, Any]]) -> "_Prompt":
        """Returns the ids of a request to continue a text, and how it is continued."""
        context, options = arguments
        options = _generation.normalize_gen_kwargs(dict(options), self.max_gen_toks)
        most = options.pop("max_gen_toks")
        if most >= self.max_length:
            raise UserError(
                f"max_gen_toks {most:,} leaves no room for a prompt in max_length "
                f"{self.max_length:,}; lower it"
            )
        stop = [text for text in options.pop("until") if text]
        samples = options.pop("do_sample")
        known: dict[str, Any] = {
            name: options.pop(name) for name in _SAMPLING if options.get(name) is not None
        }
        known.setdefault("seed", (self._seed + number) % 2**32)
        known["temperature"] = known.get("temperature", 1.0) if samples else 0.0
        if others := {name: value for name, value in options.items() if name != "temperature"}:
            _utils.warning_once(_LOG, f"generation options without effect: {others}")
        ids = self.tok_encode(context) or [self.prefix_token_id]
        return _Prompt(
            number=number,
            ids=self._truncated(ids, self.max_length - most),
            params=SamplingParams(max_tokens=most, stop=stop, **known),
        )

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Returns a conversation as the text of a prompt.

        Args:
            chat_history: Messages with `role` and `content`.
            add_generation_prompt: Begin an answer; else the last message is left open, so that it
                goes on.

        Raises:
            UserError: The template refuses the conversation.
        """
        try:
            text = self._rendered(chat_history, add_generation_prompt)
        except UserError:
            others = [message for message in chat_history if message["role"] != "system"]
            if len(others) in (0, len(chat_history)):
                raise
            _LOG.warning("the chat template takes no system message: it is left out")
            return self.apply_chat_template(others, add_generation_prompt)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"]
        before, found, _ = text.rpartition(last)
        if not found:  # the template removes spaces
            before, found, _ = text.rpartition(last.strip())
        return before + found

    def _rendered(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        tokenizer = self.tokenizer
        parts = chat_parts(
            [Message.of(message) for message in messages],
            tokenizer,
            template=self.model.template,
            add_generation_prompt=add_generation_prompt,
        )
        return "".join(part if isinstance(part, str) else tokenizer.text_of(part) for part in parts)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Returns the source of the chat template, which the harness records; None: not used."""
        if chat_template is False or chat_template is None:
            return None
        return self.model.template or self.tokenizer.chat_template or "lwm"

    def get_model_info(self) -> dict[str, Any]:
        """Returns facts that the harness records with the results."""
        facts = describe_model(self.model)
        return {
            "model_num_parameters": facts["parameters"],
            "model_dtype": facts["dtype"],
            "model_sha": facts["weights"],
            "max_length": self.max_length,
            "num_truncated": self.num_truncated,
        }

    def _bar(self, total: int, disable: bool, what: str) -> Any:
        return _base.tqdm(total=total, disable=disable, desc=f"{what} requests")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Prompt:
    """A text to continue."""

    number: int
    """Of the request."""
    ids: list[int]
    params: SamplingParams


def main(arguments: Sequence[str]) -> None:
    """Runs the harness's own command line, where `--model` is `lwm` if it is not given.

    Raises:
        UserError: The model cannot be loaded, or does not take an argument.
    """
    sys.argv = ["lwm eval harness", *_with_model(arguments)]
    _library("__main__").cli_evaluate()


def _with_model(arguments: Sequence[str]) -> Iterator[str]:
    """Yields the arguments with a model, if they are those of an evaluation without one."""
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help", "ls", "validate"):
        yield from arguments or [first]
        return
    names = {argument.partition("=")[0] for argument in arguments}
    yield "run"
    if not names & {"--model", "-M", "--config", "-C"}:
        yield from ("--model", "lwm")
        if not names & {"--batch_size", "-b"}:  # the harness's own default is 1
            yield from ("--batch_size", "auto")
    yield from arguments[first == "run" :]
