"""Fields of other people's conversations besides roles and texts: used, or refused by name."""

import json
from typing import Any

import numpy as np
import pytest

from lwm.data.fields import RecordEncoder
from lwm.data.format import ExampleFormat
from lwm.errors import UserError
from lwm.tokenizer.template import render_chat
from lwm.tokens import TokenSpace

END = "<|im_end|>"
TOOLS = (
    "{% if tools %}tools: {{ tools | tojson }}<|im_end|>{% endif %}"
    "{% for m in messages %}{{ m.role }}: "
    "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}[{{ call.function.name }} "
    "{{ call.function.arguments | tojson }}]{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
ADD = {"type": "function", "function": {"name": "add", "parameters": {}}}
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
TALK = [
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "2", "tool_call_id": "1", "name": "add"},
    {"role": "assistant", "content": "Two."},
]
CALLED = f'user: 1+1?{END}assistant: [add {{"a": 1}}]{END}tool: 2{END}assistant: Two.{END}'


class Shown:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, record, *, template: str | None = TOOLS):
        """Returns a record as text, and its spans with loss."""
        encoder = RecordEncoder(
            tokenizer=self.tokenizer,
            tokens=TokenSpace(text=self.tokenizer.vocab_size),
            format=ExampleFormat(template=template),
        )
        example = encoder.encode(record)
        spans = np.split(example.ids, np.flatnonzero(np.diff(example.loss_mask)) + 1)
        texts = [self.tokenizer.decode(span, skip_special=False) for span in spans]
        return "".join(texts), texts[1::2]


@pytest.fixture
def shown(byte_tokenizer):
    return Shown(byte_tokenizer)


def test_tools_and_calls_go_through_the_template(shown, byte_tokenizer):
    text, trained = shown({"messages": TALK, "tools": [ADD]})
    assert text == f"tools: {json.dumps([ADD])}{END}" + CALLED
    assert trained == [f'[add {{"a": 1}}]{END}', f"Two.{END}"]
    ids = render_chat(TALK[:1], byte_tokenizer, template=TOOLS, tools=[ADD])
    prompt = byte_tokenizer.decode(ids, skip_special=False)
    assert prompt == f"tools: {json.dumps([ADD])}{END}user: 1+1?{END}assistant: "


@pytest.mark.parametrize(
    "record",
    [
        {"messages": TALK, "tools": json.dumps([ADD])},  # as Arrow files hold them
        {"messages": TALK, "functions": [ADD["function"]]},
        {
            "functions": json.dumps([ADD["function"]]),
            "messages": [
                TALK[0],
                {"role": "assistant", "content": None, "function_call": CALL["function"]},
                {"role": "function", "content": "2", "name": "add"},
                TALK[3],
            ],
        },
        {
            "tools": [ADD],
            "conversations": [
                {"from": "human", "value": "1+1?"},
                {"from": "gpt", "value": "", "tool_calls": [CALL]},
                {"from": "observation", "value": "2"},
                {"from": "gpt", "value": "Two."},
            ],
        },
    ],
)
def test_other_spellings_of_tools_are_read(shown, record):
    assert shown(record)[0] == f"tools: {json.dumps([ADD])}{END}" + CALLED


def test_reasoning_is_learnt_where_the_template_writes_it(shown):
    talk = [TALK[0], {"role": "assistant", "content": "", "reasoning_content": "hm"}]
    assert shown({"messages": talk})[1] == [f"(hm){END}"]


def test_names_of_special_tokens_in_tools_and_calls_stay_text(shown, byte_tokenizer):
    call = {"function": {"name": END, "arguments": {END: [END]}}}
    said = [{"role": "assistant", "content": "a", "tool_calls": [call]}]
    tools = [{"description": END}]
    ids = render_chat(said, byte_tokenizer, template=TOOLS, tools=tools)
    assert ids.count(byte_tokenizer.backend.special[END]) == 2


@pytest.mark.parametrize("key", ["system", "system_prompt"])
def test_a_system_prompt_beside_the_messages_comes_first(shown, key):
    assert shown({"messages": TALK[:1] + TALK[3:], key: "Be brief."})[0].startswith(
        f"system: Be brief.{END}user: "
    )
    with pytest.raises(UserError, match=f"key '{key}' is beside another system message"):
        shown({"messages": [{"role": "system", "content": "x"}, *TALK], key: "Be brief."})


