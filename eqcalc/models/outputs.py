"""Operations that make outputs beside the energy, for any architecture.

The features of some layers, all of them equivariant, pass through linear maps into the irreps of an
output and are added up; those of the last layer through a gate as well, as energies do in MACE.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from e3nn import o3

from eqcalc.errors import InputError
from eqcalc.nn.gate import gate_input
from eqcalc.nn.product import product_irreps
from eqcalc.outputs import OutputConfig
from eqcalc.program import Add, Gate, LayerNorm, Linear, Output, Product
from eqcalc.program.operations import Operation


class Features(NamedTuple):
    """A value on atoms, and its irreps."""

    name: str
    irreps: o3.Irreps


def wanted_irreps(outputs: Sequence[OutputConfig], *but: o3.Irrep) -> list[o3.Irrep]:
    """Of all outputs, each once, but for some."""
    every = {o3.Irrep(part.l, part.p) for output in outputs for part in output.parts}
    return sorted(every - {*but})


def needs_both_parities(outputs: Sequence[OutputConfig]) -> bool:
    """Whether an irrep is asked for that is no product of vectors, as 0o, 1e and 2o."""
    return any(ir.p != (-1) ** ir.l for ir in wanted_irreps(outputs))


def last_features(outputs: Sequence[OutputConfig], hidden: o3.Irreps) -> o3.Irreps:
    """Of the inner features those that a last layer needs: even scalars, then what outputs are."""
    scalar = o3.Irrep("0e")
    first = [(mul, ir) for mul, ir in hidden if ir == scalar]
    wanted = wanted_irreps(outputs, scalar)
    return o3.Irreps([*first, *((mul, ir) for mul, ir in hidden if ir in wanted)])


def of_both_parities(
    x: Features, outputs: Sequence[OutputConfig], channels: int
) -> tuple[list[Operation], Features]:
    """Features with the irreps of the outputs, from some of natural parity alone.

    The product of a vector and a tensor of second degree has a part that is no natural one (2o),
    whose products with the others are pseudovectors (1e), pseudoscalars (0o) and so on.

    Args:
        x: with equally many channels of each degree, natural parity.
        outputs: that are wanted.
        channels: of the products' factors.
    """
    plain = o3.Irreps([(channels, ir) for _, ir in x.irreps])
    other = o3.Irreps([(channels, (ir.l, -ir.p)) for _, ir in x.irreps if ir.l])
    first = product_irreps(plain, other)
    both = plain + o3.Irreps([(channels, ir) for _, ir in first])
    wanted = [(channels, ir) for ir in wanted_irreps(outputs, o3.Irrep("0e"))]
    second = product_irreps(both, o3.Irreps(wanted))
    made = o3.Irreps([(channels, "0e"), *wanted])
    made = o3.Irreps([(mul, ir) for mul, ir in made if ir in plain or ir in second])
    return [
        Linear("factors", x.name, str(x.irreps), str(plain)),
        Product("products", "factors", str(plain), str(other), str(first)),
        LayerNorm("normed_products", "products", str(first)),
        Linear("plain_factors", x.name, str(x.irreps), str(both)),
        Linear("other_factors", "normed_products", str(first), str(both)),
        Add("all_factors", ("plain_factors", "other_factors"), str(both)),
        Product("all_products", "all_factors", str(both), str(o3.Irreps(wanted)), str(second)),
        Linear("plain_features", x.name, str(x.irreps), str(made)),
        Linear("other_features", "all_products", str(second), str(made)),
        Add("features", ("plain_features", "other_features"), str(made)),
    ], Features("features", made)


def output_operations(
    outputs: Sequence[OutputConfig], layers: Sequence[Features], hidden: int
) -> list[Operation]:
    """Operations from the features of layers to the outputs.

    Args:
        outputs: that are wanted.
        layers: whose features are read, the last one at the end.
        hidden: channels of each irrep between the two maps behind the last layer; 0: one map.

    Raises:
        InputError: no feature of the last layer has an irrep of an output.
    """
    if not outputs:
        return []
    scalar, (name, irreps) = o3.Irrep("0e"), layers[-1]
    known = {ir for _, ir in irreps}
    for output in outputs:
        for part in output.parts:
            if (ir := o3.Irrep(part.l, part.p)) not in known:
                raise InputError(
                    f"model.outputs: no path of this network leads to the {ir} of '{output.name}': "
                    "raise l_max or num_layers (a pseudoscalar 0o needs l_max = 2 and three "
                    "layers), or leave this output out."
                )
    operations: list[Operation] = []
    if hidden:
        inner = o3.Irreps([(hidden, ir) for ir in (scalar, *wanted_irreps(outputs, scalar))])
        operations += [
            Linear("to_outputs", name, str(irreps), str(gate_input(inner))),
            Gate("gated_outputs", "to_outputs", str(inner)),
        ]
        layers = [*layers[:-1], Features("gated_outputs", inner)]
    for output in outputs:
        made = o3.Irreps(output.irreps.replace(" ", ""))
        terms = []
        for number, (name, irreps) in enumerate(layers):
            if {ir for _, ir in made} & {ir for _, ir in irreps}:
                terms.append(f"{output.name}_{number}")
                operations.append(Linear(terms[-1], name, str(irreps), str(made)))
        operations.append(Output(output.name, tuple(terms), str(made), output.per))
    return operations
