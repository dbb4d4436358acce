"""The loop of active learning, closed: dynamics, choice, labels, retraining, round after round.

    python examples/active_learning.py --out .

GFN2-xTB (package tblite) takes the place of DFT. A committee of two small networks is trained on
20 frames of ethanol at 300 K, and is to be right on frames at 1000 K. In each round its own
dynamics, which become hotter, make a pool of frames, with those at which a trajectory ended as the
members disagree; `eqcalc select` chooses some, GFN2-xTB labels them, and the committee is
fine-tuned on all labelled frames. Beside it a network is trained in the same way on as many frames
of the same pools, taken at random; it is compared with the first member of the committee.

In commands, a round is

    eqcalc sample runs/0 --start train.xyz -o pool.xyz --limit 0.5
    eqcalc select runs/0 pool.xyz candidates.xyz -n 15 --train train.xyz -o chosen.xyz
    eqcalc label chosen.xyz --calculator gfn2 -o labelled.xyz
    eqcalc data merge train.xyz labelled.xyz -o train_1.xyz
    eqcalc train train_1.xyz --committee 2 --set fine_tune.model=runs/0 --out runs/1

Prints a table and draws the errors.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.io import read
from matplotlib.figure import Figure

from eqcalc import EquivariantCalculator
from eqcalc.active.label import identity, label_frames
from eqcalc.active.select import select, written
from eqcalc.checks.report import Table, png, write_json
from eqcalc.data.frames import iter_images
from eqcalc.data.merge import merge
from eqcalc.files import write_bytes
from eqcalc.sampling.dynamics import Sampling, Tally, sample, write_frames
from eqcalc.sampling.teachers import Networks, open_teacher
from eqcalc.training.config import from_dict
from eqcalc.training.run import train

MODEL = {
    "cutoff": 4.5,
    "num_layers": 2,
    "num_channels": [16, 8, 8],
    "product_channels": 0,
    "radial_mlp": [16],
    "readout": 16,
}
TEACHER = "gfn2"
START, HOT = 300.0, 1000.0

#: K, of the dynamics of the first round and of all later ones. At 1000 K in the first round, the
#: members agree on frames that are up to 15 eV above the molecule at rest, and those are chosen
POOLS = [300.0, 600.0], [300.0, 600.0, 1000.0]

#: eV/Å by which the members may disagree on a force before a trajectory ends
LIMIT = 0.5

#: that runs the networks (`EquivariantCalculator`)
ENGINE = "auto"

#: fs between frames of a pool
INTERVAL = 10.0

CHOICES = {"selected": "d-optimal", "random": "random"}

#: of a committee
MEMBERS = {"selected": 2, "random": 1}


def dynamics(names: list[Any], starts: list[Atoms], **options: Any) -> tuple[list[Atoms], Tally]:
    """Frames of a teacher's dynamics, and what ended trajectories."""
    teacher = (
        Networks(names, on_domain_exit="ignore", engine=ENGINE)
        if len(names) > 1
        else open_teacher(names)
    )
    tally = Tally()
    return list(sample(teacher, starts, Sampling(**options), tally)), tally


def force_errors(calc: EquivariantCalculator, frames: list[Atoms]) -> np.ndarray:
    """[frames, atoms, 3] eV/Å."""
    results = calc.evaluate(frames)
    return np.array([r["forces"] - f.get_forces() for r, f in zip(results, frames, strict=True)])


