"""A fast potential for one material from its structure alone: a universal model is the teacher.

    pip install --no-deps sevenn==0.13.0
    python examples/teacher_lifepo4.py --out examples

SevenNet-0 (Park et al., J. Chem. Theory Comput. 20, 4857 (2024)) relaxes a crystal of LiFePO4 and
runs dynamics in strained cells; a small network learns its energies, forces and stresses. No DFT
and no GPU: some minutes on one core. The network cannot be better than its teacher, but it
is several times faster. What the two say of unseen frames, of the lattice and of dynamics goes into
teacher_lifepo4.json and teacher_lifepo4.png. Any structure file (--structure) and any teacher of
`eqcalc sample` (--teacher) will do.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.md.langevin import Langevin
from ase.neighborlist import neighbor_list
from ase.optimize import BFGS
from ase.spacegroup import crystal
from matplotlib.figure import Figure

from eqcalc import EquivariantCalculator
from eqcalc.data.frames import read_frames
from eqcalc.files import write_json
from eqcalc.sampling.dynamics import Sampling, write_sample
from eqcalc.sampling.teachers import Teacher, open_teacher
from eqcalc.training.config import from_dict
from eqcalc.training.evaluate import evaluate_results
from eqcalc.training.run import train

#: K, of the frames and of the dynamics that are compared
TEMPERATURES, TEMPERATURE = (300.0, 600.0, 1000.0, 1500.0), 600.0
#: Å, as far as pairs are counted; bins
REACH, BINS = 6.0, 150

MODEL = {
    "cutoff": 4.5,
    "num_layers": 3,
    "num_channels": [32, 16, 16],
    "product_channels": 0,
    "radial_mlp": [32, 32],
}
TRAINING = {"batch_size": 1, "learning_rate": 0.01, "ema_decay": 0.99, "threads": 1}


def lithium_iron_phosphate() -> Atoms:
    """Olivine, Pnma: Streltsov et al., Acta Cryst. B 49, 147 (1993)."""
    return crystal(
        ["Li", "Fe", "P", "O", "O", "O"],
        basis=[
            (0.0, 0.0, 0.0),
            (0.2822, 0.25, 0.9747),
            (0.0949, 0.25, 0.4182),
            (0.0968, 0.25, 0.7428),
            (0.4571, 0.25, 0.2060),
            (0.1656, 0.0465, 0.2848),
        ],
        spacegroup=62,
        cellpar=[10.332, 6.010, 4.692, 90, 90, 90],
    )


def relaxed(atoms: Atoms, calculator) -> Atoms:
    """Cell and positions at rest, to 0.02 eV/Å."""
    atoms = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
    atoms.calc = calculator
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.02, steps=200)
    return atoms


def sample(teacher: Teacher, cell: Atoms, count: int, seed: int, path: Path) -> None:
    """Frames of dynamics in strained cells with the teacher's labels, unless they are there."""
    if path.is_file():
        return
    sampling = Sampling(
        frames=count,
        temperatures=TEMPERATURES,
        length=10,
        interval=20.0,
        strain=0.03,
        seed=seed,
    )
    print(f"{path.name}: {write_sample(teacher, [cell], path, sampling)}", flush=True)


