"""Records to examples: as the original does, its faults excepted, and chats by any template."""

import json
import pickle
import re
from typing import Any

import numpy as np
import pytest
import tokenizers

from lwm.cli.data import data_check
from lwm.data.fields import RecordEncoder, chat_ids
from lwm.data.format import Captions, ExampleFormat
from lwm.errors import UserError
from lwm.tokenizer.template import chat_parts, render_chat
from lwm.tokenizer.tokenizer import Tokenizer
from lwm.tokens import TokenSpace

SPACE = TokenSpace(text=512, vision=8448, codes=8192)
# The original's names, and what we call the same.
NAMES = {
    "add_bos_token": "add_bos",
    "add_eos_token": "add_eos",
    "n_tokens_per_frame": "tokens_per_frame",
}


def original(fixtures, kind):
    """Yields what the original made: entry, record, ids of our space, loss mask, vision mask."""
    lines = (fixtures / "data" / "vision16.jsonl").read_text().splitlines()
    for entry in json.loads((fixtures / "data" / "processors.json").read_text()):
        if entry["kind"] == kind:
            record = entry["example"] if kind == "text" else json.loads(lines[entry["line"]])
            ids = np.asarray(entry["tokens"])
            seen = np.asarray(entry.get("vision_mask", np.zeros(len(ids))), bool)
            yield entry, record, ids + SPACE.text * seen, np.asarray(entry["loss_masks"]), seen


def encode(fixtures, entry, record):
    settings: dict[str, Any] = {"add_bos": True} | {
        NAMES.get(name, name): value
        for name, value in entry["config"].items()
        if name not in ("eof_token", "eov_token")
    }
    format = ExampleFormat(**settings)
    tokenizer = Tokenizer.open(fixtures / entry["tokenizer"])
    encoder = RecordEncoder(tokenizer=tokenizer, tokens=SPACE, format=format)
    return encoder.encode(record, line=entry.get("line", 0))


def test_text_is_as_in_the_original(fixtures):
    count = 0
    for entry, record, ids, mask, _ in original(fixtures, "text"):
        example = encode(fixtures, entry, record)
        assert example.ids.tolist() == ids.tolist()
        assert example.loss_mask.tolist() == mask.tolist()
        count += 1
    assert count == 40


def test_vision_is_as_in_the_original(fixtures):
    """Two faults of the original are mended.

    Where its tokenizer adds a beginning of text, so does each piece, within the example; and it
    takes any ids to end frames, such as 300, which is also a code.
    """
    wanted, count, ends = {}, 0, 0
    for entry, record, ids, mask, seen in original(fixtures, "vision"):
        case = json.dumps([entry["config"], entry["line"]])
        if "eof_token" in entry["config"]:
            places = np.flatnonzero(seen)[16::17]
            assert set(ids[places]) <= {SPACE.text + 300, SPACE.text + 301}
            ids[places] += 8192 - 300
            ends += len(places)
        if entry["tokenizer"] == "tokenizer_addbos":
            without, *masks = wanted[case]
            assert ids[ids != 1].tolist() == without[without != 1].tolist()
            assert len(ids) == len(without) + 3, "three pieces"
            ids, (mask, seen) = without, masks
        wanted[case] = ids, mask, seen
        example = encode(fixtures, entry, record)
        assert example.ids.tolist() == ids.tolist()
        assert example.loss_mask.tolist() == mask.tolist()
        assert (example.ids >= SPACE.text).tolist() == seen.tolist()
        count += 1
    assert count == 41
    assert ends > 0


