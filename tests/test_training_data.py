"""What training does with labels: names of its options, files, free atoms, units it refuses."""

import json

import pytest
from ase.io import read, write
from runs import MODEL, write_frames
from typer.testing import CliRunner

from eqcalc.cli import app
from eqcalc.errors import InputError
from eqcalc.training.config import from_dict
from eqcalc.training.prepare import prepare


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
    plainly = prepared(*plain).setup
    assert setup["train_hash"] == plainly["train_hash"]
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
    with pytest.warns(UserWarning, match=r"but 'force', which is not read: .* --forces-key force"):
        prepared(path)
    with pytest.raises(InputError, match=r"No frame has stress under the key 'dft_stress'"):
        prepared(path, stress_key="dft_stress", forces_key="force")
