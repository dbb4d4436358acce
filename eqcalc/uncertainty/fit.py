"""From features of the training's atoms to the quadratic forms (see `eqcalc.uncertainty`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eqcalc.uncertainty.forms import QuadraticForm, Uncertainty

#: of the mean variance of a feature: what is less varied is taken for rounding
FLOOR = 1e-6

#: regularisations that are tried, in units of the mean second moment of a feature
RIDGES = tuple(10.0**n for n in range(-9, 1))

#: atoms of a species with which a search for the ellipsoid begins, and how near it must come
CANDIDATES, STEPS, NEAR = 4000, 300, 1.01


@dataclass(frozen=True)
class FrameFeatures:
    """One structure: species [N] and features [N, H] of its atoms.

    error: eV, predicted energy less label; None where there is no label.
    """

    species: np.ndarray
    features: np.ndarray
    error: float | None = None


@dataclass(frozen=True)
class Calibration:
    """How the standard deviations were made to fit.

    Attributes:
        frames: of the training; atoms: of them.
        errors: how many energies of validation frames they were fitted to.
        moments: of "atoms" or of whole "structures", whichever fits better.
        ridge: regularisation, in units of the mean second moment.
        scale: a, what errors were in units of a = 1.
        likelihood: mean logarithm of the density of the errors' distribution, with eV.
    """

    frames: int
    atoms: int
    errors: int
    moments: str
    ridge: float
    scale: float
    likelihood: float | None


def ellipsoid(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smallest ellipsoid around points [n, H]: |(f - centre) factor|^2 = 1.

    By the multiplicative algorithm of the dual problem (Silvey, Titterington and Torsney, Commun.
    Stat. A7, 1379 (1978)), w_i <- w_i d_i / (H + 1), d_i = g_i^T M(w)^-1 g_i, g_i = (f_i, 1), on
    those points that lie furthest out. The result is scaled so that all points are within it and
    one is on it. Directions in which the points do not differ get a width (FLOOR).

    Returns:
        centre [H], factor [H, H].
    """
    width = points.shape[1]
    mean = points.mean(axis=0)
    covariance = np.cov(points, rowvar=False, bias=True).reshape(width, width)
    floor = FLOOR * max(float(np.trace(covariance)) / width, 1e-300)
    whiten = _inverse_root(covariance, floor)
    white = (points - mean) @ whiten
    weights, chosen = np.ones(len(white)) / len(white), np.arange(len(white))
    for _ in range(8):
        centre, factor = _moments(white[chosen], weights)
        distance = _square(white, centre, factor)
        # on the ellipsoid of the weights d_i - 1 is H
        outside = np.flatnonzero(distance > NEAR * width)
        if len(chosen) < len(white) and not len(np.setdiff1d(outside, chosen)):
            break
        furthest = np.argsort(distance)[-CANDIDATES:]
        kept = chosen[weights > 1e-6 / len(chosen)] if len(chosen) < len(white) else chosen[:0]
        chosen = np.union1d(furthest, kept)
        weights = _design(white[chosen])
        if len(chosen) == len(white):
            break
    centre, factor = _moments(white[chosen], weights)
    furthest = float(_square(white, centre, factor).max())
    factor = factor / np.sqrt(furthest) if furthest > 0.0 else factor
    return mean + centre @ np.linalg.inv(whiten), whiten @ factor


def _inverse_root(matrix: np.ndarray, floor: float) -> np.ndarray:
    """The symmetric root of a matrix's inverse, its eigenvalues raised by a floor."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors / np.sqrt(np.maximum(values, 0.0) + floor)) @ vectors.T


def _moments(points: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted centre, and the inverse root of the weighted covariance, of whitened points."""
    centre = weights @ points
    apart = points - centre
    return centre, _inverse_root((apart * weights[:, None]).T @ apart, FLOOR)


def _square(points: np.ndarray, centre: np.ndarray, factor: np.ndarray) -> np.ndarray:
    rows = (points - centre) @ factor
    return np.einsum("nc,nc->n", rows, rows)


def _design(points: np.ndarray) -> np.ndarray:
    """Weights of D-optimal design of points, with a constant beside their coordinates."""
    width = points.shape[1]
    weights = np.ones(len(points)) / len(points)
    for _ in range(STEPS):
        distance = _square(points, *_moments(points, weights)) + 1.0
        weights *= distance / (weights @ distance)
        if distance.max() < NEAR * (width + 1):
            break
    return weights


