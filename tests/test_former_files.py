"""Files of NequIP from before its modules were those of its program."""

import dataclasses

import numpy as np
import pytest
import torch
from former_nequip import FormerNequIP
from potentials import some_crowding, some_pairs
from test_models import outputs, to_graph

from eqcalc import export
from eqcalc.engine import readers
from eqcalc.models.nequip import NequIPConfig
from eqcalc.models.registry import build
from eqcalc.training.finetune import read_source
from eqcalc.uncertainty import last_weights


def same(a, b) -> bool:
    """To the last bit, arrays and what holds them."""
    if dataclasses.is_dataclass(a):
        fields = [field.name for field in dataclasses.fields(a)]
        return type(a) is type(b) and all(same(getattr(a, n), getattr(b, n)) for n in fields)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return np.array_equal(a, b)


@pytest.mark.parametrize(
    "options",
    [
        {"pair_potential": True},
        {"parity": True, "scalar_bias": True, "product_channels": 3, "product_l_max": 1},
        {"so3": True, "embedding": 3, "readout": 0, "pair_cutoffs": {"Si": {"O": 3.1}}},
    ],
)
def test_former_files_run_and_are_trained_on(options, crystal, tmp_path):
    """The engine's plan is that of a file of today, and fine-tuning begins with its weights."""
    sizes = {"cutoff": 4.0, "num_layers": 2, "num_channels": [5, 4, 3], "radial_mlp": [12]}
    config = NequIPConfig(**sizes | {"product_channels": 0} | options)
    rest = [8, 14], 15.0, [0.7, 1.1], [-2.0, -5.0], some_pairs(2)
    graph = to_graph(crystal)
    edges = graph.species, graph.edge_vec, graph.edge_src, graph.edge_dst
    made = {}
    for kind in (FormerNequIP, build):
        torch.manual_seed(1)
        model = kind(config, *rest)
        model.limit_crowding(some_crowding(2))
        model.calibrate(*edges)
        model.reference_structure = export.reference_structure(model, *edges)
        hyper = dataclasses.asdict(config) | {"avg_num_neighbors": 15.0}
        path = tmp_path / f"{kind.__name__}.pth"
        export.save(model, path, {"architecture": "NequIP", "hyperparameters": hyper})
        made[kind] = export.load(path, dtype="float64")
    former, present = made.values()
    for a, b in zip(outputs(former.module, graph), outputs(present.module, graph), strict=True):
        assert abs(a - b).max() <= 1e-12 * abs(b).max()
    assert same(*(readers.read(file, "double") for file in (former, present)))
    source = read_source(str(former.path))
    ours = {name: p for name, p in build(config, *rest).named_parameters() if p.numel()}
    theirs = {name: p for name, p in source.weights.items() if p.numel()}
    assert ours.keys() == theirs.keys()

    assert len(last_weights(former.module, config.program())) == 1
