"""Frames of isolated atoms: reference energies, not training frames.

By the convention of files for GAP and MACE a frame whose config_type is IsolatedAtom holds the
energy of a free atom. A network learns nothing from it: without neighbours the energy is what
`eqcalc.data.statistics.reference_energies` gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from eqcalc.data.frames import Frame
from eqcalc.data.labels import is_isolated_atom
from eqcalc.data.tables import FrameTable
from eqcalc.errors import InputError

#: eV by which two energies of one isolated atom may differ
SAME = 1e-4


def named_atoms(table: FrameTable) -> tuple[list[Frame], list[int]]:
    """The frames of isolated atoms by their config_type, and the indices of all others.

    Raises:
        InputError: one of them has several atoms.
    """
    named = [is_isolated_atom(group) for group in table.config_types()]
    if not any(named):
        return [], list(range(len(table)))
    numbers = table.elements()
    counts, energies = table.composition(numbers), table.energies()
    atoms = []
    for n in np.flatnonzero(named).tolist():
        if counts[n].sum() != 1:
            raise InputError(
                f"{table.source(n)} has the config_type {table.config_types()[n]} and "
                f"{counts[n].sum()} atoms: such frames are reference energies, of one atom each; "
                "correct its config_type."
            )
        atom = Atoms(numbers=[numbers[int(counts[n].argmax())]], positions=np.zeros((1, 3)))
        group = table.config_types()[n]
        atoms.append(Frame(atom, float(energies[n]), None, None, group, table.source(n)))
    return atoms, np.flatnonzero(~np.array(named)).tolist()


def one_each(atoms: Sequence[Frame]) -> list[Frame]:
    """The first frame of each element.

    Raises:
        InputError: two energies of one element, or a frame of several atoms.
    """
    first: dict[int, Frame] = {}
    for frame in atoms:
        if len(frame.atoms) != 1:
            raise InputError(f"{frame.source} has {len(frame.atoms)} atoms, not one isolated atom.")
        known = first.setdefault(int(frame.atoms.numbers[0]), frame)
        if abs(known.energy - frame.energy) > SAME:
            raise InputError(
                f"Two energies of an isolated atom of {_symbol(frame)}: {known.energy:.10g} eV in "
                f"{known.source} and {frame.energy:.10g} eV in {frame.source}; remove one."
            )
    return list(first.values())


def _symbol(frame: Frame) -> str:
    return chemical_symbols[frame.atoms.numbers[0]]


def chosen_atoms(
    named: Sequence[Frame], file: Sequence[Frame], given: Mapping[str, float]
) -> tuple[list[Frame], str]:
    """One isolated atom of each element, and a sentence about those among the frames, if any.

    data.reference_energies come first, data.isolated_atoms second, frames called IsolatedAtom last.

    Args:
        named: frames called IsolatedAtom.
        file: frames of data.isolated_atoms.
        given: data.reference_energies, eV by symbol.

    Raises:
        InputError: as `one_each`, in `named` or in `file`.
    """
    named, file = one_each(named), one_each(file)
    of_file = {_symbol(frame): frame.energy for frame in file}
    used, unused = [], []
    for frame in named:
        symbol, what = _symbol(frame), f"{_symbol(frame)} {frame.energy:.10g} eV ({frame.source})"
        for option, energies in (("reference_energies", given), ("isolated_atoms", of_file)):
            if symbol in energies:
                if abs(energies[symbol] - frame.energy) > SAME:
                    what += f", but data.{option} has {energies[symbol]:.10g} eV and comes first"
                    unused.append(what)
                break
        else:
            used.append(what)
    words = []
    if used:
        words.append(f"reference energies, no training frames: {', '.join(used)}")
    if unused:
        words.append(f"not used: {', '.join(unused)}")
    elif named and not used:
        words.append("the reference energies that the options give, and no training frames")
    sentence = f"Frames called IsolatedAtom are {'; '.join(words)}." if words else ""
    return [*file, *(f for f in named if _symbol(f) not in of_file)], sentence
