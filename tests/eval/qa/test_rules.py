"""Scoring rules of question answering, on cases computed by hand."""

import pytest

from lwm.eval.qa.rules import gqa_accuracy, normalized, says_no, video_accuracy, vqa_accuracy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Yes.\n", "yes"),
        ("The red one", "red 1"),
        ("none", "0"),
        ("Two dogs, and a cat!", "2 dogs and cat"),
        ("1,000", "1000"),
        ("2.5 m.", "2.5 m"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("t-shirt", "t shirt"),
        ("10:30", "10:30"),
        ("man's hat", "man's hat"),
        ("It isnt", "it isn't"),
        ("I dont", "i don't"),
        ("couldn’t", "couldn't"),
        ("5 oclock", "5 o'clock"),
        ("an", ""),
        ("theres what", "there's what"),
    ],
)
def test_answers_are_normalized_as_in_vqa(text, expected):
    assert normalized(text) == expected
    assert normalized(expected) == expected


def test_an_answer_of_so_many_people_of_ten():
    """Leaving out each in turn: of 2 who agree, 8 subsets have both and 2 have one."""
    expected = [0, 0.3, 0.6, 0.9, 1, 1, 1, 1, 1, 1, 1]
    for count, accuracy in enumerate(expected):
        answers = ["The Dog."] * count + [f"cat {number}" for number in range(10 - count)]
        assert vqa_accuracy("dog", answers) == pytest.approx(accuracy)


def test_different_spellings_of_people_count_together():
    answers = ["two", "2", "2.", "3", "3", "3", "four", "four", "four", "five"]
    assert vqa_accuracy("Two", answers) == pytest.approx(0.9)
    assert vqa_accuracy("2 of them", answers) == 0


def test_gqa_compares_whole_answers():
    assert gqa_accuracy(" Yes.", "yes") == 1
    assert gqa_accuracy("the table", "table") == 0
    assert gqa_accuracy("", "table") == 0


def test_a_word_of_a_video_may_have_an_article_or_be_a_digit():
    assert video_accuracy("A guitar.", "guitar") == 1
    assert video_accuracy("2", "two") == 1
    assert video_accuracy("play guitar", "guitar") == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No", True),
        ("no, there is none", True),
        ("There is not a dog", True),
        ("Yes. There is no cat, though.", False),
        ("Yes", False),
        ("nothing", False),
        ("", False),
    ],
)
def test_pope_reads_the_first_sentence(text, expected):
    assert says_no(text) is expected
