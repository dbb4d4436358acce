"""The data check finds planted trouble, and leaves healthy data alone."""

import copy
import json
import re
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.units import GPa, Hartree, kcal, mol
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from eqcalc.cli import app
from eqcalc.data.check import check
from eqcalc.data.check_labels import energy_step
from eqcalc.data.check_magnitude import frame_row, magnitude
from eqcalc.data.check_physics import force_test, strain_test
from eqcalc.data.frames import Frame, read_frames
from eqcalc.errors import InputError

DATA = Path(__file__).parent / "data"
BOHR = 0.529177


def labelled(atoms: Atoms, group: str) -> Atoms:
    """With energies, forces and stress of ASE's EMT, fixed."""
    atoms = atoms.copy()
    atoms.calc = EMT()
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    if atoms.pbc.all():
        results["stress"] = atoms.get_stress()
    atoms.calc = SinglePointCalculator(atoms, **results)
    atoms.info["config_type"] = group
    return atoms


@pytest.fixture(scope="module")
def healthy() -> list[Atoms]:
    """Strained copper, and snapshots of an alloy that walk on in small steps."""
    rng = np.random.default_rng(3)
    images = []
    for _ in range(8):
        strain = rng.normal(scale=0.005, size=(3, 3))
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        images.append(labelled(atoms, "strained"))
    atoms = bulk("Cu", cubic=True, a=3.8) * (2, 1, 1)
    atoms.numbers[::2] = 79
    atoms.rattle(0.1, seed=1)
    for _ in range(12):
        atoms.positions += rng.normal(scale=0.03, size=(8, 3))
        images.append(labelled(atoms, "snapshots"))
    return images


def survey(tmp_path, images, test=(), **options):
    write(tmp_path / "train.xyz", images)
    paths = []
    if test:
        write(tmp_path / "test.xyz", list(test))
        paths = [tmp_path / "test.xyz"]
    return check([tmp_path / "train.xyz"], paths, **options)


def found(result, level, name):
    return [f for f in result.findings if (f.level, f.check) == (level, name)]


def copies(images):
    """Frames that can be spoilt without harm to the others."""
    return [copy.deepcopy(image) for image in images]


def scaled(images, name, factor):
    images = copies(images)
    for atoms in images:
        if name in atoms.calc.results:
            atoms.calc.results[name] = atoms.calc.results[name] * factor
    return images


def test_healthy_data_pass(tmp_path, healthy):
    result = survey(tmp_path, healthy)
    assert result.passed
    assert [f.sentence for f in result.findings if f.level == "warning"] == []
    assert result.tests["stress"].slope == pytest.approx(1.0, abs=0.03)
    assert result.tests["forces"].slope == pytest.approx(1.0, abs=0.05)
    assert len(result.tests["stress"].work) >= 8
    assert len(result.tests["forces"].work) >= 8


@pytest.mark.parametrize(
    ("name", "factor", "check_name", "words"),
    [
        ("stress", -1.0, "stress", "wrong sign"),
        ("stress", 1 / GPa, "stress", "in GPa"),
        ("stress", -10 / GPa, "stress", "in kbar.*wrong sign"),
        ("stress", 10.0, "stress", "ten times too large"),
        ("forces", -1.0, "forces", "wrong sign"),
        ("forces", Hartree / BOHR, "forces", "once too often"),
        ("forces", BOHR / Hartree, "forces", "in Hartree/Bohr"),
        ("energy", mol / kcal, "forces", ": energies are in kcal/mol"),
        ("energy", mol / kcal, "stress", "energies are in kcal/mol"),
        ("energy", 1 / Hartree, "forces", "energies are in Hartree"),
    ],
)
def test_units_and_signs(tmp_path, healthy, name, factor, check_name, words):
    result = survey(tmp_path, scaled(healthy, name, factor))
    assert not result.passed
    (finding,) = found(result, "error", check_name)
    assert re.search(words, finding.sentence)
    assert finding.sources


