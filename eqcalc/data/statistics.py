"""What a model needs to know of its training set before it starts, and whether the set is sane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase.data import atomic_numbers as number_of
from ase.data import chemical_symbols

from eqcalc.data.frames import Frame
from eqcalc.errors import InputError


@dataclass(frozen=True)
class Statistics:
    """Of the training frames.

    Attributes:
        atomic_numbers: the elements, ascending.
        shift: eV per atom of each element: isolated atoms, given values or least squares.
        force_rms: eV/Å over all components; 1 eV/Å where there are no forces.
        energy_rms: eV/atom, of what `shift` leaves.
    """

    atomic_numbers: list[int]
    shift: list[float]
    force_rms: float
    energy_rms: float


def composition(frames: Sequence[Frame], atomic_numbers: Sequence[int]) -> np.ndarray:
    """Atoms of each element per frame: [frames, elements]."""
    return np.array([[np.sum(f.atoms.numbers == z) for z in atomic_numbers] for f in frames])


def reference_energies(
    counts: np.ndarray,
    energies: np.ndarray,
    atomic_numbers: Sequence[int],
    given: dict[str, float] | None,
    isolated: Sequence[Frame],
) -> np.ndarray:
    """Energy of each element [eV]: given by name, from isolated atoms, or least squares.

    `counts` [frames, elements] and `energies` [frames] eV are those of the training frames,
    `isolated` are frames of one atom each. Elements without either are fitted to what the others
    leave of the training energies (minimum-norm least squares, weighted by 1 / atoms).
    """
    known = dict.fromkeys(atomic_numbers)
    for frame in isolated:
        if len(frame.atoms) != 1:
            raise InputError(f"{frame.source} has {len(frame.atoms)} atoms, not one isolated atom.")
        known[int(frame.atoms.numbers[0])] = frame.energy
    for symbol, energy in (given or {}).items():
        if symbol not in number_of:
            raise InputError(f"data.reference_energies names '{symbol}': not a chemical symbol.")
        known[number_of[symbol]] = float(energy)
    counts = counts.astype(np.float64)
    atoms = counts.sum(axis=1)
    fixed = np.array([known[z] is not None for z in atomic_numbers])
    shift = np.array([known[z] if known[z] is not None else 0.0 for z in atomic_numbers])
    if not fixed.all():
        left = energies - counts @ shift
        matrix = counts[:, ~fixed] / atoms[:, None]
        shift[~fixed] = np.linalg.lstsq(matrix, left / atoms, rcond=None)[0]
    return shift


def statistics_of(
    counts: np.ndarray,
    energies: np.ndarray,
    atomic_numbers: list[int],
    force_rms: float,
    given: dict[str, float] | None = None,
    isolated: Sequence[Frame] = (),
) -> Statistics:
    """Statistics from what `reference_energies` takes; `force_rms` is NaN without forces."""
    shift = reference_energies(counts, energies, atomic_numbers, given, isolated)
    per_atom = (energies - counts @ shift) / counts.sum(axis=1)
    force_rms = max(force_rms, 1e-3) if np.isfinite(force_rms) else 1.0
    energy_rms = float(np.sqrt(np.square(per_atom).mean()))
    return Statistics(atomic_numbers, shift.tolist(), force_rms, energy_rms)


def gather(
    frames: Sequence[Frame],
    *,
    given: dict[str, float] | None = None,
    isolated: Sequence[Frame] = (),
) -> Statistics:
    """Statistics of the training frames."""
    numbers = sorted({int(z) for f in (*frames, *isolated) for z in f.atoms.numbers})
    squares = [np.square(f.forces) for f in frames if f.forces is not None]
    force_rms = float(np.sqrt(np.concatenate(squares).mean())) if squares else float("nan")
    energies = np.array([f.energy for f in frames])
    return statistics_of(
        composition(frames, numbers), energies, numbers, force_rms, given, isolated
    )


def left_over(frames: Sequence[Frame], statistics: Statistics) -> np.ndarray:
    """What the reference energies leave of each frame's energy: [frames] eV/atom."""
    counts = composition(frames, statistics.atomic_numbers)
    return (np.array([f.energy for f in frames]) - counts @ statistics.shift) / counts.sum(axis=1)


def impossible_energies(frames: Sequence[Frame], statistics: Statistics) -> dict[int, str]:
    """Frames by index whose energy cannot be a total energy in eV, each with a sentence."""
    counts = composition(frames, statistics.atomic_numbers)
    atoms = counts.sum(axis=1)
    energy = np.array([f.energy for f in frames])
    # no electronic structure code puts an atom below Thomas-Fermi's -20.9 Z^(7/3) eV
    floor = -25.0 * (counts @ np.power(statistics.atomic_numbers, 7 / 3)) / atoms - 50.0
    bad = np.flatnonzero((energy / atoms < floor) | (energy / atoms > 50.0))
    return {
        int(n): f"{frames[n].source}: {energy[n] / atoms[n]:.6g} eV/atom is far outside what is "
        f"plausible for {frames[n].atoms.get_chemical_formula()}; energies must be total energies "
        "in eV."
        for n in bad
    }


def far_energies(frames: Sequence[Frame], statistics: Statistics) -> dict[int, str]:
    """Frames by index whose energy is far from those of all others, each with a sentence."""
    residual = left_over(frames, statistics)
    distance = np.abs(residual - np.median(residual))
    typical = float(np.median(distance))
    return {
        int(n): f"{frames[n].source} ({frames[n].config_type}): its energy is "
        f"{residual[n]:+.3g} eV/atom away from the reference energies, while half of all frames "
        f"lie within {typical:.2g}; check this calculation."
        for n in np.flatnonzero(distance > max(50 * (typical + 1e-3), 2.0))
    }


def unlike_units(frames: Sequence[Frame], statistics: Statistics) -> list[str]:
    """A sentence if energies vary much more than forces of that size can make them."""
    moved = [f.forces for f in frames if f.forces is not None and np.abs(f.forces).max() > 1e-6]
    if len(moved) < 10:
        return []
    residual = left_over(frames, statistics)
    typical = float(np.median(np.abs(residual - np.median(residual))))
    ratio = typical / float(np.sqrt(np.square(np.concatenate(moved)).mean()))
    if ratio <= 5.0:
        return []
    symbols = ", ".join(chemical_symbols[z] for z in statistics.atomic_numbers)
    sentence = (
        f"Energies of the {symbols} frames vary by {typical:.3g} per atom but forces are "
        f"only {typical / ratio:.3g} per Å (ratio {ratio:.0f} Å, usually below 1): "
        "energies in kcal/mol or kJ/mol instead of eV, or forces in Hartree/Bohr?"
    )
    return [sentence]


def suspicious(frames: Sequence[Frame], statistics: Statistics) -> list[str]:
    """One sentence for each sign of wrong units or broken labels; empty when all looks right."""
    return [
        *list(impossible_energies(frames, statistics).values())[:3],
        *list(far_energies(frames, statistics).values())[:3],
        *unlike_units(frames, statistics),
    ]
