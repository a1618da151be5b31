"""Answers to many prompts together, and answers in pieces."""

import dataclasses
import itertools
import threading

import jax
import pytest

import lwm
from lwm.errors import UserError
from lwm.generate.answer import MOST, room
from lwm.generate.batch import TextRequest, answers, completions
from lwm.generate.language_model import LanguageModel
from lwm.sampling_params import SamplingParams
from lwm.sharding import make_mesh
from lwm.tokenizer.message import Message
from lwm.tokens import TokenSpace

RANDOM = SamplingParams(max_tokens=24, temperature=1.0)
CHAT = [Message("user", "What?"), Message("assistant", "That."), Message("user", "Why?")]


@pytest.fixture(scope="module")
def writer(tiny, init, byte_tokenizer):
    """A model that writes."""
    with jax.set_mesh(mesh := make_mesh()):
        llama = init(tiny(num_layers=1, tokens=TokenSpace(text=byte_tokenizer.vocab_size)))
        yield LanguageModel(name="tiny", llama=llama, tokenizer=byte_tokenizer, mesh=mesh)


def alone(model, request, *, rows):
    """Returns the one answer to a request, as in a batch of so many."""
    (result,) = answers(model, [request], rows=rows)
    assert result.completion is not None
    return result.completion


def bare(completion):
    """Returns all but the usage, which depends on what was read before."""
    return {key: value for key, value in completion.to_json().items() if key != "usage"}


