"""`/v1/images/generations` and `/v1/images/edits`: images and clips, whole or as a stream."""

import base64
import dataclasses
import math
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from jaxtyping import Int
from starlette.responses import Response

from lwm.generate.answer import Answer
from lwm.generate.loaded import LoadedModel
from lwm.generate.output import Frame
from lwm.generate.vision import DrawRequest, begun, opened, unprompted
from lwm.media.text import note
from lwm.sampling_params import SamplingParams
from lwm.serve.answers import documented, respond
from lwm.serve.errors import ApiError
from lwm.serve.image_request import FORM, ImageRequest, check, read_form
from lwm.serve.params import seeded
from lwm.serve.pictures import IMAGE_TYPES, encoded
from lwm.serve.report import usage
from lwm.serve.routes import service_of
from lwm.serve.running import Answers, Ask, Caller
from lwm.serve.service import Service
from lwm.serve.sse import event as sent
from lwm.serve.streams import NAMED
from lwm.tokenizer.message import Vision

router = APIRouter()
_ANSWERED = documented(404, 409, 429, 501, stream=True)
_GREY = 128


@router.post("/v1/images/generations", responses=_ANSWERED, openapi_extra=NAMED)
async def generations(body: ImageRequest, request: Request) -> Response:
    """Draws images or clips from a text."""
    return await _respond(request, body, ())


@router.post("/v1/images/edits", responses=_ANSWERED, openapi_extra=NAMED | {"requestBody": FORM})
async def edits(request: Request) -> Response:
    """Draws images after images and a text, or a clip that begins with an image."""
    service_of(request)  # before anything is read
    body, files = await read_form(request)
    return await _respond(request, body, files)


async def _respond(request: Request, body: ImageRequest, files: Sequence[bytes]) -> Response:
    service = service_of(request)
    service.require_model(body.model)
    service.note_unknown(body)
    starting = Images.start(service, body, request.state.caller, files)
    return await respond(request, service, starting, stream=bool(body.stream))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Prompt:
    """A request, read."""

    ids: Sequence[int]
    first: Vision | None
    """The image that each clip begins with."""
    image_tokens: int
    """Tokens of the images that were sent."""
    is_edit: bool


class Images:
    """One request for images or clips."""

    def __init__(self, service: Service, body: ImageRequest, prompt: _Prompt, answers: Answers):
        """Takes the request and its answers, which have begun."""
        self._service, self._body, self._prompt = service, body, prompt
        self.answers = answers
        self._drawings = [
            _Drawing(service, body, prompt, answer, ask)
            for answer, ask in zip(answers.answers, answers.asks, strict=True)
        ]

    @classmethod
    async def start(
        cls, service: Service, body: ImageRequest, caller: Caller, files: Sequence[bytes] = ()
    ) -> "Images":
        """Reads the images, and sends the request to the engine.

        Raises:
            ApiError: The request is refused.
            UserError: The images cannot be drawn.
        """
        check(service, body)
        prompt = await _read(service, body, files, caller)
        asks = await service.on_thread(_asks, service, body, prompt)
        return cls(service, body, prompt, await service.answer(asks, caller))

    async def whole(self) -> dict[str, Any]:
        """Returns the answer once it is complete."""
        async for event in self.answers.events():
            self._drawings[event.index].take(event.pieces)
        data = [
            {"b64_json": await drawing.file(), "seed": drawing.seed} for drawing in self._drawings
        ]
        return {
            "created": int(time.time()),
            "data": data,
            **self._facts(self._body.kind),
            "usage": self._usage(self.answers.answers),
        }

    async def stream(self) -> AsyncGenerator[bytes]:
        """Yields images as they are drawn, those that are not complete among them."""
        name = "image_edit" if self._prompt.is_edit else "image_generation"
        of_partial = self._body.kind if self._body.kind in IMAGE_TYPES else "png"

        def made(kind: str, file: str, index: int, file_format: str, **more: Any) -> bytes:
            fields = {"type": f"{name}.{kind}", "b64_json": file, "created_at": int(time.time())}
            facts = self._facts(file_format) | {"quality": "auto", "index": index}
            return sent(fields | facts | more, f"{name}.{kind}")

        async for event in self.answers.events():
            drawing = self._drawings[event.index]
            drawing.take(event.pieces)
            if event.answer.finish_reason is not None:
                more = {"seed": drawing.seed, "usage": self._usage([event.answer])}
                file = await drawing.file()
                yield made("completed", file, event.index, self._body.kind, **more)
            elif (place := drawing.due()) is not None:
                file = await drawing.partial_file(of_partial)
                more = {"partial_image_index": place}
                yield made("partial_image", file, event.index, of_partial, **more)

    def _facts(self, file_format: str) -> dict[str, Any]:
        side = self._service.model.vision.resolution
        return {"background": "opaque", "output_format": file_format, "size": f"{side}x{side}"}

    def _usage(self, answers: Sequence[Answer]) -> dict[str, Any]:
        shown = self._prompt.image_tokens
        counts = usage(self._service.model, answers, image_tokens=shown)
        read, written = counts["prompt_tokens"], counts["completion_tokens"]
        cached = counts["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": read,
            "input_tokens_details": {
                "text_tokens": read - shown,
                "image_tokens": shown,
                "cached_tokens": cached,
            },
            "output_tokens": written,
            "output_tokens_details": {"image_tokens": written, "text_tokens": 0},
            "total_tokens": read + written,
        }


