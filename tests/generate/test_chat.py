import dataclasses
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

from lwm.devices import Machine
from lwm.errors import UserError
from lwm.generate import loaded, slots
from lwm.generate.answer import Answer
from lwm.generate.batch import TextRequest, answers, complete
from lwm.generate.chat import Conversation
from lwm.generate.language_model import LanguageModel
from lwm.generate.pace import Pace
from lwm.plan.memory import inference_need
from lwm.sampling_params import SamplingParams, VisionSampling
from lwm.sharding import make_mesh
from lwm.tokenizer.message import Message
from lwm.tokens import TokenSpace

SHORT = SamplingParams(max_tokens=16)


@pytest.fixture(scope="module")
def model(tiny, init, byte_tokenizer):
    """A model with a pool of one size, so that nothing is compiled twice."""
    with jax.set_mesh(mesh := make_mesh()):
        config = tiny(
            num_layers=1, tokens=TokenSpace(text=byte_tokenizer.vocab_size), max_context=1536
        )
        yield LanguageModel(
            name="tiny",
            llama=init(config).unstack(),
            tokenizer=byte_tokenizer,
            mesh=mesh,
            pool_tokens=8192,
        )


def said(pieces):
    """Joins the pieces of an answer, which divide by the clock."""
    return "".join(map(str, pieces))


def cold(model):
    """Returns the model with an engine that has read nothing."""
    return dataclasses.replace(model)


def test_turns_share_what_was_read_and_answer_as_the_same_chat_begun_cold(model):
    """To the last bit."""
    document = "A long text.\n" * 45
    conversation = Conversation(model, document=document)
    for question in ("What?", "Why?", "Who?"):
        turns = [*conversation.messages]
        list(conversation.ask(question, params=SHORT))
        fresh = Conversation(cold(model), document=document)
        fresh.messages = turns
        list(fresh.ask(question, params=SHORT))
        assert conversation.messages == fresh.messages
        ours, theirs = conversation._last, fresh._last
        assert ours is not None
        assert theirs is not None
        assert (ours.ids, ours.logprobs) == (theirs.ids, theirs.logprobs)
        assert theirs.usage.cached_tokens == 0
        assert ours.usage.cached_tokens == (512 if turns else 0)
    first = f"user: {document.strip()}\n\nWhat?<|im_end|>assistant: "
    assert conversation.messages[0].text == f"{document.strip()}\n\nWhat?"
    read = []
    again = Conversation(cold(model), document=document)
    list(again.ask("What?", params=SHORT, progress=lambda *now: read.append(now)))
    assert {total for _, total in read} == {len(model.tokenizer.encode(first))}
    assert [done for done, _ in read] == sorted(done for done, _ in read)


def test_prompt_that_does_not_fit_says_how_much_does(model):
    with pytest.raises(UserError, match=r"prompt has 1,6\d\d tokens, .* of 1,536: 1,520 fit"):
        model.chat("x" * 1600, max_tokens=16)
    conversation = Conversation(model)
    list(conversation.ask("Hi", params=SHORT))
    before = list(conversation.messages)
    with pytest.raises(UserError, match="shorten the prompt or lower max_tokens"):
        list(conversation.ask("x" * 1600, params=SHORT))
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
    assert said(conversation.ask("Ho", params=SHORT)) == said(other.ask("Ho", params=SHORT))


def test_a_prompt_asked_again_goes_on_where_its_reading_was_stopped(model):
    stopped = cold(model)
    question, reports = 100 * "A long book. ", []

    def stop(done, total):
        reports.append(done)
        if done >= 1024:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(Conversation(stopped).ask(question, params=SHORT, progress=stop))
    again = Conversation(stopped)
    later = []
    answer = said(again.ask(question, params=SHORT, progress=lambda done, _: later.append(done)))
    assert min(later) > max(reports) >= 1024, "chunks that were read are kept"
    fresh = Conversation(cold(model))
    assert answer == said(fresh.ask(question, params=SHORT))


def test_an_answer_says_how_it_went(model):
    prompt = model.tokenizer.encode("Hello")
    answer = Answer(model, prompt, SHORT)
    assert answer.finish_reason is None
    text = "".join(map(str, answer))
    assert answer.finish_reason == "length"
    assert answer.was_cut
    assert text == model.tokenizer.decode(answer.ids)
    assert len(answer.logprobs) == len(answer.ids) == 16
    usage = dataclasses.astuple(answer.usage)
    assert usage == (len(prompt), 16, 0)


def test_answers_end_at_the_end_of_turn(model, monkeypatch):
    """With any id of the answer for one that ends a turn."""
    whole = Answer(model, model.tokenizer.encode("Hello"), SHORT)
    text = "".join(map(str, whole))
    end = next(n for n in range(4, 16) if whole.ids[n] not in whole.ids[:n])
    ends = frozenset({whole.ids[end]})
    tokenizer = dataclasses.replace(model.tokenizer, eos_ids=ends)
    other = dataclasses.replace(model, tokenizer=tokenizer)
    answer = Answer(other, model.tokenizer.encode("Hello"), SHORT)
    assert text.startswith("".join(map(str, answer)))
    assert answer.ids == whole.ids[: end + 1]
    assert (answer.finish_reason, answer.stopped_by) == ("stop", None)


