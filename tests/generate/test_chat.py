import pytest

from lwm.data.tokenizer import TextStream
from lwm.errors import UserError
from lwm.generate.batch import complete
from lwm.generate.chat import Conversation, Reader
from lwm.generate.writing import Writing

SHORT = Writing(max_tokens=16)


def test_turns_continue_the_cache_and_answer_as_a_fresh_reading_would(model):
    conversation = Conversation(model, document="A long text.\n")
    read = []
    for question in ("What?", "Why?", "Who?"):
        turns = [*conversation.messages]
        list(
            conversation.ask(question, writing=SHORT, progress=lambda n, total: read.append(total))
        )
        fresh = Conversation(model, document="A long text.\n")
        fresh.messages = turns
        list(fresh.ask(question, writing=SHORT))
        assert conversation.messages == fresh.messages
    first = "user: A long text.\n\nWhat?<|im_end|>assistant: "
    assert conversation.messages[0]["content"] == "A long text.\n\nWhat?"
    assert read[0] == len(model.tokenizer.encode(first))
    assert max(read[1:]) < 80  # only the new turn


def test_prompt_that_does_not_fit_says_how_much_does(model):
    with pytest.raises(UserError, match=r"prompt has 6\d\d tokens, .* context of 512: 496 fit"):
        model.chat("x" * 600, max_tokens=16)
    conversation = Conversation(model)
    list(conversation.ask("Hi", writing=SHORT))
    before = list(conversation.messages)
    with pytest.raises(UserError, match="shorten the prompt or lower max_tokens"):
        list(conversation.ask("x" * 600, writing=SHORT))
    assert conversation.messages == before
    assert list(conversation.ask("And?", writing=SHORT))


def test_an_answer_given_up_halfway_is_kept_as_far_as_it_went(model):
    conversation = Conversation(model)
    pieces = conversation.ask("Hi", writing=Writing(max_tokens=100))
    first = next(pieces)
    pieces.close()
    assert conversation.messages[-1] == {"role": "assistant", "content": first.strip()}
    assert list(conversation.ask("And?", writing=SHORT))


def test_reading_given_up_leaves_the_conversation_as_it_was(model):
    conversation = Conversation(model)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(conversation.ask("Hi", writing=SHORT, progress=stop))
    assert conversation.messages == []
    other = Conversation(model)
    assert list(conversation.ask("Ho", writing=SHORT)) == list(other.ask("Ho", writing=SHORT))


def test_answers_end_at_the_end_of_turn(model):
    tokenizer = model.tokenizer
    prompt = tokenizer.encode("Hello")
    free = Reader(model)
    text = "".join(free.answer(prompt, TextStream(tokenizer), SHORT))
    assert free.was_cut
    assert free.num_tokens == len(prompt) + 16
    assert text == tokenizer.decode(free._ids[len(prompt) :])


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
    writing = Writing(max_tokens=24, temperature=1.0, seed=7)
    together = complete(model, prompts, writing)
    for prompt, completion in zip(prompts, together, strict=True):
        alone = complete(model, [prompt], writing)[0]
        assert (completion.prompt, completion.ids) == (prompt, alone.ids)
        assert completion.logprobs == pytest.approx(alone.logprobs, abs=1e-4)
        assert completion.text == model.generate(prompt, max_tokens=24, temperature=1.0, seed=7)
        assert len(completion.ids) == len(completion.logprobs)
        assert (completion.finish_reason == "length") == (len(completion.ids) == 24)


def test_rows_of_a_batch_stop_by_themselves(model):
    whole = complete(model, ["Once upon", "A tale"], Writing(max_tokens=40))
    stop = whole[0].text[5:9]
    cut = complete(model, ["Once upon", "A tale"], Writing(max_tokens=40, stop=(stop,)))
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
