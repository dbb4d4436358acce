"""What a run folder keeps of data and constants: versions, older folders, later ones."""

import json

import pytest
import torch
from former_nequip import FormerNequIP
from runs import history, tiny, train_and_kill, weights, write_frames

from eqcalc.errors import InputError
from eqcalc.training import network
from eqcalc.training.finetune import read_source
from eqcalc.training.folder import load_run
from eqcalc.training.prepare import prepare
from eqcalc.training.run import train
from eqcalc.training.setup import VERSION, RunSetup

pytestmark = pytest.mark.usefixtures("no_potential_file")


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> str:
    return write_frames(tmp_path_factory.mktemp("data") / "train.xyz", 8, charge=0.5)


CHARGE = {"name": "q", "irreps": "0e", "per": "structure", "key": "charge"}


@pytest.mark.parametrize("model", [{}, {"pair_potential": True}, {"outputs": [CHARGE]}])
def test_document_says_all(frames, model):
    setup = prepare(tiny(frames, model=model, data={"pulay_pressure": 0.5})).setup
    document = json.loads(json.dumps(setup.to_dict()))
    assert document["version"] == VERSION
    assert RunSetup.from_dict(document) == setup
    assert setup.agrees_with(document)


def as_of(version: str, document: dict) -> dict:
    """The set-up as older versions of eqcalc wrote it."""
    del document["version"], document["scale"]  # it was there with a pair potential alone
    if version == "without domain":
        del document["domain"]
        document["crowding"] = {"distances": document["crowding"]["distances"], "onset": [1.0, 1.0]}
    return document


@pytest.mark.parametrize("version", ["first", "without domain"])
def test_older_folders_are_resumed(frames, tmp_path, monkeypatch, version):
    """To the same numbers as without a break, and refused where the data are others."""
    whole, out = tmp_path / "whole", tmp_path / "older"
    train(tiny(frames), whole, quiet=True)
    train_and_kill(tiny(frames), out, monkeypatch)
    path = out / "setup.json"
    older = as_of(version, json.loads(path.read_text()))
    path.write_text(json.dumps(older))
    assert load_run(out).setup.constants.scale == [older["force_rms"]] * 2
    other = write_frames(tmp_path / "other.xyz", 8, seed=1)
    with pytest.raises(InputError, match="another setting of the data"):
        train(tiny(other), out, quiet=True)
    train(tiny(frames), out, quiet=True)
    assert history(out) == history(whole)
    assert all(torch.equal(t, weights(out)[name]) for name, t in weights(whole).items())
    assert json.loads(path.read_text()) == json.loads((whole / "setup.json").read_text())


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_folders_with_former_names_are_resumed(frames, tmp_path, monkeypatch, optimizer):
    """Weights, their average and the optimiser's state find their places, whatever their order."""
    model = {"readout": 0, "scalar_bias": True, "product_channels": 2}
    config = tiny(frames, model=model, optimizer=optimizer, epochs=3, precision="float64")
    whole, out = tmp_path / "whole", tmp_path / "former"
    train(config, whole, quiet=True)
    with monkeypatch.context() as patched:
        patched.setattr(network, "build", FormerNequIP)
        train_and_kill(config, out, monkeypatch)
    assert "model.layers.0.linear_up.linear.weight" in weights(out)
    best = {name: p.detach() for name, p in load_run(out).model.named_parameters()}
    assert read_source(str(out)).weights.keys() == best.keys()
    train(config, out, quiet=True)
    for name, known in weights(whole).items():
        torch.testing.assert_close(weights(out)[name], known, rtol=1e-9, atol=1e-12)


def test_folders_of_other_networks_are_refused(frames, tmp_path, monkeypatch):
    config = tiny(frames)
    train_and_kill(config, tmp_path, monkeypatch)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del saved["state_dict"]["model.layers.0.mix_0.weight"]
    torch.save(saved, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match=r"network had other parts.*fine_tune\.model"):
        train(config, tmp_path, quiet=True)


def test_later_folders_are_refused(frames, tmp_path):
    train(tiny(frames, epochs=1), tmp_path, quiet=True)
    document = json.loads((tmp_path / "setup.json").read_text())
    (tmp_path / "setup.json").write_text(json.dumps(document | {"version": VERSION + 1}))
    for action in (lambda: load_run(tmp_path), lambda: train(tiny(frames), tmp_path, quiet=True)):
        with pytest.raises(InputError, match=r"later eqcalc \(.* version 3.*update eqcalc"):
            action()