def test_ids_end_an_answer_as_the_end_of_text_does(model):
    prompt = model.tokenizer.encode("Hello")
    whole = Answer(model, prompt, SHORT)
    list(whole)
    end = next(n for n in range(4, 16) if whole.ids[n] not in whole.ids[:n])
    stopped = Answer(model, prompt, dataclasses.replace(SHORT, stop_ids=[whole.ids[end]]))
    assert "".join(map(str, stopped)) == model.tokenizer.decode(whole.ids[:end])
    assert (stopped.ids, stopped.finish_reason) == (whole.ids[: end + 1], "stop")
    tokenizer = dataclasses.replace(model.tokenizer, eos_ids=frozenset({whole.ids[end]}))
    other = dataclasses.replace(model, tokenizer=tokenizer)
    on = Answer(other, prompt, dataclasses.replace(SHORT, ignore_eos=True))
    list(on)
    assert (on.ids, on.finish_reason) == (whole.ids, "length")


def test_ids_that_the_model_has_not_are_refused(model):
    with pytest.raises(UserError, match="stop_ids: -1 is no text id of tiny: 0 to"):
        Answer(model, [1, 2], SamplingParams(stop_ids=[-1]))
    with pytest.raises(UserError, match="logit_bias: 1000000 is no text id of tiny"):
        Answer(model, [1, 2], SamplingParams(logit_bias={10**6: 1.0}))


def test_log_probabilities_of_a_prompt_are_there_when_asked_for(model):
    prompt = model.tokenizer.encode("The sea " * 80)
    list(Answer(model, prompt, SHORT))
    answer = Answer(model, prompt, SHORT, scores_from=1)
    list(answer)
    assert len(answer.prompt_logprobs) == len(prompt) - 1
    assert answer.usage.cached_tokens == 0
    nothing = SamplingParams(max_tokens=0)
    alone = Answer(cold(model), prompt, nothing, scores_from=1, top_logprobs=2)
    assert (list(alone), alone.prompt_logprobs) == ([], answer.prompt_logprobs)
    assert [len(top) for top in alone.prompt_top_logprobs] == [2] * (len(prompt) - 1)


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


def test_a_stop_string_gives_the_same_ids_whatever_the_length_of_bursts(model, monkeypatch):
    whole = model.generate("Once upon", max_tokens=40)
    found = []
    for steps in (1, 5, 32):
        monkeypatch.setattr(Pace, "steps", lambda self, steps=steps: steps)
        answer = model.stream("Once upon", max_tokens=40, stop=whole[20:23])
        text = "".join(map(str, answer))
        found.append((text, answer.ids, answer.logprobs, answer.finish_reason, answer.stopped_by))
    assert found[1:] == found[:1] * 2
    assert text == whole[: whole.index(whole[20:23])]
    assert found[0][3:] == ("stop", whole[20:23])


def test_prompts_together_are_completed_as_alone(model):
    prompts = ["Once upon a time", "x", "The sea " * 20]
    params = SamplingParams(max_tokens=24, temperature=1.0, seed=7)
    together = complete(model, prompts, params)
    for prompt, completion in zip(prompts, together, strict=True):
        alone = complete(model, [prompt], params)[0]
        assert (completion.prompt, completion.ids) == (prompt, alone.ids)
        assert completion.logprobs == pytest.approx(alone.logprobs, abs=1e-4)
        (wide,) = answers(model, [TextRequest(prompt=prompt, params=params)], rows=3)
        assert wide.completion is not None
        assert dataclasses.replace(wide.completion, usage=completion.usage) == completion
        assert completion.text == model.generate(prompt, max_tokens=24, temperature=1.0, seed=7)
        assert len(completion.ids) == len(completion.logprobs)
        assert (completion.finish_reason == "length") == (len(completion.ids) == 24)


