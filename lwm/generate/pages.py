"""Pages of a pool, counted: which are free, which a row holds, which are kept to be shared."""

import hashlib
import struct
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from lwm.model.pool import PAGE

LONG, SHORT = 512, 64
"""Prompts are read in chunks of these two lengths; a complete chunk is two pages."""
PAGES_PER_CHUNK = LONG // PAGE


class Chunk(NamedTuple):
    """Part of a prompt that is read at once."""

    size: int
    """`LONG` or `SHORT`."""
    count: int
    """Ids of the prompt in it; padding follows on the right."""


def chunk_at(start: int, length: int) -> Chunk:
    """Returns the chunk that is read next when `start` of `length` ids have been read.

    The grid starts at 0: complete chunks, then the tail, in one padded long chunk or in short ones.
    """
    rest = length - start
    if rest > LONG // 2:
        return Chunk(LONG, min(rest, LONG))
    return Chunk(SHORT, min(rest, SHORT))


class Names(NamedTuple):
    """Names of the parts of a run of ids, each a hash of all ids up to its end."""

    chunks: tuple[bytes, ...]
    """One for each complete chunk."""
    whole: bytes
    """For all of it."""
    place: int
    """Decides the device of the first page."""

    @classmethod
    def of(cls, ids: Sequence[int], root: bytes, salt: bytes = b"") -> "Names":
        """Names the parts of `ids`.

        Args:
            ids: The run.
            root: All else that decides the bits of a page.
            salt: Sets names apart, so that nothing is shared between salts; no bit depends on it.
        """
        complete = len(ids) // LONG * LONG
        chunks, name = [], root
        for start in range(0, complete, LONG):
            name = _name(name, ids[start : start + LONG])
            chunks.append(name)
        whole = _name(name, ids[complete:]) if len(ids) > complete else name
        place = int.from_bytes((chunks[0] if chunks else whole)[:8])
        if salt:
            chunks = [_salted(each, salt) for each in chunks]
            whole = _salted(whole, salt)
        return cls(tuple(chunks), whole, place)

    def offset(self, sp: int) -> int:
        """Returns the device of the first page.

        It depends on the ids alone, so that rows that share a prefix agree on it, and a row's bits
        do not depend on the rows around it.
        """
        return self.place % sp


def _name(before: bytes, ids: Sequence[int]) -> bytes:
    return hashlib.sha256(before + struct.pack(f"<{len(ids)}i", *ids)).digest()


def _salted(name: bytes, salt: bytes) -> bytes:
    return hashlib.sha256(name + salt).digest()


class Need(NamedTuple):
    """Pages that a row asks for."""

    names: Sequence[bytes]
    """Names of the chunks at its front that it would share."""
    num_tokens: int
    """Tokens that it holds at most."""
    offset: int = 0
    """The device of its first page."""


class Holding:
    """Pages of a row, in order: page j lies on device (j + offset) mod sp."""

    def __init__(self, offset: int = 0):
        """Starts without a page."""
        self.pages: list[int] = []
        """Ids local to their devices, from 1."""
        self.offset = offset
        self.names: list[bytes] = []
        """Names of the chunks at its front whose pages other rows may share."""

    @property
    def num_shared(self) -> int:
        """Tokens in its shared chunks."""
        return len(self.names) * LONG


class _Kept:
    """Pages of a complete chunk that has been read."""

    def __init__(self, pages: list[int], offset: int, number: int, parent: bytes | None):
        self.pages = pages
        self.offset = offset
        self.number = number
        self.parent = parent
        self.references = 0


