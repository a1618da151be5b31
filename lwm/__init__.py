"""Large world models: text, images and video in one token stream, over very long contexts.

>>> import lwm
>>> model = lwm.load("smollm2-135m-instruct")
>>> print(model.chat("What is the capital of France?"))
The capital of France is Paris.
"""

import importlib
import os
import re
from typing import TYPE_CHECKING, Any

from lwm import renamed

if TYPE_CHECKING:
    from lwm.errors import UserError
    from lwm.generate.answer import Answer, Usage
    from lwm.generate.batch import Completion, Result, TextRequest
    from lwm.generate.chat import Conversation
    from lwm.generate.language_model import LanguageModel
    from lwm.generate.output import Frame
    from lwm.loading import load
    from lwm.media.frames import Frames
    from lwm.model.config import (
        Compute,
        Dtype,
        LinearScaling,
        LlamaConfig,
        ModelOverrides,
        Rope,
        RopeScaling,
        Storage,
    )
    from lwm.model.layers import Packing
    from lwm.model.llama import Llama
    from lwm.ops.attention import attention
    from lwm.ops.mask import Mask
    from lwm.progress import Progress
    from lwm.sampling_params import FrameSampling, SamplingOptions, SamplingParams, VisionSampling
    from lwm.sharding import make_mesh
    from lwm.tokenizer.markers import VisionMarkers
    from lwm.tokenizer.message import Message, Part, Vision, Visions
    from lwm.tokenizer.tokenizer import Tokenizer
    from lwm.tokens import TokenSpace
    from lwm.vqgan.tokenizer import VisionTokenizer

__version__ = "0.1.0"

# A collective that waits for other virtual devices takes a thread of XLA's CPU client, which has
# one for each device: without more, none may be left for those that are waited for.
_flags = os.environ.get("XLA_FLAGS", "")
if _split := re.search(r"xla_force_host_platform_device_count=(\d+)", _flags):
    os.environ.setdefault("NPROC", str(8 * int(_split[1])))

renamed.install()
_find_old = renamed.look_up(__name__)
# Looked up at first use: `import lwm` costs little, and the command line prints its help without
# JAX.
_PUBLIC = {
    "Answer": "lwm.generate.answer",
    "Completion": "lwm.generate.batch",
    "Compute": "lwm.model.config",
    "Conversation": "lwm.generate.chat",
    "Dtype": "lwm.model.config",
    "Frame": "lwm.generate.output",
    "FrameSampling": "lwm.sampling_params",
    "Frames": "lwm.media.frames",
    "LanguageModel": "lwm.generate.language_model",
    "LinearScaling": "lwm.model.config",
    "Llama": "lwm.model.llama",
    "LlamaConfig": "lwm.model.config",
    "Mask": "lwm.ops.mask",
    "Message": "lwm.tokenizer.message",
    "ModelOverrides": "lwm.model.config",
    "Packing": "lwm.model.layers",
    "Part": "lwm.tokenizer.message",
    "Progress": "lwm.progress",
    "Result": "lwm.generate.batch",
    "Rope": "lwm.model.config",
    "RopeScaling": "lwm.model.config",
    "SamplingOptions": "lwm.sampling_params",
    "SamplingParams": "lwm.sampling_params",
    "Storage": "lwm.model.config",
    "TextRequest": "lwm.generate.batch",
    "TokenSpace": "lwm.tokens",
    "Tokenizer": "lwm.tokenizer.tokenizer",
    "Usage": "lwm.generate.answer",
    "UserError": "lwm.errors",
    "Vision": "lwm.tokenizer.message",
    "VisionMarkers": "lwm.tokenizer.markers",
    "VisionSampling": "lwm.sampling_params",
    "VisionTokenizer": "lwm.vqgan.tokenizer",
    "Visions": "lwm.tokenizer.message",
    "attention": "lwm.ops.attention",
    "load": "lwm.loading",
    "make_mesh": "lwm.sharding",
}
__all__ = [
    "Answer",
    "Completion",
    "Compute",
    "Conversation",
    "Dtype",
    "Frame",
    "FrameSampling",
    "Frames",
    "LanguageModel",
    "LinearScaling",
    "Llama",
    "LlamaConfig",
    "Mask",
    "Message",
    "ModelOverrides",
    "Packing",
    "Part",
    "Progress",
    "Result",
    "Rope",
    "RopeScaling",
    "SamplingOptions",
    "SamplingParams",
    "Storage",
    "TextRequest",
    "TokenSpace",
    "Tokenizer",
    "Usage",
    "UserError",
    "Vision",
    "VisionMarkers",
    "VisionSampling",
    "VisionTokenizer",
    "Visions",
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
