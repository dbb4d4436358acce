"""Files of NequIP become exports with the same numbers.

tests/data/nequip holds networks with random weights in float64 as NequIP wrote them, without their
code, and what it said of one structure (`tests/peers/nequip_random.py`): `so3` of 0.5.6 with e3nn
0.4.4 ignores parity, `both` of 0.6.2 has features of both parities and ZBL, `natural` and `readout`
are of 0.19.1: those have numbers of neighbours by species, `natural` also cutoffs of pairs.
"""

import copy
import hashlib
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from imported import (
    assert_fewer_elements_change_nothing,
    assert_reference_holds_every_element,
    results,
)
from typer.testing import CliRunner

from eqcalc import export
from eqcalc.cli import app
from eqcalc.errors import InputError
from eqcalc.importers import import_model, unpickle
from eqcalc.importers.modules import TORCHSCRIPT, Archive

DATA = Path(__file__).parent / "data" / "nequip"
EXPECTED = json.loads((DATA / "expected.json").read_text())
FILES = ["both.pth", "so3.pth", "natural.nequip.zip", "readout.nequip.zip", "readout.ckpt"]


@pytest.fixture
def imported(tmp_path):
    """A function: path -> results of its import."""

    def run(path, **options):
        made = import_model(path, tmp_path / "out.pth", dtype="float64", **options)
        return results(made.path, engine="torch")

    return run


@pytest.fixture
def folder(tmp_path):
    """A folder of NequIP 0.5's training, and its configuration and state dict."""
    archive = Archive(DATA / "so3.pth")
    state = archive.modules(TORCHSCRIPT).tensors
    config = archive.text("extra/config")
    home = tmp_path / "training"
    home.mkdir()

    class Folder:
        path, tensors = home, state
        options = yaml.safe_load(config.replace("!!python/tuple", ""))

        def save(self):
            torch.save(self.tensors, home / "best_model.pth")
            (home / "config.yaml").write_text(yaml.dump(self.options))
            return home

    return Folder()


