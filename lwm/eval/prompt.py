"""The form of a prompt: a chat template, LWM's prompt, or plain text to continue."""

import dataclasses
import functools

from lwm.eval.question import PromptForm
from lwm.tokenizer.template import render_chat
from lwm.tokenizer.tokenizer import Tokenizer

# LWM's prompt ends in a space; the chat template does not.
LWM_PROMPT = "You are a helpful assistant. USER: {message} ASSISTANT: "


def plain_text(form: PromptForm, message: str, opening: str = "") -> str:
    """Returns the text of a prompt in a form without a chat template."""
    return (LWM_PROMPT.format(message=message) if form == "lwm" else message) + opening


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptEncoder:
    """Turns messages into the ids of prompts."""

    tokenizer: Tokenizer
    form: PromptForm = "chat"
    template: str | None = None
    """A chat template in place of the tokenizer's."""

    def __call__(self, message: str, opening: str = "") -> list[int]:
        """Returns the ids of a prompt: the message and the start of its answer."""
        if self.form == "chat":
            turns = [{"role": "user", "content": message}]
            ids = render_chat(turns, self.tokenizer, template=self.template)
            return [*ids, *self.tokenizer.encode(opening, special=False)] if opening else ids
        bos = self.tokenizer.bos_id if self.tokenizer.add_bos else None
        first = [] if bos is None else [bos]
        return self.tokenizer.encode_parts([*first, plain_text(self.form, message, opening)])

    @functools.cached_property
    def overhead(self) -> int:
        """Tokens of the template around a message."""
        return len(self(""))