class Bytes:
    """Encoders whose every token is a byte, so that ids can be read."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, tokens_per_frame=2, **settings):
        format = ExampleFormat(tokens_per_frame=tokens_per_frame, **settings)
        space = TokenSpace(text=self.tokenizer.vocab_size, vision=10, codes=8)
        return RecordEncoder(tokenizer=self.tokenizer, tokens=space, format=format)

    def shown(self, example, learnt=None):
        """Returns an example as text, codes as digits, ends of frames as `|` and of vision `.`"""
        text = self.tokenizer.vocab_size
        marks = [*map(str, range(8)), "|", "."]
        ids = example.ids if learnt is None else example.ids[example.loss_mask == learnt]
        return "".join(self.tokenizer.text_of(int(i)) if i < text else marks[i - text] for i in ids)


@pytest.fixture
def of_bytes(byte_tokenizer):
    return Bytes(byte_tokenizer)


RECORD = {"a": "A", "b": "B", "vision": [1, 2, 3, 4, 5, 6], "vision_note": "note", "c": None}


def test_vision_may_be_joined_with_text(of_bytes):
    """The original's documents write `[vision+question],answer`, which it fails on: a fault."""
    example = of_bytes(fields="[a+b+vision+a],b, [<|eos|>]").encode(RECORD)
    assert of_bytes.shown(example, False) == "A B<vision>12|34|56.</vision>A<|endoftext|>"
    assert of_bytes.shown(example, True) == "B<|endoftext|>"


def test_text_under_a_name_with_vision_is_text(of_bytes):
    """The original takes its letters for codes: a fault."""
    example = of_bytes(fields="vision_note", add_eos=False).encode(RECORD)
    assert of_bytes.shown(example) == "note"


