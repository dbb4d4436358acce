"""Ways to run the same network on a GPU, for who measures which is the fastest.

The results are the same. Nothing has been measured yet, so the defaults follow from counts: a step
of a small system is bound by the time that starting its kernels takes (some 3 µs each), and a CUDA
graph starts all of them at once.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from eqcalc.errors import InputError


class Variant(NamedTuple):
    """graphs: whether steps of small systems are recorded as CUDA graphs (EQCALC_GPU_GRAPHS)."""

    graphs: bool = True

    @classmethod
    def chosen(cls) -> Variant:
        """By the environment, else the defaults.

        Raises:
            InputError: a variable that is neither yes nor no.
        """
        word = os.environ.get("EQCALC_GPU_GRAPHS", "yes")
        if word not in ("yes", "no"):
            raise InputError(f"EQCALC_GPU_GRAPHS = {word!r}: it must be yes or no.")
        return cls(graphs=word == "yes")
