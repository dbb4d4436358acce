"""From a potential file to the fused engine's plan."""

from __future__ import annotations

from eqcalc import export
from eqcalc.engine.bricks import children
from eqcalc.engine.plan import PADDING, NotCovered, Plan
from eqcalc.engine.read_former import former_nequip, is_former
from eqcalc.engine.read_program import read_program
from eqcalc.outputs import refusal
from eqcalc.program import Convolution, Program


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
    if is_former(potential.module):
        return read_program(*former_nequip(potential.module), potential.module, scalar, padding)
    unknown = NotCovered(f"The fused engine does not know the architecture {architecture}.")
    document = export.program_document(potential.path)
    if document is None:
        raise unknown
    program = Program.from_document(document).reaching("energy")
    modules = {
        name: child
        for layer in children(potential.module.layers)
        for name, child in ((n, getattr(layer, n)) for n, _ in layer.named_children())
    }
    if any(op.name not in modules for op in program.operations if isinstance(op, Convolution)):
        raise unknown
    return read_program(program, modules, potential.module, scalar, padding)
