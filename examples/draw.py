"""Generates an image or a clip from a text with an exported vision-language model.

    python examples/draw.py FOLDER "a red fox" --out fox.png
    python examples/draw.py FOLDER "a red fox" --frames 4 --out fox.gif

Needs torch, transformers, diffusers and Pillow only.
"""

import argparse
from pathlib import Path

import torch
from diffusers import VQModel
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class WholeFrames(LogitsProcessor):
    """The grammar of frames: so many codes, then the id that ends a frame, or all of them."""

    def __init__(self, model: PreTrainedModel, *, start: int, size: int, frames: int):
        """Takes the ids before the first frame, the codes of a frame, and the number of frames."""
        space = model.config.lwm
        self.first = space["text"]
        self.end_of_frame = space["text"] + space["codes"]
        self.start, self.size, self.frames = start, size, frames

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Rules out all ids but those that may come next."""
        frame, place = divmod(ids.shape[1] - self.start, self.size + 1)
        allowed = torch.full_like(scores, -torch.inf)
        if place < self.size:
            allowed[:, self.first : self.end_of_frame] = 0
        else:
            allowed[:, self.end_of_frame + (frame == self.frames - 1)] = 0
        return scores + allowed


def write_frames(
    model: PreTrainedModel,
    prompt: torch.Tensor,
    unprompted: torch.Tensor,
    *,
    size: int,
    frames: int,
    sampling: dict[str, dict[str, float]],
) -> torch.Tensor:
    """Returns the codes of frames.

    The first frame is sampled as an image, and the others as a video: LWM's models want strong
    guidance for the one, and fewer candidates for the others.

    Args:
        model: The language model.
        prompt: Ids that end where the first code belongs.
        unprompted: The same without the prompt, for guidance.
        size: Codes of a frame.
        frames: Number of frames.
        sampling: Guidance, temperature, top_k and top_p of `image` and `video`.
    """
    given = prompt.shape[1]
    grammar = WholeFrames(model, start=given, size=size, frames=frames)
    ids = prompt
    for how, end in ((sampling["image"], 1), (sampling["video"], frames)):
        count = given + end * (size + 1) - ids.shape[1]
        if count == 0:
            continue
        random = {key: how[key] for key in ("temperature", "top_k", "top_p")}
        ids = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            guidance_scale=how["guidance"],
            negative_prompt_ids=torch.cat([unprompted, ids[:, given:]], dim=1),
            logits_processor=LogitsProcessorList([grammar]),
            **({"do_sample": True, **random} if how["temperature"] else {"do_sample": False}),
        )
    return ids[0, given:].reshape(frames, size + 1)[:, :-1] - grammar.first


def decode(vqvae: VQModel, codes: torch.Tensor) -> list[Image.Image]:
    """Returns the pictures of the codes of frames."""
    side = round(codes.shape[1] ** 0.5)
    shape = (len(codes), side, side, vqvae.config.vq_embed_dim)
    pixels = vqvae.decode(codes, force_not_quantize=True, shape=shape).sample
    scaled = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
    return [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in scaled]


@torch.inference_mode()
def draw(
    folder: str,
    prompt: str,
    *,
    frames: int = 1,
    guidance: float | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    seed: int = 0,
) -> tuple[torch.Tensor, list[Image.Image]]:
    """Returns the codes and the pictures of an image or a clip.

    Args:
        folder: What `lwm convert` wrote, or the `model` folder of a run.
        prompt: Describes the image or the clip.
        frames: 1 for an image, more for a clip.
        guidance: Scale of classifier-free guidance; None for the model's own, 1 for none.
        temperature: Randomness; None for the model's own, 0 for the likeliest code each time.
        top_k: Samples from so many likeliest codes; None for the model's own, 0 for all.
        seed: Seed of the randomness.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(DEVICE).eval()
    vqvae = VQModel.from_pretrained(folder, subfolder="vqvae").to(DEVICE).eval()
    side = vqvae.config.sample_size // 2 ** (len(vqvae.config.block_out_channels) - 1)
    sampling = model.generation_config.lwm
    given = {"guidance": guidance, "temperature": temperature, "top_k": top_k}
    given = {key: value for key, value in given.items() if value is not None}
    model.generation_config.suppress_tokens = None  # else the model would write text alone

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    what = "an image" if frames == 1 else "a video"
    turns = [{"role": "user", "content": f"Generate {what} of {prompt}"}]
    asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    opening = encode("<vision>")
    torch.manual_seed(seed)
    codes = write_frames(
        model,
        torch.tensor([asked + opening], device=DEVICE),
        torch.tensor([encode(tokenizer.bos_token or "") + opening], device=DEVICE),
        size=side**2,
        frames=frames,
        sampling={kind: {**own, **given} for kind, own in sampling.items()},
    )
    return codes.cpu(), decode(vqvae, codes)


def main() -> None:
    """Writes an image or a clip to a file; the other options are those of `draw`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("prompt")
    parser.add_argument("--out", type=Path, default=Path("out.png"), help=".png, or .gif of a clip")
    parser.add_argument("--frames", type=int, default=1)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    out = options.pop("out")
    _, (first, *rest) = draw(**options)
    first.save(out, **({"save_all": True, "append_images": rest, "duration": 250} if rest else {}))
    print(out)


if __name__ == "__main__":
    main()
