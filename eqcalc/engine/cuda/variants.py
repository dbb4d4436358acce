"""Ways to run the same network on a GPU, for who measures which is the fastest.

The results are the same, to rounding. Nothing has been measured yet, so the defaults follow from
counts: a step of a small system is bound by the time that starting its kernels takes (some 3 µs
each), and a CUDA graph starts all of them at once; a step of a large one by what it reads through
the second-level cache (`python tests/benchmarks/gpu.py --count`), most of it tables of radial
functions. Cubic splines need two thirds of what those of degree 5 need; and where there are so many
edges that each multiprocessor may as well read the table once, slices of it stay in shared memory
(`eqcalc.engine.cuda.slices`), if the GPU has enough of that.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from eqcalc.errors import InputError

#: degrees of radial tables in float32, by name; in float64 it is 7
DEGREES = {"cubic": 3, "quintic": 5}


class Variant(NamedTuple):
    """How networks are run.

    Attributes:
        graphs: whether steps of small systems are recorded as CUDA graphs (EQCALC_GPU_GRAPHS, yes
            or no).
        degree: of radial tables in float32 (EQCALC_GPU_TABLES, one of DEGREES).
        slices: when slices of tables are in shared memory (EQCALC_GPU_SLICES): "counted", where the
            count says so, "yes", wherever they fit, or "no".
    """

    graphs: bool = True
    degree: int = DEGREES["cubic"]
    slices: str = "counted"

    @classmethod
    def chosen(cls) -> Variant:
        """By the environment, else the defaults.

        Raises:
            InputError: a variable that is none of what it may be.
        """
        return cls(
            graphs=_word("EQCALC_GPU_GRAPHS", ("yes", "no")) == "yes",
            degree=DEGREES[_word("EQCALC_GPU_TABLES", tuple(DEGREES))],
            slices=_word("EQCALC_GPU_SLICES", ("counted", "yes", "no")),
        )


def _word(name: str, known: tuple[str, ...]) -> str:
    """Of an environment variable; the first of those that are known where it is not set."""
    word = os.environ.get(name, known[0])
    if word not in known:
        raise InputError(f"{name} = {word!r}: it must be {' or '.join(known)}.")
    return word
