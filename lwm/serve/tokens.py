"""`/tokenize`, `/detokenize`, `/apply-template` and `/tokenizer_info`."""

from typing import Any

from lwm.serve.errors import ApiError
from lwm.serve.messages import prompt_of
from lwm.serve.report import spelled
from lwm.serve.running import Caller
from lwm.serve.schema import DetokenizeRequest, TemplateRequest, TokenizeRequest
from lwm.serve.service import Service


async def tokenize(service: Service, body: TokenizeRequest, caller: Caller) -> dict[str, Any]:
    """Returns the ids of a text, or of a chat with its images and videos.

    Raises:
        ApiError: There is neither, or an image or a video cannot be read.
        UserError: The messages are no chat that the model's template takes.
    """
    tokenizer = service.model.tokenizer
    image_tokens = None
    if body.messages is not None:
        prompt = await prompt_of(service, body, caller)
        ids, image_tokens = list(prompt.ids), prompt.image_tokens
    else:
        text = body.content if body.prompt is None else body.prompt
        if text is None:
            raise ApiError("there is nothing to tokenize; give prompt or messages", param="prompt")
        # Programs ask so for the ids of the special tokens that `tokenizer_info` names.
        special = text in tokenizer.template_names.values()
        ids = await service.on_thread(lambda: tokenizer.encode(text, special=special))
        begins = body.prompt is not None if body.add_special_tokens is None else False
        if body.add_special_tokens or body.add_special or begins:
            start = tokenizer.bos_id if tokenizer.add_bos else None
            ids = ids if start is None else [start, *ids]
    made: dict[str, Any] = {"tokens": ids, "count": len(ids)}
    made["max_model_len"] = service.model.context
    if image_tokens is not None:
        made["image_tokens"] = image_tokens
    if body.count_only:
        return made | {"tokens": [], "image_tokens": image_tokens or 0}
    if body.return_token_strs or body.with_pieces:
        made |= await service.on_thread(_spelled, service, body, ids)
    return made


def _spelled(service: Service, body: TokenizeRequest, ids: list[int]) -> dict[str, Any]:
    """Returns the texts of ids in the spellings that are asked for."""
    made: dict[str, Any] = {}
    if body.return_token_strs:
        made["token_strs"] = [_text(service, each) for each in ids]
    if body.with_pieces:
        made["tokens"] = [{"id": each, "piece": _piece(service, each)} for each in ids]
    return made


def detokenize(service: Service, body: DetokenizeRequest) -> dict[str, Any]:
    """Returns the text of ids.

    Raises:
        ApiError: An id is outside the vocabulary.
    """
    size = service.model.tokenizer.vocab_size
    if body.tokens and max(body.tokens) >= size:
        raise ApiError(
            f"{max(body.tokens)} is no id of a text; these are from 0 to {size - 1}", param="tokens"
        )
    text = service.model.tokenizer.decode(body.tokens, skip_special=False)
    return {"prompt": text, "content": text}


async def apply_template(service: Service, body: TemplateRequest, caller: Caller) -> dict[str, Any]:
    """Returns the prompt of a chat as text, in which ids of vision have names.

    Raises:
        ApiError: An image or a video cannot be read.
        UserError: The messages are no chat that the model's template takes.
    """
    prompt = await prompt_of(service, body, caller)
    data = b"".join(spelled(service.model, each) for each in prompt.ids)
    return {"prompt": data.decode(errors="replace")}


def tokenizer_info(service: Service) -> dict[str, Any]:
    """Returns the special tokens and the chat template, as lm-evaluation-harness reads them."""
    tokenizer = service.model.tokenizer
    names = tokenizer.template_names
    return {
        "tokenizer_class": "lwm",
        "vocab_size": tokenizer.vocab_size,
        "bos_token": names.get("bos_token"),
        "eos_token": names.get("eos_token"),
        "pad_token": names.get("pad_token"),
        "add_bos_token": tokenizer.add_bos,
        "chat_template": service.template,
        "model_max_length": service.model.context,
    }


def _text(service: Service, token_id: int) -> str:
    return spelled(service.model, token_id).decode(errors="replace")


def _piece(service: Service, token_id: int) -> str | list[int]:
    data = spelled(service.model, token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)
