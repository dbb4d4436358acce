"""Labels that are missing, broken, unlike all others, or stored with too few digits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eqcalc.data.findings import Finding, count, sources, such_as
from eqcalc.data.frames import Frame
from eqcalc.data.statistics import (
    Statistics,
    far_energies,
    impossible_energies,
    left_over,
    unlike_units,
)
from eqcalc.derivatives import stress_volume

#: an outlier lies this many robust standard deviations out, and at least this far
SIGMAS, FAR_ENERGY, FAR_FORCE = 15.0, 0.3, 3.0

#: eV/Å that the forces on all atoms may sum to
NET_FORCE = 0.05


def missing(frames: Sequence[Frame]) -> list[Finding]:
    """Frames without forces or stress. Those without an energy are found when they are read."""
    findings = []
    no_forces = [f for f in frames if f.forces is None and len(f.atoms) > 1]
    periodic = [f for f in frames if stress_volume(f.atoms.cell.array, f.atoms.pbc)]
    no_stress = [f for f in periodic if f.stress is None]
    possible = sum(len(f.atoms) > 1 for f in frames)
    for name, without, of in (
        ("forces", no_forces, possible),
        ("stress", no_stress, len(periodic)),
    ):
        if not without:
            continue
        if len(without) == of:
            level = "warning" if name == "forces" else "note"
            sentence = f"No frame has {name}"
            sentence += (
                ": energies alone make a poor potential; name the right key if there are any."
                if name == "forces"
                else ": the model learns pressure from energies only."
            )
        else:
            level = "note"
            sentence = (
                f"Mixed labels: {len(without)} of {of} frames have no {name} "
                f"({such_as(sources(without))}); training takes what there is."
            )
        findings.append(Finding(level, "missing", sentence, sources(without)))
    return findings


def implausible(frames: Sequence[Frame], statistics: Statistics) -> list[Finding]:
    """Energies that no unit conversion explains away; see eqcalc.data.statistics."""
    bad = impossible_energies(frames, statistics)
    findings = []
    if bad:
        more = f" ({len(bad)} frames in all)" if len(bad) > 1 else ""
        sentence = next(iter(bad.values())) + more
        findings.append(Finding("error", "units", sentence, sources(frames[n] for n in bad)))
    findings += [Finding("warning", "units", s) for s in unlike_units(frames, statistics)]
    return findings


def net_forces(frames: Sequence[Frame]) -> list[Finding]:
    """Forces that do not sum to zero over a frame."""
    labelled = [f for f in frames if f.forces is not None]
    if not labelled:
        return []
    net = np.array([np.linalg.norm(f.forces.sum(axis=0)) for f in labelled])
    bad = np.flatnonzero(net > NET_FORCE)
    if not len(bad):
        return []
    worst = labelled[int(net.argmax())]
    sentence = (
        f"The forces on all atoms sum to more than {NET_FORCE:g} eV/Å in "
        f"{count(len(bad), 'frame')}, to {net.max():.3g} in {worst.source}: noise of the "
        "calculation, an external field, or forces set to zero on fixed atoms; a potential cannot "
        "learn this part."
    )
    return [Finding("warning", "net_force", sentence, sources(labelled[n] for n in bad))]


def _far(values: np.ndarray, least: float) -> np.ndarray:
    """Indices of values that are far from all others, by at least `least`.

    Either beyond SIGMAS robust deviations from the median, or, among several populations (crystals
    and a melt), beyond a gap as wide as the range of the rest. More than one in twenty are a
    population of their own, not outliers.
    """
    most = max(1, len(values) // 20)
    distance = np.abs(values - np.median(values))
    far = distance > max(SIGMAS * 1.4826 * float(np.median(distance)), least)
    if far.sum() > most:
        far[:] = False
    order = np.argsort(values)
    inner = values[order[most : len(values) - most]]
    gap = max(least, float(np.ptp(inner)))
    steps = np.diff(values[order])
    above = np.flatnonzero(steps[-most:] > gap)
    if len(above):
        far[order[len(values) - most + above[0] :]] = True
    below = np.flatnonzero(steps[:most] > gap)
    if len(below):
        far[order[: below[-1] + 1]] = True
    return np.flatnonzero(far)


def outliers(frames: Sequence[Frame], statistics: Statistics) -> list[Finding]:
    """Frames unlike the others of their config_type: energies and largest forces."""
    groups: dict[str, list[int]] = {}
    for n, frame in enumerate(frames):
        groups.setdefault(frame.config_type, []).append(n)
    energies = left_over(frames, statistics)
    odd_energies = far_energies(frames, statistics)
    odd_forces: dict[int, str] = {}
    for name, members in groups.items():
        if len(members) >= 5:
            for k in _far(energies[members], FAR_ENERGY):
                away = energies[members[k]] - np.median(energies[members])
                odd_energies.setdefault(
                    members[k],
                    f"{frames[members[k]].source}: its energy is {away:+.3g} eV/atom away from "
                    f"the median of {name}; check this calculation.",
                )
        forced = [n for n in members if frames[n].forces is not None]
        if len(forced) >= 5:
            top = np.array([np.linalg.norm(frames[n].forces, axis=1).max() for n in forced])
            for k in _far(top, FAR_FORCE):
                odd_forces[forced[k]] = (
                    f"{frames[forced[k]].source}: a force of {top[k]:.3g} eV/Å, while the largest "
                    f"of a frame of {name} is typically {np.median(top):.2g}; check this "
                    "calculation."
                )
    findings = []
    for odd in (odd_energies, odd_forces):
        if odd:
            more = f" ({len(odd)} frames in all)" if len(odd) > 1 else ""
            sentence = next(iter(odd.values())) + more
            findings.append(
                Finding("warning", "outlier", sentence, sources(frames[n] for n in odd))
            )
    return findings


def energy_step(energies: np.ndarray) -> float:
    """The step (eV) in which energies are stored; 0 where it is too fine to be seen.

    Found are float32 numbers and numbers with at most four decimals.
    """
    energies = np.asarray(energies, dtype=np.float64)
    if len(energies) < 10 or len(np.unique(energies)) < 5:
        return 0.0
    for decimals in range(5):
        if np.abs(energies - np.round(energies, decimals)).max() < 1e-9 * np.abs(energies).max():
            return 10.0**-decimals
    single = energies.astype(np.float32)
    if np.array_equal(single.astype(np.float64), energies):
        return float(np.spacing(np.abs(single)).max())
    return 0.0


def quantised(frames: Sequence[Frame]) -> list[Finding]:
    """Energies stored in steps that a model could resolve."""
    step = energy_step(np.array([f.energy for f in frames]))
    if step < 5e-4:
        return []
    atoms = float(np.median([len(f.atoms) for f in frames]))
    per_atom = 1e3 * step / atoms
    level = "warning" if per_atom > 0.1 else "note"
    sentence = (
        f"Energies come in steps of {1e3 * step:.3g} meV ({per_atom:.2g} meV/atom in a typical "
        "frame): float32 or few digits; store them as float64 with all digits."
    )
    return [Finding(level, "steps", sentence)]
