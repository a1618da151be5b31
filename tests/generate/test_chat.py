import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest

from lwm.devices import Machine
from lwm.errors import UserError
from lwm.generate import engine, loaded
from lwm.generate.batch import complete
from lwm.generate.chat import Conversation, Reader
from lwm.plan.memory import inference_need
from lwm.sampling_params import SamplingParams, VisionSampling
from lwm.tokenizer.message import Message
from lwm.tokenizer.tokenizer import TextStream

SHORT = SamplingParams(max_tokens=16)


def test_turns_continue_the_cache_and_answer_as_a_fresh_reading_would(model):
    conversation = Conversation(model, document="A long text.\n")
    read = []
    for question in ("What?", "Why?", "Who?"):
        turns = [*conversation.messages]
        list(conversation.ask(question, params=SHORT, progress=lambda n, total: read.append(total)))
        fresh = Conversation(model, document="A long text.\n")
        fresh.messages = turns
        list(fresh.ask(question, params=SHORT))
        assert conversation.messages == fresh.messages
    first = "user: A long text.\n\nWhat?<|im_end|>assistant: "
    assert conversation.messages[0].text == "A long text.\n\nWhat?"
    assert read[0] == len(model.tokenizer.encode(first))
    assert max(read[1:]) < 80  # only the new turn


def test_prompt_that_does_not_fit_says_how_much_does(model):
    with pytest.raises(UserError, match=r"prompt has 6\d\d tokens, .* context of 512: 496 fit"):
        model.chat("x" * 600, max_tokens=16)
    conversation = Conversation(model)
    list(conversation.ask("Hi", params=SHORT))
    before = list(conversation.messages)
    with pytest.raises(UserError, match="shorten the prompt or lower max_tokens"):
        list(conversation.ask("x" * 600, params=SHORT))
    assert conversation.messages == before
    assert list(conversation.ask("And?", params=SHORT))


def test_an_answer_given_up_halfway_is_kept_as_far_as_it_went(model):
    conversation = Conversation(model)
    pieces = conversation.ask("Hi", params=SamplingParams(max_tokens=100))
    first = next(pieces)
    pieces.close()
    assert conversation.messages[-1] == Message("assistant", (str(first).strip(),))
    assert list(conversation.ask("And?", params=SHORT))


def test_reading_given_up_leaves_the_conversation_as_it_was(model):
    conversation = Conversation(model)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(conversation.ask("Hi", params=SHORT, progress=stop))
    assert conversation.messages == []
    other = Conversation(model)
    assert list(conversation.ask("Ho", params=SHORT)) == list(other.ask("Ho", params=SHORT))


def test_answers_end_at_the_end_of_turn(model):
    tokenizer = model.tokenizer
    prompt = tokenizer.encode("Hello")
    free = Reader(model)
    text = "".join(map(str, free.answer(prompt, TextStream(tokenizer), SHORT)))
    assert free.was_cut
    assert free.num_tokens == len(prompt) + 16
    assert text == tokenizer.decode(free._prefix.ids[len(prompt) :])


def test_generate_continues_a_text(model):
    text = model.generate("Once upon", max_tokens=12)
    assert text == model.generate("Once upon", max_tokens=12)
    assert text != model.generate("Once upon", max_tokens=12, temperature=1.0, seed=3)
    with pytest.raises(UserError, match="the prompt is empty"):
        model.generate("")


def test_stop_strings_end_an_answer_wherever_tokens_divide_it(model):
    whole = model.generate("Once upon", max_tokens=40)
    stop = whole[10:14]
    text = model.generate("Once upon", max_tokens=40, stop=(stop, "never"))
    assert text == whole[: whole.index(stop)]


def test_prompts_together_are_completed_as_alone(model):
    prompts = ["Once upon a time", "x", "The sea " * 20]
    params = SamplingParams(max_tokens=24, temperature=1.0, seed=7)
    together = complete(model, prompts, params)
    for prompt, completion in zip(prompts, together, strict=True):
        alone = complete(model, [prompt], params)[0]
        assert (completion.prompt, completion.ids) == (prompt, alone.ids)
        assert completion.logprobs == pytest.approx(alone.logprobs, abs=1e-4)
        assert completion.text == model.generate(prompt, max_tokens=24, temperature=1.0, seed=7)
        assert len(completion.ids) == len(completion.logprobs)
        assert (completion.finish_reason == "length") == (len(completion.ids) == 24)


def test_a_batch_is_generated_as_each_alone(model):
    progress = []
    found = model.generate_batch(
        ["Once upon", "A tale"],
        max_tokens=8,
        stop=("never",),
        progress=lambda done, total: progress.append((done, total)),
    )
    assert [each.text for each in found] == [
        model.generate(prompt, max_tokens=8, stop=("never",)) for prompt in ("Once upon", "A tale")
    ]
    assert progress


def test_old_keywords_work_and_warn(model):
    conversation = Conversation(model)
    with pytest.warns(DeprecationWarning, match="writing= is now params=; the old keyword goes"):
        answer = list(conversation.ask("Hi", writing=SHORT))  # pyrefly: ignore
    assert answer == list(Conversation(model).ask("Hi", params=SHORT))
    with (
        pytest.warns(DeprecationWarning, match="drawings= is now sampling="),
        pytest.raises(UserError, match="reads and writes text only"),
    ):
        model.draw("a cat", drawings=VisionSampling())


