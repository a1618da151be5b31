"""Batches of the original: our data path gives the same, its faults excepted.

Each fault is a function of what ours gives. With those that a file is listed with here, it comes
out as the original wrote it, to the last slot; without any one of them, it does not.
"""

import contextlib
import dataclasses
import itertools
import json

import numpy as np
import pytest

from lwm.data.example import Batch, Example, PackedRow, stack
from lwm.data.fields import RecordEncoder
from lwm.data.format import ExampleFormat
from lwm.data.loader import Loader
from lwm.data.pack import Packer, PackingConfig, fill_row
from lwm.data.sets import Corpus
from lwm.data.sources import open_source
from lwm.data.stream import Mixture
from lwm.tokenizer.tokenizer import Tokenizer
from lwm.tokens import TokenSpace

SPACE = TokenSpace(text=512, vision=8448, codes=8192)
BOS = 1
KEYS = ("input_tokens", "target_tokens", "loss_masks", "input_vision_masks", "target_vision_masks")


class StrayTokenizer(Tokenizer):
    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return [BOS] * self.add_bos + super().encode(text, special=special)


class EarlyEncoder(RecordEncoder):
    def encode(self, record, *, line=0, **options) -> Example:
        return super().encode(record, line=line - 1, **options)


def remade(kind, thing):
    return kind(**{f.name: getattr(thing, f.name) for f in dataclasses.fields(thing)})


def stray_bos(encoder: RecordEncoder) -> RecordEncoder:
    """In vision data `<vision>`, `</vision>` and each text get what a whole text begins with."""
    return dataclasses.replace(encoder, tokenizer=remade(StrayTokenizer, encoder.tokenizer))


def line_before(encoder: RecordEncoder) -> RecordEncoder:
    """Resumed, lines are counted from one too low, so that other fields are drawn."""
    return remade(EarlyEncoder, encoder)


def forgetful(examples: list[Example], slots: int) -> list[Example]:
    """Resumed after so many slots, what was read ahead of them is lost."""
    ends = np.cumsum([len(example) for example in examples])
    return examples[np.searchsorted(ends, slots + 1, side="right") + 1 :]


def end_to_end(examples: list[Example]) -> list[Example]:
    """Unpadded, the examples are one long text: they see, and foretell, one another."""
    ids, learn = (np.concatenate([getattr(e, x) for e in examples]) for x in ("ids", "loss_mask"))
    return [Example(ids=ids, loss_mask=learn, name="all")]


def every_second(examples: list[Example]) -> list[Example]:
    """With one row to a batch, every second example is dropped."""
    return examples[::2]


def cut(rows: list[list[PackedRow]]) -> list[list[PackedRow]]:
    """What of an example is longer than a row is lost; ours goes on on another row."""
    return [of_example[:1] for of_example in rows]


def bos_where_empty(batch: Batch) -> Batch:
    """Empty slots hold beginnings of text, which see the example; ours are no part of it."""
    tokens, targets = (np.where(batch.segments < 0, BOS, x) for x in (batch.tokens, batch.targets))
    return batch._replace(tokens=tokens, targets=targets)


def end_as_input(batch: Batch) -> Batch:
    """The last token of an example takes a slot, though nothing follows it."""
    return batch._replace(tokens=np.hstack([batch.tokens[:, :1], batch.targets[:, :-1]]))


def drifted(batch: Batch) -> Batch:
    """Row i starts i slots early, with the end of the row before it; the last one's end is lost.

    Rows are laid end to end with the target of their last slot, and cut as if without it.
    """
    ids = np.hstack([batch.tokens, batch.targets[:, -1:]]).ravel()
    weights = np.pad(batch.weights, [(0, 0), (1, 0)]).ravel()
    shape, size = batch.tokens.shape, batch.tokens.size
    tokens, targets, weights = (x[:size].reshape(shape) for x in (ids, ids[1:], weights[1:]))
    return batch._replace(tokens=tokens, targets=targets, weights=weights)


