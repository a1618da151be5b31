"""Messages of requests as messages of the model: their images, videos and files are read."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from lwm.generate.batch import encode
from lwm.serve.errors import ApiError
from lwm.serve.schema import (
    ChatMessage,
    FilePart,
    ImagePart,
    MediaOptions,
    Part,
    TextPart,
    VideoOptions,
    VideoPart,
)
from lwm.serve.service import Service
from lwm.tokenizer.message import Message, Part as Said


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """The prompt of a chat."""

    ids: Sequence[int]
    image_tokens: int
    """Tokens of its images and videos."""


async def prompt_of(
    service: Service,
    messages: Sequence[ChatMessage],
    *,
    media: MediaOptions | None,
    variables: dict[str, Any] | None,
) -> Prompt:
    """Reads the media of messages, and returns the prompt for an answer to them.

    Raises:
        ApiError: An image, a video or a file cannot be read.
        UserError: The messages are no chat that the model's template takes.
    """
    said = await read_messages(service, messages, media)
    model = service.model
    visions = [vision for message in said for vision in message.visions]
    ids = await service.on_thread(encode, model, said, variables or {})
    return Prompt(ids=ids, image_tokens=sum(model.marks.size(*v.codes.shape) for v in visions))


async def read_messages(
    service: Service, messages: Sequence[ChatMessage], media: MediaOptions | None
) -> list[Message]:
    """Returns messages with the codes of their images and videos.

    Raises:
        ApiError: An image, a video or a file cannot be read.
        UserError: A message is malformed.
    """
    video = (media.video if media else None) or VideoOptions()
    return [
        await _message(service, message, f"messages.{number}", video)
        for number, message in enumerate(messages)
    ]


async def _message(
    service: Service, message: ChatMessage, place: str, video: VideoOptions
) -> Message:
    content = message.content
    parts: list[Said] = []
    for number, part in enumerate([] if content is None or isinstance(content, str) else content):
        parts.append(await _read(service, part, f"{place}.content.{number}", video))
    if isinstance(content, str):
        parts.append(content)
    for number, image in enumerate(message.images or ()):
        parts.append(await _read(service, image, f"{place}.images.{number}", video))
    extra = {
        name: value
        for name in ("name", "tool_calls", "tool_call_id")
        if (value := getattr(message, name)) is not None
    }
    if not parts and not message.tool_calls:
        raise ApiError(f"message {place.split('.')[1]} has no content", param=f"{place}.content")
    role = "system" if message.role == "developer" else message.role
    if not extra:
        return Message(role, tuple(parts))
    made = Message.of({"role": role, "content": "", **extra})
    return dataclasses.replace(made, parts=tuple(parts))


async def _read(service: Service, part: Part, place: str, video: VideoOptions) -> Said:
    """Returns a part with its image or video read, on a thread."""
    media = service.media
    if isinstance(part, TextPart):
        return part.text
    if isinstance(part, FilePart):
        return await service.on_thread(
            lambda: media.read_text(part.file.file_data, param=f"{place}.file.file_data"),
            media=True,
        )
    if isinstance(part, ImagePart):
        found = part.image_url
        url, param = found if isinstance(found, str) else found.url, f"{place}.image_url.url"
        return await service.on_thread(
            lambda: media.read(url, kind="image", max_frames=1, fps=None, param=param), media=True
        )
    assert isinstance(part, VideoPart)
    found = part.video_url
    url, param = found if isinstance(found, str) else found.url, f"{place}.video_url.url"
    frames, fps = part.num_frames or video.num_frames, part.fps or video.fps
    return await service.on_thread(
        lambda: media.read(url, kind="video", max_frames=frames, fps=fps, param=param), media=True
    )
