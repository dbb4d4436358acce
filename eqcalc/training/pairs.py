r"""A pair potential fitted to labels: what the network need not learn.

`eqcalc.nn.reference.PairEnergy` is linear in its coefficients c, so labels give them by least
squares,

    min_c  sum |F - F_pair(c)|^2 / Å^2 + sum (E - E_pair(c) - sum_i e_{z_i})^2 / N + ridge,

the offsets e of the elements being thrown away. Exponentials are nearly dependent on each other;
the ridge, on coefficients in units of what they do to the forces, keeps them small.

V is convex, V'' >= 0, so that it only repels and ever more the closer two atoms are. The frames of
one molecule never change the number of its bonds, so nothing in them tells how strong each kind of
bond is; attraction that is fitted to them all the same makes holes where a bond breaks and another
forms. (Acetylacetone: -3.3 eV for O-H and -0.8 eV for C-H; a hydrogen that moved from carbon to
oxygen gained 2.5 eV.) What such a fit does know is the wall of a bond: half of its curvature is the
harmonic force of the bond, and its slope below the shortest distance is about a Morse potential's.
So the same least squares are solved twice, first free, for the slopes W below the shortest
distance, then convex and drawn to these,

    ... + WALL_WEIGHT <(V' / W - 1)^2>.

Elements that are not bonded in the frames have no wall there: their shortest distance is what
other bonds leave them (H and O of 3BPA 1.80 Å at 300 K, where a hydrogen bond of 1.84 Å at 600 K
got 1.3 eV/Å of repulsion from a wall that is not there). So for these, and where the free fit is no
wall, W is the slope of the bare nuclei's screened repulsion (Ziegler, Biersack and Littmark,
`eqcalc.nn.reference`) at distances at which they would be bonded, at most. The network sees no
distances much shorter than the shortest (`eqcalc.nn.radial.InnerLimit`).

References:
    C. L. Lawson and R. J. Hanson, Solving Least Squares Problems (1974), chapter 23: least squares
    with linear inequalities as a problem of non-negative least squares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from ase.data import covalent_radii
from scipy.optimize import nnls

from eqcalc.data.dataset import Batch, GraphDataset
from eqcalc.errors import InputError
from eqcalc.nn.radial import polynomial_envelope
from eqcalc.nn.reference import PairConstants, PairEnergy, no_pairs, zbl_slope

#: on normalised coefficients
RIDGE = 1e-5
#: of the shortest distance: below which the network sees a constant distance, and where the
#: core repulsion ends
INNER, CORE = 0.93, 0.85
#: of the shortest distance: where the slope is drawn to that of the free fit, or else of V_ZBL (of
#: the longest bond, if that is shorter); the weight of that beside mean squares of forces in eV/Å
WALL, BARE = (0.7, 0.95), (0.55, 0.9)
#: of the sum of the covalent radii: two atoms that are farther apart are not bonded
BONDED = 1.25
WALL_WEIGHT = 0.3
#: pairs grow as its square, operations as its sixth power
MOST_ELEMENTS = 10
#: frames that are looked at, evenly spread over the set
FRAMES = 2000

#: the curvature is checked at so many distances up to this part of the cutoff
POINTS, LAST = 200, 0.99

ORDERS = np.arange(1, PairEnergy.TERMS + 1)


def _terms(r: np.ndarray, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every coefficient 1 eV: energy eV, slope eV/Å and curvature eV/Å^2 [E, TERMS] at r [E]."""
    rate = PairEnergy.RATE * ORDERS
    decay = np.exp(-np.outer(r, rate))
    length = torch.from_numpy(r).requires_grad_()
    envelope = polynomial_envelope(length / cutoff, 6)
    (slope,) = torch.autograd.grad(envelope.sum(), length, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), length)
    u, u1, u2 = (t.detach().numpy()[:, None] for t in (envelope, slope, curvature))
    return decay * u, decay * (u1 - rate * u), decay * (u2 - 2 * rate * u1 + rate**2 * u)


