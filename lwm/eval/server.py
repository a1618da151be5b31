"""Requests to an OpenAI-compatible server, repeated where that may help."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import email.utils
import json
import random
import re
import threading
import time
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

import httpx2

from lwm.errors import UserError
from lwm.files import parse_json, reason_of

T = TypeVar("T")

_LONGEST_PAUSE = 30.0
_CONNECTING = 10.0
"""Seconds in which a server accepts a connection."""
_SHOWN = 300
"""Characters of a server's message that are shown: some repeat the prompt."""
_PASSING = (408, 409, 425, 429)
"""Statuses below 500 of failures that pass."""


class Refused(Exception):
    """The server refuses a request, and would do so again."""

    def __init__(self, status: int, message: str):
        super().__init__(f"status {status}{f': {message}' * bool(message)}")
        self.status, self.message = status, message


class _Failed(Exception):
    """A request has failed, but may succeed if it is repeated."""

    def __init__(self, reason: str, pause: float | None = None):
        super().__init__(reason)
        self.pause = pause


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
    """An OpenAI-compatible server, and the patience with it."""

    url: str
    """Base URL of its API, see `base_url`."""
    key: str | None = dataclasses.field(default=None, repr=False)
    """Sent as bearer token; it is not shown anywhere."""
    connections: int = 4
    retries: int = 10
    """Further tries of a request that has failed."""
    timeout: float = 600.0
    """Seconds for a request, from its start to the end of the response."""
    pause: float = 0.5
    """Seconds before the first retry, about; doubled for each further one."""

    def __post_init__(self):
        """Checks the numbers and the key.

        Raises:
            UserError: A number is too small, or the key cannot be sent.
        """
        if self.connections < 1:
            raise UserError(f"concurrency {self.connections} must be 1 or more")
        if self.retries < 0:
            raise UserError(f"retries {self.retries} must be 0 or more")
        if self.timeout <= 0:
            raise UserError(f"timeout {self.timeout:g} must be above 0 seconds")
        if self.key is not None and not re.fullmatch(r"[!-~]+", self.key):
            raise UserError("the API key holds a character that no header can; set it anew")

    @contextlib.contextmanager
    def session(self) -> "Generator[Session]":
        """Opens connections; at the end, requests that are not done are cancelled."""
        session = Session(self)
        try:
            yield session
        finally:
            session.close()


def base_url(url: str) -> str:
    """Returns the base of a server's API: `/v1` is added if the URL names no version.

    Raises:
        UserError: It is no URL of a server, or holds a password, which results would record.
    """
    example = "give one such as http://localhost:8000/v1"
    if set(url) & set("@?#"):
        raise UserError(
            "the endpoint's URL holds more than host and path; keys and passwords belong into the "
            "environment, see --api-key-env"
        )
    try:
        parts = httpx2.URL(url.strip())
    except httpx2.InvalidURL as error:
        raise UserError(f"endpoint {url} is no URL ({error}); {example}") from None
    if parts.scheme not in ("http", "https") or not parts.host:
        raise UserError(f"endpoint {url} is no URL of a server; {example}")
    path = parts.path.rstrip("/")
    has_version = any(re.match(r"v\d", part) for part in path.split("/"))
    return str(parts.copy_with(path=path if has_version else f"{path}/v1"))


class Session:
    """Connections to a server, used by a thread of their own."""

    def __init__(self, server: Server):
        """Starts the thread."""
        self._server = server
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        headers = {"Content-Type": "application/json"}
        if server.key is not None:
            headers["Authorization"] = f"Bearer {server.key}"
        self._client = httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(None, connect=_CONNECTING),
            limits=httpx2.Limits(
                max_connections=server.connections, max_keepalive_connections=server.connections
            ),
        )
        self._thread = threading.Thread(target=self._run, name="lwm-endpoint", daemon=True)
        self._thread.start()

    def start(self, work: Coroutine[Any, Any, T]) -> "concurrent.futures.Future[T]":
        """Runs a coroutine in the thread."""
        return asyncio.run_coroutine_threadsafe(self._noted(work), self._loop)

    async def _noted(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            return await work
        finally:
            self._tasks.remove(task)

    def close(self) -> None:
        """Cancels what runs, and ends the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._end())
        finally:
            self._loop.close()

    async def _end(self) -> None:
        # Tasks that these have started, as for connections, are theirs to cancel.
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()

    async def get(self, path: str, *, retries: int | None = None) -> dict[str, Any]:
        """Returns the JSON object at a path; see `post`."""
        return await self._repeated("GET", path, None, retries)

    async def post(self, path: str, values: Any) -> dict[str, Any]:
        """Sends JSON, again and again if that fails, and returns the JSON object that answers it.

        Raises:
            Refused: The server refuses the request for good.
            UserError: It has failed as often as is allowed, or the key is wrong.
        """
        return await self._repeated("POST", path, json.dumps(values).encode(), None)

    async def _repeated(
        self, method: str, path: str, content: bytes | None, retries: int | None
    ) -> dict[str, Any]:
        server = self._server
        retries = server.retries if retries is None else min(retries, server.retries)
        failures = 0
        while True:
            try:
                return await self._once(method, f"{server.url}{path}", content)
            except _Failed as failed:
                failures += 1
                if failures > retries:
                    raise UserError(
                        f"{server.url} failed {failures} times in a row, the last time with: "
                        f"{failed}; once it works, the same command continues"
                    ) from None
                pause = self._pause(failures - 1, failed.pause)
            await asyncio.sleep(pause)

    def _pause(self, done: int, asked: float | None) -> float:
        """Returns the seconds before the next try: as the server asks, or random and growing."""
        if asked is not None:
            return min(asked, self._server.timeout)
        return min(self._server.pause * 2**done, _LONGEST_PAUSE) * random.uniform(0.5, 1)

    async def _once(self, method: str, url: str, content: bytes | None) -> dict[str, Any]:
        server = self._server
        try:
            async with asyncio.timeout(server.timeout):
                response = await self._client.request(method, url, content=content)
        except TimeoutError:
            raise _Failed(f"no response within {server.timeout:g} s") from None
        except httpx2.RequestError as error:
            raise _Failed(f"{type(error).__name__}: {reason_of(error)}") from None
        status = response.status_code
        if status in _PASSING or status >= 500:
            reason = f"status {status}{self._message(response)}"
            raise _Failed(reason, _seconds(response.headers.get("retry-after")))
        if status in (401, 403):
            raise UserError(
                f"{server.url} does not accept the API key, or the lack of one: "
                f"status {status}{self._message(response)}"
            )
        if status != 200:
            raise Refused(status, self._message(response).removeprefix(": "))
        try:
            value = parse_json(response.content)
        except ValueError:
            value = None
        if not isinstance(value, dict) or value.get("error"):
            raise _Failed(f"no JSON of an answer{self._message(response)}")
        return value

    def _message(self, response: httpx2.Response) -> str:
        """Returns what a response says went wrong, after a colon, without the API key."""
        try:
            found = parse_json(response.content)
        except ValueError:
            found = None
        while isinstance(found, dict):
            keys = ("error", "message", "detail")
            found = next((found[key] for key in keys if found.get(key)), None)
        text = " ".join((found if isinstance(found, str) else response.text).split())
        if self._server.key is not None:
            text = text.replace(self._server.key, "…")
        return f": {text[:_SHOWN]}" if text else ""


def _seconds(after: str | None) -> float | None:
    """Returns the seconds of a Retry-After header: a number, or a date; None for neither."""
    if after is None:
        return None
    try:
        return max(0.0, float(after))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(after).timestamp() - time.time())
    except ValueError:
        return None
