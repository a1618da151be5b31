"""Facts of the server and its model: models, properties, slots, load and version."""

from typing import Any

import jax

import lwm
from lwm.serve.running import Caller
from lwm.serve.service import Service


def models(service: Service) -> dict[str, Any]:
    """Returns the list of models, which has one."""
    return {"object": "list", "data": [model(service, service.name)]}


def model(service: Service, name: str) -> dict[str, Any]:
    """Returns the facts of the model.

    Raises:
        ApiError: Another one is asked for.
    """
    service.require_model(name)
    loaded = service.model
    config = loaded.llama.config
    reads = ["text", *(["image", "video"] if loaded.sees else [])]
    writes = ["text", *(["image", "video"] if service.draws else [])]
    leaves = jax.tree.leaves(loaded.llama)
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "lwm",
        "max_model_len": loaded.context,
        "architecture": {"input_modalities": reads, "output_modalities": writes},
        "meta": {
            "n_ctx_train": loaded.context,
            "n_params": sum(leaf.size for leaf in leaves),
            "size": sum(leaf.nbytes for leaf in leaves),
            "n_vocab": config.tokens.size,
            "n_embd": config.dim,
        },
    }


def props(service: Service) -> dict[str, Any]:
    """Returns the properties that llama.cpp's page and dashboards read."""
    loaded = service.model
    return {
        "model_alias": service.name,
        "model_path": service.name,
        "total_slots": service.lane,
        "chat_template": service.template,
        "bos_token": loaded.tokenizer.template_names.get("bos_token", ""),
        "eos_token": loaded.tokenizer.template_names.get("eos_token", ""),
        "modalities": {"vision": loaded.sees, "video": loaded.sees, "audio": False},
        "build_info": f"lwm {lwm.__version__}",
        "image_settings": _image_settings(service),
        "max_n": service.config.max_n,
        "default_generation_settings": {
            "n_ctx": loaded.context,
            "params": {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "n_predict": -1},
        },
    }


def _image_settings(service: Service) -> dict[str, Any] | None:
    """Returns the sampling of images and videos where a request does not say; None: it has none."""
    if not service.draws:
        return None
    sampling, vision = service.model.sampling, service.model.vision
    return {
        "image": sampling.image.used(),
        "video": sampling.video.used(),
        "resolution": vision.resolution,
        "tokens_per_frame": vision.tokens_per_frame,
    }


def slots(service: Service, caller: Caller) -> list[dict[str, Any]]:
    """Returns the slots; those that answer come first, with numbers of the caller's own."""
    busy = [
        {"n_prompt_tokens": answer.usage.prompt_tokens, "n_decoded": len(answer.ids)}
        if answers.caller.client == caller.client
        else {}
        for answers in service.open
        for answer in answers.running
    ][: service.lane]
    idle: list[dict[str, Any]] = [{}] * (service.lane - len(busy))
    return [
        {"id": number, "n_ctx": service.model.context, "is_processing": number < len(busy), **each}
        for number, each in enumerate([*busy, *idle])
    ]


def load(service: Service) -> dict[str, Any]:
    """Returns the number of requests that wait or run."""
    return {"server_load": len(service.open), "waiting": service.num_waiting}