def test_order_of_components(tmp_path, healthy):
    """VASP's xx yy zz xy yz zx read as ASE's xx yy zz yz xz xy."""
    images = copies(healthy)
    for atoms in images:
        xx, yy, zz, yz, xz, xy = atoms.calc.results["stress"]
        atoms.calc.results["stress"] = np.array([xx, yy, zz, xy, yz, xz])
    (finding,) = found(survey(tmp_path, images), "error", "order")
    assert "xy yz xz (VASP) instead of yz xz xy" in finding.sentence
    assert not found(survey(tmp_path, healthy), "error", "order")
    assert not found(survey(tmp_path, healthy), "warning", "order")


def test_many_copies_are_found_quickly(tmp_path, healthy):
    """Each frame of a crystal at rest repeats all before it; a leak among them is found too."""
    started = time.perf_counter()
    result = survey(tmp_path, [healthy[0]] * 400, [healthy[0]] * 3)
    assert time.perf_counter() - started < 30
    (duplicate,) = found(result, "warning", "duplicate")
    assert duplicate.sentence.startswith("399 frames")
    (leak,) = found(result, "warning", "leak")
    assert leak.sentence.startswith("3 frames")


def test_virials_instead_of_stress(tmp_path, healthy):
    images = copies(healthy)
    for atoms in images:
        atoms.calc.results["stress"] *= -atoms.get_volume()
    (finding,) = found(survey(tmp_path, images), "error", "stress")
    assert "the virial in eV: divide by the volume and change the sign" in finding.sentence


def test_a_constant_pressure_is_noticed(tmp_path, healthy):
    images = copies(healthy)
    for atoms in images:
        atoms.calc.results["stress"][:3] += 2.0 * GPa
    (finding,) = found(survey(tmp_path, images), "warning", "pressure")
    pressure = float(re.search(r"([+-][\d.]+) GPa", finding.sentence).group(1))
    assert pressure == pytest.approx(2.0, abs=0.15)
    assert f"data.pulay_pressure = {pressure:g}" in finding.sentence
    corrected = survey(tmp_path, images, pulay_pressure=2.0)
    assert not found(corrected, "warning", "pressure")
    assert found(corrected, "note", "stress") == found(survey(tmp_path, healthy), "note", "stress")
    assert not found(survey(tmp_path, healthy), "warning", "pressure")


@pytest.fixture(scope="module")
def one_cell() -> list[Atoms]:
    """Snapshots of hot copper in one cell: no energy differences tell what its stresses are."""
    rng = np.random.default_rng(8)
    images = []
    for _ in range(6):
        atoms = bulk("Cu", cubic=True, a=3.65) * (2, 2, 1)
        atoms.positions += rng.normal(scale=0.12, size=(16, 3))
        images.append(labelled(atoms, "snapshots"))
    return images


UNITS = {
    "They look like GPa": lambda s, _: s / GPa,
    "They look like kbar": lambda s, _: -10.0 * s[[0, 1, 2, 5, 3, 4]] / GPa,
    "the virial in eV": lambda s, volume: -s * volume,
}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("pbc", ["TTT", "TTF"])
@pytest.mark.parametrize("forces", [True, False])
def test_stresses_in_one_cell(tmp_path, one_cell, unit, pbc, forces):
    """In crystals and in slabs, with forces and without."""
    healthy, spoilt = copies(one_cell), copies(one_cell)
    for atoms in (*healthy, *spoilt):
        atoms.pbc = [letter == "T" for letter in pbc]
        if not forces:
            del atoms.calc.results["forces"]
    for atoms in spoilt:
        change = UNITS[unit]
        atoms.calc.results["stress"] = change(atoms.calc.results["stress"], atoms.get_volume())
    assert not found(survey(tmp_path, healthy), "error", "magnitude")
    result = survey(tmp_path, spoilt)
    (finding,) = found(result, "error", "magnitude")
    assert unit in finding.sentence
    assert not result.passed