def rewritten(source, target, changed):
    """A zip file with other content for some of its files, by the end of their names."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            end = next((e for e in changed if name.endswith(e)), None)
            content = old.read(name)
            new.writestr(name, changed[end](content) if end else content)
    return target


@pytest.mark.parametrize("file", FILES)
def test_numbers_are_those_of_the_package(file, imported):
    energy, forces = imported(DATA / file)
    expected = EXPECTED[file.partition(".")[0]]
    assert energy == pytest.approx(expected["energy"], abs=1e-12)
    assert forces == pytest.approx(np.array(expected["forces"]), abs=1e-12)


def test_fused_engine(tmp_path):
    path = import_model(DATA / "natural.nequip.zip", tmp_path / "m.pth", dtype="float64").path
    energy, forces = results(path, engine="fused")
    assert energy == pytest.approx(EXPECTED["natural"]["energy"], abs=3e-9)
    assert forces == pytest.approx(np.array(EXPECTED["natural"]["forces"]), abs=3e-9)


def test_content_tells_the_kind(tmp_path, imported):
    for n, file in enumerate(FILES):
        copied = tmp_path / f"file{n}.txt"
        copied.write_bytes((DATA / file).read_bytes())
        assert imported(copied)[0] == pytest.approx(
            EXPECTED[file.partition(".")[0]]["energy"], abs=1e-12
        )


def test_folder_of_a_training(folder, imported):
    folder.save()
    for path in (folder.path, folder.path / "best_model.pth"):
        energy, forces = imported(path)
        assert energy == pytest.approx(EXPECTED["so3"]["energy"], abs=1e-12)
        assert forces == pytest.approx(np.array(EXPECTED["so3"]["forces"]), abs=1e-12)
    (folder.path / "config.yaml").unlink()
    with pytest.raises(InputError, match=r"config\.yaml must lie beside it.*nequip-deploy"):
        imported(folder.path / "best_model.pth")


def test_other_signs_of_wigner_3j(folder, imported):
    """A buffer with another sign, and weights of its path with that sign, are the same network."""
    before = imported(folder.save())
    name = "layer1_convnet.conv.tp._compiled_main_left_right._w3j_1_1_1"
    buffer = next(k for k in folder.tensors if k.endswith(name))
    folder.tensors[buffer] = -folder.tensors[buffer]
    changed = imported(folder.save())
    assert np.abs(changed[1] - before[1]).max() > 1e-7
    paths = [
        (l1, l2, l3)
        for l1 in range(3)
        for l2 in range(3)
        for l3 in range(abs(l1 - l2), min(2, l1 + l2) + 1)
    ]
    radial = next(k for k in folder.tensors if k.endswith("layer1_convnet.conv.fc.layer1.weight"))
    weights = folder.tensors[radial].clone()
    assert weights.shape[1] == 3 * len(paths)
    at = 3 * paths.index((1, 1, 1))
    weights[:, at : at + 3] *= -1.0
    folder.tensors[radial] = weights
    after = imported(folder.save())
    assert after[1] == pytest.approx(before[1], abs=1e-12)


def test_fewer_elements(tmp_path):
    for file in ("both.pth", "natural.nequip.zip"):
        assert_fewer_elements_change_nothing(DATA / file, tmp_path)


def test_reference_structure_holds_every_element(tmp_path):
    assert_reference_holds_every_element(DATA / "both.pth", tmp_path)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("something_new", 3),
        ("resnet", True),
        ("layer1_use_sc", False),
        ("InteractionBlock_invariant_neurons", 3),
        ("nonlinearity_type", "norm"),
        ("nonlinearity_scalars", {"e": "ssp", "o": "tanh"}),
        ("global_rescale_shift", 1.0),
        ("model_builders", ["allegro.model.Allegro"]),
        ("irreps_edge_sh", "1x0e+1x2e"),
        ("chemical_embedding_irreps_out", "3x0e+1x1o"),
        ("PolynomialCutoff_p", 6.5),
    ],
)
def test_unknown_options_of_a_configuration(option, value, folder, imported):
    folder.options[option] = value
    with pytest.raises(InputError, match=f"its option {option} = "):
        imported(folder.save())


def test_what_the_configuration_lacks(folder, imported):
    del folder.options["nonlinearity_scalars"]  # 0.5 then takes another function than 0.6
    with pytest.raises(InputError, match=r"its option nonlinearity_scalars = .*ssp"):
        imported(folder.save())
    folder.options["nequip_version"] = "0.6.1"
    energy, _ = imported(folder.save())
    assert energy == pytest.approx(EXPECTED["so3"]["energy"], abs=1e-12)
    folder.options["avg_num_neighbors"] = "auto"
    with pytest.raises(InputError, match=r"avg_num_neighbors is: make a file with nequip-deploy"):
        imported(folder.save())


def test_every_weight_is_used(folder, imported):
    prefix = next(k for k in folder.tensors if k.endswith("linear_1.weight")).partition("layer")[0]
    folder.tensors[f"{prefix}more.weight"] = torch.ones(3)
    with pytest.raises(InputError, match=r"nothing here uses: .*more\.weight"):
        imported(folder.save())
    del folder.tensors[f"{prefix}more.weight"]
    del folder.tensors[f"{prefix}layer1_convnet.conv.linear_2.weight"]
    with pytest.raises(InputError, match=r"no weights '.*layer1_convnet\.conv\.linear_2"):
        imported(folder.save())


@pytest.fixture
def checkpoint(tmp_path):
    """Content of a Lightning checkpoint, and a function that saves and imports it."""
    content = torch.load(DATA / "readout.ckpt", weights_only=False)

    def run(imported):
        torch.save(content, tmp_path / "changed.ckpt")
        return imported(tmp_path / "changed.ckpt")

    return content, run


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("something_new", 3),
        ("convnet_resnet", True),
        ("convnet_nonlinearity_type", "norm"),
        ("pair_potential", {"_target_": "nequip.nn.pair_potential.LennardJones"}),
        ("categorical_graph_field_embed", [{"field": "charge"}]),
    ],
)
def test_unknown_options_of_a_checkpoint(option, value, checkpoint, imported):
    content, run = checkpoint
    content["hyper_parameters"]["model"][option] = value
    with pytest.raises(InputError, match=f"its option {option} = "):
        run(imported)


def test_checkpoint_of_another_network(checkpoint, imported):
    content, run = checkpoint
    content["hyper_parameters"]["model"]["_target_"] = "nequip.model.ModelFromPackage"
    with pytest.raises(InputError, match=r"ModelFromPackage does not hold.*nequip-package"):
        run(imported)


def test_parity_of_a_checkpoint_depends_on_its_version(checkpoint, imported):
    """Before 0.16, parity = false ignored parity, and irreps came in another order."""
    content, run = checkpoint
    info = content["hyper_parameters"]["info_dict"]
    info["versions"]["nequip"] = "0.15.0"
    energy, _ = run(imported)
    assert abs(energy - EXPECTED["readout"]["energy"]) > 1e-6  # weights of another order
    info["versions"] = {}
    with pytest.raises(InputError, match="which version of NequIP"):
        run(imported)


def test_averaged_weights_of_a_checkpoint(checkpoint, imported):
    content, run = checkpoint
    state = content["state_dict"]
    constant = ("output_mask", "_rmax_recip", "bessel_weights", "scales", "shifts", "run_stage")
    names = [
        k for k, t in state.items() if t.numel() and not k.endswith(constant) and "_w3j_" not in k
    ]
    assert len(names) > 10
    for n, name in enumerate(names):
        state[f"ema.ema_weight_{n}"] = state[name]
        state[name] = torch.randn_like(state[name])
    energy, _ = run(imported)
    assert energy == pytest.approx(EXPECTED["readout"]["energy"], abs=1e-12)
    del state["ema.ema_weight_0"]
    with pytest.raises(InputError, match="not clear which weights its averages"):
        run(imported)


def test_modules_that_are_not_known(tmp_path, imported):
    def other(content):
        return content.replace(b"AtomwiseReduce", b"AtomwiseRecuce")

    path = rewritten(DATA / "readout.nequip.zip", tmp_path / "x.zip", {"eager_model.pkl": other})
    with pytest.raises(InputError, match="total_energy_sum of class AtomwiseRecuce is not covered"):
        imported(path)


class Evil:
    """Would write a file when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_no_foreign_code_runs(tmp_path, monkeypatch, imported):
    monkeypatch.chdir(tmp_path)
    evil = pickle.dumps(Evil(), protocol=2)
    source = DATA / "readout.nequip.zip"
    path = rewritten(source, tmp_path / "x.zip", {"eager_model.pkl": lambda _: evil})
    with pytest.raises(InputError, match="does not say which elements"):
        imported(path)
    assert not (tmp_path / "evil").exists()


