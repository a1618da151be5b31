"""`lwm generate text`: continues texts and answers chats, many together."""

import dataclasses
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from lwm.cli.common import Flat, LoadOptions, Model, open_model, print_line, print_text
from lwm.errors import UserError
from lwm.sampling_params import SamplingParams
from lwm.text import printable

if TYPE_CHECKING:
    from lwm.data.prompts import Prompt
    from lwm.generate.batch import Completion, TextRequest
    from lwm.generate.language_model import LanguageModel

Place = tuple[int, int]
"""Number of a prompt, and of an answer to it."""


def generate_text(
    model: Model,
    prompts: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    /,
    *,
    prompts_from: Path | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    n: int = 1,
    sampling: Flat[SamplingParams] = SamplingParams(),
    load: Flat[LoadOptions] = LoadOptions(),
) -> None:
    """Continues texts and answers chats, many together.

    A prompt that does not fit is named, and the others go on. If the command is stopped, the same
    command goes on with the prompts that have no answer in --out.

    Args:
        model: A name from `lwm models`, a Hugging Face folder, a GGUF file, or a hub's org/name.
        prompts: The texts.
        prompts_from: A file of more: one text per line, or JSONL (.jsonl, .ndjson, .json) with a
            text `prompt` or a chat `messages` in each line.
        out: A JSONL file in place of the text alone on stdout. Each answer is written as it is
            ready: the fields of its prompt, and index, number, text, ids, logprobs, finish_reason
            and usage.
        overwrite: Start anew if the file exists, and replace it.
        n: Answers to each prompt; the seed counts up for them.
        sampling: How the texts are sampled.
        load: How the model is loaded.
    """
    from lwm.data.prompts import Prompt, read_prompts
    from lwm.generate.batch import TextRequest

    given = [Prompt.of(text, f"prompt {number}") for number, text in enumerate(prompts, 1)]
    given += read_prompts(prompts_from) if prompts_from else []
    if not given:
        raise UserError("there is no prompt; give some, or --prompts-from FILE")
    requests = [
        TextRequest(prompt=each.content, variables=each.variables, params=sampling, n=n)
        for each in given
    ]
    batch = _Batch(given, requests)
    if out is not None:
        _write(batch, model, load, out, overwrite=overwrite)
        return
    texts: dict[Place, str] = {}
    try:
        for place, answer in batch.answers(open_model(model, load)):
            texts[place] = answer.prompt + answer.text
    finally:
        # After an error, too, what is complete is printed.
        for _, text in sorted(texts.items()):
            print_text(text)


def _write(batch: "_Batch", model: str, load: LoadOptions, out: Path, *, overwrite: bool) -> None:
    """Writes each answer to a file as it is ready; those that are there are not asked again."""
    from lwm.cli.answer_file import open_answers
    from lwm.eval.answer import describe_model

    first = batch.requests[0]
    settings = {"n": first.n, "sampling": dataclasses.asdict(first.params)}
    # Of several processes only the first one comes back, and takes the file.
    shared = open_model(model, load) if load.processes.coordinator else None
    with open_answers(out, batch.prompts, settings, overwrite=overwrite) as file:
        opened = shared or open_model(model, load)
        file.add_settings({"model": describe_model(opened), "mesh": opened.mesh.devices.shape})
        if there := len(file.done):
            print_line(f"lwm: {there:,} of {batch.total:,} answers are in {out}", error=True)
        try:
            for place, answer in batch.answers(opened, file.done):
                fields = answer.to_json()
                del fields["prompt"]
                file.append(*place, fields)
        finally:
            # After an error, too, what is complete is in the file.
            print_line(f"lwm: {batch.pace}", error=True)
            if file.done:
                print_line(out)


class _Batch:
    """Prompts, and the answers that they get together."""

    def __init__(self, prompts: "Sequence[Prompt]", requests: "Sequence[TextRequest]"):
        self.prompts, self.requests = prompts, requests
        self.total = sum(each.n for each in requests)
        self._begun = time.monotonic()
        self._num_answers = self._num_written = 0

    @property
    def pace(self) -> str:
        """Answers and tokens so far, in words."""
        seconds = time.monotonic() - self._begun
        return (
            f"{self._num_answers:,} answers with {self._num_written:,} tokens in {seconds:,.0f} s, "
            f"{self._speed}"
        )

    def _note(self) -> str:
        """Returns the most important of it, for the side of a bar."""
        return f"{self._num_answers:,} answers, {self._speed}"

    @property
    def _speed(self) -> str:
        seconds = max(1e-3, time.monotonic() - self._begun)
        return f"{self._num_written / seconds:,.0f} tokens/s"

    def answers(
        self, model: "LanguageModel", done: Collection[Place] = ()
    ) -> "Iterator[tuple[Place, Completion]]":
        """Yields the answers that are not done, each as it is ready; names prompts without one.

        Raises:
            UserError: Some prompts have no answer; the others have.
        """
        from rich.console import Console

        from lwm.console import waiting
        from lwm.generate.batch import answers

        places = [
            (index, number)
            for index, request in enumerate(self.requests)
            for number in range(request.n)
            if (index, number) not in done
        ]
        failed: dict[int, UserError] = {}
        console = Console(stderr=True)
        self._begun = time.monotonic()
        with waiting("generating", "tokens", console=console, note=self._note) as bar:
            asked = [self._one(*place) for place in places]
            for result in answers(model, asked, rows=self.total, progress=bar):
                place = places[result.index]
                if result.completion is not None:
                    self._num_answers += 1
                    self._num_written += len(result.completion.ids)
                    yield place, result.completion
                elif place[0] not in failed:
                    assert result.error is not None
                    failed[place[0]] = result.error
                    if self.total > 1:
                        line = printable(f"lwm: {self.prompts[place[0]].place}: {result.error}")
                        # Above the bar.
                        console.print(line, markup=False, highlight=False, soft_wrap=True)
        if failed and self.total == 1:
            raise failed[0]
        if failed:
            raise UserError(
                f"{len(failed):,} of {len(self.prompts):,} prompts have no answer; the reasons are "
                "above"
            )

    def _one(self, index: int, number: int) -> "TextRequest":
        """Returns the request for one answer."""
        request = self.requests[index]
        params = dataclasses.replace(request.params, seed=request.params.seed + number)
        return dataclasses.replace(request, params=params, n=1)