def test_small_stresses_of_many_atoms(tmp_path):
    """Cool crystals near zero pressure, where only their forces tell how small stresses are."""
    images = []
    for n in range(4):
        atoms = bulk("Cu", cubic=True, a=3.59) * 4
        atoms.rattle(0.03, seed=n)
        images.append(labelled(atoms, "snapshots"))
    mean = np.mean([atoms.calc.results["stress"] for atoms in images], axis=0)
    for atoms in images:
        atoms.calc.results["stress"] -= mean
    assert not found(survey(tmp_path, images), "error", "magnitude")
    (finding,) = found(survey(tmp_path, scaled(images, "stress", 1 / GPa)), "error", "magnitude")
    assert "in cells that are alike they differ" in finding.sentence
    assert "They look like GPa" in finding.sentence


@pytest.mark.parametrize(
    ("name", "structure", "lattice", "pressure"),
    [
        ("Fe", "hcp", 2.23, 360.0),  # the Earth's centre, 7.0 Å^3 per atom
        ("C", "diamond", 2.95, 1000.0),  # 3.2 Å^3
        ("W", "bcc", 2.70, 1000.0),  # 9.8 Å^3
        ("Cu", "fcc", 3.62, -25.0),  # ideal strength
        ("C", "diamond", 3.9, -90.0),
    ],
)
def test_high_pressures_are_no_errors(name, structure, lattice, pressure):
    atoms = bulk(name, structure, a=lattice)
    stress = -pressure * GPa * np.eye(3)
    frames = [Frame(atoms, 0.0, np.zeros((len(atoms), 3)), stress, "all", "a, frame 0")]
    assert magnitude(map(frame_row, frames)) == []
    (finding,) = magnitude(frame_row(replace(f, stress=10.0 * stress / GPa)) for f in frames)
    assert "in the only frame" in finding.sentence


def test_stresses_in_another_unit_stop_packing_and_training(tmp_path, one_cell):
    from eqcalc.data import store
    from eqcalc.training.config import from_dict
    from eqcalc.training.prepare import prepare

    def begin(path, **training):
        model = {"num_layers": 1, "l_max": 1, "num_channels": [4, 2]}
        data = {"train": [str(path)], "stress_key": training.pop("stress_key", "stress")}
        prepare(from_dict({"data": data, "model": model, "training": training}))

    write(tmp_path / "a.xyz", scaled(one_cell, "stress", 1 / GPa))
    with pytest.raises(InputError, match="They look like GPa"):
        store.pack(tmp_path / "a.xyz", tmp_path / "a.eqdata", 5.0)
    assert not (tmp_path / "a.eqdata").exists()
    with pytest.raises(InputError, match="They look like GPa"):
        begin(tmp_path / "a.xyz")
    with pytest.warns(UserWarning, match="They look like GPa"):
        begin(tmp_path / "a.xyz", stress_weight=0.0)
    begin(tmp_path / "a.xyz", stress_key="")
    with pytest.MonkeyPatch.context() as patched:  # an older version packed them
        patched.setattr(store, "magnitude", lambda _: [])
        store.pack(tmp_path / "a.xyz", tmp_path / "a.eqdata", 5.0)
    with pytest.raises(InputError, match="too large for eV/Å"):
        begin(tmp_path / "a.eqdata")


