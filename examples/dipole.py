"""A network whose outputs are a dipole and a pseudoscalar, and no energy.

    python examples/dipole.py --out dipole.png

Bromochlorofluoromethane, CHBrClF, is the smallest chiral molecule that one can buy. Random
displacements of one of its two forms are labelled with the dipole of GFN2-xTB (package tblite) and
with a number that has the sign of the form, the volume that the bonds to Br, Cl and F span. The
network has seen this form alone, in one orientation. Then the molecule is turned, and its dipole
turns with it; and its mirror image, which nobody showed it, has the mirrored dipole and the other
sign. Prints a table; takes half a minute on one core.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import write
from matplotlib.figure import Figure
from scipy.spatial.transform import Rotation

from eqcalc import EquivariantCalculator
from eqcalc.checks.report import Table, png
from eqcalc.files import write_bytes
from eqcalc.training.config import from_dict
from eqcalc.training.run import train

#: Å, from the carbon atom
BONDS = {"Br": 1.95, "Cl": 1.75, "F": 1.35, "H": 1.09}
DIRECTIONS = np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3.0)
AXIS = np.array([1.0, 2.0, 2.0]) / 3.0

MODEL = {
    "outputs": [
        {"name": "dipole"},
        {"name": "handedness", "irreps": "0o", "per": "structure", "unit": "Å^3"},
    ],
    "energy": False,
    "cutoff": 4.5,
    "num_layers": 3,
    "num_channels": [16, 12, 8],
    "product_channels": 0,
    "radial_mlp": [32],
    "readout": 16,
}


def molecule() -> Atoms:
    """One of the two forms."""
    arms = DIRECTIONS * np.array(list(BONDS.values()))[:, None]
    return Atoms("CBrClFH", positions=np.vstack([np.zeros(3), arms]))


def mirrored(atoms: Atoms) -> Atoms:
    other = atoms.copy()
    other.positions[:, 0] *= -1.0
    return other


def handedness(atoms: Atoms) -> float:
    """Volume that the bonds to Br, Cl and F span, Å^3; its sign is that of the form."""
    return float(np.linalg.det(atoms.positions[1:4] - atoms.positions[0]))


def labelled(atoms: Atoms) -> Atoms:
    """With the dipole of GFN2-xTB (e Å) and the handedness."""
    from tblite.ase import TBLite

    other = atoms.copy()
    other.calc = TBLite(method="GFN2-xTB", verbosity=0)
    atoms.info["dipole"] = other.get_dipole_moment()
    atoms.info["handedness"] = handedness(atoms)
    return atoms


def displaced(count: int, seed: int) -> list[Atoms]:
    frames = []
    for n in range(count):
        atoms = molecule()
        atoms.rattle(0.08, seed=1000 * seed + n)
        frames.append(labelled(atoms))
    return frames


def predicted(calc: EquivariantCalculator, frames: list[Atoms]) -> tuple[np.ndarray, np.ndarray]:
    """Dipoles [frames, 3] e Å and handednesses [frames] Å^3."""
    results = calc.evaluate(frames)
    return tuple(np.array([r[name] for r in results]) for name in ("dipole", "handedness"))


def draw(angles: np.ndarray, by_xtb: np.ndarray, by_network: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (title, dipoles), known in zip(axes, by_network.items(), by_xtb, strict=True):
        for k, name in enumerate("xyz"):
            axis.plot(angles, known[:, k], color=f"C{k}", lw=1.2, label=f"{name}, GFN2-xTB")
            axis.plot(angles, dipoles[:, k], "o", color=f"C{k}", ms=4, label=f"{name}, network")
        axis.set(xlabel="angle of rotation (degrees)", title=title)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("dipole (e Å)")
    axes[0].legend(frameon=False, fontsize=8, ncols=2)
    return figure


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("dipole.png"))
    options = parser.parse_args(arguments)

    with tempfile.TemporaryDirectory() as folder:
        frames = Path(folder) / "left.xyz"
        write(frames, displaced(options.frames, seed=1), format="extxyz")
        training = {"epochs": options.epochs, "batch_size": 4, "threads": 1, "device": "cpu"}
        config = {"data": {"train": [str(frames)]}, "model": MODEL, "training": training}
        train(from_dict(config), Path(folder) / "run", quiet=True)
        calc = EquivariantCalculator(Path(folder) / "run" / "model.pth", dtype="float64")

    unseen = displaced(20, seed=2)
    images = [labelled(mirrored(atoms)) for atoms in unseen]
    angles = np.arange(0, 360, 15)
    turns = [Rotation.from_rotvec(np.radians(a) * AXIS).as_matrix() for a in angles]
    pictures = {"the form of the training": unseen[0], "its mirror image": images[0]}
    by_xtb, by_network = [], {}
    for title, atoms in pictures.items():
        turned = [Atoms(atoms.numbers, atoms.positions @ r.T) for r in turns]
        by_xtb.append(np.array([labelled(a).info["dipole"] for a in turned]))
        by_network[title] = predicted(calc, turned)[0]
    write_bytes(options.out, png(draw(angles, np.array(by_xtb), by_network)))

    rows, found = [], {}
    for name, molecules in (("the form of the training", unseen), ("mirror images", images)):
        dipoles, hands = predicted(calc, molecules)
        known = np.array([atoms.info["dipole"] for atoms in molecules])
        error, size = np.abs(dipoles - known).mean(), np.linalg.norm(known, axis=1).mean()
        rows.append([name, f"{error:.4f}", f"{size:.3f}", f"{hands.mean():+.3f}"])
        found[name] = float(error)
        found[f"handedness of {name}"] = float(hands.mean())
    dipoles = by_network["the form of the training"]
    exact = np.array([dipoles[0] @ r.T for r in turns])
    found["turned"] = float(np.abs(dipoles - exact).max())
    columns = ["20 molecules", "MAE of the dipole, e Å", "its mean size", "mean handedness, Å^3"]
    print(Table("", columns, rows))
    print(f"turned molecules: dipoles turn with them within {found['turned']:.0e} e Å")
    print(f"written to {options.out}")
    return found


if __name__ == "__main__":
    main()
