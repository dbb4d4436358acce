"""MACE in one script: trained, put into one file, and compared on its engines.

    python examples/mace_silicon.py --out examples

A MACE network of two layers and correlation 3 (Batatia et al., arXiv:2206.07697) learns energies,
forces and stresses of perturbed diamond silicon from the bundled model "si", which stands for DFT
here. At the end it prints errors of unseen frames, and time and forces of the three engines
that run the file; the picture is E(V) beside the teacher's. A file of mace-torch comes in by

    eqcalc import MACE.model -o model.pth --elements "Si O"

and is used from there on as `model.pth` is here, in ASE, in LAMMPS, and as
`[fine_tune] model = "model.pth"`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from matplotlib.figure import Figure

from eqcalc import EquivariantCalculator
from eqcalc.training.config import from_dict
from eqcalc.training.run import train

MODEL = {
    "architecture": "mace",
    "cutoff": 4.5,
    "num_layers": 2,
    "num_channels": 16,
    "l_max": 2,
    "feature_l_max": 1,
    "correlation": 3,
    "radial_mlp": [32, 32],
}
TRAINING = {"batch_size": 2, "learning_rate": 0.01, "ema_decay": 0.99, "threads": 1}


LABELS = ("energy", "forces", "stress")


def frames(count: int, teacher: EquivariantCalculator, seed: int) -> list[Atoms]:
    """Strained cells of 8 atoms, displaced by 0.12 Å, with the teacher's labels."""
    random, made = np.random.default_rng(seed), []
    for _ in range(count):
        atoms = bulk("Si", cubic=True, a=5.47)
        strain = random.normal(scale=0.02, size=(3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.5 * (strain + strain.T)), scale_atoms=True)
        atoms.positions += random.normal(scale=0.12, size=(8, 3))
        atoms.calc = teacher
        labels = {name: atoms.calc.get_property(name, atoms) for name in LABELS}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        made.append(atoms)
    return made


def engines(model: Path) -> dict[str, tuple[float, np.ndarray]]:
    """Milliseconds and forces of 64 atoms, by engine, in float64."""
    atoms = bulk("Si", cubic=True, a=5.47).repeat(2)
    atoms.rattle(0.05, seed=1)
    found = {}
    for engine in ("fused", "exact", "torch"):
        atoms.calc = EquivariantCalculator(
            model, engine=engine, dtype="float64", on_domain_exit="ignore"
        )
        for _ in range(4):  # TorchScript compiles during the first ones
            atoms.calc.reset()
            begun = time.perf_counter()
            forces = atoms.get_forces()
        found[engine] = 1e3 * (time.perf_counter() - begun), forces
    return found


def energies_of_volumes(model: Path | str) -> tuple[np.ndarray, np.ndarray]:
    """Lattice constants (Å), energies per atom (eV) above the lowest."""
    constants = np.linspace(5.3, 5.65, 15)
    calc = EquivariantCalculator(model, on_domain_exit="ignore")
    crystals = [bulk("Si", cubic=True, a=a) for a in constants]
    energies = np.array([r["energy"] / 8 for r in calc.evaluate(crystals)])
    return constants, energies - energies.min()


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("examples"), help="of mace_silicon.png")
    parser.add_argument("--run", type=Path, default=Path("runs/mace_silicon"))
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=25)
    options = parser.parse_args(arguments)
    options.run.mkdir(parents=True, exist_ok=True)
    teacher = EquivariantCalculator("si", dtype="float64", on_domain_exit="ignore")
    write(options.run / "train.xyz", frames(options.frames, teacher, 0))
    unseen = frames(10, teacher, 1)
    config = {
        "data": {"train": [str(options.run / "train.xyz")], "val_fraction": 0.1},
        "model": MODEL,
        "training": {**TRAINING, "epochs": options.epochs},
    }
    train(from_dict(config), options.run / "training")
    model = options.run / "training" / "model.pth"

    calc = EquivariantCalculator(model, on_domain_exit="ignore")
    results = calc.evaluate(unseen)
    off = np.concatenate(
        [r["forces"] - f.get_forces() for r, f in zip(results, unseen, strict=True)]
    )
    size = np.concatenate([f.get_forces() for f in unseen])
    figures = {
        "forces": float(np.sqrt((size**2).mean())),
        "force_rmse": float(np.sqrt((off**2).mean())),
    }
    print(
        f"forces of unseen frames   {figures['forces']:.3f} eV/Å, RMSE {figures['force_rmse']:.3f}"
    )
    runs = engines(model)
    for engine, (milliseconds, forces) in runs.items():
        figures[engine] = float(np.abs(forces - runs["torch"][1]).max())
        print(
            f"{engine:<6} {milliseconds:8.1f} ms, forces off torch's by {figures[engine]:.1e} eV/Å"
        )

    figure = Figure(figsize=(5, 3.5), layout="tight")
    panel = figure.subplots()
    for name, label in (("si", "teacher"), (model, "MACE")):
        constants, energies = energies_of_volumes(name)
        panel.plot(constants, 1e3 * energies, "o-" if label == "MACE" else "-", label=label)
        figures[f"a of {label}"] = float(constants[energies.argmin()])
    panel.set(xlabel="lattice constant, Å", ylabel="energy above the lowest, meV/atom")
    panel.legend(frameon=False)
    figure.savefig(options.out / "mace_silicon.png", dpi=150)
    print(options.out / "mace_silicon.png")
    return figures


if __name__ == "__main__":
    main()
