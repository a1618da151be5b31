"""The page of the server: static files of this package, under a strict content security policy."""

import hashlib
import importlib.resources
from collections.abc import Mapping
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Request
from starlette.responses import Response

from lwm.serve.errors import ApiError

router = APIRouter(include_in_schema=False)
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "txt": "text/plain"}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src data: blob:",
        "media-src blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    # Asked for again each time, so that a newer server is not used with an older page.
    "cache-control": "no-cache",
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def _files() -> Mapping[str, tuple[bytes, str]]:
    """Returns the content and the media type of each file of the page, by its address."""
    package = importlib.resources.files("lwm")
    found = {"page.css": package / "assets" / "page.css"}
    web = package / "serve" / "web"
    found |= {each.name: each for each in web.iterdir()}
    found |= {f"vendor/{each.name}": each for each in (web / "vendor").iterdir()}
    return {name: _read(file) for name, file in found.items() if _suffix(file) in _TYPES}


def _suffix(file: Traversable) -> str:
    return file.name.rpartition(".")[2]


def _read(file: Traversable) -> tuple[bytes, str]:
    return file.read_bytes(), f"{_TYPES[_suffix(file)]}; charset=utf-8"


_FILES = _files()
ADDRESSES = ("/", *(f"/web/{name}" for name in _FILES))
"""Addresses of the page, which hold no secret and need no key."""


@router.get("/")
async def index(request: Request) -> Response:
    """Returns the page."""
    return _answer(request, "index.html")


@router.get("/web/{name:path}")
async def file(name: str, request: Request) -> Response:
    """Returns a file of the page."""
    if name not in _FILES:
        raise ApiError(f"there is no /web/{name[:200]}", "not_found_error")
    return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    content, media_type = _FILES[name]
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {**_HEADERS, "etag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)
