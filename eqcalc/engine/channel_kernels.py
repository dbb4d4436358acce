"""C++ loops over channels of sums of products, and of their first and second derivatives.

What a kernel computes is data (`eqcalc.program.sums`); its derivatives are derived. Values have
names of a letter and numbers: x0, x1, ... With d in front they are gradients, with t in front what
they move by: forward makes y of x, backward dx of x and dy, and the second derivative, as x moves
along tx, makes ty and tdx. Arrays are given for letters, with what is in front. Loops over channels
are left to the compiler's vectoriser; everything else is unrolled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence

from eqcalc.engine.terms import number
from eqcalc.program.sums import Sum, inputs, move, needed, transpose


def letters(name: str) -> str:
    return re.match("[a-zA-Z]+", name).group()


def index(name: str) -> int:
    """Of a row; 0 of what has only one."""
    return int(name.removeprefix(letters(name)) or 0)


def _expression(made: Sum) -> str:
    return " + ".join(
        " * ".join([*([] if c == 1.0 else [number(c)]), *factors]) for c, factors in made.terms
    )


def _named(sums: Sequence[Sum], wanted: Collection[str]) -> list[str]:
    return [made.value for made in sums if letters(made.value) in wanted]


class Signature:
    """Arguments of a kernel, and where its rows begin.

    Args:
        arrays: arguments of C++ by the letters of the values that they hold.
        wanted: letters of the values that are written.
    """

    def __init__(self, arrays: Mapping[str, str], wanted: Collection[str]) -> None:
        self._arrays = arrays
        self._types = {kind: "T *" if kind in wanted else "const T *" for kind in arrays}

    @property
    def arguments(self) -> str:
        return ", ".join(self._types[kind] + array for kind, array in self._arrays.items())

    def rows(self, places: Mapping[str, str]) -> str:
        """Declares the rows, called as arrays and with an e; places: of values without d and t."""
        return "\n".join(
            f"      {self._types[kind]}__restrict {array}e = {array} + {places[kind[-1]]};"
            for kind, array in self._arrays.items()
        )


class ChannelLoop:
    """Sums of one channel, for all channels.

    Args:
        channel: sums of values of a channel.
        shared: those of values that all channels have in common, made before.
    """

    def __init__(self, channel: Sequence[Sum], shared: Sequence[Sum] = ()) -> None:
        back = transpose(shared)
        self._before = [*shared, *move(shared, inputs(shared))]
        self._after = [*back, *move(back, inputs(back))]
        both = [*channel, *transpose(channel)]
        self._inside = [*both, *move(both, inputs(channel))]

    def source(
        self, wanted: Collection[str], place: Callable[[str], str], channels: int, sets: str = ""
    ) -> str:
        """
        Args:
            wanted: letters of the values that are added to their places.
            place: in C++, of a value in memory; channels are `c`.
            channels: their number.
            sets: letters of the value whose place is set and not added to.
        """

        def statement(made: Sum) -> str:
            text = _expression(made)
            if made.value in sums:
                return f"{made.value} += {text};"
            if letters(made.value) not in wanted:
                return f"const T {made.value} = {text};"
            return f"{place(made.value)} {'' if letters(made.value) == sets else '+'}= {text};"

        after = needed(self._after, _named(self._after, wanted))
        sums = inputs(after)
        inside = needed(self._inside, [*_named(self._inside, wanted), *sums])
        read = inputs(inside)
        before = needed(self._before, read)
        made = {each.value for each in before}
        loads = [f"const T {name} = {place(name)};" for name in read if name not in made]
        body = "\n      ".join([*loads, *map(statement, inside)])
        shared = [f"const T {name} = {place(name)};" for name in inputs(before)]
        return f"""  {{
    {" ".join([*shared, *map(statement, before)])}
    {f"T {', '.join(f'{s} = 0' for s in sums)};" if sums else ""}
    #pragma omp simd{f" reduction(+ : {', '.join(sums)})" if sums else ""}
    for (int c = 0; c < {channels}; ++c) {{
      {body}
    }}
    {" ".join(map(statement, after))}
  }}"""
