"""Runs the server on a thread: its socket, its limits on connections, and its end."""

import logging
import math
import socket
import threading
import time
from collections.abc import Sequence

import uvicorn

from lwm.errors import UserError
from lwm.files import reading
from lwm.serve.app import Ready, create_app
from lwm.serve.config import ServeConfig
from lwm.serve.connection import limited
from lwm.serve.errors import ApiError
from lwm.serve.service import Service

_GRACE = 5
"""Seconds for the errors of answers that are cut, after which connections are closed."""


class Server:
    """An HTTP server on a thread of its own; a model may be loaded while it answers with 503."""

    def __init__(self, config: ServeConfig):
        """Binds the address, and answers from now on.

        Raises:
            UserError: The address cannot be bound, or a key cannot be read.
        """
        self.config = config
        self._ready = Ready()
        self._deadline = math.inf
        self._socket = _bound(config)
        self.port: int = self._socket.getsockname()[1]
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(
                create_app(self._ready, config, _keys(config)),
                http=limited(config),
                ws="none",
                lifespan="off",
                log_level=logging.WARNING,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=math.ceil(config.drain_seconds) + _GRACE,
            )
        )
        self._thread = threading.Thread(target=self._run, name="lwm-http", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The address for clients."""
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"http://{host}:{self.port}/v1"

    @property
    def page(self) -> str:
        """The address of the page for people."""
        return self.url.removesuffix("v1")

    def serve(self, service: Service) -> None:
        """Answers requests with a model from now on."""
        self._ready.service = service

    @property
    def is_alive(self) -> bool:
        """False once the server has ended."""
        return self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Waits for so long, or until the server ends."""
        self._thread.join(seconds)

    def stop_soon(self) -> None:
        """Refuses new requests, and lets answers go on for the time of the configuration."""
        if self._ready.service is not None:
            self._ready.service.is_draining = True
        self._uvicorn.should_exit = True
        self._deadline = time.monotonic() + self.config.drain_seconds

    def stop(self) -> None:
        """Stops as `stop_soon`, and returns when all has ended."""
        self.stop_soon()
        while self.is_alive:
            self.wait(0.1)  # with a limit, so that a signal is handled
            if time.monotonic() > self._deadline:
                self._fail()
        if self._ready.service is not None:
            self._ready.service.close()

    def _fail(self) -> None:
        """Ends answers for which the time is over, with an error for their clients."""
        self._deadline = math.inf
        if self._ready.service is not None:
            message = "the server has stopped before the end of the answer; ask another one"
            self._ready.service.fail(ApiError(message, "unavailable_error"))

    def _run(self) -> None:
        try:
            self._uvicorn.run(sockets=[self._socket])
        finally:
            self._socket.close()


def _bound(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((config.host, config.port))
    except OSError as error:
        bound.close()
        reason = error.strerror or str(error)
        raise UserError(
            f"{config.host} port {config.port} cannot be used: {reason}; give another --port or "
            "--host"
        ) from None
    return bound


def _keys(config: ServeConfig) -> Sequence[str]:
    """Returns all keys.

    Raises:
        UserError: Their file cannot be read, or has none.
    """
    if (path := config.api_key_file) is None:
        return config.api_key
    with reading(path):
        lines = path.read_text(encoding="utf-8").splitlines()
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise UserError(f"{path} has no key; write one in each line")
    return (*config.api_key, *keys)