def test_frames_are_taken_evenly(of_bytes):
    record = {"vision": [i // 2 for i in range(16)], "fields": "vision"}
    example = of_bytes(max_n_frames=3, add_eos=False).encode(record)
    assert of_bytes.shown(example) == "<vision>00|33|77.</vision>"


def test_a_text_is_learnt_and_its_tags_are_letters(of_bytes, fixtures):
    """The original ends a text where a page says `</s>`, HTML's strike-through: a fault."""
    text = "a<|endoftext|>b"
    example = of_bytes().encode({"text": text})
    assert of_bytes.shown(example) == text + "<|endoftext|>"
    assert len(example) == len(text) + 1
    assert example.loss_mask.all()
    assert len(of_bytes(special_tokens=True).encode({"text": text})) == 4
    tokenizer = Tokenizer.open(fixtures / "tokenizer_addbos")
    example = RecordEncoder(tokenizer=tokenizer, tokens=SPACE).encode({"text": "a b"})
    assert example.ids.tolist() == [1, *tokenizer.encode("a b"), 2]
    assert example.loss_mask.tolist() == [False, *[True] * (len(example) - 1)]


def test_ids_are_an_example_as_they_stand(of_bytes):
    text = of_bytes.tokenizer.vocab_size
    for ids in (
        [1, text + 9],
        np.array([1, text + 9], np.int64),
        np.array([1, text + 9], np.int32),
    ):
        example = of_bytes().encode({"text": "kept", "ids": ids})
        assert (example.ids.dtype, example.ids.tolist()) == (np.int32, [1, text + 9])
        assert example.loss_mask.tolist() == [True, True]
        assert not np.shares_memory(example.ids, ids)
    for learn in ([0, 1], [False, True], np.array([0, 1], np.int8)):
        example = of_bytes(format="ids").encode({"ids": [1, 2], "learn": learn})
        assert example.loss_mask.tolist() == [False, True]
    assert of_bytes.shown(of_bytes(format="text").encode({"text": "a", "ids": [1]})).startswith("a")


def test_a_copy_of_an_encoder_takes_tags_for_letters_too(of_bytes):
    """The library of tokenizers forgets that when it is copied, and a text could end itself."""
    record = {"text": "a<|endoftext|>b"}
    copy = pickle.loads(pickle.dumps(of_bytes()))
    assert copy.encode(record).ids.tolist() == of_bytes().encode(record).ids.tolist()


def test_drawn_fields_depend_on_the_line_alone(of_bytes):
    encoder = of_bytes(add_eos=False)
    record = RECORD | {"fields": ["a", "b", "a+b"]}
    drawn = [of_bytes.shown(encoder.encode(record, line=line)) for line in range(20)]
    assert set(drawn) == {"A", "B", "A B"}
    assert drawn == [of_bytes.shown(encoder.encode(record, line=line)) for line in range(20)]
    assert of_bytes.shown(of_bytes(fields_index=2, add_eos=False).encode(record)) == "A B"


def test_frames_of_the_record_come_before_the_size_of_a_frame(of_bytes):
    record = {"fields": "vision", "vision": [1, 2, 3, 4], "frames": 1}
    one = of_bytes(add_eos=False, tokens_per_frame=2)
    whole = of_bytes(add_eos=False, tokens_per_frame=4).encode({**record, "frames": None})
    assert one.encode(record).ids.tolist() == whole.ids.tolist()
    assert one.encode(record | {"frames": 2}).ids.tolist() != whole.ids.tolist()


BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "missing key": ({"fields": "a,d"}, {}, r"key 'd' is missing; it has 'a', 'b', 'vision'"),
    "null": ({"fields": "c"}, {}, "key 'c' is missing"),
    "nothing known": ({}, {}, "no key 'fields', .* 'caption' beside 'vision'; it has"),
    "number": ({"fields": "n"}, {"n": 7}, "key 'n' should hold text, not 7"),
    "codes elsewhere": ({"fields": "n"}, {"n": [7]}, r"not \[7\]; codes go under a key with 'vi"),
    "part of a frame": ({"fields": "vision"}, {"vision": [1, 2, 3]}, "'vision' has 3 codes.* 2"),
    "code too high": ({"fields": "vision"}, {"vision": [1, 8]}, "'vision': 8 at place 1 .* 0 to 7"),
    "code below": ({"fields": "vision"}, {"vision": [-1, 8]}, "'vision': -1 at place 0"),
    "no frame": ({"fields": "vision"}, {"vision": []}, "'vision' holds no frame"),
    "nested": ({"fields": "vision"}, {"vision": [[1, 2]]}, "'vision' should be one flat list"),
    "ragged": ({"fields": "vision"}, {"vision": [[1], 2]}, "'vision' should be one flat list"),
    "fractions": ({"fields": "vision"}, {"vision": [1.5, 2]}, "'vision' should be one flat list"),
    "bracket": ({"fields": "[a,b]"}, {}, r"brackets enclose one field; write \[a\],\[b\]"),
    "empty name": ({"fields": "a,"}, {}, "'a,' have an empty name"),
    "token": ({"fields": "a,<|sep|>"}, {}, r"unknown token <\|sep\|>; known"),
    "lacking token": ({"fields": "<|bos|>"}, {}, r"<\|bos\|>, which the tokenizer lacks"),
    "odd fields": ({}, {"fields": 3}, "key 'fields' should name fields.*not 3"),
    "no alternative": ({"fields_index": 1}, {"fields": ["a"]}, "lists 1 fields; there is no 1"),
    "array": ({"fields": "n"}, {"n": np.arange(999)}, r"not \[0, 1.*codes go under a key with 'vi"),
    "no ids": ({}, {"ids": []}, "key 'ids' should be one flat list of integers"),
    "ids of text": ({}, {"ids": "1 2"}, "key 'ids' should be one flat list of integers"),
    "ids too large": ({}, {"ids": [1 << 70]}, "key 'ids' should be one flat list"),
    "id too high": ({}, {"ids": [1, 268]}, "key 'ids': 268 at place 1 is not an id from 0 to 267"),
    "id below": ({}, {"ids": [0, 1, -1, -2]}, "key 'ids': -1 at place 2"),
    "learn": ({}, {"ids": [1], "learn": [2]}, "key 'learn' should be one flat list of 0 and 1"),
    "learn short": ({}, {"ids": [1, 2], "learn": [1]}, "key 'learn' has 1 entries for 2 ids"),
    "picture beside a text": ({}, {"text": "a"}, "'vision' beside 'text' would be left out; put"),
    "picture beside a chat": ({}, {"messages": []}, "would be left out; .* say format 'messages'"),
    "empty text": ({"format": "text"}, {"text": " "}, "key 'text' is empty"),
    "messages": (
        {"format": "messages"},
        {"messages": ["hi"]},
        "key 'messages' should be a list of objects",
    ),
    "role": ({"format": "messages"}, {"messages": [{"role": "robot"}]}, "unknown role 'robot'"),
    "no answer": (
        {"format": "messages"},
        {"messages": [{"role": "user", "content": "a"}]},
        "no answer of the",
    ),
    "answer first": (
        {"format": "messages"},
        {"messages": [{"role": "assistant", "content": "a"}]},
        "starts with the",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_record_is_one_line_that_names_the_key(of_bytes, fault):
    """The original drops what fills no frame, and takes any number for a code: faults."""
    settings, changes, says = BAD[fault]
    with pytest.raises(UserError, match=f"data:7: .*{says}") as caught:
        of_bytes(**settings).encode(RECORD | changes, name="data:7")
    assert "\n" not in str(caught.value)


def test_a_model_of_text_refuses_codes(of_bytes):
    encoder = RecordEncoder(
        tokenizer=of_bytes.tokenizer,
        tokens=TokenSpace(text=300),
        format=ExampleFormat(fields="vision"),
    )
    with pytest.raises(UserError, match=r"key 'vision' .* the model reads no vision"):
        encoder.encode(RECORD)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"fields": "a", "fields_from_example": "b"}, "not both"),
        ({"fields": "a", "format": "text"}, "does not use fields"),
        ({"tokens_per_frame": 0}, "tokens_per_frame 0"),
        ({"max_n_frames": -1}, "max_n_frames -1"),
    ],
)
def test_a_format_that_cannot_be_is_refused(settings, says):
    with pytest.raises(UserError, match=says):
        ExampleFormat(**settings)


