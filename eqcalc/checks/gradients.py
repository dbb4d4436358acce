"""Are forces and stress the derivatives of the energy? Central differences tell.

(E(x + h) - E(x - h)) / 2h differs from the derivative by E''' h^2 / 6 (truncation) and by about
eps |E| / h (rounding, eps = 1.1e-16), so that a right derivative shows a V over the step: a slope
of 2 on the right, of -1 on the left, and a floor where they meet (Press et al., Numerical Recipes,
3rd ed., sect. 5.7). A wrong one shows a plateau.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from eqcalc.checks.report import Report, Table
from eqcalc.checks.structures import bare
from eqcalc.derivatives import stress_volume

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: largest deviation that passes at the best step, of the largest force or stress but at least of
#: 1 eV/Å and 1 eV/Å^3: between the floor of right derivatives (1e-9 and less) and any real mistake
TOLERANCE = 1e-7

#: slope of the truncation branch in a double logarithmic plot, 2 in theory
ORDER = (1.7, 2.5)

STEPS = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6)


def _order(steps: Sequence[float], errors: Sequence[float]) -> float | None:
    """Slope of log(error) over log(step) where truncation rules.

    That is above 30 times the best error and, as higher orders mix in beyond, up to 0.01.
    """
    steps, errors = np.array(steps), np.array(errors)
    ruled = (errors > 30 * errors.min()) & (steps >= steps[errors.argmin()]) & (steps <= 0.011)
    if ruled.sum() < 2:
        return None
    return float(np.polyfit(np.log(steps[ruled]), np.log(errors[ruled]), 1)[0])


@dataclass(frozen=True)
class GradientReport(Report):
    """Largest deviation of forces (eV/Å) and stress (eV/Å^3) from central differences.

    steps: displacements in Å, and strains. stress is empty where there is none.
    largest_force, largest_stress: of the structure, eV/Å and eV/Å^3.
    """

    steps: list[float]
    forces: list[float]
    stress: list[float]
    largest_force: float
    largest_stress: float

    name: ClassVar[str] = "gradients"
    title: ClassVar[str] = "Forces and stress as derivatives of the energy"
    method: ClassVar[str] = (
        "Central differences of the energy in float64, against single force components, against "
        "the force along a random direction of all atoms together, and against all six stresses, "
        "at steps over several decades. The best step must agree to "
        f"{TOLERANCE:.0e} of the largest force or stress (at least of 1 eV/Å, 1 eV/Å³), and at "
        "larger steps the deviation must grow with the square of the step, which only the right "
        "derivative does."
    )

    @property
    def orders(self) -> dict[str, float | None]:
        """Slope of the truncation branch; None where rounding hides it."""
        return {n: _order(self.steps, e) for n, e in self._curves().items()}

    def _curves(self) -> dict[str, list[float]]:
        curves = {"forces": self.forces, "stress": self.stress}
        return {name: errors for name, errors in curves.items() if errors}

    def _allowed(self, name: str) -> float:
        return TOLERANCE * max(1.0, self.largest_force if name == "forces" else self.largest_stress)

    @property
    def failures(self) -> list[str]:
        said = []
        for name, errors in self._curves().items():
            unit = "eV/Å" if name == "forces" else "eV/Å³"
            if not min(errors) < self._allowed(name):
                said.append(
                    f"The {name} differ from the energy's derivative by {min(errors):.1e} {unit} "
                    f"at the best step ({self._allowed(name):.0e} passes)."
                )
            order = self.orders[name]
            if order is not None and not ORDER[0] <= order <= ORDER[1]:
                said.append(
                    f"The deviation of the {name} grows with the power {order:.2f} of the step "
                    f"instead of 2 ({ORDER[0]} to {ORDER[1]} pass)."
                )
        return said

    def figures(self) -> dict:
        return {
            "steps_angstrom_or_strain": self.steps,
            "force_deviation_eV_per_angstrom": self.forces,
            "stress_deviation_eV_per_cubic_angstrom": self.stress,
            "largest_force_eV_per_angstrom": self.largest_force,
            "largest_stress_eV_per_cubic_angstrom": self.largest_stress,
            "order": self.orders,
            "units": {"order": "1"},
        }

    def tables(self) -> list[Table]:
        rows = [
            [
                f"{step:.0e}",
                f"{self.forces[k]:.1e}",
                f"{self.stress[k]:.1e}" if self.stress else "-",
            ]
            for k, step in enumerate(self.steps)
        ]
        orders = ", ".join(
            f"{name} {'hidden by rounding' if order is None else f'{order:.2f}'}"
            for name, order in self.orders.items()
        )
        columns = ["step, Å or strain", "forces, eV/Å", "stress, eV/Å³"]
        return [Table("", columns, rows, f"Power of the step at large steps (exact: 2): {orders}")]

    def draw(self) -> Figure:
        """Deviation over step: truncation falls with its square, then rounding rises."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.6, 4), layout="constrained")
        axis = figure.subplots()
        for (name, errors), style, unit in zip(
            self._curves().items(), ("o-", "s-"), ("eV/Å", "eV/Å³"), strict=False
        ):
            axis.loglog(self.steps, errors, style, ms=4, label=f"{name} ({unit})")
        ends = np.array([max(self.steps), max(self.steps) / 100])
        axis.loglog(ends, 3 * max(self.forces) * (ends / ends[0]) ** 2, "k:", label="~ step²")
        axis.axhline(self._allowed("forces"), color="0.5", lw=0.8, label="passes at the best step")
        axis.set(xlabel="step (Å, or strain)", ylabel="largest deviation")
        axis.legend(frameon=False, fontsize=9)
        axis.grid(alpha=0.3)
        return figure


