"""One structure evaluated by Python and by the real `lmp`, and the structures with names."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

from eqcalc import derivatives, export
from eqcalc.engine.prepare import prepared
from eqcalc.lammps import read_thermo, run_lmp
from eqcalc.lammps.box import lammps_cell, write_data
from eqcalc.neighbors import neighbor_list

ELEMENTS = ["O", "Si"]  # LAMMPS types 1, 2; the model has them the other way round
BAR = 1.0 / 1.6021765e6  # eV/Å^3, with the digits that LAMMPS has
COLUMNS = "id type x y z c_energies fx fy fz c_symmetric[*] c_full[*]"
DUMP = f"dump out all custom 100000 dump.out {COLUMNS}"
DUMP_DIGITS = "dump_modify out sort id format float %.16g first yes"


def edges(atoms: Atoms, cutoff: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    found = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
    vectors = found.vectors(atoms.positions, atoms.cell.array)
    return torch.tensor(vectors), torch.tensor(found.edge_src), torch.tensor(found.edge_dst)


@dataclass
class Result:
    """In the frame of LAMMPS: energies [N] eV, forces [N, 3] eV/Å, virial [3, 3] eV, and atomic
    virials [N, 3, 3] eV, of which LAMMPS has the symmetric part or all."""

    energies: np.ndarray
    forces: np.ndarray
    virial: np.ndarray
    symmetric: np.ndarray
    atomic_virials: np.ndarray

    @property
    def energy(self) -> float:
        return self.energies.sum()


def by_python(model: Path, atoms: Atoms, dtype: str = "float64") -> Result:
    potential = export.load(model, dtype=dtype)
    edge_vec, edge_src, edge_dst = edges(atoms, potential.cutoff)
    species = torch.tensor(potential.species_of(atoms.numbers))
    got = potential.evaluate(species, edge_vec, edge_src, edge_dst)
    turn = torch.tensor(lammps_cell(atoms)[2])
    gradient, edge_vec = got.gradient @ turn, edge_vec @ turn
    forces = derivatives.forces(gradient, edge_src, edge_dst, len(atoms))
    outer = -edge_vec.unsqueeze(2) * gradient.unsqueeze(1)
    virials = torch.zeros(len(atoms), 3, 3, dtype=torch.float64).index_add(0, edge_src, outer)
    symmetric = 0.5 * (virials + virials.transpose(1, 2))
    return Result(
        got.energies.numpy(),
        forces.numpy(),
        symmetric.sum(0).numpy(),
        symmetric.numpy(),
        virials.numpy(),
    )


def make_ready(pair: list[str]) -> None:
    """The kernels that these commands ask for, by this process, which has torch already.

    Where they are not there LAMMPS starts a Python for them, which takes seconds, while the other
    ranks turn their processors in vain: so it does in test_simulation.py, test_build.py and
    test_models_by_name.py, and where this ends in an error.
    """
    text = "\n".join(pair)
    style = re.search(r"pair_style .*?equivariant(.*)", text)
    words = style[1].split() if style else ["device"]
    chosen = dict(zip(words[::2], words[1::2], strict=False))
    radial = {"fused": "table", "exact": "network"}.get(chosen.get("engine", "fused"))
    if radial is None or "device" in words:
        return
    for quoted, plain in re.findall(r'"(.+?)"|(\S+\.pth)', text):
        with contextlib.suppress(Exception):
            prepared(Path(quoted or plain), chosen.get("precision", "file"), radial)


def script(
    atoms: Atoms,
    folder: Path,
    pair: list[str],
    *,
    before: tuple[str, ...] = (),
    after: tuple[str, ...] = ("run 0",),
    elements: list[str] = ELEMENTS,
    units_: str = "metal",
) -> Path:
    """An input script with everything that `read_result` needs in its dump."""
    make_ready(pair)
    write_data(atoms, elements, folder / "structure.data")
    lines = [
        f"units {units_}",
        "boundary " + " ".join("p" if p else "m" for p in atoms.pbc),
        *before,
        "read_data structure.data",
        *pair,
        "neighbor 1.0 bin",
        "compute energies all pe/atom",
        "compute symmetric all stress/atom NULL virial",
        "compute full all centroid/stress/atom NULL virial",
        "thermo_style custom step pe ke etotal press pxx pyy pzz pxy pxz pyz vol",
        "thermo_modify format float %.16g norm no",
        DUMP,
        DUMP_DIGITS,
        *after,
    ]
    path = folder / "in.test"
    path.write_text("\n".join(lines) + "\n")
    return path


def restyle(folder: Path, style: str, columns: str) -> None:
    """The data file for another atom style; columns: what stands before x, as "0 {type}"."""
    path = folder / "structure.data"
    head, rows = path.read_text().split("Atoms  # atomic\n\n")
    rows = [line.split(maxsplit=2) for line in rows.splitlines()]
    rows = [f"{number} {columns.format(type=kind)} {x}" for number, kind, x in rows]
    path.write_text(f"{head}Atoms  # {style}\n\n" + "\n".join(rows) + "\n")


def read_dump(path: Path) -> np.ndarray:
    """The last frame, sorted by id."""
    frame = path.read_text().rsplit("ITEM: ATOMS", 1)[1]
    return np.array([[float(w) for w in line.split()] for line in frame.splitlines()[1:]])


def tensor(columns: np.ndarray) -> np.ndarray:
    """LAMMPS's order xx yy zz xy xz yz [yx zx zy] -> [..., 3, 3]."""
    pick = [0, 3, 4, 3, 1, 5, 4, 5, 2] if columns.shape[-1] == 6 else [0, 3, 4, 6, 1, 5, 7, 8, 2]
    return columns[..., pick].reshape(*columns.shape[:-1], 3, 3)


