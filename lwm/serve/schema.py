"""Bodies of requests in OpenAI's form, with the fields that other servers have added."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from lwm.serve.errors import ApiError, not_supported

Text = Annotated[str, Field(max_length=1 << 26)]
Count = Annotated[int, Field(ge=0, lt=1 << 31)]
_MOST_IDS = 1 << 22
_DEEPEST, _MOST_VALUES, _MOST_LETTERS = 64, 1 << 16, 1 << 20
"""Limits on values of any form, which a chat template renders."""
_MOST_BIASES = 64


def _require_small(value: Any) -> Any:
    """Refuses values that are nested deeply, or large."""
    left, values, letters = [(value, 1)], 0, 0
    while left:
        each, depth = left.pop()
        if isinstance(each, str):
            letters += len(each)
        elif isinstance(each, dict | list):
            values += len(each)
            if depth > _DEEPEST:
                raise _too_large(f"it is nested in more than {_DEEPEST} levels; make it flatter")
            if values > _MOST_VALUES:
                raise _too_large(f"it has more than {_MOST_VALUES:,} values; send fewer")
            inner = [*each, *each.values()] if isinstance(each, dict) else each
            left += [(one, depth + 1) for one in inner]
        if letters > _MOST_LETTERS:
            raise _too_large(f"its texts have more than {_MOST_LETTERS:,} characters; send fewer")
    return value


def _too_large(message: str) -> PydanticCustomError:
    return PydanticCustomError("too_large", "{message}", {"message": message})


def _require_few(value: Any) -> Any:
    # Before the entries are checked, each of which may have an error.
    if isinstance(value, dict) and len(value) > _MOST_BIASES:
        raise _too_large(f"it has more than {_MOST_BIASES} ids; send fewer")
    return value


Variables = Annotated[dict[str, Any], AfterValidator(_require_small)]
"""Variables of a chat template."""
Calls = Annotated[
    list[dict[str, Any]], Field(fail_fast=True, max_length=256), AfterValidator(_require_small)
]
# A list ends at its first fault: an error for each of a million ids would take gigabytes.
Ids = Annotated[list[Count], Field(fail_fast=True, min_length=1, max_length=_MOST_IDS)]


class Body(BaseModel):
    """An object of a request; fields that are not known are accepted."""

    model_config = ConfigDict(
        extra="allow", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class TextPart(Body):
    """A part of a message that is text."""

    type: Literal["text", "input_text"]
    text: Text


class Address(Body):
    """The address of an image or a video."""

    url: Text
    """A `data:` address; `file://` and `http(s)://` where the server allows them."""


class ImagePart(Body):
    """A part of a message that is an image."""

    type: Literal["image_url", "input_image"]
    image_url: Address | Text


class VideoPart(Body):
    """A part of a message that is a video."""

    type: Literal["video_url"]
    video_url: Address | Text
    num_frames: Annotated[int, Field(ge=1)] | None = None
    """Frames at most, evenly spaced; None: the server's own number."""
    fps: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Takes the frames shown at each 1/fps seconds."""


class File(Body):
    """A text file."""

    file_data: Text
    """A `data:` address."""
    filename: Text | None = None


class FilePart(Body):
    """A part of a message that is a text file."""

    type: Literal["file"]
    file: File


Part = Annotated[TextPart | ImagePart | VideoPart | FilePart, Field(discriminator="type")]


class ChatMessage(Body):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[Part], Field(fail_fast=True, max_length=4096)] | None = None
    images: Annotated[list[ImagePart], Field(max_length=256)] | None = None
    """Images of an earlier answer, as the server has sent them."""
    videos: Annotated[list[VideoPart], Field(max_length=256)] | None = None
    """Videos of an earlier answer, likewise."""
    tool_calls: Calls | None = None
    tool_call_id: Text | None = None
    name: Text | None = None


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool | None = None
    """Ends with a chunk that counts tokens."""
    continuous_usage_stats: bool | None = None
    """Counts tokens in each chunk."""


class Sampling(Body):
    """Fields that requests for text share."""

    model: Text | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, float], BeforeValidator(_require_few)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)] | None = None
    stop: (
        Annotated[str, Field(max_length=256)]
        | Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=16)]
        | None
    ) = None
    stop_token_ids: Annotated[list[Count], Field(fail_fast=True, max_length=16)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Count | None = None
    max_tokens: Count | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: Annotated[int, Field(ge=-(1 << 31), lt=1 << 31)] | None = None
    """Lower comes first, as in vLLM; without effect on servers with keys."""
    cache_salt: Text | None = None
    """Prompts share what is read only with others of the same salt."""
    return_progress: bool | None = None
    """Sends chunks with the progress of reading the prompt."""
    return_token_ids: bool | None = None
    """Adds the ids of prompt and answer."""


class FrameOptions(Body):
    """Sampling of images or of videos in an answer."""

    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    fps: Annotated[float, Field(ge=0.1, le=100)] | None = None
    """Frames per second of a video's file."""


