"""Every check that fits a model and a structure, one after the other."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers, reference_states

from eqcalc.calculator import EquivariantCalculator
from eqcalc.checks import crystal, provenance, structures
from eqcalc.checks.gradients import check_gradients
from eqcalc.checks.naming import crystal_name
from eqcalc.checks.nve import check_nve
from eqcalc.checks.parity import check_parity
from eqcalc.checks.properties import check_properties
from eqcalc.checks.report import Report, Table, png
from eqcalc.checks.smoothness import check_smoothness
from eqcalc.checks.symmetry import check_symmetry
from eqcalc.errors import InputError

if TYPE_CHECKING:
    from eqcalc.checks.labelled import Labelled
    from eqcalc.checks.references import References

#: Å, by which atoms are displaced so that no force vanishes by symmetry
RATTLE = 0.08

#: atoms of a primitive cell beyond which elastic constants and phonons are left to the user
MAX_PRIMITIVE = 20

#: atoms for static checks and for dynamics, at least, where small crystals are repeated
STATIC_ATOMS, DYNAMIC_ATOMS = 8, 64


@dataclass(frozen=True)
class CheckOutcome:
    """One check: its report, or why there is none.

    error: what stopped it, which counts as a failure; trace: where, if it was a bug; skipped: why
    it does not apply; picture: PNG, empty where there is none.
    """

    name: str
    title: str
    seconds: float = 0.0
    report: Report | None = None
    error: str = ""
    skipped: str = ""
    trace: str = ""
    picture: bytes = b""

    @property
    def failures(self) -> list[str]:
        return [self.error] if self.error else list(self.report.failures) if self.report else []

    @property
    def undecided(self) -> list[str]:
        return list(self.report.undecided) if self.report else []

    @property
    def reasons(self) -> list[str]:
        """Why the verdict is not PASS."""
        return [self.skipped] if self.skipped else self.failures + self.undecided

    @property
    def verdict(self) -> str:
        if self.skipped:
            return "SKIPPED"
        if self.report is None or self.error:
            return "FAIL"
        return self.report.verdict

    def to_dict(self) -> dict[str, Any]:
        about = {"verdict": self.verdict, "seconds": round(self.seconds, 1)}
        if self.skipped:
            return about | {"skipped": self.skipped}
        if self.report is None:
            bug = {"traceback": self.trace} if self.trace else {}
            return about | {"failures": self.failures} | bug
        return about | self.report.to_dict()


@dataclass(frozen=True)
class Suite:
    """All outcomes.

    Attributes:
        model: of the file's metadata.
        structure: what was checked.
        outcomes: one for each check.
        run: date, command, host and versions.
        errors: that the file was written with.
        domain: what the training contained.
        coverage: a picture of real errors over predicted deviations (PNG), or nothing.
        labelled: what frames with labels say that were given.
    """

    model: dict[str, str]
    structure: str
    outcomes: list[CheckOutcome]
    run: dict[str, str] = field(default_factory=dict)
    errors: list[Table] = field(default_factory=list)
    domain: dict[str, str] = field(default_factory=dict)
    coverage: bytes = b""
    labelled: Labelled | None = None

    @property
    def passed(self) -> bool:
        return self.verdict == "PASS"

    @property
    def verdict(self) -> str:
        """The worst of all."""
        found = {outcome.verdict for outcome in self.outcomes}
        return next((v for v in ("FAIL", "UNDECIDED") if v in found), "PASS")

    def to_dict(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "verdict": self.verdict,
            "model": self.model,
            "structure": self.structure,
            "run": self.run,
            "training_domain": self.domain,
            "checks": {outcome.name: outcome.to_dict() for outcome in self.outcomes},
            **({"labelled_frames": self.labelled.document} if self.labelled else {}),
        }

    def __str__(self) -> str:
        lines = []
        for o in self.outcomes:
            lines.append(f"{o.verdict:<10}{o.title} ({o.seconds:.0f} s)")
            lines += [f"          {reason}" for reason in o.reasons]
        return "\n".join(lines)


def default_structure(symbols: list[str]) -> Atoms:
    """The crystal that an element forms, for models of one element.

    Raises:
        InputError: several elements, or an element that ASE builds no crystal of.
    """
    advice = "give a structure: eqcalc check all MODEL STRUCTURE."
    if len(symbols) > 1:
        raise InputError(f"The model knows {', '.join(symbols)}, so {advice}")
    state = reference_states[atomic_numbers[symbols[0]]] or {}
    if state.get("symmetry") not in ("fcc", "bcc", "hcp", "diamond", "sc"):
        raise InputError(f"There is no simple crystal of {symbols[0]} to begin with: {advice}")
    return bulk(symbols[0])


@dataclass(frozen=True)
class Cells:
    """What the checks look at: at rest (primitive, if a crystal), displaced, and for dynamics."""

    rest: Atoms
    displaced: Atoms
    dynamic: Atoms


def make_cells(atoms: Atoms, calc: EquivariantCalculator, *, relaxed: bool = True) -> Cells:
    """Relaxed, or as it is; small crystals are repeated; displaced by RATTLE.

    Raises:
        InputError: it does not relax.
    """
    rest = structures.bare(atoms)
    rest.set_momenta(np.zeros((len(rest), 3)))
    small = False
    if rest.pbc.all():
        rest = structures.primitive_cell(rest)
        small = len(rest) <= MAX_PRIMITIVE
    if relaxed:
        rest = crystal.relax(rest, calc, cell=small, fmax=1e-3)
        rest.calc = None
    displaced = dynamic = rest
    if small:
        displaced = structures.supercell(rest, lambda c: len(c) >= STATIC_ATOMS)
        dynamic = structures.supercell(rest, lambda c: len(c) >= DYNAMIC_ATOMS)
    displaced = displaced.copy()
    displaced.rattle(RATTLE, seed=1)
    return Cells(rest, displaced, dynamic)


def _properties(
    cells: Cells, calc: EquivariantCalculator, references: References | None, say: Callable
) -> Callable[[], Report] | str:
    """The check, or why it does not apply."""
    periodic = cells.rest.pbc
    if periodic.any() and not periodic.all():
        return "Properties are measured of crystals and molecules, not of slabs and wires."
    if periodic.all() and len(cells.rest) > MAX_PRIMITIVE:
        return (
            f"The primitive cell has {len(cells.rest)} atoms: elastic constants and phonons are "
            f"measured here up to {MAX_PRIMITIVE}; run 'eqcalc check properties' for more."
        )
    return lambda: check_properties(cells.rest, calc, references=references, progress=say)


def check_all(
    model: str | os.PathLike,
    atoms: Atoms | None = None,
    *,
    references: References | None = None,
    lammps: bool = True,
    ranks: int = 2,
    steps: int = 300,
    timestep: float | None = None,
    temperature: float = 600.0,
    threads: int = 1,
    say: Callable[[str], None] = lambda _: None,
) -> Suite:
    """Symmetry, gradients, smoothness, parity, NVE and properties of one model.

    Args:
        model: a potential file or the name of a bundled model.
        atoms: crystal, slab or molecule near a minimum; None builds the crystal of a model of one
            element.
        references: values that the properties are compared with.
        lammps: False leaves LAMMPS out.
        ranks: MPI processes of the runs on several.
        steps, timestep, temperature: of `check_nve`.
        threads: of ASE and of each LAMMPS process.
        say: called with a line of text before each check.

    Raises:
        InputError: a bad file, elements that the model lacks, or no structure to begin with.
    """
    from eqcalc.lammps.plugin import INSTALL_LAMMPS, find_tool

    calculators = {
        precision: EquivariantCalculator(
            model, dtype=precision, threads=threads, on_domain_exit="ignore"
        )
        for precision in ("float64", "float32")
    }
    calc = calculators["float64"]
    atoms = default_structure(calc.potential.symbols) if atoms is None else atoms
    calc.potential.species_of(atoms.numbers)
    say("relaxing the structure")
    outcomes: list[CheckOutcome] = []
    cells = Cells(*[structures.bare(atoms)] * 3)
    for relaxed in (True, False):
        try:
            cells = make_cells(atoms, calc, relaxed=relaxed)
            break
        except Exception as reason:
            error, trace = _sentence(reason)
            name, title = ("relaxation", "Relaxation") if relaxed else ("cells", "Cells")
            outcomes.append(CheckOutcome(name, title, error=error, trace=trace))
    missing = "" if lammps else "LAMMPS was left out."
    if lammps and find_tool("lmp") is None:
        missing = f"LAMMPS is not installed: {INSTALL_LAMMPS}"
    engines = ("ase",) if missing else ("ase", "lammps")
    displaced = cells.displaced
    several = (1, ranks) if ranks > 1 else (1,)
    planned: list[tuple[str, str, Callable[[], Report] | str]] = [
        ("symmetry", "Symmetries", lambda: check_symmetry(displaced, calculators)),
        ("gradients", "Forces and stress", lambda: check_gradients(displaced, calc)),
        ("smoothness", "Smoothness", lambda: check_smoothness(displaced, calc)),
        (
            "parity",
            "ASE against LAMMPS",
            missing or (lambda: check_parity(displaced, model, ranks=several, threads=threads)),
        ),
        (
            "nve",
            "Energy conservation",
            lambda: check_nve(
                cells.dynamic,
                model,
                timestep=timestep,
                steps=steps,
                temperature=temperature,
                engines=engines,
                ranks=ranks,
                threads=threads,
                progress=True,
            ),
        ),
        ("properties", "Properties", _properties(cells, calc, references, say)),
    ]
    for k, (name, title, run) in enumerate(planned):
        say(f"[{k + 1}/{len(planned)}] {title}")
        outcomes.append(_outcome(name, title, run))
    document = calc.potential.metadata
    return Suite(
        model=provenance.describe_model(calc),
        structure=_describe(cells),
        outcomes=outcomes,
        run=provenance.describe_run(),
        errors=[*provenance.stored_errors(document), *provenance.stored_coverage(document)],
        coverage=provenance.coverage_picture(document),
        domain=provenance.training_domain(document),
    )


def _describe(cells: Cells) -> str:
    """The structure in words."""
    rest = cells.rest
    axes = [axis for axis, periodic in zip("xyz", rest.pbc, strict=True) if periodic]
    kind = f"periodic along {', '.join(axes)}" if axes else "not periodic"
    if rest.pbc.all():
        small = len(rest) <= MAX_PRIMITIVE
        kind = crystal_name(rest) if small else f"crystal, {len(rest)} atoms in the cell"
    return (
        f"{rest.get_chemical_formula()}, {kind}; {len(cells.displaced)} displaced atoms in static "
        f"checks, {len(cells.dynamic)} in dynamics"
    )


def _sentence(reason: Exception) -> tuple[str, str]:
    """What stopped a check, and where if it was a bug."""
    if isinstance(reason, InputError):
        return str(reason), ""
    said = f"It stopped with {type(reason).__name__}: {reason}. Please report this as a bug."
    return said, "".join(traceback.format_exception(reason))


def _outcome(name: str, title: str, run: Callable[[], Report] | str) -> CheckOutcome:
    """Whatever stops one check, or what is written of it, the others go on."""
    if isinstance(run, str):
        return CheckOutcome(name, title, skipped=run)
    start = time.perf_counter()
    report, picture, error, trace = None, b"", "", ""
    try:
        made = run()
        str(made)
        json.dumps(made.to_dict(), allow_nan=False)
        figure = made.draw()
        picture = png(figure) if figure is not None else b""
        report = made
    except Exception as reason:
        error, trace = _sentence(reason)
    seconds = time.perf_counter() - start
    return CheckOutcome(name, title, seconds, report, error, trace=trace, picture=picture)