def by_lammps(
    path: Path, ranks: int = 1, threads: int = 1
) -> tuple[Result, dict[str, np.ndarray], str]:
    """Result, thermo table and output; stress/atom is -virial in bar Å^3."""
    output = run_lmp(path, ranks=ranks, threads=threads, timeout=300)
    thermo = read_thermo(output)
    dump = read_dump(path.parent / "dump.out")
    pressure = np.array([thermo[c][-1] for c in ("Pxx", "Pyy", "Pzz", "Pxy", "Pxz", "Pyz")])
    result = Result(
        energies=dump[:, 5],
        forces=dump[:, 6:9],
        virial=tensor(pressure) * BAR * thermo["Volume"][-1],
        symmetric=-tensor(dump[:, 9:15]) * BAR,
        atomic_virials=-tensor(dump[:, 15:24]) * BAR,
    )
    return result, thermo, output


def pair(model: Path, options: str = "", elements: str = "O Si") -> list[str]:
    return [f"pair_style equivariant {options}".strip(), f'pair_coeff * * "{model}" {elements}']


def assert_equal(got: Result, expected: Result, tolerance: float = 1e-9) -> None:
    """Relative to the largest entry of each quantity."""
    for name in ("energies", "forces", "virial", "symmetric", "atomic_virials"):
        a, b = getattr(got, name), getattr(expected, name)
        scale = max(np.abs(b).max(), 1.0)
        deviation = np.abs(a - b).max() / scale
        assert deviation < tolerance, f"{name} differ by {deviation:.1e} of {scale:.3g}"


def silica_like(repeat: int = 2, seed: int = 3) -> Atoms:
    atoms = bulk("Si", cubic=True).repeat(repeat)
    atoms.rattle(0.1, seed=seed)
    atoms.numbers[::3] = 8
    return atoms


def triclinic() -> Atoms:
    atoms = silica_like()
    atoms.set_cell(
        atoms.cell.array @ [[1, 0.2, 0.1], [-0.1, 1.1, 0.3], [0.2, -0.1, 0.9]], scale_atoms=True
    )
    atoms.positions += [100.0, -30.0, 7.0]
    return atoms


def slab() -> Atoms:
    atoms = bulk("Si").repeat((3, 3, 2))
    atoms.numbers[::2] = 8
    atoms.rattle(0.1, seed=2)
    atoms.pbc = [True, True, False]
    return atoms


def molecule() -> Atoms:
    atoms = Atoms(
        "SiO2Si2O", [[0, 0, 0], [1.6, 0, 0], [-1, 1.3, 0], [2.4, 1.4, 0.4], [0, 3, 1], [30, 30, 30]]
    )  # the last one has no neighbours
    atoms.rattle(0.05, seed=1)
    return atoms


def tiny() -> Atoms:
    atoms = bulk("Si")
    atoms.numbers[1] = 8
    atoms.rattle(0.1, seed=5)
    return atoms


def needle() -> Atoms:
    """One edge far below the cutoff: an atom is its own neighbour many times."""
    return Atoms("SiO", [[0, 0, 0], [0.4, 2.0, 0.3]], cell=[1.9, 9.0, 7.0], pbc=True)


def corner() -> Atoms:
    """All atoms in one corner of a large box: most ranks are empty."""
    atoms = silica_like(1)
    atoms.set_cell([40.0, 40.0, 40.0])
    return atoms


SYSTEMS = {
    system.__name__: system
    for system in (silica_like, triclinic, slab, molecule, tiny, needle, corner)
}