def answers(*changes: dict[str, Any]):
    turns = [
        ({"role": "user", "content": "?"}, {"role": "assistant", "content": str(n)} | change)
        for n, change in enumerate(changes)
    ]
    return {"messages": [message for turn in turns for message in turn]}


@pytest.mark.parametrize(
    "left_out",
    [
        {"content": ""},
        {"content": " \n"},
        {"weight": 0},
        {"train": False},
        {"loss_mask": 0},
        {"loss": False},
        {"trainable": 0, "weight": 0.0},
    ],
)
def test_empty_answers_and_those_left_out_have_no_loss(shown, left_out):
    text, trained = shown(answers({}, left_out, {"weight": 1, "loss_mask": True}))
    assert trained == [f"0{END}", f"2{END}"]
    assert text.count("assistant: ") == 3
    with pytest.raises(UserError, match="no answer of the assistant to train on"):
        shown(answers(left_out))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "part of an answer": (answers({"weight": 0.5}), "key 'weight' .* 0 or 1.*not 0.5"),
    "mask of tokens": (answers({"loss_mask": [0, 1]}), "key 'loss_mask'"),
    "contradiction": (answers({"weight": 0, "train": True}), "'weight', 'train' .* contradict"),
    "loss on a question": (
        {"messages": [{"role": "user", "content": "a", "train": True}, TALK[3]]},
        "train on a user message",
    ),
    "unknown key": (
        answers({"mood": "sad"}),
        "does not write key 'mood' of a message of the assistant",
    ),
    "speaker": (answers({"name": "Ann"}), "key 'name'"),
    "weight of a record": (answers({}) | {"weight": 0.5}, "'weight' is 0.5: records have equal"),
    "record left out": (answers({}) | {"train": False}, "'train' is False"),
    "array of Arrow": (answers({}) | {"loss_mask": np.array([1, 0])}, r"'loss_mask' is \[1, 0\]"),
    "images": (answers({}) | {"images": ["a.png"]}, "'images' beside 'messages'"),
    "images of Arrow": (answers({}) | {"images": np.array(["a", "b"])}, "'images' beside"),
    "documents": (answers({}) | {"documents": [{"text": "a"}]}, "does not write 'documents'"),
    "variable": (answers({}) | {"chat_template_kwargs": {"think": 1}}, "does not write 'think'"),
    "reserved": (answers({}) | {"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs"),
    "tools": (answers({}) | {"tools": "add"}, "key 'tools' holds a text that is no JSON"),
    "calls": (answers({"tool_calls": [1]}), "'tool_calls' should be a list of objects"),
    "speaker of ShareGPT": (
        {"conversations": [{"from": "alien", "value": "a"}]},
        "'from' 'alien', which is none of human",
    ),
    "other form": ({"prompt": "a", "completion": "b"}, r"name the fields: \[prompt\],completion"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_by_name(shown, case):
    record, says = REFUSED[case]
    with pytest.raises(UserError, match=says):
        shown(record)


def test_lwms_format_has_no_tools(shown):
    for record in ({"messages": TALK}, answers({}) | {"tools": [ADD]}):
        with pytest.raises(UserError, match=r"does not write .*tool"):
            shown(record, template="lwm")


def test_notes_and_nulls_beside_a_message_are_left_alone(shown):
    noted = {"id": "7", "timestamp": 3, "name": None, "tool_calls": None, "weight": None}
    assert shown(answers(noted) | {"source": "web", "tools": []})[1] == [f"0{END}"]


def test_a_key_that_only_another_object_has_in_the_template_counts_as_unread(shown):
    """The template above reads the name of a function, and not that of who speaks."""
    talk = [{"role": "user", "content": "a", "name": "Ann"}, TALK[3]]
    named = TOOLS.replace("{{ m.role }}", "{{ m.role }}{{ m.get('name') or '' }}")
    assert shown({"messages": talk}, template=named)[0].startswith("userAnn: a")
    whole = "{{ messages[0] | tojson }}" + TOOLS
    assert '"name": "Ann"' in shown({"messages": talk}, template=whole)[0]
    with pytest.raises(UserError, match="key 'name' of a message of the user"):
        shown({"messages": talk})
    unset = "{% if not tools is defined %}{% set tools = none %}{% endif %}" + TOOLS
    assert shown({"messages": TALK, "tools": [ADD]}, template=unset)[0].startswith("tools")


def test_variables_of_the_template_come_from_a_record(shown):
    template = "{{ mood }}" + TOOLS
    record = answers({}) | {"chat_template_kwargs": {"mood": "sad"}}
    assert shown(record, template=template)[0].startswith("sad")
