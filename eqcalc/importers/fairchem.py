"""Checkpoints of fairchem-core (eSEN, UMA): recognised, and what of them has no counterpart here.

Their eSEN (Fu et al., arXiv:2502.12147; eSCNMDBackbone of fairchem-core 2) is close to our `esen`,
but each of its networks has parts that no operation of `eqcalc.program` expresses. `refusal` names
those that a file has, by its configuration and by its weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from eqcalc.importers.unpickle import Stub

CHECKPOINT = "MLIPInferenceCheckpoint"
BACKBONES = "eSCNMDBackbone", "eSCNMDMoeBackbone", "escnmd_backbone", "escnmd_moe_backbone"


def is_checkpoint(content: Any) -> bool:
    """Whether a file's content is what fairchem-core 2 saves for inference."""
    return isinstance(content, Stub) and content.path.rpartition(".")[2] == CHECKPOINT


def _plain(value: Any) -> Any:
    """A node of OmegaConf as what it holds."""
    inside = getattr(value, "__dict__", {}) if isinstance(value, Stub) else {}
    for name in ("_content", "_val"):
        if name in inside:
            return _plain(inside[name])
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    return value


def _weights(content: Stub) -> dict[str, torch.Tensor]:
    found = getattr(content, "ema_state_dict", None) or getattr(content, "model_state_dict", None)
    return found if isinstance(found, Mapping) else {}


def _of_options(backbone: Mapping[str, Any]) -> Iterator[str]:
    if backbone.get("num_experts"):
        yield f"a mixture of {backbone['num_experts']} experts"
    if backbone.get("direct_forces", True):
        yield "forces that are no gradient of the energy (direct_forces)"
    if backbone.get("charge_balanced_channels") or backbone.get("spin_balanced_channels"):
        yield "channels that add up to the charge or the spin of all atoms"
    if backbone.get("ff_type", "grid") == "grid":
        yield "perceptrons on a grid of the sphere (ff_type = grid)"
    if backbone.get("act_type", "gate") != "gate":
        yield f"messages through a grid of the sphere (act_type = {backbone['act_type']})"


def _of_weights(weights: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """Parts whose weights are not those of nothing."""
    maps = [w for name, w in weights.items() if ".so2_m_conv." in name and ".fc.weight" in name]
    if any(bool(w[len(w) // 2 :].count_nonzero()) for w in maps):
        yield "matrices between m and -m, which no reflection leaves as they are"
    if any("rad_func.net.1." in name for name in weights):
        yield "layer normalisation within radial networks"
    if any("source_embedding" in name for name in weights):
        yield "radial networks that read the elements of both atoms"
    if any("edge_degree_embedding" in name for name in weights):
        yield "features of all degrees before the first layer (edge_degree_embedding)"


def refusal(content: Stub, name: str) -> str:
    """A sentence with the parts of the network in a file that cannot be expressed here."""
    config = _plain(getattr(content, "model_config", {}))
    config = config if isinstance(config, Mapping) else {}
    backbone = config.get("backbone", {})
    kind = str(backbone.get("model", "unknown")).rpartition(".")[2]
    if kind not in BACKBONES:
        return f"{name} is a network '{kind}' of fairchem-core: it is not covered."
    parts = [*_of_options(backbone), *_of_weights(_weights(content))]
    return (
        f"{name} is an eSEN of fairchem-core ('{kind}'), which has parts that no network here has: "
        f"{'; '.join(parts)}. Train architecture = 'esen' on frames that it has labelled."
    )
