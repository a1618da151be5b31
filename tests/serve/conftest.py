"""A server on loopback with a small model that reads and writes images."""

from typing import Any

import httpx
import pytest

from lwm.loading import load
from lwm.serve.config import ServeConfig
from lwm.serve.run import Server
from lwm.serve.service import Service

POOL = 12_288
"""Tokens of the cache, which does not grow, so that nothing is compiled twice."""


@pytest.fixture(scope="session")
def drawing():
    """A model of the package that draws what it is asked for."""
    model = load("tiny-vision", pool_tokens=POOL)
    yield model
    model.engine.close()


class Running:
    """A server that answers."""

    def __init__(self, model, config: ServeConfig):
        self.service = Service(model, config)
        self.server = Server(config)
        self.server.serve(self.service)
        self.url = self.server.url
        self.root = self.url.removesuffix("/v1")
        self.client = httpx.Client(base_url=self.root, timeout=60)

    def post(self, path: str, **body):
        return self.client.post(path, json=body)

    def close(self) -> None:
        self.client.close()
        self.server.stop()


@pytest.fixture(scope="session")
def start(drawing):
    """Starts a server with the small model, which all of them share."""
    running = []

    def make(**settings: Any) -> Running:
        given: dict[str, Any] = {"port": 0, "slots": 4} | settings
        running.append(Running(drawing, ServeConfig(**given)))
        return running[-1]

    yield make
    for each in running:
        each.close()


@pytest.fixture(scope="session")
def served(start) -> Running:
    """A server without a key."""
    return start()
