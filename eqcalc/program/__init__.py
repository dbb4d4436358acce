"""A network as data: a short list of typed operations (`eqcalc.program.operations`).

Nothing here imports torch or knows an engine; emitters turn a `Program` into something that runs.
"""

from eqcalc.program.operations import (
    Add,
    Bias,
    Contraction,
    Convolution,
    Density,
    Embedding,
    Gate,
    Linear,
    Normalization,
    NormGate,
    Output,
    Product,
    Radial,
    Readout,
)
from eqcalc.program.program import Program

__all__ = [
    "Add",
    "Bias",
    "Contraction",
    "Convolution",
    "Density",
    "Embedding",
    "Gate",
    "Linear",
    "NormGate",
    "Normalization",
    "Output",
    "Product",
    "Program",
    "Radial",
    "Readout",
]
