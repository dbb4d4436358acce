"""From a potential's scripted module to the fused engine's plan, by architecture."""

from __future__ import annotations

import torch

from eqcalc.engine.plan import NotCovered, Plan
from eqcalc.engine.read_nequip import read_nequip

#: by the architecture that the file's metadata names
READERS = {"NequIP": read_nequip}


def read(module: torch.jit.ScriptModule, architecture: str | None, scalar: str) -> Plan:
    """The plan of a potential in float64; `scalar` is that of the engine, "float" or "double".

    Raises:
        NotCovered: no reader for this architecture.
    """
    if architecture not in READERS:
        raise NotCovered(f"The fused engine does not know the architecture {architecture}.")
    return READERS[architecture](module, scalar)
