"""A program of a user, checked by mypy and pyrefly; nothing runs it."""

from collections.abc import Generator
from typing import assert_type

import lwm

model = lwm.load("smollm2-135m-instruct", dtype="bfloat16", mesh="1,1,2,1")
assert_type(model, lwm.LanguageModel)

assert_type(model.chat("What is the capital of France?", max_tokens=40, temperature=0.7), str)
assert_type(model.generate("The sea", max_tokens=40, top_p=0.9, seed=1), str)
assert_type(model.generate(["The sea", "Once"], max_tokens=40), list[str])
assert_type(model.chat([{"role": "user", "content": "Hello"}]), str)
assert_type(model.count_tokens("The sea"), int)


async def main() -> None:
    """Awaits answers."""
    assert_type(await model.achat("Hello", max_tokens=8), str)
    async for piece in model.stream("The sea"):
        assert_type(piece, str | lwm.Frame)


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
assert_type(pictures, lwm.Visions)

answer = model.stream("The sea", max_tokens=None, temperature=0.7)
assert_type(answer, lwm.Answer)
for piece in answer:
    assert_type(piece, str | lwm.Frame)
assert_type(answer.usage.prompt_tokens, int)
if answer.finish_reason == "length":
    print(answer.ids, answer.logprobs)
answer = model.stream([lwm.Message("user", "What is the capital of France?")])
answer.close()

requests = [
    lwm.TextRequest(prompt="The sea", params=lwm.SamplingParams(temperature=1.0), n=4),
    lwm.TextRequest(prompt=[lwm.Message("user", "Hello")], priority=1),
]
for result in model.batch(requests, progress=lambda done, total: print(done, total)):
    assert_type(result, lwm.Result)
    assert_type(result.completion, lwm.Completion | None)
    assert_type(result.error, lwm.UserError | None)

completions = model.generate_batch(["Once", "Twice"], max_tokens=8)
assert_type(completions, list[lwm.Completion])
assert_type(completions[0].text, str)
assert_type(completions[0].logprobs, tuple[float, ...])