def test_a_batch_is_generated_as_each_alone(model):
    progress = []
    found = model.generate_batch(
        ["Once upon", "A tale", "x"],  # as many as above, which is one program
        max_tokens=8,
        stop=("never",),
        progress=lambda done, total: progress.append((done, total)),
    )
    assert [each.text for each in found] == [
        model.generate(prompt, max_tokens=8, stop=("never",))
        for prompt in ("Once upon", "A tale", "x")
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
    prompts = ["Once upon", "A tale", "x"]
    whole = complete(model, prompts, SamplingParams(max_tokens=40))
    stop = whole[0].text[5:9]
    cut = complete(model, prompts, SamplingParams(max_tokens=40, stop=(stop,)))
    assert cut[0].finish_reason == "stop"
    assert cut[0].text == whole[0].text[: whole[0].text.index(stop)]
    assert whole[0].ids[: len(cut[0].ids)] == cut[0].ids
    if stop not in whole[1].text:
        assert cut[1].ids == whole[1].ids


def test_the_prompt_of_a_batch_that_cannot_be_is_named(model):
    with pytest.raises(UserError, match="prompt 2 of 2: the prompt is empty"):
        complete(model, ["Hi", ""], SHORT)
    with pytest.raises(UserError, match="prompt 1 of 2: the prompt has 1,600 tokens"):
        complete(model, ["x" * 1600, "Hi"], SHORT)
    assert complete(model, []) == []


def test_what_does_not_fit_is_an_error_of_its_own_and_the_others_go_on(model):
    context = model.context
    texts = ["Hi", "x" * (context - 16), "x" * (context - 15), "x" * (context + 1), "", "Ho"]
    requests = [TextRequest(prompt=text, params=SHORT) for text in texts]
    nothing = SamplingParams(max_tokens=0)
    requests += [TextRequest(prompt=text, params=nothing) for text in ("Hi", "x" * context)]
    found = sorted(model.batch(requests), key=lambda each: each.index)
    errors = [each.error and str(each.error) for each in found]
    assert [error is None for error in errors] == [True, True, False, False, False, *[True] * 3]
    for error in filter(None, errors):
        assert "\n" not in error
    assert "1,520 fit beside an answer of 16" in errors[2]
    assert "the prompt is empty" in errors[4]
    for number in (6, 7):
        assert found[number].completion.text == ""
        assert found[number].completion.finish_reason == "length"
        assert found[number].completion.usage.completion_tokens == 0
    alone = [complete(cold(model), [text], SHORT)[0] for text in ("Hi", "Ho")]
    assert [found[number].completion.ids for number in (0, 5)] == [each.ids for each in alone]
    assert len(found[1].completion.ids) == 16


def test_a_pool_that_is_too_small_is_one_line(model):
    small = dataclasses.replace(model, pool_tokens=256)
    with pytest.raises(UserError, match=r"cache of 512 tokens, but the pool has 256; .*--pool-tok"):
        small.generate("x" * 300, max_tokens=16)
    found = {each.index: each for each in small.batch([TextRequest(prompt="x" * 300)] * 2)}
    assert all("pool has 256" in str(each.error) for each in found.values())
    with pytest.raises(UserError, match=r"^prompt 1 of 2: the request needs"):
        complete(small, ["x" * 300, "Hi"], SHORT)


def test_threads_share_a_model(model):
    texts = [f"{number} times" for number in range(6)]
    wanted = [model.generate(text, max_tokens=20, seed=3, temperature=1.0) for text in texts]
    with ThreadPoolExecutor(6) as pool:
        found = pool.map(lambda t: model.generate(t, max_tokens=20, seed=3, temperature=1.0), texts)
        assert list(found) == wanted


@pytest.fixture
def growing(model):
    """The model with a pool that grows, a context to match, and no page yet."""
    config = dataclasses.replace(model.llama.config, max_context=4096)
    llama = dataclasses.replace(model.llama, config=config)
    return dataclasses.replace(model, llama=llama, pool_tokens=None)


@pytest.fixture
def memory(monkeypatch, growing):
    """Leaves room for a pool of so many tokens beside the model."""

    def need(tokens):
        config = growing.llama.config
        return inference_need(config, context=tokens, rows=1, mesh=(1, 1, 1, 1), platform="cpu")

    def leave(tokens):
        def machine(devices):
            leaves = jax.tree.leaves(growing.engine._runner.pool)
            free = need(tokens).total - need(tokens).weights - sum(leaf.nbytes for leaf in leaves)
            return Machine(count=1, memory=free, platform="cpu")

        monkeypatch.setattr(loaded, "machine", machine)

    return leave


def test_what_no_memory_is_left_for_is_refused_before_it_is_read(growing, memory):
    prompt = [7] * 700
    memory(1024)
    first = Answer(growing, prompt, SHORT)
    list(first)
    assert growing.engine.pool_tokens == 1024
    with pytest.raises(UserError, match=r"tiny needs .* for 1,280 tokens .* or shorten the prompt"):
        Answer(growing, [7] * 1200, SHORT)
    again = Answer(growing, prompt, SHORT)
    list(again)
    assert (again.ids, again.logprobs) == (first.ids, first.logprobs)
    assert again.usage.cached_tokens == 512
    memory(1280)  # no power of two, but enough
    assert len(list(Answer(growing, [7] * 1200, SHORT))) > 0
    assert growing.engine.pool_tokens == 1280


def test_prompts_take_turns_where_there_is_no_memory_for_all_together(growing, memory):
    memory(768)  # one at a time
    prompts = ["x" * 600, "y" * 610, "z" * 620]
    assert len(complete(growing, prompts, SHORT)) == 3
    assert growing.engine.pool_tokens == 768


def test_a_chat_goes_on_after_a_program_was_interrupted(model, monkeypatch):
    conversation, burst = Conversation(model), slots.burst

    def broken_off(*arguments, **options):
        burst(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(slots, "burst", broken_off)
    with pytest.raises(KeyboardInterrupt):
        list(conversation.ask("Hi", params=SHORT))
    monkeypatch.setattr(slots, "burst", burst)
    fresh = Conversation(cold(model)).ask("Ho", params=SHORT)
    assert said(conversation.ask("Ho", params=SHORT)) == said(fresh)


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
