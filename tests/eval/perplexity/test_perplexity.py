"""Perplexity of models whose losses are known, and of small ones against other programs."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lwm.cli.perplexity import eval_perplexity
from lwm.convert.export import save_model
from lwm.errors import UserError
from lwm.eval.perplexity.config import PerplexityConfig
from lwm.eval.perplexity.report import PerplexityReport
from lwm.eval.perplexity.run import DRAWING, PICTURE, REPORT, RESULTS, by_position, evaluate
from lwm.eval.perplexity.segments import Segment, read_segments
from lwm.eval.results import Results
from lwm.eval.scoring import ScoreRequest, score

SMALL = PerplexityConfig(length=600, windows=(16, 300), targets=80, segments=2)


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(tiny_model, prose, tmp_path):
    flat = dataclasses.replace(tiny_model.llama, head=jnp.zeros_like(tiny_model.llama.head))
    uniform = dataclasses.replace(tiny_model, llama=flat)
    report = evaluate(uniform, [prose(60)], SMALL, tmp_path)
    for loss in (report.overall, *report.positions.values(), *report.contexts.values()):
        assert loss.nll == pytest.approx(math.log(258), rel=1e-6)
    assert (report.used, report.enough) == (0, 16)
    found = json.loads((tmp_path / REPORT).read_text())
    assert found["overall"]["perplexity"] == pytest.approx(258, rel=1e-5)
    assert found["overall"]["asked"] == 2 * 599
    assert [cell["position"] for cell in found["cells"]] == [2**i for i in range(10)]
    assert [cell["context"] for cell in found["contexts"]["cells"]] == [16, 300, 600]
    assert found["effective_context"] == {"more_than": 0, "enough": 16}


@pytest.mark.parametrize(("context", "targets"), [(1, 3), (16, 80), (30, 7), (300, 80)])
@pytest.mark.parametrize("starts", [0, 1])
def test_every_target_is_scored_once_in_no_more_than_the_window(context, targets, starts):
    ids = [-1] * starts + list(range(starts, 600))
    segment = Segment(document="a", number=0, ids=ids, starts=starts)
    requests = list(segment.windows(context, targets))
    scored = [token for each in requests for token in each.ids[each.first :]]
    assert scored == ids[-targets:]
    for each in requests:
        assert len(each.ids) == context + 1
        assert each.first >= context - context // 4
        assert list(each.ids[:starts]) == ids[:starts]
        assert np.all(np.diff(each.ids[starts:]) == 1)


def test_losses_are_those_of_one_pass_over_each_prompt(tiny_model, place):
    """Prompts are read in chunks of 512 and 64, several together, and from any id on."""
    rng = np.random.default_rng(0)
    requests = [
        ScoreRequest(ids=rng.integers(0, 258, size).tolist(), first=first)
        for size, first in ((700, 1), (65, 64), (577, 513), (2, 1))
    ]
    common = requests[0].ids
    requests += [ScoreRequest(ids=[*common[:600], *tail], first=600) for tail in ([1, 2], [3])]
    tokens = np.zeros((len(requests), 768), np.int32)
    segments = np.full_like(tokens, -1)
    for row, request in enumerate(requests):
        tokens[row, : len(request.ids)] = request.ids
        segments[row, : len(request.ids)] = 0
    with jax.set_mesh(tiny_model.mesh):
        forward = jax.jit(lambda model, tokens, packing: jax.nn.log_softmax(model(tokens, packing)))
        wanted = np.asarray(forward(tiny_model.llama, *place(tiny_model.mesh, tokens, segments)))
    for rows in (1, 3):
        found = {id(each.request): each for each in score(tiny_model, requests, rows=rows)}
        for request, logprobs in zip(requests, wanted, strict=True):
            places = np.arange(request.first, len(request.ids))
            own = logprobs[places - 1, np.asarray(request.ids)[places]]
            scored = found[id(request)]
            np.testing.assert_allclose(scored.logprobs, own, atol=1e-4)
            likeliest = logprobs[places - 1].argmax(1) == np.asarray(request.ids)[places]
            assert list(scored.is_likeliest) == likeliest.tolist()


@pytest.mark.torch
def test_losses_are_those_of_transformers(tiny_model, prose, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    report = evaluate(tiny_model, [prose(60)], SMALL, tmp_path / "ours")
    with jax.set_mesh(tiny_model.mesh):
        save_model(tiny_model.llama, tiny_model.tokenizer, tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()

    def losses(request):
        ids = torch.tensor([request.ids])
        with torch.no_grad():
            logprobs = theirs(ids).logits[0].log_softmax(-1)
        return -logprobs[:-1].gather(1, ids[0, 1:, None])[request.first - 1 :, 0].numpy()

    segments = read_segments([tmp_path / "prose.txt"], tiny_model.tokenizer, SMALL)
    whole = np.concatenate([losses(each.whole()) for each in segments])
    assert report.overall.nll == pytest.approx(whole.mean(), abs=1e-3)
    for context in (16, 300):
        limited = [losses(each) for s in segments for each in s.windows(context, 80)]
        found = report.contexts[context]
        assert found.nll == pytest.approx(np.concatenate(limited).mean(), abs=1e-3)


def test_a_stopped_measurement_continues_to_the_same_report(tiny_model, prose, tmp_path):
    files = [prose(60), prose(80, "more.txt")]
    whole = evaluate(tiny_model, files, SMALL, tmp_path / "whole")
    assert [row["document"] for row in whole.rows] == ["prose.txt"] * 3 + ["more.txt"] * 3
    stops = [0.2, 0.5, 0.8]

    def stop(done, total):
        if stops and done > stops[0] * total:
            stops.pop(0)
            raise KeyboardInterrupt

    for left in (2, 1, 0):
        with pytest.raises(KeyboardInterrupt):
            evaluate(tiny_model, files, SMALL, tmp_path / "parts", rows=2, progress=stop)
        assert len(stops) == left
    assert 0 < len(Results(tmp_path / "parts" / RESULTS, whole.header).rows) < 6
    evaluate(tiny_model, files, SMALL, tmp_path / "parts")
    for name in (REPORT, PICTURE, DRAWING):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    # More windows and segments are added to those there are.
    more = dataclasses.replace(SMALL, windows=(64,), segments=3)
    grown = evaluate(tiny_model, files, more, tmp_path / "parts")
    assert list(grown.contexts) == [16, 64, 300, 600]
    assert len(grown.rows) == 3 * 4
    with pytest.raises(UserError, match=r"another evaluation \(config\.targets was 80, is 81\)"):
        evaluate(tiny_model, files, dataclasses.replace(SMALL, targets=81), tmp_path / "parts")


def rows(losses):
    """Returns rows of segments, given the mean loss of the targets of each in each context."""
    return [
        {
            "document": "a",
            "segment": number,
            "context": context,
            "targets": 10,
            "targets_nll": 10 * loss,
            "by_position": by_position([loss] * (context - 1)),
        }
        for context, each in losses.items()
        for number, loss in enumerate(each)
    ]


@pytest.mark.parametrize(("segments", "used", "enough"), [(12, 32, 64), (4, 0, 16)])
def test_the_context_used_is_the_largest_window_that_is_significantly_worse(segments, used, enough):
    """With few segments nothing is significant, however large the difference."""
    rng = np.random.default_rng(0)
    base = rng.normal(3, 1, segments)
    extra = {16: 0.5, 32: 0.2, 64: 0.0, 128: 0.0}
    losses = {c: base + gain + rng.normal(0, 0.05, segments) for c, gain in extra.items()}
    header = {"model": {"name": "made up"}, "config": {"length": 256, "targets": 10}}
    report = PerplexityReport(header=header, rows=rows(losses | {256: base}))
    assert (report.used, report.enough) == (used, enough)
    difference, p_value = report.differences[32]
    assert 0.1 < difference.interval[0] < difference.mean < difference.interval[1] < 0.3
    assert p_value == pytest.approx(1 / 2 if segments == 4 else 4 / 2**11, rel=0.3)
    assert f"{used:,} tokens" in report.summary or "No window" in report.summary
    assert json.loads(report.to_json())["effective_context"]["more_than"] == used


def test_positions_are_counted_in_powers_of_two():
    losses = [float(i) for i in range(1, 11)]
    assert by_position(losses) == [
        (1, 2, 1.0, 1),
        (2, 4, 5.0, 2),
        (4, 8, 22.0, 4),
        (8, 11, 27.0, 3),
    ]


def test_documents_are_files_and_lines_and_short_ones_are_left_out(byte_tokenizer, tmp_path):
    texts = ["a" * 30, "b" * 9, "c" * 25]
    lines = "".join(f"{json.dumps({'text': text})}\n" for text in texts)
    (tmp_path / "many.jsonl").write_text(lines)
    (tmp_path / "one.txt").write_text("d" * 20)
    config = PerplexityConfig(length=10, windows=(), targets=2, segments=5)
    files = [tmp_path / "many.jsonl", tmp_path]
    found = read_segments(files, byte_tokenizer, config)
    assert [(each.document, each.number) for each in found] == [
        ("many.jsonl:1", 0),
        ("many.jsonl:3", 0),
        ("one.txt", 0),
        ("many.jsonl:1", 1),
        ("many.jsonl:3", 1),
    ]
    opening = dataclasses.replace(byte_tokenizer, bos_id=256, add_bos=True)
    first = read_segments(files, opening, config)[0]
    assert first.ids == [256, *byte_tokenizer.encode("a" * 9)]


def test_wrong_values_and_files_are_refused_in_one_line(tiny_model, prose, tmp_path):
    short = prose(36)
    assert len(short.read_text()) == 1069
    with pytest.raises(UserError, match="1,069 tokens, fewer than a segment of 1,070; lower"):
        evaluate(tiny_model, [short], PerplexityConfig(length=1070), tmp_path / "out")
    with pytest.raises(UserError, match=r"length 4,096 is above the context of tiny, 2,560"):
        evaluate(tiny_model, [], PerplexityConfig(length=4096), tmp_path / "out")
    with pytest.raises(UserError, match="a window of 800 tokens does not shorten the context"):
        PerplexityConfig(windows=(64, 800))
    with pytest.raises(UserError, match="segments 0 must be 1 or more"):
        PerplexityConfig(segments=0)
    with pytest.raises(UserError, match="targets 256 must be fewer than the 128 tokens"):
        PerplexityConfig(length=128, windows=())
    with pytest.raises(UserError, match=r"document .*nowhere\.txt does not exist"):
        eval_perplexity("no-such-model", (tmp_path / "nowhere.txt",), out=tmp_path / "out")
    assert not (tmp_path / "out" / REPORT).exists()
