"""Splines through the radial weights of each layer of a file, for the fused engine.

A spline of odd degree, with all derivatives but the last continuous, interpolates on the knots of
segments of distances. Each layer has segments of its own, cut into as few equal intervals as
`tolerance` allows: a table should fit the second-level cache, and radial functions are steep at
short distances alone. Where the envelope's curvature jumps, one spline ends and another begins.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from ase.data import covalent_radii
from scipy.interpolate import make_interp_spline

from eqcalc.engine.arrays import as_array
from eqcalc.engine.density import Sampler, condense
from eqcalc.engine.plan import NotCovered, Plan, RadialTable

#: length (Å) that makes an error of a slope comparable with one of a value
RADIAL_SCALE = 0.2
#: intervals per cutoff that a segment may have
DENSITIES = (
    *(24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 1024, 1536, 2048),
    *(3072, 4096, 6144),
)
DENSEST = 8192
#: segments grow outwards by this factor: the steeper, the shorter. The tables of SevenNet-l3i5 (89
#: elements, l_max 3) take 38 MB then; with segments from 0.1, 0.2, 0.4 and 0.7 of the cutoff, 52
GROWTH = 1.35
#: a border nearer than this part of a segment to one that must be there is left out
CLOSE = 0.4
#: knots at negative distances: the functions are even
MIRRORED = 8

#: by how much errors may be larger nearer than the shortest bond
NEAR = 30.0

#: errors may be as much smaller at larger distances as weights are, down to this part
LEAST = 20.0

#: radial functions, of all kinds of bonds together, that are tabulated for distances in bonds
MOST_FUNCTIONS = 30_000

#: distances at which weights are compared with combinations of few functions
SAMPLES = 1500


def basis(module: torch.jit.ScriptModule, plan: Plan, distances: np.ndarray) -> list[torch.Tensor]:
    """Bessel functions of each kind of bonds, even functions of the distance: [len(distances), n].

    One kind, if distances are not in units of bonds.
    """
    r = torch.from_numpy(np.maximum(np.abs(distances), 1e-6))
    if plan.agnesi is None:
        return [module.radial_basis(r)]
    a, q, p = plan.agnesi.a, plan.agnesi.q, plan.agnesi.p
    in_bonds = [r / bond for bond in plan.agnesi.bonds]
    changed = [1.0 / (1.0 + a * x.pow(q) / (1.0 + x.pow(q - p))) for x in in_bonds]
    return [module.radial_basis.transformed(x, r) for x in changed]


def sample(
    module: torch.jit.ScriptModule, plan: Plan, layer: int, distances: np.ndarray
) -> np.ndarray:
    """Radial weights of each kind of bonds: [len(distances), kinds, weights]."""
    with torch.no_grad():
        if plan.agnesi is None:
            positive = torch.from_numpy(np.maximum(np.abs(distances), 1e-6))
            weights = as_array(module.radial(layer, positive))[:, None]
            degrees = plan.layers[layer].weights.degrees
            if plan.solid and degrees is None:
                raise NotCovered("of messages on edges, solid harmonics are not covered")
            if plan.solid:  # r^l, odd for odd l
                weights = weights * distances[:, None, None] ** degrees
            return weights
        every = np.stack([as_array(b) for b in basis(module, plan, distances)], axis=1)
    x = np.zeros((*every.shape[:2], len(plan.layers[layer].radial_network[0])))
    x[..., : every.shape[2]] = every
    for n, matrix in enumerate(plan.layers[layer].radial_network):
        x = (plan.basis.silu * x / (1.0 + np.exp(-x)) if n else x) @ matrix
    weights = plan.layers[layer].weights
    return x[..., weights.places] / weights.scales


def sample_counts(module: torch.jit.ScriptModule, plan: Plan, distances: np.ndarray) -> np.ndarray:
    """The functions of `Plan.counts`: [len(distances), kinds, columns]."""
    with torch.no_grad():
        every = [as_array(b) for b in basis(module, plan, distances)]
    return np.stack(every, axis=1) @ plan.counts.matrix


def too_many(plan: Plan) -> bool:
    """Whether tables for all kinds of bonds would be too large."""
    kinds = 1 if plan.agnesi is None else len(plan.agnesi.bonds)
    weights = sum(layer.all_weights for layer in plan.layers)
    return kinds > 1 and kinds * weights > MOST_FUNCTIONS


def _borders(start: float, onset: float, cutoff: float) -> list[float]:
    """Where segments begin, and the cutoff: 0, half a bond and a bond, a kink, and in between."""
    bond = [2.0 * start] if 2.1 * start < (onset or cutoff) else []
    fixed = [0.0, start, *bond, *([onset] if onset else []), cutoff]
    count = math.floor(math.log(cutoff / start) / math.log(GROWTH))
    free = [cutoff / GROWTH**n for n in range(1, count + 1)]
    free = [b for b in free if min(abs(b - x) for x in fixed) > CLOSE * (GROWTH - 1.0) * b]
    return sorted({*fixed, *(b for b in free if b > start)})


class _Splines:
    """Splines on segments with these borders, cut into `counts` intervals; a kink is a border."""

    def __init__(
        self, of: Sampler, borders: list[float], counts: list[int], kink: float, degree: int
    ) -> None:
        spans = list(zip(borders[:-1], borders[1:], counts, strict=True))
        starts = [np.linspace(a, b, n, endpoint=False) for a, b, n in spans]
        self.left = np.concatenate(starts)  # of each interval
        self.step = np.concatenate([np.full(n, (b - a) / n) for a, b, n in spans])
        first = self.step[0]
        knots = [np.arange(-MIRRORED, 0) * first, self.left, [borders[-1]]]
        knots = np.concatenate(knots)
        values = of(knots)
        at = int(np.searchsorted(knots, kink - 1e-9)) if kink else len(knots) - 1
        pieces = [slice(0, at + 1)] + ([slice(at, None)] if kink else [])
        self.kink = kink or np.inf
        self.pieces = [make_interp_spline(knots[p], values[p], k=degree) for p in pieces]

    def __call__(self, r: np.ndarray, derivative: int = 0) -> np.ndarray:
        below = r < self.kink - 1e-9
        out = self.pieces[0](np.where(below, r, 0.0), nu=derivative)
        if not below.all():
            out[~below] = self.pieces[1](r[~below], nu=derivative)
        return out

    def coefficients(self, degree: int) -> np.ndarray:
        """[intervals, degree + 1, kinds, functions] of powers of t = -1/2..1/2."""
        powers = range(degree + 1)
        terms = [
            self(self.left + 0.5 * self.step, d) * self.step[:, None, None] ** d / math.factorial(d)
            for d in powers
        ]
        return np.stack(terms, axis=1)

    def errors(self, of: Sampler, combine: Sampler) -> tuple[np.ndarray, np.ndarray]:
        """Largest errors of values and slopes half-way between knots, and values; by interval.

        Of what the functions are combined to. The slope is that of the error, from points so far
        apart that rounding is not what is seen.
        """
        r, h = self.left + 0.5 * self.step, 0.2 * self.step
        far = [r + n * h for n in (-2, -1, 1, 2)]
        error = [self(x) - of(x) for x in far]
        slope = (error[0] - 8.0 * error[1] + 8.0 * error[2] - error[3]) / (12.0 * h[:, None, None])
        exact, middle = of(r), self(r) - of(r)
        middle, slope, exact = (combine(x) for x in (middle, slope, exact))
        worst = np.maximum(np.abs(middle), np.abs(slope) * RADIAL_SCALE)
        return worst.max(axis=(1, 2)), np.abs(exact).max(axis=(1, 2))


def _fitted(
    of: Sampler,
    combine: Sampler,
    borders: list[float],
    kink: float,
    degree: int,
    tolerance: float,
) -> tuple[list[int], np.ndarray, float]:
    """Intervals of each segment, coefficients, error beyond the first segment.

    of: functions of distances, [n] -> [n, kinds, functions]; combine: from them to the numbers
    whose errors count.
    """
    widths = np.diff(borders) / borders[-1]
    densities = [DENSITIES[0]] * len(widths)
    while True:
        densities[0] = densities[1]
        counts = [max(degree + 2, math.ceil(d * w)) for d, w in zip(densities, widths, strict=True)]
        counts[0] = max(2, math.ceil(densities[0] * widths[0] / 4))  # shorter than atoms come near
        splines = _Splines(of, borders, counts, kink, degree)
        errors, sizes = splines.errors(of, combine)
        ends = np.cumsum(counts)
        size = sizes[ends[0] :].max()
        local = [max(sizes[a:].max(), size / LEAST) for a in ends[:-1]]
        by_segment = [
            errors[a:b].max() / s for (a, b), s in zip(pairwise(ends), local, strict=True)
        ]
        by_segment[0] /= NEAR
        poor = [n for n, e in enumerate(by_segment, start=1) if not e < tolerance]
        poor = [n for n in poor if densities[n] < DENSEST]
        if not poor:
            return counts, splines.coefficients(degree), float(max(by_segment))
        for n in poor:
            excess = (by_segment[n - 1] / tolerance) ** (1.0 / degree)
            wanted = min(densities[n] * min(excess, 4.0), DENSEST)
            finer = [d for d in DENSITIES if d > densities[n] and d >= 0.9 * wanted]
            densities[n] = finer[0] if finer else DENSEST


def _scale(start: float, r: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What errors are relative to at equidistant r: the largest weight at no smaller distance."""
    sizes = np.maximum.accumulate(np.abs(values).max(axis=(1, 2))[::-1])[::-1]
    local = np.maximum(sizes, sizes[r >= start].max() / LEAST)
    return np.where(r < start, NEAR * local, local)


