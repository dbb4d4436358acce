"""Which mistake in units or signs explains a slope that is not one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from eqcalc.data.check_physics import (
    FEWEST_PAIRS,
    GPA,
    PULAY,
    TOLERANCE,
    Slope,
    physical_tests,
    strain_test,
    weighted_median,
)
from eqcalc.data.findings import Finding
from eqcalc.data.frames import Frame

_BOHR, _HARTREE, _KCAL, _KJ = 0.529177, 27.2114, 0.0433641, 0.0103643

#: slope of energies over works -> what is wrong
FORCE_SLOPES = {
    -1.0: "forces have the wrong sign (they are gradients)",
    _HARTREE / _BOHR: "forces are in Hartree/Bohr, not eV/Å",
    _BOHR / _HARTREE: "forces were multiplied by 51.4 (Hartree/Bohr to eV/Å) once too often",
    1 / _BOHR: "forces are in eV/Bohr, not eV/Å",
    _BOHR: "forces were divided by 0.529 (Bohr to Å) once too often",
    _HARTREE / _BOHR / 2: "forces are in Rydberg/Bohr, not eV/Å",
    _HARTREE: "forces are in Hartree/Å, not eV/Å, or energies were multiplied by 27.2 twice",
    1 / _HARTREE: "energies are in Hartree, not eV, or forces were multiplied by 27.2 too often",
    2 / _HARTREE: "energies are in Rydberg, not eV",
    1 / _KCAL: "energies are in kcal/mol, not eV",
    _KCAL: "forces are in kcal/mol/Å, not eV/Å",
    1 / _KJ: "energies are in kJ/mol, not eV",
    _KJ: "forces are in kJ/mol/Å, not eV/Å",
}
STRESS_SLOPES = {
    -1.0: "the stress has the wrong sign (compression must be negative)",
    GPA: "the stress is in GPa, not eV/Å^3",
    -GPA: "the stress is in GPa, not eV/Å^3, and has the wrong sign",
    GPA / 10: "the stress is in kbar, not eV/Å^3",
    -GPA / 10: "the stress is in kbar, not eV/Å^3, and has the wrong sign (VASP's)",
    0.1: "the stress is ten times too large (kbar taken for GPa)",
    -0.1: "the stress is ten times too large (kbar taken for GPa) and has the wrong sign",
    10.0: "the stress is ten times too small",
    -10.0: "the stress is ten times too small and has the wrong sign",
    _HARTREE / _BOHR**3: "the stress is in Hartree/Bohr^3, not eV/Å^3",
    1 / _HARTREE: "energies are in Hartree, not eV",
    1 / _KCAL: "energies are in kcal/mol, not eV",
    1 / _KJ: "energies are in kJ/mol, not eV",
}


def _cause(slope: Slope, causes: dict[float, str]) -> str:
    """What explains a slope, the best explanation first, if anything does."""
    apart = {
        abs(np.log(slope.slope / value)): cause
        for value, cause in causes.items()
        if value * slope.slope > 0
    }
    return "; or ".join(apart[k] for k in sorted(apart) if k < 0.15)


#: what the off-diagonals in ASE's order yz xz xy may really be, by the order they were taken for
_ORDERS = {
    (1, 2, 0): "xy yz xz (VASP)",
    (2, 1, 0): "xy xz yz (LAMMPS)",
    (1, 0, 2): "xz yz xy",
    (0, 2, 1): "yz xy xz",
    (2, 0, 1): "xz xy yz",
}


def _reordered(stress: np.ndarray, order: Sequence[int]) -> np.ndarray:
    """The stress whose off-diagonals yz xz xy are the given ones of this stress."""
    off = stress[[1, 0, 0], [2, 2, 1]][list(order)]
    fixed = np.diag(np.diag(stress))
    fixed[[1, 0, 0], [2, 2, 1]] = off
    fixed[[2, 2, 1], [1, 0, 0]] = off
    return fixed


def component_order(slope: Slope, frames: Sequence[Frame]) -> list[Finding]:
    """Off-diagonals of the stress that fit the energies of sheared frames in another order only.

    `slope` is that of the frames as they are; nothing is said unless units and sign are right.
    """
    if len(slope.work) < 6 or not slope.agrees:
        return []
    misfit = float(np.abs(slope.energy - slope.work).sum())
    best, name = misfit, ""
    for order, meaning in _ORDERS.items():
        changed = [
            f if f.stress is None else replace(f, stress=_reordered(f.stress, order))
            for f in frames
        ]
        other = strain_test(changed)
        left = float(np.abs(other.energy - other.work).sum())
        if left < best:
            best, name = left, meaning
    if best > 0.5 * misfit:
        return []
    sentence = (
        f"The off-diagonals of the stress fit the energies of {len(slope.work)} pairs of sheared "
        f"frames {misfit / best:.2g} times better if they are taken for {name} instead of yz xz "
        "xy, ASE's order."
    )
    sources = tuple(dict.fromkeys(frames[n].source for n in slope.frames.ravel()))
    return [Finding("error" if best < 0.25 * misfit else "warning", "order", sentence, sources)]


def judge(slope: Slope, frames: Sequence[Frame], label: str) -> list[Finding]:
    """Says whether energies and a label ("forces" or "stress") belong together."""
    number = len(slope.work)
    if number == 0 or not np.isfinite(slope.slope):
        return []
    rests = f"{number} pair{'s' if number > 1 else ''} of similar frames"
    pressure = slope.missing_pressure
    if label == "stress" and pressure:
        sentence = (
            f"The stress lacks a constant pressure of {pressure:+.2g} GPa that the energies of "
            f"{rests} show, so that no model can fit both: a plane-wave cutoff that is too low for "
            f"the stress (Pulay)? data.pulay_pressure = {pressure:.2g} adds it for training."
        )
        return [Finding("warning", "pressure", sentence)]
    if slope.agrees:
        sentence = (
            f"Energies and {label} agree: slope {slope.slope:.3f} over {rests} (1 would be exact; "
            f"{1 / slope.tolerance:.2g} to {slope.tolerance:g} passes)."
        )
        return [Finding("note", label, sentence)] if number >= 3 else []
    cause = _cause(slope, FORCE_SLOPES if label == "forces" else STRESS_SLOPES)
    if not cause and label == "stress" and slope.volume.all():
        ratio = weighted_median(slope.energy * slope.volume / slope.work, np.abs(slope.work))
        if 1 / TOLERANCE < abs(ratio) < TOLERANCE:
            virial = "minus the virial" if ratio > 0 else "the virial"
            cause = f"it is {virial} in eV: divide by the volume" + (
                "" if ratio > 0 else " and change the sign"
            )
    certain = number >= 4 and slope.spread < 0.3
    sources = tuple(dict.fromkeys(frames[n].source for n in slope.frames.ravel()))
    sentence = (
        f"Energies change by {slope.slope:.3g} times the work of the {label} instead of once, over "
        f"{rests}"
    )
    sentence += f": {cause}." if cause else "; check units, signs, and that one method made all."
    if not certain:
        sentence += " The pairs scatter or are few, so this may be chance."
    return [Finding("error" if certain else "warning", label, sentence, sources)]


def contradictions(frames: Sequence[Frame], limit: int = 1000) -> list[str]:
    """One sentence for each label that certainly does not belong to the energies.

    Quick enough for the start of a training: of more than `limit` frames, that many evenly spread.
    """
    frames = _spread(frames, limit)
    tests = physical_tests(frames)
    findings = component_order(tests["stress"], frames)
    for label, slope in tests.items():
        findings += judge(slope, frames, label)
    return [f.sentence for f in findings if f.level == "error" or f.check == "pressure"]


def measured_pressure(frames: Sequence[Frame], limit: int = 1000) -> tuple[float, str]:
    """GPa that the stresses lack beside the energies, 0 where that is not what is wrong.

    The second result is a sentence that says what was measured, and on what.
    """
    test = physical_tests(_spread(frames, limit))["stress"]
    about = 'data.pulay_pressure = "measured": '
    over = f"over {len(test.work)} pairs of strained frames"
    if not test.tells_pressure:
        return 0.0, (
            f"{about}nothing can be measured {over}, since at least {FEWEST_PAIRS} that differ in "
            "volume are needed; nothing is added."
        )
    slope, pressure = test.with_pressure()
    missing = round(test.missing_pressure, 2)
    if missing:
        return missing, (
            f"{about}the stresses lack a pressure of {missing:+g} GPa beside the energies {over}; "
            "it is added."
        )
    if 1 / TOLERANCE < slope < TOLERANCE:
        return 0.0, (
            f"{about}the stresses lack {pressure:+.2g} GPa beside the energies {over}, no more "
            f"than {PULAY:g} GPa; nothing is added."
        )
    return 0.0, (
        f"{about}energies change by {slope:.3g} times the work of the stress instead of once, "
        f"{over}, which no pressure mends; nothing is added. 'eqcalc data check' says more."
    )


def _spread(frames: Sequence[Frame], limit: int) -> Sequence[Frame]:
    """`limit` of the frames, evenly spread."""
    if len(frames) <= limit:
        return frames
    return [frames[k * len(frames) // limit] for k in range(limit)]
