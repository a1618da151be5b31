"""Questions as callers write them, and answers in tasks, by a small model that draws."""

import asyncio
import base64
import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import lwm
from lwm.errors import UserError
from lwm.generate.questions import texts_of
from lwm.model.layers import Packing
from lwm.sharding import TOKENS, put

SIDE = 16


@pytest.fixture(scope="module")
def model(drawer, open_painter):
    """It writes rather than draws."""
    return open_painter(drawer.mesh, eager=0.0)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(3).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def png(pixels, tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "a picture.png"
    Image.fromarray(pixels).save(path)
    return path


def answer(model, question):
    return model.chat(question, max_tokens=8)


def test_an_image_is_the_same_however_it_is_given(model, pixels, png):
    seen = model.see(png)
    wanted = answer(model, ["What?", seen])
    data = f"data:image/png;base64,{base64.b64encode(png.read_bytes()).decode()}"
    parts = [
        png,
        png.read_bytes(),
        pixels,
        Image.fromarray(pixels),
        {"type": "image_url", "image_url": {"url": data}},
        {"type": "image_url", "image_url": png.as_uri()},
        {"type": "image", "image": Image.fromarray(pixels)},
        {"type": "image", "path": str(png)},
        {"type": "image", "url": png.as_uri()},
        {"type": "image", "vision": seen.codes[0].tolist(), "frames": 1},
    ]
    for part in parts:
        assert answer(model, ["What?", part]) == wanted
    text = {"type": "text", "text": "What?"}
    assert answer(model, [{"role": "user", "content": [text, parts[-2]]}]) == wanted
    assert answer(model, lwm.Message("user", ["What?", seen])) == wanted


def test_frames_of_a_video_are_chosen_by_its_part(model, pixels):
    frames = np.stack([pixels + n for n in range(6)])
    seen = model.see(frames, max_frames=2)
    assert (seen.kind, len(seen.codes), seen.times) == ("video", 2, None)
    part = {"type": "video", "video": frames, "num_frames": 2}
    assert answer(model, ["What?", part]) == answer(model, ["What?", seen])


def test_messages_have_a_system_turn_and_a_history(model):
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": [{"type": "text", "text": "Three?"}]},
    ]
    said = [
        lwm.Message("system", "Be brief."),
        lwm.Message("user", "One?"),
        lwm.Message("assistant", "Two."),
        lwm.Message("user", "Three?"),
    ]
    assert model.count_tokens(turns) == model.count_tokens(said) > model.count_tokens(said[1])
    assert answer(model, turns) == answer(model, said) == model.stream(turns, max_tokens=8).read()
    (done,) = model.batch(
        [lwm.TextRequest(prompt=turns[1:2], params=lwm.SamplingParams(max_tokens=8))]
    )
    assert done.completion.text == answer(model, "One?")
    # A document comes before the first question, whatever is before that.
    conversation = lwm.Conversation(model, document="Long.", system="Be brief.")
    pieces = conversation.ask("One?", params=lwm.SamplingParams(max_tokens=8))
    first = model.chat(said[:2], document="Long.", max_tokens=8)
    assert "".join(piece for piece in pieces if isinstance(piece, str)) == first
    assert repr(conversation).endswith(": 1 questions>")


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (5, "a question is a text, a list of texts and images, or messages, not 5"),
        (None, "or messages, not None"),
        ([], "the question is empty"),
        ([5], "a part of a question is a text, an image or a video .* not 5"),
        ([{"role": "user", "content": "a"}, "b"], "messages and parts of one question are mixed"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "ends with an"),
        ([{"type": "image"}], "a part of type image has no 'image': give a path"),
        ([{"type": "image_url", "image_url": "https://a.b/c.png"}], "is on the web; download it"),
        ([{"type": "image_url", "image_url": "data:image/png;base64"}], "data: address is malform"),
        ([{"a": 1}], "a part should be text, an image or a video"),
        ([Path("missing.png")], "missing.png"),
    ],
)
def test_other_questions_are_refused_in_a_line(model, question, message):
    with pytest.raises(UserError, match=message):
        model.chat(question)


@pytest.mark.parametrize("value", [5, None, [5], b"a"])
def test_other_values_than_texts_are_refused_in_a_line(value):
    with pytest.raises(UserError, match="give a text or a list of texts, not "):
        texts_of(value)


def test_tasks_await_answers_that_are_generated_together(model):
    async def main():
        questions = [f"What is {n}?" for n in range(5)]
        together = await asyncio.gather(*(model.achat(each, max_tokens=8) for each in questions))
        assert together == [answer(model, each) for each in questions]
        pieces = [piece async for piece in model.stream("The sea", max_tokens=6)]
        assert "".join(pieces) == await model.agenerate("The sea", max_tokens=6)
        assert await model.agenerate(["The sea", "One"], max_tokens=6) == model.generate(
            ["The sea", "One"], max_tokens=6
        )

    asyncio.run(main())


def test_a_task_that_is_cancelled_ends_its_answer(model):
    async def main():
        answer = model.stream("The sea", max_tokens=200, ignore_eos=True)
        begun = asyncio.Event()

        async def read():
            async for _ in answer:
                begun.set()

        task = asyncio.create_task(read())
        await asyncio.wait_for(begun.wait(), 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [piece async for piece in answer] == []
        assert len(answer.ids) < 200
        # The engine is free for others.
        assert await model.achat("One?", max_tokens=4) is not None

    asyncio.run(main())


def test_logits_of_texts_are_those_of_each_alone_without_padding(model):
    texts = ["The sea", "One", "A long text " * 12]
    found = model.logits(texts)
    for text, logits in zip(texts, found, strict=True):
        ids = model.encode_prompt(text)
        assert logits.shape == (len(ids), model.llama.config.tokens.size)
        with jax.set_mesh(model.mesh):
            tokens = put(np.array([ids], np.int32), model.mesh, TOKENS)
            wanted = jax.jit(lambda m, t: m(t, Packing.whole(*t.shape)))(model.llama, tokens)
        assert jnp.abs(wanted[0, :, : logits.shape[1]] - logits).max() < 1e-5
    assert model.logits([]) == []
    with pytest.raises(UserError, match=r"text 1 of 1 has [\d,]+ tokens; logits need 1 to"):
        model.logits("a b c " * 2000)


def test_short_reprs(model, pixels):
    assert repr(model.see(pixels)) == "<image: 16 codes, 16 × 16 px>"
    assert "text, images and video, float32, context" in repr(model)
    frame = lwm.Frame(np.arange(16), 3, True)
    assert repr(frame) == "<frame 3: 16 codes, the last>"
    drawn = model.draw("One", n=2)
    assert drawn._repr_html_().count("<img") == 2
    assert drawn[0]._repr_html_() is None
    made = Image.open(io.BytesIO(drawn[0]._repr_png_()))
    assert np.array_equal(np.asarray(made)[::16, ::16], drawn[0].pixels[0])
    seen = model.see(np.stack([pixels] * 3))
    assert seen._repr_png_() is None
    assert "image/webp" in seen._repr_html_()
