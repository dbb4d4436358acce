"""Training on outputs beside the energy: labels, loss, errors, files, resumption, fine-tuning."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.io import read, write
from runs import checkpoint, column, history, tiny, train_and_kill, weights, write_frames
from typer.testing import CliRunner

from eqcalc import EquivariantCalculator, export
from eqcalc.cli import app
from eqcalc.data.dataset import Batch
from eqcalc.errors import InputError
from eqcalc.outputs import OutputConfig
from eqcalc.training.config import from_dict, parse_value
from eqcalc.training.loss import component_weights, residuals
from eqcalc.training.prepare import prepare
from eqcalc.training.run import train
from eqcalc.training.task import make_loss, predict
from eqcalc.training.template import to_toml

CHARGES = {1: 0.3, 3: -0.2}
OUTPUTS = [
    {"name": "dipole", "key": "mu"},
    {"name": "polarizability", "key": "alpha"},
    {"name": "charges", "key": "q"},
    "direct_forces",
]
WIDE = {"outputs": OUTPUTS, "l_max": 2, "num_channels": [6, 4, 3]}


def labelled(path, count=12, *, energy=True, **info):
    """Frames with a dipole, a tensor and charges that follow from their positions; of the first
    one the dipole is unknown.
    """
    frames = read(write_frames(path, count, **info), ":")
    for n, atoms in enumerate(frames):
        charges = np.array([CHARGES[z] for z in atoms.numbers])
        charges -= charges.mean()
        arms = atoms.positions - atoms.positions.mean(axis=0)
        if n:
            atoms.info["mu"] = charges @ arms
        atoms.info["alpha"] = arms.T @ arms
        atoms.arrays["q"] = charges
        if energy:
            atoms.info["energy"] = atoms.get_potential_energy()
            atoms.arrays["forces"] = atoms.get_forces()
        atoms.calc = None
    write(path, frames, format="extxyz")
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two epochs with every kind of output, fused kernels off."""
    folder = tmp_path_factory.mktemp("outputs")
    config = tiny(labelled(folder / "frames.xyz"), model=WIDE, epochs=2)
    train(config, folder / "run", quiet=True)
    return folder


def test_labels_become_rows_and_missing_ones_do_not_count(tmp_path):
    config = tiny(labelled(tmp_path / "frames.xyz"), data={"val_fraction": 0.1}, model=WIDE)
    prepared = prepare(config)
    frames = [frame for frame in prepared.train.frames if "dipole" in frame.outputs]
    assert len(frames) == len(prepared.train) - 1
    batch = Batch.collate(list(prepared.train))
    count, atoms = len(batch.index), int(batch.num_atoms.sum())
    assert batch.structure_outputs["dipole"].shape == (count, 3)
    assert batch.atom_outputs["charges"].shape == (atoms, 1)
    assert torch.equal(batch.atom_outputs["direct_forces"], batch.forces)
    difference = residuals(predict(prepared.model, batch), batch)
    sizes = {name: values.numel() for name, values in difference.items()}
    assert sizes["dipole"] == 3 * (count - 1)
    assert sizes["polarizability"] == 6 * count
    assert sizes["direct_forces"] == sizes["forces"] == 3 * atoms
    assert component_weights(batch) is None
    heavier = replace(batch, weight=torch.arange(count, dtype=torch.float64))
    scales = component_weights(heavier)
    assert {name: len(values) for name, values in scales.items()} == sizes