END = "<|im_end|>"
PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TRIMMED = PLAIN.replace("m.content", "m.content | trim")
# As Qwen3 does: what was thought is dropped once the user has spoken again.
FORGETFUL = """{%- for m in messages %}
    {%- set later = messages[loop.index0 + 1:] | selectattr('role', 'equalto', 'user') | list %}
    {%- set text = m.content.split('</think>')[-1] if later else m.content %}
    {{- m.role + ': ' + text + '<|im_end|>' }}
{%- endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"""
TALK = [
    {"role": "system", "content": "assistant: "},
    {"role": "user", "content": f"One?{END}\nassistant: no{END}"},
    {"role": "assistant", "content": " <think>hm</think>yes"},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": f"assistant: é{END}"},
]


@pytest.mark.parametrize(
    ("template", "first"),
    [(PLAIN, " <think>hm</think>yes"), (TRIMMED, "<think>hm</think>yes"), (FORGETFUL, "yes")],
)
def test_answers_and_their_ends_are_learnt(byte_tokenizer, template, first):
    ids, learn = chat_ids(TALK, byte_tokenizer, template=template)
    whole = render_chat(TALK, byte_tokenizer, template=template, add_generation_prompt=False)
    assert ids.tolist() == whole
    spans = np.split(ids, np.flatnonzero(np.diff(learn)) + 1)
    assert not learn[0]
    learnt = [byte_tokenizer.decode(span, skip_special=False) for span in spans[1::2]]
    assert learnt == [first + END, f"assistant: é{END}" + END]
    assert all(span[-1] == byte_tokenizer.backend.special[END] for span in spans[1::2])
    prompt = render_chat(TALK[:4], byte_tokenizer, template=template)
    assert whole[: len(prompt)] == prompt
    assert learn[len(prompt)]
    assert not learn[len(prompt) - 1], "the first learnt is the first that would be generated"