def test_training_begins_with_a_warning(tmp_path, healthy):
    from eqcalc.training.config import from_dict
    from eqcalc.training.prepare import prepare

    def prepared(change, **options):
        images = copies(healthy)
        for atoms in images:
            atoms.calc.results["stress"] = change(atoms.calc.results["stress"])
        write(tmp_path / "train.xyz", images)
        data = {"train": [str(tmp_path / "train.xyz")], "val_fraction": 0.05, **options}
        model = {"num_layers": 1, "l_max": 1, "num_channels": [4, 2]}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            made = prepare(from_dict({"data": data, "model": model}))
        return made, [str(w.message) for w in caught]

    def spoilt(stress):
        return stress + np.array([3, 3, 3, 0, 0, 0]) * GPa

    truth, messages = prepared(lambda stress: stress)
    assert messages == []
    _, (message,) = prepared(lambda stress: stress, pulay_pressure="measured")
    assert re.search(
        r"the stresses lack [-+]0\.\d+ GPa .* over \d+ pairs .* nothing is add", message
    )
    for change, sentence in (
        (lambda stress: -stress, "the stress has the wrong sign"),
        (spoilt, "no model can fit both"),
    ):
        _, (message,) = prepared(change)
        assert sentence in message
    with pytest.raises(InputError, match="They look like GPa"):
        prepared(lambda stress: stress / GPa)
    made, (message,) = prepared(spoilt, pulay_pressure="measured")
    assert re.search(r"over \d+ pairs of strained frames; it is added", message)
    pressure = made.setup.pulay_pressure
    assert f"{pressure:+g} GPa" in message
    assert pressure == pytest.approx(3.0, abs=0.15)
    for mine, right in zip(
        (made.train, *made.val.values()), (truth.train, *truth.val.values()), strict=True
    ):
        for n in range(len(mine)):
            left = (mine[n].stress - right[n].stress)[0].numpy()
            np.testing.assert_allclose(left, (3.0 - pressure) * GPa * np.eye(3), atol=1e-12)


def test_the_force_test_holds_for_unwrapped_and_turned_frames(tmp_path, healthy):
    rng = np.random.default_rng(0)
    images = copies(healthy[8:])
    for atoms in images:
        atoms.positions += rng.integers(-2, 3, size=(8, 3)) @ atoms.cell.array
    write(tmp_path / "unwrapped.xyz", images)
    unwrapped = force_test(read_frames(tmp_path / "unwrapped.xyz"))
    write(tmp_path / "plain.xyz", healthy[8:])
    plain = force_test(read_frames(tmp_path / "plain.xyz"))
    assert len(unwrapped.work) == len(plain.work)
    assert unwrapped.slope == pytest.approx(plain.slope, abs=1e-6)

    cluster = Atoms("Cu5", positions=rng.normal(size=(5, 3)) + 2.4 * np.eye(5, 3) * 2)
    straight, turned = [], []
    for n in range(8):
        cluster.positions += rng.normal(scale=0.03, size=(5, 3))
        straight.append(labelled(cluster, "cluster"))
        other = cluster.copy()
        other.positions = other.positions @ Rotation.random(random_state=n).as_matrix().T + n
        turned.append(labelled(other, "cluster"))
    slopes = []
    for name, frames in (("straight", straight), ("turned", turned)):
        write(tmp_path / f"{name}.xyz", frames)
        slopes.append(force_test(read_frames(tmp_path / f"{name}.xyz")))
    assert len(slopes[1].work) >= 4
    assert slopes[1].slope == pytest.approx(1.0, abs=0.1)
    assert slopes[1].slope == pytest.approx(slopes[0].slope, abs=0.02)


def test_the_strain_test_holds_for_turned_cells(tmp_path, healthy):
    """Each cell in another orientation, with its stress turned along."""
    images = []
    for n, atoms in enumerate(healthy[:8]):
        turn = Rotation.random(random_state=n).as_matrix()
        other = atoms.copy()
        other.set_cell(atoms.cell.array @ turn.T, scale_atoms=True)
        images.append(labelled(other, "turned"))
    write(tmp_path / "turned.xyz", images)
    write(tmp_path / "straight.xyz", healthy[:8])
    turned, straight = (
        strain_test(read_frames(tmp_path / f"{n}.xyz")) for n in ("turned", "straight")
    )
    assert np.allclose(np.sort(turned.work), np.sort(straight.work), atol=1e-6)


