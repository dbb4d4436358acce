"""The one exception for a user's mistake."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave is wrong; the message says what, and what to do, in one sentence.

    The command line prints it without a traceback and exits with status 2. Bugs of eqcalc itself
    are never reported through this class.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the nearest known word, or the list of all known words."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f" (did you mean '{near[0]}'?)"
    return f" (known: {', '.join(known)})"


class Interrupted(Exception):  # noqa: N818
    """A user's ctrl-c; the message says how to go on. The command line exits with status 130."""
