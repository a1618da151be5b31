"""Logits of whole texts, without the cache."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from lwm.errors import UserError
from lwm.generate.loaded import LoadedModel
from lwm.model.layers import Packing
from lwm.model.llama import Llama
from lwm.sharding import TOKENS, put

_STEP = 64
"""Lengths are padded to a multiple of this, so that few shapes are compiled."""


def logits_of(model: LoadedModel, rows: Sequence[Sequence[int]]) -> list[Float[np.ndarray, "T V"]]:
    """Returns the logits after each id of each row; V has the ids in use, without padding.

    Raises:
        UserError: A row is empty or exceeds the context, or the model runs in several processes.
    """
    if jax.process_count() > 1:
        raise UserError("logits are computed in one process; load the model in one")
    for number, ids in enumerate(rows, 1):
        if not 1 <= len(ids) <= model.context:
            raise UserError(
                f"text {number} of {len(rows)} has {len(ids):,} tokens; logits need 1 to "
                f"{model.context:,}, the context of {model.name}"
            )
    if not rows:
        return []
    dp, fsdp, _, sp = model.mesh.devices.shape
    step = _STEP * sp
    length = -(-max(map(len, rows)) // step) * step
    tokens = np.zeros((-(-len(rows) // (dp * fsdp)) * dp * fsdp, length), np.int32)
    for row, ids in zip(tokens, rows, strict=False):
        row[: len(ids)] = ids

    def run() -> Float[np.ndarray, "B S V"]:
        with jax.set_mesh(model.mesh):
            return np.asarray(_logits(model.llama, put(tokens, model.mesh, TOKENS)))

    size = model.llama.config.tokens.size
    found = model.engine.run(run)
    return [found[number, : len(ids), :size] for number, ids in enumerate(rows)]


@jax.jit
def _logits(llama: Llama, tokens: Int[Array, "B S"]) -> Float[Array, "B S V"]:
    return llama(tokens, Packing.whole(*tokens.shape))
