"""Images and clips over HTTP: the same as in Python, in files of all formats, and streamed."""

import base64
import io
import json
import time

import av
import numpy as np
import openai
import pytest
from PIL import Image

import lwm
from lwm.generate import vision
from lwm.generate.answer import Answer
from lwm.generate.output import Frame
from lwm.generate.vision import DrawRequest, generate_visions
from lwm.media.text import read_text
from lwm.sampling_params import FrameSampling, SamplingParams, VisionSampling
from lwm.serve.images import partly

ROUTE, EDITS = "/v1/images/generations", "/v1/images/edits"
PROMPT = "a red circle"


def opened(file):
    """Returns the image of a base64 text."""
    return Image.open(io.BytesIO(base64.b64decode(file)))


def frames_of(file):
    image = opened(file)
    found = []
    for number in range(getattr(image, "n_frames", 1)):
        image.seek(number)
        found.append(np.asarray(image.convert("RGB")))
    return np.stack(found)


def note(file):
    """Returns the text of a base64 file, which is JSON."""
    return json.loads(read_text(base64.b64decode(file)) or "")


def events(answer):
    """Returns the events of a stream with their names."""
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    found = []
    for part in filter(None, answer.text.split("\n\n")):
        if part[:1] != ":":
            name, data = part.split("\n")
            found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    assert all(name == data["type"] for name, data in found)
    return found


def png(colour=(200, 30, 30), size=64):
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(file, "png")
    return file.getvalue()


ONE = (("image", ("a.png", png(), "image/png")),)


def form(served, files=ONE, **fields):
    return served.client.post(EDITS, data={"prompt": PROMPT} | fields, files=list(files))


@pytest.fixture(scope="module")
def drawn(drawing):
    """Two images, as Python draws them in the server's lane."""
    return drawing.draw(PROMPT, n=2, seed=5)


@pytest.fixture(scope="module")
def two(served):
    return served.post(ROUTE, prompt=PROMPT, n=2, seed=5, size="64x64", model="tiny-vision").json()


def test_images_are_those_that_python_draws(served, drawing, drawn, two):
    """In a lane of the same width: a guided pair for each."""
    for file, wanted in zip(two["data"], drawn, strict=True):
        assert opened(file["b64_json"]).format == "PNG"
        np.testing.assert_array_equal(frames_of(file["b64_json"]), wanted.pixels)
    assert [each["seed"] for each in two["data"]] == [5, 6]
    default = drawing.sampling.image
    assert note(two["data"][1]["b64_json"]) == {
        "prompt": PROMPT,
        "seed": 6,
        "model": "tiny-vision",
        "software": f"lwm {lwm.__version__}",
        "guidance": default.guidance,
        "temperature": default.temperature,
        "top_k": default.top_k,
        "top_p": default.top_p,
    }
    assert two["size"] == "64x64"
    assert (two["background"], two["output_format"]) == ("opaque", "png")
    used = two["usage"]
    assert used["output_tokens"] == used["output_tokens_details"]["image_tokens"] == 2 * 65
    assert used["total_tokens"] == used["input_tokens"] + used["output_tokens"]
    assert used["input_tokens_details"]["image_tokens"] == 0


def test_without_a_seed_each_image_is_another(served):
    answer = served.post(ROUTE, prompt=PROMPT, output_format="jpeg").json()
    again = served.post(ROUTE, prompt=PROMPT, output_format="jpeg").json()
    assert answer["output_format"] == "jpeg"
    one, other = (opened(each["data"][0]["b64_json"]) for each in (answer, again))
    assert (one.format, one.size) == ("JPEG", (64, 64))
    assert one.tobytes() != other.tobytes()
    seeds = [each["data"][0]["seed"] for each in (answer, again)]
    assert [note(each["data"][0]["b64_json"])["seed"] for each in (answer, again)] == seeds