def learn(frames: Path, epochs: int, folder: Path) -> Path:
    """The network that has learned these frames."""
    stage = {"start": max(1, 3 * epochs // 4), "energy_weight": 10.0, "learning_rate": 0.002}
    config = {
        "data": {"train": [str(frames)], "val_fraction": 0.05},
        "model": MODEL,
        "training": {**TRAINING, "epochs": epochs, "second_stage": stage},
    }
    train(from_dict(config), folder)
    return folder / "model.pth"


def pair_counts(atoms: Atoms) -> dict[tuple[str, str], np.ndarray]:
    """g(r) [BINS] of every other element, or of the only one, around the most frequent one."""
    symbols = np.array(atoms.get_chemical_symbols())
    first, second, distance = neighbor_list("ijd", atoms, REACH)
    often = Counter(symbols.tolist()).most_common(1)[0][0]
    shells = np.diff(4.0 / 3.0 * np.pi * np.linspace(0.0, REACH, BINS + 1) ** 3)
    found = {}
    for other in sorted(set(symbols) - {often}) or [often]:
        mine = (symbols[first] == other) & (symbols[second] == often)
        counts = np.histogram(distance[mine], bins=BINS, range=(0.0, REACH))[0]
        density = (symbols == often).sum() / atoms.get_volume()
        found[other, often] = counts / ((symbols == other).sum() * density * shells)
    return found


def dynamics(atoms: Atoms, calculator, steps: int) -> tuple[dict, float]:
    """g(r) of pairs at TEMPERATURE over the second half, and µs for an atom and a step of 2 fs."""
    atoms = atoms.copy()
    atoms.calc = calculator
    rng = np.random.default_rng(0)
    width = np.sqrt(atoms.get_masses() * units.kB * TEMPERATURE)
    atoms.set_momenta(width[:, None] * rng.standard_normal((len(atoms), 3)))
    thermostat = {"temperature_K": TEMPERATURE, "friction": 0.02 / units.fs, "rng": rng}
    run = Langevin(atoms, 2.0 * units.fs, fixcm=False, **thermostat)
    sums: dict[tuple[str, str], list[np.ndarray]] = {}
    seconds, every = 0.0, max(1, steps // 200)
    for step in range(0, steps, every):
        start = time.process_time()
        run.run(every)
        seconds += time.process_time() - start
        if 2 * step >= steps:
            for pair, g in pair_counts(atoms).items():
                sums.setdefault(pair, []).append(g)
    taken = -(-steps // every) * every
    return {p: np.mean(g, axis=0) for p, g in sums.items()}, 1e6 * seconds / taken / len(atoms)


def draw(labelled, results, pairs, rates: dict[str, float], path: Path) -> None:
    """Forces of unseen frames, pair distributions, times."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    forces, distribution, speed = figure.subplots(1, 3, width_ratios=[1, 1.6, 0.6])
    theirs = np.concatenate([frame.forces for frame in labelled]).ravel()
    ours = np.concatenate([found["forces"] for found in results]).ravel()
    forces.plot(theirs, ours, ".", ms=2, alpha=0.4, rasterized=True)
    ends = [theirs.min(), theirs.max()]
    forces.plot(ends, ends, "k-", lw=0.8)
    forces.set(xlabel="forces of the teacher (eV/Å)", ylabel="of the small network")
    r = (np.arange(BINS) + 0.5) * REACH / BINS
    for n, (pair, g) in enumerate(pairs["teacher"].items()):
        rise, most = 1.1 * n, g.max()
        (line,) = distribution.plot(r, g / most + rise, lw=3, alpha=0.5)
        distribution.plot(r, pairs["network"][pair] / most + rise, "k--", lw=0.9)
        distribution.text(0.15, rise + 0.1, "-".join(pair), color=line.get_color())
    distribution.set(xlabel="distance (Å)", ylabel=f"g(r) at {TEMPERATURE:.0f} K, over its maximum")
    distribution.set_title("teacher (broad), small network (dashed)", fontsize=9)
    bars = speed.bar(list(rates), list(rates.values()), color=["tab:blue", "0.3"])
    speed.bar_label(bars, fmt="%.0f")
    speed.set(ylabel="µs per atom and step, one core")
    figure.savefig(path, dpi=130)


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--structure", type=Path, help="a crystal; default: LiFePO4")
    parser.add_argument("--repeat", type=int, nargs=3, default=[1, 1, 2], help="for dynamics")
    parser.add_argument("--teacher", default="7net-0")
    parser.add_argument("--frames", type=int, default=300, help="that are learned")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2000, help="of the dynamics that are compared")
    parser.add_argument("--work", type=Path, help="folder to keep; what is in it is gone on with")
    parser.add_argument("--out", type=Path, default=Path(), help="where to write")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    atoms = read(options.structure) if options.structure else lithium_iron_phosphate()

    teacher = open_teacher([options.teacher])
    driver = teacher.drivers[0]
    unit = relaxed(atoms, driver)
    print("lattice of the teacher ", unit.cell.lengths().round(3), flush=True)
    large = unit.repeat(options.repeat)
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        for seed, (name, count) in enumerate(
            (("train", options.frames), ("test", -(-options.frames // 8))), start=1
        ):
            sample(teacher, unit, count, seed, work / f"{name}.xyz")
        model = learn(work / "train.xyz", options.epochs, work / "run")
        network = EquivariantCalculator(model, on_domain_exit="ignore")
        labelled = read_frames(work / "test.xyz")
    results = network.evaluate(frame.atoms for frame in labelled)
    errors = evaluate_results(labelled, results).summary()["all"]
    mine = relaxed(atoms, network)
    pairs, rates = {}, {}
    for name, calculator in (("teacher", driver), ("network", network)):
        pairs[name], rates[name] = dynamics(large, calculator, options.steps)
    document = {
        "teacher": options.teacher,
        "frames": options.frames,
        "atoms_per_frame": len(unit),
        "parameters": network.potential.metadata["num_parameters"],
        "errors": {k: {n: errors[k][n] for n in ("mae", "rmse", "unit")} for k in errors},
        "units": {"lattice": "Å", "largest_difference_of_g": "of the largest g"},
        "lattice": {
            "teacher": unit.cell.lengths().round(4).tolist(),
            "network": mine.cell.lengths().round(4).tolist(),
        },
        "largest_difference_of_g": {
            "-".join(pair): float(np.abs(g - pairs["network"][pair]).max() / g.max())
            for pair, g in pairs["teacher"].items()
        },
        "microseconds_per_atom_and_step": {k: round(v, 1) for k, v in rates.items()},
        "cpu_minutes": round(time.process_time() / 60.0, 1),
    }
    print(json.dumps(document, indent=1))
    write_json(options.out / "teacher_lifepo4.json", document)
    draw(labelled, results, pairs, rates, options.out / "teacher_lifepo4.png")
    return document


if __name__ == "__main__":
    main()
