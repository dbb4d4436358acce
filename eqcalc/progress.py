"""Progress of long work: a bar on a terminal; elsewhere, as in log files, a line at every tenth."""

from __future__ import annotations

import sys
import time
from types import TracebackType


def duration(seconds: float) -> str:
    """For people: 8.3 s, 4.1 min, 2.5 h or 3.1 d."""
    for unit, size in (("s", 1.0), ("min", 60.0), ("h", 3600.0)):
        if seconds < 100.0 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds / 86400.0:.2g} d"


class Progress:
    """Counts what is done of something, on standard error; to be used in a `with` statement.

    Args:
        total: how much there is to do.
        what: is being counted, in the plural: "frames".
        done: of it before this began.
        quiet: print nothing.
    """

    def __init__(self, total: int, what: str, *, done: int = 0, quiet: bool = False) -> None:
        self.total, self.what, self.done, self.quiet = total, what, done, quiet
        self._first, self._said = done, done
        self._bar = None

    def __enter__(self) -> Progress:
        from tqdm import tqdm

        self._started = time.monotonic()
        if not self.quiet and sys.stderr.isatty():
            self._bar = tqdm(total=self.total, initial=self.done, desc=self.what, leave=False)
        return self

    def update(self, number: int = 1) -> None:
        """So many more are done."""
        self.done += number
        if self._bar is not None:
            self._bar.update(number)
        elif not self.quiet and 10 * self.done // self.total > 10 * self._said // self.total:
            self._said = self.done
            passed = time.monotonic() - self._started
            left = passed / (self.done - self._first) * (self.total - self.done)
            until = f"about {duration(left)} left" if left else "complete"
            line = f"{self.done} of {self.total} {self.what}, {duration(passed)}, {until}"
            print(line, file=sys.stderr, flush=True)

    def describe(self, text: str) -> None:
        """What is going on just now."""
        if self._bar is not None:
            self._bar.set_description(text)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
