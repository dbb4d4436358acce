r"""Products of features with themselves up to a degree: many-body terms of one atom.

MACE (Batatia et al., arXiv:2206.07697, eqs. 10 and 11): for every irrep l, channel c and species z

    B_i^{c m} = sum_{n k} w_{z k c}^{n l} sum_{m1..mn} U^{n l k}_{m1..mn m} A_i^{c m1} .. A_i^{c mn}

U^{n l k}, k = 1, 2, ...: a basis of the symmetric equivariant maps of degree n into l. A product of
numbers does not know their order, so U is kept as what it is, polynomials: coefficients of the
monomials A_{m1} ... A_{mn}, m1 <= ... <= mn. Degree n comes from coupling the basis of degree
n - 1, all its irreps, with one more A (every symmetric map is a sum of such); what is linearly
dependent is left out, and the rest made orthonormal in the inner product of polynomials that
rotations leave alone, sum over monomials of coefficients times factorials of the exponents.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations_with_replacement

import torch
from e3nn import o3
from torch import Tensor, nn

#: of the squared norm, below which a polynomial is a combination of others
DEPENDENT = 1e-8


@lru_cache(maxsize=32)
def _monomials(rows: int, degree: int) -> tuple[dict[tuple[int, ...], int], Tensor]:
    """Places of the monomials of a degree in `rows` variables, and their factorials [monomials]."""
    every = list(combinations_with_replacement(range(rows), degree))
    weights = [math.prod(math.factorial(m.count(i)) for i in set(m)) for m in every]
    return {m: n for n, m in enumerate(every)}, torch.tensor(weights, dtype=torch.float64)


@lru_cache(maxsize=32)
def _times(rows: int, degree: int) -> Tensor:
    """Where variable i times monomial k is among those of the next degree, [monomials, rows]."""
    before, after = _monomials(rows, degree)[0], _monomials(rows, degree + 1)[0]
    return torch.tensor([[after[tuple(sorted((*m, i)))] for i in range(rows)] for m in before])


def monomial_places(rows: int, degree: int) -> Tensor:
    """Which monomial a product of variables is, whatever their order: [rows, .., rows]."""
    places = torch.arange(rows)
    for before in range(1, degree):
        places = _times(rows, before)[places]
    return places


def _independent(
    candidates: Sequence[Tensor], norms: Tensor, dim: int, known: Sequence[Tensor] = ()
) -> list[Tensor]:
    """An orthonormal basis of polynomials [2l + 1, monomials], taken in their order."""
    basis = list(known)
    for polynomial in candidates:
        size = float((polynomial.square() * norms).sum() / dim)
        if size < DEPENDENT:
            continue
        left = polynomial / math.sqrt(size)
        for _ in range(2):  # the second time for rounding
            for other in basis:
                left = left - other * ((left * other * norms).sum() / dim)
        size = float((left.square() * norms).sum() / dim)
        if size > DEPENDENT:
            basis.append(left / math.sqrt(size))
    return basis


@lru_cache(maxsize=16)
def symmetric_basis(
    irreps_in: o3.Irreps, degree: int, targets: tuple[o3.Irrep, ...] | None = None
) -> dict[o3.Irrep, Tensor]:
    """Symmetric equivariant polynomials of one degree: {irrep: [paths, 2l + 1, monomials]}.

    Monomials are in the order of `itertools.combinations_with_replacement` over the rows of
    `irreps_in`, multiplicities ignored.

    Args:
        irreps_in: every irrep once.
        degree: 1, 2, ...
        targets: irreps that are wanted; None: all.
    """
    rows = sum(ir.dim for _, ir in irreps_in)
    places, norms = _monomials(rows, degree)
    slices = irreps_in.slices() if all(mul == 1 for mul, _ in irreps_in) else None
    if slices is None:
        return symmetric_basis(o3.Irreps([(1, ir) for _, ir in irreps_in]), degree, targets)
    if degree == 1:
        unit = torch.eye(rows, dtype=torch.float64)
        found = {ir: unit[at].unsqueeze(0) for (_, ir), at in zip(irreps_in, slices, strict=True)}
        return {ir: basis for ir, basis in found.items() if targets is None or ir in targets}
    times = _times(rows, degree - 1)
    candidates: dict[o3.Irrep, list[Tensor]] = {}
    for ir_before, before in symmetric_basis(irreps_in, degree - 1).items():
        for (_, ir_a), at in zip(irreps_in, slices, strict=True):
            for ir in ir_before * ir_a:
                if targets is not None and ir not in targets:
                    continue
                w3j = o3.wigner_3j(ir_before.l, ir_a.l, ir.l, dtype=torch.float64)
                for polynomial in before:
                    product = torch.einsum("ijm,ik->mkj", w3j, polynomial)
                    made = torch.zeros(ir.dim, len(places), dtype=torch.float64)
                    made.index_add_(1, times[:, at].flatten(), product.flatten(1))
                    candidates.setdefault(ir, []).append(made)
    found = {ir: _independent(c, norms, ir.dim) for ir, c in sorted(candidates.items())}
    return {ir: torch.stack(basis) for ir, basis in found.items() if basis}


class Contraction(nn.Module):
    """Polynomials of features, channel by channel, weighted by species.

    Args:
        irreps_in: each irrep once, all with the same number of channels.
        irreps_out: each irrep once, with as many; every one must be reached.
        correlation: highest degree.
        num_species: how many sets of weights.

    forward: features [N, irreps_in.dim], species [N] -> [N, irreps_out.dim].

    weight: [species, paths, channels], the paths of an irrep out after those of the one before, and
    of a degree after those of the lower one; N(0, 1) at first, divided by the root of the number of
    paths of the irrep in the forward pass.

    Raises:
        ValueError: irreps that do not fit, or an irrep out that no product reaches.
    """

    # per irrep out: 2l + 1, first path, paths
    _blocks: list[tuple[int, int, int]]

    def __init__(
        self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, correlation: int, num_species: int
    ) -> None:
        super().__init__()
        self.num_channels = irreps_in[0].mul
        if any(mul != self.num_channels for mul, _ in [*irreps_in, *irreps_out]):
            raise ValueError(f"{irreps_in} -> {irreps_out}: all must have equally many channels")
        self.irreps_in, self.irreps_out = irreps_in, irreps_out
        self.num_rows = sum(ir.dim for _, ir in irreps_in)
        self.num_species, self.correlation = num_species, correlation
        wanted = tuple(ir for _, ir in irreps_out)
        degrees = range(1, correlation + 1)
        bases = [symmetric_basis(irreps_in, n, wanted) for n in degrees]
        counts = [len(_monomials(self.num_rows, n)[0]) for n in degrees]
        for n in degrees[1:]:
            before, after = (list(_monomials(self.num_rows, d)[0]) for d in (n - 1, n))
            place = {m: k for k, m in enumerate(before)}
            self.register_buffer(f"before_{n}", torch.tensor([place[m[:-1]] for m in after]))
            self.register_buffer(f"last_{n}", torch.tensor([m[-1] for m in after]))
        self._blocks = []
        first = 0
        for k, ir in enumerate(wanted):
            parts = []
            for degree, basis in enumerate(bases):
                if ir in basis:
                    left, right = sum(counts[:degree]), sum(counts[degree + 1 :])
                    parts.append(nn.functional.pad(basis[ir], (left, right)))
            if not parts:
                raise ValueError(f"no product of {irreps_in} up to {correlation} reaches {ir}")
            coupling = torch.cat(parts)
            used = torch.nonzero(coupling.abs().amax((0, 1)) > 1e-12).squeeze(1)
            self.register_buffer(f"coupling_{k}", coupling[:, :, used])
            self.register_buffer(f"used_{k}", used)
            self._blocks.append((ir.dim, first, len(coupling)))
            first += len(coupling)
        self.weight = nn.Parameter(torch.randn(num_species, first, self.num_channels))

    def _places(self, irrep: o3.Irrep, degree: int) -> tuple[int, int]:
        """First path of a degree into an irrep, and how many there are."""
        place = [ir for _, ir in self.irreps_out].index(irrep)
        counts = [
            len(
                symmetric_basis(self.irreps_in, n, tuple(ir for _, ir in self.irreps_out)).get(
                    irrep, ()
                )
            )
            for n in range(1, degree + 1)
        ]
        return self._blocks[place][1] + sum(counts[:-1]), counts[-1]

    def expand(self, polynomials: Tensor, irrep: o3.Irrep, degree: int) -> tuple[Tensor, float]:
        """Polynomials [k, 2l + 1, monomials] of a degree in our basis.

        Returns:
            Coefficients [k, paths], and the largest coefficient of a monomial that is left over.
        """
        basis = symmetric_basis(self.irreps_in, degree, tuple(ir for _, ir in self.irreps_out))
        norms = _monomials(self.num_rows, degree)[1]
        if irrep not in basis:
            return polynomials.new_zeros(len(polynomials), 0), float(polynomials.abs().max())
        overlap = torch.einsum("kdm,pdm,m->kp", polynomials, basis[irrep], norms) / irrep.dim
        left = polynomials - torch.einsum("kp,pdm->kdm", overlap, basis[irrep])
        return overlap, float(left.abs().max())

    def set_weights(self, irrep: o3.Irrep, degree: int, weights: Tensor) -> None:
        """What the polynomials of a degree into an irrep count: [species, paths, channels]."""
        first, count = self._places(irrep, degree)
        place = [ir for _, ir in self.irreps_out].index(irrep)
        with torch.no_grad():
            root = math.sqrt(self._blocks[place][2])
            self.weight[:, first : first + count] = weights * root

    def _constants(self) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        before: list[Tensor] = []
        last: list[Tensor] = []
        couplings: list[Tensor] = []
        used: list[Tensor] = []
        for name, buffer in self.named_buffers():
            if name.startswith("before_"):
                before.append(buffer)
            elif name.startswith("last_"):
                last.append(buffer)
            elif name.startswith("coupling_"):
                couplings.append(buffer)
            else:
                used.append(buffer)
        return before, last, couplings, used

    def _contract(
        self, monomials: Tensor, weight: Tensor, couplings: list[Tensor], used: list[Tensor]
    ) -> Tensor:
        """monomials [n, K, channels] and weight [paths, channels] of one species -> [n, dim]."""
        columns: list[Tensor] = []
        for k, (dim, first, count) in enumerate(self._blocks):
            w = weight[first : first + count] / math.sqrt(count)
            # of every channel: [channels, monomials, 2l + 1]
            coupling = couplings[k].to(w.dtype).flatten(1)
            polynomial = (w.t() @ coupling).view(self.num_channels, dim, -1).transpose(1, 2)
            mine = monomials.index_select(1, used[k]).permute(2, 0, 1)
            columns.append(torch.bmm(mine, polynomial).permute(1, 2, 0).flatten(1))
        return torch.cat(columns, dim=1)

    def forward(self, x: Tensor, species: Tensor) -> Tensor:
        before, last, couplings, used = self._constants()
        a = x.view(-1, self.num_rows, self.num_channels)
        products = a
        parts = [a]
        for n in range(len(before)):
            products = products.index_select(1, before[n]) * a.index_select(1, last[n])
            parts.append(products)
        monomials = torch.cat(parts, dim=1)
        if self.num_species == 1:
            return self._contract(monomials, self.weight[0], couplings, used)
        rows: list[Tensor] = []
        order: list[Tensor] = []
        for s in range(self.num_species):
            index = torch.nonzero(species == s).squeeze(1)
            order.append(index)
            mine = monomials.index_select(0, index)
            rows.append(self._contract(mine, self.weight[s], couplings, used))
        back = torch.argsort(torch.cat(order))
        return torch.cat(rows).index_select(0, back)
