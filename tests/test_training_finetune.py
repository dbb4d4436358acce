"""Fine-tuning: nothing is lost at the start, frozen stays frozen, new elements and labels learn."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.io import read, write
from runs import MODEL, history, tiny, train_in_pieces, weights, write_frames

from eqcalc import EquivariantCalculator, export
from eqcalc.contract import set_precision
from eqcalc.data.dataset import Batch, FrameDataset
from eqcalc.data.frames import read_frames
from eqcalc.errors import InputError
from eqcalc.importers import import_model
from eqcalc.training.finetune import read_source, species_tables
from eqcalc.training.folder import load_run
from eqcalc.training.prepare import prepare
from eqcalc.training.run import train
from eqcalc.training.task import predict

SEVENNET = Path(__file__).parent / "data" / "sevennet"


@pytest.fixture(autouse=True, scope="module")
def nothing_is_crowded():
    """What training starts from is compared with its source on frames that the latter lacks."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("eqcalc.nn.crowding.CROWDED", (1e6, 2e6))
        patched.setattr("eqcalc.nn.crowding.CLOSE", (1e-6, 2e-6))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, str]:
    """The original's elements, one that comes between them, and one before them alone."""
    folder = tmp_path_factory.mktemp("data")
    return {
        "LiO": write_frames(folder / "lio.xyz", 12, symbols="LiO"),
        "LiCO": write_frames(folder / "lico.xyz", 12, symbols="LiCO", seed=3),
        "Li": write_frames(folder / "li.xyz", 8, symbols="Li", seed=4),
    }


@pytest.fixture(scope="module")
def original(data, tmp_path_factory):
    """A trained run of Li and O."""
    out = tmp_path_factory.mktemp("runs") / "original"
    train(tiny(data["LiO"], epochs=3), out, quiet=True)
    return out


def predictions(model, path):
    items = FrameDataset(read_frames(path), model.atomic_numbers, model.cutoff).items
    return predict(model, Batch.collate(items))


def fine_tuning(frames, source, *, freeze=(), refit=False, **options):
    section = {"model": str(source), "freeze": list(freeze), "refit_energies": refit}
    return tiny(frames, fine_tune=section, **options)


@pytest.mark.parametrize("kind", ["export", "run"])
def test_products_and_alike_species_are_carried_over(data, tmp_path, kind):
    """Through training on the kernels, the file, a new element and training again."""
    options = {"product_channels": 3, "product_l_max": 1, "species_correlation": 0.5}
    first = tiny(data["LiO"], epochs=2, model=options, fused=True)
    train(first, tmp_path / "first", quiet=True)
    source = {"export": "model.pth", "run": ""}[kind]
    config = fine_tuning(data["LiCO"], tmp_path / "first" / source, epochs=1)
    prepared = prepare(config)
    expected = predictions(load_run(tmp_path / "first")[1], data["LiO"])
    got = predictions(prepared.model, data["LiO"])
    assert torch.allclose(got.forces, expected.forces, atol=1e-5)
    train(config, tmp_path / "second", quiet=True)
    calc = EquivariantCalculator(
        tmp_path / "second" / "model.pth", engine="fused", on_domain_exit="ignore"
    )
    assert calc.potential.metadata["hyperparameters"].items() >= options.items()


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "schedule_free"])
def test_isolated_atoms_keep_their_energy(data, tmp_path, optimizer):
    """Whatever training does, and for an element that comes later."""
    known = {"Li": -1.5, "O": -3.5}
    first = tiny(
        data["LiO"],
        epochs=2,
        model={"exact_isolated_atoms": True},
        data={"reference_energies": known},
        optimizer=optimizer,
        weight_decay=0.1,
    )
    train(first, tmp_path / "first", quiet=True)
    second = fine_tuning(
        data["LiCO"],
        tmp_path / "first" / "model.pth",
        epochs=2,
        data={"reference_energies": {"C": -2.5}},
        optimizer=optimizer,
    )
    train(second, tmp_path / "second", quiet=True)
    for folder, energies in (("first", known), ("second", known | {"C": -2.5})):
        for engine in ("fused", "exact", "torch"):
            calc = EquivariantCalculator(
                tmp_path / folder / "model.pth", engine=engine, on_domain_exit="ignore"
            )
            for symbol, energy in energies.items():
                found = calc.get_potential_energy(Atoms(symbol, [[0.0, 0.0, 0.0]]))
                assert found == pytest.approx(energy, abs=1e-12)
            assert calc.get_potential_energy(Atoms("LiO", [[0, 0, 0], [0, 0, 1.9]])) != sum(
                known.values()
            )
    with pytest.raises(InputError, match="energy of an isolated atom of C: give"):
        prepare(fine_tuning(data["LiCO"], tmp_path / "first"))
    with pytest.raises(InputError, match="energy of an isolated atom of Li, O: give"):
        prepare(tiny(data["LiO"], model={"exact_isolated_atoms": True}))