class Pages:
    """Accounting of the pages of the `sp` devices that a group of rows lives on.

    Every page but page 0 of each device is free, or held by rows, or kept for later rows. A row
    shares chunks from its front without a gap, and gives them back from the last to the first: so
    no chunk is referenced or kept without its parent, and the chunk that has been unreferenced for
    longest never has a kept child.
    """

    def __init__(self, per_device: int, *, sp: int = 1):
        """Counts pages 1 … `per_device` - 1 of each device as free."""
        self.per_device = 1
        self.sp = sp
        self._free: list[list[int]] = [[] for _ in range(sp)]
        self._kept: dict[bytes, _Kept] = {}
        # Names of unreferenced chunks, the one that goes first at the front.
        self._unused: OrderedDict[bytes, None] = OrderedDict()
        self._evictable = [0] * sp  # pages of unreferenced chunks on each device
        self._holdings: set[Holding] = set()
        self.enlarge(per_device)

    @property
    def num_free(self) -> int:
        """Pages with nothing in them."""
        return sum(map(len, self._free))

    @property
    def num_kept(self) -> int:
        """Pages that no row holds, and that a row may share or overwrite."""
        return sum(self._evictable)

    @property
    def num_used(self) -> int:
        """Pages that rows hold."""
        return self.sp * (self.per_device - 1) - self.num_free - self.num_kept

    def enlarge(self, per_device: int) -> None:
        """Adds free pages until each device has `per_device` with page 0."""
        for free in self._free:
            free[:0] = range(per_device - 1, self.per_device - 1, -1)  # the last goes first
        self.per_device = max(per_device, self.per_device)

    def match(self, need: Need) -> list[bytes]:
        """Returns the names of the chunks that a row would share at once."""
        found = []
        for name in need.names:
            kept = self._kept.get(name)
            if kept is None or kept.offset != need.offset:
                break
            found.append(name)
        return found

    def shortage(self, needs: Sequence[Need]) -> int:
        """Returns how many more pages each device needs to admit rows; 0 if they fit."""
        wanted, pinned = [0] * self.sp, [0] * self.sp
        shared = set()
        for need in needs:
            names = self.match(need)
            shared.update(names)
            start, end = len(names) * PAGES_PER_CHUNK, -(-need.num_tokens // PAGE)
            for device in range(self.sp):
                # Pages j of the row from `start` with (j + offset) mod sp = device.
                first = (device - need.offset - start) % self.sp
                wanted[device] += max(0, -(-(end - start - first) // self.sp))
        for name in shared & self._unused.keys():
            for device, _ in self._places(self._kept[name]):
                pinned[device] += 1
        return max(
            0,
            *(
                wanted[device] + pinned[device] - len(free) - self._evictable[device]
                for device, free in enumerate(self._free)
            ),
        )

    def admit(self, needs: Sequence[Need]) -> list[Holding] | None:
        """Gives rows all the pages that they ask for; None, and no change, if they do not fit.

        Kept chunks are shared, the rest is taken from free pages and from unreferenced chunks, the
        least recently used first.
        """
        if self.shortage(needs):
            return None
        holdings = [self._share(need) for need in needs]
        for need, holding in zip(needs, holdings, strict=True):
            for block in range(len(holding.pages), -(-need.num_tokens // PAGE)):
                device = (block + holding.offset) % self.sp
                while not self._free[device]:
                    self._evict()
                holding.pages.append(self._free[device].pop())
        return holdings

    def bind(self, holding: Holding, number: int, name: bytes) -> bool:
        """Shares a kept chunk with a row in place of pages of its own, which become free.

        Returns False, and changes nothing, if the chunk is not kept, lies on other devices, or
        would leave a gap after the row's shared chunks.
        """
        kept = self._kept.get(name)
        if kept is None or kept.offset != holding.offset or number != len(holding.names):
            return False
        blocks = range(number * PAGES_PER_CHUNK, (number + 1) * PAGES_PER_CHUNK)
        for block, page in zip(blocks, kept.pages, strict=True):
            self._free[(block + holding.offset) % self.sp].append(holding.pages[block])
            holding.pages[block] = page
        self._refer(name)
        holding.names.append(name)
        return True

    def name(self, holding: Holding, number: int, name: bytes) -> bool:
        """Makes a chunk that a row has read one that others may share.

        If the name exists, the row shares that chunk. Returns False if the chunk cannot be shared,
        and remains the row's own.
        """
        if name in self._kept:
            return self.bind(holding, number, name)
        if number != len(holding.names):
            return False
        start = number * PAGES_PER_CHUNK
        pages = holding.pages[start : start + PAGES_PER_CHUNK]
        parent = holding.names[-1] if holding.names else None
        self._kept[name] = kept = _Kept(pages, holding.offset, number, parent)
        kept.references = 1
        holding.names.append(name)
        return True

    def release(self, holding: Holding) -> None:
        """Takes a row's pages back: shared chunks are kept, the others become free.

        Raises:
            KeyError: The row holds nothing.
        """
        self._holdings.remove(holding)
        own = range(len(holding.names) * PAGES_PER_CHUNK, len(holding.pages))
        for block in reversed(own):
            self._free[(block + holding.offset) % self.sp].append(holding.pages[block])
        for name in reversed(holding.names):
            kept = self._kept[name]
            kept.references -= 1
            if not kept.references:
                self._unused[name] = None
                for device, _ in self._places(kept):
                    self._evictable[device] += 1
        holding.pages, holding.names = [], []

    def check_holders(self, holdings: set[Holding]) -> None:
        """Compares the rows that hold pages with those that should.

        Raises:
            AssertionError: They differ.
        """
        assert holdings == self._holdings, "a row's pages are not given back, or not its own"

    def check(self) -> None:
        """Compares all counts with the rows' pages.

        Raises:
            AssertionError: A page is lost, given out twice, or counted wrongly.
        """
        pages = [
            Counter({(device, page): 1 for page in free}) for device, free in enumerate(self._free)
        ]
        everything = sum(pages, Counter())
        assert sum(everything.values()) == self.num_free, "a page is free twice"
        references: Counter[bytes] = Counter()
        for holding in self._holdings:
            references.update(holding.names)
            for block, page in enumerate(holding.pages):
                number, place = block // PAGES_PER_CHUNK, block % PAGES_PER_CHUNK
                if number < len(holding.names):
                    kept = self._kept[holding.names[number]]
                    assert (kept.number, kept.offset) == (number, holding.offset)
                    assert kept.pages[place] == page, "a row has another page than its chunk"
                else:
                    everything[(block + holding.offset) % self.sp, page] += 1
        ages = {name: age for age, name in enumerate(self._unused)}
        evictable: Counter[int] = Counter()
        for name, kept in self._kept.items():
            everything.update(self._places(kept))
            assert kept.references == references[name], "references are counted wrongly"
            assert (kept.references == 0) == (name in ages)
            if not kept.references:
                evictable.update(device for device, _ in self._places(kept))
            if kept.parent is not None:
                assert kept.parent in self._kept, "a chunk is kept without its parent"
                age = ages.get(name, len(ages))
                assert ages.get(kept.parent, len(ages)) >= age, "a parent goes before its child"
        assert [evictable[device] for device in range(self.sp)] == self._evictable
        wanted = Counter(
            (device, page) for device in range(self.sp) for page in range(1, self.per_device)
        )
        assert everything == wanted, f"lost or given twice: {wanted - everything}"

    def _share(self, need: Need) -> Holding:
        holding = Holding(need.offset)
        self._holdings.add(holding)
        for name in self.match(need):
            holding.pages += self._kept[name].pages
            holding.names.append(name)
            self._refer(name)
        return holding

    def _refer(self, name: bytes) -> None:
        kept = self._kept[name]
        kept.references += 1
        if kept.references == 1:
            del self._unused[name]
            for device, _ in self._places(kept):
                self._evictable[device] -= 1

    def _evict(self) -> None:
        name, _ = self._unused.popitem(last=False)
        for device, page in self._places(self._kept.pop(name)):
            self._evictable[device] -= 1
            self._free[device].append(page)

    def _places(self, kept: _Kept) -> list[tuple[int, int]]:
        """Returns the device and id of each page of a chunk."""
        first = kept.number * PAGES_PER_CHUNK + kept.offset
        return [((first + i) % self.sp, page) for i, page in enumerate(kept.pages)]
