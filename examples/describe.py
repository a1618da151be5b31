"""Answers a question about a picture with an exported vision-language model.

    python examples/describe.py FOLDER picture.jpg "What is shown in this image?"

Needs torch, transformers, diffusers and Pillow only.
"""

import argparse

import torch
from diffusers import VQModel
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def square(picture: Image.Image, side: int) -> torch.Tensor:
    """Returns the centre of a picture, as numbers from -1 to 1."""
    picture = picture.convert("RGB")
    scale = side / min(picture.size)
    wide, high = (max(side, int(scale * each)) for each in picture.size)
    picture = picture.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = round((wide - side) / 2), round((high - side) / 2)
    picture = picture.crop((left, top, left + side, top + side))
    values = torch.tensor(list(picture.tobytes()), dtype=torch.float32) / 127.5 - 1
    return values.reshape(1, side, side, 3).permute(0, 3, 1, 2)


def codes_of(vqvae: VQModel, picture: Image.Image) -> torch.Tensor:
    """Returns the codes of a picture."""
    latents = vqvae.encode(square(picture, vqvae.config.sample_size).to(DEVICE)).latents
    _, _, (_, _, codes) = vqvae.quantize(latents)
    return codes


@torch.inference_mode()
def describe(folder: str, file: str, question: str, *, max_new_tokens: int = 128) -> str:
    """Returns the model's answer to a question about a picture.

    Args:
        folder: What `lwm convert` wrote, or the `model` folder of a run.
        file: The picture; of a clip, the first frame.
        question: The question.
        max_new_tokens: Length of the answer at most.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(DEVICE).eval()
    vqvae = VQModel.from_pretrained(folder, subfolder="vqvae").to(DEVICE).eval()
    space = model.config.lwm
    with Image.open(file) as picture:
        codes = codes_of(vqvae, picture)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    content = [{"type": "text", "text": question}, {"type": "image"}]
    turns = [{"role": "user", "content": content}]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    # The template marks the place of the picture; as in training, the texts around it are encoded
    # each by itself.
    before, after = text.rsplit("<vision></vision>", 1)
    shown = [space["text"] + code for code in [*codes.tolist(), space["codes"] + 1]]
    ids = [*encode(before), *encode("<vision>"), *shown, *encode("</vision>"), *encode(after)]
    prompt = torch.tensor([ids], device=DEVICE)
    # `generation_config.json` leaves out the ids of images, so that the answer is text alone.
    out = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=max_new_tokens,
        do_sample=False,
    )
    return tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True).strip()


def main() -> None:
    """Prints an answer; the options are those of `describe`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("file")
    parser.add_argument("question", nargs="?", default="What is shown in this image?")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    print(describe(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