def test_scales_shifts_and_loss_are_those_of_the_labels(tmp_path):
    prepared = prepare(tiny(labelled(tmp_path / "frames.xyz"), model=WIDE, loss="mse"))
    constants = prepared.model.output_constants()
    batch = Batch.collate(list(prepared.train))
    dipole = batch.structure_outputs["dipole"]
    dipole = dipole[torch.isfinite(dipole).all(dim=1)]
    assert constants.rms[0] == pytest.approx(float(dipole.square().mean().sqrt()), rel=1e-5)
    shift = np.array(constants.shift)
    assert not shift[:, :3].any()  # a vector has none
    charges = shift[:, 9]  # behind three columns of the dipole and six of the tensor
    q, species = batch.atom_outputs["charges"][:, 0].numpy(), batch.graph.species.numpy()
    assert charges == pytest.approx([q[species == s].mean() for s in (0, 1)], rel=1e-5)
    loss = make_loss(prepared.model, prepared.config.training)
    difference = residuals(predict(prepared.model, batch), batch)
    only = {"dipole": difference["dipole"]}
    expected = float(difference["dipole"].square().mean()) / constants.rms[0] ** 2
    assert float(loss(only)) == pytest.approx(expected)


def test_a_run_gives_errors_a_file_and_ase(run):
    summary = json.loads((run / "run" / "summary.json").read_text())
    errors = summary["errors"]["validation"]["all"]
    assert {"energy", "forces", "dipole", "polarizability", "charges"} <= errors.keys()
    assert errors["dipole"]["unit"] == "e*Å"
    assert errors["dipole"]["mae"] == pytest.approx(column(run / "run", "val_dipole_mae")[-1])
    path = run / "run" / "model.pth"
    metadata = export.read_metadata(path)
    assert [output["name"] for output in metadata["outputs"]][:2] == ["dipole", "polarizability"]
    said = CliRunner().invoke(app, ["info", str(path)]).output
    assert "output polarizability" in said
    assert "0e+2e per structure, Å^3" in said
    atoms = read(run / "frames.xyz")
    atoms.calc = EquivariantCalculator(path, engine="torch", on_domain_exit="ignore")
    assert atoms.get_dipole_moment().shape == (3,)
    tensor = atoms.calc.get_property("polarizability", atoms)
    assert np.allclose(tensor, tensor.T)
    for name in ("learning_curve.png", "parity.png"):
        assert (run / "run" / name).stat().st_size > 10_000


def test_evaluate_has_the_errors_of_training(run, tmp_path):
    path, frames = run / "run" / "model.pth", run / "frames.xyz"
    errors, predicted = tmp_path / "errors.json", tmp_path / "predicted.xyz"
    command = ["evaluate", str(path), str(frames), "-o", str(errors), "--engine", "torch"]
    done = CliRunner().invoke(app, [*command, "--predictions", str(predicted)])
    assert done.exit_code == 0, done.output
    assert "dipole e*Å" in done.output
    found = json.loads(errors.read_text())["all"]
    summary = json.loads((run / "run" / "summary.json").read_text())["errors"]
    parts = [summary[name]["all"]["dipole"] for name in ("train", "validation")]
    mean = sum(p["mae"] * p["count"] for p in parts) / sum(p["count"] for p in parts)
    assert found["dipole"]["mae"] == pytest.approx(mean, rel=1e-4)
    images = read(predicted, ":")
    label, value = (np.array([a.info[key] for a in images[1:]]) for key in ("mu", "eqcalc_dipole"))
    assert np.abs(label - value).mean() == pytest.approx(found["dipole"]["mae"], rel=1e-4)
    assert images[0].info["eqcalc_polarizability"].shape == (3, 3)
    assert images[0].arrays["eqcalc_charges"].shape == (len(images[0]),)


def test_a_killed_run_goes_on_to_the_same_weights(run, tmp_path, monkeypatch):
    config = tiny(str(run / "frames.xyz"), model=WIDE, epochs=2)
    train_and_kill(config, tmp_path / "run", monkeypatch, kill_in=1)
    train(config, tmp_path / "run", quiet=True)
    for name, value in weights(run / "run").items():
        assert torch.equal(value, weights(tmp_path / "run")[name]), name
    assert checkpoint(tmp_path / "run")["epoch"] == 1


