"""Files of frames as one: copies, conflicts, names and units of labels."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import read, write
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from eqcalc import InputError
from eqcalc.cli import app
from eqcalc.data.frames import read_frames
from eqcalc.data.merge import merge

OPTIONS = {"sigma": 2.0, "epsilon": 0.3, "rc": 4.0, "smooth": True}


def labelled(atoms, *, energy=1.0, forces=1.0, shift=0.0, **info):
    """With Lennard-Jones's labels, each times a factor, and an energy per atom beside them."""
    bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    bare.calc = LennardJones(**OPTIONS)
    frame = atoms.copy()
    labels = {
        "energy": energy * bare.get_potential_energy() + shift * len(bare),
        "forces": forces * bare.get_forces(),
    }
    if atoms.pbc.all():
        labels["stress"] = bare.get_stress()
    frame.calc = SinglePointCalculator(frame, **labels)
    frame.info.update(info)
    return frame


def crystals(seeds, **options):
    found = []
    for seed in seeds:
        atoms = bulk("Si", cubic=True)
        atoms.rattle(0.05, seed=seed)
        found.append(labelled(atoms, **options))
    return found


def turned(frame, **options):
    """The same structure, turned, its atoms in another order; labels of its own."""
    rotation = Rotation.from_rotvec([0.3, -0.8, 0.5]).as_matrix()
    order = np.random.default_rng(0).permutation(len(frame))
    atoms = Atoms(frame.numbers[order], frame.positions[order] @ rotation.T, pbc=frame.pbc)
    atoms.set_cell(frame.cell.array @ rotation.T)
    return labelled(atoms, **options)


def put(path, frames):
    write(path, frames, format="extxyz")
    return path


def test_copies_are_left_out_and_counted(tmp_path):
    first = crystals(range(4))
    second = [turned(first[1]), *crystals([7, 8]), first[3].copy(), turned(first[1])]
    second[3].calc = first[3].calc
    water = labelled(molecule("H2O"), config_type="water")
    a, b = put(tmp_path / "a.xyz", first), put(tmp_path / "b.xyz", [*second, water])
    merged = merge([a, b])
    assert merged.files == {"a.xyz": (4, 4), "b.xyz": (6, 3)}
    assert merged.copies == [
        ("b.xyz, frame 0", "a.xyz, frame 1"),
        ("b.xyz, frame 3", "a.xyz, frame 3"),
        ("b.xyz, frame 4", "a.xyz, frame 1"),
    ]
    assert not merged.conflicts
    for frame, expected in zip(merged.frames, [*first, *second[1:3], water], strict=True):
        assert frame.positions == pytest.approx(expected.positions, abs=1e-7)
        assert frame.get_potential_energy() == pytest.approx(expected.get_potential_energy())
        assert frame.get_forces() == pytest.approx(expected.get_forces(), abs=1e-7)
        if expected.pbc.all():
            assert frame.get_stress() == pytest.approx(expected.get_stress(), abs=1e-7)
    assert merged.frames[-1].info["config_type"] == "water"
    assert len(merge([a]).frames) == 4


def test_the_copy_with_more_labels_stays(tmp_path):
    (frame,) = crystals([1])
    bare = frame.copy()
    bare.calc = SinglePointCalculator(bare, energy=frame.get_potential_energy())
    a = put(tmp_path / "a.xyz", [bare, *crystals([2])])
    merged = merge([a, put(tmp_path / "b.xyz", [frame])])
    assert merged.copies == [("a.xyz, frame 0", "b.xyz, frame 0")]
    assert all("forces" in f.calc.results for f in merged.frames)
    assert any("1 of 2 frames of" in note and "no forces" in note for note in merged.notes)


def test_conflicts_are_named_and_somebody_chooses(tmp_path):
    first = crystals(range(4))
    other = turned(first[2], shift=0.02)
    a, b = put(tmp_path / "a.xyz", first), put(tmp_path / "b.xyz", [*crystals([9]), other])
    with pytest.raises(InputError, match="1 pair of frames are one structure") as told:
        merge([a, b])
    assert "b.xyz, frame 1 = a.xyz, frame 2, but energies differ by 20 meV/atom" in str(told.value)
    for keep, stays, goes in (("first", first[2], other), ("last", other, first[2])):
        merged = merge([a, b], keep=keep)
        assert len(merged.frames) == 5
        energies = np.array([f.get_potential_energy() for f in merged.frames])
        assert np.abs(energies - stays.get_potential_energy()).min() < 1e-6
        assert np.abs(energies - goes.get_potential_energy()).min() > 1e-3
        assert f"Kept the {keep} of different labels: b.xyz, frame 1" in merged.conflicts[0]
    with pytest.raises(InputError, match="--keep newest: it must be one of first, last"):
        merge([a, b], keep="newest")


