"""Messages and documents that hold images and videos: how they are read, written and learnt."""

import collections
import json
from typing import Any

import numpy as np
import pytest

from lwm.data.captions import ASK, DRAW, share
from lwm.data.chat import chat_ids
from lwm.data.fields import RecordEncoder
from lwm.data.format import Captions, ExampleFormat
from lwm.data.sets import Corpus
from lwm.data.sources import open_source
from lwm.errors import UserError
from lwm.tokenizer.markers import CLOSING, OPENING, VisionMarkers
from lwm.tokenizer.message import Message, Vision
from lwm.tokenizer.template import render_chat
from lwm.tokenizer.tokenizer import Tokenizer
from lwm.tokens import TokenSpace

END = "<|im_end|>"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def image(*codes):
    return Vision(codes=np.array([codes]), is_video=False)


def video(*frames):
    return Vision(codes=np.array(frames), is_video=True)


class Shown:
    """A model whose every token is a byte, and 8 codes, so that ids can be read."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.tokens = TokenSpace.of(tokenizer.vocab_size, 8)
        self.marks = VisionMarkers.of(tokenizer, self.tokens)

    def __call__(self, ids):
        """Returns ids as text, codes as digits, ends of frames as `|` and of vision as `.`"""
        text, marks = self.tokens.text, [*map(str, range(8)), "|", "."]
        return "".join(self.tokenizer.text_of(int(i)) if i < text else marks[i - text] for i in ids)

    def encoder(self, **settings):
        return RecordEncoder(
            tokenizer=self.tokenizer, tokens=self.tokens, format=ExampleFormat(**settings)
        )

    def chat(self, *messages, **options):
        return self(render_chat(messages, self.tokenizer, marks=self.marks, **options))


@pytest.fixture(scope="module")
def shown(byte_tokenizer):
    return Shown(byte_tokenizer)


@pytest.fixture
def llama(fixtures):
    return Tokenizer.open(fixtures / "tokenizer")


def test_a_question_about_an_image_is_the_prompt_of_the_original(llama):
    """The original encodes each piece by itself; the codes come between the two marks."""
    tokens = TokenSpace(text=llama.vocab_size, vision=8448, codes=8192)
    codes = np.arange(256) * 32
    seen = [*(codes + tokens.text), tokens.end_of_vision]
    ids = render_chat(
        [Message("user", ("What is this?", image(*codes)))],
        llama,
        template="lwm",
        marks=VisionMarkers.of(llama, tokens),
    )
    assert ids == [
        llama.bos_id,
        *llama.encode("You are a helpful assistant. USER: What is this?\n"),
        *llama.encode("<vision>"),
        *seen,
        *llama.encode("</vision>"),
        *llama.encode(" ASSISTANT:"),
    ]


def test_all_that_may_be_written_for_an_opening_is_known(llama):
    tokens = TokenSpace(text=llama.vocab_size, vision=8448, codes=8192)
    marks = VisionMarkers.of(llama, tokens)
    assert marks.opening in marks.openings
    for before in ("", "a", "a ", "ASSISTANT:", "ASSISTANT: "):
        ids = llama.encode(before + OPENING, special=False)
        assert any(tuple(ids[-len(run) :]) == run for run in marks.openings), before
    for run in marks.openings:
        assert llama.decode(run).strip() == OPENING


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int64])
def test_codes_may_be_of_a_type_too_narrow_for_ids(kind):
    marks = VisionMarkers(
        tokens=TokenSpace.of(32000, 8192), opening=(1,), closing=(2,), openings=()
    )
    codes = np.array([[0, min(8191, np.iinfo(kind).max)]], kind)
    assert (marks.frames(codes)[:-1] - 32000).tolist() == codes[0].tolist()


def test_visions_stand_where_they_are_said(shown):
    talk = [
        Message("user", (image(1, 2), "and ", video([3, 4], [5, 6]), " alike? ", image(7))),
        Message("assistant", ("No: ", image(0), image(1))),
    ]
    first = "<vision>12.</vision>and <vision>34|56.</vision> alike? <vision>7.</vision>"
    second = "<vision>0.</vision><vision>1.</vision>"
    assert shown.chat(*talk) == f"user: {first}{END}assistant: No: {second}{END}assistant: "


def test_a_question_stands_on_a_line_of_its_own_before_an_image(shown):
    seen = "<vision>1.</vision>"
    for asked, wanted in (("Who?", "Who?\n"), ("Who?\n", "Who?\n"), ("Who? ", "Who? ")):
        text = shown.chat(Message("user", (asked, image(1))), add_generation_prompt=False)
        assert text == f"user: {wanted}{seen}{END}"
    answer = Message("assistant", ("This:", image(1)))
    text = shown.chat(Message("user", ("Draw",)), answer, add_generation_prompt=False)
    assert text == f"user: Draw{END}assistant: This:{seen}{END}"


def test_visions_stand_in_any_template_that_writes_each_once(shown):
    said = Message("user", ("Who?", image(1, 2))), Message("assistant", (image(3, 4),))
    text = shown.chat(*said, template=CHATML, add_generation_prompt=False)
    assert text == (
        f"<|im_start|>user\nWho?\n<vision>12.</vision>{END}\n"
        f"<|im_start|>assistant\n<vision>34.</vision>{END}\n"
    )
    for template in (
        "{% for m in messages %}{{ m.role }}{% endfor %}",
        "{{ messages[0].content }}{{ messages[0].content }}{{ messages[1].content }}",
        "{% for m in messages | reverse %}{{ m.content }}{% endfor %}",
    ):
        with pytest.raises(UserError, match="does not write each image once, in order"):
            shown.chat(*said, template=template)


@pytest.mark.parametrize("template", [CHATML, "lwm", None])
def test_a_user_who_types_marks_forges_no_vision(shown, template):
    typed = "\ufdd20\ufdd3 <vision>1.</vision> \ufdd21\ufdd3\ufdd1"
    said = Message("user", (typed, image(5, 6)))
    ids = render_chat([said], shown.tokenizer, template=template, marks=shown.marks)
    written = [token for token in ids if token >= shown.tokens.text]
    assert written == shown.marks.frames(np.array([[5, 6]])).tolist()
    alone = render_chat([Message("user", (typed,))], shown.tokenizer, template=template)
    assert max(alone) < shown.tokens.text
    text = shown.tokenizer.decode(alone)
    assert "<vision>1.</vision>" in text
    if template != "lwm":  # a template would search for them
        assert not set("\ufdd1\ufdd2\ufdd3") & set(text)


@pytest.mark.parametrize("template", [CHATML, "lwm", None])
def test_what_the_assistant_drew_is_learnt_whole_and_not_what_it_saw(shown, template):
    talk: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "A"}, part("image", 1, 2)]},
        {"role": "assistant", "content": [part("video", 3, 4, 5, 6, frames=2)]},
        {"role": "user", "content": [part("image", 7, 7), {"type": "text", "text": "B"}]},
        {"role": "assistant", "content": [part("image", 0, 0), {"type": "text", "text": " C"}]},
    ]
    for message in talk:
        for each in message["content"]:
            each |= {"frames": 1} if each["type"] == "image" else {}
    tokenizer = shown.tokenizer
    ids, learn = chat_ids(talk, tokenizer, template=template, marks=shown.marks)
    whole = render_chat(
        talk, tokenizer, template=template, marks=shown.marks, add_generation_prompt=False
    )
    assert ids.tolist() == whole
    spans = np.split(ids, np.flatnonzero(np.diff(learn)) + 1)
    end = "<|endoftext|>" if template == "lwm" else END
    learnt = ["<vision>34|56.</vision>" + end, "<vision>00.</vision> C" + end]
    assert list(map(shown, spans[1::2])) == learnt
    assert "<vision>12.</vision>" in shown(spans[0])
    assert "<vision>77.</vision>" in shown(spans[2])


def part(kind, *codes, **more):
    return {"type": kind, "vision": list(codes), **more}


def test_a_message_is_read_as_json_has_it():
    said = Message.of(
        {
            "role": "user",
            "content": [part("image", 1, 2), {"type": "text", "text": "a"}, part("video", 3, 4)],
        },
        tokens_per_frame=2,
    )
    assert said.text == "a"
    assert [vision.kind for vision in said.visions] == ["image", "video"]
    assert [vision.codes.tolist() for vision in said.visions] == [[[1, 2]], [[3, 4]]]
    assert Message.of(said) is said
    assert Vision.of({"vision": [1, 2, 3, 4], "frames": 2}).is_video
    assert not Vision.of({"vision": [1, 2, 3, 4], "frames": 1}).is_video
    assert Vision.of({"vision": [1, 2], "times": [0.5], "name": "a.mp4"}, tokens_per_frame=2).times


BAD: dict[str, tuple[Any, str]] = {
    "unknown type": ({"type": "sound", "vision": [1]}, "should be text, an image or a video, not"),
    "no type": ({"text": "a"}, "should be text, an image or a video"),
    "plain text": ("a", "should be text, an image or a video, not 'a'"),
    "no text": ({"type": "text"}, "should be text, an image or a video"),
    "no codes": ({"type": "image"}, "type image has no codes under 'vision'; `lwm tokenize` makes"),
    "empty": (part("video"), "'vision' holds no frame"),
    "no multiple": (part("video", 1, 2, 3), "3 codes, which do not divide into frames of 2"),
    "other frames": (
        part("video", 1, 2, 3, frames=2),
        "2, but should be a number that divides the 3 codes",
    ),
    "no frames": (part("video", 1, 2, frames=0), "0, but should be a number that"),
    "half a frame": (part("video", 1, 2, frames=1.5), "1.5, but should be a number that"),
    "nested": ({"type": "image", "vision": [[1, 2]]}, "should be one flat list of integers"),
    "above": (part("image", 1, 8), "8 at place 1 is not a code from 0 to 7"),
    "below": (part("image", -1, 2), "-1 at place 0 is not a code from 0 to 7"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_part_is_one_line_in_a_document_and_in_a_message(shown, fault):
    bad, says = BAD[fault]
    answer = {"role": "assistant", "content": "yes"}
    encoder = shown.encoder(tokens_per_frame=2)
    for record in (
        {"parts": [{"type": "text", "text": "a"}, bad]},
        {"messages": [{"role": "user", "content": [bad]}, answer]},
    ):
        with pytest.raises(UserError, match=f"^data:7: .*{says}") as caught:
            encoder.encode(record, name="data:7")
        assert "\n" not in str(caught.value)


def test_a_model_of_text_refuses_every_vision(byte_tokenizer):
    tokens = TokenSpace(text=byte_tokenizer.vocab_size)
    with pytest.raises(UserError, match="the model reads no vision"):
        VisionMarkers.of(byte_tokenizer, tokens)
    with pytest.raises(
        UserError, match=r"holds an image or a video, but the model reads no vision"
    ):
        render_chat([Message("user", (image(1),))], byte_tokenizer)
    encoder = RecordEncoder(tokenizer=byte_tokenizer, tokens=tokens)
    for record in (
        {"caption": "a", "vision": [1], "frames": 1},
        {"parts": [part("image", 1, frames=1)]},
    ):
        with pytest.raises(UserError, match="the model reads no vision"):
            encoder.encode(record)


def test_codes_without_pixels_are_not_saved(tmp_path):
    with pytest.raises(UserError, match="these codes have no pixels"):
        image(1).save(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_a_document_holds_texts_and_visions_in_order(shown):
    parts = [
        {"type": "text", "text": "On"},
        {"type": "text", "text": "ce"},
        part("image", 1, 2),
        part("video", 3, 4, 5, 6),
        {"type": "text", "text": "end"},
    ]
    example = shown.encoder(tokens_per_frame=2).encode({"parts": parts})
    text = "Once<vision>12.</vision><vision>34|56.</vision>end<|endoftext|>"
    assert shown(example.ids) == text
    assert example.loss_mask.all()


PICTURE: dict[str, Any] = {"caption": "a cat", "vision": [1, 2, 3, 4], "frames": 2}
TOLD = f"user: {ASK['video']}\n<vision>12|34.</vision>{END}assistant: ", f"a cat{END}"
DRAWN = (
    f"user: {DRAW['video'].format(caption='a cat')}{END}assistant: ",
    f"<vision>12|34.</vision>{END}",
)
DROPPED = "", "<vision>12|34.</vision><|endoftext|>"


def ways(shown, encoder, *, record=PICTURE, number=0):
    """Counts the ways in which a record stands: what is given, and what is learnt."""
    count = collections.Counter()
    for variant in range(encoder.format.captions.variants):
        example = encoder.encode(record, number=number, variant=variant)
        learnt = example.loss_mask
        count[shown(example.ids[~learnt]), shown(example.ids[learnt])] += 1
    return count


@pytest.mark.parametrize("number", [0, 1, 2, 77])
def test_each_record_is_told_drawn_and_dropped_in_the_shares_asked_for(shown, number):
    encoder = shown.encoder(captions=Captions(variants=20))
    assert ways(shown, encoder, number=number) == {TOLD: 10, DRAWN: 9, DROPPED: 1}
    encoder = shown.encoder(captions=Captions(variants=20, vision_first=0.25, dropped=0.2))
    assert ways(shown, encoder, number=number) == {TOLD: 5, DRAWN: 12, DROPPED: 3}
    encoder = shown.encoder(captions=Captions(variants=4, vision_first=0.0, dropped=0.0))
    assert ways(shown, encoder, number=number) == {DRAWN: 4}
    encoder = shown.encoder(captions=Captions(variants=4, vision_first=1.0, dropped=1.0))
    assert ways(shown, encoder, number=number) == {TOLD: 4}


def test_records_seen_once_are_told_and_drawn_in_those_shares_together():
    shares = [share(Captions(), line, 0) for line in range(4000)]
    assert 0 <= min(shares) < 0.01 < 0.99 < max(shares) < 1
    assert np.mean(np.less(shares, 0.5)) == pytest.approx(0.5, abs=0.03)


def test_without_a_chat_the_caption_stands_on_either_side(shown):
    encoder = shown.encoder(captions=Captions(variants=20, chat=False))
    seen = "<vision>12|34.</vision>"
    after, before = f"{seen}a cat<|endoftext|>", f"a cat{seen}<|endoftext|>"
    assert ways(shown, encoder) == {("", after): 10, ("", before): 9, DROPPED: 1}


def test_a_question_takes_the_place_of_a_caption(shown):
    record = PICTURE | {"question": "How many?", "answer": "One"}
    prompt = f"user: How many?\n<vision>12|34.</vision>{END}assistant: "
    encoder = shown.encoder(captions=Captions(variants=3))
    assert ways(shown, encoder, record=record) == {(prompt, f"One{END}"): 3}
    del record["answer"]
    with pytest.raises(UserError, match="key 'answer' should hold a text beside 'vision'; it has"):
        encoder.encode(record)


def test_captions_have_a_key_and_must_not_be_empty(shown):
    record = {"alt": "a cat", "vision": [1, 2], "frames": 1}
    drawn = shown.encoder(captions=Captions(key="alt", vision_first=0.0, dropped=0.0)).encode(
        record
    )
    assert shown(drawn.ids) == f"user: Generate an image of a cat{END}" + (
        f"assistant: <vision>12.</vision>{END}"
    )
    for caption in (" ", 3):
        with pytest.raises(UserError, match="key 'alt' should hold a text"):
            shown.encoder(captions=Captions(key="alt")).encode(record | {"alt": caption})
    with pytest.raises(UserError, match="nor 'caption' beside 'vision'"):
        shown.encoder().encode(record)


def test_a_video_of_which_one_frame_is_wanted_is_an_image(shown):
    record = PICTURE | {"vision": [1, 1, 2, 2, 3, 3, 4, 4, 5, 5], "frames": 5}
    never = Captions(vision_first=0.0, dropped=0.0)
    for most, kind, codes in ((1, "an image", "11."), (3, "a video", "11|33|55.")):
        example = shown.encoder(max_n_frames=most, captions=never).encode(record)
        asked = f"Generate {kind} of a cat{END}"
        assert shown(example.ids) == f"user: {asked}assistant: <vision>{codes}</vision>{END}"
    talk = [
        {"role": "user", "content": [part("video", *record["vision"], frames=5)]},
        {"role": "assistant", "content": "ok"},
    ]
    example = shown.encoder(max_n_frames=2).encode({"messages": talk})
    assert "<vision>11|55.</vision>" in shown(example.ids)


def test_frames_are_lwms_where_neither_record_nor_format_says(shown):
    never = Captions(vision_first=0.0, dropped=0.0)
    record = {"caption": "a", "vision": [1] * 512}
    example = shown.encoder(captions=never).encode(record)
    assert f"<vision>{'1' * 256}|{'1' * 256}.</vision>" in shown(example.ids)
    with pytest.raises(UserError, match="513 codes, which do not divide into frames of 256"):
        shown.encoder(captions=never).encode(record | {"vision": [1] * 513})


@pytest.mark.parametrize("changes", [{"vision_first": 1.1}, {"dropped": -0.1}, {"variants": 0}])
def test_shares_that_cannot_be_are_refused(changes):
    (name,) = changes
    with pytest.raises(UserError, match=f"{name} .* must be (from 0 to 1|at least 1)"):
        Captions(**changes)


def test_a_corpus_holds_every_record_in_each_of_its_variants(shown, tmp_path):
    records = [PICTURE | {"caption": caption} for caption in "abc"]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    source = open_source(path)
    encoder = shown.encoder(captions=Captions(variants=10, dropped=0.0))
    corpus = Corpus(source, encoder)
    assert len(corpus) == 30
    for number in range(30):
        example, record = corpus[number], source[number % 3]
        wanted = encoder.encode(record.value, number=number % 3, variant=number // 3)
        assert (example.ids.tolist(), example.name) == (wanted.ids.tolist(), record.name)
    texts = collections.Counter(shown(corpus[number].ids) for number in range(30))
    assert sorted(texts.values()) == [5] * 6, "each of three is told five times, and drawn"
    with pytest.raises(IndexError):
        corpus[30]
    assert len(Corpus(source, shown.encoder())) == 3


def test_shares_are_the_same_in_one_file_and_in_many(shown, tmp_path):
    for number in range(40):
        text = json.dumps(PICTURE | {"caption": str(number)})
        (tmp_path / f"{number:02}.jsonl").write_text(text)
    files = sorted(tmp_path.glob("*.jsonl"))
    whole = tmp_path / "whole" / "all.jsonl"
    whole.parent.mkdir()
    whole.write_text("\n".join(file.read_text() for file in files))
    many, one = (Corpus(open_source(*paths), shown.encoder()) for paths in (files, [whole]))
    assert [many[n].ids.tolist() for n in range(40)] == [one[n].ids.tolist() for n in range(40)]
    asked = {ASK["video"] in shown(many[n].ids) for n in range(40)}
    assert asked == {True, False}, "some are described, and some generated"


def test_marks_wrap_frames_with_the_ids_that_end_them(shown):
    ids = shown.marks.wrap(np.array([[1, 2], [3, 4], [5, 6]]))
    assert shown(ids) == f"{OPENING}12|34|56.{CLOSING}"
    assert ids.dtype == np.int32
