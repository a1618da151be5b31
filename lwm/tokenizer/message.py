"""Messages of a conversation: text, images and videos in any order."""

import contextlib
import dataclasses
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int, UInt8

from lwm.errors import UserError, several
from lwm.files import parse_json

_ROLES = ("system", "user", "assistant", "tool")
# How data sets say that an answer is not trained on: OpenAI, Axolotl, and others.
_LOSS = ("weight", "train", "training", "trainable", "loss", "loss_mask")
# Notes about a message, which no template writes.
_NOTES = ("id", "index", "date", "time", "timestamp", "created_at", "source", "metadata")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Vision:
    """An image, which is one frame, or a video. Notebooks show its frames."""

    codes: Int[np.ndarray, "frames codes"]
    """VQGAN codes of each frame, which the model reads and writes."""
    is_video: bool
    pixels: UInt8[np.ndarray, "frames R R 3"] | None = None
    """The decoded frames, if available."""
    times: Float[np.ndarray, " frames"] | None = None
    """Time of each frame in seconds from the start of its file."""
    name: str = ""
    """Name of the file, for messages."""

    @property
    def kind(self) -> Literal["image", "video"]:
        """Returns `image` or `video`."""
        return "video" if self.is_video else "image"

    def __repr__(self) -> str:
        """Names the kind, the file and the sizes."""
        count, codes = self.codes.shape
        size = "no pixels" if self.pixels is None else "{1} × {0} px".format(*self.pixels.shape[1:])
        frames = f"{count} frames of {codes} codes" if self.is_video else f"{codes} codes"
        return f"<{' '.join((self.kind, *([self.name] if self.name else [])))}: {frames}, {size}>"

    def _repr_png_(self) -> bytes | None:
        """Returns an image for notebooks."""
        if self.pixels is None or self.is_video:
            return None
        from lwm.media.display import png_of

        return png_of(self.pixels[0])

    def _repr_html_(self) -> str | None:
        """Returns a video for notebooks."""
        return self.to_html() if self.is_video and self.pixels is not None else None

    def to_html(self) -> str:
        """Returns an `img` element that holds the image, or the video as a WebP that repeats.

        Raises:
            UserError: There are no pixels.
        """
        from lwm.media.display import image_html, video_html

        pixels = self._decoded()
        if self.is_video:
            return video_html(pixels, self.times, repr(self)[1:-1])
        return image_html(pixels[0], repr(self)[1:-1])

    def _decoded(self) -> UInt8[np.ndarray, "frames R R 3"]:
        if self.pixels is None:
            raise UserError("these codes have no pixels; a model's `vision.decode` shows them")
        return self.pixels

    def save(self, path: str | Path, *, fps: float = 4.0, text: str | None = None) -> None:
        """Writes an image as .png, .jpg or .webp, a video as .mp4, .gif or .webp.

        Args:
            path: The file.
            fps: Frames per second of a video.
            text: A text in the file, which `lwm.media.text.read_text` returns.

        Raises:
            UserError: There are no pixels, the file name ends otherwise, or it cannot be written.
        """
        from lwm.media.write import write_image, write_video

        pixels = self._decoded()
        if self.is_video:
            write_video(path, pixels, fps, text=text)
        else:
            write_image(path, pixels[0], text=text)

    @classmethod
    def of(cls, value: Mapping[str, Any], *, tokens_per_frame: int | None = None) -> "Vision":
        """Reads codes as records hold them: one flat list under `vision`.

        Args:
            value: A record, or a part of a message; `frames` is the number of frames.
            tokens_per_frame: Codes of a frame, if `frames` is missing.

        Raises:
            UserError: There is no frame, or the codes do not divide into frames.
        """
        codes = flat_codes(value.get("vision"), "vision")
        frames, times = value.get("frames"), value.get("times")
        if frames is None and tokens_per_frame and not len(codes) % tokens_per_frame:
            frames = len(codes) // tokens_per_frame
        is_count = isinstance(frames, int | np.integer) and not isinstance(frames, bool)
        if frames is not None and not (is_count and frames >= 1 and not len(codes) % frames):
            raise UserError(
                f"key 'frames' is {reprlib.repr(frames)}, but should be a number that divides the "
                f"{len(codes)} codes under 'vision'"
            )
        if frames is None:
            raise UserError(
                f"key 'vision' has {len(codes)} codes, which do not divide into frames of "
                f"{tokens_per_frame or '?'}; give their number under 'frames', or tokens_per_frame"
            )
        if times is not None and not _are_times(times, int(frames)):
            raise UserError(f"key 'times' should be {frames} numbers, one of each frame")
        is_video = value.get("is_video", value.get("type") == "video" or frames > 1)
        return cls(
            codes=codes.reshape(frames, -1),
            is_video=bool(is_video),
            times=None if times is None else np.asarray(times, float),
            name=str(value.get("name", "")),
        )


class Visions(list[Vision]):
    """Images and videos, which notebooks show side by side."""

    def _repr_html_(self) -> str | None:
        """Returns those that have pixels."""
        from lwm.media.display import side_by_side

        shown = [each.to_html() for each in self if each.pixels is not None]
        return side_by_side(shown) if shown else None