def _least_squares(square: np.ndarray, right: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """The x that makes x.square.x / 2 - right.x least under positive @ x >= 0."""
    factor = np.linalg.cholesky(square).T
    free = np.linalg.solve(factor.T, right)
    rows = np.linalg.solve(factor.T, positive.T)
    system = np.vstack([rows, -(free @ rows)])
    residual = system @ nnls(system, np.eye(len(system))[-1], maxiter=100 * len(rows))[0]
    residual[-1] -= 1.0
    return np.linalg.solve(factor, free - residual[:-1] / residual[-1])


@dataclass(frozen=True)
class _Design:
    """One frame as a linear function of the coefficients [pairs, TERMS].

    energy [pairs, TERMS]; forces [atoms, 3, pairs, TERMS]; shortest [pairs] Å, inf where none.
    """

    energy: np.ndarray
    forces: np.ndarray
    shortest: np.ndarray


def _design(item: Batch, index: np.ndarray, cutoff: float) -> _Design:
    """`index` [species, species]: number of the (unordered) pair."""
    graph = item.graph
    vec, species = graph.edge_vec.numpy(), graph.species.numpy()
    src, dst = graph.edge_src.numpy(), graph.edge_dst.numpy()
    r = np.sqrt(np.square(vec).sum(axis=1))
    pair = index[species[dst], species[src]]
    energy, slope, _ = _terms(r, cutoff)
    number, size = index.max() + 1, len(species)
    total = np.zeros((number, ORDERS.size))
    np.add.at(total, pair, 0.5 * energy)
    gradient = 0.5 * slope[:, :, None] * (vec / r[:, None])[:, None, :]
    forces = np.zeros((size, number, ORDERS.size, 3))
    np.add.at(forces, (dst, pair), gradient)
    np.add.at(forces, (src, pair), -gradient)
    shortest = np.full(number, np.inf)
    np.minimum.at(shortest, pair, r)
    return _Design(total, forces.transpose(0, 3, 1, 2), shortest)


def _chosen(frames: GraphDataset) -> Iterator[Batch]:
    """Up to FRAMES frames, evenly spread over the set."""
    count = min(FRAMES, len(frames))
    return (frames[k * len(frames) // count] for k in range(count))


class _Fit:
    """Normal equations of the coefficients, pair by pair, and of one offset per element."""

    def __init__(self, num_species: int, cutoff: float) -> None:
        self.cutoff = cutoff
        first, second = np.triu_indices(num_species)
        self.index = np.zeros((num_species, num_species), dtype=np.int64)
        self.index[first, second] = self.index[second, first] = np.arange(len(first))
        self.shortest = np.full(len(first), np.inf)
        self.num_species, self.width = num_species, len(first) * ORDERS.size
        self.square = np.zeros((self.width + num_species, self.width + num_species))
        self.right = np.zeros(self.width + num_species)
        self.rows = 0

    def add(self, item: Batch, shift: np.ndarray) -> None:
        """One frame, the energies of its atoms being about `shift` [species] eV."""
        design = _design(item, self.index, self.cutoff)
        self.shortest = np.minimum(self.shortest, design.shortest)
        forces = item.forces.numpy().reshape(-1)
        known = np.isfinite(forces)
        matrix = design.forces.reshape(len(forces), self.width)[known]
        self.square[: self.width, : self.width] += matrix.T @ matrix
        self.right[: self.width] += matrix.T @ forces[known]
        counts = np.bincount(item.graph.species.numpy(), minlength=self.num_species)
        row = np.concatenate([design.energy.reshape(-1), counts])
        self.square += np.outer(row, row) / counts.sum()
        self.right += row * (float(item.energy) - counts @ shift) / counts.sum()
        self.rows += int(known.sum()) + 1

    def solve(self, atomic_numbers: Sequence[int]) -> np.ndarray:
        """Coefficients [pairs, TERMS] eV of a convex potential."""
        size = np.sqrt(np.diag(self.square) / self.rows)
        size[size == 0.0] = 1.0  # of pairs that never meet
        square = self.square / self.rows / np.outer(size, size) + RIDGE * np.eye(len(size))
        right = self.right / self.rows / size
        free = np.linalg.solve(square, right)
        first, second = np.triu_indices(self.num_species)
        convex = []
        for pair in np.flatnonzero(np.isfinite(self.shortest)):
            mine = slice(pair * ORDERS.size, (pair + 1) * ORDERS.size)
            ends = atomic_numbers[first[pair]], atomic_numbers[second[pair]]
            slope, wall = self._wall(pair, free[mine] / size[mine], *ends)
            matrix = slope / wall[:, None] / size[mine]
            square[mine, mine] += WALL_WEIGHT * matrix.T @ matrix / len(wall)
            right[mine] += WALL_WEIGHT * matrix.sum(axis=0) / len(wall)
            rows = np.zeros((POINTS, len(size)))
            r = np.linspace(0.0, LAST * self.cutoff, POINTS)
            rows[:, mine] = _terms(r, self.cutoff)[2] / size[mine]
            convex.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))
        solution = _least_squares(square, right, np.concatenate(convex)) / size
        return solution[: self.width].reshape(-1, ORDERS.size)

    def _wall(
        self, pair: int, free: np.ndarray, first: int, second: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Slopes per coefficient [points, TERMS] and the slopes that they are drawn to [points]."""
        shortest, bond = self.shortest[pair], BONDED * covalent_radii[[first, second]].sum()
        if shortest < bond:
            r = np.linspace(*WALL, 12) * shortest
            slope = _terms(r, self.cutoff)[1]
            wall = slope @ free
            if (wall < 0.0).all() and (np.diff(wall) > 0.0).all():
                return slope, wall
        r = np.linspace(*BARE, 12) * min(shortest, bond)
        return _terms(r, self.cutoff)[1], zbl_slope(torch.from_numpy(r), first, second).numpy()


def _limited(constants: PairConstants, shortest: np.ndarray) -> PairConstants:
    """Core repulsion and inner limits that stay inside of distances [species, species] Å.

    They only become shorter, but for inner limits that are not there yet.
    """
    core = np.minimum(constants.core_cutoffs, np.round(CORE * shortest, 4))
    old = np.array(constants.inner_limits)
    new = np.round(INNER * shortest, 4)
    inner = np.where(np.isinf(new), old, np.where(old > 0.0, np.minimum(old, new), new))
    return PairConstants(constants.coefficients, core.tolist(), inner.tolist())


def relimited(
    constants: PairConstants, frames: GraphDataset, atomic_numbers: Sequence[int], *, anew: bool
) -> PairConstants:
    """The same pair potential, limits as other frames want them.

    They become shorter where these frames have shorter distances. With `anew`, they are those of
    these frames for all pairs that these frames have, longer ones too: what a network knew beyond
    of another method is not held in place while it learns a new one. (Acetylacetone, begun with
    GFN2-xTB at 1500 K: an O-H bond at 0.76 Å cost 800 eV, and dynamics at 1500 K blew up.)
    """
    shortest = np.full(2 * [len(atomic_numbers)], np.inf)
    for item in _chosen(frames):
        graph = item.graph
        pairs = graph.species[graph.edge_dst].numpy(), graph.species[graph.edge_src].numpy()
        np.minimum.at(shortest, pairs, graph.edge_vec.norm(dim=1).numpy())
    old = np.array(constants.inner_limits)
    shortest = np.where(old > 0.0, shortest, np.inf)
    if anew:
        met, blank = np.isfinite(shortest), no_pairs([*atomic_numbers])
        core = np.where(met, blank.core_cutoffs, constants.core_cutoffs)
        inner = np.where(met, np.inf, old)
        constants = replace(constants, core_cutoffs=core.tolist(), inner_limits=inner.tolist())
    return _limited(constants, shortest)


@dataclass(frozen=True)
class PairFit:
    """A pair potential and what it leaves.

    Attributes:
        constants: rounded to six digits, so that machines agree on them.
        counts: atoms by species of the frames that were looked at, [frames, species].
        energies: what is left of their energies, [frames] eV.
        force_rms: of what is left of their forces, eV/Å; NaN where there are none.
    """

    constants: PairConstants
    counts: np.ndarray
    energies: np.ndarray
    force_rms: float


def fit_pairs(
    frames: GraphDataset, atomic_numbers: Sequence[int], shift: Sequence[float], cutoff: float
) -> PairFit:
    """The pair potential of a training set, whose frames count alike.

    Two elements that never meet get the mean of what each of them has with itself.

    Args:
        frames: with the species of `atomic_numbers`.
        atomic_numbers: Z of each species.
        shift: about the energy of an atom of each, eV.
        cutoff: Å.

    Raises:
        InputError: too many elements.
    """
    if len(atomic_numbers) > MOST_ELEMENTS:
        raise InputError(
            f"model.pair_potential is for at most {MOST_ELEMENTS} elements, and the frames have "
            f"{len(atomic_numbers)}: leave it out."
        )
    fit = _Fit(len(atomic_numbers), cutoff)
    for item in _chosen(frames):
        fit.add(item, np.asarray(shift))
    by_pair = fit.solve(atomic_numbers)
    met = np.isfinite(fit.shortest)
    like = np.diag(fit.index)
    for a, b in zip(*np.triu_indices(len(atomic_numbers), 1), strict=True):
        if not met[fit.index[a, b]] and met[like[[a, b]]].all():
            by_pair[fit.index[a, b]] = by_pair[like[[a, b]]].mean(axis=0)
    by_pair = np.array([[float(f"{c:.6g}") for c in pair] for pair in by_pair])
    plain = no_pairs(list(atomic_numbers))
    constants = PairConstants(by_pair[fit.index].tolist(), plain.core_cutoffs, plain.inner_limits)
    constants = _limited(constants, fit.shortest[fit.index])

    counts, energies, square, components = [], [], 0.0, 0
    for item in _chosen(frames):
        design = _design(item, fit.index, cutoff)
        counts.append(np.bincount(item.graph.species.numpy(), minlength=len(atomic_numbers)))
        energies.append(float(item.energy) - float((design.energy * by_pair).sum()))
        left = item.forces.numpy() - np.einsum("nxpk,pk->nx", design.forces, by_pair)
        left = left[np.isfinite(left)]
        square, components = square + float(np.square(left).sum()), components + left.size
    force_rms = float(np.sqrt(square / components)) if components else float("nan")
    return PairFit(constants, np.array(counts), np.array(energies), force_rms)
