"""Pictures in files: looked at, talked about, drawn and saved, by a small model."""

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import lwm.cli.generate
from lwm.cli import chat as talk
from lwm.cli.common import LoadOptions
from lwm.cli.generate import Output, generate_files, generate_image, generate_video
from lwm.console import Preview
from lwm.errors import UserError
from lwm.generate.chat import Conversation
from lwm.generate.vision import DrawRequest
from lwm.media.frames import read_frames
from lwm.media.text import read_text
from lwm.media.write import contact_sheet, write_image, write_video
from lwm.sampling_params import FrameSampling, SamplingParams, VisionSampling
from lwm.tokenizer.markers import OPENING
from lwm.tokenizer.message import Message, Vision

PLAIN = FrameSampling(guidance=1.0)
CHAT = VisionSampling(image=PLAIN, video=PLAIN)
CODES, SIZE, SIDE = 16, 16, 16
"""Codes of the codebook, codes of a frame, and its pixels along a side."""
DRAWING = SamplingParams(max_tokens=80, temperature=1.0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An image of noise, one of another, and a video of three frames."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
    write_image(folder / "one.png", frames[0])
    write_image(folder / "two.png", frames[1])
    write_video(folder / "clip.webp", frames, 2.0)
    return folder


def test_a_model_sees_images_and_videos(drawer, open_painter, files):
    drawer = open_painter(drawer.mesh, eager=0.0)  # it writes rather than draws
    one, two = drawer.see(files / "one.png"), drawer.see(files / "two.png")
    assert (one.kind, one.codes.shape, one.name) == ("image", (1, SIZE), "one.png")
    assert not np.array_equal(one.codes, two.codes)
    clip = drawer.see(files / "clip.webp", max_frames=2)
    assert (clip.kind, clip.codes.shape) == ("video", (2, SIZE))
    answers = {drawer.chat(["What?", seen], max_tokens=24) for seen in (one, two, clip)}
    assert len(answers) == 3
    assert drawer.chat(["What?", one], max_tokens=24) in answers
    assert drawer.chat([one, "What?"], document="Long.", max_tokens=8) not in answers


@pytest.fixture
def typed(monkeypatch):
    """Types lines, and then the input ends."""

    def type_in(*lines):
        waiting = iter(map(str, lines))

        def read(prompt=""):
            try:
                return next(waiting)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", read)

    return type_in


def test_a_talk_looks_at_files_and_writes_what_is_drawn(drawer, files, tmp_path, typed, capsys):
    out = tmp_path / "new" / "drawn"
    typed(f"/image {files / 'one.png'}", f"/video {files / 'clip.webp'}", "What?", "More")
    chat = talk.TerminalChat(drawer, sampling=DRAWING, out=out)
    chat.run()
    shown = capsys.readouterr()
    first, answer, second, other = chat.conversation.messages
    assert [each.name for each in first.visions] == ["one.png", "clip.webp"]
    assert not second.visions
    made = [*answer.visions, *other.visions]
    kinds = ["mp4" if each.is_video else "png" for each in made]
    names = [f"{number:03}.{kind}" for number, kind in enumerate(kinds, 1)]
    assert names
    assert sorted(path.name for path in out.iterdir()) == names
    assert [line for line in shown.out.split("\n") if line.startswith(str(out))] == [
        str(out / name) for name in names
    ]
    assert shown.out.count("[generated]") == len(names)
    assert f"one.png: 1 frame, {SIZE + 1 + 1 + 9} tokens; " in shown.err
    assert f"clip.webp: 3 frames, {3 * (SIZE + 1) + 1 + 9} tokens; " in shown.err
    for each, name in zip(made, names, strict=True):
        again = drawer.see(out / name, max_frames=None)
        assert again.codes.shape == each.codes.shape
        if not each.is_video:
            np.testing.assert_array_equal(again.pixels, each.pixels)


def test_a_talk_goes_on_after_a_file_that_cannot_be_looked_at(drawer, files, typed, capsys):
    missing = (f"/image {files / 'none.png'}", "/image", "/image ~nobody-of-this-name/a.png")
    typed(*missing, f"/image {files / 'one.png'}", "/clear", "Hi")
    short = SamplingParams(max_tokens=16)
    chat = talk.TerminalChat(drawer, sampling=short)
    chat.run()
    shown = capsys.readouterr()
    assert shown.err.count("lwm: ") == 3
    assert "none.png" in shown.err
    assert shown.out == drawer.chat("Hi", max_tokens=16) + "\n"
    assert all(not each.visions for each in chat.conversation.messages), "what was seen too"


def test_a_talk_goes_on_after_the_files_of_another(drawer, tmp_path, capsys):
    (tmp_path / "007.png").write_text("drawn before")
    chat = talk.TerminalChat(drawer, sampling=DRAWING, out=tmp_path)
    chat.answer("Hi")
    assert (tmp_path / "007.png").read_text() == "drawn before"
    assert f"{tmp_path / '008'}." in capsys.readouterr().out
    assert not list(tmp_path.glob("001.*"))


def test_a_talk_says_that_a_picture_was_not_drawn(drawer, capsys):
    talk.TerminalChat(drawer, sampling=DRAWING).answer("Hi")
    shown = capsys.readouterr()
    assert OPENING not in shown.out
    assert shown.err.endswith("[an image was to follow; give --out FOLDER to generate it]\n")


def test_a_talk_says_how_many_frames_fit(drawer, files, capsys, monkeypatch):
    chat = talk.TerminalChat(drawer, sampling=SamplingParams(max_tokens=460))
    with monkeypatch.context() as patch:
        patch.setattr(drawer.vision, "encode", None)  # they are counted before that
        with pytest.raises(UserError, match=r"3 frames, 61 tokens; .* 512: \d frames? fit"):
            chat.see(files / "clip.webp")
    chat = talk.TerminalChat(drawer, sampling=SamplingParams(max_tokens=400), max_frames=2)
    chat.see(files / "clip.webp")
    told = capsys.readouterr().err
    seen = drawer.see(files / "clip.webp", max_frames=2)
    used = len(chat.conversation.ids([Message("user", (seen,))]))
    more = (512 - 400 - used) // (SIZE + 1)
    assert f"clip.webp: 2 frames, 44 tokens; {more} more frames would fit" in told


ONE = Vision(codes=np.zeros((1, SIZE), np.int32), is_video=False)
BAD = {
    "no frames": ({"frames": 0}, "frames 0: an image is one frame, and a video at least one"),
    "no prompt": ({"prompt": " "}, "the prompt is empty; describe the image"),
    "all given": ({"frames": 1}, "1 of 1 frames are given; ask for more"),
    "too many": ({"frames": 40}, r"40 frames do not fit into the context of 512 .* at most \d+"),
    "too long": ({"prompt": 600 * "x"}, r"has 6\d\d tokens, after which no frame of 17 fits"),
    "seed": ({"n": 2, "seed": 2**32 - 1}, "seed 4294967295 must be from 0 to 4294967294"),
}


@pytest.mark.parametrize("fault", BAD)
def test_what_cannot_be_drawn_is_refused_in_one_line(drawer, fault):
    options, says = BAD[fault]
    first = ONE if fault == "all given" else None
    with pytest.raises(UserError, match=says) as caught:
        drawer.draw(**{"prompt": "a cat"} | options, first=first)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_gone_on_from_is_refused(drawer):
    one, two, strange = (
        Vision(codes=np.zeros(shape, np.int32), is_video=True)
        for shape in ((1, SIZE), (2, SIZE), (1, 7))
    )
    with pytest.raises(UserError, match="has 7 codes a frame, but tiny 16"):
        drawer.draw("a cat", frames=2, first=strange)
    with pytest.raises(UserError, match="differ in their number of frames"):
        DrawRequest(prompts=("a", "b"), kind="video", frames=3, first=(one, two))


def test_a_model_that_cannot_draw_says_why(model, drawer, draw_vqgan, files, tmp_path):
    blind = dataclasses.replace(drawer, vqgan_file=None)
    other = dataclasses.replace(drawer, vqgan_file=draw_vqgan(SIDE, codes=CODES + 1))
    for unable, says in (
        (model, "tiny reads and writes text only"),
        (blind, "tiny has no VQGAN beside it; give one with --vqgan"),
        (other, f"has {CODES + 1} codes, but the model {CODES}: they are of different models"),
    ):
        for ask in (
            lambda unable: unable.draw("a cat"),
            lambda unable: unable.see(files / "one.png"),
            lambda unable: Conversation(unable, sampling=CHAT),
            lambda unable: talk.TerminalChat(unable, out=tmp_path / "out"),
        ):
            with pytest.raises(UserError, match=says) as caught:
                ask(unable)
            assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_conversation_refuses_guidance(drawer):
    for rules in (
        VisionSampling(image=FrameSampling(guidance=5.0)),
        VisionSampling(video=FrameSampling(guidance=2.0)),
    ):
        with pytest.raises(UserError, match="which a conversation does not have; give guidance 1"):
            Conversation(drawer, sampling=rules)


def test_a_talk_refuses_a_folder_that_cannot_be_written(drawer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        talk.TerminalChat(drawer, out=tmp_path / "file")


@pytest.fixture
def on_disk(published, draw_vqgan, tmp_path, monkeypatch):
    """A model's name and where it is loaded, with a VQGAN of as many codes."""
    monkeypatch.setenv("LWM_CACHE", str(tmp_path / "cache"))
    folder, _, given = published
    yield str(folder), LoadOptions(vqgan=draw_vqgan(SIDE, codes=8192), given=given)
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])