def shifted_twice(batch: Batch) -> Batch:
    """On a full row the loss mask is a slot early: it is shifted to the targets twice."""
    early = np.pad(batch.weights[:, 1:], [(0, 0), (0, 1)])
    return batch._replace(weights=np.where(batch.segments[:, -1:] < 0, batch.weights, early))


def bos_over_first(batch: Batch) -> Batch:
    """`always_start_with_bos` writes over the first token of each row."""
    return batch._replace(tokens=np.where(np.arange(batch.tokens.shape[1]) == 0, BOS, batch.tokens))


OF_ENCODERS, OF_EXAMPLES, OF_ROWS = (stray_bos, line_before), (end_to_end, every_second), (cut,)
OF_BATCHES = (bos_where_empty, end_as_input, drifted, shifted_twice, bos_over_first)
PADDED = (cut, bos_where_empty, end_as_input)
FAULTS = {
    "text_nopad": (end_to_end,),
    "text_nopad_addbos": (end_to_end,),
    "text_nopad_masked": (end_to_end,),
    "text_nopad_bos": (end_to_end, bos_over_first),
    "text_pad": (*PADDED, drifted),
    "text_pad_b1": (*PADDED, every_second),
    "text_pad_b4": (*PADDED, drifted),
    "vision_nopad": (end_to_end,),
    "vision_pad": (cut, bos_where_empty, shifted_twice),
    "vision_pad_addbos": (cut, bos_where_empty, shifted_twice, stray_bos),
}
# Once resumed, these are added.
RESUMED = {
    "text_nopad": (forgetful,),
    "text_pad": (),
    "vision_nopad": (forgetful, line_before),
    "vision_pad": (line_before,),
}


def applied(faults, known, value):
    for fault in faults:
        value = fault(value) if fault in known else value
    return value


class File:
    """One of the original's files of batches, and ours out of the same data."""

    def __init__(self, folder, name):
        made = json.loads((folder / "data" / "batches_manifest.json").read_text())
        settings = made[name]["config"]
        kind = settings["type"].removeprefix("json")
        fields = settings["vision_text_processor" if kind else "text_processor"]
        fields = {key.replace("n_tokens", "tokens"): value for key, value in fields.items()}
        data = settings[f"json{kind}_dataset"]
        tokenizer = Tokenizer.open(folder / made[name]["tokenizer"])
        self.encoder = RecordEncoder(
            tokenizer=tokenizer, tokens=SPACE, format=ExampleFormat(**fields)
        )
        self.source = open_source(folder / data["path"])
        self.length, self.size = data["seq_length"], data["batch_size"]
        self.resumed_at = int(next(iter(made.get(f"{name}.resume", ["0"]))).rpartition("_")[2])
        self.arrays = np.load(folder / "data" / f"batches_{name}.npz")

    def original(self, prefix=""):
        """Returns the rows that the original wrote, one batch after the other."""
        batches = [f"{prefix}b{i}." for i in range(2 if prefix else len(self.arrays["metrics"]))]
        return {key: np.concatenate([self.arrays[b + key] for b in batches]) for key in KEYS}

    def packed(self, length, faults=()):
        """Returns our rows of three passes over the data, with the examples in their order."""
        corpus = Corpus(self.source, applied(faults, OF_ENCODERS, self.encoder))
        packing, mixture = (
            PackingConfig(length=length, open_rows=1),
            Mixture(streams=1, shuffle=False),
        )
        loader = Loader([corpus], SPACE, packing, mixture, rows=1)
        given = itertools.takewhile(lambda given: given.read["read"] < 3 * len(corpus), loader)
        return joined([each.batch for each in given])

    def examples(self, faults=()):
        """Returns the examples that lie on rows where none is split."""
        batch, examples = self.packed(1024, faults), []
        for row, segments in enumerate(batch.segments):
            for segment in range(segments.max() + 1):
                here = np.flatnonzero(segments == segment)
                ids = np.append(batch.tokens[row, here], batch.targets[row, here[-1]])
                learn = np.append(False, batch.weights[row, here] > 0)
                examples.append(Example(ids=ids, loss_mask=learn, name=f"{row}.{segment}"))
        return examples

    def ours(self, faults, resumed=False):
        """Returns our rows, an example on each, with the faults."""
        examples, config = self.examples(faults), PackingConfig(length=self.length)
        first = self.resumed_at * self.size if resumed else 0
        if forgetful in faults:
            examples, first = forgetful(examples, first * self.length), 0
        rows = [
            [fill_row(pieces, config, SPACE) for pieces in Packer(config).pack([example])]
            for example in applied(faults, OF_EXAMPLES, examples)
        ]
        rows = list(itertools.chain(*applied(faults, OF_ROWS, rows)))[first:]
        groups = (stack(rows[i : i + self.size]) for i in range(0, len(rows), self.size))
        return joined([applied(faults, OF_BATCHES, group) for group in groups])