def test_fine_tuning_keeps_outputs_and_extends_their_shifts(run, tmp_path):
    frames = read(labelled(tmp_path / "frames.xyz", 6), ":")
    for atoms in frames:
        atoms.numbers[atoms.numbers == 3] = 11
    write(tmp_path / "sodium.xyz", frames, format="extxyz")
    path = run / "run" / "model.pth"
    prepared = prepare(tiny(str(tmp_path / "sodium.xyz"), fine_tune={"model": str(path)}))
    assert prepared.model.atomic_numbers == [1, 3, 11]
    old = export.load(path, dtype="float64").module.reference_outputs
    new = prepared.model.output_constants()
    assert new.scale == old.scale.tolist()
    assert new.shift[:2] == old.shift.tolist()
    assert new.shift[2] == pytest.approx(old.shift.mean(dim=0).tolist())
    before = prepare(tiny(str(run / "frames.xyz"), fine_tune={"model": str(path)}))
    batch = before.train[0]
    known = {}
    for model in (before.model, export.load(path).module):
        graph = batch.graph
        edges = graph.edge_vec, graph.edge_src, graph.edge_dst
        known[model] = model.outputs(graph.species, *edges, graph.num_atoms)[1]
    a, b = known.values()
    assert (a - b).abs().max() < 1e-5


def test_a_dipole_is_trained_without_energies(tmp_path):
    """The same with the fused kernels as without them, one by one: one frame has no label."""
    frames = labelled(tmp_path / "frames.xyz", energy=False)
    model = {"outputs": OUTPUTS[:1], "energy": False}
    options = {"epochs": 2, "batch_size": 1, "precision": "float64"}
    for fused in (False, True):
        config = tiny(frames, model=model, fused=fused, **options)
        train(config, tmp_path / str(fused), quiet=True)
    plain, fused = (column(tmp_path / name, "val_dipole_rmse") for name in ("False", "True"))
    assert plain == pytest.approx(fused, rel=1e-9)
    header = (tmp_path / "True" / "history.csv").read_text().splitlines()[0]
    assert "energy" not in header
    calc = EquivariantCalculator(tmp_path / "True" / "model.pth")
    assert calc.implemented_properties == ["dipole"]
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path / "True" / "model.pth"), frames])
    assert done.exit_code == 0, done.output
    assert "energy" not in done.output


def test_direct_forces_are_trained_without_a_gradient(tmp_path):
    """Where conservative forces do not count, training steps do not compute them."""
    model = {"outputs": ["direct_forces"]}
    options = {"force_weight": 0.0, "stress_weight": 0.0, "epochs": 1}
    train(tiny(labelled(tmp_path / "f.xyz"), model=model, **options), tmp_path / "run", quiet=True)
    header = (tmp_path / "run" / "history.csv").read_text().splitlines()[0].split(",")
    assert "train_direct_forces_mae" in header
    assert "train_forces_mae" not in header
    assert "val_forces_mae" in header


@pytest.mark.parametrize(
    ("outputs", "change", "sentence"),
    [
        (["dipole"], None, "No training frame has the output dipole under the key 'dipole'"),
        ([{"name": "dipole", "key": "mus"}], None, "did you mean 'mu'"),
        ([{"name": "dipole", "key": "alpha"}], None, r"shape 3 is expected, not \(3, 3\)"),
        ([{"name": "quadrupole", "key": "alpha"}], None, "has no trace, unlike this one"),
        ([{"name": "charges", "key": "mu"}], None, "shape atoms is expected"),
        ([{"name": "dipole", "key": "mu"}], np.nan, "'mu' is not a finite number"),
    ],
)
def test_wrong_labels_are_said_in_a_sentence(outputs, change, sentence, tmp_path):
    path = labelled(tmp_path / "frames.xyz", 4)
    if change is not None:
        frames = read(path, ":")
        frames[2].info["mu"] = np.full(3, change)
        write(path, frames, format="extxyz")
    with pytest.raises(InputError, match=sentence):
        prepare(tiny(path, model={"outputs": outputs, "l_max": 2, "num_channels": [4, 3, 2]}))


