"""Committees: whether their members agree.

Where they no longer do, their potentials are far from what they were trained on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

import numpy as np

from eqcalc.calculator import EquivariantCalculator
from eqcalc.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms
    from ase.optimize.optimize import Dynamics


def forces_deviation(calc: EquivariantCalculator, atoms: Atoms | None = None) -> np.ndarray:
    """Deviation of every atom's force, [N] eV/Å: sqrt(<|F_i - <F_i>|^2>) over the members.

    It does not depend on the orientation of the axes. Zhang et al., Phys. Rev. Materials 3, 023804
    (2019).
    """
    if len(calc.members) == 1:
        raise InputError(
            "One model cannot disagree with itself: give EquivariantCalculator a list of models."
        )
    return np.linalg.norm(calc.get_property("forces_std", atoms), axis=1)


class DisagreementStop:
    """Ends molecular dynamics when the members' forces on any atom differ too much.

        dynamics.attach(DisagreementStop(dynamics, limit=0.5))

    The run ends after the step in which the limit was exceeded, as if it had been the last one
    asked for: loggers and trajectory get that step too, wherever they were attached.

    Args:
        dynamics: of ASE: molecular dynamics, or an optimizer of atoms at fixed cell.
        limit: eV/Å, for the largest `forces_deviation`.
        calc: the committee, where it is not itself the calculator of the atoms (as in a sum).
        log: where the sentence goes that says why the run ended; None takes standard output.

    Attributes:
        largest: eV/Å, in the last step that was looked at.
        reason: that sentence, or None as long as the limit has not been exceeded.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        limit: float,
        *,
        calc: EquivariantCalculator | None = None,
        log: TextIO | None = None,
    ) -> None:
        if not limit > 0.0:
            raise InputError(f"limit = {limit} eV/Å: it must be positive.")
        self.dynamics = dynamics
        self.limit = limit
        self.calc = dynamics.atoms.calc if calc is None else calc
        if not isinstance(self.calc, EquivariantCalculator) or len(self.calc.members) == 1:
            raise InputError(
                "DisagreementStop needs a committee: give EquivariantCalculator a list of models "
                "and attach it to the atoms, or pass it as calc."
            )
        self._log = log
        self.largest = 0.0
        self.reason: str | None = None

    def __call__(self) -> None:
        deviation = forces_deviation(self.calc, self.dynamics.atoms)
        worst = int(deviation.argmax())
        self.largest = float(deviation[worst])
        if self.largest <= self.limit:
            return
        self.reason = (
            f"Stopped after step {self.dynamics.nsteps}: the committee's forces on atom {worst} "
            f"deviate by {self.largest:.3g} eV/Å, more than the limit of {self.limit:g} eV/Å."
        )
        print(self.reason, file=self._log)
        self.dynamics.max_steps = self.dynamics.nsteps
