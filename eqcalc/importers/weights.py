"""Foreign weights, each of which is used exactly once, in the conventions of e3nn.

e3nn keeps the matrices of a linear map one after the other, for each irrep in and each equal irrep
out, and divides by the root of the number of channels that end in an irrep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from e3nn import o3
from torch import Tensor

from eqcalc.errors import InputError
from eqcalc.importers.interactions import Interaction
from eqcalc.nn.activations import silu, tanh
from eqcalc.nn.linear import SpeciesLinear

#: what e3nn and we multiply SiLU and tanh by for a unit mean square: it samples, we integrate
E3NN_SILU, E3NN_TANH = 1.6791767923989418, 1.5937334472592695
_ONE = torch.ones((), dtype=torch.float64)
OUR_SILU = float(silu(_ONE) / torch.nn.functional.silu(_ONE))
OUR_TANH = float(tanh(_ONE) / torch.tanh(_ONE))


class Weights:
    """Tensors by name in float64.

    Args:
        tensors: those of a file.
        source: its name, for sentences.
    """

    def __init__(self, tensors: dict[str, Tensor], source: str) -> None:
        self._tensors = {name: t.detach().to(torch.float64) for name, t in tensors.items()}
        self.source = source

    def take(self, name: str, size: int | None = None) -> Tensor:
        """A tensor, which nobody can take again.

        Raises:
            InputError: it is not there, or has not that many elements.
        """
        if name not in self._tensors:
            raise InputError(
                f"{self.source} has no weights '{name}' (any more): it is not covered."
            )
        tensor = self._tensors.pop(name)
        if size is not None and tensor.numel() != size:
            raise InputError(
                f"{self.source}: '{name}' has {tensor.numel()} numbers where its options ask for "
                f"{size}: it is not covered."
            )
        return tensor

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def peek(self, name: str) -> Tensor | None:
        """A constant that is only looked at."""
        return self._tensors.get(name)

    def finish(self, is_constant: Callable[[str], bool]) -> None:
        """Raises InputError if weights are left, but for constants and empty ones."""
        left = [k for k, t in self._tensors.items() if t.numel() and not is_constant(k)]
        if left:
            raise InputError(
                f"{self.source} has weights that nothing here uses: {', '.join(left[:4])}; it is "
                "not covered."
            )


def state_symbols(
    weights: Weights, product: str, *, current: bool = False
) -> Callable[[int, int, int], Tensor | None]:
    """The Wigner 3j symbols of a file by degrees, as its buffers have them.

    Args:
        weights: of the file.
        product: name of the tensor product that holds the buffers.
        current: where they do not, the symbols are ours: the file is of e3nn 0.5 or later.
    """

    def symbol(*degrees: int) -> Tensor | None:
        name = "_".join(["_w3j", *map(str, degrees)])
        found = weights.peek(f"{product}._compiled_main_left_right.{name}")
        if found is None and current:
            return o3.wigner_3j(*degrees, dtype=torch.float64)
        return found

    return symbol


def linear_blocks(
    weight: Tensor, irreps_in: Iterable, irreps_out: Iterable
) -> dict[tuple[int, int], Tensor]:
    """Matrices [in, out] by (place in, place out), divided as e3nn divides them."""
    irreps_in, irreps_out = o3.Irreps(irreps_in), o3.Irreps(irreps_out)
    fan_in = {ir: sum(mul for mul, other in irreps_in if other == ir) for _, ir in irreps_out}
    pairs = [
        (i, k, mul_in, mul_out)
        for i, (mul_in, ir) in enumerate(irreps_in)
        for k, (mul_out, out) in enumerate(irreps_out)
        if ir == out
    ]
    sizes = [mul_in * mul_out for _, _, mul_in, mul_out in pairs]
    if weight.numel() != sum(sizes):
        raise InputError(
            f"a linear map from {irreps_in} to {irreps_out} has {weight.numel()} weights instead "
            f"of {sum(sizes)}: this file is not covered."
        )
    blocks = {}
    for (i, k, mul_in, mul_out), part in zip(pairs, weight.flatten().split(sizes), strict=True):
        blocks[i, k] = part.view(mul_in, mul_out) / math.sqrt(fan_in[irreps_out[k].ir])
    return blocks


def fill_linear(
    linear: SpeciesLinear,
    blocks: dict[o3.Irrep, Tensor],
    irreps_out: o3.Irreps,
    factor: float = 1.0,
) -> None:
    """Puts matrices by irrep, [species, in, out] or [in, out], into a linear map."""
    with torch.no_grad():
        for (_, _, mul_in, mul_out, first), (_, ir) in zip(linear._blocks, irreps_out, strict=True):
            if mul_in:
                matrix = blocks[ir] * (factor * math.sqrt(mul_in))
                span = slice(first, first + mul_in * mul_out)
                linear.weight[:, span] = matrix.reshape(-1, mul_in * mul_out)


def wigner_signs(
    paths: Iterable, irreps_in: o3.Irreps, symbol: Callable[[int, int, int], Tensor | None]
) -> list[float]:
    """1 or -1 for each path: how the Wigner 3j symbols of the file compare with ours.

    Between e3nn 0.4 and 0.5 some of them with odd l1 + l2 + l3 have changed sign; even ones have
    not, nor those with an l of zero.

    Args:
        paths: of a convolution.
        irreps_in: of its features.
        symbol: the file's own, [2 l1 + 1, 2 l2 + 1, 2 l3 + 1], by l1, l2, l3.

    Raises:
        InputError: the file does not say, or has another symbol.
    """
    signs = []
    for path in paths:
        degrees = (irreps_in[path.block].ir.l, path.l2, path.ir_out.l)
        if 0 in degrees:
            signs.append(1.0)
            continue
        theirs, ours = symbol(*degrees), o3.wigner_3j(*degrees, dtype=torch.float64)
        if theirs is None:
            raise InputError(f"the file does not hold the Wigner 3j symbol of {degrees}.")
        sign = 1.0 if float((theirs * ours).sum()) > 0.0 else -1.0
        if not torch.allclose(theirs, sign * ours, atol=1e-6):
            raise InputError(f"the file's Wigner 3j symbol of {degrees} is another one.")
        signs.append(sign)
    return signs


def fill_radial(
    layer: Interaction, matrices: list[Tensor], order: list[int], signs: list[float]
) -> None:
    """Puts a radial network with e3nn's SiLU into a layer.

    Args:
        layer: to be filled.
        matrices: [in, out] of each layer of the network.
        order: paths of the convolution in the order of the file's columns.
        signs: of each path.
    """
    paths = layer.convolution.paths
    starts, at = {}, 0
    for n in order:
        starts[n] = at
        at += paths[n].mul
    columns = [
        signs[n] * matrices[-1][:, starts[n] : starts[n] + path.mul] for n, path in enumerate(paths)
    ]
    ratio = E3NN_SILU / OUR_SILU
    with torch.no_grad():
        for n, weight in enumerate(layer.radial.weights):
            theirs = matrices[n] if n + 1 < len(matrices) else torch.cat(columns, dim=1)
            weight.copy_(theirs * (ratio if n else 1.0))
