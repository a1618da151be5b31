"""Prompts of single needles: their length, the needle's place, and any script."""

import dataclasses
import hashlib
import itertools
import json
import re

import pytest
import tokenizers
from tokenizers import normalizers

from lwm.errors import UserError
from lwm.eval.needle.config import CITIES, NeedleConfig
from lwm.eval.needle.prompts import INSTRUCTION, Cell, Prompts
from lwm.eval.needle.texts import EarlierTexts
from lwm.tokenizer.backends import FastTokenizer

GRID = NeedleConfig(lengths=(700, 1400), depths=(0.0, 30.0, 100.0), rounds=2, max_tokens=40)


@pytest.mark.parametrize("prompt", ["chat", "lwm"])
def test_prompts_are_as_long_as_said(tokenizer, prompt):
    config = dataclasses.replace(GRID, prompt=prompt)
    prompts = Prompts(config, tokenizer)
    lengths = {}
    for cell in prompts.cells:
        built = prompts.build(cell)
        assert built.built_length == len(built.ids) + config.answer_tokens <= cell.length
        if cell.depth != 100:  # within a word
            assert cell.length - built.built_length <= 20
        text = tokenizer.decode(built.ids)
        before, found, after = text.partition(built.truth["needles"][0].text.strip())
        assert found
        assert INSTRUCTION in after
        assert f"What is the special magic {built.truth['needles'][0].city} number?" in after
        assert re.fullmatch(r"\d{7}", built.truth["needles"][0].number)
        assert built.truth["needles"][0].city in CITIES
        lengths[cell] = len(before)
    assert set(lengths) == {
        Cell(length=n, depth=d, round=r)
        for n in (700, 1400)
        for d in (0.0, 30.0, 100.0)
        for r in (0, 1)
    }


def test_the_needle_stands_at_a_sentence_end_at_or_before_the_depth(tokenizer, prose):
    config = dataclasses.replace(GRID, depths=(0.0, 10.0, 50.0, 90.0, 100.0), haystack=prose(400))
    prompts = Prompts(config, tokenizer)
    for cell in prompts.cells:
        built = prompts.build(cell)
        before, after = tokenizer.decode(built.ids).split(built.truth["needles"][0].text)
        hay = before[before.rfind("user\n") + 5 :] if "user\n" in before else before[35:]
        hay = hay.removeprefix("USER: ")
        rest = after[: after.index(" What is")]
        assert hay == "" or hay.endswith("here.")
        size, whole = (len(tokenizer.encode(part)) for part in (hay, hay + rest))
        sentence = 100 * len(tokenizer.encode("Sentence number 100 ends here.")) / whole
        assert cell.depth is not None
        assert cell.depth - sentence - 1 <= 100 * size / whole <= cell.depth + 1
        assert built.truth["depths"][0] == pytest.approx(100 * size / whole, abs=1)
        if cell.depth == 100:
            assert rest == ""


def test_prompts_of_english_prose_are_those_of_before(byte_tokenizer):
    config = dataclasses.replace(GRID, depths=(0.0, 10.0, 30.0, 50.0, 75.0, 100.0))
    earlier = Prompts(config, byte_tokenizer, texts=EarlierTexts(config, byte_tokenizer))
    built = {cell: earlier.build(cell).ids for cell in earlier.cells}
    ids = [built[cell] for cell in sorted(built, key=repr)]
    digest = hashlib.sha256(json.dumps(ids).encode()).hexdigest()
    assert digest == "6c8f8851a052971a8a548a486154c39ad0e839b71195aa8c21491f61411bc1c7"
    now = Prompts(config, byte_tokenizer)
    assert all(now.build(cell).ids == built[cell] for cell in built if cell.round == 0)


def repeated(*parts):
    """Numbers such parts, so that no two are the same."""
    return "".join(part.replace("%", str(number)) for number in range(300) for part in parts)


PLACES = dataclasses.replace(GRID, lengths=(900,), depths=(25.0, 75.0, 100.0))
UNSPACED = {
    "Chinese": "昔者庄周梦为蝴蝶栩栩然蝴蝶也%",
    "Japanese": "古池や蛙とびこむ水のオト%、",
    "Thai": "ในน้ำมีปลาในนามีข้าว%",
    "one word": "abcdefgh%",
    "emoji": "👩‍👩‍👧🏽",
}
SENTENCELESS = {
    "words": "some % words ",
    "lines": "a line of % words\n",
    "carriage returns": "a line of % words\r\n",
    "long sentences": "w% " * 200 + "end. ",
}


