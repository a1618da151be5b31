"""The door of the server: hosts, origins and keys, and bounds on the size and time of requests.

Written for ASGI itself: middleware that wraps requests hides from an answer that its client left.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import urllib.parse
from collections import Counter
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lwm.serve.config import LOOPBACK, ServeConfig
from lwm.serve.errors import ApiError
from lwm.serve.page import ADDRESSES
from lwm.serve.running import Caller
from lwm.serve.sse import to_json

OPEN = ("/health", *ADDRESSES)
"""Routes that need no key."""
_HELD = 8
"""Bodies of the largest size that are held at once, at most."""


class Guard:
    """Lets in requests that may use the server, with their whole bodies."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        config: ServeConfig,
        keys: Sequence[str],
        refused: Callable[[int], None],
    ):
        """Takes the app behind the door, and the keys; `refused` is called with the status."""
        self._app, self._config, self._refused = app, config, refused
        self._keys = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._open: Counter[str | None] = Counter()
        self._held = 0  # bytes of bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._require_host(headers)
            caller = Caller() if scope["path"] in OPEN else self._caller(headers)
            self._require_few(caller)
        except ApiError as error:
            await self._refuse(error, send)
            return
        scope.setdefault("state", {})["caller"] = caller
        self._open[caller.client] += 1
        try:
            if scope["path"] in OPEN:
                await self._app(scope, receive, send)
            else:
                await self._pass_on(headers, scope, receive, send)
        finally:
            self._open[caller.client] -= 1

    def _require_few(self, caller: Caller) -> None:
        """Refuses more requests of a key at once than are configured."""
        count = self._open[caller.client]
        if caller.client is not None and count >= self._config.key_requests:
            raise _busy(f"{count} requests of this key are open")

    async def _refuse(self, error: ApiError, send: Send) -> None:
        self._refused(error.status)
        await refuse(error, send)

    async def _pass_on(self, headers: Headers, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on with its whole body."""
        parts: list[bytes] = []
        try:
            try:
                first = await self._body(headers, receive, parts)
            except ApiError as error:
                await self._refuse(error, send)
                return
            if first is not None:  # else the client has gone
                await self._pass_on_whole(first, scope, receive, send)
        finally:
            self._held -= sum(map(len, parts))

    async def _pass_on_whole(
        self, first: Message, scope: Scope, receive: Receive, send: Send
    ) -> None:
        passed = False

        async def replay() -> Message:
            nonlocal passed
            if passed:
                return await receive()
            passed = True
            return first

        await self._app(scope, replay, send)

    def _require_host(self, headers: Headers) -> None:
        """Refuses names that a foreign web page may have given to this machine (DNS rebinding)."""
        if self._keys and not self._config.allowed_host:
            return  # a page does not have the key
        host, origin = headers.get("host", ""), headers.get("origin")
        allowed = {*LOOPBACK, self._config.host, *self._config.allowed_host}
        name = _name(host)
        if "*" not in allowed and name not in allowed and not _is_address(name):
            raise ApiError(
                f"the host {name!r} is not served; start the server with --allowed-host {name}",
                "permission_error",
            )
        pages = self._config.cors_origin
        if origin is None or origin in pages or "*" in pages:
            return
        if origin.partition("://")[2] != host:
            raise ApiError(
                f"pages of {origin} may not use this server; start it with --cors-origin {origin}",
                "permission_error",
            )

    def _caller(self, headers: Headers) -> Caller:
        """Returns the sender of a request, by its key."""
        if not self._keys:
            return Caller()
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        digest = hashlib.sha256(given.encode(errors="replace")).digest()
        # All are compared, each in constant time: the time says nothing about the keys.
        if not sum([hmac.compare_digest(digest, each) for each in self._keys]):
            raise ApiError(
                "the API key is missing or wrong; send it as Authorization: Bearer KEY",
                "authentication_error",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return Caller(client=digest.hex()[:16], salt=digest)

    async def _body(self, headers: Headers, receive: Receive, parts: list[bytes]) -> Message | None:
        """Returns the whole body; None if the client goes before it is complete.

        Its parts are added to `parts`, and count as held.
        """
        most = self._config.body_bytes
        too_large = ApiError(
            f"the request has more than {most:,} bytes; start the server with a larger "
            "--body-bytes, or send less",
            status=413,
            code="request_too_large",
        )
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > most:
            raise too_large
        size = 0
        try:
            async with asyncio.timeout(self._config.read_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    self._held += len(parts[-1])
                    if size > most:
                        raise too_large
                    if self._held > _HELD * most:
                        raise _busy("its requests hold much memory")
                    if not message.get("more_body", False):
                        return {"type": "http.request", "body": b"".join(parts), "more_body": False}
        except TimeoutError:
            seconds = f"{self._config.read_seconds:g} s"
            raise ApiError(f"the request did not arrive within {seconds}", status=408) from None


async def refuse(error: ApiError, send: Send) -> None:
    """Sends an error as the answer, and closes the connection: its body may not have been read."""
    body = to_json(error.to_json())
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        **error.headers,
    }
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _busy(reason: str) -> ApiError:
    return ApiError(
        f"the server is busy: {reason}; try again in 1 s",
        "rate_limit_error",
        code="rate_limit_exceeded",
        headers={"retry-after": "1"},
    )


def _name(host: str) -> str:
    """Returns the name in a Host header, without its port."""
    try:
        return (urllib.parse.urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