@pytest.mark.slow
@pytest.mark.representative
def test_files_are_drawn_and_named(on_disk, files, tmp_path, capsys, monkeypatch):
    name, load = on_disk

    def make(file, *, n=1, grid=False, image=None, **asked):
        request = DrawRequest(prompts=("a cat",) * n, sampling=CHAT, **asked)
        output = Output(out=tmp_path / file, grid=grid)
        generate_files(name, request, output, image=image, load=load)
        return [Path(line) for line in capsys.readouterr().out.splitlines()]

    def read(path):
        return read_frames(path, resolution=SIDE).pixels

    images = make("a.png", kind="image", n=2)
    assert images == [tmp_path / "a-1.png", tmp_path / "a-2.png"]
    one, two = map(read, images)
    assert one.shape == two.shape == (1, SIDE, SIDE, 3)
    assert (one != two).any()
    (grid,) = make("b.png", kind="image", n=2, grid=True)
    sheet = np.asarray(Image.open(grid))
    np.testing.assert_array_equal(sheet, contact_sheet([one[0], two[0]], 2))
    (clip,) = make("c.webp", kind="video", frames=3, first_as_image=True)
    assert read(clip).shape == (3, SIDE, SIDE, 3)
    (clip,) = make("d.webp", kind="video", frames=2, image=images[1])
    assert read(clip).shape == (2, SIDE, SIDE, 3)
    assert np.abs(read(clip)[0].astype(int) - two[0]).mean() < 20
    with pytest.raises(UserError, match=r"clip.webp has 3 of 2 --frames; ask for more"):
        make("e.webp", kind="video", frames=2, image=files / "clip.webp")

    def interrupt(preview, row, pixels):
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Preview, "show", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make("g.webp", kind="video", frames=3)
    assert not (tmp_path / "g.webp").exists()

    def leave(file):
        raise BrokenPipeError

    monkeypatch.setattr(lwm.cli.generate, "print_line", leave)
    with pytest.raises(BrokenPipeError):
        make("f.png", kind="image", n=2)
    assert sorted(file.name for file in tmp_path.glob("f*")) == ["f-1.png", "f-2.png"]


