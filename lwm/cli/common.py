"""What several commands share: which model, and where it is loaded. Free of JAX."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lwm.model.config import NO_OVERRIDES, ModelOverrides


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Where and how a model is loaded."""

    mesh: str = "1,1,1,1"
    """Devices: dp,fsdp,tp,sp such as 1,1,4,1 (one -1 is inferred), or tp=4."""
    dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    """What weights are stored and computed in; int8 is stored so, and computed in float32."""
    template: str | None = None
    """`lwm` or Jinja source in place of the model's own chat template."""
    vqgan: Path | None = None
    """What makes images codes, where it is not beside the model: a folder, or LWM's file."""
    # Without a name it has no group of its own in the help.
    given: Annotated[ModelOverrides, tyro.conf.arg(name="")] = NO_OVERRIDES
    """What the model's files do not say."""


Model = Annotated[str, tyro.conf.Positional]
Flat = tyro.conf.OmitArgPrefixes