def test_cohesive_energies(tmp_path):
    """An isolated atom lies above the most stable frame of its element alone."""
    for symbols, count in (("Li", 5), ("C", 6), ("LiC", 4)):
        write_frames(tmp_path / f"{symbols}.xyz", count, symbols=symbols)
    files = [str(tmp_path / f"{symbols}.xyz") for symbols in ("Li", "C", "LiC")]

    def references(**options):
        config = tiny(files[0], data={"train": files, **options})
        prepared = prepare(config)
        numbers = prepared.setup.constants.atomic_numbers
        return dict(zip(numbers, prepared.setup.constants.shift, strict=True)), prepared

    found, prepared = references(cohesive_energies="experimental")
    frames = prepared.train.frames
    for z, cohesive in ((3, 1.63), (6, 7.37)):
        alone = [f.energy / len(f.atoms) for f in frames if set(f.atoms.numbers) == {z}]
        assert len(alone) >= 2
        assert found[z] == pytest.approx(min(alone) + cohesive, abs=1e-9)
    given, _ = references(cohesive_energies={"C": 1.0}, reference_energies={"Li": -7.0})
    assert given == pytest.approx({3: -7.0, 6: found[6] - 6.37}, abs=1e-9)
    wrong = [str(tmp_path / "LiC.xyz")]
    for options, sentence in (
        ({"train": wrong, "cohesive_energies": "experimental"}, "Li has no training frame of its"),
        ({"cohesive_energies": {"Lithium": 1.6}}, "names 'Lithium': not a chemical symbol"),
        ({"cohesive_energies": "measured"}, "must be a table of eV per atom or"),
    ):
        with pytest.raises(InputError, match=sentence):
            references(**options)
    write_frames(tmp_path / "LiO.xyz", 6, symbols="O")
    with pytest.raises(InputError, match="O has no measured cohesive energy"):
        prepare(tiny(str(tmp_path / "LiO.xyz"), data={"cohesive_energies": "experimental"}))


@pytest.mark.parametrize("kind", ["export", "run", "checkpoint"])
@pytest.mark.parametrize("elements", ["LiO", "LiCO", "Li"])
def test_it_starts_as_the_original(data, original, kind, elements):
    source = {"export": "model.pth", "run": "", "checkpoint": "best.ckpt"}[kind]
    prepared = prepare(fine_tuning(data[elements], original / source))
    assert prepared.model.atomic_numbers == ([3, 6, 8] if elements == "LiCO" else [3, 8])
    expected = predictions(load_run(original)[1], data["LiO"])
    got = predictions(prepared.model, data["LiO"])
    assert torch.allclose(got.energy, expected.energy, rtol=0, atol=1e-5)
    assert torch.allclose(got.forces, expected.forces, rtol=0, atol=1e-5)
    assert (expected.forces.abs() > 0.01).any(), "forces that are zero prove nothing"


def test_in_float64_it_starts_exactly_as_the_original(data, original):
    model = set_precision(load_run(original)[1], torch.float64)
    got = prepare(fine_tuning(data["LiCO"], original / "model.pth", precision="float64")).model
    before, after = predictions(model, data["LiO"]), predictions(got, data["LiO"])
    assert (before.forces - after.forces).abs().max() < 1e-12
    assert (before.energy - after.energy).abs().max() < 1e-11


def test_a_new_element_begins_as_the_mean(data, original):
    source = read_source(str(original))
    model = prepare(fine_tuning(data["LiCO"], original)).model
    assert model.atomic_numbers == [3, 6, 8]
    shapes = {name: p.shape for name, p in model.named_parameters()}
    tables = [name for name in shapes if shapes[name] != source.weights[name].shape]
    assert tables == species_tables(model)
    assert len(tables) == 3
    for name in tables:
        table, old = dict(model.named_parameters())[name], source.weights[name]
        assert torch.equal(table[[0, 2]], old)
        assert torch.allclose(table[1], old.mean(dim=0))
    # its reference energy takes up, in the mean, what the others leave: normal equation
    model = prepare(fine_tuning(data["LiCO"], original, data={"val": [data["LiO"]]})).model
    frames = read_frames(data["LiCO"])
    carbon = np.array([(f.atoms.numbers == 6).sum() for f in frames])
    size = np.array([len(f.atoms) for f in frames])
    left = np.array([f.energy for f in frames]) - predictions(model, data["LiCO"]).energy.numpy()
    assert abs(left @ (carbon / size**2)) < 1e-4
    assert np.abs(left).max() > 1e-2


