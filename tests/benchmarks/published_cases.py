"""What published.py compares: structures, and networks of other packages.

Weights of MF-ompa, Omni-i12 and NequIP-OAM-S do not come with any package: these networks have the
published options and random weights, which changes nothing in what they cost.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.data import chemical_symbols
from ase.spacegroup import crystal

sys.path.append(str(Path(__file__).parents[2] / "examples"))

from teacher_lifepo4 import lithium_iron_phosphate

from eqcalc.importers.published import SEVENN

HERE = Path(__file__).parent


def structures() -> dict[str, Atoms]:
    """What numbers are compared on."""
    ethanol = molecule("CH3CH2OH")
    copper = bulk("Cu", cubic=True)
    phosphate = lithium_iron_phosphate()
    alloy = bulk("Co", "fcc", a=3.57, cubic=True).repeat(2)
    five = ["Co", "Cr", "Fe", "Mn", "Ni"]
    alloy.set_chemical_symbols(np.random.default_rng(0).permutation((five * 7)[:32]))
    silicon = bulk("Si", cubic=True)
    strain = np.array([[1.03, 0.01, 0.0], [0.0, 0.98, 0.02], [0.0, 0.0, 1.01]])
    silicon.set_cell(silicon.cell.array @ strain, scale_atoms=True)
    found = {
        "ethanol": ethanol,
        "copper": copper,
        "LiFePO4": phosphate,
        "CoCrFeMnNi": alloy,
        "strained silicon": silicon,
    }
    for seed, atoms in enumerate(found.values()):
        atoms.rattle(0.05, seed=seed)
    return found


def timed() -> dict[str, Atoms]:
    """What is timed."""
    titanate = crystal(
        ["Ba", "Ti", "O"],
        [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)],
        spacegroup=221,
        cellpar=[4.01] * 3 + [90] * 3,
    )
    found = {
        "Si, 216 atoms": bulk("Si", cubic=True).repeat(3),
        "NaCl, 216 atoms": bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(3),
        "BaTiO3, 320 atoms": titanate.repeat(4),
        "LiFePO4, 336 atoms": lithium_iron_phosphate().repeat((2, 3, 2)),
    }
    for seed, atoms in enumerate(found.values()):
        atoms.rattle(0.05, seed=seed)
    return found


@dataclass(frozen=True)
class PeerNetwork:
    """A network of another package.

    Attributes:
        peer: the package's environment (`environments.PEERS`).
        script: of the original's worker.
        file: what is imported, found or made, from the environment's interpreter, a folder for
            such files and the precision.
        of: what the worker is given beside the precision.
        task: of several.
        timed: whether it is timed, too.
        elements: that are imported; None: all.
    """

    peer: str
    script: str
    file: Callable[[Path, Path, str], Path]
    of: dict = field(default_factory=dict)
    task: str | None = None
    timed: bool = True
    elements: list[str] | None = None


def _sevennet(name: str, task: str | None = None, *, timed: bool = True) -> PeerNetwork:
    """Published weights, as they come with the package."""

    def file(python: Path, _: Path, __: str) -> Path:
        return next(python.parents[1].glob(f"lib/*/site-packages/sevenn/*/{SEVENN[name]}"))

    return PeerNetwork("sevenn", "row_sevenn_published.py", file, {}, task, timed)


def _random_sevennet(name: str) -> PeerNetwork:
    """Random weights in a network with the options of a published one."""

    def file(python: Path, folder: Path, _: str) -> Path:
        path = folder / f"{name}.pth"
        if not path.is_file():
            _run([python, HERE.parent / "peers" / "sevenn_random.py", name, path])
        return path

    few = sorted({symbol for atoms in structures().values() for symbol in atoms.symbols})
    script = "row_sevenn_published.py"  # of 118 elements they would take 5 GB in float64
    return PeerNetwork("sevenn", script, file, {}, "mpa", timed=False, elements=few)


#: the preset "S" of NequIP, that of NequIP-OAM-S, with ZBL and 89 elements
SYMBOLS = chemical_symbols[1:90]
NEQUIP_S = {
    "symbols": SYMBOLS,
    "cutoff": 4.5,
    "arguments": {
        "num_layers": 2,
        "l_max": 1,
        "num_features": [128, 64],
        "parity": False,
        "type_embed_num_features": 32,
        "radial_mlp_depth": 1,
        "radial_mlp_width": 128,
        "type_names": SYMBOLS,
        "r_max": 4.5,
        "num_bessels": 8,
        "polynomial_cutoff_p": 5,
        "avg_num_neighbors": 30.0,
        "per_type_energy_scales": 1.0,
        "per_type_energy_shifts": dict.fromkeys(SYMBOLS, -1.0),
        "pair_potential": {
            "_target_": "nequip.nn.pair_potential.ZBL",
            "units": "metal",
            "chemical_species": SYMBOLS,
            "polynomial_cutoff_p": 5,
        },
    },
}


def _nequip_s(python: Path, folder: Path, dtype: str) -> Path:
    """A checkpoint; the compiled model has the same weights, since both are made from one seed."""
    checkpoint, network = folder / f"nequip-s-{dtype}.ckpt", json.dumps(NEQUIP_S | {"dtype": dtype})
    script, example = HERE / "row_nequip.py", folder / "example.pth"
    _run([python, script, "--checkpoint", network, checkpoint, example])
    return checkpoint


def _run(command: list) -> None:
    subprocess.run([str(word) for word in command], check=True, stdin=subprocess.DEVNULL)


NETWORKS = {
    "7net-0": _sevennet("7net-0"),
    "7net-l3i5": _sevennet("7net-l3i5"),
    "7net-mf-0:PBE": _sevennet("7net-mf-0", "PBE", timed=False),
    "7net-mf-ompa": _random_sevennet("7net-mf-ompa"),
    "7net-omni-i12": _random_sevennet("7net-omni-i12"),
    "nequip-oam-s": PeerNetwork("nequip", "row_nequip_published.py", _nequip_s, NEQUIP_S),
}
