"""A program of a user, checked by mypy and pyrefly; nothing runs it."""

from collections.abc import Generator
from typing import assert_type

import lwm

model = lwm.load("smollm2-135m-instruct", dtype="bfloat16", mesh="1,1,2,1")
assert_type(model, lwm.LanguageModel)

assert_type(model.chat("What is the capital of France?", max_tokens=40, temperature=0.7), str)
assert_type(model.generate("The sea", max_tokens=40, top_p=0.9, seed=1), str)

conversation = lwm.Conversation(model, document="A long text.")
stream = conversation.ask("What is it about?", params=lwm.SamplingParams(max_tokens=20))
assert_type(stream, Generator[str | lwm.Frame])
for piece in stream:
    print(piece if isinstance(piece, str) else piece.codes.tolist())
assert_type(conversation.messages, list[lwm.Message])

vision = model.see("tiger.gif", max_frames=4)
assert_type(vision, lwm.Vision)
assert_type(model.chat([vision, "What is shown?"], max_tokens=20), str)

sampling = lwm.VisionSampling(image=lwm.FrameSampling(guidance=2.0))
pictures = model.draw("a tiger", frames=4, n=2, seed=3, sampling=sampling)
assert_type(pictures, list[lwm.Vision])

completions = model.generate_batch(["Once", "Twice"], max_tokens=8)
assert_type(completions, list[lwm.Completion])
assert_type(completions[0].text, str)
assert_type(completions[0].logprobs, tuple[float, ...])
