"""Section of a model card on the use of the model, by this package and by others."""

from typing import Literal

from lwm.convert.card_markdown import code_block
from lwm.model.config import LlamaConfig
from lwm.vqgan.config import VQGANConfig
from lwm.vqgan.vqmodel import FOLDER as VQMODEL, is_vqmodel


def use(
    model: LlamaConfig | None,
    vqgan: VQGANConfig | None,
    *,
    target: Literal["hf", "lwm-original"],
    is_adapter: bool,
) -> str:
    """Returns the section on the use of a model: by commands of this package, and without it.

    Args:
        model: The language model; None for a VQGAN alone.
        vqgan: The VQGAN in the folder.
        target: Format of the folder.
        is_adapter: Whether the folder holds an adapter of the language model alone.
    """
    if model is None:
        return code_block("sh", "lwm tokenize FILES --vqgan FOLDER --out SHARDS")
    if is_adapter:
        return _use_adapter()
    lines = ["lwm chat FOLDER", 'lwm generate text FOLDER "The sea"']
    if vqgan is not None and vqgan.decoder:
        lines.append('lwm generate image FOLDER "a lighthouse" -o lighthouse.png')
    text = code_block("sh", *lines)
    if target != "hf":
        flags = "--load_llama_config=json::FOLDER/llama_config.json"
        flags += " --load_checkpoint=params::FOLDER/params --tokenizer=FOLDER"
        if vqgan is not None:
            flags += " --vqgan_checkpoint=FOLDER/vqgan"
        return f"{text}\n\nThe programs of the original LWM take:\n\n{code_block('text', flags)}"
    elsewhere = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")',
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
    ]
    if vqgan is not None and is_vqmodel(vqgan):
        elsewhere.insert(0, "from diffusers import VQModel")
        elsewhere.append(f'vqgan = VQModel.from_pretrained("FOLDER", subfolder="{VQMODEL}")')
    note = ""
    if model.tokens.vision:
        note = (
            "\n\n`generate` then writes text alone: `generation_config.json` suppresses the vision "
            "ids. For images, set `model.generation_config.suppress_tokens = None`, and allow only "
            "the ids that the layout above has next."
        )
    return f"{text}\n\nWithout `lwm`:\n\n{code_block('python', *elsewhere)}{note}"


def _use_adapter() -> str:
    text = code_block("sh", "lwm chat MODEL --lora FOLDER", "lwm convert FOLDER MERGED")
    elsewhere = [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        'model = AutoModelForCausalLM.from_pretrained("MODEL", dtype="auto")',
        'model = PeftModel.from_pretrained(model, "FOLDER")',
    ]
    return f"{text}\n\nWithout `lwm`:\n\n{code_block('python', *elsewhere)}"