class VideoOptions(Body):
    """Frames that are taken of a video."""

    num_frames: Annotated[int, Field(ge=1)] | None = None
    fps: Annotated[float, Field(gt=0, le=1000)] | None = None


class MediaOptions(Body):
    """Frames that are taken of videos which do not say it themselves, as in vLLM."""

    video: VideoOptions | None = None


class ChatRequest(Sampling):
    """A request of `/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1, max_length=4096)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    modalities: (
        Annotated[
            list[Literal["text", "image", "video", "audio"]], Field(fail_fast=True, max_length=16)
        ]
        | None
    ) = None
    """Kinds of the answer; None: all that the model writes."""
    image: FrameOptions | None = None
    video: FrameOptions | None = None
    clip_format: Literal["mp4", "gif", "webp"] = "mp4"
    """Files of videos in an answer."""
    media_io_kwargs: MediaOptions | None = None
    chat_template_kwargs: Variables | None = None
    chat_template: Text | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    """Continues the text of the last message, which is the assistant's."""


class CompletionRequest(Sampling):
    """A request of `/v1/completions`."""

    prompt: (
        Text
        | Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=1024)]
        | Ids
        | Annotated[list[Ids], Field(fail_fast=True, min_length=1, max_length=1024)]
    )
    """A text, several, the ids of one, or those of several."""
    echo: bool | None = None
    """Puts the prompt before the answer."""
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    suffix: Text | None = None


class TokenizeRequest(Body):
    """A request of `/tokenize`, in the spelling of vLLM or of llama.cpp."""

    model: Text | None = None
    prompt: Text | None = None
    content: Text | None = None
    messages: (
        Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1, max_length=4096)] | None
    ) = None
    add_special_tokens: bool | None = None
    """Begins with the beginning-of-text id, as prompts do: by default for `prompt`."""
    add_special: bool | None = None
    """Likewise, in llama.cpp's spelling: by default not for `content`."""
    with_pieces: bool | None = None
    return_token_strs: bool | None = None
    count_only: bool | None = None
    """Leaves out the ids."""
    continue_final_message: bool | None = None
    """Ends with the text of the last message, which is the assistant's."""
    chat_template_kwargs: Variables | None = None
    media_io_kwargs: MediaOptions | None = None


class DetokenizeRequest(Body):
    """A request of `/detokenize`."""

    model: Text | None = None
    tokens: Annotated[list[Count], Field(fail_fast=True, max_length=_MOST_IDS)]


class TemplateRequest(Body):
    """A request of `/apply-template`."""

    model: Text | None = None
    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1, max_length=4096)]
    continue_final_message: bool | None = None
    """Ends with the text of the last message, which is the assistant's."""
    chat_template_kwargs: Variables | None = None
    media_io_kwargs: MediaOptions | None = None


class PreviewRequest(Body):
    """A request of `/v1/media/preview`."""

    model: Text | None = None
    part: Annotated[ImagePart | VideoPart, Field(discriminator="type")]
    """An image or a video, as a part of a message."""
    frames: Annotated[int, Field(ge=1, le=64)] = 16
    """Frames that are returned at most."""


def refuse_unsupported(body: ChatRequest | CompletionRequest) -> None:
    """Refuses fields that would change the answer and that the server does not have.

    Raises:
        ApiError: Status 501, the field and the remedy; 400 for fields that exclude each other.
    """
    if isinstance(body, CompletionRequest):
        if body.suffix:
            raise not_supported("suffix", "put all of the text before the answer into prompt")
        if body.best_of not in (None, 1, body.n):
            raise not_supported("best_of", "ask for n answers and choose one")
        return
    if body.tools:
        raise not_supported("tools", "describe the functions in a system message")
    if (body.response_format or {}).get("type", "text") != "text":
        raise not_supported("response_format", "ask for the format in the message")
    if "audio" in (body.modalities or ()):
        raise not_supported("modalities", "ask for text, image or video")
    if body.chat_template is not None:
        raise not_supported("chat_template", "start the server with --template")
    if body.add_generation_prompt is False and not body.continue_final_message:
        raise not_supported("add_generation_prompt", "use /v1/completions to continue a text")
    if body.add_generation_prompt and body.continue_final_message:
        raise ApiError(
            "continue_final_message and add_generation_prompt exclude each other; leave one out",
            param="continue_final_message",
        )