Part = str | Vision


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    parts: Sequence[Part] = ()
    """Texts, images and videos, in order."""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, kw_only=True, hash=False)
    """Other keys for the chat template: tool_calls, tool_call_id, name, reasoning_content."""
    learn: bool = dataclasses.field(default=True, kw_only=True)
    """False for an answer that is not trained on."""

    def __post_init__(self):
        """Takes a text as one part, and refuses unknown roles.

        Raises:
            UserError: The role.
        """
        if self.role not in _ROLES:
            roles = ", ".join(_ROLES)
            raise UserError(f"unknown role {self.role!r} in a message; roles are {roles}")
        object.__setattr__(self, "parts", several(self.parts))

    @classmethod
    def of(
        cls, value: "Message | Mapping[str, Any]", *, tokens_per_frame: int | None = None
    ) -> "Message":
        """Reads a message in JSON form: `content` is text, or a list of parts with a `type`.

        A part is `{"type": "text", "text": ...}`, or of type `image` or `video` and has codes
        under `vision`. A message with `tool_calls` needs no content. `weight` 0, or false under
        `train`, `training`, `trainable`, `loss` or `loss_mask`, leaves an answer out of the loss.
        Other keys are for the chat template.

        Raises:
            UserError: The role is unknown, the content is neither, or another value is not what
                its key stands for.
        """
        if isinstance(value, Message):
            return value
        given = {key: inner for key, inner in value.items() if inner is not None}
        message, content = cls(given.pop("role", None)), given.pop("content", None)
        learn = _is_learnt(message.role, given)
        extra = {key: inner for key, inner in given.items() if key not in (*_LOSS, *_NOTES)}
        if calls := _tool_calls(extra.pop("tool_calls", None), extra.pop("function_call", None)):
            extra["tool_calls"] = calls
        message = dataclasses.replace(message, extra=extra, learn=learn)
        if content is None and calls:
            return message
        if isinstance(content, str):
            return dataclasses.replace(message, parts=(content,))
        if not isinstance(content, list | tuple):
            raise UserError(
                f"the content of a {message.role} message should be text or a list of parts, not "
                f"{content!r}"
            )
        read = (part_of(part, tokens_per_frame=tokens_per_frame) for part in content)
        return dataclasses.replace(message, parts=tuple(read))

    @property
    def is_empty(self) -> bool:
        """True if there is nothing to learn: no text, image, tool call or reasoning."""
        return not (self.visions or self.text.strip() or set(self.extra) - {"name"})

    @property
    def text(self) -> str:
        """All text of the message."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def visions(self) -> tuple[Vision, ...]:
        """The images and videos of the message."""
        return tuple(part for part in self.parts if isinstance(part, Vision))


def _is_learnt(role: str, given: Mapping[str, Any]) -> bool:
    """Returns whether a message is trained on, by the keys that say so."""
    said = {key: given[key] for key in _LOSS if key in given}
    for key, value in said.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise UserError(
                f"key {key!r} of a message should be 0 or 1, false or true, not {value!r}: an "
                "answer is trained on in full or not at all"
            )
        if value and role != "assistant":
            raise UserError(
                f"key {key!r} asks to train on a {role} message; only answers of the assistant are"
            )
    if len(set(map(bool, said.values()))) > 1:
        raise UserError(f"the keys {', '.join(map(repr, said))} of a message contradict each other")
    return all(said.values())


def _tool_calls(calls: Any, single: Any) -> list[Any]:
    """Returns calls as templates take them: a list, with arguments as objects.

    OpenAI stores arguments as JSON text, and once had one `function_call` per message.
    """
    if isinstance(calls, str):
        calls = json_of(calls, "tool_calls")
    if single is not None:
        calls = [*(calls or []), {"type": "function", "function": single}]
    calls = [] if calls is None else calls
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise UserError(f"key 'tool_calls' should be a list of objects, not {reprlib.repr(calls)}")
    return [_parsed(call) for call in calls]


def _parsed(call: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(call)
    if isinstance(function := made.get("function"), Mapping):
        made["function"] = _parsed(function)
    if isinstance(made.get("arguments"), str):
        with contextlib.suppress(UserError):
            arguments = json_of(made["arguments"], "arguments")
            made["arguments"] = arguments if isinstance(arguments, dict) else made["arguments"]
    return made


def json_of(text: str, key: str) -> Any:
    """Reads JSON that a record holds as a text.

    Raises:
        UserError: It is no JSON.
    """
    try:
        return parse_json(text)
    except ValueError as error:
        raise UserError(f"key {key!r} holds a text that is no JSON: {error}") from None


def part_of(value: Any, *, tokens_per_frame: int | None = None) -> Part:
    """Reads a part of a message or a document.

    Raises:
        UserError: The part is malformed.
    """
    if isinstance(value, Vision):
        return value
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "text" and isinstance(value.get("text"), str):
        return value["text"]
    if kind in ("image", "video"):
        if value.get("vision") is None:
            raise UserError(
                f"a part of type {kind} has no codes under 'vision'; `lwm tokenize` makes them"
            )
        return Vision.of(value, tokens_per_frame=tokens_per_frame)
    raise UserError(f"a part should be text, an image or a video, not {reprlib.repr(value)}")


def _are_times(value: Any, count: int) -> bool:
    try:
        return np.asarray(value, float).shape == (count,)
    except (TypeError, ValueError):
        return False


def flat_codes(value: Any, key: str) -> Int[np.ndarray, " n"]:
    """Reads a flat list of codes.

    Raises:
        UserError: The list is empty, nested, or not of integers.
    """
    try:
        codes = np.asarray(value)
    except ValueError:  # lists of unequal lengths
        codes = np.zeros((1, 1))
    if codes.size == 0:
        raise UserError(f"key {key!r} holds no frame")
    if codes.ndim != 1 or codes.dtype.kind not in "iu":
        raise UserError(f"key {key!r} should be one flat list of integers")
    return codes
