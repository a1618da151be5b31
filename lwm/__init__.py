"""Large world models: text, images and video in one token stream, over very long contexts.

>>> import lwm
>>> model = lwm.load("smollm2-135m-instruct")
>>> print(model.chat("What is the capital of France?"))
The capital of France is Paris.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# Looked up when they are first used: `import lwm` costs little, and the command line can print
# its help without JAX.
_PUBLIC = {
    "load": "lwm.loading",
    "LanguageModel": "lwm.generate.language_model",
    "Conversation": "lwm.generate.chat",
    "Message": "lwm.tokenizer.message",
    "Vision": "lwm.tokenizer.message",
    "Writing": "lwm.generate.writing",
    "Drawing": "lwm.generate.drawing",
    "Drawings": "lwm.generate.drawing",
    "UserError": "lwm.errors",
    "Llama": "lwm.model.llama",
    "LlamaConfig": "lwm.model.config",
    "TokenSpace": "lwm.tokens",
    "make_mesh": "lwm.sharding",
    "attention": "lwm.ops",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lwm' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
