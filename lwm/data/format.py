"""How records become examples. Free of NumPy, so that a command line can show it at once."""

import dataclasses
from typing import Literal

from lwm.errors import UserError, require_share


@dataclasses.dataclass(frozen=True, kw_only=True)
class Captions:
    """How an image or a video and its caption become an example."""

    key: str = "caption"
    """The key of the caption."""
    vision_first: float = 0.5
    """Share of the examples that tell what is seen; in the others it is drawn from the caption."""
    dropped: float = 0.1
    """Share of what is drawn that has no caption: what guidance leads away from."""
    chat: bool = True
    """As a question and its answer, which is learnt; else one after the other, both learnt."""
    variants: int = 1
    """In how many ways each record stands in one pass over the data: their shares are those asked
    for, for each record. 1 where data are seen once, about 20 where they are seen often."""

    def __post_init__(self):
        """Refuses what are no shares.

        Raises:
            UserError: The value.
        """
        for name in ("vision_first", "dropped"):
            require_share(name, getattr(self, name))
        if self.variants < 1:
            raise UserError(f"variants {self.variants} must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleFormat:
    """How records become examples."""

    format: Literal["auto", "fields", "messages", "parts", "captioned", "text", "ids"] = "auto"
    """What a record holds: LWM's fields, a chat, a document of texts and pictures, a picture and
    its caption, a text, or ids; auto tells each by its keys."""
    fields: str = ""
    """Keys to lay end to end, such as `[question+hint],answer`: `+` joins texts, brackets keep
    a field from being learnt, `<|bos|>` and `<|eos|>` are the tokens."""
    fields_from_example: str = ""
    """The key at which a record names its own fields, or a list of them to draw from."""
    fields_index: int | None = None
    """Take this one of such a list; by default the line's number seeds the draw."""
    subfield_separator: str = " "
    """What `+` puts between texts."""
    prepend_text: str = ""
    """Text before the first field, where that is text."""
    add_bos: bool | None = None
    """Start with the beginning of text; by default fields do, and texts as the tokenizer does."""
    add_eos: bool = True
    """End with the end of text, and learn it."""
    special_tokens: bool = False
    """Take names of special tokens in texts as the tokens; by default they are plain letters."""
    template: str | None = None
    """`lwm` or Jinja source in place of the model's own chat template."""
    captions: Captions = Captions()
    tokens_per_frame: int | None = None
    """Vision codes in a frame; by default what a record says under `frames`, else LWM's 256."""
    max_n_frames: int = 0
    """Take at most so many frames of a video, evenly spaced; 0 is all."""

    def __post_init__(self):
        """Refuses what no record can be read with.

        Raises:
            UserError: The value.
        """
        if self.fields and self.fields_from_example:
            raise UserError("give fields or fields_from_example, not both")
        named = self.fields or self.fields_from_example
        if named and self.format not in ("auto", "fields"):
            raise UserError(f"fields are of no use to the format {self.format!r}")
        if self.tokens_per_frame is not None and self.tokens_per_frame < 1:
            raise UserError(f"tokens_per_frame {self.tokens_per_frame} must be at least 1")
        if self.max_n_frames < 0:
            raise UserError(f"max_n_frames {self.max_n_frames} must be 0 (all) or above")
