"""Modules of the layers of our NequIP, for importers that fill them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from e3nn import o3
from torch import Tensor

from eqcalc.models.assembled import Assembled
from eqcalc.nn.convolution import Convolution
from eqcalc.nn.gate import Gate
from eqcalc.nn.linear import ScalarBias, SpeciesLinear
from eqcalc.nn.radial import RadialNetwork
from eqcalc.nn.readout import Readout


@dataclass(frozen=True)
class Interaction:
    """One layer, whose operations are those of `eqcalc.models.nequip`; None: it has no such."""

    irreps_in: o3.Irreps
    irreps_out: o3.Irreps
    up: SpeciesLinear
    up_bias: ScalarBias | None
    radial: RadialNetwork
    convolution: Convolution
    norm: Tensor
    mix: SpeciesLinear
    own: SpeciesLinear | None
    gate_bias: ScalarBias | None
    gate: Gate
    readout: Readout | None


def interactions(model: Assembled) -> list[Interaction]:
    """Of a network of this architecture."""
    found = []
    for k, layer in enumerate(model.layers):
        parts: dict[str, Any] = dict(layer.named_children())
        convolution, gate = parts[f"sum_{k}"], parts[f"x_{k + 1}"]
        found.append(
            Interaction(
                irreps_in=convolution.irreps_in,
                irreps_out=gate.irreps_out,
                up=parts[f"up_{k}"],
                up_bias=parts.get(f"up_bias_{k}"),
                radial=parts[f"r_{k}"],
                convolution=convolution,
                norm=parts[f"m_{k}"].norm,
                mix=parts[f"mix_{k}"],
                own=parts.get(f"own_{k}"),
                gate_bias=parts.get(f"gate_bias_{k}"),
                gate=gate,
                readout=parts.get("energies"),
            )
        )
    return found
