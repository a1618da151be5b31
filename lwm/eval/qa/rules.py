"""Scoring rules of question answering about images and videos, as published with the data sets.

`vqa`: S. Antol et al., VQA: Visual Question Answering, ICCV 2015, and the program of its data set.
`gqa`: D. A. Hudson and C. D. Manning, GQA, CVPR 2019. `pope`: Y. Li et al., Evaluating Object
Hallucination in Large Vision-Language Models, EMNLP 2023. `video`: D. Xu et al., Video Question
Answering via Gradually Refined Attention over Appearance and Motion, ACM Multimedia 2017.
"""

import re
from collections.abc import Sequence
from typing import Literal

RuleName = Literal["vqa", "gqa", "pope", "video", "world"]

LEAST_ANSWERS = 4
"""Answers of people that a question of `vqa` needs: with three, none could score 1."""
_AGREED = 3
"""Others that make an answer wholly right."""
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = frozenset(("a", "an", "the"))
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(_DIGITS)} | {"none": "0"}
_NEGATED = (
    "ai are ca could did does do had has have is might must need ought sha should was were wo would"
)
_FOLLOWED = {
    "'d": "he how it somebody someone something there they where who you",
    "'ll": "how it somebody someone something they what who why you",
    "'s": "he how somebody someone that there what when where who why",
    "'re": "there they what why you",
    "'ve": "could i might must not should they we what where who would you",
    "'m": "i",
}
_CONTRACTIONS = {
    whole.replace("'", ""): whole
    for whole in (
        *(f"{verb}n't" for verb in _NEGATED.split()),
        *(f"{word}{end}" for end, words in _FOLLOWED.items() for word in words.split()),
        *("let's", "ma'am", "o'clock", "'twas", "y'all"),
    )
}


def normalized(text: str) -> str:
    """Returns an answer in the form in which VQA's answers are compared.

    Lower case; without articles, and periods that no digit follows; `two` is 2, and `none` is 0;
    contractions have their apostrophe; other punctuation than `'` and `:` is a space, or is removed
    where a space is beside it or the answer has a comma between digits.
    """
    text = " ".join(text.split()).replace("’", "'")
    has_thousands = re.search(r"\d,\d", text) is not None
    made = text
    for mark in _PUNCTUATION:
        is_beside_space = f"{mark} " in text or f" {mark}" in text
        made = made.replace(mark, "" if has_thousands or is_beside_space else " ")
    words = re.sub(r"\.(?!\d)", "", made).lower().split()
    digits = (_NUMBERS.get(word, word) for word in words)
    return " ".join(_CONTRACTIONS.get(word, word) for word in digits if word not in _ARTICLES)


def vqa_accuracy(text: str, answers: Sequence[str]) -> float:
    """Returns VQA's accuracy: an answer is wholly right if three people gave it.

    The mean over all subsets of people that leave out one. In contrast to VQA's program, all
    answers are normalized, also where all people agree.
    """
    found = normalized(text)
    is_same = [normalized(answer) == found for answer in answers]
    others = (sum(is_same) - own for own in is_same)
    return sum(min(1.0, count / _AGREED) for count in others) / len(answers)


def gqa_accuracy(text: str, answer: str) -> float:
    """Returns 1 for the same answer but for case, spaces around it, and a period at its end."""
    return float(_bare(text) == _bare(answer))


def video_accuracy(text: str, answer: str) -> float:
    """Returns 1 for the same answer once both are `normalized`."""
    return float(normalized(text) == normalized(answer))


def says_no(text: str) -> bool:
    """Returns whether POPE takes an answer as no: it has `no` or `not` in its first sentence.

    All other answers are a yes.
    """
    words = text.partition(".")[0].replace(",", "").split()
    return not {"No", "no", "not"}.isdisjoint(words)


def _bare(text: str) -> str:
    return text.strip().lower().removesuffix(".").rstrip()


def names_only(text: str, answer: str, options: Sequence[str]) -> float:
    """Returns 1 if a text names the right one of all possible answers, and no other."""
    words = f" {normalized(text)} "
    named = {option for option in {*options, answer} if f" {normalized(option)} " in words}
    # `dark blue` names `blue`, too.
    whole = {one for one in named if not any(one != other and one in other for other in named)}
    return float(whole == {answer})


def score(rule: RuleName, text: str, answers: Sequence[str], options: Sequence[str] = ()) -> float:
    """Returns the score of an answer by a rule, from 0 to 1.

    Args:
        rule: The rule.
        text: The answer.
        answers: The right answer; under `vqa` the answers of people.
        options: All possible answers, for `world`.
    """
    if rule == "vqa":
        return vqa_accuracy(text, answers)
    (answer,) = answers
    if rule == "pope":
        return float(says_no(text) == (answer == "no"))
    if rule == "world":
        return names_only(text, answer, options)
    return gqa_accuracy(text, answer) if rule == "gqa" else video_accuracy(text, answer)