def test_a_clip_is_that_which_python_draws(served, drawing):
    """The sampling of images and of clips may be set, and the guidance of the first frame."""
    sampling = VisionSampling(
        image=FrameSampling(guidance=3.0, top_k=5, temperature=0.0),
        video=FrameSampling(guidance=2.0, temperature=0.5, top_p=0.9),
    )
    request = DrawRequest(prompts=(PROMPT,) * 2, kind="video", frames=2, sampling=sampling, seed=9)
    wanted = generate_visions(drawing, request)[0]
    answer = served.post(
        ROUTE,
        prompt=PROMPT,
        seed=9,
        frame_count=2,
        output_format="webp",
        frame_duration_ms=250,
        guidance_scale=3.0,
        image_options={"top_k": 5, "temperature": 0},
        video_options={"guidance": 2.0, "temperature": 0.5, "top_p": 0.9},
    ).json()
    (data,) = answer["data"]
    found = frames_of(data["b64_json"]).astype(float)
    assert np.abs(found - wanted.pixels).mean() < 12
    assert answer["usage"]["output_tokens"] == 2 * 65
    assert opened(data["b64_json"]).format == "WEBP"
    made = note(data["b64_json"])
    assert {"guidance": 3.0, "temperature": 0.0, "top_k": 5}.items() <= made.items()
    assert (made["seed"], made["frames"], made["frame_duration_ms"]) == (9, 2, 250)
    assert {"guidance": 2.0, "temperature": 0.5, "top_p": 0.9}.items() <= made["video"].items()


def test_a_clip_may_begin_with_an_image(served, drawing):
    given = drawing.see(png())
    wanted, *_ = drawing.draw(PROMPT, frames=2, n=4, seed=6, first=given)
    fields = {"frame_count": 2, "output_format": "mp4", "frame_duration_ms": 125}
    answer = form(served, seed=6, **fields).json()
    with av.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"])), "r") as clip:
        stream = clip.streams.video[0]
        assert stream.average_rate == 8
        found = [frame.to_ndarray(format="rgb24") for frame in clip.decode(stream)]
    assert note(answer["data"][0]["b64_json"])["prompt"] == PROMPT
    theirs = drawing.decode_frames(wanted.codes).astype(float)
    assert np.abs(np.stack(found) - theirs).mean() < 20
    assert answer["usage"]["output_tokens"] == 65


def test_a_client_that_goes_ends_its_images(served):
    """Its slots and pages are free soon, and a later request is answered."""
    body = {"prompt": PROMPT, "frame_count": 20, "output_format": "gif", "n": 4, "stream": True}
    engine = served.service.model.engine

    def wait(is_so):
        end = time.monotonic() + 20
        while not is_so() and time.monotonic() < end:
            time.sleep(0.02)
        assert is_so()

    with served.client.stream("POST", ROUTE, json=body | {"partial_images": 3}):
        wait(lambda: engine.load.used)
    wait(lambda: not served.service.open and not engine.load.used)
    assert served.post(ROUTE, prompt=PROMPT, size="auto").status_code == 200


def test_what_is_drawn_with_guidance_does_not_wait_any_more(served):
    body = {"prompt": PROMPT, "frame_count": 20, "output_format": "gif", "guidance_scale": 3}
    with served.client.stream("POST", ROUTE, json=body | {"stream": True, "partial_images": 1}):
        end = time.monotonic() + 20
        while not served.service.open or served.service.waiting:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert served.service.open


def test_a_stream_ends_with_the_image_that_a_whole_answer_has(served, two):
    answer = served.post(ROUTE, prompt=PROMPT, n=2, seed=5, stream=True)
    found = events(answer)
    assert [name for name, _ in found] == ["image_generation.completed"] * 2
    made = {data["index"]: (data["b64_json"], data["seed"]) for _, data in found}
    wanted = [(each["b64_json"], each["seed"]) for each in two["data"]]
    assert made == dict(enumerate(wanted))
    assert all(data["usage"]["output_tokens"] == 65 for _, data in found)