class Loop:
    """Networks that are trained on frames chosen in one way, round after round.

    choice: of CHOICES. seed: of networks, dynamics and random choice.
    """

    def __init__(self, choice: str, seed: int, options: argparse.Namespace) -> None:
        self.choice, self.seed, self.options = choice, seed, options
        self.folder = options.work / f"{choice}_{seed}"
        self.folder.mkdir(exist_ok=True)
        self.data = options.work / "train_0.xyz"
        self.runs = [options.work / f"first_{seed}_{k}" for k in range(MEMBERS[choice])]
        self.failed = 0

    def models(self) -> list[Path]:
        return [run / "model.pth" for run in self.runs]

    def fit(self, former: list[Path] | None = None) -> None:
        """Networks of the frames so far, from their former selves."""
        for k, folder in enumerate(self.runs):
            training = {
                "epochs": self.options.epochs if former else self.options.first_epochs,
                "batch_size": 4,
                "threads": 1,
                "device": "cpu",
                "fused": self.options.fused,
                "seed": 10 * self.seed + k,
            }
            config = {"data": {"train": [str(self.data)]}, "training": training}
            config |= {"fine_tune": {"model": str(former[k])}} if former else {"model": MODEL}
            train(from_dict(config), folder, quiet=True)

    def error(self, hot: list[Atoms]) -> float:
        """RMSE of the first network's forces, meV/Å."""
        calc = EquivariantCalculator(self.models()[0], on_domain_exit="ignore", engine=ENGINE)
        return 1e3 * float(np.sqrt(np.square(force_errors(calc, hot)).mean()))

    def pool(self, number: int) -> Path:
        """Frames of the networks' own dynamics, and those that ended it."""
        path = self.folder / f"pool_{number}.xyz"
        if not path.exists():
            frames, tally = dynamics(
                self.models(),
                read(self.options.work / "train_0.xyz", ":"),
                frames=self.options.pool,
                temperatures=POOLS[min(number, len(POOLS)) - 1],
                interval=INTERVAL,
                limit=LIMIT,
                seed=100 * self.seed + number,
            )
            write_frames(path, [*frames, *tally.candidates])
        return path

    def turn(self, number: int, pool: Path) -> None:
        """Choice, labels and training of one round."""
        images = list(iter_images(pool))
        chosen, labelled = (self.folder / f"{name}_{number}.xyz" for name in ("chosen", "labelled"))
        found = select(
            EquivariantCalculator(self.models(), on_domain_exit="ignore", engine=ENGINE),
            images,
            list(iter_images(self.data)),
            number=self.options.number,
            method=CHOICES[self.choice],
            seed=self.seed,
        )
        write_frames(chosen, written(found, images))
        outcome = label_frames(
            open_teacher([TEACHER]), identity(TEACHER, {}), list(iter_images(chosen)), labelled
        )
        self.failed += len(outcome.failed)
        merged = merge([self.data, labelled])
        self.data = write_frames(self.folder / f"train_{number}.xyz", merged.frames)
        former = self.models()
        self.runs = [self.folder / f"run_{number}_{k}" for k in range(len(former))]
        self.fit(former)