def test_outliers(tmp_path, healthy):
    images = copies(healthy)
    images[10].calc.results["energy"] += 20.0
    images[15].calc.results["forces"][2] += [30.0, 0, 0]
    result = survey(tmp_path, images)
    energy, force = found(result, "warning", "outlier")
    assert energy.sources == ("train.xyz, frame 10",)
    assert force.sources == ("train.xyz, frame 15",)
    (net,) = found(result, "warning", "net_force")
    assert net.sources == ("train.xyz, frame 15",)


def test_copies_are_found_turned_mirrored_shifted_and_reordered(tmp_path, healthy):
    rng = np.random.default_rng(1)
    original = healthy[12]
    turn = Rotation.random(random_state=5).as_matrix() * -1.0
    order = rng.permutation(8)
    turned = original.copy()[order]
    turned.set_cell(original.cell.array @ turn.T)
    turned.positions = original.positions[order] @ turn.T + [0.3, 1.0, -7.0]
    turned.calc = SinglePointCalculator(
        turned,
        energy=original.get_potential_energy(),
        forces=original.get_forces()[order] @ turn.T,
        stress=turn @ original.get_stress(voigt=False) @ turn.T,
    )
    result = survey(tmp_path, [*healthy, turned, healthy[13]])
    (finding,) = found(result, "warning", "duplicate")
    assert {(t.first, t.second) for t in result.twins if t.difference < 1e-4} == {
        (12, 20),
        (13, 21),
    }
    assert result.passed  # the copies' labels agree
    turned.calc.results["energy"] += 0.5
    (finding,) = found(survey(tmp_path, [*healthy, turned]), "error", "contradiction")
    assert finding.sources == ("train.xyz, frame 12", "train.xyz, frame 20")
    assert "energies differ by 62.5 meV/atom" in finding.sentence


def test_other_elements_at_the_same_places_are_no_copy(tmp_path, healthy):
    swapped = healthy[12].copy()
    swapped.numbers[[0, 1]] = swapped.numbers[[1, 0]]
    result = survey(tmp_path, [*healthy, labelled(swapped, "snapshots")])
    assert not found(result, "warning", "duplicate")
    assert not found(result, "error", "contradiction")


def test_leaks(tmp_path, healthy):
    moved = healthy[11].copy()
    moved.rattle(2e-3, seed=4)
    foreign = labelled(bulk("Al", cubic=True), "new")
    test = [healthy[9], labelled(moved, "snapshots"), foreign]
    result = survey(tmp_path, healthy, test)
    (leak,) = found(result, "warning", "leak")
    assert leak.sources == ("train.xyz, frame 9", "test.xyz, frame 0")
    (near,) = found(result, "note", "near_leak")
    assert near.sources == ("train.xyz, frame 11", "test.xyz, frame 1")
    (elements,) = found(result, "error", "elements")
    assert elements.sources == ("test.xyz, frame 2",)
    assert "Al" in elements.sentence


def test_overlapping_and_lone_atoms(tmp_path, healthy):
    images = copies(healthy)
    images[9].positions[3] = images[9].positions[2] + [0.4, 0.0, 0.0]
    images[10].positions[5] = images[10].positions[4] + [0.0, 1.3, 0.0]
    images[14].set_cell([7.6, 3.8, 40.0])
    images[14].positions[6, 2] = 20.0
    result = survey(tmp_path, images)
    (overlap,) = found(result, "error", "overlap")
    assert overlap.sources == ("train.xyz, frame 9",)
    (close,) = found(result, "warning", "overlap")
    assert close.sources == ("train.xyz, frame 10",)
    (alone,) = found(survey(tmp_path, images, cutoff=3.5), "warning", "lone_atoms")
    assert alone.sources == ("train.xyz, frame 14",)
    assert "atom 6" in alone.sentence


def test_too_short_a_cutoff(tmp_path, healthy):
    (finding,) = found(survey(tmp_path, healthy[:8], cutoff=2.2), "warning", "neighbors")
    assert "longer cutoff" in finding.sentence
    assert not found(check([DATA / "acac.xyz"]), "warning", "neighbors")


