"""A network as data: a short list of typed operations (`eqcalc.program.operations`).

Nothing here imports torch or knows an engine; emitters turn a `Program` into something that runs.
"""

from eqcalc.program.messages import (
    Attention,
    EdgeProduct,
    EdgeSum,
    FrameGate,
    FrameSphere,
    FrameSum,
    InFrames,
    Modulation,
    PairSum,
    SO2Linear,
    ToFrames,
)
from eqcalc.program.operation import Operation
from eqcalc.program.operations import (
    Add,
    Bias,
    Contraction,
    Convolution,
    Density,
    Embedding,
    Gate,
    LayerNorm,
    Linear,
    Normalization,
    NormGate,
    Output,
    Product,
    Radial,
    Readout,
    Sphere,
)
from eqcalc.program.program import Program

__all__ = [
    "Add",
    "Attention",
    "Bias",
    "Contraction",
    "Convolution",
    "Density",
    "EdgeProduct",
    "EdgeSum",
    "Embedding",
    "FrameGate",
    "FrameSphere",
    "FrameSum",
    "Gate",
    "InFrames",
    "LayerNorm",
    "Linear",
    "Modulation",
    "NormGate",
    "Normalization",
    "Operation",
    "Output",
    "PairSum",
    "Product",
    "Program",
    "Radial",
    "Readout",
    "SO2Linear",
    "Sphere",
    "ToFrames",
]
