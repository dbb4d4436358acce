"""Files of fairchem-core are recognised, and the parts that have no counterpart are named.

The content is made here with the names and shapes that fairchem-core 2.24.0 gives its eSEN.
"""

import dataclasses
import sys
import types

import pytest
import torch

from eqcalc.errors import InputError
from eqcalc.importers import import_model

OPTIONS = {
    "model": "fairchem.core.models.uma.escn_md.eSCNMDBackbone",
    "direct_forces": False,
    "ff_type": "spectral",
    "act_type": "gate",
}
MAP = "backbone.blocks.0.edge_wise.so2_conv_1.so2_m_conv.0.fc.weight"


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Saves a checkpoint under the name of fairchem's class, and imports it."""
    path = "fairchem.core.units.mlip_unit.api.inference"
    kind = dataclasses.make_dataclass(
        "MLIPInferenceCheckpoint",
        ["model_config", "model_state_dict", "ema_state_dict", "tasks_config"],
        namespace={"__module__": path},
    )
    module = types.ModuleType(path)
    module.MLIPInferenceCheckpoint = kind
    names = path.split(".")
    for n in range(1, len(names)):
        monkeypatch.setitem(sys.modules, ".".join(names[:n]), types.ModuleType(names[n - 1]))
    monkeypatch.setitem(sys.modules, path, module)

    def said(weights, **options):
        file = tmp_path / "esen.pt"
        torch.save(kind({"backbone": OPTIONS | options}, weights, weights, {}), file)
        with pytest.raises(InputError) as caught:
            import_model(file, tmp_path / "model.pth")
        return str(caught.value)

    return said


def test_parts_without_a_counterpart_are_named(saved):
    mixing, plain = torch.ones(8, 4), torch.ones(8, 4)
    plain[4:] = 0.0
    said = saved({MAP: mixing, "backbone.source_embedding.weight": torch.ones(3, 2)})
    assert "esen.pt is an eSEN of fairchem-core ('eSCNMDBackbone')" in said
    assert "between m and -m" in said
    assert "elements of both atoms" in said
    assert "grid" not in said
    assert "between m and -m" not in saved({MAP: plain})
    said = saved({MAP: plain}, ff_type="grid", direct_forces=True, num_experts=8)
    for part in ("mixture of 8 experts", "direct_forces", "ff_type = grid"):
        assert part in said


def test_other_networks_of_theirs_are_named(saved):
    assert "'EScAIPBackbone' of fairchem-core" in saved({}, model="x.EScAIPBackbone")
