"""One of two processes that answer together; also imported by a test.

python tests/answering_run.py COORDINATOR INDEX OUT.json [forever]
"""

import json
import os
import sys

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=4"
    os.environ["JAX_PLATFORMS"] = "cpu"

import jax

import lwm
from lwm.distributed import Processes, join
from lwm.generate.answer import Answer
from lwm.generate.language_model import LanguageModel
from lwm.sampling_params import FrameSampling, VisionSampling

MESH = "1,1,2,4"
LIKELIEST = FrameSampling(guidance=2.0, temperature=0.0)


def answer(model: LanguageModel) -> tuple[list, list[float]]:
    """Returns texts with a common beginning, codes of a picture, and likeliest ids of a text.

    The second part are their log-probabilities.
    """
    long = "A red circle moves to the left. " * 20
    texts = [model.generate(long + end, max_tokens=12) for end in ("Then", "Now", "Then")]
    sampling = VisionSampling(image=LIKELIEST)
    (picture,) = model.draw("a red circle", sampling=sampling)
    params = lwm.SamplingParams(max_tokens=4, logit_bias={70: 1.5})
    ids = model.tokenizer.encode("A red circle")
    scored = Answer(model, ids, params, top_logprobs=3, scores_from=1)
    text = "".join(map(str, scored))
    tops = [top for each in scored.top_logprobs + scored.prompt_top_logprobs for top in each]
    same = [*texts, picture.codes.tolist(), text, [token for token, _ in tops]]
    return same, [logprob for _, logprob in tops]


if __name__ == "__main__":
    coordinator, index, out, *forever = sys.argv[1:]
    join(Processes(coordinator=coordinator, count=2, index=int(index)))
    assert len(jax.devices()) == 8
    model = lwm.load("tiny-vision", mesh=MESH)
    if jax.process_index():
        model.follow()
        sys.exit()
    answers = answer(model)
    with open(out, "w", encoding="utf-8") as file:
        json.dump(answers, file)
    while forever:
        answer(model)