def test_files_that_cannot_be_written_are_found_before_a_model_is_opened(tmp_path):
    (tmp_path / "a.png").mkdir()
    (tmp_path / "b-2.png").mkdir()
    before = sorted(tmp_path.iterdir())
    for kind, file, says in (
        ("image", "a.mp4", "a.mp4 ends in none of .png, .jpg"),
        ("video", "a.png", "a.png ends in none of .mp4, .gif, .webp"),
        ("image", "a", "a ends in none of"),
        ("image", "none/a.png", "none/a.png cannot be written; choose a file in a folder"),
        ("image", "a.png", "a.png cannot be written"),
        ("image", "b.png", "b-2.png cannot be written"),
        ("image", "c" * 250 + ".png", "cannot be written: File name too long"),
        ("video", "a.gif", "fps is 0.0; give"),
    ):
        request = DrawRequest(prompts=("a cat",) * (1 + (file == "b.png")), kind=kind)
        output = Output(out=tmp_path / file, fps=0.0)
        with pytest.raises(UserError, match=says) as caught:
            generate_files("none", request, output, load=LoadOptions())
        assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_vqgan_of_another_model_is_refused(on_disk, draw_vqgan, tmp_path):
    name, load = on_disk
    load = dataclasses.replace(load, vqgan=draw_vqgan(SIDE, codes=16))
    asked = DrawRequest(prompts=("a cat",))
    with pytest.raises(UserError, match="has 16 codes, but the model 8192"):
        generate_files(name, asked, Output(out=tmp_path / "a.png"), load=load)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"frames": 0}, "frames 0: an image is one frame, and a video at least one"),
        ({"kind": "image", "frames": 2}, "frames 2: an image is one frame"),
        ({"seed": -1}, "seed -1 must be"),
        ({"seed": 2**32 - 1, "n": 2}, "seed 4294967295 must be from 0 to 4294967294"),
        ({"first_as_image": True}, "needs at least 2 frames in all"),
        ({"frames": 3, "first_as_image": True, "first": (ONE,)}, "either given or generated"),
        ({"frames": 1, "first": (ONE,)}, "1 of 1 frames are given; ask for more"),
        ({"frames": 2, "n": 2, "first": (ONE,)}, "1 first frames for 2 prompts"),
        ({"seeds": (1, 2)}, "2 seeds for 1 prompts"),
        ({"seeds": (2**32,)}, "seed 4294967296 must be from 0 to 4294967295"),
    ],
)
def test_what_cannot_be_asked_is_refused(changes, says):
    request: dict[str, Any] = {"kind": "video", **changes}
    prompts = ("a cat",) * request.pop("n", 1)
    with pytest.raises(UserError, match=says):
        DrawRequest(prompts=prompts, **request)


