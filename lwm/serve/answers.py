"""Answers of routes: JSON or a stream, their documented errors, and their end with the client."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, Protocol

from fastapi import Request
from pydantic import BaseModel
from starlette.responses import Response

from lwm.errors import UserError
from lwm.serve.errors import ApiError
from lwm.serve.running import Answers
from lwm.serve.service import Service
from lwm.serve.sse import EventStream, event, to_json, until_gone
from lwm.serve.streams import HEADER, Stream

_LOG = logging.getLogger(__name__)


class ErrorFields(BaseModel):
    """An error in OpenAI's form."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of an answer that is an error."""

    error: ErrorFields


class JSON(Response):
    """An answer in JSON; lone surrogates in texts of users break nothing."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Returns the body."""
        return to_json(content)


def as_api_error(error: Exception) -> ApiError:
    """Returns an error of any kind in OpenAI's form; faults of the server say no more than that."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UserError):
        return ApiError(str(error))
    if "RESOURCE_EXHAUSTED" in str(error):
        message = "the devices have no memory left; send less at once, or try again later"
        return ApiError(message, "unavailable_error")
    return ApiError("the server has failed; its log says where", "server_error")


def documented(*statuses: int, stream: bool = False) -> dict[int | str, dict[str, Any]]:
    """Returns the answers of a route for the description of the server.

    Args:
        *statuses: More errors than those of all routes.
        stream: The answer may be a stream of events.
    """
    codes = (400, 401, 403, 408, 413, 500, 503, *statuses)
    made: dict[int | str, dict[str, Any]] = {code: {"model": ErrorBody} for code in sorted(codes)}
    if stream:
        made[200] = {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
    return made


class Work(Protocol):
    """A request whose answers have begun."""

    answers: Answers

    async def whole(self) -> Any:
        """Returns the answer once it is complete."""
        ...

    def stream(self) -> AsyncGenerator[bytes]:
        """Yields the answer in events as it is written."""
        ...


async def respond(
    request: Request, service: Service, starting: Coroutine[Any, Any, Work], *, stream: bool
) -> Response:
    """Answers a request, whole or as a stream; ends its work when its client goes.

    A stream with a name in the header X-Stream-Id goes on, for a client that comes back.

    Args:
        request: The request.
        service: The service.
        starting: Sends the request to the engine.
        stream: Answer in events.

    Raises:
        ApiError: The name of the stream is malformed or in use.
    """
    if stream and (kept := _kept(request, service, starting)) is not None:
        return await attached(request, service, kept)
    return await while_there(request, (_stream if stream else _whole)(service, starting))


def _kept(request: Request, service: Service, starting: Coroutine[Any, Any, Work]) -> Stream | None:
    """Starts a request whose stream has a name; returns None if it has none, or is not kept."""
    if (name := request.headers.get(HEADER)) is None:
        return None
    key = request.state.caller.client, name
    try:
        return service.streams.keep(key, starting, functools.partial(_until_over, service))
    except ApiError:
        starting.close()
        raise


async def attached(
    request: Request, service: Service, stream: Stream, *, after: int = 0
) -> Response:
    """Answers with the events of a kept stream, after the one of a number.

    Raises:
        ApiError: The request of the stream is refused, or there is no event of the number.
    """
    reader, response = stream.attach(after), None

    async def events() -> Response:
        await reader.begun()
        return EventStream(
            reader.events(), end=reader.leave, ping_seconds=service.config.ping_seconds
        )

    try:
        response = await while_there(request, events())
        return response
    finally:
        if not isinstance(response, EventStream):
            reader.leave()


async def while_there(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """Runs work for a client, and cancels it when the client goes."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(until_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        # Nobody receives an answer to a client that has gone.
        return task.result() if task.done() else Response(status_code=499)
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.gather(gone, task, return_exceptions=True)


async def _whole(service: Service, starting: Coroutine[Any, Any, Work]) -> Response:
    work = await starting
    try:
        return JSON(await work.whole())
    finally:
        service.end(work.answers)


async def _stream(service: Service, starting: Coroutine[Any, Any, Work]) -> Response:
    work = await starting
    return EventStream(
        _with_errors(work),
        end=functools.partial(service.end, work.answers),
        ping_seconds=service.config.ping_seconds,
    )


async def _until_over(service: Service, work: Work) -> AsyncGenerator[bytes]:
    """Yields the events of a request, and ends it after them."""
    try:
        async with contextlib.aclosing(_with_errors(work)) as events:
            async for part in events:
                yield part
    finally:
        service.end(work.answers)


async def _with_errors(work: Work) -> AsyncGenerator[bytes]:
    """Yields the events of a request, an error among them."""
    try:
        async for part in work.stream():
            yield part
    except Exception as error:
        yield event(as_api_error(error).to_json())
        if not isinstance(error, ApiError | UserError):
            _LOG.exception("an answer has failed")
