"""What takes long to open is opened once: kept while it is in use, and a little longer."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from eqcalc.runtime import TurnLock


class Reused:
    """Objects by what they were made of.

    Args:
        most: bytes of objects that nobody else uses, kept for the next time; the last used first.
        size: bytes of an object now.
    """

    def __init__(self, most: int, size: Callable[[Any], int]) -> None:
        self._most, self._size = most, size
        self._lock = TurnLock()
        self.forget()

    def forget(self) -> None:
        """As in a new process."""
        self._used: weakref.WeakValueDictionary[Hashable, Any] = weakref.WeakValueDictionary()
        self._recent: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The object of that key, made if need be."""
        with self._lock:
            found = self._used.get(key)
        if found is None:
            found = make()
        with self._lock:
            self._used[key] = self._recent[key] = found
            self._recent.move_to_end(key)
        self.trim()
        return found

    def trim(self) -> None:
        """Lets go of what has grown beyond the bytes that are kept."""
        with self._lock:
            sizes = {key: self._size(value) for key, value in self._recent.items()}
            while sum(sizes.values()) > self._most:
                sizes.pop(self._recent.popitem(last=False)[0], None)
