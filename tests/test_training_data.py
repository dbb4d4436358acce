"""What training does with labels: names of its options, files, free atoms, units it refuses."""

import json

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import fcc100
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from runs import MODEL, tiny, write_frames
from typer.testing import CliRunner

from eqcalc.calculator import EquivariantCalculator
from eqcalc.cli import app
from eqcalc.data.check import check
from eqcalc.data.frames import read_frames
from eqcalc.data.store import pack
from eqcalc.errors import InputError
from eqcalc.training.config import from_dict
from eqcalc.training.evaluate import evaluate_results, evaluate_store
from eqcalc.training.prepare import prepare
from eqcalc.training.run import train


def prepared(*files, **data):
    """A network of a few hundred parameters, before its first step."""
    return prepare(from_dict({"data": {"train": [*map(str, files)], **data}, "model": MODEL}))


def renamed(path, target, **names) -> str:
    """The frames of a file with labels under other names."""
    images = read(path, ":")
    for atoms in images:
        results = atoms.calc.results
        atoms.calc = None
        for label, name in names.items():
            place = atoms.arrays if label == "forces" else atoms.info
            place[name] = results[label]
    write(target, images)
    return str(target)


def test_command_takes_several_files_and_names_of_labels(tmp_path):
    plain = [write_frames(tmp_path / f"{n}.xyz", 4, seed=n) for n in range(2)]
    names = {"energy": "REF_energy", "forces": "dft_force"}
    files = [renamed(path, tmp_path / f"r{n}.xyz", **names) for n, path in enumerate(plain)]
    options = [f"--set=model.{key}={json.dumps(value)}" for key, value in MODEL.items()]
    options += ["--set=training.epochs=1", "--set=training.fused=false", "--set=training.threads=1"]
    run = CliRunner().invoke(
        app,
        [
            "train",
            *files,
            *("--energy-key", "REF_energy", "--forces-key", "dft_force"),
            *("--out", str(tmp_path / "run")),
            *options,
        ],
    )
    assert run.exit_code == 0, run.output
    setup = json.loads((tmp_path / "run" / "setup.json").read_text())
    assert setup["train_frames"] + setup["val_frames"] == 8
    assert setup["train_hash"] == prepared(*plain).setup.train_hash
    config = tmp_path / "c.toml"
    config.write_text("")
    mixed = CliRunner().invoke(app, ["train", str(config), *files])
    assert isinstance(mixed.exception, InputError)
    assert "is a config, which stands alone" in str(mixed.exception)


def test_labels_that_are_not_read_are_named(tmp_path):
    """Without forces a training would go on in silence with the energies alone."""
    path = renamed(
        write_frames(tmp_path / "a.xyz", 4), tmp_path / "b.xyz", energy="energy", forces="force"
    )
    sentence = r"but 'force', which is not read: .* --forces-key force"
    with pytest.warns(UserWarning, match=sentence) as told:
        prepared(path)
    assert any(str(w.message).startswith("No training frame has forces") for w in told)
    with pytest.raises(InputError, match=r"No frame has stress under the key 'dft_stress'"):
        prepared(path, stress_key="dft_stress", forces_key="force")


def atom(symbol: str, energy: float, config_type="IsolatedAtom") -> Atoms:
    """Alone in a box, as files for GAP and MACE have it."""
    one = Atoms(symbol, cell=[15.0, 15.0, 15.0])
    one.info.update(energy=energy, config_type=config_type)
    return one


@pytest.fixture
def with_atoms(tmp_path):
    """Writes molecules of Li and H with these frames in front, and returns the file."""
    molecules = read(write_frames(tmp_path / "m.xyz", 8), ":")

    def write_file(*atoms, name="a.xyz"):
        write(tmp_path / name, [*atoms, *molecules], format="extxyz")
        return tmp_path / name

    return write_file


