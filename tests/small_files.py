"""Small valid files of every kind that is read, for `tests/mutations.py`."""

import io
import json
import struct
import tarfile
import zipfile
from typing import Any

import av
import numpy as np
import tokenizers
from PIL import Image

TEMPLATE = (
    "{%- if tools %}{{ tools | tojson(indent=2) }}{% endif -%}{% set ns = namespace(n=0) %}"
    "{% for m in messages %}{{ '<|' + m.role + '|>' }}{{ m['content'] | trim | upper }}"
    "{% set ns.n = ns.n + 1 %}{{ '<|im_end|>' * 1 }}{% endfor %}"
    "{% macro add(a, b=2) %}{{ a ~ b }}{% endmacro %}{{ add('x', ns.n * 10) }}"
    "{% if add_generation_prompt %}{{ '%s:' % 'assistant' }}{% endif %}"
)
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 258,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "eos_token_id": [257],
    "tie_word_embeddings": True,
}
RECORDS = [
    {"text": "One document."},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {"parts": [{"type": "text", "text": "c"}, {"type": "image", "vision": [1, 2, 3, 4]}]},
    {"fields": "[question],answer", "question": "d", "answer": "e"},
    {"caption": "f", "vision": [1, 2, 3, 4], "frames": 1},
    {"ids": [1, 2, 3], "learn": [0, 1, 1]},
    {"messages": [{"role": "user", "content": "g"}, {"role": "assistant", "tool_calls": []}]},
]


def tokenizer_json() -> bytes:
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    table = {letter: number for number, letter in enumerate(letters)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(table, []))
    made.normalizer = tokenizers.normalizers.NFC()
    split = tokenizers.Regex(r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(split, "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<s>", "<|im_end|>"])
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single=["<s>", "$A"], special_tokens=[("<s>", 256)]
    )
    return made.to_str().encode()


def tokenizer_config() -> dict[str, Any]:
    plain = {"special": True, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "added_tokens_decoder": {
            "256": {"content": "<s>", **plain},
            "257": {"content": "<|im_end|>", **plain},
        },
        "bos_token": {"content": "<s>"},
        "eos_token": "<|im_end|>",
        "pad_token": None,
        "add_bos_token": True,
        "chat_template": [{"name": "default", "template": TEMPLATE}],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


_KINDS = {bool: 7, int: 4, float: 6, str: 8, list: 9}


def gguf_value(value: Any) -> bytes:
    """Returns the type and the bytes of a value; a list is of the type of its first item."""
    if isinstance(value, list):
        kind = _KINDS.get(type(value[0]), 8) if value else 4
        items = [gguf_value(each)[4:] for each in value]
        return struct.pack("<IIQ", 9, kind, len(items)) + b"".join(items)
    if type(value) is int and not 0 <= value < 1 << 32:
        return struct.pack("<IQ", 10, value % (1 << 64))
    if isinstance(value, str):
        data = value.encode(errors="replace")
        return struct.pack("<IQ", 8, len(data)) + data
    code = {bool: "?", int: "I", float: "f"}.get(type(value))
    if code == "f" and abs(value) > 3e38:
        return struct.pack("<Id", 12, value)
    return struct.pack("<I" + code, _KINDS[type(value)], value) if code else gguf_value(str(value))


def gguf(metadata: dict[str, Any]) -> bytes:
    """Returns a model of one layer, with 8 dimensions and a vocabulary of bytes."""
    block = {"attn_norm": (8,), "ffn_norm": (8,), "attn_q": (8, 8), "attn_k": (4, 8)}
    block |= {"attn_v": (4, 8), "attn_output": (8, 8), "ffn_gate": (8, 8), "ffn_up": (8, 8)}
    block |= {"ffn_down": (8, 8)}
    shapes = {"token_embd.weight": (258, 8), "output_norm.weight": (8,), "rope_freqs.weight": (2,)}
    shapes |= {f"blk.0.{name}.weight": shape for name, shape in block.items()}
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(metadata))
    for key, value in metadata.items():
        data = key.encode(errors="replace")
        head += struct.pack("<Q", len(data)) + data + gguf_value(value)
    place = 0
    for name, shape in shapes.items():
        head += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *shape[::-1]) + struct.pack("<IQ", 0, place)
        place += -(-4 * int(np.prod(shape)) // 32) * 32
    return head + bytes(-len(head) % 32) + np.ones(place // 4, "<f4").tobytes()


def gguf_metadata() -> dict[str, Any]:
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    return {
        "general.architecture": "llama",
        "general.alignment": 32,
        "llama.block_count": 1,
        "llama.context_length": 64,
        "llama.embedding_length": 8,
        "llama.feed_forward_length": 8,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": 4,
        "llama.rope.scaling.type": "linear",
        "llama.rope.scaling.factor": 2.0,
        "llama.attention.sliding_window": 0,
        "llama.vocab_size": 258,
        "lwm.token_space.text": 258,
        "lwm.token_space.vision": 0,
        "lwm.token_space.codes": 0,
        "lwm.sampling": '{"image": {"top_k": 5}}',
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": [*letters, "<s>", "<|im_end|>"],
        "tokenizer.ggml.token_type": [1] * 256 + [3, 3],
        "tokenizer.ggml.scores": [0.0] * 258,
        "tokenizer.ggml.merges": ["a b", "Ġ a"][:0],
        "tokenizer.ggml.bos_token_id": 256,
        "tokenizer.ggml.eos_token_id": 257,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.chat_template": TEMPLATE,
    }


def picture(kind: str, **options: Any) -> bytes:
    rows = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    frames = [Image.fromarray(np.roll(rows, 5 * i, 1)) for i in range(4)]
    more = {"save_all": True, "append_images": frames[1:]} if options.pop("moving", 0) else {}
    frames[0].save(buffer := io.BytesIO(), kind, **more, **options)
    return buffer.getvalue()


def video(kind: str, codec: str) -> bytes:
    buffer = io.BytesIO()
    rows = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    with av.open(buffer, "w", format=kind) as container:
        stream: Any = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for i in range(6):
            frame = av.VideoFrame.from_ndarray(np.roll(rows, 5 * i, 1))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def archive(name: str, lines: bytes) -> bytes:
    files = {"metadata.jsonl": lines, "a.png": picture("PNG"), "b/c.gif": picture("GIF", moving=1)}
    files["a.json"] = json.dumps({"caption": "a square"}).encode()
    buffer = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
            for each, data in files.items():
                made.writestr(each, data)
    else:
        with tarfile.open(fileobj=buffer, mode="w") as made:
            for each, data in files.items():
                member = tarfile.TarInfo(each)
                member.size = len(data)
                made.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def listed() -> list[Any]:
    return [
        {"file_name": "a.png", "caption": ["a square", "noise"], "tags": {"n": 1}},
        {"file_name": "b/c.gif", "messages": [{"role": "user", "content": "What?"}]},
    ]
