"""`lwm serve`: a server in OpenAI's dialect, with images and videos in and out."""

import signal

from lwm.cli.common import Flat, LoadOptions, Model, open_model, print_line
from lwm.files import require_package
from lwm.serve.config import ServeConfig
from lwm.signals import stop_requests

_STOPPING = "lwm: stopping after the answers that are being written; Ctrl-C again ends at once"


def serve(
    model: Model,
    /,
    *,
    server: Flat[ServeConfig] = ServeConfig(),
    load: Flat[LoadOptions] = LoadOptions(),
) -> None:
    """Serves a model over HTTP in OpenAI's dialect, with images and videos in and out.

    Ctrl-C or SIGTERM ends it after the answers that are being written; a second Ctrl-C at once.

    Args:
        model: A name from `lwm models`, a Hugging Face folder, a GGUF file, or a hub's org/name.
        server: Address, keys, and limits on requests.
        load: How the model is loaded.
    """
    for package in ("fastapi", "uvicorn", "multipart"):
        require_package(package, "serving", "serve")
    from lwm.serve.run import Server
    from lwm.serve.service import Service

    # Of several processes only the first one comes back, and takes the port.
    shared = open_model(model, load) if load.processes.coordinator else None
    running = Server(server)
    try:
        service = Service(shared or open_model(model, load), server)
        service.warm_up()
        running.serve(service)
        print_line(
            f"serving {service.name} on {running.url} ({service.facts}), a page on {running.page}"
        )
        with stop_requests(_STOPPING, signal.SIGINT, signal.SIGTERM) as request:
            while not request.signal and running.is_alive:
                running.wait(0.2)
    finally:
        running.stop()