Energy = Callable[[np.ndarray, np.ndarray], float]


def _force_error(
    energy: Energy, at: tuple[np.ndarray, np.ndarray], forces: np.ndarray, directions, h: float
) -> float:
    """Largest deviation of dE/ds from -F.u over the directions u [N, 3], of length 1."""
    positions, cell = at
    worst = 0.0
    for u in directions:
        up, down = energy(positions + h * u, cell), energy(positions - h * u, cell)
        worst = max(worst, abs((up - down) / (2 * h) + np.vdot(forces, u)))
    return float(worst)


def _stress_error(
    energy: Energy, at: tuple[np.ndarray, np.ndarray], stress: np.ndarray, h: float
) -> float:
    """Largest deviation of dE/d(strain) / V from the stress [3, 3], over its six components."""
    positions, cell = at
    volume = abs(np.linalg.det(cell))
    worst = 0.0
    for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):
        strain = np.zeros((3, 3))
        strain[i, j] += h / 2
        strain[j, i] += h / 2
        plus, minus = np.eye(3) + strain, np.eye(3) - strain
        up = energy(positions @ plus, cell @ plus)
        slope = (up - energy(positions @ minus, cell @ minus)) / (2 * h)
        worst = max(worst, abs(slope / volume - stress[i, j]))
    return float(worst)


def check_gradients(
    atoms: Atoms,
    calc: Calculator,
    *,
    steps: Sequence[float] = STEPS,
    num_components: int = 12,
    seed: int = 0,
) -> GradientReport:
    """Central differences of the energy against forces and, if periodic, all six stresses.

    Args:
        atoms: not at a symmetric point, or all forces are zero.
        calc: in float64; in float32 rounding hides everything.
        steps: Å, and strains.
        num_components: how many force components are tried, at random, besides one direction of
            all atoms together.
        seed: of the choice.
    """
    rng = np.random.default_rng(seed)
    atoms = bare(atoms)
    atoms.calc = calc
    forces = atoms.get_forces()
    volume = stress_volume(atoms.cell.array, atoms.pbc)
    stress = None if volume is None else atoms.get_stress(voigt=False)
    at = atoms.positions.copy(), atoms.cell.array.copy()

    def energy(positions: np.ndarray, cell: np.ndarray) -> float:
        atoms.set_cell(cell)
        atoms.set_positions(positions)
        return atoms.get_potential_energy()

    size = 3 * len(atoms)
    chosen = rng.choice(size, size=min(num_components, size), replace=False)
    together = rng.normal(size=size)
    directions = [*np.eye(size)[chosen], together / np.linalg.norm(together)]
    directions = [u.reshape(-1, 3) for u in directions]
    return GradientReport(
        steps=list(steps),
        forces=[_force_error(energy, at, forces, directions, h) for h in steps],
        stress=[] if stress is None else [_stress_error(energy, at, stress, h) for h in steps],
        largest_force=float(np.abs(forces).max()),
        largest_stress=0.0 if stress is None else float(np.abs(stress).max()),
    )
