"""Loads a model from files or by name onto a mesh, ready to generate."""

from pathlib import Path
from typing import Literal

import jax

from lwm import renamed
from lwm.convert.huggingface import is_not_weight
from lwm.convert.lora import place_adapter, read_adapter
from lwm.convert.open import open_model_files as open_files
from lwm.convert.weights import build_llama
from lwm.devices import machine
from lwm.errors import UserError
from lwm.generate.language_model import LanguageModel
from lwm.model.config import (
    BITS,
    NO_OVERRIDES,
    CacheDtype,
    Compute,
    ModelOverrides,
    Storage,
    compute_dtype,
    usual_cache,
)
from lwm.model.llama import check_mesh
from lwm.plan.fit import require_fit
from lwm.progress import Progress
from lwm.sampling_params import LWM_SAMPLING
from lwm.sharding import make_mesh
from lwm.vqgan.checkpoint import require_codes_for

_MIN_CONTEXT = 1024
"""Tokens for which memory is required at loading if the caller names no context."""

__getattr__ = renamed.look_up(__name__)


def load(
    name_or_path: str | Path,
    *,
    mesh: str = "1,1,1,1",
    dtype: Storage | Literal["stored"] = "float32",
    template: str | None = None,
    vqgan: str | Path | None = None,
    given: ModelOverrides = NO_OVERRIDES,
    pool_tokens: int | None = None,
    cache_dtype: CacheDtype | None = None,
    lora: str | Path | None = None,
    progress: Progress = lambda done, total: None,
) -> LanguageModel:
    """Loads a model; one that `lwm models` lists or that is on the hub is fetched first.

    Args:
        name_or_path: A known name, a Hugging Face folder, a GGUF file, LWM's parameters (their
            folder, their file, or `params::FILE`), a hub's `org/name`, or the folder of a LoRA
            adapter, which is added to the weights of its model.
        mesh: Devices per axis dp, fsdp, tp, sp; `1,1,4,1` is tensor parallelism over four.
        dtype: Type of weights and activations. `int8` and `int4` hold the matrices in eight and
            in four bits, `stored` in the types of the files, as GGUF's Q8_0, Q5_1 or Q4_0; all
            three compute in float32.
        template: `lwm` or Jinja source in place of the model's own chat template.
        vqgan: The VQGAN of images, if it is not beside the model.
        given: Values that the files lack or have wrong: RoPE theta, context, sizes of LWM's models.
        pool_tokens: Tokens in the cache of each device, for all answers at once; None: it grows
            with what is asked, as memory allows.
        cache_dtype: Type of keys and values in the cache; None: float32 or bfloat16, as the dtype.
            int8 has a scale for each token and head.
        lora: Folder of a LoRA adapter of the model, as PEFT saves it. It stays beside the weights,
            so that these may be of few bits.
        progress: Called with the number of tensors loaded.

    Raises:
        UserError: The model cannot be found, read or placed on the mesh, or does not fit, or the
            VQGAN has other codes.
    """
    if pool_tokens is not None and pool_tokens < 1:
        raise UserError(f"pool_tokens {pool_tokens} must be 1 or above")
    opened = open_files(name_or_path, given=given)
    config, devices = opened.config, make_mesh(mesh)
    vqgan_file = opened.vqgan if vqgan is None else Path(vqgan)
    if vqgan_file is not None and (config.tokens.vision or vqgan is not None):
        require_codes_for(vqgan_file, config.tokens)
    check_mesh(config, devices)
    adapter = None if lora is None else place_adapter(read_adapter(Path(lora)), config, devices)
    held = opened.held_as(dtype)
    dp, fsdp, tp, sp = devices.devices.shape
    require_fit(
        config,
        name=str(name_or_path),
        context=(pool_tokens or 0) * sp or given.context or _MIN_CONTEXT,
        mesh=(dp, fsdp, tp, sp),
        dtype=held,
        cache=cache_dtype,
        machine=machine(),
        remedy=None if pool_tokens is None else "give fewer pool_tokens",
    )
    llama = build_llama(
        config,
        opened.tensors,
        opened.table,
        mesh=devices,
        compute=Compute(dtype="float32" if dtype == "stored" else compute_dtype(held)),
        bits="stored" if dtype == "stored" else BITS.get(dtype),
        ignore=lambda name: is_not_weight(name, config),
        progress=progress,
    )
    if adapter is not None:
        with jax.set_mesh(devices):
            llama = adapter.on(llama)
    return LanguageModel(
        name=str(name_or_path),
        llama=llama,
        tokenizer=opened.tokenizer,
        mesh=devices,
        template=template,
        sampling=opened.sampling.over(LWM_SAMPLING),
        vqgan_file=vqgan_file,
        source=opened.source,
        adapter=opened.adapter if lora is None else Path(lora).expanduser(),
        pool_tokens=pool_tokens,
        cache_dtype=cache_dtype or usual_cache(held),
    )
