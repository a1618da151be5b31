"""Previews of images and videos: their tokens, and frames as the model sees them."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from .media_requests import address, picture

ROUTE = "/v1/media/preview"


def image_part(data):
    return {"type": "image_url", "image_url": {"url": address(data)}}


def video_part(data, **more):
    return {"type": "video_url", "video_url": {"url": address(data, "video/mp4")}, **more}


def pixels_of(frames):
    found = []
    for frame in frames:
        head, _, data = frame["url"].partition(",")
        assert head == "data:image/png;base64"
        found.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))))
    return np.stack(found)


def test_an_image_is_shown_as_the_model_sees_it(served, drawing):
    data = picture("teal")
    found = served.post(ROUTE, part=image_part(data)).json()
    assert (found["kind"], found["num_frames"], found["times"]) == ("image", 1, None)
    assert found["shown"] == [0]
    wanted = drawing.decode_frames(drawing.see(data).codes)
    np.testing.assert_array_equal(pixels_of(found["frames"]), wanted)


def test_a_video_is_shown_in_a_few_frames_and_is_then_in_the_cache(served, drawing, video):
    part = video_part(video, num_frames=7)
    found = served.post(ROUTE, part=part, frames=3, model="tiny-vision").json()
    assert (found["kind"], found["num_frames"], found["shown"]) == ("video", 7, [0, 3, 6])
    seen = drawing.see(video, max_frames=7)
    np.testing.assert_allclose(found["times"], seen.times, atol=1e-6)
    np.testing.assert_array_equal(
        pixels_of(found["frames"]), drawing.decode_frames(seen.codes[[0, 3, 6]])
    )
    media, messages = served.service.media, [{"role": "user", "content": [part]}]
    hits, encoded = media.hits, media.frames_encoded
    counted = served.post("/tokenize", messages=messages, count_only=True).json()
    assert counted["image_tokens"] == found["tokens"]
    assert (media.hits, media.frames_encoded) == (hits + 1, encoded)


def test_frames_are_those_that_a_chat_would_take(served, video):
    found = served.post(ROUTE, part=video_part(video)).json()
    messages = [{"role": "user", "content": [video_part(video)]}]
    counted = served.post("/tokenize", messages=messages, count_only=True).json()
    assert counted["image_tokens"] == found["tokens"]
    assert len(found["frames"]) == len(set(found["shown"])) == min(16, found["num_frames"])
    assert found["shown"][-1] == found["num_frames"] - 1


def test_a_model_without_a_decoder_shows_no_frame(served, monkeypatch):
    monkeypatch.setattr(served.service, "draws", False)
    found = served.post(ROUTE, part=image_part(picture("navy"))).json()
    assert (found["frames"], found["shown"], found["num_frames"]) == ([], [], 1)
    assert found["tokens"] > 64


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"part": image_part(b"no picture")}, 400, "part.image_url.url"),
        ({"part": video_part(b"no video")}, 400, "part.video_url.url"),
        ({"part": {"type": "text", "text": "a"}}, 400, "part"),
        ({"part": image_part(picture()), "frames": 0}, 400, "frames"),
        ({"part": image_part(picture()), "frames": 65}, 400, "frames"),
        ({"part": image_part(picture()), "model": "other"}, 404, "model"),
        ({}, 400, "part"),
    ],
)
def test_wrong_fields_are_named(served, body, status, param):
    answer = served.client.post(ROUTE, json=body)
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param
    assert "\n" not in answer.json()["error"]["message"]


def test_more_frames_than_the_context_holds_are_refused(served, video):
    answer = served.post(ROUTE, part=video_part(video, num_frames=40))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
