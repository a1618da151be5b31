"""Large world models: text, images and video in one token stream, over very long contexts.

>>> import lwm
>>> model = lwm.load("smollm2-135m-instruct")
>>> print(model.chat("What is the capital of France?"))
The capital of France is Paris.
"""

import importlib
from typing import TYPE_CHECKING, Any

from lwm import renamed

if TYPE_CHECKING:
    from lwm.errors import UserError
    from lwm.generate.chat import Conversation
    from lwm.generate.language_model import LanguageModel
    from lwm.loading import load
    from lwm.model.config import Compute, LlamaConfig
    from lwm.model.llama import Llama
    from lwm.ops.attention import attention
    from lwm.sampling_params import FrameSampling, SamplingParams, VisionSampling
    from lwm.sharding import make_mesh
    from lwm.tokenizer.message import Message, Vision
    from lwm.tokens import TokenSpace

__version__ = "0.1.0"

renamed.install()
_find_old = renamed.look_up(__name__)
# Looked up at first use: `import lwm` costs little, and the command line prints its help without
# JAX.
_PUBLIC = {
    "Compute": "lwm.model.config",
    "Conversation": "lwm.generate.chat",
    "FrameSampling": "lwm.sampling_params",
    "LanguageModel": "lwm.generate.language_model",
    "Llama": "lwm.model.llama",
    "LlamaConfig": "lwm.model.config",
    "Message": "lwm.tokenizer.message",
    "SamplingParams": "lwm.sampling_params",
    "TokenSpace": "lwm.tokens",
    "UserError": "lwm.errors",
    "Vision": "lwm.tokenizer.message",
    "VisionSampling": "lwm.sampling_params",
    "attention": "lwm.ops.attention",
    "load": "lwm.loading",
    "make_mesh": "lwm.sharding",
}
__all__ = [
    "Compute",
    "Conversation",
    "FrameSampling",
    "LanguageModel",
    "Llama",
    "LlamaConfig",
    "Message",
    "SamplingParams",
    "TokenSpace",
    "UserError",
    "Vision",
    "VisionSampling",
    "__version__",
    "attention",
    "load",
    "make_mesh",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    return _find_old(name)


def __dir__() -> list[str]:
    return sorted(__all__)
