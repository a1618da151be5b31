"""The app of the server: its routes behind the guard, and the form of its errors."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

import lwm
from lwm.errors import UserError
from lwm.serve import images, page
from lwm.serve.answers import JSON, as_api_error, documented
from lwm.serve.config import ServeConfig
from lwm.serve.errors import ApiError
from lwm.serve.guard import Guard
from lwm.serve.routes import router
from lwm.serve.service import Service


class Ready:
    """The service of an app, once its model is loaded."""

    service: Service | None = None


def create_app(ready: Ready, config: ServeConfig, keys: Sequence[str] = ()) -> ASGIApp:
    """Returns the app of a server.

    Args:
        ready: Holds the service, from the moment when the model is loaded.
        config: Limits on requests.
        keys: Keys, one of which a request must have; none: no key is needed.
    """
    app = FastAPI(
        title="lwm",
        version=lwm.__version__,
        description="Large world models in OpenAI's dialect, with images and videos in and out.",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        default_response_class=JSON,
        responses=documented(),
    )
    app.state.ready = ready
    app.include_router(router)
    app.include_router(images.router)
    app.include_router(page.router)
    app.add_exception_handler(ApiError, _on_error)
    app.add_exception_handler(UserError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_error)

    def refused(status: int) -> None:
        if ready.service is not None:
            ready.service.metrics.count("lwm:refusals", reason=str(status))

    guarded = Guard(app, config=config, keys=keys, refused=refused)
    if not config.cors_origin:
        return guarded
    # The outermost: a browser asks for permission without the key.
    return CORSMiddleware(
        guarded, allow_origins=config.cors_origin, allow_methods=["*"], allow_headers=["*"]
    )


def _answer(request: Request, error: ApiError) -> Response:
    service: Service | None = request.app.state.ready.service
    if service is not None:
        service.metrics.count("lwm:refusals", reason=str(error.status))
    return JSON(error.to_json(), status_code=error.status, headers=error.headers)


async def _on_invalid(request: Request, error: Exception) -> Response:
    """Answers a body that is not as documented, by the field that is wrong."""
    assert isinstance(error, RequestValidationError)
    given, errors = request.headers.get("content-type", ""), error.errors()
    of_body = any(each["loc"][0] == "body" for each in errors)
    if of_body and "json" not in given and "form-data" not in given:
        return _answer(
            request, ApiError("the body is no JSON; send content-type: application/json")
        )
    # Of a field that may be of several types, the error that got furthest says the most.
    worst = max(errors, key=lambda each: len(_place(each)))
    place = ".".join(_place(worst))
    return _answer(request, ApiError(f"{place or 'the body'}: {worst['msg']}", param=place or None))


def _place(error: dict[str, Any]) -> list[str]:
    """Returns the field of an error; names of types, which pydantic puts between, are left out."""
    return [
        str(each)
        for each in error["loc"][1:]
        if isinstance(each, int) or str(each).replace("_", "a").isalnum()
    ]


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    if error.status_code == 404:
        found = ApiError(f"there is no {path}; /openapi.json lists the routes", "not_found_error")
    elif error.status_code == 405:
        found = ApiError(f"{path} does not take {method}", status=405)
    else:
        found = ApiError(str(error.detail), status=error.status_code)
    found.headers.update(error.headers or {})
    return _answer(request, found)


async def _on_error(request: Request, error: Exception) -> Response:
    """Answers an error; Starlette raises a fault again, so that the log has all of it."""
    return _answer(request, as_api_error(error))