def test_options_that_contradict_each_other_are_refused(tmp_path):
    out = tmp_path / "a.gif"
    with pytest.raises(UserError, match="n 0 must be at least 1"):
        generate_video("none", ("a cat",), out=out, n=0)
    with pytest.raises(UserError, match="there is no prompt; give some, or --prompts-from"):
        generate_video("none", out=out)
    with pytest.raises(UserError, match="upscale 0 must be from 1 to 64"):
        generate_video("none", ("a cat",), out=out, upscale=0)
    (tmp_path / "chats.jsonl").write_text('{"messages": [{"role": "user", "content": "a cat"}]}')
    with pytest.raises(UserError, match=r"chats.jsonl, line 1: a chat describes no image"):
        generate_video("none", prompts_from=tmp_path / "chats.jsonl", out=out)
    with pytest.raises(UserError, match="give --image or --first-as-image"):
        generate_video("none", ("a cat",), out=out, frames=2, first_as_image=True, image=Path("a"))


def test_several_prompts_are_drawn_with_seeds_of_their_own(on_disk, tmp_path, capsys):
    name, load = on_disk
    (tmp_path / "more.txt").write_text("a dog\n")

    def make(out, *prompts, **options):
        settings: dict[str, Any] = {"n": 2, "seed": 5, "load": load, "sampling": PLAIN, **options}
        generate_image(name, prompts, out=tmp_path / out, **settings)
        return [Path(line) for line in capsys.readouterr().out.splitlines()]

    files = make("a.png", "a cat", prompts_from=tmp_path / "more.txt", upscale=3)
    assert [file.name for file in files] == ["a-1.png", "a-2.png", "a-3.png", "a-4.png"]
    notes = [json.loads(read_text(file) or "") for file in files]
    assert [note["prompt"] for note in notes] == ["a cat", "a cat", "a dog", "a dog"]
    assert [note["seed"] for note in notes] == [5, 6, 5, 6]
    assert notes[0]["guidance"] == 1.0
    # An image is that of its prompt and seed, whatever is drawn beside it; each pixel is a square.
    (alone,) = make("b.png", "a dog", n=1, seed=6)
    large, small = np.asarray(Image.open(files[3])), np.asarray(Image.open(alone))
    assert np.array_equal(large, small.repeat(3, 0).repeat(3, 1))


@pytest.mark.parametrize("guidance", [-1.0, float("nan"), float("inf"), 1e40])
def test_guidance_has_bounds(guidance):
    with pytest.raises(UserError, match=r"guidance .* must be from 0 to 1000"):
        FrameSampling(guidance=guidance)