@pytest.mark.parametrize("fused", [False, True])
def test_frozen_stays_and_the_new_element_learns(data, original, tmp_path, fused):
    config = fine_tuning(
        data["LiCO"], original, freeze=["layers.0.*", "layers.1.radial*"], fused=fused
    )  # radial networks were called that once
    start = {name: p.detach().clone() for name, p in prepare(config).model.named_parameters()}
    train(config, tmp_path, quiet=True)
    averaged = dict(load_run(tmp_path)[1].named_parameters())
    for name, before in start.items():
        frozen = name.startswith(("layers.0.", "layers.1.r_")) or not before.numel()
        assert torch.equal(weights(tmp_path)[f"model.{name}"], before) == frozen, name
        assert torch.equal(averaged[name], before) == frozen, name
    moved = (weights(tmp_path)["model.species_embedding"] - start["species_embedding"]).abs()
    assert (moved.amax(dim=1) > 1e-4).all()  # of all three elements
    assert export.load(tmp_path / "model.pth").symbols == ["Li", "C", "O"]


def without_crowding(source):
    """New frames may be more crowded."""
    return replace(source.constants, crowding=None)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "schedule_free"])
def test_elements_without_data_are_kept(data, original, tmp_path, optimizer):
    config = fine_tuning(data["Li"], original, weight_decay=1.0, optimizer=optimizer)
    train(config, tmp_path, quiet=True)
    old, new = read_source(str(original)), read_source(str(tmp_path))
    assert without_crowding(new) == without_crowding(old)
    for name in ("species_embedding", "layers.0.own_0.weight"):
        assert torch.equal(new.weights[name][1], old.weights[name][1])
        assert not torch.equal(new.weights[name][0], old.weights[name][0])


def test_resumes(data, original, tmp_path, monkeypatch):
    config = fine_tuning(data["LiCO"], original, refit=True)
    train(config, tmp_path / "whole", quiet=True)
    train_in_pieces(config, tmp_path / "pieces", monkeypatch)
    assert history(tmp_path / "whole") == history(tmp_path / "pieces")
    written = json.loads((tmp_path / "whole" / "config.json").read_text())["model"]
    assert {key: written[key] for key in MODEL} == MODEL


def test_energies_of_another_method(data, original, tmp_path):
    """The same forces, energies moved by 5 and -3 eV per atom: refitting finds the difference."""
    frames = read(data["LiO"], ":")
    model = load_run(original)[1]
    energies = predictions(model, data["LiO"]).energy.tolist()
    for atoms, energy in zip(frames, energies, strict=True):
        counts = [(atoms.numbers == z).sum() for z in (3, 8)]
        atoms.calc.results["energy"] = energy + 5.0 * counts[0] - 3.0 * counts[1]
    write(tmp_path / "moved.xyz", frames, format="extxyz")
    moved = str(tmp_path / "moved.xyz")
    old = read_source(str(original)).constants.shift
    assert prepare(fine_tuning(moved, original)).setup.constants.shift == old
    new = prepare(fine_tuning(moved, original, refit=True)).setup.constants.shift
    assert np.subtract(new, old) == pytest.approx([5.0, -3.0], abs=1e-4)
    given = {"reference_energies": {"Li": -7.0}}
    new = prepare(fine_tuning(moved, original, data=given)).setup.constants.shift
    assert new == [-7.0, old[1]]


def test_what_is_wrong_is_said(data, original, tmp_path, potential_path):
    with pytest.raises(InputError, match=r"model\.cutoff = 3\.5, but .* has 4\.0"):
        prepare(fine_tuning(data["LiO"], original, model={"cutoff": 3.5}))
    # the default, when it is written down, is a conflict, too
    with pytest.raises(InputError, match=r"model\.cutoff = 5\.0, but .* has 4\.0"):
        prepare(fine_tuning(data["LiO"], original, model={"cutoff": 5.0}))
    prepare(fine_tuning(data["LiO"], original, model={"cutoff": 4.0}))
    with pytest.raises(InputError, match=r"called 'layer\.0\.\*'; the nearest are layers\.0\."):
        prepare(fine_tuning(data["LiO"], original, freeze=["layer.0.*"]))
    with pytest.raises(InputError, match="leaves nothing to train"):
        train(fine_tuning(data["LiO"], original, freeze=["*"]), tmp_path / "x", quiet=True)
    with pytest.raises(InputError, match="does not say its hyperparameters"):
        prepare(fine_tuning(data["LiO"], potential_path))
    with pytest.raises(InputError, match="no model file 'nowhere'"):
        prepare(fine_tuning(data["LiO"], "nowhere"))
    with pytest.raises(InputError, match=r"need a fine_tune\.model"):
        tiny(data["LiO"], fine_tune={"freeze": ["layers.0.*"]})