def test_missing_and_broken_labels(tmp_path, healthy):
    images = copies(healthy)
    images[2].calc.results["forces"][1, 1] = np.nan
    del images[3].calc.results["stress"]
    del images[4].calc.results["energy"]
    images[5].positions[0, 0] = np.inf
    result = survey(tmp_path, images)
    (nan,) = found(result, "error", "not_finite")
    assert nan.sources == ("train.xyz, frame 2",)
    (broken,) = found(result, "error", "broken")
    assert broken.sources == ("train.xyz, frame 5",)
    (energy,) = found(result, "error", "missing")
    assert energy.sources == ("train.xyz, frame 4",)
    assert "it has: config_type, forces, stress" in energy.sentence
    forces, stress = found(result, "note", "missing")
    assert forces.sources == ("train.xyz, frame 2",)
    assert stress.sources == ("train.xyz, frame 3",)
    assert len(result.frames) == 19
    with pytest.raises(InputError):
        read_frames(tmp_path / "train.xyz")  # training refuses what the check survives


def test_energies_with_few_digits():
    energies = -29943.0 + np.random.default_rng(0).normal(size=40)
    assert energy_step(energies) == 0.0
    assert energy_step(energies.astype(np.float32)) == pytest.approx(2.0**-9)
    assert energy_step(np.round(energies, 2)) == 0.01
    assert energy_step(np.round(energies, 6)) == 0.0


def test_real_data():
    """Lithium with clamped shears that lack stress, molecules, and surfaces."""
    lithium = check([DATA / "lithium_strained.xyz"])
    assert lithium.passed
    assert lithium.tests["stress"].slope == pytest.approx(1.0, abs=0.05)
    assert any("Mixed labels" in f.sentence for f in found(lithium, "note", "missing"))
    for name in ("acac.xyz", "silicon_surfaces.xyz"):
        assert check([DATA / name]).passed
    both = check([DATA / "acac.xyz", DATA / "acac_isolated_atoms.xyz"])
    assert not found(both, "warning", "outlier")
    free = check([DATA / "acac_isolated_atoms.xyz"])
    assert [f.check for f in free.findings] == ["isolated_atoms"]
    assert "reference energies, no training frames: H -13.5684" in free.findings[0].sentence


def test_command(tmp_path, healthy):
    images = scaled(healthy, "stress", -1.0)
    write(tmp_path / "a.xyz", images)
    paths = [str(tmp_path / n) for n in ("a.xyz", "out.png", "out.json")]
    run = CliRunner().invoke(
        app, ["data", "check", paths[0], "--plot", paths[1], "--json", paths[2]]
    )
    assert run.exit_code == 1
    assert "wrong sign" in run.output
    assert "FAIL: 1 error" in run.output
    document = json.loads(Path(paths[2]).read_text())
    assert not document["passed"]
    assert document["slopes"]["stress"]["slope"] == pytest.approx(-1.0, abs=0.05)
    assert document["findings"][0]["level"] == "error"
    assert Path(paths[1]).read_bytes().startswith(b"\x89PNG")
    write(tmp_path / "a.xyz", healthy)
    assert CliRunner().invoke(app, ["data", "check", paths[0]]).exit_code == 0
    missing = CliRunner().invoke(app, ["data", "check", str(tmp_path / "no.xyz")])
    assert isinstance(missing.exception, InputError)


@pytest.mark.parametrize("kind", ["nothing readable", "molecules", "one frame"])
def test_the_picture_can_always_be_drawn(tmp_path, healthy, kind):
    from eqcalc.data.check_plot import draw

    if kind == "nothing readable":
        images = copies(healthy[:1])
        images[0].positions[:] = np.nan
        result = survey(tmp_path, images)
        assert not result.passed
    elif kind == "molecules":
        result = check([DATA / "acac.xyz", DATA / "acac_isolated_atoms.xyz"])
    else:
        result = survey(tmp_path, healthy[:1])
    draw(result).savefig(tmp_path / "a.png")
    assert str(result)
