"""The figures of the bundled silicon model's card, from the model and the published test set.

    python examples/silicon_card.py --data PATH/mlearn_Si --out card

prints the table, and writes `card.json` and `card.png` into the folder. Takes a few minutes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from ase import units
from ase.build import bulk
from ase.geometry.analysis import get_rdf
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from matplotlib.figure import Figure

from eqcalc import EquivariantCalculator
from eqcalc.checks.properties import check_properties
from eqcalc.checks.traces import with_velocities
from eqcalc.data.dataset import FrameDataset
from eqcalc.data.frames import read_frames
from eqcalc.export import load
from eqcalc.names import find
from eqcalc.training.evaluate import evaluate, format_table


def dynamics(calc, a0):
    """NVE at 300 K, then a melt held at 3000 K: drift [meV/atom/ps], and what became of it."""
    atoms = bulk("Si", cubic=True, a=a0).repeat(2)
    atoms.calc = calc
    rng = np.random.default_rng(1)
    atoms.set_velocities(with_velocities(atoms, 600.0).get_velocities())
    nve, times, totals = VelocityVerlet(atoms, 1.0 * units.fs), [], []
    nve.attach(
        lambda: (
            times.append(nve.get_time() / units.fs),
            totals.append(atoms.get_total_energy() / len(atoms)),
        ),
        interval=5,
    )
    nve.run(2000)
    drift = np.polyfit(np.array(times) / 1000, totals, 1)[0] * 1000

    melt = Langevin(
        atoms, 1.0 * units.fs, temperature_K=4000, friction=0.02 / units.fs, rng=rng, fixcm=False
    )
    melt.run(2000)
    melt.set_temperature(temperature_K=3000)
    nearest, temperatures, distributions = [], [], []

    def sample():
        distances = atoms.get_all_distances(mic=True)
        nearest.append(distances[np.triu_indices(len(atoms), 1)].min())
        temperatures.append(atoms.get_temperature())
        distributions.append(get_rdf(atoms, 5.4, 108)[0])

    melt.attach(sample, interval=20)
    melt.run(3000)
    radii = (np.arange(108) + 0.5) * 0.05
    return (
        times,
        np.array(totals),
        {
            "NVE 300 K drift, meV/atom/ps": drift,
            "melt 3000 K: mean temperature, K": float(np.mean(temperatures)),
            "melt 3000 K: shortest distance, Å": float(np.min(nearest)),
        },
        (radii, np.mean(distributions, axis=0)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with test.xyz.gz of mlearn silicon")
    parser.add_argument("--model", default="si")
    parser.add_argument("--out", type=Path, default=Path("card"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    figures = {}

    if options.data:
        potential = load(find(options.model))
        frames = read_frames(options.data / "test.xyz.gz")
        dataset = FrameDataset(frames, potential.atomic_numbers, potential.cutoff)
        figures["test"] = evaluate(potential.module, dataset).summary()
        print(format_table(figures["test"]))

    calc = EquivariantCalculator(options.model, dtype="float64")
    crystal = check_properties(bulk("Si", a=5.43), calc)
    print(crystal)
    times, totals, moving, (radii, rdf) = dynamics(calc, crystal.properties["a"].value)
    moving["minima of E(V) between 0.8 and 1.3 V0"] = crystal.scan.minima
    for name, value in moving.items():
        print(f"{name:<44}{value:10.4f}")
    figures |= {"properties": crystal.figures(), "dynamics": moving}
    (options.out / "card.json").write_text(json.dumps(figures, indent=1) + "\n")

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.plot(crystal.scan.ratio, crystal.scan.energy, ".-", ms=3)
    left.set(xlabel="V / V0", ylabel="energy (eV/atom)", title="diamond silicon, E(V)")
    middle.plot(np.array(times) / 1000, 1000 * (totals - totals[0]))
    middle.set(xlabel="time (ps)", ylabel="total energy change (meV/atom)", title="NVE at 300 K")
    right.plot(radii, rdf)
    right.set(xlabel="r (Å)", ylabel="g(r)", title="melt at 3000 K", xlim=(1.5, 5.4))
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
    figure.savefig(options.out / "card.png", dpi=130)


if __name__ == "__main__":
    main()