def test_other_files_are_refused(tmp_path, potential_path, imported):
    with zipfile.ZipFile(tmp_path / "c.nequip.pt2", "w") as file:
        file.writestr("c/data/aotinductor/model/x.so", b"")
    (tmp_path / "text.zip").write_text("no zip")
    torch.save({"a": 1}, tmp_path / "other.pth")
    (tmp_path / "empty").mkdir()
    for path, sentence in (
        (tmp_path / "c.nequip.pt2", "is compiled: import the package or the checkpoint"),
        (tmp_path / "text.zip", "no file that torch.save has written"),
        (tmp_path / "other.pth", "is no file of SevenNet, NequIP, MACE or fairchem-core"),
        (tmp_path / "empty", r"best_model\.pth"),
        (potential_path, "is TorchScript, but not of nequip-deploy"),
    ):
        with pytest.raises(InputError, match=sentence):
            imported(path)
    with pytest.raises(InputError, match="has one task: leave out --task PBE"):
        imported(DATA / "both.pth", task="PBE")


def test_command_and_origin(tmp_path):
    out = tmp_path / "m.pth"
    source = DATA / "natural.nequip.zip"
    ran = CliRunner().invoke(app, ["import", str(source), "-o", str(out), "--elements", "Si O"])
    assert ran.exit_code == 0, ran.output
    origin = export.read_metadata(out)["origin"]
    assert origin["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert (origin["package"], origin["package_version"]) == ("NequIP", "0.19.1")
    shown = CliRunner().invoke(app, ["info", str(out)]).output
    assert origin["sha256"] in shown
    assert "Nat. Commun. 13, 2453" in shown


def test_unpickled_checkpoint_holds_no_code():
    content = unpickle.load(DATA / "readout.ckpt")
    assert copy.deepcopy(content["hyper_parameters"]["model"])["parity"] is True


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_builtin_functions_are_known_by_name(protocol):
    """Up to protocol 3 they are attributes of what torch keeps them in; nothing is looked up."""
    content = pickle.dumps({"act": torch.tanh, "kept": {1}}, protocol=protocol)
    found = unpickle.Unpickler(io.BytesIO(content)).load()
    assert issubclass(found["act"], unpickle.Stub)
    assert found["act"].__name__ == "tanh"
    assert found["kept"] == {1}