def test_isolated_atoms_once_each(tmp_path):
    def lone(symbol, energy):
        atom = Atoms(symbol, info={"config_type": "IsolatedAtom"})
        atom.calc = SinglePointCalculator(atom, energy=energy)
        return atom

    a = put(tmp_path / "a.xyz", [lone("Si", -0.1), *crystals([1])])
    b = put(tmp_path / "b.xyz", [*crystals([2]), lone("Si", -0.1), lone("O", -2.0)])
    merged = merge([a, b])
    assert merged.copies == [("b.xyz, frame 1", "a.xyz, frame 0")]
    assert len(merged.frames) == 4
    put(tmp_path / "b.xyz", [lone("Si", -0.3)])
    with pytest.raises(InputError, match=r"b.xyz, frame 0 = a.xyz, frame 0, but energies differ"):
        merge([a, b])


def test_other_units_are_refused(tmp_path):
    """Forces in other units than the energies of the file; energies in others than those before."""
    rng = np.random.default_rng(0)
    path = []
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=3)
    for _ in range(12):
        atoms.positions += 0.02 * rng.normal(size=(8, 3))
        path.append(atoms.copy())
    a = put(tmp_path / "a.xyz", crystals(range(4)))
    wrong = put(tmp_path / "wrong.xyz", [labelled(f, forces=-1.0) for f in path])
    with pytest.raises(InputError, match=r"wrong.xyz'.*forces have the wrong sign.*--unchecked"):
        merge([a, wrong])
    far = put(tmp_path / "far.xyz", crystals([5, 6, 7], shift=-100.0))
    with pytest.raises(InputError, match=r"far.xyz' lie -100 eV/atom from those of .*a.xyz'"):
        merge([a, far])
    assert len(merge([a, far], check_units=False).frames) == 7
    torn = [labelled(f, shift=s) for f, s in zip(crystals([5, 6, 7]), (0.9, 3.0, 2.0), strict=True)]
    assert len(merge([a, put(tmp_path / "torn.xyz", torn)]).frames) == 7  # high, but not all alike


def test_labels_under_other_names(tmp_path):
    """Are read where they are asked for, and refused where half of the frames would lack them."""
    frames = crystals(range(3))
    renamed = []
    for frame in frames:
        copy = frame.copy()
        copy.info["REF_energy"] = frame.get_potential_energy()
        copy.arrays["REF_forces"] = frame.get_forces()
        copy.set_constraint(FixAtoms([0]))
        renamed.append(copy)
    put(tmp_path / "a.xyz", renamed)
    merged = merge(
        [tmp_path / "a.xyz"], energy_key="REF_energy", forces_key="REF_forces", stress_key=""
    )
    for frame, expected in zip(merged.frames, frames, strict=True):
        assert frame.get_potential_energy() == pytest.approx(expected.get_potential_energy())
        assert frame.get_forces() == pytest.approx(expected.get_forces(), abs=1e-7)
        assert not {"REF_energy", "REF_forces"} & {*frame.info, *frame.arrays}
    half = frames[0].copy()
    half.calc = SinglePointCalculator(half, energy=frames[0].get_potential_energy())
    half.arrays["REF_forces"] = frames[0].get_forces()
    half.positions[0] += 0.1
    b = put(tmp_path / "b.xyz", [half])
    with pytest.raises(InputError, match="1 of 4 frames have no forces under the key 'forces' but"):
        merge([put(tmp_path / "c.xyz", frames), b])
    with pytest.raises(InputError, match="no energy under the key 'energy'"):
        merge([tmp_path / "a.xyz"])


def test_command(tmp_path):
    first = crystals(range(4))
    put(tmp_path / "a.xyz", first)
    put(tmp_path / "b.xyz", [turned(first[0]), *crystals([5])])
    files = [str(tmp_path / name) for name in ("a.xyz", "b.xyz")]
    arguments = ["data", "merge", *files, "-o", str(tmp_path / "all.xyz")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    said = "5 frames (4 of 4 of a.xyz, 1 of 2 of b.xyz); 1 copy left out: b.xyz, frame 0 = a.xyz"
    assert said in result.output
    frames = read_frames(tmp_path / "all.xyz")
    assert len(frames) == len(read(tmp_path / "all.xyz", ":")) == 5
    assert all(f.forces is not None and f.stress is not None for f in frames)
    assert frames[2].energy == pytest.approx(first[2].get_potential_energy(), abs=1e-6)
    result = CliRunner().invoke(app, [*arguments[:-1], files[0]])
    assert result.exit_code == 0  # one of the files may be what is written
    assert len(read(files[0], ":")) == 5
