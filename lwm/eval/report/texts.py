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
_NEEDLE_VIDEO = (
    "A picture of one large digit in one of eight colours stands at a depth of a video of "
    "generated clips, in which there are shapes and things but no digits. "
)
VISUAL_ASK = About(
    title="Visual needle, named",
    meaning=(
        f"{_NEEDLE_VIDEO}The model is asked which digit the video shows, and in what colour. An "
        "answer is right if it names both, and no other digit or colour. The test measures whether "
        "a model finds a frame that stands out and knows what it shows; it says nothing about what "
        "happens in a video. The same answer to all questions scores 1 in 80."
    ),
    differences=(
        "V-NIAH (Zhang et al., 2024) has pictures in a film and questions with options; here films "
        "are generated and answers are open. Numbers of frames include the needle, and lengths the "
        "template and the answer; lwm eval visual-needle takes films and pictures of your own."
    ),
)
VISUAL_DRAW = About(
    title="Visual needle, generated",
    meaning=(
        f"{_NEEDLE_VIDEO}The model is asked for an image of that digit. It is right if a program "
        "that reads pixels finds the digit in its colour in the image and nothing else. It is "
        "greedy and without guidance. A model that copies the codes of the needle scores 1, unless "
        "the VQGAN itself does not carry the picture. The same image for all scores 1 in 80."
    ),
    differences=(
        "There is no published standard: tests of this kind ask for text. Frames and needles are "
        "as in the test that asks for names."
    ),
)
WORLD = About(
    title="Questions about clips",
    meaning=(
        "Short clips of coloured things that move, turn, grow, meet: what, which colour, how many, "
        "which way, what first, in which second, and whether there is such a thing. Clips of the "
        "held-out split have combinations of attributes that those of the other never have. An "
        "answer is right if it is the known one. The chance level is that of the commonest answer "
        "to each type of question, or of a guess among the possible ones."
    ),
    differences=(
        "There is no published standard: the world is this package's own. Models that were not "
        "trained on it may name things otherwise, which counts as wrong."
    ),
)
WORLD_BLIND = About(
    title="Questions about clips, without the clips",
    meaning=(
        "The same questions as in the test with the clips, which are not shown. What a model "
        "scores here it knows from the wording or guesses; only what it scores above this with the "
        "clips shows that it sees."
    ),
    differences=WORLD.differences,
)
ADHERENCE = About(
    title="Prompt adherence",
    meaning=(
        "The model is asked for images and videos by captions of the world. A program that reads "
        "pixels states what they show: kind, colour and size of things, their number, motion and "
        "events, and the background. The score counts those in which all agrees. Beside it are "
        "two bounds: the true clip once the VQGAN has encoded and decoded it, and other clips of "
        "the same kind, which stand for a model that does not read the caption."
    ),
    differences=(
        "GenEval and VBench judge open captions by detectors, which err; here the judge is exact, "
        "and the captions are of one small world."
    ),
)
READING = (
    "Intervals are of 95%: Wilson's for answers that are right or wrong, a bootstrap of the mean "
    "for scores between. Those of RULER's averages are made of the intervals of their parts "
    "(MOVER: Zou, Huang, Zhang 2009). They say what chance in the choice of questions allows; they "
    "do not cover other texts, other wordings or other seeds. Two models differ if the interval of "
    "their paired difference (lwm eval compare) leaves out 0, not if their own intervals are "
    "apart. The chance level is the score of a program that does not read the text."
)


def about(kind: str, config: dict) -> About:
    """Returns the explanation of a part of a suite, for its configuration."""
    if kind == "visual":
        return {"ask": VISUAL_ASK, "draw": VISUAL_DRAW}[config["task"]]
    if kind == "world":
        return WORLD_BLIND if config["blind"] else WORLD
    if kind != "multi":
        return {
            "needle": NEEDLE,
            "ruler": RULER,
            "perplexity": PERPLEXITY,
            "adherence": ADHERENCE,
        }[kind]
    return About(*(text.format(needles=config["needles"], ask=config["ask"]) for text in SEVERAL))
