"""From a potential file to the fused engine's plan."""

from __future__ import annotations

from collections.abc import Callable

import torch

from eqcalc import export
from eqcalc.engine.plan import PADDING, NotCovered, Plan
from eqcalc.engine.read_nequip import read_nequip
from eqcalc.engine.read_program import read_program
from eqcalc.outputs import refusal
from eqcalc.program import Convolution, Program

#: of architectures, as metadata name them, whose modules are not those of a program
READERS: dict[str, Callable[[torch.jit.ScriptModule, str, int], Plan]] = {"NequIP": read_nequip}


def read(potential: export.PotentialFile, scalar: str, padding: int | None = None) -> Plan:
    """The plan of a potential in float64; `scalar` is that of the engine, "float" or "double".

    padding: of runs of channels; None takes a cache line of the CPU.

    Raises:
        NotCovered: a network that the engine does not know.
    """
    padding = padding or PADDING[scalar]
    architecture = potential.metadata.get("architecture")
    if refusal(potential.outputs, energy=potential.has_energy):
        made = ", ".join(output.name for output in potential.outputs)
        raise NotCovered(f"The engine makes energies and their derivatives, not {made}.")
    if architecture in READERS and not potential.outputs:
        return READERS[architecture](potential.module, scalar, padding)
    unknown = NotCovered(f"The fused engine does not know the architecture {architecture}.")
    document = export.program_document(potential.path)
    if document is None:
        raise unknown
    program = Program.from_document(document).reaching("energy")
    named = {
        name for layer in potential.module.layers.children() for name, _ in layer.named_children()
    }
    if any(op.name not in named for op in program.operations if isinstance(op, Convolution)):
        raise unknown
    return read_program(program, potential.module, scalar, padding)
