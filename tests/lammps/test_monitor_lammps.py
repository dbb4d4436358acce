"""fix equivariant/monitor: the file, frames that ASE reads, and runs that end."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
import torch
from ase import units
from ase.io import read
from parity import script, silica_like, slab

from eqcalc import EquivariantCalculator, export, uncertainty
from eqcalc.engine.backends import Wanted, open_backend
from eqcalc.errors import InputError
from eqcalc.lammps import read_thermo, run_lmp
from eqcalc.lammps.box import lammps_cell
from eqcalc.neighbors import neighbor_list
from eqcalc.uncertainty import FrameFeatures

HOT = ("velocity all create 4000 3", "fix 1 all nve", "timestep 0.001")


@pytest.fixture
def two(quick_model, one_layer):
    return f'"{quick_model}" "{one_layer}"'


def monitored(files, folder, fix, *after, atoms=None, options="", **others):
    lines = [f"pair_style equivariant {options}".strip(), f"pair_coeff * * {files} O Si"]
    atoms = silica_like(1) if atoms is None else atoms
    dump = ("undump out", "dump all all custom 1 all.out id type x y z")
    digits = "dump_modify all sort id format float %.15g"
    watch = f"fix watch all equivariant/monitor {fix}"
    return script(atoms, folder, lines, after=(*dump, digits, watch, *after), **others)


def table(folder, name="watch.txt"):
    return np.loadtxt(folder / name, ndmin=2)


def committee_of(one_layer, quick_model):
    return EquivariantCalculator([quick_model, one_layer], dtype="float64", engine="torch")


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_table_and_frames(ranks, two, one_layer, quick_model, tmp_path):
    """Every second step of two runs; frames as ASE finds them; thermo has the numbers, too."""
    atoms = slab()
    after = (*HOT, "thermo_style custom step f_watch[1] f_watch[2] f_watch[3]", "thermo 2")
    fix = "2 watch.txt warn 1e-9 save frames.xyz"
    path = monitored(two, tmp_path, fix, *after, "run 4", "run 3", atoms=atoms)
    output = run_lmp(path, ranks=ranks)
    rows, frames = table(tmp_path), read(tmp_path / "frames.xyz", ":")
    assert "of atom" in output
    assert list(rows[:, 0]) == [0, 2, 4, 4, 6]  # the second run begins with step 4
    assert [frame.info["step"] for frame in frames] == [0, 2, 4, 6]
    calc = committee_of(one_layer, quick_model)
    box = lammps_cell(atoms)[0]
    for frame, row in zip(frames, rows[[0, 1, 2, 4]], strict=True):
        assert list(frame.pbc) == [True, True, False]
        np.testing.assert_allclose(frame.cell[:2], box[:2], atol=1e-9)
        assert list(frame.numbers) == list(atoms.numbers)
        assert frame.info["time"] == pytest.approx(1000 * row[1])  # fs, ps
        assert row[1] == pytest.approx(0.001 * row[0])
        expected = calc.get_property("forces_deviation", frame)
        deviation = frame.arrays["force_deviation"]
        np.testing.assert_allclose(deviation, expected, rtol=0, atol=1e-6 * expected.max())
        np.testing.assert_allclose(
            frame.get_forces(), calc.get_property("forces", frame), rtol=0, atol=1e-6
        )
        assert row[2] == pytest.approx(expected.max(), rel=1e-6)
        assert row[3] == pytest.approx(expected.mean(), rel=1e-6)
        assert row[4] == 1 + expected.argmax()
    thermo = read_thermo(output)
    shown = [thermo[f"f_watch[{k}]"][1] for k in (1, 2, 3)]  # step 6; the last is 7
    np.testing.assert_allclose(shown, rows[-1, 2:], rtol=1e-6)


@pytest.mark.parametrize("ranks", [1, 3])
def test_stop_writes_first(ranks, two, tmp_path):
    """The run ends in one sentence, in its step, and the last frame is that step."""
    free = tmp_path / "free"
    free.mkdir()
    run_lmp(monitored(two, free, "1 watch.txt", *HOT, "run 30"), ranks=ranks)
    largest = table(free)[:, 2]
    limit = 0.5 * (largest[0] + largest.max())
    step = int(np.argmax(largest > limit))
    assert step > 0
    fix = f"1 watch.txt stop {limit:.8g} save frames.xyz"
    with pytest.raises(InputError) as error:
        run_lmp(monitored(two, tmp_path, fix, *HOT, "run 30"), ranks=ranks, timeout=100)
    said = str(error.value)
    assert re.search(rf"force_deviation of atom \d+ is \S+ eV/Å in step {step}, more than", said)
    assert said.endswith("the structure is the last frame of frames.xyz")
    assert list(table(tmp_path)[:, 0]) == list(range(step + 1))
    np.testing.assert_allclose(table(tmp_path)[:, 2], largest[: step + 1], rtol=1e-6)
    (frame,) = read(tmp_path / "frames.xyz", ":")
    assert frame.info["step"] == step
    assert frame.arrays["force_deviation"].max() == pytest.approx(largest[step], rel=1e-6)


def test_interval(two, tmp_path):
    """At most one frame per 5 fs, but the table has every step; real units have fs."""
    fix = "1 watch.txt warn 1e-9 save frames.xyz interval 5"
    after = (*HOT[:2], "timestep 1.0", "run 12")
    output = run_lmp(monitored(two, tmp_path, fix, *after, units_="real"))
    assert [f.info["step"] for f in read(tmp_path / "frames.xyz", ":")] == [0, 5, 10]
    assert len(table(tmp_path)) == 13
    assert output.count("WARNING: Fix equivariant/monitor") == 1
    frame = read(tmp_path / "frames.xyz", 0)
    kcal_per_mol = units.kcal / units.mol
    deviation = kcal_per_mol * table(tmp_path)[0, 2]
    assert frame.arrays["force_deviation"].max() == pytest.approx(deviation, rel=1e-5)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("style", ["cg", "fire"])
def test_minimisation(ranks, style, two, one_layer, quick_model, tmp_path):
    """One line per step, of the positions that the minimiser accepted, not of its trials."""
    after = (f"min_style {style}", "minimize 0 1e-3 8 100")
    fix = "1 watch.txt warn 1e-9 save frames.xyz"
    run_lmp(monitored(two, tmp_path, fix, *after), ranks=ranks)
    rows, frames = table(tmp_path), read(tmp_path / "frames.xyz", ":")
    dumped = (tmp_path / "all.out").read_text().split("ITEM: ATOMS")[1:]
    assert list(rows[:, 0]) == list(range(len(rows))) == [f.info["step"] for f in frames]
    assert len(rows) == len(dumped) > 3
    calc = committee_of(one_layer, quick_model)
    atoms = silica_like(1)
    for text, row, frame in zip(dumped, rows, frames, strict=True):
        atoms.positions = [line.split()[2:] for line in text.splitlines()[1 : len(atoms) + 1]]
        expected = calc.get_property("forces_deviation", atoms)
        assert row[2] == pytest.approx(expected.max(), rel=1e-6)
        np.testing.assert_allclose(frame.arrays["force_deviation"], expected, rtol=1e-6, atol=1e-9)


def test_the_group_and_append(two, tmp_path):
    """Only atoms of the group count, and `append` keeps what is there."""
    (tmp_path / "watch.txt").write_text("# from before\n9 9 9 9 9\n")
    path = monitored(two, tmp_path, "1 watch.txt append yes", "run 0")
    text = path.read_text()
    path.write_text(text.replace("fix watch all", "group oxygen type 1\nfix watch oxygen"))
    run_lmp(path)
    rows = table(tmp_path)
    assert len(rows) == 2
    assert silica_like(1).numbers[int(rows[1, 4]) - 1] == 8


def test_rerun(two, tmp_path):
    """A trajectory of another run is watched afterwards, in its own steps."""
    make = monitored(two, tmp_path, "1 watch.txt", *HOT, "run 3")
    run_lmp(make)
    again = tmp_path / "again"
    again.mkdir()
    run_lmp(monitored(two, again, "1 watch.txt", f"rerun {tmp_path}/all.out dump x y z"))
    columns = [0, 2, 3, 4]  # LAMMPS's rerun has no time
    np.testing.assert_allclose(table(again)[:, columns], table(tmp_path)[:, columns], rtol=1e-6)


@pytest.mark.parametrize(
    ("fix", "sentence"),
    [
        ("0 watch.txt", "N must be at least 1, not 0"),
        ("1 watch.txt stop", "pairs of keyword and value"),
        ("1 watch.txt stop 1", "stop needs 'save frames.xyz'"),
        ("1 watch.txt save f.xyz", "save needs warn or stop"),
        ("1 watch.txt warn 2 stop 1 save f.xyz", r"warn \(2\) must be less than stop \(1\)"),
        ("1 watch.txt warn -1", "warn must be positive, not -1"),
        ("1 watch.txt loud yes", "does not know the keyword 'loud'"),
        ("1 watch.txt quantity force", "quantity must be grade, force_deviation or"),
        ("1 watch.txt quantity grade", "grade is of one potential"),
        ("1 missing/watch.txt", "missing/watch.txt cannot be written: No such file"),
    ],
)
def test_mistakes(fix, sentence, two, tmp_path):
    with pytest.raises(InputError, match=sentence):
        run_lmp(monitored(two, tmp_path, fix, "run 0"), ranks=2, timeout=100)


def test_a_model_without_uncertainty(quick_model, tmp_path):
    for options, sentence in (
        ("", "has no uncertainty: run 'eqcalc calibrate"),
        ("engine torch", "runs on engine torch, which has no uncertainty"),
    ):
        path = monitored(f'"{quick_model}"', tmp_path, "1 watch.txt", "run 0", options=options)
        with pytest.raises(InputError, match=sentence):
            run_lmp(path)


@pytest.fixture(scope="session")
def calibrated(quick_model, tmp_path_factory):
    """The small model with grades, whose training was some crystals."""
    potential = export.load(quick_model, dtype="float64")

    def features(seed):
        atoms = silica_like(1, seed)
        cell = atoms.cell.array
        pairs = neighbor_list(atoms.positions, cell, atoms.pbc, potential.cutoff).in_space(cell)
        species = potential.species_of(atoms.numbers)
        arrays = species, pairs.vectors(atoms.positions), pairs.edge_src, pairs.edge_dst
        found = uncertainty.features(potential, *map(torch.from_numpy, arrays))
        return FrameFeatures(species, found.numpy(), error=0.01 * (-1) ** seed)

    path = tmp_path_factory.mktemp("calibrated") / "calibrated.pth"
    known, _ = uncertainty.fit(
        [features(k) for k in range(40)], [features(k) for k in range(50, 60)]
    )
    uncertainty.write(quick_model, path, known, {"version": 1})
    return path


@pytest.mark.parametrize("ranks", [1, 3])
def test_grade_of_one_model(ranks, calibrated, tmp_path):
    """As Python has it; and energy_deviation of fix pair is the model's own."""
    atoms = silica_like(2)
    after = (
        "fix own all pair 1 equivariant grade 0 energy_deviation 0",
        "dump own all custom 1 own.out id f_own[1] f_own[2]",
        "dump_modify own sort id format float %.17g",
        "run 0",
    )
    fix = "1 watch.txt warn 1e-9 save frames.xyz"
    run_lmp(monitored(f'"{calibrated}"', tmp_path, fix, *after, atoms=atoms), ranks=ranks)
    backend = open_backend(calibrated, dtype="float64", engine="torch")
    cell = atoms.cell.array
    pairs = neighbor_list(atoms.positions, cell, atoms.pbc, 3.5).in_space(cell)
    species = backend.potential.species_of(atoms.numbers)
    expected = backend.compute(species, atoms.positions, pairs, Wanted(uncertainty=True))
    text = (tmp_path / "own.out").read_text().split("ITEM: ATOMS")[-1]
    _, grades, deviations = np.array([w.split() for w in text.splitlines()[1:]], float).T
    np.testing.assert_allclose(grades, expected.grades, rtol=1e-6)
    np.testing.assert_allclose(deviations, expected.energies_std, rtol=1e-6)
    _, _, largest, mean, atom = table(tmp_path)[0]
    assert largest == pytest.approx(grades.max(), rel=1e-6)
    assert mean == pytest.approx(grades.mean(), rel=1e-6)
    assert atom == 1 + grades.argmax()
    (frame,) = read(tmp_path / "frames.xyz", ":")
    np.testing.assert_allclose(frame.arrays["grade"], grades, rtol=1e-6)


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")
def test_full_disk(two, tmp_path):
    (tmp_path / "frames.xyz").symlink_to("/dev/full")
    fix = "1 watch.txt append yes warn 1e-9 save frames.xyz"
    with pytest.raises(InputError, match=r"frames\.xyz cannot be written: No space left"):
        run_lmp(monitored(two, tmp_path, fix, "run 0"))
