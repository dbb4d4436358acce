"""Long runs and LAMMPS's other machinery around the pair style: balancing, rigid bodies, replicas,
restarts. Whatever happened before, the last step equals Python on the positions of that step."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from parity import (
    COLUMNS,
    DUMP,
    DUMP_DIGITS,
    ELEMENTS,
    Result,
    by_lammps,
    by_python,
    pair,
    read_dump,
    script,
    silica_like,
)

from eqcalc.errors import InputError
from eqcalc.lammps import lammps_cell, read_thermo, run_lmp
from eqcalc.lammps.box import write_data
from eqcalc.lammps.plugin import find_tool

HOT = (
    "velocity all create 6000 7",
    "fix move all nve",
    "fix heat all temp/csvr 6000 6000 0.05 11",  # changes velocities, not forces
    "timestep 0.002",
)


def last_frame(path: Path, like: Atoms) -> Atoms:
    """The positions of the last frame, in the cell of `like`; both in the frame of LAMMPS."""
    dump = read_dump(path)
    symbols = [ELEMENTS[int(kind) - 1] for kind in dump[:, 1]]
    return Atoms(symbols, dump[:, 2:5], cell=lammps_cell(like)[0], pbc=like.pbc)


def assert_exact(got: Result, expected: Result) -> None:
    np.testing.assert_allclose(got.energies, expected.energies, rtol=0, atol=1e-10)
    np.testing.assert_allclose(got.forces, expected.forces, rtol=0, atol=1e-9)
    np.testing.assert_allclose(
        got.atomic_virials, expected.atomic_virials, rtol=0, atol=1e-9 * np.abs(got.virial).max()
    )


def dumped(lines: tuple[str, ...], every: int) -> tuple[str, ...]:
    """Frames of these steps as they come, with who owned which atom, instead of the first only."""
    return (
        "undump out",
        f"dump out all custom {every} dump.out {COLUMNS}",
        DUMP_DIGITS,
        f"dump owners all custom {every} owners.out id proc",
        "dump_modify owners sort id first yes",
        *lines,
    )


def owners(path: Path) -> np.ndarray:
    """[frames, N]"""
    frames = path.read_text().split("ITEM: ATOMS id proc\n")[1:]
    return np.array(
        [[int(w) for w in re.findall(r"^\d+ (\d+)\s*$", frame, re.MULTILINE)] for frame in frames]
    )


def test_thousands_of_steps(quick_model, tmp_path):
    """A hot gas on two ranks: atoms migrate, hundreds of lists; the frame is not a fresh start."""
    atoms = silica_like()
    after = dumped((*HOT, "run 2000"), 2000)
    path = script(atoms, tmp_path, pair(quick_model), after=after)
    got, _, output = by_lammps(path, ranks=2)
    assert "Dangerous builds = 0" in output
    assert int(re.search(r"Neighbor list builds = (\d+)", output)[1]) > 200
    owner = owners(tmp_path / "owners.out")
    assert (owner[0] != owner[-1]).sum() > 10
    assert_exact(got, by_python(quick_model, last_frame(tmp_path / "dump.out", atoms)))


def test_balancing_during_a_run(quick_model, tmp_path):
    """Half a crystal evaporates into an empty half while the tiles follow it."""
    atoms = silica_like()
    del atoms[atoms.positions[:, 0] > 5.0]
    after = dumped(("fix even all balance 10 1.0 rcb", *HOT, "run 250"), 250)
    path = script(atoms, tmp_path, pair(quick_model), before=("comm_style tiled",), after=after)
    got, _, _ = by_lammps(path, ranks=4)
    owner = owners(tmp_path / "owners.out")
    assert (owner[0] != owner[-1]).sum() > 10
    assert np.bincount(owner[-1]).max() <= 12  # of 32 atoms on 4 ranks
    assert_exact(got, by_python(quick_model, last_frame(tmp_path / "dump.out", atoms)))


@pytest.mark.parametrize(
    "moves",
    [
        "fix swap all atom/swap 1 5 29 6000 ke no types 1 2",
        "fix grow all gcmc 5 3 0 2 1234 6000 -0.5 0.1 full_energy",
    ],
    ids=["swap", "gcmc"],
)
def test_monte_carlo(moves, quick_model, tmp_path):
    """Atoms change their type, come and go between steps."""
    atoms = silica_like()
    before = ("atom_modify map array",)
    after = dumped((*HOT, moves, "run 20"), 20)
    got, _, _ = by_lammps(script(atoms, tmp_path, pair(quick_model), before=before, after=after), 2)
    last = last_frame(tmp_path / "dump.out", atoms)
    assert list(last.symbols) != list(atoms.symbols)
    assert_exact(got, by_python(quick_model, last))


@pytest.mark.parametrize("ranks", [1, 2])
def test_rerun(ranks, quick_model, tmp_path):
    """Frames read back give the energies of the run that wrote them."""
    after = (
        *HOT,
        "thermo 5",
        "dump frames all custom 5 frames.dump id type x y z",
        "dump_modify frames sort id format float %.17g",
        "run 20",
        "rerun frames.dump dump x y z",
    )
    output = run_lmp(script(silica_like(), tmp_path, pair(quick_model), after=after), ranks=ranks)
    run, rerun = (read_thermo("Step " + table)["PotEng"] for table in output.split("Step ")[1:])
    np.testing.assert_allclose(rerun, run, rtol=1e-12)


@pytest.mark.parametrize("style", ["rigid/nve/small", "rigid"])
def test_rigid_molecules(style, quick_model, tmp_path):
    """Energy is conserved, molecules keep their shape, forces are those of Python."""
    rng = np.random.default_rng(0)
    atoms = Atoms(cell=[8.4, 8.4, 8.4], pbc=True)
    shape = np.array([[0, 0, 0], [1.6, 0, 0], [-0.7, 1.4, 0]])
    for corner in np.ndindex(2, 2, 2):
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        atoms += Atoms("SiO2", shape @ turn + 4.2 * np.array(corner) + 1.0)
    after = dumped(
        (
            "fix names all property/atom mol ghost yes",
            "variable molecule atom ceil(id/3)",
            "set group all mol v_molecule",
            "velocity all create 300 5",
            f"fix move all {style} molecule",
            "timestep 0.0005",
            "thermo 1",
            "run 200",
        ),
        200,
    )
    before = ("atom_modify map array",)
    path = script(atoms, tmp_path, pair(quick_model), before=before, after=after)
    text = path.read_text().replace(" c_full[*]", "")  # LAMMPS's fix rigid refuses it
    path.write_text(re.sub("^compute full.*", "", text, flags=re.MULTILINE))
    thermo = read_thermo(run_lmp(path, ranks=2))
    assert thermo["TotEng"].std() < 1e-3 * thermo["PotEng"].std()
    last = last_frame(tmp_path / "dump.out", atoms)
    lengths = [last.get_distance(k, k + 1, mic=True) for k in range(0, len(last), 3)]
    np.testing.assert_allclose(lengths, 1.6, rtol=0, atol=1e-8)
    expected, dump = by_python(quick_model, last), read_dump(tmp_path / "dump.out")
    np.testing.assert_allclose(dump[:, 5], expected.energies, rtol=0, atol=1e-10)
    np.testing.assert_allclose(dump[:, 6:9], expected.forces, rtol=0, atol=1e-9)


def run_partitions(path: Path, partitions: int, ranks: int) -> None:
    command = [find_tool("mpirun"), "-n", str(partitions * ranks), find_tool("lmp")]
    command += ["-partition", f"{partitions}x{ranks}", "-in", path.name]
    done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("ranks", [1, 2])
def test_independent_partitions(ranks, model, tmp_path):
    """Two structures of different sizes in one mpirun: nobody talks to the other world."""
    worlds = [silica_like(2), silica_like(1, seed=4)]
    path = script(worlds[0], tmp_path, pair(model))
    text = path.read_text().replace("structure.data", "structure.${w}.data")
    path.write_text("variable w world 0 1\n" + text.replace("dump.out", "dump.${w}.out"))
    for k, atoms in enumerate(worlds):
        write_data(atoms, ELEMENTS, tmp_path / f"structure.{k}.data")
    run_partitions(path, 2, ranks)
    for k, atoms in enumerate(worlds):
        dump, expected = read_dump(tmp_path / f"dump.{k}.out"), by_python(model, atoms)
        np.testing.assert_allclose(dump[:, 5], expected.energies, rtol=0, atol=1e-10)
        np.testing.assert_allclose(dump[:, 6:9], expected.forces, rtol=0, atol=1e-9)


def test_nudged_elastic_band(quick_model, tmp_path):
    """Three replicas of an atom on its way; the band relaxes, each energy is that of Python."""
    atoms = silica_like(1)
    target = atoms.positions[4] + [1.2, 0.3, -0.2]
    (tmp_path / "final.hop").write_text("1\n5 " + " ".join(map(repr, target.tolist())) + "\n")
    after = (
        "fix band all neb 1.0",
        "timestep 0.001",
        "min_style fire",
        "neb 0.0 0.001 30 30 10 final final.hop",
        "unfix band",
        "undump out",
        DUMP,
        DUMP_DIGITS,
        "run 0",
    )
    path = script(
        atoms, tmp_path, pair(quick_model), before=("atom_modify map array",), after=after
    )
    text = path.read_text().replace("dump.out", "dump.${w}.out")
    path.write_text("variable w world 0 1 2\n" + text)
    run_partitions(path, 3, 1)
    rows = re.findall(r"^ *\d+ .*", (tmp_path / "log.lammps").read_text(), re.MULTILINE)
    first, last = (np.array([float(w) for w in rows[k].split()]) for k in (0, -1))
    assert last[1] < 0.5 * first[1]  # the largest force on a replica
    for k in range(3):
        replica = tmp_path / f"dump.{k}.out"
        expected = by_python(quick_model, last_frame(replica, atoms))
        dump = read_dump(replica)
        np.testing.assert_allclose(dump[:, 5], expected.energies, rtol=0, atol=1e-10)
        assert last[10 + 2 * k] == pytest.approx(expected.energy, rel=1e-7)  # as many digits


@pytest.mark.parametrize("ranks", [1, 2])
def test_restart_after_a_blow_up(ranks, quick_model, tmp_path):
    """The run stops at step 28 with the atom's id; the restart of step 20 is whole."""
    atoms = silica_like(1)
    after = (
        "thermo 10",
        "velocity all create 600 7",
        "fix move all nve",
        "restart 10 saved.*",
        "variable push equal exp(step*step)-exp(step*step)",  # not a number from step 27 on
        "group one id 5",
        "fix push one addforce v_push 0 0",
        "run 50",
    )
    path = script(atoms, tmp_path, pair(quick_model), after=after)
    with pytest.raises(
        InputError, match=r"the position of atom 5 is not finite .*: the simulation"
    ):
        run_lmp(path, ranks=ranks)
    assert sorted(p.name for p in tmp_path.glob("saved.*")) == ["saved.10", "saved.20"]
    before = read_thermo((tmp_path / "log.lammps").read_text())
    assert before["Step"][-1] == 20
    again = [
        "read_restart saved.20",
        *pair(quick_model),
        "thermo_style custom step pe ke",
        "thermo_modify format float %.16g norm no",
        "fix move all nve",
        "run 30",
    ]
    path.write_text("\n".join(again) + "\n")
    restored = read_thermo(run_lmp(path, ranks=ranks))
    for name in ("Step", "PotEng", "KinEng"):
        assert restored[name][0] == pytest.approx(before[name][-1], rel=1e-12)
    assert restored["Step"][-1] == 50