def tabulate(
    module: torch.jit.ScriptModule,
    plan: Plan,
    *,
    degree: int,
    tolerance: float,
    densities: bool = True,
) -> list[float]:
    """Makes the table of each layer, the first one a density if it can be; returns their errors.

    Value and slope (in units of 1 / 0.2 Å) half-way between knots are right to `tolerance`,
    relative to the largest weight at no smaller distance, from the shortest bond (covalent radii)
    on; thirty times that from half of it on; nearer they are less exact. Without `densities` the
    first layer remains a convolution.
    """
    start = min(covalent_radii[z] for z in module.atomic_numbers)
    borders = _borders(start, plan.basis.envelope_onset, plan.cutoff)
    r = np.linspace(0.0, plan.cutoff, SAMPLES + 1)[1:]
    if densities and plan.layers[0].convolution:
        condense(plan, partial(sample, module, plan, 0), r, partial(_scale, start), tolerance)

    def fitted(of: Sampler, combine: Sampler, width: int, places: Any) -> tuple[RadialTable, float]:
        """Of functions [n] -> [n, kinds, m] that go to places of `width` for each kind."""
        kink = plan.basis.envelope_onset
        counts, made, error = _fitted(of, combine, borders, kink, degree, tolerance)
        padded = np.zeros((*made.shape[:3], width))
        padded[..., places] = made
        segments = list(zip(borders[:-1], counts, strict=True))
        return RadialTable(segments, padded.reshape(*made.shape[:2], -1)), error

    errors = []
    for k, layer in enumerate(plan.layers):
        weights = partial(sample, module, plan, k)
        if layer.density:
            v = layer.density.projection
            layer.table, error = fitted(
                lambda r, weights=weights, v=v: weights(r) @ v.T,
                lambda functions, v=v: functions @ v,
                layer.num_weights,
                slice(len(v)),
            )
        else:
            layer.table, error = fitted(weights, _same, layer.num_weights, layer.weights.places)
            shape = *layer.table.coefficients.shape[:2], -1, layer.num_weights
            every = layer.table.coefficients.reshape(shape)
            every[..., layer.weights.places] *= layer.weights.scales
        errors.append(error)
    if plan.counts:
        columns = plan.counts.matrix.shape[1]
        width = -(-columns // plan.padding) * plan.padding
        of = partial(sample_counts, module, plan)
        plan.counts.table, error = fitted(of, _same, width, slice(columns))
        errors.append(error)
    return errors


def _same(x: np.ndarray) -> np.ndarray:
    return x
