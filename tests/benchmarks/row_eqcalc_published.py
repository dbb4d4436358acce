"""Published weights as an import, through the calculator for ASE."""

from __future__ import annotations

from row_sevenn_published import whole_call
from worker import Prepare, serve

from eqcalc import EquivariantCalculator


def build(network: dict, options: dict) -> Prepare:
    return whole_call(
        EquivariantCalculator(
            options["model"], dtype=network["dtype"], engine=options["engine"], threads=1
        )
    )


if __name__ == "__main__":
    serve(build)
