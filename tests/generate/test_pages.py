import random
from collections import Counter

import pytest

from lwm.generate.pages import LONG, SHORT, Holding, Names, Need, Pages, chunk_at
from lwm.model.pool import PAGE

DOCUMENT = tuple(range(8 * LONG))
"""Ids whose chunks all differ."""


def names(chunks: int, *, of: tuple[int, ...] = DOCUMENT) -> tuple[bytes, ...]:
    return Names.of(of[: chunks * LONG], b"").chunks


def admit(pages: Pages, need: Need) -> Holding:
    holdings = pages.admit([need])
    assert holdings is not None
    pages.check()
    return holdings[0]


def read(pages: Pages, holding: Holding, chunks: tuple[bytes, ...]) -> None:
    for number in range(len(holding.names), len(chunks)):
        assert pages.name(holding, number, chunks[number])
    pages.check()


def keep(pages: Pages, chunks: tuple[bytes, ...]) -> list[int]:
    """Reads chunks, gives them back, and returns their pages."""
    holding = admit(pages, Need(chunks, len(chunks) * LONG))
    read(pages, holding, chunks)
    found = list(holding.pages)
    pages.release(holding)
    pages.check()
    return found


def grid(length: int) -> list[tuple[int, int]]:
    start, found = 0, []
    while start < length:
        chunk = chunk_at(start, length)
        found.append(tuple(chunk))
        start += chunk.count
    assert start == length
    return found


def test_the_grid_starts_at_zero_and_ends_in_a_padded_tail():
    assert grid(0) == []
    assert grid(1) == [(SHORT, 1)]
    assert grid(256) == [(SHORT, 64)] * 4
    assert grid(257) == [(LONG, 257)]
    assert grid(512) == [(LONG, 512)]
    assert grid(1024 + 65) == [(LONG, 512)] * 2 + [(SHORT, 64), (SHORT, 1)]
    assert grid(1024 + 511) == [(LONG, 512)] * 2 + [(LONG, 511)]


