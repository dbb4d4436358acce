"""Who labels the frames that `eqcalc.sampling.dynamics` makes: another method, or networks.

A semi-empirical method knows in advance what a few DFT frames do not show: how stiff bonds are
where no frame is, how groups turn, how protons move. A network that has learned it from thousands
of frames, which cost milliseconds each, needs less DFT to become accurate (transfer learning). The
mean of a committee is better than its members, and costs as much as all of them; one network can
learn it (Hinton, Vinyals and Dean, arXiv:1503.02531).
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from ase import Atoms
from ase.calculators.calculator import Calculator, CalculatorError

from eqcalc.calculator import EquivariantCalculator
from eqcalc.committee import member_files
from eqcalc.errors import InputError
from eqcalc.files import user_path

#: semi-empirical methods by the names they have here (Bannwarth, Ehlert and Grimme, J. Chem. Theory
#: Comput. 15, 1652 (2019); Grimme, Bannwarth and Shushkov, ibid. 13, 1989 (2017))
METHODS = {"gfn2": "GFN2-xTB", "gfn1": "GFN1-xTB"}

#: what a teacher may raise for a structure that it cannot label
FAILURES = (InputError, CalculatorError)


class Teacher(ABC):
    """A source of labels.

    Attributes:
        drivers: calculators for dynamics, of which each trajectory takes the next.
        config_type: of its frames.
    """

    drivers: Sequence[Calculator]
    config_type: str

    @abstractmethod
    def label(self, atoms: Atoms) -> Mapping[str, Any]:
        """Energy, forces and, where there is one, stress, as ASE's; a committee's spread.

        atoms have one of `drivers`.
        """

    def check(self, atoms: Atoms) -> None:  # noqa: B027 - a teacher need not refuse anything
        """InputError for elements that it does not know."""


class Networks(Teacher):
    """Potential files: a committee, whose mean is the label, or a single one."""

    def __init__(self, models: Sequence[str | os.PathLike]) -> None:
        self.calc = EquivariantCalculator(models)
        self.drivers = [EquivariantCalculator(model) for model in models]
        self.config_type = "committee" if len(models) > 1 else "network"

    def check(self, atoms: Atoms) -> None:
        for member in self.calc.members:
            member.potential.species_of(atoms.numbers)

    def label(self, atoms: Atoms) -> Mapping[str, Any]:
        (results,) = self.calc.evaluate([atoms])
        return results


class SemiEmpirical(Teacher):
    """An extended tight-binding method of the package tblite."""

    def __init__(self, name: str) -> None:
        try:
            from tblite.ase import TBLite
        except ImportError:
            raise InputError(
                f"The teacher {name} needs the package tblite: pip install 'eqcalc[xtb]'."
            ) from None
        self.drivers = [TBLite(method=METHODS[name], verbosity=0)]
        self.config_type = name

    def label(self, atoms: Atoms) -> Mapping[str, Any]:
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        if atoms.pbc.all():
            results["stress"] = atoms.get_stress()
        return results


def open_teacher(names: Sequence[str | os.PathLike]) -> Teacher:
    """By the name of a method, or by potential files and folders of committees.

    Raises:
        InputError: no such file, or a method beside something else.
    """
    methods = [name for name in names if str(name) in METHODS and not user_path(name).exists()]
    if not methods:
        return Networks(member_files([user_path(name) for name in names]))
    if len(names) > 1:
        raise InputError(f"{methods[0]} teaches alone: name no other teacher beside it.")
    return SemiEmpirical(str(methods[0]))
