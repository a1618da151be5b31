"""Routes of the server for text; `lwm.serve.images` has those of images."""

import hashlib
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

import lwm
from lwm.serve import info, tokens
from lwm.serve.answers import JSON, attached, documented, respond, while_there
from lwm.serve.chat import Chat
from lwm.serve.completions import Completions
from lwm.serve.errors import ApiError
from lwm.serve.metrics import MEDIA_TYPE
from lwm.serve.preview import preview
from lwm.serve.running import Caller
from lwm.serve.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    PreviewRequest,
    Sampling,
    TemplateRequest,
    TokenizeRequest,
)
from lwm.serve.service import Service
from lwm.serve.streams import NAMED

router = APIRouter()
_ANSWERED = documented(404, 409, 422, 429, 501, stream=True)


def service_of(request: Request) -> Service:
    """Returns the service.

    Raises:
        ApiError: The model is not loaded yet.
    """
    service = request.app.state.ready.service
    if service is None:
        raise ApiError(
            "the model is loading; try again soon",
            "unavailable_error",
            headers={"retry-after": "5"},
        )
    return service


def caller_of(request: Request, body: Sampling) -> Caller:
    """Returns the sender of a request, with the salt and the priority that it asks for."""
    caller: Caller = request.state.caller
    if body.cache_salt:
        salt = hashlib.sha256(body.cache_salt.encode(errors="replace")).digest()
        caller = caller._replace(salt=salt)
    # In vLLM, lower ones come first. Between keys, turns decide.
    return caller if caller.client else caller._replace(priority=-(body.priority or 0))


@router.post("/v1/chat/completions", responses=_ANSWERED, openapi_extra=NAMED)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answers a chat in text, images and videos."""
    service = service_of(request)
    service.require_model(body.model)
    service.note_unknown(body)
    starting = Chat.start(service, body, caller_of(request, body))
    return await respond(request, service, starting, stream=bool(body.stream))


@router.post("/v1/completions", responses=_ANSWERED, openapi_extra=NAMED)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continues texts, and scores them."""
    service = service_of(request)
    service.require_model(body.model)
    service.note_unknown(body)
    starting = Completions.start(service, body, caller_of(request, body))
    return await respond(request, service, starting, stream=bool(body.stream))


@router.get("/v1/streams/{name}", responses=documented(404, 422, 429, 501, stream=True))
async def stream(name: str, request: Request) -> Response:
    """Answers with the events of a stream that was named, after the one in Last-Event-ID."""
    service = service_of(request)
    given = request.headers.get("last-event-id") or "0"
    if not (given.isascii() and given.isdecimal() and len(given) < 10):
        raise ApiError("Last-Event-ID is no number; give the id of an event", param="Last-Event-ID")
    found = service.streams.find((request.state.caller.client, name))
    return await attached(request, service, found, after=int(given))


@router.delete("/v1/streams/{name}", status_code=204, responses=documented(404))
async def end_stream(name: str, request: Request) -> Response:
    """Ends the answer of a stream that was named."""
    found = service_of(request).streams.find((request.state.caller.client, name))
    await found.stop()
    return Response(status_code=204)


@router.post("/v1/media/preview", responses=documented(404, 422))
async def media_preview(body: PreviewRequest, request: Request) -> Response:
    """Returns the tokens of an image or a video, and frames as the model sees them."""
    service = service_of(request)
    service.require_model(body.model)

    async def work() -> Response:
        return JSON(await preview(service, body, request.state.caller))

    return await while_there(request, work())


@router.post("/tokenize", responses=documented(404, 422))
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    """Returns the ids of a text, or of a chat with its images and videos."""
    service = service_of(request)
    service.require_model(body.model)

    async def work() -> Response:
        return JSON(await tokens.tokenize(service, body, request.state.caller))

    return await while_there(request, work())


@router.post("/detokenize", responses=documented(404))
async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    """Returns the text of ids."""
    service = service_of(request)
    service.require_model(body.model)
    return JSON(await service.on_thread(tokens.detokenize, service, body))


@router.post("/apply-template", responses=documented(404, 422))
async def apply_template(body: TemplateRequest, request: Request) -> Response:
    """Returns the prompt of a chat as text."""
    service = service_of(request)
    service.require_model(body.model)

    async def work() -> Response:
        return JSON(await tokens.apply_template(service, body, request.state.caller))

    return await while_there(request, work())


@router.get("/tokenizer_info")
async def tokenizer_info(request: Request) -> Response:
    """Returns the special tokens and the chat template."""
    return JSON(tokens.tokenizer_info(service_of(request)))


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """Lists the model."""
    return JSON(info.models(service_of(request)))


@router.get("/v1/models/{name:path}", responses=documented(404))
async def model(name: str, request: Request) -> Response:
    """Returns the facts of the model."""
    return JSON(info.model(service_of(request), name))


@router.get("/v1/evaluations")
async def evaluations(request: Request) -> Response:
    """Lists results of needle evaluations."""
    service = service_of(request)
    return JSON({"data": await service.on_thread(service.evaluations.entries)})


@router.get("/v1/evaluations/{name:path}", responses=documented(404))
async def evaluation(name: str, request: Request) -> Response:
    """Returns header and rows of an evaluation."""
    service = service_of(request)
    found = await service.on_thread(service.evaluations.results, name)
    return Response(found, media_type="application/json")


@router.get("/v1/evaluations-prompt/{name:path}", responses=documented(404))
async def evaluation_prompt(
    name: str, row: Annotated[int, Query(ge=0, lt=1 << 31)], request: Request
) -> Response:
    """Returns the prompt of a row of an evaluation, built again."""
    service = service_of(request)
    async with service.rebuilding:
        found = await service.on_thread(service.evaluations.prompt, name, row, service.model)
    return JSON({"prompt": found})


@router.get("/health")
@router.get("/v1/health")
@router.get("/ping")
async def health(request: Request) -> Response:
    """Answers with status 200 once requests are answered, and 503 while they are not."""
    service = service_of(request)
    if service.is_draining:
        raise ApiError("the server is stopping", "unavailable_error")
    return JSON({"status": "ok"})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Returns metrics in Prometheus' text form."""
    return Response(service_of(request).metrics.text(), media_type=MEDIA_TYPE)


@router.get("/version")
async def version() -> Response:
    """Returns the version of the server."""
    return JSON({"version": lwm.__version__})


@router.get("/props")
async def props(request: Request) -> Response:
    """Returns properties of the server, as llama.cpp names them."""
    return JSON(info.props(service_of(request)))


@router.get("/slots")
async def slots(request: Request) -> Response:
    """Returns the slots in which answers are written."""
    return JSON(info.slots(service_of(request), request.state.caller))


@router.get("/load")
async def load(request: Request) -> Response:
    """Returns the number of requests that wait or run."""
    return JSON(info.load(service_of(request)))
