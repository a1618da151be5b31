"""Training of low-rank adapters: their first values, the model that they change, and its name."""

import functools
import os
from pathlib import Path

import jax
import jax.random as jr
from jax.sharding import Mesh

from lwm.convert.card import AdapterFacts
from lwm.convert.huggingface import is_not_weight
from lwm.convert.open import ModelFiles
from lwm.convert.weights import build_llama
from lwm.errors import UserError
from lwm.model.config import BITS, LlamaConfig, LoRA
from lwm.model.llama import Llama
from lwm.model.lora import Adapter
from lwm.train.config import Run


def require_adaptable(config: Run, files: ModelFiles | None, model: LlamaConfig) -> ModelFiles:
    """Returns the model that is adapted; refuses adapters where all weights have to be trained.

    Raises:
        UserError: The run has no model to start from, or adds ids to it.
    """
    rank = config.lora.rank
    if files is None:
        raise UserError(
            f"lora.rank {rank} needs a model to adapt; give --init, or leave out --lora.rank to "
            "train all weights"
        )
    if model.tokens != files.config.tokens:
        raise UserError(
            f"the model of init {config.init} has no ids for the codes, whose rows an adapter "
            "does not train; leave out --lora.rank to train all weights"
        )
    return files


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def first_adapter(model: LlamaConfig, lora: LoRA, seed: int) -> Adapter:
    """Returns the adapter that training starts from, under the mesh in use."""
    return Adapter.init(model, lora, key=jr.key(seed))


def read_frozen(config: Run, files: ModelFiles, model: LlamaConfig, mesh: Mesh) -> Llama:
    """Reads the weights that the adapters change, and that are not trained themselves.

    Raises:
        UserError: See `lwm.convert.open.read_llama`.
    """
    held = config.lora.frozen_dtype
    return build_llama(
        model,
        files.tensors,
        files.table,
        mesh=mesh,
        compute=config.compute,
        stacked=True,
        dtype="bfloat16" if held == "bfloat16" else "float32",
        bits=BITS.get(held),
        ignore=lambda name: is_not_weight(name, model),
    )


def adapter_facts(adapter: Adapter, config: Run, files: ModelFiles) -> AdapterFacts:
    """Returns the facts of a run's adapter for its card."""
    size = sum(leaf.size for leaf in jax.tree.leaves(adapter))
    return AdapterFacts(base=base_name(config, files), lora=config.lora, parameters=size)


def base_name(config: Run, files: ModelFiles) -> str:
    """Returns the model that a run adapts, as others find it: its name on the hub, or its path."""
    if files.known is not None:
        return files.known.repos[0] if files.known.repos else files.known.name
    name = str(config.init)
    is_here = os.path.exists(files.place) and not _is_on_hub(files.place)
    return str(files.place.absolute()) if is_here else name


def _is_on_hub(path: Path) -> bool:
    return any(part.startswith("models--") for part in path.absolute().parts)
