"""A network of NequIP, compiled by AOTInductor, through its calculator for ASE: the whole call."""

from __future__ import annotations

from pathlib import Path

from row_nequip import compiled
from row_sevenn_published import whole_call
from worker import Prepare, serve


def build(network: dict, options: dict) -> Prepare:
    from nequip.integrations.ase import NequIPCalculator

    names = {symbol: symbol for symbol in network["symbols"]}
    return whole_call(
        NequIPCalculator.from_compiled_model(
            str(compiled(network, Path(options["folder"]))),
            device="cpu",
            chemical_species_to_atom_type_map=names,
        )
    )


if __name__ == "__main__":
    serve(build)
