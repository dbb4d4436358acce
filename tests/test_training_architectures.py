"""Networks on edges are trained like any other: kernels, resumption, new elements."""

import copy

import pytest
import torch
from runs import column, history, train_in_pieces, weights, write_frames

from eqcalc.contract import set_precision
from eqcalc.data.dataset import Batch, FrameDataset
from eqcalc.data.frames import read_frames
from eqcalc.engine.training import fuse
from eqcalc.models.registry import build, model_config
from eqcalc.training.config import from_dict
from eqcalc.training.finetune import read_source
from eqcalc.training.muon import matrix_shapes
from eqcalc.training.run import train
from eqcalc.training.task import predict

pytestmark = pytest.mark.usefixtures("no_potential_file")

BLOCKS = {"num_layers": 2, "l_max": 2, "hidden_channels": 4, "feed_forward_channels": 5}
NETWORKS = {
    "esen": BLOCKS,
    "equiformer": BLOCKS | {"num_heads": 2},
    "equiformer_v2": BLOCKS | {"num_heads": 2},
    "mace": {"l_max": 1, "correlation": 2, "density_normalization": True},
}


def options(name):
    common = {"cutoff": 4.0, "radial_mlp": [8], "readout": 4, "num_channels": 4}
    return {"architecture": name, **common, **NETWORKS[name]}


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    return {
        "LiH": write_frames(folder / "lih.xyz", 12),
        "LiCH": write_frames(folder / "lich.xyz", 12, symbols="LiCH", seed=3),
    }


def config(train_path, name="", **further):
    model = {"model": options(name)} if name else {}
    training = {"epochs": 4, "warmup_steps": 2, "threads": 1, "device": "cpu", "fused": False}
    data = {"train": [train_path], "val_fraction": 0.25}
    return from_dict({"data": data, "training": training, **model, **further})


@pytest.mark.parametrize("name", NETWORKS)
def test_compiled_kernels_do_not_change_training(name, frames):
    """Losses of forces and all derivatives of them, one network for both edges of a pair."""
    torch.manual_seed(0)
    plain = build(model_config(options(name)), [1, 3], 5.0, [1.0, 1.0], [0.0, 0.0])
    set_precision(plain, torch.float64)
    fused = fuse(copy.deepcopy(plain))
    items = FrameDataset(read_frames(frames["LiH"])[:4], [1, 3], 4.0).items
    batch = Batch.collate(items)
    assert batch.graph.pair is not None
    losses = []
    for model in (plain, fused):
        found = predict(model, batch, differentiable=True)
        losses.append(found.forces.square().sum() + found.energy.square().sum())
        losses[-1].backward()
    assert float(losses[1].detach()) == pytest.approx(float(losses[0].detach()), rel=1e-10)
    others = dict(fused.named_parameters())
    gradients = 0
    for key, parameter in plain.named_parameters():
        if parameter.numel() and parameter.grad is not None:
            size = max(float(parameter.grad.abs().max()), 1e-3)
            assert (parameter.grad - others[key].grad).abs().max() < 1e-9 * size, key
            gradients += bool(parameter.grad.any())
    assert gradients > 10
    assert any(name in key for key in matrix_shapes(plain) for name in ("hidden", "a_0"))


def test_runs_resume_and_learn_new_elements(frames, tmp_path, monkeypatch):
    whole = config(frames["LiH"], "esen")
    train(whole, tmp_path / "whole", quiet=True)
    train_in_pieces(whole, tmp_path / "pieces", monkeypatch)
    assert history(tmp_path / "whole") == history(tmp_path / "pieces")
    losses = [float(x) for x in column(tmp_path / "whole", "train_loss")]
    assert losses[-1] < losses[0]
    pieces = weights(tmp_path / "pieces")
    for key, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, pieces[key]), key
    source = {"model": str(tmp_path / "whole")}
    train(config(frames["LiCH"], fine_tune=source), tmp_path / "new", quiet=True)
    new = read_source(str(tmp_path / "new"))
    assert new.model.architecture == "esen"
    assert len(new.weights["species_embedding"]) == 3
