"""Messages of requests as messages of the model: their images, videos and files are read."""

import dataclasses
from collections.abc import Sequence

from lwm.generate.batch import encode
from lwm.serve.errors import ApiError
from lwm.serve.running import Caller
from lwm.serve.schema import (
    ChatMessage,
    ChatRequest,
    FilePart,
    ImagePart,
    MediaOptions,
    Part,
    TemplateRequest,
    TextPart,
    TokenizeRequest,
    VideoOptions,
    VideoPart,
)
from lwm.serve.service import Service
from lwm.tokenizer.message import Message, Part as Said, Vision


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """The prompt of a chat."""

    ids: Sequence[int]
    image_tokens: int
    """Tokens of its images and videos."""


async def prompt_of(
    service: Service, body: ChatRequest | TokenizeRequest | TemplateRequest, caller: Caller
) -> Prompt:
    """Reads the media of a request's messages, and returns the prompt for an answer to them.

    Raises:
        ApiError: An image, a video or a file cannot be read, or they exceed the context.
        UserError: The messages are no chat that the model's template takes.
    """
    reader = _Reader(service, body.media_io_kwargs, caller.salt)
    messages = body.messages or []
    begun = ""
    if body.continue_final_message:
        begun = _begun(messages[-1], f"messages.{len(messages) - 1}")
        messages = messages[:-1]
    said = [await reader.message(each, f"messages.{n}") for n, each in enumerate(messages)]
    variables = body.chat_template_kwargs or {}
    ids = await service.on_thread(encode, service.model, said, variables)
    if begun:
        encoded = service.model.tokenizer.encode
        ids = [*ids, *await service.on_thread(lambda: encoded(begun, special=False))]
    return Prompt(ids=ids, image_tokens=reader.num_tokens)


def _begun(message: ChatMessage, place: str) -> str:
    """Returns the text of an answer that is to be continued.

    Raises:
        ApiError: It is none, or not text alone.
    """
    content = [message.content] if isinstance(message.content, str) else message.content or []
    texts = [part.text if isinstance(part, TextPart) else part for part in content]
    is_text = texts and all(isinstance(each, str) for each in texts)
    others = message.images or message.videos or message.tool_calls
    if message.role != "assistant" or not is_text or others:
        raise ApiError(
            "continue_final_message needs a last message of the assistant that is text alone; add "
            "one, or leave continue_final_message out",
            param=place,
        )
    return "".join(each for each in texts if isinstance(each, str))


class _Reader:
    """Reads the messages of a request one after another."""

    def __init__(self, service: Service, media: MediaOptions | None, salt: bytes):
        self._service, self._salt = service, salt
        self._video = media.video if media else None
        self.num_tokens = 0
        """Tokens of the images and videos so far."""

    async def message(self, message: ChatMessage, place: str) -> Message:
        """Returns a message with the codes of its images and videos."""
        content = message.content
        given = [] if content is None or isinstance(content, str) else content
        parts = [await self._read(part, f"{place}.content.{n}") for n, part in enumerate(given)]
        if isinstance(content, str):
            parts.append(content)
        for number, image in enumerate(message.images or ()):
            parts.append(await self._read(image, f"{place}.images.{number}"))
        for number, video in enumerate(message.videos or ()):
            parts.append(await self._read(video, f"{place}.videos.{number}"))
        extra = {
            name: value
            for name in ("name", "tool_calls", "tool_call_id")
            if (value := getattr(message, name)) is not None
        }
        if not parts and not message.tool_calls:
            number = place.split(".")[1]
            raise ApiError(f"message {number} has no content", param=f"{place}.content")
        role = "system" if message.role == "developer" else message.role
        if not extra:
            return Message(role, tuple(parts))
        made = Message.of({"role": role, "content": "", **extra})
        return dataclasses.replace(made, parts=tuple(parts))

    async def _read(self, part: Part, place: str) -> Said:
        """Returns a part with its image or video read, on a thread."""
        if isinstance(part, TextPart):
            return part.text
        media = self._service.media
        if isinstance(part, FilePart):
            data, param = part.file.file_data, f"{place}.file.file_data"
            return await self._service.on_thread(
                lambda: media.read_text(data, param=param), media=True
            )
        vision = await read_media(self._service, part, place, salt=self._salt, usual=self._video)
        self.num_tokens += self._service.model.marks.size(*vision.codes.shape)
        require_room(self._service, self.num_tokens, place_of(part, place))
        return vision


def place_of(part: ImagePart | VideoPart, place: str) -> str:
    """Returns the field of the address of an image or a video, for errors."""
    return f"{place}.{'image' if isinstance(part, ImagePart) else 'video'}_url.url"


async def read_media(
    service: Service,
    part: ImagePart | VideoPart,
    place: str,
    *,
    salt: bytes,
    usual: VideoOptions | None = None,
) -> Vision:
    """Reads an image or a video on a thread, and encodes it unless it was before.

    Args:
        service: The service.
        part: The part of a message that it is.
        place: The field of the request, for errors.
        salt: Codes are kept for requests of the same salt.
        usual: The frames of a video that does not say it.

    Raises:
        ApiError: It is not allowed or cannot be read, or exceeds the limits or the context.
    """
    if isinstance(part, ImagePart):
        found, kind, frames, fps = part.image_url, "image", 1, None
    else:
        found, kind = part.video_url, "video"
        usual = usual or VideoOptions()
        frames, fps = part.num_frames or usual.num_frames, part.fps or usual.fps
    url, param = found if isinstance(found, str) else found.url, place_of(part, place)
    return await service.on_thread(
        lambda: service.media.read(
            url, kind=kind, max_frames=frames, fps=fps, param=param, salt=salt
        ),
        media=True,
    )


def require_room(service: Service, tokens: int, param: str) -> None:
    """Refuses images and videos that exceed the context.

    Raises:
        ApiError: They do.
    """
    if tokens > (context := service.model.context):
        raise ApiError(
            f"the images and videos up to this one have {tokens:,} tokens, but "
            f"{service.name} has a context of {context:,}; send fewer",
            "exceed_context_size_error",
            param=param,
            code="context_length_exceeded",
            n_prompt_tokens=tokens,
            n_ctx=context,
        )