@pytest.mark.parametrize("name", ["IsolatedAtom", "isolatedatom", "ISOLATED_ATOM"])
@pytest.mark.parametrize("packed", [False, True])
def test_isolated_atoms_are_reference_energies(with_atoms, tmp_path, name, packed):
    path = with_atoms(atom("Li", -0.5, name), atom("H", -12.25, name))
    plain = prepared(tmp_path / "m.xyz", reference_energies={"Li": -0.5, "H": -12.25})
    if packed:
        pack(path, tmp_path / "a.eqdata", 4.0)
        path = tmp_path / "a.eqdata"
    sentence = (
        r"reference energies, no training frames: (Li -0\.5 eV \(a\.xyz, frame 0\), "
        r"H -12\.25 eV \(a\.xyz, frame 1\))\."
    )
    with pytest.warns(UserWarning, match=sentence):
        made = prepared(path)
    documents = made.setup.to_dict(), plain.setup.to_dict()
    for key in ("atomic_numbers", "reference_energies", "train_frames", "val_frames"):
        assert documents[0][key] == documents[1][key]
    assert made.setup.constants.shift == [-12.25, -0.5]
    assert set(made.train.config_types()) == {"molecule"}
    for n in range(len(plain.train)):
        assert torch.equal(made.train[n].energy, plain.train[n].energy)


def test_isolated_atoms_of_validation_files_count_too(with_atoms, tmp_path):
    val = with_atoms(atom("Li", -0.5), name="v.xyz")
    with pytest.warns(UserWarning, match=r"training frames: Li -0\.5 eV \(v\.xyz, frame 0\)"):
        made = prepared(tmp_path / "m.xyz", val=[str(val)])
    assert made.setup.val_frames == 8
    assert made.setup.constants.shift[1] == -0.5


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_isolated_atoms_of_all_elements_are_exact_unless_told_otherwise(with_atoms, tmp_path):
    def alone(made):
        """eV of a lithium atom and of a hydrogen atom without neighbours, none of them trained."""
        edges = torch.zeros(0, 3), *torch.zeros(2, 0, dtype=torch.int64)
        return made.model(torch.tensor([1, 0]), *edges, 2).tolist()

    def of(document):
        return prepare(from_dict({"data": {"train": [str(path)]}, "model": MODEL | document}))

    path = with_atoms(atom("Li", -0.5), atom("H", -12.25))
    assert alone(of({})) == pytest.approx([-0.5, -12.25], abs=1e-6)
    assert of({}).config.model.exact_isolated_atoms
    for made in (of({"exact_isolated_atoms": False}), prepared(tmp_path / "m.xyz")):
        assert not made.config.model.exact_isolated_atoms
    assert alone(of({"exact_isolated_atoms": False}))[0] != pytest.approx(-0.5, abs=1e-4)
    path = with_atoms(atom("Li", -0.5))
    assert not of({}).config.model.exact_isolated_atoms


def test_energies_of_one_isolated_atom_have_an_order(with_atoms, tmp_path):
    """data.reference_energies, data.isolated_atoms, frames called IsolatedAtom."""
    path = with_atoms(atom("Li", -0.5), atom("H", -12.25))
    write(tmp_path / "i.xyz", [atom("Li", -0.6, "any"), atom("H", -12.25, "any")])
    isolated = {"isolated_atoms": str(tmp_path / "i.xyz")}
    with pytest.warns(UserWarning, match=r"data\.isolated_atoms has -0\.6 eV and comes first"):
        made = prepared(path, **isolated)
    assert made.setup.constants.shift == [-12.25, -0.6]
    given = {"reference_energies": {"Li": -0.7}}
    with pytest.warns(UserWarning, match=r"data\.reference_energies has -0\.7 eV and comes first"):
        made = prepared(path, **isolated, **given)
    assert made.setup.constants.shift == [-12.25, -0.7]
    twice = with_atoms(atom("Li", -0.5), atom("Li", -0.9))
    with pytest.raises(InputError, match=r"Two energies of an isolated atom of Li: -0\.5 eV in"):
        prepared(twice)
    molecule = read(tmp_path / "m.xyz", 0)
    molecule.info["config_type"] = "IsolatedAtom"
    with pytest.raises(InputError, match="has the config_type IsolatedAtom and 4 atoms"):
        prepared(with_atoms(molecule))