@pytest.mark.parametrize("kind", UNSPACED | SENTENCELESS)
def test_text_of_any_script_is_used_in_full_and_at_the_depth(byte_tokenizer, tmp_path, kind):
    (path := tmp_path / "h.txt").write_text(
        repeated((UNSPACED | SENTENCELESS)[kind]), encoding="utf-8", newline=""
    )
    prompts = Prompts(dataclasses.replace(PLACES, haystack=path), byte_tokenizer)
    for cell in prompts.cells:
        built = prompts.build(cell)
        # A joined emoji; and before a needle, the rest of a sentence.
        assert cell.length - built.built_length <= (cell.length // 20 if cell.depth == 100 else 25)
        assert built.truth["depths"][0] == pytest.approx(cell.depth, abs=12)
        assert "\ufffd" not in byte_tokenizer.decode(built.ids)
    assert prompts.texts.start(0) != prompts.texts.start(1)


@pytest.mark.parametrize("end", ["。」", "؟ ", "।", "።"])
def test_a_needle_stands_at_the_end_of_a_sentence_in_any_script(byte_tokenizer, tmp_path, end):
    (path := tmp_path / "h.txt").write_text(repeated(f"字字字字字字字字%{end}"), encoding="utf-8")
    prompts = Prompts(dataclasses.replace(PLACES, haystack=path), byte_tokenizer)
    for cell in prompts.cells:
        text = byte_tokenizer.decode(prompts.build(cell).ids)
        before, _ = text.split("\nThe special magic", 1)
        if cell.depth:
            assert before.endswith(end.strip())
        assert built_depth(byte_tokenizer, text) == pytest.approx(cell.depth, abs=15)


def built_depth(tokenizer, text):
    """Measures where the needle stands in the text of a prompt."""
    before, after = re.split(r"\n?the special magic .+? number is: \d{7}\n?", text, flags=re.I)
    before = before.removeprefix("user\n")
    after = re.split(r" what is the special magic", after, flags=re.I)[0]
    sizes = [len(tokenizer.encode(part, special=False)) for part in (before, after)]
    return 100 * sizes[0] / sum(sizes)


@pytest.mark.parametrize("change", ["NFKC", "Lowercase", "NFD", "spaces"])
def test_the_depth_is_that_of_the_built_prompt_whatever_the_tokenizer_changes(
    byte_tokenizer, tmp_path, change
):
    made = tokenizers.Tokenizer.from_str(byte_tokenizer.backend._tokenizer.to_str())
    made.normalizer = (
        normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
        if change == "spaces"
        else getattr(normalizers, change)()
    )
    tokenizer = dataclasses.replace(byte_tokenizer, backend=FastTokenizer(made))
    # The first half grows, or shrinks, and the second does not.
    grows = repeated("ﷺ ﬃ %. ")[:1000] + repeated("İÉ   %    . ")[:1500]
    text = grows + repeated("Plain text is %. ")
    (path := tmp_path / "h.txt").write_text(text, encoding="utf-8")
    config = dataclasses.replace(GRID, depths=(25.0, 75.0), haystack=path, lengths=(5000,))
    prompts = Prompts(config, tokenizer)
    for cell in prompts.cells:
        built = prompts.build(cell)
        assert built.truth["depths"][0] == pytest.approx(cell.depth, abs=3)
        true = built_depth(tokenizer, tokenizer.decode(built.ids))
        assert built.truth["depths"][0] == pytest.approx(true, abs=0.3)


def test_lwms_prompt_is_that_of_its_script_to_the_letter(byte_tokenizer, prose):
    config = NeedleConfig(lengths=(420,), depths=(100.0,), prompt="lwm", haystack=prose(99))
    built = (prompts := Prompts(config, byte_tokenizer)).build(prompts.cells[0])
    (needle,) = built.truth["needles"]
    sentences = " ".join(f"Sentence number {i} ends here." for i in range(4))
    assert byte_tokenizer.decode(built.ids) == (
        f"You are a helpful assistant. USER: {sentences}"
        f"\nThe special magic {needle.city} number is: {needle.number}\n "
        f"What is the special magic {needle.city} number? Don't give information outside the "
        "document or repeat your findings. Keep your response short and direct. ASSISTANT: "
    )


def test_needles_hang_on_seed_and_cell_only(byte_tokenizer):
    def built(**changes):
        prompts = Prompts(dataclasses.replace(GRID, **changes), byte_tokenizer)
        return {cell: prompts.build(cell) for cell in prompts.cells}

    all_cells = built()
    assert len({prompt.truth["needles"][0].number for prompt in all_cells.values()}) == len(
        all_cells
    )
    some = built(depths=(30.0,))
    assert some == {cell: all_cells[cell] for cell in some}
    assert len(some) == 4
    assert built(seed=5)[next(iter(some))].truth != some[next(iter(some))].truth
    assert len(set(CITIES)) == len(CITIES) == 69


def test_each_prompt_begins_as_the_one_before(byte_tokenizer):
    """Up to its own needle, so that only what follows it must be read."""
    prompts = Prompts(dataclasses.replace(GRID, rounds=1), byte_tokenizer)
    built = [prompts.build(cell) for cell in prompts.cells]
    for before, after in itertools.pairwise(built):
        needle = byte_tokenizer.decode(after.ids).index(after.truth["needles"][0].text.strip()) - 1
        framing = 1  # the token that opens the turn decodes to nothing
        assert before.ids[: needle + framing] == after.ids[: needle + framing]


def test_what_the_tokenizer_shows_is_said_before_anything_is_asked(byte_tokenizer, prose):
    def prompts(template=None, **changes):
        config = dataclasses.replace(GRID, **changes)
        Prompts(config, byte_tokenizer, template=template).require_possible()

    with pytest.raises(UserError, match=r"prose\.txt is too short for length 1,400: all of it"):
        prompts(haystack=prose(30))
    with pytest.raises(UserError, match="is empty"):
        prompts(haystack=prose(0, "none.txt"))
    with pytest.raises(UserError, match="length 150 has no room for the question"):
        prompts(lengths=(150, 700))
    with pytest.raises(UserError, match="the needle is not in the prompt"):
        prompts(template="{{ messages[0].content | upper }}")
