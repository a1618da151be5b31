"""Questions that hold images, and questions whose answer is one."""

import dataclasses

import numpy as np
import pytest

from lwm.data.captions import ASK, request
from lwm.errors import UserError
from lwm.eval.answer import ModelAnswerer
from lwm.eval.endpoint import EndpointAnswerer
from lwm.eval.question import GREEDY
from lwm.eval.server import Server
from lwm.eval.subject import Subject
from lwm.eval.vision import read_pairs
from lwm.generate.vision import DrawRequest, generate_frames
from lwm.sampling_params import FrameSampling, VisionSampling


@pytest.fixture(scope="module")
def pairs():
    return read_pairs(("shipped:clips",), count=2)


def drawn(model, caption, **changes):
    encoder = Subject.of_model(model).encoder
    asked = encoder.with_images(
        None,
        request(caption, "image").parts,
        max_tokens=model.grammar.size(1),
        frames=1,
        truth={},
    )
    return dataclasses.replace(asked, **changes)


def ask(model, *questions):
    answerer = ModelAnswerer(model, tokens=1024)
    answers = dict((id(asked), response) for asked, response in answerer.answers(questions))
    return [answers[id(asked)] for asked in questions]


def generated(model, caption, sampling, seed):
    asked = DrawRequest(prompts=(caption,), sampling=VisionSampling(image=sampling), seed=seed)
    ((_, frame),) = generate_frames(model, asked)
    return frame.codes


def test_a_clip_in_a_message_is_described_and_images_are_those_of_generate(tiny_vision, pairs):
    encoder = Subject.of_model(tiny_vision).encoder
    clip, other = pairs
    shown = encoder.with_images(
        None, (ASK["video"], clip.vision), max_tokens=24, truth={"caption": clip.caption}
    )
    assert (shown.message, shown.visions, shown.is_text) == (ASK["video"], [clip.vision], False)
    assert len(shown.ids) > 4 * 65
    sampling = VisionSampling(image=FrameSampling(guidance=2.0, temperature=3.0))
    guided = [drawn(tiny_vision, clip.caption, sampling=sampling, seed=seed) for seed in (3, 4)]
    said, made, *sampled = ask(tiny_vision, shown, drawn(tiny_vision, other.caption), *guided)
    assert (said.text.strip(), said.codes) == (clip.caption, None)
    assert (made.text, made.completion_tokens) == ("", 65)
    assert made.codes is not None
    np.testing.assert_array_equal(made.codes[0], generated(tiny_vision, other.caption, GREEDY, 0))
    # With guidance and seeds, too.
    known = [generated(tiny_vision, clip.caption, sampling.image, seed) for seed in (3, 4)]
    for one, codes in zip(sampled, known, strict=True):
        assert one.codes is not None
        np.testing.assert_array_equal(one.codes[0], codes)
    assert (known[0] != known[1]).any()


def test_models_and_servers_of_text_refuse_images_in_a_line(tiny_vision, tiny_model, pairs):
    encoder = Subject.of_model(tiny_model).encoder
    with pytest.raises(UserError, match="reads no vision"):
        encoder.with_images(None, (pairs[0].vision,), max_tokens=8, truth={})
    with pytest.raises(UserError, match="an image is asked for, but the model reads and writes"):
        encoder.with_images(None, ("a cat",), max_tokens=65, frames=1, truth={})
    asked = drawn(tiny_vision, "a cat")
    server = EndpointAnswerer(Server(url="http://127.0.0.1:9/v1", retries=0), "some")
    with pytest.raises(UserError, match="is asked in text only"):
        list(server.answers([asked]))
    with pytest.raises(UserError, match="tiny reads and writes text only"):
        ask(tiny_model, dataclasses.replace(asked, ids=[1, 2]))
