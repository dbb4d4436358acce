"""Who labels the frames that `eqcalc.sampling.dynamics` makes: networks, or any other method.

A semi-empirical method knows in advance what a few DFT frames do not show: how stiff bonds are
where no frame is, how groups turn, how protons move. A network that has learned it from thousands
of frames, which cost milliseconds each, needs less DFT to become accurate (transfer learning). The
mean of a committee is better than its members, and costs as much as all of them; one network can
learn it (Hinton, Vinyals and Dean, arXiv:1503.02531).
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import (
    CalculationFailed,
    Calculator,
    CalculatorError,
    all_changes,
)

from eqcalc.calculator import EquivariantCalculator
from eqcalc.errors import InputError
from eqcalc.extras import install
from eqcalc.files import user_path
from eqcalc.names import member_files
from eqcalc.objects import named
from eqcalc.outputs import OutputConfig, same

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
        graded: whether it says how far atoms are from what it knows (`eqcalc.uncertainty`).
        outputs: beside energy, forces and stress, of those that are wanted and that it `gives`.
    """

    drivers: Sequence[Calculator]
    config_type: str
    graded: bool = False
    outputs: Sequence[OutputConfig] = ()

    @abstractmethod
    def label(self, atoms: Atoms) -> Mapping[str, Any]:
        """Energy, forces and, where there is one, stress, as ASE's; a committee's spread, grades;
        `outputs` by name, Cartesian.

        atoms have one of `drivers`.
        """

    def gives(self, output: OutputConfig) -> bool:
        """Whether it labels an output beside the energy, in the same unit; its forces are labels of
        direct forces.
        """
        return output.name == "direct_forces" and same(output, OutputConfig("direct_forces"))

    def check(self, atoms: Atoms) -> None:  # noqa: B027 - a teacher need not refuse anything
        """InputError for elements that it does not know."""


def with_direct_forces(results: Mapping[str, Any]) -> dict[str, Any]:
    """Forces are labels of direct forces too, whatever a network says of these."""
    return {**results, "direct_forces": results["forces"]}


class Networks(Teacher):
    """Potentials, by file or name: a committee, whose mean is the label, or a single one.

    options: of EquivariantCalculator.
    """

    def __init__(self, models: Sequence[str | os.PathLike], **options: Any) -> None:
        self.calc = EquivariantCalculator(models, **options)
        self.drivers = [EquivariantCalculator(model, **options) for model in models]
        self.config_type = "committee" if len(models) > 1 else "network"
        self.graded = "grade" in self.calc.implemented_properties

    def check(self, atoms: Atoms) -> None:
        for member in self.calc.members:
            member.potential.species_of(atoms.numbers)

    def gives(self, output: OutputConfig) -> bool:
        return super().gives(output) or any(same(output, own) for own in self.calc.outputs)

    def label(self, atoms: Atoms) -> Mapping[str, Any]:
        (results,) = self.calc.evaluate([atoms], uncertainty=self.graded)
        return with_direct_forces(results)


class Calculated(Teacher):
    """One calculator of ASE. Stress is a label where it has one and all directions are periodic.

    So are properties that it has of `PROPERTIES`, a dipole where no direction is periodic: along
    such ones it is known up to multiples of e times the cell vector.
    """

    #: for which ASE fixes the unit
    PROPERTIES: ClassVar[tuple[str, ...]] = (
        "dipole",
        "charges",
        "magmoms",
        "born_effective_charges",
    )

    def __init__(self, calculator: Calculator, config_type: str) -> None:
        self.drivers = [calculator]
        self.config_type = config_type

    def gives(self, output: OutputConfig) -> bool:
        known = output.name in self.PROPERTIES and same(output, OutputConfig(output.name))
        there = output.name in self.drivers[0].implemented_properties
        return super().gives(output) or (known and there)

    def label(self, atoms: Atoms) -> Mapping[str, Any]:
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        if atoms.pbc.all() and "stress" in self.drivers[0].implemented_properties:
            results["stress"] = atoms.get_stress()
        for name in (output.name for output in self.outputs):
            if name in self.PROPERTIES and not (name == "dipole" and atoms.pbc.any()):
                results[name] = atoms.calc.get_property(name, atoms)
        return with_direct_forces(results)


