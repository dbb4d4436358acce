"""One file of a user's is enough for training, the export, ASE and LAMMPS on ranks."""

from pathlib import Path

from parity import SYSTEMS, assert_equal, by_lammps, by_python, pair, script
from runs import write_frames

from eqcalc.training.config import from_dict
from eqcalc.training.run import train


def test_from_training_to_two_ranks(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    config = from_dict(
        {
            "data": {"train": [write_frames(tmp_path / "frames.xyz", 8, symbols="SiO")]},
            "model": {
                "architecture": "toy_network:ToyConfig",
                "cutoff": 4.0,
                "radial_mlp": [8],
            },
            "training": {"epochs": 2, "threads": 1, "device": "cpu", "precision": "float64"},
        }
    )
    train(config, tmp_path / "run")
    monkeypatch.chdir(tmp_path)  # the file needs nothing of the user's
    path = tmp_path / "run" / "model.pth"
    atoms = SYSTEMS["slab"]()
    got, _, _ = by_lammps(script(atoms, tmp_path, pair(path)), 2)
    assert_equal(got, by_python(path, atoms))
