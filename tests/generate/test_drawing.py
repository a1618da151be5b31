"""Pictures drawn from words, looked at, and answered with: a small model and a small VQGAN."""

import dataclasses
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import tokenizers
from PIL import Image

from lwm import talk
from lwm.cli_common import Placing
from lwm.convert.vqgan import save_vqgan
from lwm.data.frames import read_frames
from lwm.data.message import Message, Vision
from lwm.data.tokenizer import Tokenizer
from lwm.data.write_media import contact_sheet, write_image, write_video
from lwm.draw import Asked, draw_files
from lwm.errors import UserError
from lwm.generate import vision as drawing
from lwm.generate.chat import Conversation
from lwm.generate.drawing import Drawing, Drawings
from lwm.generate.language_model import LanguageModel
from lwm.generate.parts import Frame
from lwm.generate.vision import draw, draw_whole
from lwm.generate.writing import Writing
from lwm.model.vqgan import VQGAN
from lwm.model.vqgan_config import VQGANConfig
from lwm.sharding import make_mesh
from lwm.tokens import TokenSpace

PLAIN = Drawing(guidance=1.0)
CHAT = Drawings(image=PLAIN, video=PLAIN)

CODES, SIZE, SIDE = 16, 16, 16
"""Codes of the codebook, codes of a frame, and its pixels along a side."""
OPENING = "<vision>"
FREE = Drawing(guidance=1.0)
GREEDY = Drawing(guidance=1.0, temperature=0.0)
END = "<|im_end|>"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A token for each byte, and one for `<vision>`, which a random model may well write."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    starts = [OPENING[:end] for end in range(2, len(OPENING) + 1)]
    vocabulary = {piece: number for number, piece in enumerate([*letters, *starts])}
    merges = [(start[:-1], start[-1]) for start in starts]
    built = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    pre_tokenizers = tokenizers.pre_tokenizers
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    built.decoder = tokenizers.decoders.ByteLevel()
    built.add_special_tokens(["<|endoftext|>", END])
    folder = tmp_path_factory.mktemp("tokenizer")
    built.save(str(folder / "tokenizer.json"))
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    config = {"chat_template": template, "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.open(folder)


@pytest.fixture(scope="session")
def save_codes(tmp_path_factory):
    """Writes a VQGAN. `VQGAN.init` would be compiled for ten seconds."""

    def make(codes):
        config = VQGANConfig(
            resolution=SIDE,
            hidden=32,
            multipliers=(1, 1, 1),
            res_blocks=1,
            z_channels=4,
            codes=codes,
            code_dim=4,
        )
        rng = np.random.default_rng(0)

        def fill(leaf):
            if len(leaf.shape) == 1:  # a bias, or what is normalised is scaled by
                return jnp.ones(leaf.shape)
            drawn = rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
            return jnp.asarray(drawn, np.float32)

        folder = tmp_path_factory.mktemp("vqgan")
        shapes = jax.eval_shape(lambda: VQGAN.init(config, key=jr.key(0)))
        save_vqgan(jax.tree.map(fill, shapes), folder)
        return folder

    return make


@pytest.fixture(scope="module")
def open_painter(tiny, init, tokenizer, save_codes):
    """Makes a model that sees and draws; `eager` is how much it likes to."""
    folder = save_codes(CODES)
    opening = tokenizer.encode(OPENING, special=False)
    assert len(opening) == 1

    def make(mesh, eager=6.0):
        llama = init(tiny(tokens=TokenSpace.of(tokenizer.vocab_size, CODES))).unstack()
        scale = np.ones(llama.head.shape, np.float32)
        scale[:, opening[0]] = eager
        scale = jax.device_put(scale, llama.head.sharding)
        llama = dataclasses.replace(llama, head=llama.head * scale)
        return LanguageModel(
            name="tiny", llama=llama, tokenizer=tokenizer, mesh=mesh, vqgan_file=folder
        )

    return make


@pytest.fixture(scope="module")
def painter(open_painter):
    with jax.set_mesh(mesh := make_mesh()):
        yield open_painter(mesh)


def same(one, other):
    return one.codes.tolist() == other.codes.tolist()


def require_alike(one, other):
    """Frames decoded together or alone are the same but for rounding."""
    np.testing.assert_allclose(one.astype(int), other.astype(int), rtol=0, atol=1)


def drawn(painter, *, image=FREE, video=FREE, **options):
    """Draws one picture by these rules."""
    (found,) = painter.draw("a cat", drawings=Drawings(image=image, video=video), **options)
    return found


def test_frames_asked_for_are_frames_got(painter):
    for frames, kind in ((1, "image"), (3, "video")):
        for found in painter.draw("a cat", frames=frames, n=2):
            assert (found.kind, found.codes.shape) == (kind, (frames, SIZE))
            assert 0 <= found.codes.min() <= found.codes.max() < CODES
            require_alike(found.pixels, painter.vision.decode(found.codes))
    assert draw_whole(painter, ["a"], kind="video")[0].is_video, "a video may be of one frame"
    assert draw_whole(painter, [], kind="image") == []


def test_frames_come_one_after_the_other(painter):
    told = []
    found = draw(
        painter,
        ["a cat", "a dog"],
        kind="video",
        frames=3,
        drawings=CHAT,
        progress=lambda done, total: told.append((done, total)),
    )
    places = [(row, frame.number, frame.is_last) for row, frame in found]
    assert sorted(places) == [(row, n, n == 2) for row in (0, 1) for n in range(3)]
    assert [number for _, number, _ in places] == [0, 0, 1, 1, 2, 2]
    assert told == sorted(told)
    assert told[-1] == (3 * (SIZE + 1), 3 * (SIZE + 1))


def test_a_picture_depends_on_its_seed_and_not_on_those_beside_it(painter):
    together = painter.draw("a cat", frames=2, n=3, seed=4)
    for row, found in enumerate(together):
        assert same(found, painter.draw("a cat", frames=2, seed=4 + row)[0])
    assert not same(together[0], together[1])
    others = draw_whole(painter, ["a dog", "a cat"], kind="video", frames=2, seed=3)
    assert same(others[1], together[0])
    assert not same(others[0], painter.draw("a cat", frames=2, seed=3)[0])


def test_a_picture_is_the_same_on_every_mesh(painter, open_painter):
    with jax.set_mesh(mesh := make_mesh("2,1,2,1")):
        spread = open_painter(mesh).draw("a cat", frames=2, n=3)
    for one, other in zip(painter.draw("a cat", frames=2, n=3), spread, strict=True):
        assert same(one, other)


@pytest.fixture
def rows(monkeypatch):
    """Notes how many rows are written for each call."""
    noted = []

    class Noted(drawing.Session):
        def __init__(self, *arguments, rows, **options):
            noted.append(rows)
            super().__init__(*arguments, rows=rows, **options)

    monkeypatch.setattr(drawing, "Session", Noted)
    return noted


def test_guidance_of_one_needs_no_rows_and_is_no_guidance(painter, rows):
    alone = drawn(painter, frames=2)
    paired = drawn(painter, frames=2, video=Drawing(guidance=3.0))
    guided = drawn(painter, frames=2, image=Drawing(guidance=3.0))
    assert rows == [1, 2, 2]
    assert alone.codes[0].tolist() == paired.codes[0].tolist() != guided.codes[0].tolist()
    assert alone.codes[1].tolist() != paired.codes[1].tolist()


def test_guidance_of_zero_draws_as_if_nothing_were_asked(painter):
    def both(guidance):
        rules = Drawings(image=Drawing(guidance=guidance, temperature=0.0))
        prompts = ["a cat", "the sea at night"]
        return draw_whole(painter, prompts, kind="image", drawings=rules)

    assert same(*both(0.0))
    assert not same(*both(1.0))


def test_frames_that_are_given_are_kept_and_count(painter):
    whole = drawn(painter, frames=3, image=GREEDY, video=GREEDY)
    for count in (1, 2):
        first = Vision(codes=whole.codes[:count], is_video=count > 1)
        found = drawn(painter, frames=3, image=FREE, video=GREEDY, first=first)
        assert same(found, whole)
        require_alike(found.pixels, whole.pixels)
    assert numbers_of(painter, first) == [(2, False), (3, True)]
    known = dataclasses.replace(first, pixels=np.full((2, SIDE, SIDE, 3), 7, np.uint8))
    found = drawn(painter, frames=3, video=GREEDY, first=known)
    assert (found.pixels[:2] == 7).all(), "what people gave is shown as they gave it"


def numbers_of(painter, first):
    found = draw(painter, ["a"], kind="video", frames=4, first=[first], drawings=CHAT)
    return [(frame.number, frame.is_last) for _, frame in found]


def test_what_is_said_of_video_holds_after_the_first_frame_only(painter):
    videos = [drawn(painter, frames=2, image=GREEDY, seed=seed) for seed in range(3)]
    assert len({tuple(each.codes[0]) for each in videos}) == 1
    assert len({tuple(each.codes[1]) for each in videos}) == 3
    images = [drawn(painter, frames=2, image=FREE, video=GREEDY, seed=seed) for seed in range(3)]
    assert len({tuple(each.codes[0]) for each in images}) == 3
    assert same(images[0], drawn(painter, frames=2, video=Drawing(guidance=1.0, top_k=1)))


DRAWING = Writing(max_tokens=80, temperature=1.0)


def pieces_of(conversation, question, writing=DRAWING):
    read = []
    pieces = list(
        conversation.ask(question, writing=writing, progress=lambda _, total: read.append(total))
    )
    return pieces, max(read)


def frames_of(pieces):
    return [piece for piece in pieces if isinstance(piece, Frame)]


def test_a_conversation_answers_with_text_and_pictures(painter):
    for seed in range(3):
        writing = dataclasses.replace(DRAWING, seed=seed)
        conversation = Conversation(painter, drawings=CHAT)
        pieces, _ = pieces_of(conversation, "Hi", writing)
        answer = conversation.messages[-1]
        visions = answer.visions
        codes = [frame.codes.tolist() for frame in frames_of(pieces)]
        assert codes == [frame.tolist() for each in visions for frame in each.codes]
        assert codes
        ends = [frame.number for frame in frames_of(pieces) if frame.is_last]
        assert [len(each.codes) - 1 for each in visions] == ends
        texts = "".join(piece for piece in pieces if isinstance(piece, str))
        assert OPENING not in texts
        assert "".join(answer.text.split()) == "".join(texts.split())
        for each in visions:
            assert each.is_video == (len(each.codes) > 1)
            require_alike(each.pixels, painter.vision.decode(each.codes))


def test_a_conversation_that_draws_keeps_its_cache(painter, open_painter):
    """It reads the picture that it has just drawn no more, and answers as if it had."""
    eager = open_painter(painter.mesh, eager=-30.0)
    writing = Writing(max_tokens=40)
    for question in "abcdefgh":
        conversation = Conversation(eager, document="A long text. " * 5, drawings=CHAT)
        pieces, prompt = pieces_of(conversation, question, writing)
        if isinstance(pieces[0], Frame):
            break
    else:
        pytest.fail("no answer begins with a picture")
    turns = list(conversation.messages)
    again, read = pieces_of(conversation, "More", writing)
    whole = len(conversation.ids(conversation.messages[:-1]))
    assert read <= whole - prompt - (SIZE + 1)
    fresh = Conversation(eager, document="A long text. " * 5, drawings=CHAT)
    fresh.messages = turns
    other, all_of_it = pieces_of(fresh, "More", writing)
    assert all_of_it == whole
    assert list(map(repr, other)) == list(map(repr, again))


def test_a_video_given_up_halfway_is_kept_as_far_as_it_went(painter):
    conversation = Conversation(painter, drawings=CHAT)
    pieces = conversation.ask("Hi", writing=dataclasses.replace(DRAWING, max_tokens=200, seed=1))
    first = next(piece for piece in pieces if isinstance(piece, Frame))
    assert not first.is_last
    pieces.close()
    (kept,) = conversation.messages[-1].visions
    assert kept.codes.tolist() == [first.codes.tolist()]
    assert list(conversation.ask("And?", writing=DRAWING))


def test_what_is_drawn_fits_into_the_answer(painter):
    for room in (SIZE + 1, SIZE + 2, 2 * SIZE, 3 * SIZE):
        writing = dataclasses.replace(DRAWING, max_tokens=room)
        for seed in range(4):
            conversation = Conversation(painter, drawings=CHAT)
            pieces, _ = pieces_of(conversation, "Hi", dataclasses.replace(writing, seed=seed))
            frames = frames_of(pieces)
            assert len(frames) <= (room - 1) // (SIZE + 1)
            assert not frames or frames[-1].is_last


def test_marks_that_a_user_types_never_open_a_frame(painter, open_painter):
    """Even where the prompt ends in them; what the model writes itself does."""
    shy = open_painter(painter.mesh, eager=0.0)
    shy = dataclasses.replace(shy, template="{% for m in messages %}{{ m.content }}{% endfor %}")
    for typed in (OPENING, f"a {OPENING}", f"{OPENING}{OPENING}"):
        conversation = Conversation(shy, drawings=CHAT)
        prompt = conversation.ids([Message("user", (typed,))])
        assert prompt[-1] == shy.marks.opening[0]
        pieces, _ = pieces_of(conversation, typed, Writing(max_tokens=24))
        assert pieces
        assert not frames_of(pieces)


def test_an_answer_in_text_never_draws(painter):
    text = painter.chat("Hi", max_tokens=80, temperature=1.0)
    conversation = Conversation(painter)
    pieces, _ = pieces_of(conversation, "Hi")
    assert pieces
    assert not frames_of(pieces)
    assert "".join(pieces) == text


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


def test_a_model_sees_images_and_videos(painter, files):
    one, two = painter.see(files / "one.png"), painter.see(files / "two.png")
    assert (one.kind, one.codes.shape, one.name) == ("image", (1, SIZE), "one.png")
    assert not same(one, two)
    clip = painter.see(files / "clip.webp", max_frames=2)
    assert (clip.kind, clip.codes.shape) == ("video", (2, SIZE))
    answers = {painter.chat(["What?", seen], max_tokens=24) for seen in (one, two, clip)}
    assert len(answers) == 3
    assert painter.chat(["What?", one], max_tokens=24) in answers
    assert painter.chat([one, "What?"], document="Long.", max_tokens=8) not in answers


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


def test_a_talk_looks_at_files_and_writes_what_is_drawn(painter, files, tmp_path, typed, capsys):
    out = tmp_path / "new" / "drawn"
    typed(f"/image {files / 'one.png'}", f"/video {files / 'clip.webp'}", "What?", "More")
    chat = talk.Talk(painter, writing=DRAWING, out=out)
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
    assert shown.out.count("[drawn]") == len(names)
    assert f"one.png: 1 frame, {SIZE + 1 + 1 + 9} tokens; " in shown.err
    assert f"clip.webp: 3 frames, {3 * (SIZE + 1) + 1 + 9} tokens; " in shown.err
    for each, name in zip(made, names, strict=True):
        again = painter.vision.read(out / name)
        assert again.codes.shape == each.codes.shape
        if not each.is_video:
            np.testing.assert_array_equal(again.pixels, each.pixels)


def test_a_talk_goes_on_after_a_file_that_cannot_be_looked_at(painter, files, typed, capsys):
    typed(f"/image {files / 'none.png'}", "/image", f"/image {files / 'one.png'}", "/clear", "Hi")
    short = Writing(max_tokens=16)
    chat = talk.Talk(painter, writing=short)
    chat.run()
    shown = capsys.readouterr()
    assert shown.err.count("lwm: ") == 2
    assert "none.png" in shown.err
    assert shown.out == painter.chat("Hi", max_tokens=16) + "\n"
    assert not chat.conversation.messages[0].visions, "and what was seen is forgotten too"


def test_a_talk_says_how_many_frames_fit(painter, files, capsys):
    chat = talk.Talk(painter, writing=Writing(max_tokens=460))
    with pytest.raises(UserError, match=r"3 frames, 61 tokens; .* context of 512: \d frames? fit"):
        chat.see(files / "clip.webp")
    chat = talk.Talk(painter, writing=Writing(max_tokens=400), max_frames=2)
    chat.see(files / "clip.webp")
    told = capsys.readouterr().err
    seen = painter.see(files / "clip.webp", max_frames=2)
    used = len(chat.conversation.ids([Message("user", (seen,))]))
    more = (512 - 400 - used) // (SIZE + 1)
    assert f"clip.webp: 2 frames, 44 tokens; {more} more frames would fit" in told


BAD = {
    "no frames": ({"frames": 0}, "frames 0: an image is one frame, and a video at least one"),
    "no prompt": ({"prompt": " "}, "the prompt is empty; say what is to be seen"),
    "all given": ({"frames": 1}, "1 of 1 frames are given; ask for more"),
    "too long": ({"frames": 40}, "the prompt has .* context of 512"),
}


@pytest.mark.parametrize("fault", BAD)
def test_what_cannot_be_drawn_is_refused_in_one_line(painter, fault):
    options, says = BAD[fault]
    given = Vision(codes=np.zeros((1, SIZE), np.int32), is_video=False)
    first = given if fault == "all given" else None
    with pytest.raises(UserError, match=says) as caught:
        painter.draw(**{"prompt": "a cat"} | options, first=first)
    assert "\n" not in str(caught.value)


def test_a_model_that_cannot_draw_says_why(model, painter, save_codes, files, tmp_path):
    blind = dataclasses.replace(painter, vqgan_file=None)
    other = dataclasses.replace(painter, vqgan_file=save_codes(CODES + 1))
    for unable, says in (
        (model, "tiny reads and writes text only"),
        (blind, "tiny has no VQGAN beside it; give one with --vqgan"),
        (other, f"has {CODES + 1} codes, but the model {CODES}: they are of different models"),
    ):
        for ask in (
            lambda unable: unable.draw("a cat"),
            lambda unable: unable.see(files / "one.png"),
            lambda unable: Conversation(unable, drawings=CHAT),
            lambda unable: talk.Talk(unable, out=tmp_path / "out"),
        ):
            with pytest.raises(UserError, match=says) as caught:
                ask(unable)
            assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_conversation_refuses_guidance(painter):
    for rules in (Drawings(image=Drawing(guidance=5.0)), Drawings(video=Drawing(guidance=2.0))):
        with pytest.raises(UserError, match="which a conversation does not have; give guidance 1"):
            Conversation(painter, drawings=rules)


def test_a_talk_refuses_a_folder_that_cannot_be_written(painter, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        talk.Talk(painter, out=tmp_path / "file")


@pytest.fixture
def on_disk(published, save_codes, tmp_path, monkeypatch):
    """A model's name and where it is loaded, with a VQGAN of as many codes."""
    monkeypatch.setenv("LWM_CACHE", str(tmp_path / "cache"))
    folder, _, given = published
    yield str(folder), Placing(vqgan=save_codes(8192), given=given)
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])