def test_rows_of_a_batch_stop_by_themselves(model):
    whole = complete(model, ["Once upon", "A tale"], SamplingParams(max_tokens=40))
    stop = whole[0].text[5:9]
    cut = complete(model, ["Once upon", "A tale"], SamplingParams(max_tokens=40, stop=(stop,)))
    assert cut[0].finish_reason == "stop"
    assert cut[0].text == whole[0].text[: whole[0].text.index(stop)]
    assert whole[0].ids[: len(cut[0].ids)] == cut[0].ids
    if stop not in whole[1].text:
        assert cut[1].ids == whole[1].ids


def test_the_prompt_of_a_batch_that_cannot_be_is_named(model):
    with pytest.raises(UserError, match="prompt 2 of 2: the prompt is empty"):
        complete(model, ["Hi", ""], SHORT)
    with pytest.raises(UserError, match="prompt 1 of 2: the prompt has 600 tokens"):
        complete(model, ["x" * 600, "Hi"], SHORT)
    assert complete(model, []) == []


def longer(model, context):
    """Lets the model read more than it is known for."""
    config = dataclasses.replace(model.llama.config, max_context=context)
    return dataclasses.replace(model, llama=dataclasses.replace(model.llama, config=config))


def text_of(reader, model, length, params=SHORT):
    return "".join(reader.answer([7] * length, TextStream(model.tokenizer), params))


def session_of(reader):
    assert reader._session is not None
    return reader._session


def test_a_cache_is_no_larger_than_the_context_can_use(model):
    model = longer(model, 1100)
    reader = Reader(model)
    text_of(reader, model, 1000, SamplingParams(max_tokens=100))
    assert reader.num_tokens == 1100
    assert session_of(reader).cache.slots == 1536, "and not the next power of two"


def test_padding_of_many_turns_does_not_outgrow_the_context(model):
    params, slots = SamplingParams(max_tokens=4), []
    conversation = Conversation(model)
    for turn in range(14):
        before = list(conversation.messages)
        answer = list(conversation.ask(f"{turn}", params=params))
        slots.append(session_of(conversation._reader).length)
    assert max(slots) <= 512 + 256
    assert slots != sorted(slots), "the padding of earlier turns is given up"
    fresh = Conversation(model)
    fresh.messages = before
    assert list(fresh.ask(f"{turn}", params=params)) == answer


@pytest.fixture
def memory(monkeypatch, model):
    """Leaves room for a cache of so many slots beside the model, in place of one that is there."""

    def need(slots, rows):
        config = model.llama.config
        return inference_need(config, context=slots, rows=rows, mesh=(1, 1, 1, 1), platform="cpu")

    def leave(slots, *, instead_of=None, rows=1):
        there = need(instead_of, rows).cache if instead_of else 0
        free = need(slots, rows).total - need(slots, rows).weights - there
        here = Machine(count=1, memory=free, platform="cpu")
        monkeypatch.setattr(loaded, "machine", lambda devices: here)

    return leave


def test_what_no_memory_is_left_for_is_refused_before_it_is_read(model, memory):
    model = longer(model, 4096)
    reader = Reader(model)
    memory(1024)
    text = text_of(reader, model, 700)
    kept = reader.num_tokens
    memory(1024, instead_of=1024)
    with pytest.raises(UserError, match=r"tiny needs .* for 1,232 tokens .* or shorten the prompt"):
        text_of(reader, model, 1200)
    assert reader.num_tokens == kept
    assert text_of(reader, model, 700) == text
    memory(1536, instead_of=1024)  # no power of two, but enough
    text_of(reader, model, 1200)
    assert session_of(reader).cache.slots == 1536


def test_there_is_memory_for_all_prompts_together_or_for_none(model, memory):
    prompts = ["x" * 700] * 3
    model = longer(model, 4096)
    memory(1024)
    with pytest.raises(UserError, match="give fewer at a time"):
        complete(model, prompts, SHORT)
    memory(1024, rows=3)
    model.require_memory(1024, rows=3)


def test_a_cache_that_was_lost_to_an_interruption_is_read_again(model, monkeypatch):
    conversation, decode = Conversation(model), engine.decode

    def broken_off(*arguments, **options):
        decode(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "decode", broken_off)
    with pytest.raises(KeyboardInterrupt):
        list(conversation.ask("Hi", params=SHORT))
    monkeypatch.setattr(engine, "decode", decode)
    assert list(conversation.ask("Ho", params=SHORT)) == [
        *Conversation(model).ask("Ho", params=SHORT)
    ]


def test_one_conversation_in_several_threads_is_refused_at_once(model):
    conversation = Conversation(model)
    pieces = conversation.ask("Hi", params=SHORT)
    next(pieces)
    with ThreadPoolExecutor() as pool:
        second = pool.submit(lambda: list(conversation.ask("And?", params=SHORT)))
        with pytest.raises(UserError, match="each thread needs a conversation of its own"):
            second.result()
    list(pieces)
    assert len(conversation.messages) == 2
    assert list(conversation.ask("And?", params=SHORT))