def test_partial_images_are_grey_where_nothing_is_drawn_yet(served, drawing, two):
    answer = served.post(ROUTE, prompt=PROMPT, seed=5, stream=True, partial_images=3)
    *partial, (last_name, last) = events(answer)
    assert last_name == "image_generation.completed"
    assert last["b64_json"] == two["data"][0]["b64_json"]
    assert 1 <= len(partial) <= 3
    assert [data["partial_image_index"] for _, data in partial] == [*range(len(partial))]
    shares = []
    for name, data in partial:
        assert name == "image_generation.partial_image"
        assert set(data) >= {"background", "created_at", "output_format", "quality", "size"}
        assert read_text(base64.b64decode(data["b64_json"])) is None
        cells = frames_of(data["b64_json"])[0].reshape(8, 8, 8, 8, 3)
        is_grey = (cells == 128).all(axis=(1, 3, 4)).reshape(-1)
        count = int((~is_grey).sum())
        assert is_grey[count:].all()
        shares.append(count / 64)
    assert shares == sorted(shares)
    assert 0 < shares[0] < 1


@pytest.mark.parametrize("count", [1, 13, 64])
def test_part_of_a_frame_is_where_it_will_be(drawing, count):
    (whole,) = drawing.draw(PROMPT, n=1, seed=2)
    part = partly(drawing, whole.codes[0, :count])
    assert part.pixels is not None
    assert whole.pixels is not None
    cells = part.pixels[0].reshape(8, 8, 8, 8, 3).swapaxes(1, 2).reshape(64, -1)
    assert (cells[count:] == 128).all()
    near = np.abs(part.pixels.astype(float) - whole.pixels)
    kept = near[0].reshape(8, 8, 8, 8, 3).swapaxes(1, 2).reshape(64, -1)[:count]
    assert kept.mean() < 40
    assert count < 64 or not near.any()


def test_an_edit_comes_after_its_images_and_words(served, drawing):
    """As a chat with these images whose answer begins with an image."""
    data = png((30, 30, 200)), png((30, 200, 30))
    files = [("image[]", (f"{i}.png", each, "image/png")) for i, each in enumerate(data)]
    answer = form(served, files, seed="4", output_format="webp").json()
    seen = [served.service.media.read_bytes(each, kind="image", param="") for each in data]
    ids = vision.opened(drawing, PROMPT, "image", seen=seen)
    params = SamplingParams(max_tokens=65, seed=4)
    used = DrawRequest(prompts=(PROMPT,)).used(drawing.sampling)
    (frame,) = Answer(drawing, ids, params, sampling=used, frames=1, lane=4)
    assert isinstance(frame, Frame)
    pixels = drawing.decode_frames(frame.codes[None])
    found = opened(answer["data"][0]["b64_json"])
    assert (found.format, answer["output_format"]) == ("WEBP", "webp")
    assert np.abs(np.asarray(found.convert("RGB"), float) - pixels[0]).mean() < 12
    size = drawing.marks.size(1, 64)
    assert answer["usage"]["input_tokens_details"]["image_tokens"] == 2 * size
    assert answer["usage"]["input_tokens"] == len(ids)


def test_a_streamed_edit_has_its_own_names(served):
    found = events(form(served, stream="true", partial_images="1", seed="1"))
    assert [name for name, _ in found] in (
        ["image_edit.partial_image", "image_edit.completed"],
        ["image_edit.completed"],
    )


