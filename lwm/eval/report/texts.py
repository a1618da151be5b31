"""Explanations of the tests for readers of a report: what each measures, and what it does not."""

from typing import NamedTuple


class About(NamedTuple):
    """Explanation of a test."""

    title: str
    meaning: str
    """The test, what is right, and what a score does not say."""
    differences: str
    """Differences from the published test."""


NEEDLE = About(
    title="One needle",
    meaning=(
        "A line such as “The special magic Oslo number is: 4821907” is put into a text at a depth, "
        "and the model is asked for the number. The prompt is filled with text up to each length. "
        "An answer is right if it contains the seven digits. The test measures whether a model "
        "finds a line that stands out; models that find it everywhere can still fail at harder "
        "tasks of the same length. A program that does not read scores 0."
    ),
    differences=(
        "Wording, cities and the rule for a right answer are those of LWM's eval_needle.py. "
        "Lengths are in the model's own tokens and include the template and the answer; the needle "
        "stands at the end of a sentence; the haystack is the one named below; and a question "
        "depends on nothing but the seed and its cell."
    ),
)
SEVERAL = About(
    title="{needles} needles, {ask} asked",
    meaning=(
        "{needles} such lines, for different cities, stand at random depths of one text, and the "
        "model is asked for {ask} of the numbers. The score of an answer is the share of the "
        "numbers asked for that it contains. An answer that lists all numbers of the text also "
        "scores. A program that does not read scores 0."
    ),
    differences=(
        "Wording and the rule are those of LWM's eval_needle_multi.py. Cities are distinct, no "
        "needle is put inside another, and lengths are as for one needle. The two tests of several "
        "needles have the same texts and differ in the question only."
    ),
)
RULER = About(
    title="RULER",
    meaning=(
        "Thirteen tasks: needles of several kinds (niah), following assignments of variables "
        "(vt), the most common words (cwe) and the most frequent ones (fwe), and questions about "
        "documents among others that do not matter (qa). The score of an answer is the share of "
        "the right strings that it contains, for qa whether it contains any. The average over "
        "tasks is RULER's; its effective length is the largest length whose average reaches the "
        "threshold, which is Llama-2-7B's at 4K. Tasks are synthetic: a high average does not show "
        "that a model reasons over a long text. A program that does not read scores 0."
    ),
    differences=(
        "Wording, numbers of needles and words, room for answers and scoring are as published "
        "(Hsieh et al., 2024). Essays are the haystack named below in place of Paul Graham's; "
        "documents of the qa tasks are generated unless SQuAD and HotpotQA are given; published "
        "averages are over 500 samples a task, so that intervals here are wider, and from 4K on."
    ),
)
PERPLEXITY = About(
    title="Perplexity by position",
    meaning=(
        "How well the model predicts each token of long documents, by the number of tokens before "
        "it; lower is better. Where the curve stops falling, more text before a token no longer "
        "helps. Perplexity is an average over all tokens, most of which need little context: it "
        "can fall where the model cannot retrieve anything. Perplexities of models with different "
        "tokenizers cannot be compared."
    ),
    differences=(
        "There is no published standard; papers differ in documents, windows and strides. Here "
        "each document is read once from its start, without a sliding window."
    ),
)
READING = (
    "Intervals are of 95%: Wilson's for answers that are right or wrong, a bootstrap of the mean "
    "for scores between. They say what chance in the choice of questions allows; they do not cover "
    "other texts, other wordings or other seeds. Two models differ if the interval of their "
    "paired difference (lwm eval compare) leaves out 0, not if their own intervals are apart. The "
    "chance level is the score of a program that does not read the text."
)


def about(kind: str, config: dict) -> About:
    """Returns the explanation of a part of a suite, for its configuration."""
    if kind != "multi":
        return {"needle": NEEDLE, "ruler": RULER, "perplexity": PERPLEXITY}[kind]
    return About(*(text.format(needles=config["needles"], ask=config["ask"]) for text in SEVERAL))
