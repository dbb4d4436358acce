"""What a model needs to know of its training set before it starts, and whether the set is sane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase.data import atomic_numbers as number_of
from ase.data import chemical_symbols
from ase.formula import Formula

from eqcalc.data.frames import Frame
from eqcalc.data.tables import FrameList, FrameTable
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


def table_of(frames: FrameTable | Sequence[Frame]) -> FrameTable:
    """Frames as a table, if they are none yet."""
    return frames if isinstance(frames, FrameTable) else FrameList(frames)


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


def force_rms(frames: FrameTable) -> float:
    """eV/Å over all labelled components, summed frame by frame; NaN where there are none."""
    total, number = 0.0, 0
    for forces in frames.known_forces():
        total, number = total + float(np.square(forces).sum()), number + forces.size
    return float(np.sqrt(total / number)) if number else float("nan")


def gather(
    frames: FrameTable | Sequence[Frame],
    *,
    given: dict[str, float] | None = None,
    isolated: Sequence[Frame] = (),
) -> Statistics:
    """Statistics of the training frames: bit for bit the same wherever they are kept."""
    frames = table_of(frames)
    numbers = sorted({*frames.elements(), *FrameList(isolated).elements()})
    counts, energies = frames.composition(numbers), frames.energies()
    return statistics_of(counts, energies, numbers, force_rms(frames), given, isolated)


def left_over(frames: FrameTable | Sequence[Frame], statistics: Statistics) -> np.ndarray:
    """What the reference energies leave of each frame's energy: [frames] eV/atom."""
    frames = table_of(frames)
    counts = frames.composition(statistics.atomic_numbers)
    return (frames.energies() - counts @ statistics.shift) / counts.sum(axis=1)


def impossible_energies(
    frames: FrameTable | Sequence[Frame], statistics: Statistics
) -> dict[int, str]:
    """Frames by index whose energy cannot be a total energy in eV, each with a sentence."""
    frames = table_of(frames)
    numbers = statistics.atomic_numbers
    counts, energy = frames.composition(numbers), frames.energies()
    atoms = counts.sum(axis=1)
    # no electronic structure code puts an atom below Thomas-Fermi's -20.9 Z^(7/3) eV
    floor = -25.0 * (counts @ np.power(numbers, 7 / 3)) / atoms - 50.0
    bad = np.flatnonzero((energy / atoms < floor) | (energy / atoms > 50.0))

    def formula(n: int) -> str:
        symbols = (chemical_symbols[z] for z in numbers)
        present = {s: int(c) for s, c in zip(symbols, counts[n], strict=True) if c}
        return Formula.from_dict(present).format("hill")

    return {
        int(n): f"{frames.source(n)}: {energy[n] / atoms[n]:.6g} eV/atom is far outside what is "
        f"plausible for {formula(n)}; energies must be total energies in eV."
        for n in bad
    }


def far_energies(frames: FrameTable | Sequence[Frame], statistics: Statistics) -> dict[int, str]:
    """Frames by index whose energy is far from those of all others, each with a sentence."""
    frames = table_of(frames)
    residual = left_over(frames, statistics)
    distance = np.abs(residual - np.median(residual))
    typical = float(np.median(distance))
    groups = frames.config_types()
    return {
        int(n): f"{frames.source(n)} ({groups[n]}): its energy is "
        f"{residual[n]:+.3g} eV/atom away from the reference energies, while half of all frames "
        f"lie within {typical:.2g}; check this calculation."
        for n in np.flatnonzero(distance > max(50 * (typical + 1e-3), 2.0))
    }


def unlike_units(frames: FrameTable | Sequence[Frame], statistics: Statistics) -> list[str]:
    """A sentence if energies vary much more than forces of that size can make them."""
    frames = table_of(frames)
    moved, total, components = 0, 0.0, 0
    for forces in frames.known_forces():
        if np.abs(forces).max() > 1e-6:
            moved, components = moved + 1, components + forces.size
            total += float(np.square(forces).sum())
    if moved < 10:
        return []
    residual = left_over(frames, statistics)
    typical = float(np.median(np.abs(residual - np.median(residual))))
    ratio = typical / float(np.sqrt(total / components))
    if ratio <= 5.0:
        return []
    symbols = ", ".join(chemical_symbols[z] for z in statistics.atomic_numbers)
    sentence = (
        f"Energies of the {symbols} frames vary by {typical:.3g} per atom but forces are "
        f"only {typical / ratio:.3g} per Å (ratio {ratio:.0f} Å, usually below 1): "
        "energies in kcal/mol or kJ/mol instead of eV, or forces in Hartree/Bohr?"
    )
    return [sentence]


def suspicious(frames: FrameTable | Sequence[Frame], statistics: Statistics) -> list[str]:
    """One sentence for each sign of wrong units or broken labels; empty when all looks right."""
    frames = table_of(frames)
    return [
        *list(impossible_energies(frames, statistics).values())[:3],
        *list(far_energies(frames, statistics).values())[:3],
        *unlike_units(frames, statistics),
    ]