class _Drawing:
    """One image or clip: its frames so far."""

    def __init__(
        self, service: Service, body: ImageRequest, prompt: _Prompt, answer: Answer, ask: Ask
    ):
        self._service, self._body, self._answer, self._ask = service, body, answer, ask
        self._codes: list[Int[np.ndarray, " codes"]] = []
        if prompt.first is not None:
            self._codes += list(prompt.first.codes)
        self._given, self._num_partial = len(self._codes), 0

    @property
    def seed(self) -> int:
        """The seed that was used."""
        return self._ask.params.seed

    def take(self, pieces: Sequence[str | Frame]) -> None:
        """Adds frames that are complete."""
        frames = [piece for piece in pieces if isinstance(piece, Frame)]
        self._codes += [frame.codes for frame in frames]
        if frames:
            self._service.metrics.count("lwm:frames_drawn", len(frames))

    def due(self) -> int | None:
        """Returns the number of a partial image that is to be sent now, if one is."""
        most = self._body.partial_images or 0
        total = self._service.model.grammar.size(self._body.frames - self._given)
        reached = len(self._answer.ids) * (most + 1) // total
        if not self._answer.ids or reached <= self._num_partial or self._num_partial >= most:
            return None
        self._num_partial += 1
        return self._num_partial - 1

    async def file(self) -> str:
        """Returns the file of the whole image or clip, in base64."""
        return await self._service.on_thread(self._made, media=True)

    async def partial_file(self, kind: str) -> str:
        """Returns the file of the frame that is drawn now; what is to come is grey."""
        size = self._service.model.grammar.size(1)
        written = len(self._codes) - self._given
        ids, text = self._answer.ids[written * size :], self._service.model.grammar.tokens.text
        codes = np.array(ids, np.int32) - text
        return await self._service.on_thread(self._partly_made, codes, kind, media=True)

    def _made(self) -> str:
        model, codes = self._service.model, np.stack(self._codes)
        vision = Vision(codes=codes, is_video=self._body.is_clip, pixels=model.decode_frames(codes))
        fps = 1000 / self._body.frame_duration_ms
        return _base64(encoded(vision, self._body.kind, fps=fps, text=self._note()))

    def _note(self) -> str:
        """Returns the text of the file, with the values that were used."""
        body, sampling = self._body, self._ask.options["sampling"]
        settings: dict[str, Any] = dict(sampling.image.used())
        if body.is_clip:
            settings |= {"frames": body.frames, "frame_duration_ms": body.frame_duration_ms}
            settings["video"] = sampling.video.used()
        return note(model=self._service.name, seed=self.seed, prompt=body.prompt, **settings)

    def _partly_made(self, codes: Int[np.ndarray, " n"], kind: str) -> str:
        model = self._service.model
        frame = partly(model, codes if len(codes) else self._codes[-1])
        return _base64(encoded(frame, kind))


def partly(model: LoadedModel, codes: Int[np.ndarray, " n"]) -> Vision:
    """Returns the image of the first codes of a frame; the rest is grey."""
    size, count = model.vision.tokens_per_frame, len(codes)
    filled = np.append(codes, np.full(size - count, codes[-1])).astype(np.int32)
    pixels = np.array(model.decode_frames(filled[None]))
    rows = math.isqrt(size)
    cell = model.vision.resolution // rows
    is_missing = (np.arange(size) >= count).reshape(rows, rows)
    pixels[0, is_missing.repeat(cell, axis=0).repeat(cell, axis=1)] = _GREY
    return Vision(codes=filled[None], is_video=False, pixels=pixels)


async def _read(
    service: Service, body: ImageRequest, files: Sequence[bytes], caller: Caller
) -> _Prompt:
    """Reads the images of a request, and returns its prompt.

    Raises:
        ApiError: An image cannot be read, or there are too many.
    """
    model, media = service.model, service.media
    if body.is_clip and len(files) > 1:
        raise ApiError("a clip begins with one image; send one", param="image")
    visions = [
        await service.on_thread(
            lambda data=data: media.read_bytes(data, kind="image", param="image", salt=caller.salt),
            media=True,
        )
        for data in files
    ]
    first = visions[0] if body.is_clip and visions else None
    ids = await service.on_thread(
        lambda: opened(
            model,
            body.prompt,
            "video" if body.is_clip else "image",
            seen=() if body.is_clip else visions,
        )
    )
    shown = sum(model.marks.size(*vision.codes.shape) for vision in visions)
    return _Prompt(ids=ids, first=first, image_tokens=shown, is_edit=bool(files))


def _asks(service: Service, body: ImageRequest, prompt: _Prompt) -> list[Ask]:
    """Returns the images or clips to ask for.

    Raises:
        ApiError: They do not fit into the context.
        UserError: They do not fit into the cache, or a value is out of range.
    """
    model, first = service.model, prompt.first
    request = DrawRequest(
        prompts=(body.prompt,),
        kind="video" if body.is_clip else "image",
        frames=body.frames,
        first=() if first is None else (first,),
        sampling=body.sampling(),
    )
    sampling = request.used(model.sampling)
    options: dict[str, Any] = {"sampling": sampling, "frames": body.frames, "first": first}
    opening = [] if first is None else begun(model, first)
    seed = secrets.randbits(32) if body.seed is None else body.seed
    count = model.grammar.size(body.frames - request.given)
    params = SamplingParams(max_tokens=count, seed=seed % 2**32)
    fitting = service.ask([*prompt.ids, *opening], params)
    size, lane = fitting.size, None
    if sampling.is_guided:
        size += len(unprompted(model)) + len(opening) + count
        if service.lane < 2 * model.engine.groups:
            lane = model.lane(1, together=2)
    return [
        Ask(ids=prompt.ids, params=each, options=options, lane=lane, size=size)
        for each in seeded(params, body.n or 1)
    ]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
