r"""Committees: several models of one system, their mean, and how far they disagree.

Of what M members say of a structure, x_1 ... x_M:

    mean             <x> = 1/M sum_m x_m
    deviation        std(x) = sqrt(<(x - <x>)^2>)
    of a force       sqrt(<|F_i - <F_i>|^2>) = |std(F_i)|

Means of energies and of forces belong together, since the derivative of a mean is the mean of the
derivatives. The deviation of a force does not depend on the axes (Zhang et al., Phys. Rev.
Materials 3, 023804 (2019)). Where it grows, members are far from what they were trained on.

Everything that knows committees in Python computes them here: the calculator, and through it
`eqcalc.observers`, sampling and selection; training. LAMMPS has the same formulas in
lammps_plugin/committee.h. Potential files of a committee's folder: `eqcalc.names.member_files`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from eqcalc.results import OF_ONE

#: of which a committee also gives the deviation, as NAME_std
SPREAD = ("energy", "energies", "forces", "stress")

#: the deviation of each atom's force, [N] eV/Å
FORCES_DEVIATION = "forces_deviation"


def mean(values: Sequence[np.ndarray]) -> np.ndarray:
    """<x> of the members' values, which have one shape."""
    return np.mean(values, axis=0)


def deviation(values: Sequence[np.ndarray]) -> np.ndarray:
    """std(x) of the members' values, by component."""
    return np.std(values, axis=0)


def properties_of(known: Sequence[str]) -> list[str]:
    """What a committee has beside the means of the `known` properties."""
    own = [f"{name}_std" for name in SPREAD if name in known]
    return [*own, FORCES_DEVIATION] if "forces" in known else own


def consensus(members: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Results of one structure: of a model as they are; of several means and deviations.

    The grade of a committee is the largest of its members', where all have one: an atom is as far
    from known surroundings as the member that knows the fewest says.
    """
    first, *rest = members
    if not rest:
        return first
    common = [name for name in first if all(name in member for member in rest)]
    values = {name: [member[name] for member in members] for name in common}
    results = {name: mean(v) for name, v in values.items() if name not in OF_ONE}
    results |= {f"{name}_std": deviation(values[name]) for name in SPREAD if name in values}
    if "forces" in values:
        results[FORCES_DEVIATION] = np.linalg.norm(results["forces_std"], axis=-1)
    if "grade" in values:
        results["grade"] = np.max(values["grade"], axis=0)
    return {name: float(v) if np.ndim(v) == 0 else v for name, v in results.items()}
