"""Are forces and stress the derivatives of the energy? Central differences tell."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

#: largest deviation that passes at the best step: forces (eV/Å), stress (eV/Å^3)
TOLERANCE = 1e-7


@dataclass(frozen=True)
class GradientReport:
    """Largest deviation of forces (eV/Å) and stress (eV/Å^3) from central differences.

    steps: displacements in Å, and strains. stress is empty without three periodic directions.
    """

    steps: list[float]
    forces: list[float]
    stress: list[float]

    @property
    def passed(self) -> bool:
        return min(self.forces) < TOLERANCE and (not self.stress or min(self.stress) < TOLERANCE)

    def to_dict(self) -> dict:
        return asdict(self) | {"passed": self.passed}

    def __str__(self) -> str:
        rows = [f"{'step':>10}{'forces eV/Å':>16}{'stress eV/Å³':>16}"]
        for k, step in enumerate(self.steps):
            stress = f"{self.stress[k]:16.1e}" if self.stress else f"{'-':>16}"
            rows.append(f"{step:10.0e}{self.forces[k]:16.1e}{stress}")
        verdict = "PASS" if self.passed else "FAIL"
        return "\n".join([*rows, f"{verdict}: the best step must come below {TOLERANCE:.0e}"])

    def plot(self, path: Path) -> None:
        """Deviation over step: truncation falls with its square, then rounding rises."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5, 3.8), layout="constrained")
        axis = figure.subplots()
        axis.loglog(self.steps, self.forces, "o-", label="forces (eV/Å)")
        if self.stress:
            axis.loglog(self.steps, self.stress, "s-", label="stress (eV/Å³)")
        axis.axhline(TOLERANCE, color="0.5", lw=0.8)
        axis.set(xlabel="step (Å, or strain)", ylabel="largest deviation")
        axis.legend(frameon=False)
        axis.grid(alpha=0.3)
        figure.savefig(path, dpi=130)


def check_gradients(
    atoms: Atoms,
    calc: Calculator,
    *,
    steps: tuple[float, ...] = (1e-2, 1e-3, 3e-4, 1e-4, 1e-5),
    num_components: int = 12,
    seed: int = 0,
) -> GradientReport:
    """Central differences of the energy against forces and, if periodic, all six stresses.

    Args:
        atoms: not at a symmetric point, or all forces are zero.
        calc: in float64; in float32 rounding hides everything.
        num_components: how many force components are tried, at random.
    """
    rng = np.random.default_rng(seed)
    atoms = atoms.copy()
    atoms.calc = calc
    at_rest = atoms.get_forces()
    stress = atoms.get_stress(voigt=False) if atoms.pbc.all() else None
    size = min(num_components, 3 * len(atoms))
    components = rng.choice(3 * len(atoms), size=size, replace=False)

    def energy(positions: np.ndarray, cell: np.ndarray) -> float:
        atoms.set_cell(cell)
        atoms.set_positions(positions)
        return atoms.get_potential_energy()

    positions, cell = atoms.positions.copy(), atoms.cell.array.copy()
    force_errors, stress_errors = [], []
    for h in steps:
        worst = 0.0
        for component in components:
            shift = np.zeros(3 * len(atoms))
            shift[component] = h
            shift = shift.reshape(-1, 3)
            slope = (energy(positions + shift, cell) - energy(positions - shift, cell)) / (2 * h)
            worst = max(worst, abs(slope + at_rest.flat[component]))
        force_errors.append(float(worst))
        if stress is None:
            continue
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
        stress_errors.append(float(worst))
    return GradientReport(list(steps), force_errors, stress_errors)
