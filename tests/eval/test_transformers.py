"""Answers to prompts of evaluations beside those of transformers on the same ids."""

import itertools

import pytest

import lwm
from lwm.eval.ask import Evaluation
from lwm.eval.needle.config import NeedleConfig
from lwm.eval.needle.evaluation import NeedleEvaluation
from lwm.eval.ruler.config import RulerConfig
from lwm.eval.ruler.task import Ruler
from lwm.eval.subject import Subject
from lwm.generate.answer import Answer
from lwm.hub import catalog
from lwm.sampling_params import SamplingParams

NAME = "smollm2-135m-instruct"
TIE = 1e-3
"""Difference of the two best logits below which either may win."""


def longer_questions(subject):
    """Yields three questions of 4,096 tokens."""
    config = NeedleConfig(lengths=(4096,), depths=(0.0, 50.0, 100.0), max_tokens=24)
    evaluation = NeedleEvaluation(config, subject)
    yield from map(evaluation.question, evaluation.cells)


def questions(subject):
    """Yields a hundred questions of up to 2,048 tokens, of every kind."""
    single = NeedleConfig(lengths=(512, 1024, 2048), depths=(0.0, 50.0, 100.0), rounds=2)
    several = NeedleConfig(lengths=(1024, 2048), rounds=3, needles=4, ask=4)
    ruler = RulerConfig(lengths=(1024, 2048), samples=3)
    evaluations: list[Evaluation] = [
        NeedleEvaluation(single, subject),
        NeedleEvaluation(several, subject),
        Ruler(ruler, subject.tokenizer),
    ]
    for each in evaluations:
        yield from map(each.question, each.cells)


@pytest.mark.torch
@pytest.mark.network
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # transformers' and gguf's own
def test_a_hundred_answers_are_those_of_transformers():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    path = catalog.resolve(NAME)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32
    ).eval()
    ours = lwm.load(NAME)
    asked = ties = 0
    subject = Subject.of_model(ours)
    hundred = itertools.islice(questions(subject), 100)
    for question in itertools.chain(longer_questions(subject), hundred):
        answer = Answer(ours, question.ids, SamplingParams(max_tokens=question.max_tokens))
        list(answer)
        # One pass over prompt and answer has the logits of each step of writing it.
        ids = torch.tensor([[*question.ids, *answer.ids]])
        with torch.no_grad():
            logits = theirs(ids[:, :-1], logits_to_keep=len(answer.ids)).logits[0]
        best = logits.topk(2)
        for place, token in enumerate(answer.ids):
            if int(best.indices[place, 0]) != token:
                gap = float(best.values[place, 0] - best.values[place, 1])
                assert gap < TIE, (question.cell, place, gap)
                assert int(best.indices[place, 1]) == token
                ties += 1
                break  # from here on, the answers may differ
        asked += 1
    assert asked == 103
    assert ties <= 5
