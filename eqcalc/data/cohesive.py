"""Energies of isolated atoms from those of crystals and measured cohesive energies."""

from __future__ import annotations

from collections.abc import Mapping

from ase.data import atomic_numbers, chemical_symbols

from eqcalc.data.tables import FrameTable
from eqcalc.errors import InputError

_TABLE = """
Li 1.63   Be 3.32   B  5.81   C  7.37   Na 1.113  Mg 1.51   Al 3.39   Si 4.63
K  0.934  Ca 1.84   Sc 3.90   Ti 4.85   V  5.31   Cr 4.10   Mn 2.92   Fe 4.28   Co 4.39   Ni 4.44
Cu 3.49   Zn 1.35   Ga 2.81   Ge 3.85   Rb 0.852  Sr 1.72   Y  4.37   Zr 6.25   Nb 7.57   Mo 6.82
Tc 6.85   Ru 6.74   Rh 5.75   Pd 3.89   Ag 2.95   Cd 1.16   In 2.52   Sn 3.14   Cs 0.804  Ba 1.90
Hf 6.44   Ta 8.10   W  8.90   Re 8.03   Os 8.17   Ir 6.94   Pt 5.84   Au 3.81   Tl 1.88   Pb 2.03
Bi 2.18
"""
_WORDS = _TABLE.split()

#: eV per atom, measured at low temperature, of elements that are crystals of atoms
#: (C. Kittel, Introduction to Solid State Physics, 8th ed., Wiley 2005, chapter 3, table 1)
EXPERIMENTAL = dict(zip(_WORDS[::2], map(float, _WORDS[1::2]), strict=True))


def isolated_energies(
    frames: FrameTable, elements: list[int], cohesive: Mapping[str, float] | str
) -> dict[str, float]:
    """Energies of isolated atoms [eV]: the lowest per atom of an element alone, plus its cohesive.

    Args:
        frames: of training.
        elements: Z of those that are asked for.
        cohesive: eV per atom by symbol, or "experimental".

    Raises:
        InputError: an element has no frame of its own, or no measured cohesive energy.
    """
    table = EXPERIMENTAL if isinstance(cohesive, str) else cohesive
    for symbol in table:
        if symbol not in atomic_numbers:
            raise InputError(f"data.cohesive_energies names '{symbol}': not a chemical symbol.")
    present = frames.elements()
    counts, energies = frames.composition(present), frames.energies()
    atoms = counts.sum(axis=1)
    found = {}
    for z in elements:
        symbol = chemical_symbols[z]
        if symbol not in table and not isinstance(cohesive, str):
            continue
        alone = counts[:, present.index(z)] == atoms
        lacks = "no measured cohesive energy" if symbol not in table else ""
        if not alone.any():
            lacks = "no training frame of its own"
        if lacks:
            raise InputError(
                f"data.cohesive_energies: {symbol} has {lacks}; give data.isolated_atoms or "
                "data.reference_energies for it."
            )
        found[symbol] = float((energies[alone] / atoms[alone]).min() + table[symbol])
    return found
