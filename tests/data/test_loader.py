"""The stream of batches goes on exactly, and does not depend on who reads it."""

import dataclasses
import itertools
import json
import re

import numpy as np
import pytest

from lwm.data.example import Example
from lwm.data.fields import RecordEncoder
from lwm.data.lengths import Bounded
from lwm.data.loader import Loader, require_few_bad
from lwm.data.pack import PackingConfig
from lwm.data.sets import Corpus
from lwm.data.sources import open_source
from lwm.data.stream import Mixture, PackedStream, samples
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
        return Example(ids=ids, loss_mask=np.ones(length, bool), name=f"{number}")


PACKING = PackingConfig(length=64, open_rows=3)


def loader(rows, collections=None, packing=PACKING, streams=4, own=None, ahead=2, **mixture):
    return Loader(
        collections or [Numbered(100)],
        SPACE,
        packing,
        Mixture(streams=streams, **mixture),
        rows=rows,
        own=own,
        ahead=ahead,
    )


def take(loader, count):
    return list(itertools.islice(loader, count))


def all_of(delivered):
    """All that comes with a batch."""
    return delivered.examples, delivered.faults, delivered.read, delivered.state()


def same(one, other):
    for x, y in zip(one, other, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(("stopped", "balance"), [(1, 0), (7, 5), (40, 0)])
def test_goes_on_where_it_stopped(stopped, balance):
    packing = dataclasses.replace(PACKING, balance=balance)
    whole = take(loader(6, packing=packing), 50)
    state = json.loads(json.dumps(whole[stopped - 1].state()))
    again = loader(6, packing=packing)
    again.restore(state)
    for one, other in zip(take(again, 50 - stopped), whole[stopped:], strict=True):
        same(one.batch, other.batch)
        assert all_of(one) == all_of(other)


def test_sets_of_different_groups_never_share_a_row():
    sets = [Numbered(100), Numbered(100, 1000), Numbered(100, 2000)]
    settings = {"weights": (2.0, 1.0, 1.0), "groups": ("", "questions", "")}

    whole = take(loader(6, sets, **settings), 40)
    mixed = 0
    for one in whole:
        for row, segments in zip(one.batch.tokens, one.batch.segments, strict=True):
            kinds = {int(kind) for kind in row[segments >= 0] // 1000}
            assert kinds == {1} or 1 not in kinds
            mixed += kinds == {0, 2}
    assert mixed
    for stopped in (3, 17):
        state = json.loads(json.dumps(whole[stopped - 1].state()))
        again = loader(6, sets, **settings)
        again.restore(state)
        for one, other in zip(take(again, 40 - stopped), whole[stopped:], strict=True):
            same(one.batch, other.batch)
            assert one.read == other.read
    with pytest.raises(UserError, match="2 groups are given for 1 weights"):
        Mixture(groups=("a", "b"))


def test_a_state_is_that_of_the_batch_it_comes_with():
    """Not that of the batches which were prepared meanwhile."""
    one, far = (take(loader(4, ahead=ahead), 5) for ahead in (1, 20))
    assert [item.state() for item in one] == [item.state() for item in far]


@pytest.mark.parametrize(("rows", "count"), [(4, 4), (8, 4), (2, 8), (6, 4)])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batches_of_one(rows, count, processes):
    """Each lays out its rows only; all states together are that of one process."""
    if rows % processes:
        processes = 2
    whole = take(loader(rows, streams=count), 12)
    shares = np.split(np.arange(rows), processes)
    parts = [take(loader(rows, streams=count, own=own.tolist()), 12) for own in shares]
    for step, item in enumerate(whole):
        fields = zip(*(part[step].batch for part in parts), strict=True)
        together = [np.concatenate(field) for field in fields]
        same(together, item.batch)
        assert Loader.merge([part[step].state() for part in parts]) == item.state()
        assert [name for part in parts for name in part[step].examples] == item.examples
    again = loader(rows, streams=count, own=shares[1].tolist())
    again.restore(Loader.merge([part[4].state() for part in parts]))
    same(take(again, 1)[0].batch, parts[1][5].batch)


def test_a_process_runs_only_the_streams_of_its_rows():
    assert list(loader(4, own=[1], streams=8).streams) == [1, 5]
    assert list(loader(8, own=[1, 2], streams=4).streams) == [1, 2]
    assert list(loader(4, own=[0, 1, 2], streams=1).streams) == [0]


def test_threads_change_nothing():
    collections = [Numbered(100)]
    one, many = (
        take(Loader(collections, SPACE, PACKING, rows=4, threads=threads), 20) for threads in (0, 3)
    )
    for a, b in zip(one, many, strict=True):
        same(a.batch, b.batch)
        assert all_of(a) == all_of(b)


def test_rows_of_a_batch_are_alike_in_work():
    """With and without dealing them by work, the same examples come."""

    def spread(batches):
        work = np.array([np.square(np.bincount(row)).sum() for b in batches for row in b])
        return (work.reshape(len(batches), -1).std(1) / work.mean()).mean()

    packing = PackingConfig(length=256, open_rows=3)
    segments = {}
    for balance in (0, 16):
        packing = dataclasses.replace(packing, balance=balance)
        given = take(loader(4, [Uneven()], packing), 64)
        segments[balance] = [item.batch.segments + 1 for item in given]
    assert spread(segments[16]) < 0.4 * spread(segments[0])


def test_a_pass_reads_everything_once_and_in_an_order_of_its_own():
    def records(**mixture):
        drawn = iter(samples(0, [Numbered(100)], Mixture(streams=1, **mixture)))
        return [[next(drawn).source[1] for _ in range(100)] for _ in range(2)]

    first, second = records()
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second != sorted(second)
    assert records(seed=1)[0] != first
    assert records(shuffle=False) == [list(range(100))] * 2


@pytest.mark.parametrize("size", [100, 103])
def test_streams_share_a_pass(size):
    drawn = []
    for number in range(4):
        own = samples(number, [Numbered(size)], Mixture(streams=4)).__iter__()
        drawn += [next(own).source[1] for _ in range(len(range(number, size, 4)))]
    assert sorted(drawn) == list(range(size))


def test_mixtures():
    sets = [Numbered(200, broken=False), Numbered(50), Numbered(300, 1000, broken=False)]
    own = iter(samples(0, sets, Mixture(weights=(3.0, 0.0, 1.0), streams=4)))
    found = [next(own).source[0] for _ in range(200)]
    assert (found.count(0), found.count(1), found.count(2)) == (150, 0, 50)


def test_streams_take_from_a_mixture_at_their_own_times():
    """Else all rows of a batch would come from one set where examples are as long as rows."""
    sets = [Numbered(100, broken=False), Numbered(100, first=1000, broken=False)]
    mixture = Mixture(weights=(7.0, 1.0), streams=16)
    streams = [iter(samples(number, sets, mixture)) for number in range(16)]
    draws = [[next(stream).source[0] for stream in streams] for _ in range(80)]
    rare = [sum(draw) for draw in draws]
    assert max(rare) <= 3
    assert sum(rare) == 80 * 16 / 8
    assert {sum(of_one) for of_one in zip(*draws, strict=True)} == {10}


def test_unreadable_examples_are_skipped_counted_and_named():
    given = take(loader(4), 30)
    faults = [fault for item in given for fault in item.faults]
    assert faults
    assert all(re.fullmatch(r"example \d*9 is broken", fault) for fault in faults)
    assert given[-1].read["bad"] == len(faults)
    assert given[-1].read["read"] > 9 * len(faults)


def test_too_many_bad_examples_end_it():
    """Of few that were read, a few may be."""
    require_few_bad({"read": 1000, "bad": 10}, 0.01)
    require_few_bad({"read": 10, "bad": 10}, 0.01)
    require_few_bad({"read": 5000, "bad": 50}, 0.01)
    for read, bad in ((11, 11), (5000, 51)):
        with pytest.raises(UserError, match=rf"{bad} of {read} examples are bad, more than 1.0%"):
            require_few_bad({"read": read, "bad": bad}, 0.01)


def test_a_long_example_is_read_once_to_go_on():
    long = Long()
    state = take(loader(4, [long], PackingConfig(length=16), streams=1), 1)[-1].state()
    assert len(state["streams"]["0"]["ready"]) > 50
    long.read.clear()
    loader(4, [long], PackingConfig(length=16), streams=1).restore(state)
    assert len(long.read) == len(set(long.read))


def test_a_panic_in_a_library_ends_the_loader():
    class Panicking(Numbered):
        def __getitem__(self, number):
            raise BaseException("a library panicked")  # as `tokenizers` does

    with pytest.raises(BaseException, match="a library panicked"):
        take(loader(4, [Panicking(100)]), 1)


def test_long_examples_that_are_dropped_or_split_are_counted():
    for long, key in (("drop", "dropped"), ("split", "split")):
        given = take(loader(4, packing=PackingConfig(length=64, long=long)), 30)[-1].read
        assert given[key] > 0
        assert given["dropped"] + given["split"] == given[key]
    with pytest.raises(UserError, match=r"1000 .* cannot be used, .* too long to keep"):
        take(loader(4, packing=PackingConfig(length=1, long="drop")), 1)


def test_examples_outside_of_bounds_are_passed_over_and_are_not_bad():
    bounded = Bounded(Numbered(100), least=20, most=50)
    whole = take(loader(6, [bounded]), 16)
    rows = [names for one in whole for names in one.examples]
    lengths = {3 + (int(name) * 7919) % 90 for names in rows for name in names}
    assert 20 <= min(lengths) < max(lengths) <= 50
    read = whole[-1].read
    assert read["outside"] > read["bad"] > 0
    again = loader(6, [bounded])
    again.restore(json.loads(json.dumps(whole[5].state())))
    for one, other in zip(take(again, 10), whole[6:], strict=True):
        assert all_of(one) == all_of(other)
    with pytest.raises(UserError, match=r"tokens asked for; the last: \d+ has \d+ tokens"):
        take(loader(4, [Bounded(Numbered(100, broken=False), least=200)]), 1)


def test_corpora_are_read_as_they_are_needed(tmp_path, byte_tokenizer):
    lines = [f'{{"text": "line {number}"}}' for number in range(20)]
    lines[7] = "no JSON"
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    space = TokenSpace(text=byte_tokenizer.vocab_size)
    encoder = RecordEncoder(tokenizer=byte_tokenizer, tokens=space)
    corpus = Corpus(open_source(tmp_path / "data.jsonl"), encoder)
    stream = PackedStream(
        0, [corpus], Mixture(streams=1, shuffle=False), PackingConfig(length=64, open_rows=1)
    )
    piece = next(stream)[0]
    assert piece.example.name == f"{tmp_path / 'data.jsonl'}:1"
    while not stream.skipped:
        next(stream)
    assert stream.read >= 8
    assert "data.jsonl:8: not JSON" in stream.faults[0]


def test_what_cannot_work_is_refused():
    with pytest.raises(
        UserError, match="the 3 examples of data set 0 cannot be spread over 4 streams"
    ):
        loader(4, [Numbered(3)])
    for weights in ((0.0, 0.0), (1.0, -1.0), (float("nan"),), ()):
        with pytest.raises(UserError, match="must be 0 or above, and not all 0"):
            Mixture(weights=weights)
    with pytest.raises(UserError, match="0 streams"):
        Mixture(streams=0)
    with pytest.raises(UserError, match="rows of 0 slots"):
        PackingConfig(length=0)
    with pytest.raises(UserError, match="2 weights are given for 1 sets"):
        loader(4, weights=(1.0, 2.0))
    with pytest.raises(UserError, match="0 rows a batch"):
        loader(0)
    state = take(loader(4), 9)[-1].state()
    with pytest.raises(UserError, match="4 streams and 4 rows a batch, not 4 and 8"):
        loader(8).restore(state)
    with pytest.raises(UserError, match=r"hold \[120\] examples, and held \[100\] when"):
        loader(4, [Numbered(120)]).restore(state)
    for other in (Short(), Nothing()):
        with pytest.raises(UserError, match="is not what it was when the checkpoint"):
            loader(4, [other]).restore(state)
    with pytest.raises(
        UserError, match=r"1000 examples one after .*, the last: example \d+ is broken"
    ):
        take(loader(4, [Nothing()]), 1)


class Uneven(Numbered):
    """A few long examples among many short ones."""

    def __init__(self):
        super().__init__(400)

    def __getitem__(self, number):
        length = 250 if number % 8 == 0 else 10 + number * 7919 % 50
        return Example(ids=np.zeros(length, np.int32), loss_mask=np.ones(length, bool), name="")


class Long(Numbered):
    """Examples of a hundred rows, which count how often they are read."""

    def __init__(self):
        super().__init__(4)
        self.read = []

    def __getitem__(self, number):
        self.read.append(number)
        return Example(ids=np.zeros(1600, np.int32), loss_mask=np.ones(1600, bool), name="")


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
        return Example(ids=np.zeros(2, np.int32), loss_mask=np.ones(2, bool), name="")
