"""A cache of values that is bounded by bytes."""

import threading
from collections import OrderedDict
from typing import Any


class LRUCache:
    """The values used last, up to a number of bytes. Thread-safe; a pickled copy starts empty."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._bytes = 0
        self._values: OrderedDict[Any, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any) -> Any:
        """Returns a value; None if it is not cached."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key, (None,))[0]

    def put(self, key: Any, value: Any, size: int) -> None:
        """Adds a value, of any size, and drops the least recently used ones."""
        with self._lock:
            if key in self._values:
                return
            self._values[key] = value, size
            self._bytes += size
            while self._bytes > self._most and len(self._values) > 1:
                self._bytes -= self._values.popitem(last=False)[1][1]

    def __reduce__(self) -> tuple[type["LRUCache"], tuple[int]]:
        return LRUCache, (self._most,)