def joined(batches):
    return Batch(*(np.concatenate(column) for column in zip(*batches, strict=True)))


def check(ours, original):
    """Compares all that the original wrote; its ids of text and of vision overlap."""
    tokens, targets, weights = ours
    sees, foretells = tokens >= SPACE.text, targets >= SPACE.text
    ids = tokens - SPACE.text * sees, targets - SPACE.text * foretells
    for key, found in zip(KEYS, (*ids, weights > 0, sees, foretells), strict=True):
        np.testing.assert_array_equal(found[: len(original[key])], original[key], err_msg=key)


WHOLE = [(name, "", fault) for name in FAULTS for fault in (None, *FAULTS[name])]
AFTER = [(name, "resumed.", fault) for name in RESUMED for fault in (None, *RESUMED[name])]


@pytest.mark.parametrize(("name", "prefix", "left_out"), WHOLE + AFTER)
def test_ours_with_its_faults_is_the_original(fixtures, name, prefix, left_out):
    file, faults = File(fixtures, name), FAULTS[name] + (RESUMED[name] if prefix else ())
    ours = file.ours([fault for fault in faults if fault is not left_out], resumed=bool(prefix))
    with contextlib.nullcontext() if left_out is None else pytest.raises(AssertionError):
        check((ours.tokens, ours.targets, ours.weights), file.original(prefix))


@pytest.mark.parametrize("name", [n for n in FAULTS if FAULTS[n] == (end_to_end,)])
def test_our_rows_hold_all_but_what_crosses_examples(fixtures, name):
    """There the original foretells the next example's beginning, but never learns it."""
    file = File(fixtures, name)
    original = {key: values.ravel() for key, values in file.original().items()}
    ends = np.cumsum([len(example) for example in file.examples()]) - 1
    crosses = np.isin(np.arange(original["loss_masks"].size), ends)
    np.testing.assert_array_equal(original["loss_masks"][crosses], 0)
    ours = file.packed(file.length)
    ours = [x[ours.segments >= 0] for x in (ours.tokens, ours.targets, ours.weights)]
    check(ours, {key: values[~crosses] for key, values in original.items()})


@pytest.mark.parametrize("name", ["text_pad_b1", "vision_pad"])
def test_a_row_alone_counts_as_in_the_original(fixtures, name):
    """Its targets by their mean, each modality by itself; rows alike, also where it is absent."""
    file = File(fixtures, name)
    ours, original = file.ours(FAULTS[name]), file.original()
    has_room = ours.segments[: len(original["loss_masks"]), -1] < 0
    is_right = has_room | (shifted_twice not in FAULTS[name])
    for is_vision in (False, True):
        kind = original["target_vision_masks"] == is_vision
        learnt = np.where(kind, original["loss_masks"], 0)
        mean = learnt / np.maximum(learnt.sum(1, keepdims=True), 1)
        found = np.where(kind, ours.weights[: len(kind)], 0)
        np.testing.assert_array_equal(found[is_right], mean[is_right])
    assert is_right.sum() >= 8
    np.testing.assert_array_equal(ours.counts, 1)