def test_padding_never_leaves_the_pages_of_the_prompt_and_its_last_id():
    for length in range(1, 3 * LONG):
        chunks = grid(length)
        end = sum(count for _, count in chunks[:-1]) + chunks[-1][0]
        assert -(-end // PAGE) <= -(-(length + 1) // PAGE)


def test_a_name_depends_on_all_ids_before_it_and_on_the_root():
    assert names(3)[:2] == names(2)
    other = (7, *DOCUMENT[1:])
    assert not set(names(3)) & set(names(3, of=other))
    assert Names.of(DOCUMENT, b"a").chunks[0] != Names.of(DOCUMENT, b"b").chunks[0]
    ids = DOCUMENT[: LONG + 3]
    assert Names.of(ids, b"").whole != Names.of((*ids[:-1], 9), b"").whole
    assert Names.of(ids, b"").chunks == Names.of((*ids[:-1], 9), b"").chunks
    assert len({Names.of((i,), b"").offset(4) for i in range(99)}) == 4


def test_a_salt_changes_all_names_and_no_place():
    ids = DOCUMENT[: 2 * LONG + 3]
    plain, one, other = (Names.of(ids, b"a", salt) for salt in (b"", b"1", b"2"))
    assert plain == Names.of(ids, b"a")
    assert not {*plain.chunks, plain.whole} & {*one.chunks, one.whole}
    assert not {*one.chunks, one.whole} & {*other.chunks, other.whole}
    assert plain.offset(4) == one.offset(4) == other.offset(4)


def test_a_row_has_all_its_pages_at_once_and_never_page_0():
    pages = Pages(6)
    holding = admit(pages, Need((), 4 * PAGE + 1))
    assert sorted(holding.pages) == [1, 2, 3, 4, 5]
    assert (pages.num_free, pages.num_used, pages.num_kept) == (0, 5, 0)
    assert pages.admit([Need((), 1)]) is None
    assert pages.shortage([Need((), 1)]) == 1
    pages.release(holding)
    assert pages.num_free == 5
    with pytest.raises(KeyError):
        pages.release(holding)


def test_a_kept_prefix_is_shared_and_only_the_rest_is_taken():
    pages = Pages(20)
    kept = keep(pages, names(2))
    assert pages.num_kept == 4
    one = admit(pages, Need(names(4), 4 * LONG))
    two = admit(pages, Need(names(4), 4 * LONG))
    assert one.num_shared == two.num_shared == 2 * LONG
    assert one.pages[:4] == two.pages[:4] == kept
    assert not set(one.pages[4:]) & set(two.pages[4:])
    assert (pages.num_free, pages.num_used, pages.num_kept) == (19 - 12, 12, 0)
    pages.release(one)
    pages.check()
    assert pages.num_kept == 0  # the other row still shares them
    pages.release(two)
    assert (pages.num_free, pages.num_kept) == (15, 4)


def test_rows_of_a_request_are_admitted_together_or_not_at_all():
    pages = Pages(10)
    keep(pages, names(3))
    before = vars(pages).copy()
    needs = [Need(names(2), 2 * LONG + 3 * PAGE), Need((), 3 * PAGE)]
    # 4 pages are pinned by the first row: 3 free and 2 evictable ones remain for 6.
    assert pages.shortage(needs) == 1
    assert pages.admit(needs) is None
    assert vars(pages) == before
    pages.check()
    pages.enlarge(11)
    pages.check()
    assert pages.shortage(needs) == 0
    holdings = pages.admit(needs)
    assert holdings is not None
    assert [len(holding.pages) for holding in holdings] == [7, 3]
    pages.check()


def test_the_least_recently_used_chunk_goes_first_and_leaves_before_their_parents():
    pages = Pages(13)
    other = names(2, of=DOCUMENT[::-1])
    keep(pages, names(4))
    keep(pages, other)
    assert pages.num_free == 0
    gone = []
    for chunk in range(6):
        holding = admit(pages, Need((), (chunk + 1) * LONG))
        kept = [name for name in (*names(4), *other) if name in pages._kept]
        gone.append({*names(4), *other} - set(kept))
        pages.release(holding)
    order = [*reversed(names(4)), *reversed(other)]
    assert gone == [set(order[: n + 1]) for n in range(6)]


def test_a_chunk_that_is_used_again_is_kept_for_longer():
    pages = Pages(9)
    other = names(2, of=DOCUMENT[::-1])
    keep(pages, names(2))
    keep(pages, other)
    pages.release(admit(pages, Need(names(2), 2 * LONG)))
    pages.release(admit(pages, Need((), 2 * LONG)))
    assert pages.match(Need(names(2), 0)) == list(names(2))
    assert pages.match(Need(other, 0)) == []


def test_a_row_that_shares_late_gives_its_own_pages_back():
    pages = Pages(20)
    one = admit(pages, Need(names(2), 3 * LONG))
    two = admit(pages, Need(names(2), 3 * LONG))
    assert not pages.bind(two, 0, names(2)[0])  # not yet read
    read(pages, one, names(2))
    assert not pages.bind(two, 1, names(2)[1])  # would leave a gap
    assert pages.bind(two, 0, names(2)[0])
    pages.check()
    assert two.pages[:2] == one.pages[:2]
    assert two.pages[2:4] != one.pages[2:4]
    # Read by both rows: the second one gives its own pages up.
    assert pages.name(two, 1, names(2)[1])
    pages.check()
    assert two.pages[:4] == one.pages[:4]
    assert pages.num_free == 19 - 4 - 2 * 2
    pages.release(one)
    pages.release(two)
    pages.check()
    assert (pages.num_free, pages.num_kept) == (15, 4)


def test_pages_on_other_devices_are_not_shared():
    pages = Pages(20, sp=4)
    one = admit(pages, Need(names(2), 2 * LONG, offset=1))
    two = admit(pages, Need(names(2), 2 * LONG, offset=3))
    read(pages, one, names(2))
    assert not pages.bind(two, 0, names(2)[0])
    assert not pages.name(two, 0, names(2)[0])
    assert not pages.name(two, 1, b"a chunk after one that is not shared")
    pages.check()
    assert pages.match(Need(names(2), 0, offset=3)) == []
    assert pages.match(Need(names(2), 0, offset=1)) == list(names(2))


@pytest.mark.parametrize("sp", [1, 2, 4])
def test_each_page_of_a_row_is_on_its_device(sp):
    for offset in range(sp):
        pages = Pages(4, sp=sp)
        holding = admit(pages, Need((), (3 * sp - 1) * PAGE, offset))
        # One page remains: on the device that the next page would be on.
        last = (3 * sp - 1 + offset) % sp
        for device in range(sp):
            free = pages.shortage([Need((), PAGE, device)]) == 0
            assert free == (device == last)
        pages.release(holding)
        assert pages.shortage([Need((), 3 * sp * PAGE, offset)]) == 0
        assert pages.shortage([Need((), (3 * sp + 1) * PAGE, offset)]) == 1
        assert pages.shortage([Need((), 5 * sp * PAGE, offset)]) == 2


class Rows:
    """Random rows over pages, and counts of what happened."""

    def __init__(self, sp: int):
        self.rng = random.Random(sp)
        self.pages = Pages(24 // sp + 8, sp=sp)
        orders = [tuple(self.rng.sample(DOCUMENT, len(DOCUMENT))) for _ in range(3)]
        orders.append(orders[0][: 3 * LONG] + orders[1])
        self.documents = [names(6, of=order) for order in orders]
        self.wanted: dict[Holding, tuple[bytes, ...]] = {}
        self.counts: Counter[str] = Counter()

    def admit(self):
        number = self.rng.choice((1, 1, 2))
        wanted = [self.rng.choice(self.documents)[: self.rng.randrange(6)] for _ in range(number)]
        sp = self.pages.sp
        needs = [
            Need(
                chunks if self.rng.random() < 0.8 else (),
                len(chunks) * LONG + self.rng.randrange(1, 3 * PAGE),
                self.rng.randrange(sp) if self.rng.random() < 0.1 else len(chunks[:1]) % sp,
            )
            for chunks in wanted
        ]
        short = self.pages.shortage(needs)
        holdings = self.pages.admit(needs)
        assert (holdings is None) == (short > 0)
        self.counts["refused" if holdings is None else "admitted"] += 1
        for need, chunks, holding in zip(needs, wanted, holdings or (), strict=bool(holdings)):
            assert len(holding.pages) == -(-need.num_tokens // PAGE)
            self.wanted[holding] = chunks

    def read(self):
        holding = self.rng.choice(list(self.wanted))
        number = len(holding.names)
        if number < len(self.wanted[holding]):
            name = self.wanted[holding][number]
            if self.rng.random() < 0.8 and self.pages.bind(holding, number, name):
                self.counts["bound"] += 1
            else:
                self.pages.name(holding, number, name)

    def release(self):
        holding = self.rng.choice(list(self.wanted))
        del self.wanted[holding]
        self.pages.release(holding)

    def check(self):
        self.pages.check()
        self.pages.check_holders(set(self.wanted))
        owners: dict[tuple[int, int], bytes | Holding] = {}
        for holding in self.wanted:
            for block, page in enumerate(holding.pages):
                owner = holding.names[block // 2] if block < 2 * len(holding.names) else holding
                place = (block + holding.offset) % self.pages.sp, page
                assert page > 0
                assert owners.setdefault(place, owner) == owner


@pytest.mark.parametrize("sp", [1, 2, 4])
def test_no_page_is_lost_or_given_twice_whatever_happens(sp):
    rows = Rows(sp)
    for step in range(1500):
        if not rows.wanted or rows.rng.random() < 0.4:
            rows.admit()
        elif rows.rng.random() < 0.7:
            rows.read()
        else:
            rows.release()
        if step == 750:
            rows.pages.enlarge(rows.pages.per_device + 3)
        rows.check()
    assert min(rows.counts[what] for what in ("refused", "admitted", "bound")) > 10
    while rows.wanted:
        rows.release()
    rows.check()
    assert rows.pages.num_used == 0
    assert rows.pages.num_kept > 0


def free_twice(pages, holding):
    pages._free[0].append(holding.pages[-1])


def lose_a_page(pages, holding):
    pages._free[0].pop()


def drop_a_reference(pages, holding):
    pages._kept[holding.names[0]].references -= 1


def swap_ages(pages, holding):
    pages._unused.move_to_end(next(iter(pages._unused)))


@pytest.mark.parametrize("damage", [free_twice, lose_a_page, drop_a_reference, swap_ages])
def test_the_check_finds_damage(damage):
    pages = Pages(20)
    keep(pages, names(2, of=DOCUMENT[::-1]))
    holding = admit(pages, Need(names(2), 2 * LONG + 1))
    read(pages, holding, names(2))
    damage(pages, holding)
    with pytest.raises(AssertionError):
        pages.check()
