"""Continues a text, or answers a question, with an exported model.

    python examples/sample_text.py FOLDER "Once upon a time"
    python examples/sample_text.py FOLDER "Who wrote Hamlet?" --chat

Needs torch and transformers only.
"""

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def sample(
    folder: str,
    prompt: str,
    *,
    chat: bool = False,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    """Returns the text that follows a prompt.

    Args:
        folder: What `lwm convert` wrote, or the `model` folder of a run.
        prompt: A text to continue; in a chat, a question.
        chat: Puts the prompt into the model's chat format.
        max_new_tokens: Length of the answer at most.
        temperature: Randomness; 0 takes the likeliest token each time.
        seed: Seed of the randomness.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(DEVICE).eval()
    if chat:
        turns = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
    else:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    how = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    torch.manual_seed(seed)
    # `generation_config.json` leaves out the ids of images, so that this writes text alone.
    ids = model.generate(**inputs.to(DEVICE), **how, max_new_tokens=max_new_tokens)
    text = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text.strip() if chat else text


def main() -> None:
    """Prints a sample; the options are those of `sample`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("prompt")
    parser.add_argument("--chat", action="store_true")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    print(sample(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
