"""What bonds cost, taught to acac.pth by a network that knows it from the same DFT frames.

    eqcalc train examples/train_acac.toml --out runs/acac
    eqcalc train examples/train_acac_mace.toml --out runs/acac_mace
    python examples/acac_bonds.py --data PATH/TO/acac --runs runs

Frames of one molecule near rest do not tell what its bonds cost, and the first of these networks
breaks them for 2 eV. The second, of kind mace and with the energies of isolated atoms, does not,
but is less accurate near rest. So it labels 150 frames with bonds pulled apart, and the first is
trained further on these beside its own, in two rounds; 40 minutes on one core. The frames held out
stay those of train_acac.toml. At the end the uncertainty is that of the DFT frames alone, and a
table shows what it costs to pull groups off the molecule, of all three networks.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read, write

from eqcalc import EquivariantCalculator
from eqcalc.data.dataset import split_indices
from eqcalc.data.frames import read_frames
from eqcalc.sampling.dynamics import Sampling, write_sample
from eqcalc.sampling.pulled import bonds, part
from eqcalc.sampling.teachers import open_teacher
from eqcalc.training.calibration import calibrate
from eqcalc.training.config import override, read_config
from eqcalc.training.run import train

HERE = Path(__file__).parent
FRAMES, LARGEST = 150, 4.0
WAYS = 0.5, 1.0, 2.0, 4.5  # Å
#: another, shorter round, with a lower rate and less weight on the frames pulled apart: the first
#: ends with errors of validation forces 3 % above those before it
SECOND = [
    *("training.epochs=20", "training.learning_rate=0.004", "training.ema_decay=0.999"),
    *("training.config_weights={network_pulled = 0.03}", "training.second_stage.start=17"),
    "training.second_stage.learning_rate=0.0005",
]


def split(data: Path, folder: Path) -> None:
    """train.xyz and val.xyz, as train_acac.toml splits them."""
    recipe = read_config(HERE / "train_acac.toml")
    types = [frame.config_type for frame in read_frames(data)]
    images = read(data, ":")
    parts = split_indices(types, recipe.data.val_fraction, recipe.training.seed)
    for name, chosen in zip(("train", "val"), parts, strict=True):
        write(folder / f"{name}.xyz", [images[n] for n in chosen])


def costs(model: Path, molecule: Atoms) -> dict[str, np.ndarray]:
    """eV to move each group along its bond by WAYS, nothing relaxed."""
    calc = EquivariantCalculator(model, on_domain_exit="ignore")
    pairs, found = bonds(molecule), {}
    for i, j in [*pairs, *((b, a) for a, b in pairs)]:
        moved = part(pairs, i, j)
        if i in moved or len(moved) > len(molecule) // 2:
            continue
        way = molecule.positions[j] - molecule.positions[i]
        images = [molecule.copy() for _ in (0.0, *WAYS)]
        for length, image in zip((0.0, *WAYS), images, strict=True):
            image.positions[moved] += length * way / np.linalg.norm(way)
        energies = np.array([result["energy"] for result in calc.evaluate(images)])
        name = f"{molecule.symbols[i]}-{molecule[moved].get_chemical_formula()}"
        found.setdefault(name, energies[1:] - energies[0])
    return found


def main(argv: Sequence[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the acac frames")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    args = parser.parse_args(argv)
    data, out = args.data / "train_300K.xyz.gz", args.runs / "acac_bonds"
    out.mkdir(parents=True, exist_ok=True)
    split(data, out)
    teacher, before = (args.runs / name / "model.pth" for name in ("acac_mace", "acac"))
    starts = read(data, ":")
    pulls = Sampling(frames=FRAMES, pull=LARGEST)
    print(write_sample(open_teacher([teacher]), starts, out / "pulled.xyz", pulls))
    frames = [str((out / f"{name}.xyz").resolve()) for name in ("train", "pulled")]
    config = override(
        read_config(HERE / "train_acac_bonds.toml"),
        [f"data.train={frames!r}", f'data.val=["{(out / "val.xyz").resolve()}"]'],
    )
    source = before
    for name, options in (("first", []), ("second", SECOND)):
        train(override(config, [f'fine_tune.model="{source.resolve()}"', *options]), out / name)
        source = out / name
    model = source / "model.pth"
    calibrate(model, model, *(read_frames(out / f"{n}.xyz") for n in ("train", "val")))
    molecule = read(out / "val.xyz", 0)
    for path in (before, teacher, model):
        print(f"\n{path}, moved by {', '.join(f'{w:g}' for w in WAYS)} Å, eV")
        for name, energies in costs(path, molecule).items():
            print(f"{name:10}" + "".join(f"{e:8.2f}" for e in energies))
    return model


if __name__ == "__main__":
    main()
