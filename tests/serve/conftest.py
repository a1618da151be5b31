"""A server on loopback with a small model that reads and writes images, and media for it."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lwm.loading import load
from lwm.media.limits import Resizer
from lwm.media.write import write_video
from lwm.serve.config import MediaConfig, ServeConfig
from lwm.serve.fetch import fetch
from lwm.serve.media import MediaReader
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


@pytest.fixture
def reader(drawing):
    """Makes a reader of a configuration."""

    def make(fetch=fetch, **config):
        return MediaReader(drawing, MediaConfig(**config), fetch=fetch)

    return make


@pytest.fixture(scope="session")
def video(tmp_path_factory):
    """An MP4 of 40 frames that get lighter, a tenth of a second each."""
    levels = np.linspace(0, 255, 40).astype(np.uint8)
    pixels = np.broadcast_to(levels[:, None, None, None], (40, 32, 32, 3))
    path = tmp_path_factory.mktemp("video") / "video.mp4"
    write_video(path, pixels, 10.0)
    return path.read_bytes()


@pytest.fixture
def decoded(monkeypatch):
    """The pictures that have been decoded."""
    found, resize = [], Resizer.__call__

    def noted(self, image, *args):
        found.append(image.size)
        return resize(self, image, *args)

    monkeypatch.setattr(Resizer, "__call__", noted)
    return found


@pytest.fixture(scope="session")
def npm():
    """Installs packages of npm."""

    def install(name: str, versions: Mapping[str, str]) -> Path:
        """Returns a folder with packages in `node_modules`; without Node.js the test is skipped."""
        if shutil.which("npm") is None or shutil.which("node") is None:
            pytest.skip("Node.js is not installed")
        folder = Path(tempfile.gettempdir()) / f"lwm-{name}-js"
        folder.mkdir(exist_ok=True)
        facts = json.dumps(
            {"name": name, "private": True, "type": "module", "dependencies": versions}
        )
        listed = folder / "package.json"
        if not (folder / "complete").exists() or listed.read_text() != facts:
            listed.write_text(facts)
            command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
            subprocess.run(command, cwd=folder, check=True, timeout=300, capture_output=True)
            (folder / "complete").touch()
        return folder

    return install


@pytest.fixture(scope="session")
def browser():
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("Debian's chromium is not installed")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    with api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=path, args=arguments)
        yield made
        made.close()


@pytest.fixture
def visit(browser, served):
    """Opens the page; at the end nothing must have failed, or have gone to another server."""
    contexts, faults = [], []

    def open_page(server=served, path="/", **options):
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(60_000)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()

        def asked(request):
            if not request.url.startswith((server.root, "data:", "blob:")):
                faults.append(f"asked for {request.url}")

        page.on("request", asked)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: said.type == "error" and faults.append(said.text))
        page.goto(server.root + path)
        page.faults = faults
        page.wait_for_selector("h1, dialog")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults
