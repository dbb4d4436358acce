"""Observers of ASE's dynamics, which stop a run or keep what a calculator says of its uncertainty.

They are attached to a run: `dynamics.attach(observer)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from eqcalc.calculator import EquivariantCalculator
from eqcalc.committee import FORCES_DEVIATION
from eqcalc.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms
    from ase.optimize.optimize import Dynamics


class DisagreementStop:
    """Ends molecular dynamics where uncertainty exceeds a limit.

        dynamics.attach(DisagreementStop(dynamics, limit=0.5))
        dynamics.attach(DisagreementStop(dynamics, grade=3.0))

    The run ends after the step in which a limit was exceeded, as if it had been the last one
    asked for: loggers and trajectory get that step too, wherever they were attached.

    Args:
        dynamics: of ASE: molecular dynamics, or an optimizer of atoms at fixed cell.
        limit: eV/Å, for the largest `forces_deviation` of a committee (`eqcalc.committee`).
        grade: for the largest extrapolation grade of a model, or of a committee's members, whose
            files know them (`eqcalc.uncertainty`). A calculator with `uncertainty=True` has it in
            every step's results; without, each look is another evaluation.
        calc: the calculator, where it is not itself that of the atoms (as in a sum).
        log: where the sentence goes that says why the run ended; None takes standard output.

    Attributes:
        largest: eV/Å, in the last step that was looked at; largest_grade: likewise.
        reason: that sentence, or None as long as no limit has been exceeded.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        limit: float | None = None,
        *,
        grade: float | None = None,
        calc: EquivariantCalculator | None = None,
        log: TextIO | None = None,
    ) -> None:
        if limit is None and grade is None:
            raise InputError("DisagreementStop needs a limit: of forces, limit=0.5, or grade=3.")
        for name, value, unit in (("limit", limit, " eV/Å"), ("grade", grade, "")):
            if value is not None and not value > 0.0:
                raise InputError(f"{name} = {value}{unit}: it must be positive.")
        self.dynamics, self.limit, self.grade = dynamics, limit, grade
        self.calc = dynamics.atoms.calc if calc is None else calc
        ours = isinstance(self.calc, EquivariantCalculator)
        if limit is not None and not (ours and len(self.calc.members) > 1):
            raise InputError(
                "DisagreementStop needs a committee: give EquivariantCalculator a list of models "
                "and attach it to the atoms, or pass it as calc."
            )
        if not ours:
            raise InputError(
                "DisagreementStop needs an EquivariantCalculator: attach it to the atoms, or pass "
                "it as calc."
            )
        if grade is not None:
            self.calc.require_uncertainty()
        self._log = log
        self.largest = self.largest_grade = 0.0
        self.reason: str | None = None

    def __call__(self) -> None:
        atoms = self.dynamics.atoms
        found = []
        if self.limit is not None:
            deviation = self.calc.get_property(FORCES_DEVIATION, atoms)
            worst = int(deviation.argmax())
            self.largest = float(deviation[worst])
            if self.largest > self.limit:
                found.append(
                    f"the committee's forces on atom {worst} deviate by {self.largest:.3g} eV/Å, "
                    f"more than the limit of {self.limit:g} eV/Å"
                )
        if self.grade is not None:
            grades = self.calc.get_property("grade", atoms)
            worst = int(grades.argmax())
            self.largest_grade = float(grades[worst])
            if self.largest_grade > self.grade:
                found.append(
                    f"the extrapolation grade of atom {worst} is {self.largest_grade:.3g}, more "
                    f"than the limit of {self.grade:g}"
                )
        if not found:
            return
        self.reason = f"Stopped after step {self.dynamics.nsteps}: {'; '.join(found)}."
        print(self.reason, file=self._log)
        self.dynamics.max_steps = self.dynamics.nsteps


#: results that ASE's trajectories do not write by themselves
KEPT = ("grade", "energies_std", "forces_std")


class KeepUncertainty:
    """Lets trajectories keep grades and deviations, which ASE's formats have no place for.

        dynamics.attach(KeepUncertainty(atoms, into="info"))
        dynamics.attach(Trajectory("run.traj", "w", atoms).write)

    Attach it before what writes. It copies `grade`, `energies_std` and `forces_std`, as far as the
    calculator has them, into the atoms.

    Args:
        atoms: that the trajectory is of.
        into: "arrays" of the atoms, which extended XYZ keeps, or "info", which .traj files keep.
        calc: the calculator, where it is not itself that of the atoms.
    """

    def __init__(
        self, atoms: Atoms, *, into: str = "arrays", calc: EquivariantCalculator | None = None
    ) -> None:
        if into not in ("arrays", "info"):
            raise InputError(f"into = {into!r}: it must be 'arrays' or 'info'.")
        self.atoms, self._into = atoms, into
        self.calc = atoms.calc if calc is None else calc
        if not isinstance(self.calc, EquivariantCalculator):
            raise InputError("KeepUncertainty needs an EquivariantCalculator: pass it as calc.")

    def __call__(self) -> None:
        for name in KEPT:
            if name in self.calc.implemented_properties:
                values = self.calc.get_property(name, self.atoms)
                if self._into == "info":
                    self.atoms.info[name] = values
                else:
                    self.atoms.set_array(name, values)