class SemiEmpirical(Calculated):
    """An extended tight-binding method of the package tblite; options: of its calculator."""

    def __init__(self, name: str, **options: Any) -> None:
        try:
            from tblite.ase import TBLite
        except ImportError:
            raise InputError(
                f"The teacher {name} needs the package tblite: {install('xtb')}."
            ) from None
        super().__init__(TBLite(**{"method": METHODS[name], "verbosity": 0, **options}), name)


class _Guarded(Calculator):
    """A calculator of somebody else: whatever it raises, and what is not finite, is a failure.

    Its energy is the one that its forces are derivatives of, the free energy where it knows one.
    """

    SOURCES: ClassVar[dict[str, tuple[str, ...]]] = {
        "energy": ("free_energy", "energy"),
        **{name: (name,) for name in ("forces", "stress", *Calculated.PROPERTIES)},
    }

    def __init__(self, calculator: Any, name: str) -> None:
        super().__init__()
        self._calculator, self._name = calculator, name
        known = calculator.implemented_properties
        #: what is asked for, by what it is here
        self._source = {
            prop: next(s for s in sources if s in known)
            for prop, sources in self.SOURCES.items()
            if any(s in known for s in sources)
        }
        self.implemented_properties = list(self._source)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        for prop in properties:
            try:
                value = self._calculator.get_property(self._source[prop], self.atoms)
            except Exception as error:
                reason = str(error) or type(error).__name__
                raise CalculationFailed(f"{self._name}: {reason}") from error
            if not np.isfinite(value).all():
                raise CalculationFailed(f"{self._name}: its {prop} is not finite")
            self.results[prop] = value


class AnyCalculator(Calculated):
    """A class or function MODULE:NAME that makes a calculator of ASE; options: its arguments.

    Raises:
        InputError: there is none, it does not take the options, or what it makes has no forces.
    """

    def __init__(self, name: str, **options: Any) -> None:
        calculator = named(name, "The teacher")(**options)
        if "forces" not in getattr(calculator, "implemented_properties", ()):
            raise InputError(f"The teacher {name} is no calculator of ASE that has forces.")
        super().__init__(_Guarded(calculator, name), name.partition(":")[2])
        self._name = name
        self._checked: set[frozenset[int]] = set()

    def check(self, atoms: Atoms) -> None:
        """Nothing but a calculation shows which elements it knows: one for each set of them."""
        elements = frozenset(atoms.numbers.tolist())
        if elements in self._checked:
            return
        try:
            self.drivers[0].get_property("forces", atoms)
        except CalculatorError as error:
            raise InputError(f"the teacher cannot label it: {error}") from None
        self._checked.add(elements)


def _kind(name: str) -> type[Calculated] | None:
    """What a name stands for that is no potential: a method, or MODULE:CLASS."""
    if user_path(name).exists():
        return None
    if name in METHODS:
        return SemiEmpirical
    return AnyCalculator if re.fullmatch(r"[^\W\d][\w.]*:[^\W\d]\w*", name) else None


def open_teacher(
    names: Sequence[str | os.PathLike],
    options: Mapping[str, Any] | None = None,
    outputs: Sequence[OutputConfig] = (),
) -> Teacher:
    """By the name of a method or a calculator, or by potentials and folders of committees.

    Args:
        names: "gfn2", "ase.calculators.emt:EMT", "7net-0", potential files, folders.
        options: keyword arguments of the calculator.
        outputs: beside energy, forces and stress, that labels are wanted of.

    Raises:
        InputError: no such file, options that it does not take, a method beside something else.
    """
    teacher = _opened(names, dict(options or {}))
    teacher.outputs = [output for output in outputs if teacher.gives(output)]
    return teacher


def _opened(names: Sequence[str | os.PathLike], options: dict[str, Any]) -> Teacher:
    """As `open_teacher`."""
    kinds = {str(name): kind for name in names if (kind := _kind(str(name)))}
    if kinds and len(names) > 1:
        raise InputError(f"{next(iter(kinds))} teaches alone: name no other teacher beside it.")
    try:
        for name, kind in kinds.items():
            return kind(name, **options)
        return Networks(member_files([user_path(name) for name in names]), **options)
    except TypeError as error:
        if not options:
            raise
        raise InputError(f"Options of the teacher {names[0]}: {error}.") from None
