r"""The operations that networks of this family are made of.

Each operation has the name of the value that it makes and the names of the values that it reads.
Values live on atoms or on edges and have irreps of O(3); every irrep appears once in a value, its
channels innermost ([2l + 1, channels], flattened), whatever `mul` is.

| operation       | on   | value                                                                   |
|-----------------|------|-------------------------------------------------------------------------|
| `Embedding`     | atom | a row of numbers for each species                                       |
| `Radial`        | edge | R(r): a perceptron of Bessel functions that end at the cutoff           |
| `Convolution`   | atom | sum_j R(r_ij) C x_j Y(r_ij), path by path, channel by channel           |
| `Density`       | atom | a learned number of neighbours                                          |
| `Normalization` | atom | s_l x, fading where an atom is crowded (`eqcalc.nn.crowding`)           |
| `Linear`        | atom | W x per irrep, for all atoms or by species                              |
| `Bias`          | atom | x plus constants on its even scalars                                    |
| `Contraction`   | atom | sum of products of x with itself up to a degree, weighted by species    |
| `Product`       | atom | products of two rows of x, path by path, channel by channel             |
| `Gate`          | atom | scalars through SiLU or tanh, other irreps times activated scalars      |
| `NormGate`      | atom | every irrep times an activated function of its norm                     |
| `Add`           | atom | the sum of values                                                       |
| `Readout`       | atom | one number from even scalars, linear or through a hidden layer          |
| `Output`        |      | a property by name: the sum of values                                   |
| `LayerNorm`     | atom | x by its size over all irreps (`eqcalc.nn.layer_norm`)                  |
| `Sphere`        | atom | x as a function on the sphere, through SiLU (`eqcalc.nn.sphere`)        |
| `ToFrames`      | edge | x_j and x_i in the edge's frame (`eqcalc.nn.frames`)                    |
| `Modulation`    | edge | R(r) x, by |m|, degree and channel                                      |
| `SO2Linear`     | edge | W_|m| x over degrees and channels (`eqcalc.nn.so2`)                     |
| `FrameGate`     | edge | `Gate` in frames                                                        |
| `FrameSphere`   | edge | `Sphere` in frames                                                      |
| `FrameSum`      | atom | sum_j u(r_ij) or a_ij times x_ij, turned back                           |
| `Attention`     | edge | a_ij from even scalars on edges (`eqcalc.nn.attention`)                 |
| `PairSum`       | edge | x_j + y_i                                                               |
| `EdgeProduct`   | edge | R(r) C x Y(r), path by path, channel by channel                         |
| `EdgeSum`       | atom | sum_j a_ij x_ij                                                         |

`Linear` and `Gate` lie where their source does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from eqcalc.program.messages import MESSAGES, PairSum, sphere_formula
from eqcalc.program.operation import Operation


@dataclass(frozen=True)
class Embedding(Operation):
    """channels: how many even scalars each species has."""

    channels: int
    reads: ClassVar[tuple[str, ...]] = ()

    @property
    def irreps(self) -> str:
        return f"{self.channels}x0e"

    def formula(self) -> str:
        return "embedding[species]"


@dataclass(frozen=True)
class Radial(Operation):
    """hidden: widths of the perceptron between the Bessel functions and the weights of a
    convolution, one for each channel of each path; transform: of the distance in the Bessel
    functions, "agnesi" (`eqcalc.nn.transform`), "pair_cutoffs" (`eqcalc.nn.radial.PairCutoffs`) or
    none.
    """

    hidden: tuple[int, ...]
    transform: str = ""
    reads: ClassVar[tuple[str, ...]] = ()
    on_edges: ClassVar[bool | None] = True

    def formula(self) -> str:
        distance = f"{self.transform}(r)" if self.transform else "r"
        return " -> ".join([f"MLP(bessel({distance})", *map(str, self.hidden), "weights)"])


@dataclass(frozen=True)
class Density(Operation):
    """How many neighbours an atom has, in a learned measure: sum_j tanh((w bessel(r_ij))^2)."""

    transform: str = ""
    reads: ClassVar[tuple[str, ...]] = ()
    local: ClassVar[bool] = True

    @property
    def irreps(self) -> str:
        return "1x0e"

    def formula(self) -> str:
        return "sum_j tanh((w bessel(r))^2)"


@dataclass(frozen=True)
class Convolution(Operation):
    """Clebsch-Gordan products of the neighbours' `source` with harmonics up to `l_max`.

    irreps_in: of the source; irreps: of the value, each with the channels of all paths into it;
    so3: parity is ignored; solid: the harmonics are solid ones, r^l Y_lm with r in Å.
    """

    source: str
    radial: str
    irreps_in: str
    l_max: int
    irreps: str
    so3: bool = False
    solid: bool = False
    reads: ClassVar[tuple[str, ...]] = ("source", "radial")
    reads_neighbours: ClassVar[tuple[str, ...]] = ("source",)
    gathers: ClassVar[bool] = True

    def formula(self) -> str:
        harmonics = f"r^l Y_l, l = 0..{self.l_max}" if self.solid else f"Y_0..{self.l_max}"
        return f"sum_j {self.radial} {self.source}[j] (x) {harmonics}"


@dataclass(frozen=True)
class Normalization(Operation):
    """irreps: of the source; one constant for each is measured before training.

    density: a value by which, and one, messages are divided; "": none.
    """

    source: str
    irreps: str
    density: str = ""
    reads: ClassVar[tuple[str, ...]] = ("source", "density")

    def formula(self) -> str:
        divided = f" / (1 + {self.density})" if self.density else ""
        return f"s_l fade({self.source}){divided}"


@dataclass(frozen=True)
class Linear(Operation):
    """by_species: a matrix for each species, instead of one."""

    source: str
    irreps_in: str
    irreps: str
    by_species: bool = False
    on_edges: ClassVar[bool | None] = None
    local: ClassVar[bool] = True

    def formula(self) -> str:
        return f"W{'[species]' if self.by_species else ''} {self.source}"


@dataclass(frozen=True)
class Bias(Operation):
    """irreps: of the source and the value."""

    source: str
    irreps: str
    local: ClassVar[bool] = True

    def formula(self) -> str:
        return f"{self.source} + b_0e"


@dataclass(frozen=True)
class LayerNorm(Operation):
    """irreps: of the source and the value."""

    source: str
    irreps: str
    local: ClassVar[bool] = True

    def formula(self) -> str:
        return f"{self.source} / size({self.source})"


@dataclass(frozen=True)
class Sphere(Operation):
    """irreps: of the source and the value; polar: of the grid (`eqcalc.nn.sphere`)."""

    source: str
    irreps: str
    polar: int

    def formula(self) -> str:
        return sphere_formula(self.source, self.polar)


@dataclass(frozen=True)
class Contraction(Operation):
    """Products of equivariant features, channel by channel (see `eqcalc.nn.contraction`).

    irreps_in: of the source, all with the same number of channels; irreps: of the value, with the
    same; correlation: highest degree.
    """

    source: str
    irreps_in: str
    irreps: str
    correlation: int

    def formula(self) -> str:
        powers = " + ".join(f"{self.source}^{n}" for n in range(1, self.correlation + 1))
        return f"w[species] ({powers})"


@dataclass(frozen=True)
class Product(Operation):
    """All products of two of the source's irreps into `target` (see `eqcalc.nn.product`).

    irreps_in: of the source, all with the same number of channels; irreps: of the value, each irrep
    with the channels of all its paths.
    """

    source: str
    irreps_in: str
    target: str
    irreps: str

    def formula(self) -> str:
        return f"{self.source} (x) {self.source}"


@dataclass(frozen=True)
class Gate(Operation):
    """irreps: of the value; the source has a gate for each channel with l > 0 beside them.

    activation: of the gates, sigmoid or silu.
    """

    source: str
    irreps: str
    activation: str = "sigmoid"
    on_edges: ClassVar[bool | None] = None

    def formula(self) -> str:
        return f"gate_{self.activation}({self.source})"


@dataclass(frozen=True)
class NormGate(Operation):
    """irreps: of the source and the value; see `eqcalc.nn.norm_gate`."""

    source: str
    irreps: str

    def formula(self) -> str:
        return f"{self.source} activation(|{self.source}| + b)"


@dataclass(frozen=True)
class Add(Operation):
    """sources: values of the same irreps."""

    sources: tuple[str, ...]
    irreps: str
    reads: ClassVar[tuple[str, ...]] = ("sources",)

    def formula(self) -> str:
        return " + ".join(self.sources)


@dataclass(frozen=True)
class Readout(Operation):
    """One number from the even scalars, which are the first irrep of the source.

    hidden: width of a hidden layer with SiLU; 0: it is linear.
    """

    source: str
    irreps_in: str
    hidden: int = 0

    @property
    def irreps(self) -> str:
        return "1x0e"

    def formula(self) -> str:
        scalars = f"{self.source}_0e"
        return f"w silu(W {scalars})" if self.hidden else f"w {scalars}"


@dataclass(frozen=True)
class Output(Operation):
    """A property: the sum of `sources`, which lie on atoms; "energy" goes on to the pair terms.

    per: "structure", summed over its atoms, or "atom".
    """

    sources: tuple[str, ...]
    irreps: str = "1x0e"
    per: str = "structure"
    reads: ClassVar[tuple[str, ...]] = ("sources",)

    def document(self) -> dict[str, Any]:
        document = super().document()
        if self.per == "structure":  # not said, so that older readers know what they read
            del document["per"]
        return document

    def formula(self) -> str:
        terms = " + ".join(self.sources)
        return f"per atom: {terms}" if self.per == "atom" else terms


OPERATIONS: dict[str, type[Operation]] = {
    kind.__name__: kind
    for kind in (
        *(Embedding, Radial, Density, Convolution, Normalization, Linear, Bias),
        *(Contraction, Product, Gate, NormGate, Add, Readout, Output, LayerNorm, Sphere),
        *MESSAGES,
    )
}
#: its name in files that earlier versions wrote
OPERATIONS["Pairs"] = PairSum