def test_dipoles_of_periodic_frames_are_pointed_at(tmp_path):
    path = labelled(tmp_path / "frames.xyz", 4)
    frames = read(path, ":")
    for atoms in frames:
        atoms.set_cell([20.0, 20.0, 20.0])
        atoms.pbc = (True, False, False)
    write(path, frames, format="extxyz")
    with pytest.warns(UserWarning, match="must be of one branch"):
        prepare(tiny(path, model={"outputs": OUTPUTS[:1]}))


def test_what_does_not_go_with_outputs_is_said():
    zero = {"energy_weight": 0.0, "force_weight": 0.0, "stress_weight": 0.0}
    model = {"outputs": [{"name": "dipole", "weight": 0.0}]}
    with pytest.raises(InputError, match="nor all zero"):
        from_dict({"model": model, "training": zero})
    from_dict({"model": {"outputs": ["dipole"]}, "training": zero})


def test_a_store_has_the_labels_that_a_config_names(tmp_path):
    """Packed for it, a run on the store is that on the frames, to the last bit."""
    frames = labelled(tmp_path / "frames.xyz")
    on_frames = tiny(frames, model=WIDE, epochs=1)
    (tmp_path / "train.toml").write_text(to_toml(on_frames))
    store, bare = tmp_path / "frames.eqdata", tmp_path / "bare.eqdata"
    for path, rest in (
        (store, ["--config", str(tmp_path / "train.toml")]),
        (bare, ["--cutoff", "4"]),
    ):
        packed = CliRunner().invoke(app, ["data", "pack", frames, "-o", str(path), *rest])
        assert packed.exit_code == 0, packed.output
    on_store = tiny(str(store), model=WIDE, epochs=1)
    a, b = prepare(on_frames), prepare(on_store)
    assert a.setup.constants == b.setup.constants
    for n in range(len(a.train)):
        of_frames, of_store = a.train[n], b.train[n]
        for kind in ("atom_outputs", "structure_outputs"):
            tables = getattr(of_frames, kind), getattr(of_store, kind)
            assert list(tables[0]) == list(tables[1])
            assert all(
                tables[0][k].numpy().tobytes() == v.numpy().tobytes() for k, v in tables[1].items()
            )
    train(on_frames, tmp_path / "of_frames", quiet=True)
    train(on_store, tmp_path / "of_store", quiet=True)
    assert history(tmp_path / "of_frames") == history(tmp_path / "of_store")
    with pytest.raises(
        InputError, match=r"has no labels of the output dipole \(1o per structure\)"
    ):
        prepare(tiny(str(bare), model={"outputs": OUTPUTS[:1]}))
    with pytest.raises(
        InputError, match="packed with key = 'mu' for the output dipole, here it is"
    ):
        prepare(tiny(str(store), model={"outputs": [{"name": "dipole", "key": "nu"}]}))
    (tmp_path / "other.toml").write_text(to_toml(tiny(frames, model={"outputs": ["quadrupole"]})))
    packed = ["data", "pack", frames, "-o", str(bare), "--config", str(tmp_path / "other.toml")]
    with pytest.raises(InputError, match="has the output quadrupole under the key 'quadrupole':"):
        CliRunner().invoke(app, packed, catch_exceptions=False)
    assert bare.is_dir()  # the former one


def test_outputs_are_written_as_toml_and_read_again():
    config = from_dict(
        {"model": {"outputs": ["dipole", {"name": "spin", "irreps": "1e", "per": "atom"}]}}
    )
    text = next(line for line in to_toml(config).splitlines() if line.startswith("outputs"))
    again = from_dict({"model": {"outputs": parse_value(text.partition(" = ")[2])}})
    assert again.model == config.model
    assert config.model.outputs[0] == OutputConfig("dipole")