def test_lwms_format_learns_answers(fixtures):
    for name in ("tokenizer", "tokenizer_addbos", "tokenizer/tokenizer.model"):
        tokenizer = Tokenizer.open(fixtures / name)
        encoder = RecordEncoder(tokenizer=tokenizer, tokens=SPACE)
        talk = [TALK[0], TALK[3], TALK[4], TALK[3], {"role": "assistant", "content": "yes"}]
        example = encoder.encode({"messages": talk})
        spans = np.split(example.ids, np.flatnonzero(np.diff(example.loss_mask)) + 1)
        learnt = [tokenizer.decode(span, skip_special=False).strip() for span in spans[1::2]]
        assert learnt == [f"assistant: é{END}</s>", "yes</s>"]
        assert example.ids.tolist() == render_chat(talk, tokenizer, add_generation_prompt=False)


def test_a_long_conversation_is_rendered_once_for_each_answer(byte_tokenizer, monkeypatch):
    rendered = []

    def count(messages, **options):
        rendered.append(len(messages))
        return chat_parts(messages, **options)

    monkeypatch.setattr("lwm.data.chat.chat_parts", count)
    for turns, extra in ((1, 1), (20, 2)):
        rendered.clear()
        chat_ids([*TALK[1:3] * turns], byte_tokenizer, template=PLAIN)
        assert len(rendered) == turns + extra


def test_a_token_half_prompt_half_answer_is_learnt(tmp_path):
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    table = {letter: number for number, letter in enumerate([*letters, "ĊĊ"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(table, [("Ċ", "Ċ")]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    template = PLAIN.replace(": ", "\n")
    talk = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "\n\n42"}]
    opened = Tokenizer.open(tmp_path)
    ids, learn = chat_ids(talk, opened, template=template)
    assert opened.decode(ids[learn], skip_special=False) == "\n\n\n42" + END
    assert opened.decode(ids[~learn], skip_special=False) == f"user\n?{END}\nassistant\n"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (PLAIN.replace("assistant: {%", "bot: {%"), "message 2 after the prompt for it"),
        ("{{ messages | length }}" + PLAIN, "message 2 after the prompt for it"),
        (re.sub(r"<\|im_end\|>\n", "\n", PLAIN), "does not end the turn of message 2"),
        # Only the user's turns end, so that the next one is the user's.
        (
            PLAIN.replace("<|im_end|>\n", "{% if m.role == 'user' %}<|im_end|>{% endif %}"),
            "does not end the turn of message 2",
        ),
    ],
)
def test_templates_whose_answers_cannot_be_told_are_refused(byte_tokenizer, template, says):
    with pytest.raises(UserError, match=says):
        chat_ids(TALK, byte_tokenizer, template=template)


def test_of_several_captions_each_variant_takes_the_next(byte_tokenizer):
    tokens = TokenSpace.of(byte_tokenizer.vocab_size, 8)
    captions = Captions(vision_first=1.0, variants=2)
    form = ExampleFormat(tokens_per_frame=2, captions=captions)
    encoder = RecordEncoder(tokenizer=byte_tokenizer, tokens=tokens, format=form)

    def said(caption, number=0, variant=0):
        record = {"caption": caption, "vision": [1, 2], "score": float("nan")}
        ids = encoder.encode(record, number=number, variant=variant).ids
        return byte_tokenizer.decode(ids[ids < tokens.text].tolist())

    three = ["one", "two", "three"]
    for number, variant in ((0, 0), (0, 1), (4, 0), (5, 1)):
        expected = three[(number + variant) % 3]
        assert said(three, number, variant) == said(expected, number, variant)
        assert expected in said(three, number, variant)
    for missing in (float("nan"), None, [], [1]):
        with pytest.raises(UserError, match=r"record: "):
            said(missing)


def test_frames_have_the_codes_of_the_model_s_vqgan_where_nothing_says_it(tmp_path, capsys):
    records = [{"caption": "x", "vision": [1] * 128}, {"caption": "y", "vision": [2] * 64}]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in records))
    data_check((str(file),), model="tiny-vision")
    assert "bad lines  0" in capsys.readouterr().out
    assert ExampleFormat(tokens_per_frame=32).framed(64).tokens_per_frame == 32
    assert ExampleFormat().framed(None).tokens_per_frame is None
