"""Settings: how records become training examples."""

import dataclasses
from typing import Literal

from lwm.errors import UserError, require_share


@dataclasses.dataclass(frozen=True, kw_only=True)
class Captions:
    """Settings: how an image or a video and its caption become an example."""

    key: str = "caption"
    """The key of the caption."""
    vision_first: float = 0.5
    """Share of examples that describe the image; the others generate it from the caption."""
    dropped: float = 0.1
    """Caption dropout for classifier-free guidance: share of the generating examples."""
    chat: bool = True
    """As a question and its answer, with loss on the answer; else caption and image in a row, with
    loss on both."""
    variants: int = 1
    """Number of examples made of each record in one pass over the data, in the shares above. 1 if
    data are read once, about 20 if they are read often."""

    def __post_init__(self):
        """Refuses shares outside [0, 1].

        Raises:
            UserError: The value.
        """
        for name in ("vision_first", "dropped"):
            require_share(name, getattr(self, name))
        if self.variants < 1:
            raise UserError(f"variants {self.variants} must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleFormat:
    """Settings: how records become examples."""

    format: Literal["auto", "fields", "messages", "parts", "captioned", "text", "ids"] = "auto"
    """Kind of a record: LWM's fields, a chat, a document of texts and images, an image and its
    caption, a text, or ids; auto detects it by the keys of each record."""
    fields: str = ""
    """Keys to concatenate, such as `[question+hint],answer`: `+` joins texts, brackets leave a
    field out of the loss, `<|bos|>` and `<|eos|>` are the tokens."""
    fields_from_example: str = ""
    """The key at which a record names its own fields, or a list of them to sample from."""
    fields_index: int | None = None
    """Take this entry of such a list; by default a random one, seeded by the line number."""
    subfield_separator: str = " "
    """Text that `+` puts between texts."""
    prepend_text: str = ""
    """Text before the first field, where that is text."""
    add_bos: bool | None = None
    """Start with the beginning of text; by default fields do, and texts as the tokenizer does."""
    add_eos: bool = True
    """End with the end of text, with loss on it."""
    special_tokens: bool = False
    """Read names of special tokens in texts as these tokens; by default they are plain text."""
    template: str | None = None
    """`lwm` or Jinja source in place of the model's own chat template."""
    captions: Captions = Captions()
    tokens_per_frame: int | None = None
    """Vision codes in a frame; by default from `frames` of the record, else those of the model's
    VQGAN, or LWM's 256."""
    max_n_frames: int = 0
    """Most frames of a video to take, evenly spaced; 0 takes all."""

    def framed(self, codes: int | None) -> "ExampleFormat":
        """Returns the format with this number of codes of a frame, where it names none."""
        return dataclasses.replace(self, tokens_per_frame=self.tokens_per_frame or codes)

    def __post_init__(self):
        """Refuses settings that contradict each other or are out of range.

        Raises:
            UserError: The value.
        """
        if self.fields and self.fields_from_example:
            raise UserError("give fields or fields_from_example, not both")
        named = self.fields or self.fields_from_example
        if named and self.format not in ("auto", "fields"):
            raise UserError(f"the format {self.format!r} does not use fields; leave them out")
        if self.tokens_per_frame is not None and self.tokens_per_frame < 1:
            raise UserError(f"tokens_per_frame {self.tokens_per_frame} must be at least 1")
        if self.max_n_frames < 0:
            raise UserError(f"max_n_frames {self.max_n_frames} must be 0 (all) or above")