def test_files_are_drawn_and_named(on_disk, tmp_path, capsys):
    name, placing = on_disk

    def make(file, *, grid=False, **asked):
        asked = Asked(prompt="a cat", **asked)
        draw_files(name, asked, out=tmp_path / file, grid=grid, drawings=CHAT, placing=placing)
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
    (clip,) = make("d.webp", kind="video", frames=2, first=images[1])
    assert read(clip).shape == (2, SIDE, SIDE, 3)
    assert np.abs(read(clip)[0].astype(int) - two[0]).mean() < 20


def test_files_that_cannot_be_written_are_found_before_a_model_is_opened(tmp_path):
    (tmp_path / "a.png").mkdir()
    for kind, file, says in (
        ("image", "a.mp4", "a.mp4 ends in none of .png, .jpg"),
        ("video", "a.png", "a.png ends in none of .mp4, .gif, .webp"),
        ("image", "a", "a ends in none of"),
        ("image", "none/a.png", "none/a.png cannot be written; choose a file in a folder"),
        ("image", "a.png", "a.png cannot be written"),
    ):
        asked, out = Asked(prompt="a cat", kind=kind), tmp_path / file
        with pytest.raises(UserError, match=says):
            draw_files("none", asked, out=out, grid=False, drawings=CHAT, placing=Placing())


def test_a_vqgan_of_another_model_is_refused(on_disk, tmp_path):
    """That beside the model has fewer codes than it."""
    name, placing = on_disk
    placing, asked = dataclasses.replace(placing, vqgan=None), Asked(prompt="a cat", kind="image")
    with pytest.raises(UserError, match="has 16 codes, but the model 8192"):
        draw_files(name, asked, out=tmp_path / "a.png", grid=False, drawings=CHAT, placing=placing)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n": 0}, "n 0 must be"),
        ({"frames": 0}, "frames 0 must be"),
        ({"seed": -1}, "seed -1 must be"),
        ({"seed": 2**32 - 1, "n": 2}, "seed 4294967295 must be"),
        ({"first_as_image": True}, "at least 2 --frames"),
        ({"first_as_image": True, "first": Path("a")}, "either says what comes first"),
    ],
)
def test_what_cannot_be_asked_is_refused(changes, says):
    with pytest.raises(UserError, match=says):
        Asked(prompt="a cat", kind="video", **changes)