def test_the_bundled_model_of_one_element_learns_a_second(tmp_path):
    oxide = write_frames(tmp_path / "sio.xyz", 6, symbols="SiO")
    prepared = prepare(tiny(oxide, fine_tune={"model": "si"}, precision="float64"))
    assert prepared.model.atomic_numbers == [8, 14]
    crystal = bulk("Si", cubic=True)
    crystal.rattle(0.1, seed=0)
    crystal.calc = EquivariantCalculator("si", dtype="float64", engine="torch")
    crystal.get_stress()
    write(tmp_path / "si.xyz", crystal, format="extxyz")
    got = predictions(prepared.model, tmp_path / "si.xyz")
    # positions in the file have eight digits
    assert float(got.energy) == pytest.approx(crystal.get_potential_energy(), abs=1e-6)
    assert np.abs(got.forces.numpy() - crystal.get_forces()).max() < 1e-6
    assert np.abs(crystal.get_forces()).max() > 0.1


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """O, Si and Cu, without parity, linear readout, weights in float64."""
    path = tmp_path_factory.mktemp("imported") / "imported.pth"
    return import_model(SEVENNET / "so3.pth", path, dtype="float64").path


@pytest.fixture(scope="module")
def oxide(tmp_path_factory):
    return write_frames(tmp_path_factory.mktemp("oxide") / "sio.xyz", 12, symbols="SiO")


def imported_predictions(imported, path):
    found = EquivariantCalculator(imported, engine="torch").evaluate(read(path, ":"))
    return [r["energy"] for r in found], np.concatenate([r["forces"] for r in found])


@pytest.mark.parametrize("drop", [False, True])
def test_an_imported_model_is_where_training_begins(imported, oxide, drop):
    """With all its elements or those of the data; nothing fades and nothing is added."""
    section = {"model": str(imported), "drop_elements": drop}
    prepared = prepare(tiny(oxide, fine_tune=section, precision="float64"))
    assert prepared.model.atomic_numbers == ([8, 14] if drop else [8, 14, 29])
    assert not prepared.config.model.pair_potential
    assert not prepared.config.model.crowding_limit
    got = predictions(prepared.model, oxide)
    energies, forces = imported_predictions(imported, oxide)
    assert np.abs(got.energy.numpy() - energies).max() < 1e-9
    assert np.abs(got.forces.numpy() - forces).max() < 1e-9


def test_elements_that_nothing_is_left_of(imported, data):
    section = {"model": str(imported), "drop_elements": True}
    prepared = prepare(tiny(data["LiO"], fine_tune=section))
    assert prepared.model.atomic_numbers == [3, 8]
    with pytest.raises(InputError, match="knows none of the elements of the data"):
        prepare(tiny(data["Li"], fine_tune=section))


def test_an_imported_model_is_fine_tuned(imported, oxide, tmp_path):
    """Energies of another method are fitted; the export says what it was made from."""
    fine_tune = {"model": str(imported), "refit_energies": True, "drop_elements": True}
    options = {"epochs": 6, "precision": "float64", "learning_rate": 2e-2}
    prepared = prepare(tiny(oxide, fine_tune=fine_tune, **options))
    left = predictions(prepared.model, oxide).energy.numpy()
    left = [e - f.energy for e, f in zip(left, read_frames(oxide), strict=True)]
    assert np.abs(left).max() < 5.0  # reference energies of the import are 7 eV per atom off
    train(tiny(oxide, fine_tune=fine_tune, **options), tmp_path, quiet=True)
    losses = [float(row[1]) for row in history(tmp_path)[1:]]
    assert min(losses) < 0.8 * losses[0]
    origin = export.read_metadata(tmp_path / "model.pth")["origin"]
    assert origin["source"] == "so3.pth"
    assert origin["changed"] == "fine-tuned since"
    again = prepare(tiny(oxide, fine_tune={"model": str(tmp_path)}))
    assert again.setup.origin["source"] == "so3.pth"
