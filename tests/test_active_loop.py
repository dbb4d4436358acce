"""The loop closes: its example in small, and committees that go on from committees."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from ase.io import read
from matplotlib.image import imread
from runs import tiny, weights, write_frames

from eqcalc.training.members import members_of, train_committee

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_members_go_on_from_members(tmp_path):
    """Each from the one of its place; without another epoch's steps they are those networks."""
    data = write_frames(tmp_path / "frames.xyz", 8)
    train_committee(tiny(data, epochs=1), tmp_path / "first", 2, quiet=True)
    config = tiny(data, fine_tune={"model": str(tmp_path / "first")}, epochs=1)
    found = [Path(m.fine_tune.model) for m in members_of(config, 3)]
    expected = [tmp_path / "first" / str(k) / "model.pth" for k in (1, 2, 1)]
    assert found == expected
    still = tiny(data, fine_tune={"model": str(tmp_path / "first")}, epochs=1, learning_rate=1e-12)
    train_committee(still, tmp_path / "second", 2, quiet=True)
    for k in (1, 2):
        old = weights(tmp_path / "first" / str(k), "best.ckpt")
        new = weights(tmp_path / "second" / str(k), "best.ckpt")
        other = weights(tmp_path / "first" / str(3 - k), "best.ckpt")
        name = next(n for n in new if n.endswith("weight") and new[n].numel() > 4)
        apart = [float((new[name] - w[name]).abs().max()) for w in (old, other)]
        assert apart[0] < 0.05 * apart[1]


def test_example(tmp_path):
    """One round of both choices, in the shortest form, from labels to retraining."""
    pytest.importorskip("tblite")
    spec = importlib.util.spec_from_file_location("active", EXAMPLES / "active_learning.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.MODEL = {
        "cutoff": 4.0,
        "num_layers": 1,
        "l_max": 1,
        "num_channels": [4, 4],
        "radial_mlp": [4],
    }
    module.LIMIT, module.INTERVAL = 1e3, 1.0  # the networks know nothing
    module.ENGINE = "torch"
    options = (
        "--rounds 1 --number 3 --pool 6 --seeds 1 --first-epochs 2 --epochs 1 --hot 4 --no-fused"
    )
    work = tmp_path / "work"
    found = module.main([*options.split(), "--work", str(work), "--out", str(tmp_path)])
    assert found["labelled frames"] == [20, 23]
    for choice in ("selected", "random"):
        ((first, last),) = found["rmse"][choice]
        assert 0.0 < last < 1e5
        assert first == pytest.approx(found["rmse"]["selected"][0][0])
        assert len(read(work / f"{choice}_1" / "train_1.xyz", ":")) == 23
        chosen = read(work / f"{choice}_1" / "chosen_1.xyz", ":")
        assert len({int(a.info["selected_from"].split()[-1]) for a in chosen}) == 3
    assert np.array(found["first pool"]).shape == (6, 2)
    assert json.loads((tmp_path / "active_learning.json").read_text()) == found
    share = (imread(tmp_path / "active_learning.png")[..., :3].min(axis=2) < 0.9).mean()
    assert 0.01 < share < 0.5


def test_committed_figures_say_what_the_page_says():
    """Selection against chance at equal numbers, as examples/README.md has it."""
    found = json.loads((EXAMPLES / "active_learning.json").read_text(encoding="utf-8"))
    errors = {choice: np.array(runs) for choice, runs in found["rmse"].items()}
    assert len(errors["selected"]) == len(errors["random"]) > 1
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for runs in errors.values():
        for of in runs.T[1:]:
            spread = f"({of.min():.0f} to {of.max():.0f})"
            assert f"{of.mean():.0f} {spread}" in page.replace("*", "")
    assert (EXAMPLES / "active_learning.png").stat().st_size > 10_000