def test_free_atoms_of_another_name_are_pointed_at(with_atoms):
    path = with_atoms(*[atom("Li", -0.5, "molecule")] * 8)
    with pytest.warns(UserWarning, match=r"one free atom \(first a\.xyz.*data\.isolated_atoms"):
        prepared(path)
    result = check([path])
    (finding,) = [f for f in result.findings if f.check == "lone_atoms"]
    assert finding.level == "warning"
    assert "data.isolated_atoms" in finding.sentence


def test_the_file_of_isolated_atoms_needs_no_forces(tmp_path):
    """Labels of the frames may have names of their own."""
    names = {"energy": "REF_energy", "forces": "REF_forces"}
    path = renamed(write_frames(tmp_path / "m.xyz", 8), tmp_path / "a.xyz", **names)
    atoms = [atom("Li", -0.5), atom("H", -12.25)]
    for one in atoms:
        one.info["REF_energy"] = one.info.pop("energy")
    write(tmp_path / "i.xyz", atoms)
    keys = {f"{label}_key": name for label, name in names.items()}
    made = prepared(path, isolated_atoms=str(tmp_path / "i.xyz"), **keys)
    assert made.setup.constants.shift == [-12.25, -0.5]


def slabs(number: int, seed: int) -> list[Atoms]:
    """Two layers of aluminium, hot and strained in plane, labelled by ASE's EMT."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(number):
        atoms = fcc100("Al", size=(1, 1, 2), vacuum=5.0)
        atoms.info.clear()
        strain = np.eye(3)
        strain[:2, :2] += rng.normal(scale=0.02, size=(2, 2))
        atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        atoms.rattle(0.05, rng=rng)
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.pbc = True  # for EMT; it is too far to the next image
        atoms.calc = EMT()
        stress = atoms.get_stress()
        atoms.pbc = [True, True, False]
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces, stress=stress)
        images.append(atoms)
    return images


def test_stress_of_slabs_in_training_checks_and_ase(tmp_path):
    """One meaning everywhere: dE/d(strain) over the volume of the cell, vacuum included."""
    write(tmp_path / "a.xyz", slabs(20, seed=1))
    result = check([tmp_path / "a.xyz"])
    assert result.passed
    assert len(result.tests["stress"].work) >= 6
    assert result.tests["stress"].slope == pytest.approx(1.0, abs=0.05)
    summary = train(tiny(str(tmp_path / "a.xyz"), epochs=1), tmp_path / "run", quiet=True)
    trained = summary["errors"]["validation"]["all"]["stress"]
    assert trained["count"] == 5 * 6
    pack(tmp_path / "a.xyz", tmp_path / "a.eqdata", 4.0)
    model = tmp_path / "run" / "model.pth"
    packed = evaluate_store(model, tmp_path / "a.eqdata").summary()["all"]["stress"]
    frames = read_frames(tmp_path / "a.xyz")
    calculator = EquivariantCalculator(model, engine="torch")
    results = calculator.evaluate(f.atoms for f in frames)
    ase = evaluate_results(frames, results).summary()["all"]["stress"]
    assert ase["count"] == packed["count"] == 20 * 6
    assert ase["rmse"] == pytest.approx(packed["rmse"], rel=1e-5)
    every = [summary["errors"][part]["all"]["stress"] for part in ("train", "validation")]
    together = sum(part["rmse"] ** 2 * part["count"] for part in every) / (20 * 6)
    assert ase["rmse"] == pytest.approx(np.sqrt(together), rel=1e-5)
