"""Texts of `lwm generate text`: prompts from the command line or a file, texts or JSONL out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lwm.cli.common import open_model
from lwm.console import waiting
from lwm.errors import UserError
from lwm.files import require_writable, write_bytes
from lwm.generate.batch import complete
from lwm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from lwm.cli.common import LoadOptions


def generate(
    model: str,
    prompts: Sequence[str],
    *,
    prompts_from: Path | None,
    out: Path | None,
    writing: SamplingParams,
    load: "LoadOptions",
) -> None:
    """Continues all prompts in one batch.

    Raises:
        UserError: There is no prompt, the file of prompts cannot be read, or `out` not written.
    """
    prompts = [*prompts, *(read_prompts(prompts_from) if prompts_from else ())]
    if not prompts:
        raise UserError("there is no prompt; give some, or --prompts-from FILE")
    if out is not None:
        require_writable(out)
    opened = open_model(model, load)
    with waiting("reading and writing", "tokens") as report:
        completions = complete(opened, prompts, writing, progress=report)
    if out is None:
        for completion in completions:
            print(completion.prompt + completion.text)
        return
    lines = [json.dumps(completion.to_json(), ensure_ascii=False) for completion in completions]
    write_bytes(out, ("\n".join(lines) + "\n").encode())
    print(out)


def read_prompts(path: Path) -> list[str]:
    """Reads a text a line, or the field `prompt` of each line of a JSONL file.

    Raises:
        UserError: The file is missing, no text, or a line of JSON lacks a prompt.
    """
    try:
        # Not `splitlines`: JSON may hold other ends of a line, such as U+2028, as they are.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts cannot be read from {path}: {error}") from None
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if path.suffix != ".jsonl":
        return [line for _, line in numbered]
    return [_prompt(path, number, line) for number, line in numbered]


def _prompt(path: Path, number: int, line: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, KeyError, TypeError):
        prompt = None
    if not isinstance(prompt, str):
        raise UserError(f'{path}, line {number}: no JSON object with a text "prompt"')
    return prompt