def test_texts_and_chats_are_answered_together_as_each_is_alone(writer):
    requests = [
        TextRequest(prompt="The sea. " * (1 + 9 * (number % 3)), params=RANDOM)
        if number % 2
        else TextRequest(
            prompt=CHAT[-1 - 2 * (number % 4 // 2) :],
            params=dataclasses.replace(RANDOM, seed=number, max_tokens=5 + number),
            priority=number % 3,
        )
        for number in range(12)  # each kind, with each length and priority
    ]
    found = list(writer.batch(requests))
    assert sorted((each.index, each.number) for each in found) == [(n, 0) for n in range(12)]
    for result in found:
        request = requests[result.index]
        assert result.error is None
        assert bare(result.completion) == bare(alone(writer, request, rows=12))
        is_text = isinstance(request.prompt, str)
        assert result.completion.prompt == (request.prompt if is_text else "")
        assert result.completion.usage.completion_tokens == len(result.completion.ids)


def test_answers_to_one_prompt_have_one_seed_after_the_other_and_read_it_once(writer):
    params = dataclasses.replace(RANDOM, seed=7)
    request = TextRequest(prompt="Some say that the sea is deep.", params=params, n=4)
    found = {each.number: each.completion for each in writer.batch([request])}
    assert len({each.text for each in found.values()}) == 4
    for number, completion in found.items():
        own = TextRequest(
            prompt=request.prompt, params=dataclasses.replace(params, seed=7 + number)
        )
        assert bare(completion) == bare(alone(writer, own, rows=4))
    read = [each.usage.prompt_tokens - each.usage.cached_tokens for each in found.values()]
    assert sorted(read)[:3] == [1, 1, 1], "only the last id, from which the answer starts"
    with pytest.raises(UserError, match="n 0 must be from 1 to 4294967289"):
        dataclasses.replace(request, n=0)


def test_what_does_not_fit_is_an_error_of_its_own(writer):
    asked = ["The sea", "word " * 200, "", CHAT[:2], [], CHAT, *[""] * 3]  # as wide as above
    reasons = [
        None,
        "the prompt has 1,000 tokens, but tiny has a context of 512: 488 fit",
        "the prompt is empty",
        "the chat ends with an answer of the assistant",
        "the conversation is empty",
        None,
        *["the prompt is empty"] * 3,
    ]
    found = {
        each.index: each
        for each in writer.batch([TextRequest(prompt=each, params=RANDOM) for each in asked])
    }
    assert len(found) == len(asked)
    for index, reason in enumerate(reasons):
        if reason is None:
            assert found[index].completion is not None
        else:
            assert reason in str(found[index].error)
            assert found[index].completion is None
    with pytest.raises(UserError, match="prompt 2 of 3: the prompt has 1,000 tokens"):
        next(completions(writer, [each for each in asked[:3] if isinstance(each, str)], RANDOM))


def test_an_answer_to_a_chat_is_that_of_a_conversation(drawer):
    """It has no space at its start, and ends where an image would begin."""
    questions = ["What?", "Why not?", "A tiger", "Where to"]
    requests = [
        TextRequest(prompt=[Message("user", each)], params=SamplingParams(max_tokens=24))
        for each in questions
    ]
    found = {each.index: each.completion for each in drawer.batch(requests)}
    assert "stop" in {each.finish_reason for each in found.values()}
    for index, question in enumerate(questions):
        conversation = lwm.Conversation(drawer)
        pieces = conversation.ask(question, params=requests[index].params)
        assert found[index].text == "".join(map(str, pieces))
        stream = drawer.stream([Message("user", question)], max_tokens=24)
        assert found[index].text == "".join(map(str, stream))
        assert stream.stopped_by == ("<vision>" if conversation.is_without_picture else None)


def test_progress_ends_at_its_total_and_may_stop_the_batch(writer):
    seen = []
    requests = [TextRequest(prompt="The sea" * n, params=RANDOM) for n in (1, 30, 3)]
    usages = [
        each.completion.usage
        for each in writer.batch(requests, progress=lambda done, total: seen.append((done, total)))
    ]
    tokens = sum(each.prompt_tokens + each.completion_tokens for each in usages)
    assert seen[-1] == (tokens, tokens)
    assert all(a[0] <= b[0] and a[1] >= b[1] for a, b in itertools.pairwise(seen))

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(writer.batch(requests, progress=stop))
    assert len(list(writer.batch(requests))) == 3


def test_an_answer_in_pieces_knows_how_it_ended(writer):
    answer = writer.stream("The sea", max_tokens=24, temperature=1.0)
    assert (answer.finish_reason, answer.ids) == (None, [])
    pieces = list(answer)
    assert "".join(pieces) == writer.generate("The sea", max_tokens=24, temperature=1.0)
    assert answer.usage == lwm.Usage(prompt_tokens=7, completion_tokens=len(answer.ids))
    assert len(answer.logprobs) == len(answer.ids)
    assert max(answer.logprobs) <= 0
    assert answer.was_cut == (answer.finish_reason == "length")
    assert list(answer) == []
    none = writer.stream("The sea", max_tokens=0)
    assert (list(none), none.finish_reason, none.ids) == ([], "length", [])


def test_without_a_largest_length_an_answer_may_fill_the_context(writer):
    params = SamplingParams(max_tokens=None)
    assert room(writer, 500, params) == 12
    with pytest.raises(UserError, match=r"512 tokens, .*: 511 fit"):
        room(writer, 512, params)
    config = dataclasses.replace(writer.llama.config, max_context=10_000)
    long = dataclasses.replace(writer, llama=dataclasses.replace(writer.llama, config=config))
    assert room(long, 500, params) == MOST == 4096
    answer = writer.stream("The sea " * 60, max_tokens=None, temperature=1.0)
    list(answer)
    assert len(answer.ids) == 512 - 480 or answer.finish_reason == "stop"


def test_an_answer_ends_when_it_is_closed_or_dropped(writer):
    answer = writer.stream("The sea", max_tokens=400, temperature=1.0)
    next(answer)
    answer.close()
    assert list(answer) == []
    assert answer.finish_reason is None
    answer = writer.stream("The sea", max_tokens=400, temperature=1.0)
    request = answer._request
    next(answer)
    del answer
    assert request.is_cancelled


def test_another_thread_may_close_an_answer(writer):
    answer = writer.stream("The sea", max_tokens=500, temperature=1.0)
    begun, pieces = threading.Event(), []

    def read():
        for piece in answer:
            pieces.append(piece)
            begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(60)
    answer.close()
    reader.join(60)
    assert not reader.is_alive()
    assert pieces