def draw(found: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    numbers = found["labelled frames"]
    for colour, (choice, runs) in zip(("#d1495b", "#3b6ea8"), found["rmse"].items(), strict=True):
        for errors in runs:
            left.plot(numbers, errors, color=colour, lw=0.8, alpha=0.5)
        left.plot(numbers, np.mean(runs, axis=0), "o-", color=colour, label=choice)
    left.set(xlabel="labelled frames", ylabel=f"RMSE of forces at {HOT:g} K (meV/Å)")
    left.set_title("Choice against chance")
    left.legend(frameon=False)
    deviation, error = np.array(found["first pool"]).T
    right.loglog(deviation, error, ".", color="#56616c", ms=5)
    ends = np.array([min(deviation.min(), error.min()), max(deviation.max(), error.max())])
    right.loglog(ends, ends, color="k", lw=0.8, ls="--")
    right.set(xlabel="largest deviation of a force over the members (eV/Å)")
    right.set(ylabel="largest error of a force (eV/Å)", title="Frames of the first pool")
    for axis in (left, right):
        axis.grid(alpha=0.3, which="both", lw=0.5)
    return figure


def first_pool(loop: Loop, pool: Path) -> list[list[float]]:
    """[frames][2] eV/Å: largest deviation over the members, and largest error, of a force."""
    path = loop.folder / "known_1.xyz"
    label_frames(open_teacher([TEACHER]), identity(TEACHER, {}), list(iter_images(pool)), path)
    frames = read(path, ":")
    calc = EquivariantCalculator(loop.models(), on_domain_exit="ignore", engine=ENGINE)
    errors = np.linalg.norm(force_errors(calc, frames), axis=2).max(axis=1)
    spread = [np.linalg.norm(r["forces_std"], axis=1).max() for r in calc.evaluate(frames)]
    return [[round(float(s), 4), round(float(e), 4)] for s, e in zip(spread, errors, strict=True)]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--number", type=int, default=15, help="frames labelled in each round")
    parser.add_argument("--pool", type=int, default=200, help="frames of dynamics in each round")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--first-epochs", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=50, help="in each later round")
    parser.add_argument("--hot", type=int, default=100, help="test frames")
    parser.add_argument("--fused", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--work", type=Path, help="folder to keep everything in, and to go on in")
    parser.add_argument("--out", type=Path, default=Path())
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        options.work = options.work or Path(temporary)
        return run(options)


def run(options: argparse.Namespace) -> dict[str, Any]:
    options.work.mkdir(parents=True, exist_ok=True)
    ethanol = [molecule("CH3CH2OH")]
    cold, _ = dynamics([TEACHER], ethanol, frames=20, temperatures=[START], interval=20.0, seed=1)
    hot, _ = dynamics(
        [TEACHER], ethanol, frames=options.hot, temperatures=[HOT], interval=20.0, seed=7
    )
    write_frames(options.work / "train_0.xyz", cold)
    loops = [
        {choice: Loop(choice, seed, options) for choice in CHOICES}
        for seed in range(1, options.seeds + 1)
    ]
    rmse: dict[str, list[list[float]]] = {choice: [[] for _ in loops] for choice in CHOICES}
    scatter: list[list[float]] = []
    for number in range(options.rounds + 1):
        for k, both in enumerate(loops):
            pool = both["selected"].pool(number) if number else None
            if number == 1:
                scatter = scatter or first_pool(both["selected"], pool)
            for choice, loop in both.items():
                loop.turn(number, pool) if pool else loop.fit()
                rmse[choice][k].append(round(loop.error(hot), 1))
                error = rmse[choice][k][-1]
                print(f"round {number}, seed {k + 1}, {choice}: {error} meV/Å", flush=True)
    failed = {choice: sum(both[choice].failed for both in loops) for choice in CHOICES}
    found = {
        "labelled frames": [len(cold) + options.number * k for k in range(options.rounds + 1)],
        "rmse": rmse,
        "frames that GFN2-xTB failed for": failed,
        "first pool": scatter,
        "units": {"rmse": "meV/Å", "first pool": "eV/Å, deviation and error"},
    }
    write_json(options.out / "active_learning.json", found)
    write_bytes(options.out / "active_learning.png", png(draw(found)))
    rows = [
        [choice, *(f"{np.mean(e):.0f} ({min(e):.0f}..{max(e):.0f})" for e in np.transpose(runs))]
        for choice, runs in rmse.items()
    ]
    columns = ["RMSE of forces, meV/Å", *(f"{n} frames" for n in found["labelled frames"])]
    print(Table("", columns, rows, f"mean over {options.seeds} seeds (lowest..highest)"))
    selected, drawn = (np.array(rmse[choice]) for choice in ("selected", "random"))
    for k, number in enumerate(found["labelled frames"][1:], start=1):
        ratio = selected[:, k].mean() / drawn[:, k].mean()
        wins = int((selected[:, k] < drawn[:, k]).sum())
        verdict = "beats" if ratio < 1.0 and 2 * wins > options.seeds else "does not beat"
        print(
            f"With {number} frames selection {verdict} chance: {ratio:.2f} of its error, lower "
            f"with {wins} of {options.seeds} seeds."
        )
    return found


if __name__ == "__main__":
    main()
