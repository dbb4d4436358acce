r"""The first layer as a density of species: its features depend on nothing but the species.

Messages of scalars x_z of species z, and the linear maps that read them,

    A_{lm d} = sum_c W^l_{c d} sum_j R_{l c}(r_ij) Y_lm(r_ij) x_{c z_j}

are sums over neighbours of products of distance and direction, mixed by matrices of the neighbours'
species. R_{lc}, hundreds of functions of one variable that a perceptron makes, are combinations of
few, R_{lc}(r) = sum_k V_{k lc} B_k(r), to the tolerance of their table, so that

    D_{lm z k} = sum_{j of z} B_k(r_ij) Y_lm(r_ij)
    A_{lm d}   = sum_{z k} M^{l z}_{k d} D_{lm z k}
    M^{l z}_{k d} = sum_c V_{k lc} x_{c z} W^l_{c d}

are equal to the former and cost a fraction: no message has channels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from eqcalc.engine.plan import DensityPlan, DensityStep, LinearStep, Path, Plan

Sampler = Callable[[np.ndarray], np.ndarray]

#: singular values smaller than this part of the largest are rounding
ROUNDING = 1e-14
#: numbers of functions that are tried are multiples of this
CHECKED = 8
#: part of the table's tolerance that may be lost in leaving functions out
PART = 0.25
#: species that are thought to be in a structure together, at most
TOGETHER = 4
#: functions for each of them, over channels of the messages, up to which it is worth while
WORTH = 2.0


def _harmonic(path: Path) -> tuple[int, float] | None:
    """Degree and coefficient of a path from scalars: c Y_lm; None if it is another one."""
    l_out = (path.d3 - 1) // 2
    expected = [(0, l_out * l_out + m, m) for m in range(path.d3)]
    if path.d1 != 1 or [term[:3] for term in path.terms] != expected:
        return None
    coefficients = {term[3] for term in path.terms}
    return (l_out, coefficients.pop()) if len(coefficients) == 1 else None


def _readers(plan: Plan) -> list[LinearStep] | None:
    """The maps that read the first messages; None if the layer is of another kind."""
    layer = plan.layers[0]
    every = [step for other in plan.layers for step in other.steps]
    readers = [step for step in every if step.source == layer.messages]
    simple = all(
        isinstance(step, LinearStep)
        and len(step.matrices) == 1
        and any(step is mine for mine in layer.steps)
        for step in readers
    )
    scalars = all(_harmonic(path) for path in layer.convolution.paths)
    return readers if simple and scalars else None


def few_functions(values: np.ndarray, scale: np.ndarray, step: float, part: float) -> np.ndarray:
    """V [functions, weights], orthonormal: weights are V^T V times themselves, nearly.

    Args:
        values: of the weights, [n, kinds, weights] at equal intervals.
        scale: [n], what errors are relative to.
        step: from distance to distance, Å.
        part: errors of values, and of slopes in units of 1 / 0.2 Å.
    """
    left = values.copy()
    relative = (values / scale[:, None, None]).reshape(-1, values.shape[2])
    sizes, v = np.linalg.svd(relative, full_matrices=False)[1:]
    v = v[sizes > ROUNDING * sizes[0]]
    for count in range(CHECKED, len(v), CHECKED):
        few = v[count - CHECKED : count]
        left -= (values @ few.T) @ few
        slopes = 0.2 * np.gradient(left, step, axis=0)
        if (np.abs([left, slopes]).max(axis=(0, 2, 3)) / scale).max() < part:
            return v[:count]
    return v


def condense(
    plan: Plan,
    of: Sampler,
    r: np.ndarray,
    scale: Callable[[np.ndarray, np.ndarray], np.ndarray],
    tolerance: float,
) -> None:
    """Makes the first layer a density where it can be one and that is worth while.

    Args:
        plan: changed.
        of: its radial weights, [n] -> [n, kinds, weights].
        r: [n] Å, equidistant.
        scale: of r and the weights there, what errors are relative to.
        tolerance: of the tables.
    """
    layer, readers = plan.layers[0], _readers(plan)
    if readers is None:
        return
    values = of(r)
    projection = few_functions(values, scale(r, values), r[1] - r[0], PART * tolerance)
    padding = plan.padding
    width = -(-len(projection) // padding) * padding
    channels = max(path.mul for path in layer.convolution.paths)
    if width * min(plan.num_species, TOGETHER) > WORTH * channels:
        return
    spread = np.zeros((len(projection), layer.convolution.num_weights))
    spread[:, layer.weights.places] = projection * layer.weights.scales
    x = next(row for row in plan.rows if row.name == layer.features).begin
    for step in readers:
        matrices = np.zeros((plan.num_species, width, step.stride_out))
        for path in layer.convolution.paths:
            at = path.out - step.at_in
            degree, coefficient = _harmonic(path)
            if 2 * degree + 1 != step.dim or not 0 <= at < step.stride_in:
                continue
            channel = np.arange(path.mul)
            weights = path.weight + channel // padding * path.weight_step + channel % padding
            mixed = step.matrices[0, at + channel] * coefficient
            matrices[:, : len(projection)] += np.einsum(
                "kc,zc,cd->zkd",
                spread[:, weights],
                x[:, path.x + channel],
                mixed,
                optimize=True,
            )
        first = ((step.dim - 1) // 2) ** 2
        place = next(n for n, mine in enumerate(layer.steps) if mine is step)
        layer.steps[place] = DensityStep(
            step.source, step.target, first, step.dim, step.at_out, step.stride_out, matrices
        )
    layer.density = DensityPlan(projection, width)
    row = next(row for row in plan.rows if row.name == layer.messages)
    row.width = (plan.l_max + 1) ** 2 * plan.num_species * width
