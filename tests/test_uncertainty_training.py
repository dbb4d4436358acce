"""What the end of training says of its own errors."""

import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT
from test_uncertainty import features_of

import eqcalc
from eqcalc import export, uncertainty
from eqcalc.training.run import export_run


def copper(seed):
    atoms = bulk("Cu", cubic=True).repeat((2, 1, 1))
    atoms.rattle(0.08, seed=seed)
    atoms.calc = EMT()
    atoms.get_stress()
    return atoms


def test_training_ends_with_an_uncertainty(tmp_path):
    frames = [copper(seed) for seed in range(30)]
    model = {"num_layers": 2, "num_channels": [8, 4], "l_max": 1, "readout": 4}
    run = eqcalc.train(
        frames, tmp_path / "run", epochs=2, cutoff=4.0, model=model, val_fraction=0.2
    )
    known = uncertainty.read(run.model)
    document = export.read_metadata(run.model)["uncertainty"]
    assert (document["frames"], document["errors"]) == (24, 6)
    assert document["elements"] == ["Cu"]
    assert known.width == document["features"] == 4
    grades = [known.grades(f.species, f.features).max() for f in features_of(run.model, frames)]
    assert sum(g <= 1.0 + 1e-4 for g in grades) >= 24  # the training frames are among these
    assert max(grades) > 0.99
    calc = eqcalc.EquivariantCalculator(run.model, engine="torch", on_domain_exit="ignore")
    unseen = [copper(seed) for seed in range(40, 60)]
    found = calc.evaluate(unseen, uncertainty=True)
    errors = [r["energy"] - a.get_potential_energy() for a, r in zip(unseen, found, strict=True)]
    ratio = np.array(errors) / [r["energy_std"] for r in found]
    assert 0.2 < np.sqrt(np.mean(ratio**2)) < 3.0  # fitted to six errors
    again = export_run(tmp_path / "run", tmp_path / "again.pth")["uncertainty"]
    assert again == document
    assert uncertainty.read(tmp_path / "again.pth").content() == known.content()
