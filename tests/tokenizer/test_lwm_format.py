"""LWM's chat format as a template for other programs: the same ids there, and the format here."""

import dataclasses

import numpy as np
import pytest

from lwm.files import ASSETS
from lwm.tokenizer.lwm_format import LWM_JINJA
from lwm.tokenizer.markers import VisionMarkers
from lwm.tokenizer.message import Message, Vision
from lwm.tokenizer.template import render_chat
from lwm.tokenizer.tokenizer import Tokenizer, with_format
from lwm.tokens import TokenSpace

CONVERSATIONS = [
    [("user", "Hi there")],
    [("user", "Hi  "), ("assistant", "Hello. "), ("user", " What?\n")],
    [("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
    [("system", ""), ("user", "é日本 😀 'tis <vision>")],
    [("system", "Only this. ")],
    [("assistant", "First."), ("user", "")],
]


def turns(conversation):
    return [{"role": role, "content": content} for role, content in conversation]


@pytest.fixture(params=["shipped", "original", "pieces"])
def tokenizer(request, fixtures, tmp_path):
    match request.param:
        case "shipped":
            return Tokenizer.open(ASSETS / "tiny-vision")
        case "original":
            return Tokenizer.open(fixtures / "tokenizer")
        case _:
            return Tokenizer.open(fixtures / "tokenizer" / "tokenizer.model")


@pytest.fixture
def saved(tokenizer, tmp_path):
    (tmp_path / "saved").mkdir()
    with_format(tokenizer, chats=True).save(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path / "saved"


@pytest.mark.torch
@pytest.mark.parametrize("prompt", [True, False])
def test_transformers_has_the_same_ids(tokenizer, saved, prompt):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = transformers.AutoTokenizer.from_pretrained(saved)
    for conversation in map(turns, CONVERSATIONS):
        found = theirs.apply_chat_template(
            conversation, add_generation_prompt=prompt, return_dict=False
        )
        assert found == render_chat(conversation, tokenizer, add_generation_prompt=prompt)


def test_it_reads_back_as_the_format_images_included(tokenizer, saved):
    again = Tokenizer.open(saved)
    assert again.chat_template == "lwm"
    image = Vision(codes=np.arange(6).reshape(2, 3), is_video=True)
    shown = [
        Message("user", ("What? ", image, "And this:", image)),
        Message("assistant", ("So: ", image)),
        Message("user", ("Why?",)),
    ]
    marks = VisionMarkers.of(tokenizer, TokenSpace.of(tokenizer.vocab_size, 6))
    for conversation in (shown, *map(turns, CONVERSATIONS)):
        wanted = render_chat(conversation, tokenizer, template="lwm", marks=marks)
        assert render_chat(conversation, again, marks=marks) == wanted
        if conversation is not shown:
            as_jinja = dataclasses.replace(again, chat_template=LWM_JINJA)
            assert render_chat(conversation, as_jinja) == wanted


@pytest.mark.torch
def test_images_have_their_place_between_the_markers(saved):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = transformers.AutoTokenizer.from_pretrained(saved)
    image, text = {"type": "image"}, {"type": "text", "text": "What?"}
    shown = [
        {"role": "user", "content": [text, image, text]},
        {"role": "assistant", "content": [text, image]},
        {"role": "user", "content": [image]},
    ]
    assert theirs.apply_chat_template(shown, add_generation_prompt=True, tokenize=False) == (
        "<s>You are a helpful assistant. USER: What?\n<vision></vision>What? "
        "ASSISTANT: What?<vision></vision></s>USER:<vision></vision> ASSISTANT:"
    )


def test_a_template_of_the_models_own_stays(saved):
    own = dataclasses.replace(Tokenizer.open(saved), chat_template="{{ messages }}")
    assert with_format(own, chats=True) == own
    none = dataclasses.replace(own, chat_template=None)
    assert with_format(none, chats=False) == none
