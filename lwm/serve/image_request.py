"""Requests for images and clips in OpenAI's form: their fields, forms with files, and refusals."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from lwm.sampling_params import FrameSampling, VisionSampling
from lwm.serve.errors import ApiError, not_supported
from lwm.serve.params import frame_sampling
from lwm.serve.pictures import IMAGE_TYPES, VIDEO_TYPES
from lwm.serve.schema import Body, FrameOptions, Text
from lwm.serve.service import Service

_IMAGES = 16
"""Images of a request at most."""
_FIELDS = 64
_FRAMES = 9
"""Frames of a clip, where the request does not say."""


def _form() -> dict[str, Any]:
    """Returns the description of a form with images."""
    schema = ImageRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs")
    schema["title"] = "ImageForm"
    file = {"type": "string", "format": "binary"}
    schema["properties"] |= {"image": {"type": "array", "items": file, "minItems": 1}}
    schema["required"] = [*schema["required"], "image"]
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


class DrawOptions(FrameOptions):
    """Sampling of an image, or of the frames of a clip."""

    guidance: Annotated[float, Field(ge=0, le=1000)] | None = None
    """Scale of classifier-free guidance; 1 is none."""


class ImageRequest(Body):
    """A request of `/v1/images/generations`."""

    prompt: Annotated[str, Field(max_length=32_000)]
    model: Text | None = None
    n: Annotated[int, Field(ge=1, le=10)] | None = None
    """Images or clips; each next one has the next seed."""
    size: Text | None = None
    """`auto`, or the size that the model draws."""
    output_format: Literal["png", "webp", "jpeg", "gif", "mp4", "svg"] | None = None
    """Without `frame_count`, gif and mp4 are clips; a clip is a gif by default."""
    response_format: Literal["url", "b64_json"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    """Images in a stream that are not complete; what is to come is grey in them."""
    frame_count: Annotated[int, Field(ge=2, le=64)] | None = None
    """Frames of a clip, those of a given image included."""
    frame_duration_ms: Annotated[int, Field(ge=10, le=655_350)] = 200
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=1000)] | None = None
    """Guidance of an image, and of the first frame of a clip."""
    image_options: DrawOptions | None = None
    """Sampling of an image, and of the first frame of a clip."""
    video_options: DrawOptions | None = None
    """Sampling of the frames of a clip after the first."""
    background: Literal["transparent", "opaque", "auto"] | None = None
    style: Text | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    negative_prompt: Text | None = None
    num_inference_steps: int | None = None
    true_cfg_scale: float | None = None
    lora: Any = None
    svg: Any = None

    @property
    def is_clip(self) -> bool:
        """True if a clip is asked for, and not an image."""
        return self.frame_count is not None or self.output_format in ("gif", "mp4")

    @property
    def frames(self) -> int:
        """Frames of each image or clip."""
        return (self.frame_count or _FRAMES) if self.is_clip else 1

    @property
    def kind(self) -> str:
        """The format of the files."""
        return self.output_format or ("gif" if self.is_clip else "png")

    def sampling(self) -> VisionSampling:
        """Returns the sampling that is asked for.

        Raises:
            UserError: A value is out of range.
        """
        image, video = (_sampled(each) for each in (self.image_options, self.video_options))
        if self.guidance_scale is not None:
            image = FrameSampling(guidance=self.guidance_scale).over(image)
        return VisionSampling(image=image, video=video)


def _sampled(options: DrawOptions | None) -> FrameSampling:
    guidance = FrameSampling(guidance=None if options is None else options.guidance)
    return frame_sampling(options).over(guidance)


def check(service: Service, body: ImageRequest) -> None:
    """Refuses what the model cannot draw, and fields that it has no use for.

    Raises:
        ApiError: Status 400, or 501 for what other servers can; the field and the remedy.
    """
    if not service.draws:
        raise ApiError(f"{service.name} writes text only; it draws no image", "not_supported_error")
    if body.response_format == "url":
        raise ApiError("url is not kept; ask for b64_json", param="response_format")
    side = service.model.vision.resolution
    if body.size not in (None, "auto", f"{side}x{side}"):
        raise ApiError(f"{service.name} draws {side}x{side} only; ask for auto", param="size")
    service.require_n(body.n or 1)
    if body.is_clip and body.kind not in VIDEO_TYPES:
        raise ApiError(f"a clip is no {body.kind}; ask for {_or(VIDEO_TYPES)}", param="frame_count")
    for name, allowed, remedy in (
        ("background", body.background != "transparent", "leave it out"),
        ("style", body.style is None, "describe the style in the prompt"),
        ("output_compression", body.output_compression in (None, 100), "leave it out"),
        ("output_format svg", body.output_format != "svg", f"ask for {_or(IMAGE_TYPES)}"),
        ("negative_prompt", not body.negative_prompt, "say in the prompt what is to be seen"),
        ("num_inference_steps", body.num_inference_steps is None, "leave it out"),
        ("true_cfg_scale", body.true_cfg_scale is None, "give guidance_scale"),
        ("lora", body.lora is None, "serve a model that has been trained so"),
        ("svg", body.svg is None, "leave it out"),
    ):
        if not allowed:
            raise not_supported(name, remedy)


def _or(names: Mapping[str, str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}"


FORM = _form()
"""The body of `/v1/images/edits`, as OpenAPI describes it."""


async def read_form(request: Request) -> tuple[ImageRequest, list[bytes]]:
    """Returns the fields and the images of a form.

    Raises:
        ApiError: There is no image, or a file that is not taken.
        RequestValidationError: A field is not as documented.
    """
    try:
        async with request.form(max_files=_IMAGES, max_fields=_FIELDS) as form:
            images = [await each.read() for each in _files(form)]
            fields = {name: value for name, value in form.items() if isinstance(value, str)}
    except HTTPException as error:
        raise ApiError(f"the form cannot be read: {error.detail}") from None
    if not images:
        raise ApiError("there is no image; send it as the file image of a form", param="image")
    return _parsed(fields), images


def _files(form: FormData) -> list[UploadFile]:
    """Returns the images of a form, in order.

    Raises:
        ApiError: There is another file.
    """
    found = []
    for name, value in form.multi_items():
        if name in ("image", "image[]"):
            if isinstance(value, str):
                raise ApiError("image is a text; send it as a file of the form", param="image")
            found.append(value)
        elif name in ("mask", "markup") and value:
            raise not_supported(name, "say in the prompt what is to be changed")
        elif not isinstance(value, str):
            raise ApiError(f"the file {name} is not read; send images as image", param=name)
    return found


def _parsed(fields: dict[str, Any]) -> ImageRequest:
    """Returns the fields of a form, whose values are texts."""
    for name in ("image_options", "video_options"):
        if name in fields:
            try:
                fields[name] = json.loads(fields[name])
            except (ValueError, RecursionError):
                raise ApiError(f"{name} is no JSON", param=name) from None
    try:
        return ImageRequest.model_validate(fields, strict=False)
    except ValidationError as error:
        found = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
        raise RequestValidationError(found) from None
