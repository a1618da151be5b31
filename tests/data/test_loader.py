"""The stream of batches goes on exactly, and does not depend on who reads it."""

import itertools
import json

import numpy as np
import pytest

from lwm.data.corpus import Corpus
from lwm.data.example import Example
from lwm.data.fields import Encoder
from lwm.data.loader import Loader, Mixture, Stream
from lwm.data.pack import Packing
from lwm.data.sources import open_source
from lwm.errors import UserError
from lwm.tokens import TokenSpace

SPACE = TokenSpace(text=100_000)


class Numbered:
    """Examples of different lengths, whose ids say which they are; every tenth cannot be read."""

    def __init__(self, size, first=0, broken=True):
        self.size, self.first, self.broken = size, first, broken

    def __len__(self):
        return self.size

    def __getitem__(self, number):
        if self.broken and number % 10 == 9:
            raise UserError(f"example {number} is broken")
        length = 3 + (number * 7919) % 90
        ids = np.full(length, self.first + number, np.int32)
        return Example(ids=ids, learn=np.ones(length, bool), name=f"{number}")


def streams(count=4, collections=None, **mixture):
    collections = collections or [Numbered(100)]
    mixture = Mixture(streams=count, **mixture)
    packing = Packing(length=64, open_rows=3)
    return [Stream(number, collections, mixture, packing, SPACE) for number in range(count)]


def take(loader, count):
    return list(itertools.islice(loader, count))


def same(one, other):
    for x, y in zip(one, other, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("stopped", [1, 7, 40])
def test_goes_on_where_it_stopped(stopped):
    whole = take(Loader(streams(), rows=6), 50)
    state = json.loads(json.dumps(whole[stopped - 1][1]))
    again = Loader(streams(), rows=6)
    again.restore(state)
    for (batch, after), (same_batch, same_after) in zip(
        take(again, 50 - stopped), whole[stopped:], strict=True
    ):
        same(batch, same_batch)
        assert after == same_after


def test_a_state_is_that_of_the_batch_it_comes_with():
    """Not that of the batches which were prepared meanwhile."""
    one, far = (take(Loader(streams(), rows=4, ahead=ahead), 5) for ahead in (1, 20))
    assert [state for _, state in one] == [state for _, state in far]


def test_rows_are_those_of_their_stream():
    batches = take(Loader(streams(), rows=8), 3)
    alone = streams()[1]
    rows = [row for batch, _ in batches for row in (batch.tokens[1], batch.tokens[5])]
    for row in rows:
        np.testing.assert_array_equal(next(alone).tokens, row)


def seen(batches):
    """The examples in batches, in order."""
    for batch, _ in batches:
        for tokens, segments in zip(batch.tokens, batch.segments, strict=True):
            for segment in range(segments.max() + 1):
                yield int(tokens[segments == segment][0])


def test_a_pass_reads_everything_once_and_in_an_order_of_its_own():
    drawing = streams(1, [Numbered(100, broken=False)])
    stream = drawing[0]
    first = [stream._draw()[1] for _ in range(100)]
    second = [stream._draw()[1] for _ in range(100)]
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second != sorted(second)
    plain = streams(1, [Numbered(100)], shuffle=False)[0]
    assert [plain._draw()[1] for _ in range(100)] == list(range(100))


def test_streams_share_a_pass():
    drawn = [{stream._draw()[1] for _ in range(25)} for stream in streams(4)]
    assert set().union(*drawn) == set(range(100))
    assert sum(map(len, drawn)) == 100


def test_mixtures():
    collections = [Numbered(200, broken=False), Numbered(300, 1000, broken=False)]
    batches = take(Loader(streams(4, collections, weights=(3.0, 1.0)), rows=8), 120)
    found = np.array(list(seen(batches))) < 1000
    assert abs(found.mean() - 0.75) < 0.05


def test_unreadable_examples_are_skipped_and_counted():
    drawing = streams()
    take(Loader(drawing, rows=4), 30)
    assert sum(stream.skipped for stream in drawing) > 0


def test_corpora_are_read_as_they_are_needed(tmp_path, byte_tokenizer):
    lines = [f'{{"text": "line {number}"}}' for number in range(20)]
    lines[7] = "no JSON"
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    space = TokenSpace(text=byte_tokenizer.vocab_size)
    encoder = Encoder(tokenizer=byte_tokenizer, tokens=space)
    corpus = Corpus(open_source(tmp_path / "data.jsonl"), encoder)
    stream = streams(1, [corpus], shuffle=False)[0]
    row = next(stream)
    first = byte_tokenizer.decode(row.tokens[row.segments == 0].tolist())
    assert f'{{"text": "{first}"}}' in lines
    while not stream.skipped:
        next(stream)
    assert stream.drawn[0] >= 8


def test_what_cannot_work_is_refused():
    with pytest.raises(UserError, match="3 examples cannot be spread over 4 streams"):
        streams(collections=[Numbered(3)])
    for weights in ((0.0, 0.0), (1.0, -1.0), (float("nan"),), ()):
        with pytest.raises(UserError, match="must be 0 or above, and not all 0"):
            Mixture(weights=weights)
    with pytest.raises(UserError, match="0 streams"):
        Mixture(streams=0)
    with pytest.raises(UserError, match="rows of 0 slots"):
        Packing(length=0)
    with pytest.raises(UserError, match="2 weights are given for 1 sets"):
        streams(weights=(1.0, 2.0))
    state = take(Loader(streams(), rows=4), 9)[-1][1]
    with pytest.raises(UserError, match="4 streams and 4 rows a batch, not 4 and 8"):
        Loader(streams(), rows=8).restore(state)
    with pytest.raises(UserError, match="is not what it was when the checkpoint"):
        Loader(streams(collections=[Short()]), rows=4).restore(state)
    nothing = Loader(streams(collections=[Nothing()]), rows=4)
    with pytest.raises(
        UserError, match=r"1000 examples one after .*, the last: example \d+ is broken"
    ):
        take(nothing, 1)


class Nothing(Numbered):
    def __init__(self):
        super().__init__(100)

    def __getitem__(self, number):
        raise UserError(f"example {number} is broken")


class Short(Numbered):
    """The same numbers, cut off: other data than before."""

    def __init__(self):
        super().__init__(100)

    def __getitem__(self, number):
        return Example(ids=np.zeros(2, np.int32), learn=np.ones(2, bool), name="")
