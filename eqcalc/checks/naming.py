"""Names of crystals: of the common structures, or else of the lattice."""

from __future__ import annotations

import numpy as np
from ase import Atoms

#: relative, of the distances that tell structures of two atoms apart
TOLERANCE = 1e-2


def crystal_name(cell: Atoms) -> str:
    """What a primitive cell repeats to: "diamond", "rock salt", ..., or "... lattice".

    A lattice says where cells are, not where atoms are: that of diamond is face-centred cubic.
    """
    lattice = cell.cell.get_bravais_lattice(eps=1e-3)
    if len(cell) == 1:
        return lattice.longname
    if len(cell) == 2:
        element = cell.numbers[0] == cell.numbers[1]
        distance = cell.get_distance(0, 1, mic=True)
        a, c = lattice.vars()["a"], lattice.vars().get("c", 0.0)
        known = {
            ("FCC", True): [(np.sqrt(3) / 4 * a, "diamond")],
            ("FCC", False): [(np.sqrt(3) / 4 * a, "zinc blende"), (a / 2, "rock salt")],
            ("CUB", False): [(np.sqrt(3) / 2 * a, "caesium chloride")],
            ("HEX", True): [(np.hypot(a / np.sqrt(3), c / 2), "hexagonal close-packed")],
        }
        for expected, name in known.get((lattice.name, bool(element)), []):
            if abs(distance - expected) < TOLERANCE * expected:
                return name
    return f"{lattice.longname} lattice, {len(cell)} atoms in the primitive cell"
