"""Mixtures of metals whose DFT frames are of the elements alone: a universal model teaches them.

    pip install --no-deps sevenn==0.13.0
    python examples/teacher_alloys.py --data PATH/TO/nbmotaw

SevenNet-0 (Park et al., J. Chem. Theory Comput. 20, 4857 (2024)) knows mixtures, but puts pure
molybdenum 0.16 and tungsten 0.20 eV/atom above DFT, so that all mixtures are too low against their
elements. It is first adapted to each fifth DFT frame (fine_tune.model = "7net-0"), then runs
dynamics of random and ordered body-centred mixtures in strained cells, cold to molten, and
nbmotaw.pth is trained further on these beside half of its own (train_nbmotaw_alloys.toml). No DFT
of a mixture is needed. Formation energies and errors of unseen frames go into teacher_alloys.json
and teacher_alloys.png. The network cannot mix better than its teacher.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.optimize import BFGS
from matplotlib.figure import Figure

from eqcalc import EquivariantCalculator
from eqcalc.data.dataset import split_indices
from eqcalc.data.frames import read_frames
from eqcalc.files import write_json
from eqcalc.sampling.dynamics import Sampling, write_sample
from eqcalc.sampling.teachers import open_teacher
from eqcalc.training.config import from_dict, override, read_config
from eqcalc.training.evaluate import evaluate_results
from eqcalc.training.run import train

HERE = Path(__file__).parent
#: Å, of body-centred cubic metals
LATTICE = {"Nb": 3.32, "Mo": 3.17, "Ta": 3.32, "W": 3.19}
PAIRS = list(itertools.combinations(LATTICE, 2))
#: K, from vibrations to the melt
TEMPERATURES = 300.0, 1500.0, 3000.0, 6000.0
#: frames of a trajectory
LENGTH = 5
#: the teacher is adapted to each FEWth DFT frame, the network learns each HALFth anew
FEW, HALF = 5, 2
ADAPT = {"epochs": 4, "batch_size": 2, "learning_rate": 0.002, "threads": 1}
#: meV/atom of mixtures by DFT; of which structures is not known, most likely disordered ones
DFT = {"NbMo": -52.0, "MoTa": -93.0, "TaW": -52.0}


def crystal(symbols: Sequence[str], repeat: int) -> Atoms:
    """A body-centred cubic cell of 2 repeat^3 atoms at Vegard's lattice constant.

    symbols are those of its atoms, the sublattice of the corners first.
    """
    a = float(np.mean([LATTICE[symbol] for symbol in symbols]))
    sites = bulk("W", "bcc", a=a, cubic=True).repeat(repeat)
    order = np.argsort(np.arange(len(sites)) % 2, kind="stable")
    atoms = sites[order]
    atoms.symbols = list(symbols)
    return atoms


def mixtures(number: int, rng: np.random.Generator) -> list[Atoms]:
    """Cells of 16 atoms: each ordered compound AB (B2), then two to four elements at random."""
    found = [crystal([one] * 8 + [other] * 8, 2) for one, other in PAIRS]
    while len(found) < number:
        chosen = rng.choice(list(LATTICE), size=rng.integers(2, 5), replace=False)
        symbols = rng.choice(chosen, size=16, p=rng.dirichlet(np.ones(len(chosen))))
        if len(set(symbols)) > 1:
            found.append(crystal(symbols.tolist(), 2))
    return found


def split(data: Path, folder: Path) -> None:
    """val.xyz as train_nbmotaw.toml holds it out; of the others half.xyz and few.xyz."""
    recipe = read_config(HERE / "train_nbmotaw.toml")
    images = read(data, ":")
    types = [frame.config_type for frame in read_frames(data)]
    kept, held_out = split_indices(types, recipe.data.val_fraction, recipe.training.seed)
    parts = {"val": held_out, "half": kept[::HALF], "few": kept[::FEW]}
    for name, chosen in parts.items():
        write(folder / f"{name}.xyz", [images[n] for n in chosen])


def adapt(teacher: str, folder: Path) -> Path:
    """The teacher after a short training on few DFT frames of the elements."""
    data = {"train": [str(folder / "few.xyz")], "val": [str(folder / "val.xyz")]}
    start = {"model": teacher, "drop_elements": True}
    train(from_dict({"data": data, "fine_tune": start, "training": ADAPT}), folder / "teacher")
    return folder / "teacher" / "model.pth"


def sample(teacher: Path, frames: int, folder: Path) -> None:
    """mixtures.xyz and unseen.xyz, with the teacher's labels, unless they are there."""
    for seed, name, count in ((1, "mixtures", frames), (2, "unseen", -(-frames // 12))):
        path = folder / f"{name}.xyz"
        if not path.is_file():
            starts = mixtures(-(-count // LENGTH), np.random.default_rng(seed))
            sampling = Sampling(
                frames=count,
                temperatures=TEMPERATURES,
                length=LENGTH,
                interval=20.0,
                strain=0.04,
                seed=seed,
            )
            tally = write_sample(open_teacher([teacher]), starts, path, sampling)
            print(f"{path}: {tally}", flush=True)


def at_rest(atoms: Atoms, calculator: Calculator) -> float:
    """eV per atom after positions and volume have been relaxed."""
    atoms = atoms.copy()
    atoms.calc = calculator
    BFGS(FrechetCellFilter(atoms, hydrostatic_strain=True), logfile=None).run(fmax=0.02, steps=80)
    return atoms.get_potential_energy() / len(atoms)


def formation(calculator: Calculator) -> dict[str, dict[str, float]]:
    """meV per atom of each compound AB, ordered (B2) and disordered (54 atoms, one drawing)."""
    alone = {symbol: at_rest(crystal([symbol] * 2, 1), calculator) for symbol in LATTICE}
    found = {}
    for one, other in PAIRS:
        mean = (alone[one] + alone[other]) / 2
        symbols = np.random.default_rng(0).permutation([one] * 27 + [other] * 27)
        cells = {"B2": crystal([one, other], 1), "disordered": crystal(symbols.tolist(), 3)}
        found[one + other] = {
            name: round(1e3 * (at_rest(cell, calculator) - mean), 1) for name, cell in cells.items()
        }
    return found


def errors(calculator: EquivariantCalculator, frames: Path) -> dict[str, float]:
    """RMSE of energies (meV/atom) and forces (meV/Å)."""
    labelled = read_frames(frames)
    results = calculator.evaluate(frame.atoms for frame in labelled)
    found = evaluate_results(labelled, results).summary()["all"]
    return {name: round(found[name]["rmse"], 2) for name in ("energy", "forces")}


def draw(found: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Formation energies of each model, and DFT's."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    names = [one + other for one, other in PAIRS]
    for axes, kind in zip(panels, ("B2", "disordered"), strict=True):
        for k, (model, rows) in enumerate(found.items()):
            x = np.arange(len(names)) + 0.2 * (k - 1.5)
            axes.bar(x, [rows[name][kind] for name in names], 0.19, label=model)
        axes.axhline(0.0, color="0.3", lw=0.8)
        axes.set_xticks(range(len(names)), names)
        axes.set_title(f"{kind}, equal parts", fontsize=10)
    places = [names.index(name) for name in DFT]
    panels[1].plot(places, list(DFT.values()), "k_", ms=28, mew=2, label="DFT (structures unknown)")
    panels[0].set_ylabel("formation energy, meV/atom")
    panels[1].legend(fontsize=9)
    figure.savefig(path, dpi=130)


def main(argv: Sequence[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the nbmotaw frames")
    parser.add_argument("--teacher", default="7net-0", help="that knows the four metals")
    parser.add_argument("--frames", type=int, default=600, help="of mixtures")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path(), help="where to write")
    options = parser.parse_args(argv)
    folder = options.runs / "nbmotaw_alloys"
    folder.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    split(options.data / "train_unary.xyz.gz", folder)
    adapted = adapt(options.teacher, folder)
    sample(adapted, options.frames, folder)
    files = {n: str((folder / f"{n}.xyz").resolve()) for n in ("half", "mixtures", "val", "unseen")}
    sets = json.dumps([files["half"], files["mixtures"]])
    held_out = f'{{elements=["{files["val"]}"], mixtures=["{files["unseen"]}"]}}'
    recipe = read_config(HERE / "train_nbmotaw_alloys.toml")
    train(override(recipe, [f"data.train={sets}", f"data.val={held_out}"]), folder / "run")
    models = {
        "elements alone": HERE / "nbmotaw.pth",
        "teacher": options.teacher,
        "adapted teacher": adapted,
        "taught": folder / "run" / "model.pth",
    }
    calculators = {
        name: EquivariantCalculator(model, on_domain_exit="ignore")
        for name, model in models.items()
    }
    found = {name: formation(calculator) for name, calculator in calculators.items()}
    document = {
        "teacher": Path(options.teacher).stem,
        "mixtures": options.frames,
        "formation_energy_meV_per_atom": {**found, "DFT, structures unknown": DFT},
        "units": {"energy": "meV/atom", "forces": "meV/Å"},
        "rmse_of_unseen_frames": {
            name: {
                "mixtures, adapted teacher": errors(calculator, folder / "unseen.xyz"),
                "elements, DFT": errors(calculator, options.data / "test_unary.xyz.gz"),
            }
            for name, calculator in calculators.items()
        },
    }
    print(json.dumps(document, indent=1))
    write_json(options.out / "teacher_alloys.json", document)
    draw(found, options.out / "teacher_alloys.png")
    return document


if __name__ == "__main__":
    main()