@pytest.mark.parametrize(
    ("fields", "status", "param", "says"),
    [
        ({"response_format": "url"}, 400, "response_format", "ask for b64_json"),
        ({"size": "1024x1024"}, 400, "size", "draws 64x64 only"),
        ({"n": 9}, 400, "n", "more than the 8"),
        ({"n": 0}, 400, "n", "greater than or equal to 1"),
        ({"frame_count": 65}, 400, "frame_count", "64"),
        ({"frame_count": 3, "output_format": "png"}, 400, "frame_count", "ask for mp4, gif or"),
        ({"frame_count": 64}, 400, None, "has a context of 2,048"),
        ({"prompt": " "}, 400, None, "the prompt is empty"),
        ({"output_format": "bmp"}, 400, "output_format", "png"),
        ({"model": "dall-e-2"}, 404, "model", "does not exist"),
        ({"background": "transparent"}, 501, "background", "is not supported"),
        ({"style": "vivid"}, 501, "style", "describe the style"),
        ({"output_compression": 50}, 501, "output_compression", "leave it out"),
        ({"negative_prompt": "blue"}, 501, "negative_prompt", "say in the prompt"),
        ({"num_inference_steps": 4}, 501, "num_inference_steps", "leave it out"),
        ({"output_format": "svg"}, 501, "output_format", "png, jpeg or webp"),
    ],
)
def test_requests_that_cannot_be_are_refused(served, fields, status, param, says):
    whole = served.client.post(ROUTE, json={"prompt": PROMPT} | fields)
    for answer in (whole, form(served, **{name: str(each) for name, each in fields.items()})):
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert error["param"] == param
        assert says in error["message"]


def test_forms_that_cannot_be_are_refused(served):
    def error(answer, status=400):
        assert answer.status_code == status, answer.text
        return answer.json()["error"]["message"]

    mask = [("image", ("a.png", png())), ("mask", ("m.png", png()))]
    assert "mask is not supported" in error(form(served, mask), 501)
    assert "there is no image" in error(form(served, []))
    assert "there is no image" in error(served.post(EDITS, prompt=PROMPT))
    assert "image" in error(form(served, [("image", ("a.png", b"no image"))]))
    assert "is a text" in error(form(served, [("other", ("a.png", png()))], image="x"))
    assert "other is not read" in error(form(served, [("other", ("a.png", png()))]))
    two = [("image", ("a.png", png())), ("image", ("b.png", png()))]
    assert "begins with one image" in error(form(served, two, frame_count="2"))
    assert "no JSON" in error(form(served, image_options="{"))
    many = [("image", ("a.png", png()))] * 17
    assert "cannot be read" in error(form(served, many))


def files_of(answer):
    return [each.b64_json for each in answer.data]


def test_openais_client_draws(served, two):
    client = openai.OpenAI(base_url=served.url, api_key="none", max_retries=0)
    made = client.images.generate(
        model="tiny-vision", prompt=PROMPT, n=2, size="auto", extra_body={"seed": 5}
    )
    assert files_of(made) == [each["b64_json"] for each in two["data"]]
    assert made.usage is not None
    assert made.usage.output_tokens == 130
    stream = client.images.generate(
        prompt=PROMPT, stream=True, partial_images=1, extra_body={"seed": 5}
    )
    *_, last = stream
    assert last.type == "image_generation.completed"
    assert last.b64_json == two["data"][0]["b64_json"]
    gif = client.images.generate(
        prompt=PROMPT, output_format="gif", frame_count=2, frame_duration_ms=100
    )
    (clip,) = files_of(gif)
    assert len(frames_of(clip)) == 2
    assert (opened(clip).format, opened(clip).info["duration"]) == ("GIF", 100)
    edit = client.images.edit(image=[("a.png", png())], prompt=PROMPT, size="64x64")
    assert opened(*files_of(edit)).size == (64, 64)


def test_a_model_that_does_not_draw_says_so(start, served, monkeypatch):
    monkeypatch.setattr(served.service, "draws", False)
    answer = served.post(ROUTE, prompt=PROMPT)
    assert answer.status_code == 501
    assert "writes text only" in answer.json()["error"]["message"]


def test_one_slot_is_enough_for_a_guided_pair(start, two):
    """Guidance takes two rows; the bits are those of their lane."""
    single = start(slots=1)
    answer = single.post(ROUTE, prompt=PROMPT, seed=5)
    assert answer.status_code == 200
    assert opened(answer.json()["data"][0]["b64_json"]).size == (64, 64)
