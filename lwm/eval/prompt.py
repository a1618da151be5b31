"""The form of a prompt: a chat template, LWM's prompt, or plain text to continue."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from lwm.errors import UserError
from lwm.eval.form import PromptForm
from lwm.eval.question import Question
from lwm.tokenizer.markers import VisionMarkers
from lwm.tokenizer.message import Message, Part
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
    marks: VisionMarkers | None = None
    """Ids around the images and videos of messages; None: the model reads text only."""

    def __call__(self, message: str, opening: str = "") -> list[int]:
        """Returns the ids of a prompt: the message and the start of its answer."""
        if self.form == "chat":
            turns = [{"role": "user", "content": message}]
            ids = render_chat(turns, self.tokenizer, template=self.template)
            return [*ids, *self.tokenizer.encode(opening, special=False)] if opening else ids
        bos = self.tokenizer.bos_id if self.tokenizer.add_bos else None
        first = [] if bos is None else [bos]
        return self.tokenizer.encode_parts([*first, plain_text(self.form, message, opening)])

    def with_images(
        self,
        cell: Any,
        parts: Sequence[Part],
        *,
        max_tokens: int,
        frames: int = 0,
        truth: Mapping[str, Any],
    ) -> Question:
        """Returns a question in the chat template that holds images, or asks for one.

        Args:
            cell: Its cell.
            parts: Texts, images and videos of the message, in order.
            max_tokens: Tokens of the answer; those of its frames, if it is an image or a video.
            frames: Frames to generate; 0: the answer is text.
            truth: See `Question`.

        Raises:
            UserError: The model reads text only, or the images are not of its codes.
        """
        message = Message("user", parts)
        marks = self.marks
        ids = render_chat([message], self.tokenizer, template=self.template, marks=marks)
        if frames and marks is None:
            raise UserError("an image is asked for, but the model reads and writes text only")
        return Question(
            cell=cell,
            message=message.text,
            parts=message.parts,
            ids=[*ids, *marks.opening] if frames and marks is not None else ids,
            overhead=self.overhead,
            max_tokens=max_tokens,
            frames=frames,
            truth=truth,
        )

    @functools.cached_property
    def overhead(self) -> int:
        """Tokens of the template around a message."""
        return len(self(""))