def _extended(features: np.ndarray) -> np.ndarray:
    """With the constant that multiplies the species' energy."""
    return np.concatenate([features, np.ones((len(features), 1))], axis=1)


def _sums(frame: FrameFeatures, species: int) -> np.ndarray:
    return _extended(frame.features[frame.species == species]).sum(axis=0)


def _second_moments(
    frames: Sequence[FrameFeatures], species: int, of: str
) -> tuple[np.ndarray, np.ndarray]:
    """Means of g g^T over atoms, or over structures' means per atom, and the unit of ridges [H+1].

    The unit of the constant is one, that of features their mean square.
    """
    with_it = [frame for frame in frames if (frame.species == species).any()]
    atoms = np.concatenate([_extended(f.features[f.species == species]) for f in with_it])
    if of == "structures":
        sums = np.stack([_sums(frame, species) for frame in with_it])
        rows = sums / np.sqrt(np.abs(sums[:, -1:]))
    else:
        rows = atoms
    unit = np.full(atoms.shape[1], np.square(atoms[:, :-1]).mean() or 1.0)
    unit[-1] = 1.0
    return rows.T @ rows / len(atoms), unit


def _energy_form(moments: np.ndarray, unit: np.ndarray, ridge: float) -> QuadraticForm:
    """g^T (M + r)^-1 g as a form of the features alone, of one species."""
    inverse = np.linalg.inv(moments + ridge * np.diag(unit))
    curvature, slope, constant = inverse[:-1, :-1], inverse[:-1, -1], inverse[-1, -1]
    centre = -np.linalg.solve(curvature, slope)
    values, vectors = np.linalg.eigh(curvature)
    factor = vectors * np.sqrt(np.maximum(values, 0.0))
    least = max(float(constant + slope @ centre), 0.0)
    return QuadraticForm(centre[None], factor[None], np.array([least]))


def _joined(forms: Sequence[QuadraticForm], scale: float = 1.0) -> QuadraticForm:
    """Forms of single species as one, multiplied by scale^2."""
    return QuadraticForm(
        np.concatenate([form.centre for form in forms]),
        np.concatenate([form.factor for form in forms]) * scale,
        np.concatenate([form.constant for form in forms]) * scale**2,
    )


def fit(
    train: Sequence[FrameFeatures], validation: Sequence[FrameFeatures] = ()
) -> tuple[Uncertainty, Calibration]:
    """The uncertainty of a potential.

    Args:
        train: structures that it was trained on (their errors do not matter).
        validation: others, with errors of the energy: what standard deviations are fitted to, by
            maximum likelihood over the scale, the regularisation and what moments are of.

    Standard deviations are infinite without errors to fit them to.
    """
    species = np.unique(np.concatenate([frame.species for frame in train]))
    grades = []
    for s in species:
        atoms = np.concatenate([f.features[f.species == s] for f in train])
        centre, factor = ellipsoid(atoms)
        grades.append(QuadraticForm(centre[None], factor[None], np.zeros(1)))
    grade = _joined(grades)
    known = [
        frame
        for frame in validation
        if frame.error is not None and np.isin(frame.species, species).all()
    ]
    errors = np.array([frame.error for frame in known])
    best: tuple[float, Any] | None = None
    for of in ("atoms", "structures"):
        moments = [_second_moments(train, s, of) for s in species]
        for ridge in RIDGES:
            energy = _joined([_energy_form(*m, ridge) for m in moments])
            if not len(errors):
                best = 0.0, (of, ridge, energy, np.inf)
                continue
            found = Uncertainty(species, energy, grade)
            variance = np.array([found.energy_std(f.species, f.features) ** 2 for f in known])
            scale = float(np.sqrt(np.mean(errors**2 / variance)))
            likelihood = -0.5 * float(np.mean(np.log(2 * np.pi * scale**2 * variance)) + 1.0)
            if best is None or likelihood > best[0]:
                best = likelihood, (of, ridge, energy, scale)
    assert best is not None
    likelihood, (of, ridge, energy, scale) = best
    if not np.isfinite(scale):
        energy = QuadraticForm(energy.centre, 0.0 * energy.factor, energy.constant + np.inf)
    else:
        energy = _joined([energy], scale)
    calibration = Calibration(
        len(train),
        sum(len(frame.species) for frame in train),
        len(errors),
        of,
        ridge,
        scale,
        likelihood if len(errors) else None,
    )
    return Uncertainty(species, energy, grade), calibration
