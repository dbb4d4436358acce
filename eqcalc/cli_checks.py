"""`eqcalc check ...`: thin layers over eqcalc.checks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eqcalc import precisions
from eqcalc.cli_calibrate import evaluate_frames
from eqcalc.cli_data import EnergyKey, ForcesKey, StressKey, VirialKey
from eqcalc.cli_shared import (
    Model,
    OldModel,
    Structure,
    model_and_structure,
    will_write,
    will_write_to,
)
from eqcalc.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

    from eqcalc.checks.labelled import Labelled
    from eqcalc.checks.references import References
    from eqcalc.checks.report import Report

check_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Test a potential: physics, ASE against LAMMPS, properties.",
)

Out = Annotated[Path, typer.Option(help="Folder for the figures (JSON) and the picture (PNG).")]
Ranks = Annotated[int, typer.Option(help="MPI processes of the parallel LAMMPS run.")]
Threads = Annotated[int, typer.Option(help="Threads of each process.")]
Steps = Annotated[int, typer.Option(help="MD steps at the longest time step.")]
TimeStep = Annotated[
    float | None, typer.Option(help="fs; its half and quarter run as well. Default: 2; 0.5 with H.")
]
Temperature = Annotated[float, typer.Option(help="K, of the initial velocities.")]
ReferenceFile = Annotated[
    Path | None,
    typer.Option("--references", help="TOML or JSON: name = value, or {value, tolerance}."),
]


#: exit status by verdict
STATUS = {"PASS": 0, "FAIL": 1, "UNDECIDED": 3}


def _finish(report: Report, out: Path) -> None:
    """Prints a check, writes its files; the exit status is that of the verdict."""
    typer.echo(str(report))
    written = report.write(out)
    typer.echo(f"Written to {out}: {', '.join(path.name for path in written)}")
    raise typer.Exit(STATUS[report.verdict])


def _references(path: Path | None) -> References | None:
    if path is None:
        return None
    from eqcalc.checks.references import read_references

    return read_references(path)


def _labelled(model: str, paths: list[Path], **keys: str) -> Labelled:
    """What labelled frames say of a model."""
    from eqcalc.calculator import EquivariantCalculator
    from eqcalc.checks.labelled import labelled
    from eqcalc.training import evaluate as ev

    calc = EquivariantCalculator(model, on_domain_exit="ignore")
    frames, results = evaluate_frames(calc, paths, 0.0, **keys)
    errors = ev.evaluate_results(frames, results, calc.outputs).summary()
    coverage = ev.coverage_of(frames, results)
    return labelled([p.name for p in paths], errors, coverage.document() if coverage else {})


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _opened(model: str, structure: Path | None, old: str | None, out: Path) -> tuple[str, Atoms]:
    """The model's name and the structure; where results go is checked first."""
    from eqcalc.data.frames import read_structure

    will_write_to(out)
    model, path = model_and_structure(model, structure, old)
    return model, read_structure(path)


@check_app.command("all")
def check_all(
    model: Model,
    structure: Annotated[
        Path | None,
        typer.Argument(
            metavar="STRUCTURE",
            help="Crystal, slab or molecule; default: the crystal of a pure element.",
            show_default=False,
        ),
    ] = None,
    *,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The report; its JSON is written beside it.")
    ] = Path("report.html"),
    out: Annotated[Path | None, typer.Option(hidden=True)] = None,
    references: ReferenceFile = None,
    frames: Annotated[
        list[Path] | None,
        typer.Option(
            help="Labelled frames, as far from the training set as your application goes: the "
            "report has their errors beside the predicted deviations."
        ),
    ] = None,
    lammps: Annotated[bool, typer.Option(help="Run the checks that need LAMMPS.")] = True,
    ranks: Ranks = 2,
    steps: Steps = 300,
    timestep: TimeStep = None,
    temperature: Temperature = 600.0,
    threads: Threads = 1,
    energy_key: EnergyKey = "energy",
    forces_key: ForcesKey = "forces",
    stress_key: StressKey = "stress",
    virial_key: VirialKey = "",
) -> None:
    """Run every check that fits; one HTML page.

    The exit status is 1 on FAIL, 3 if UNDECIDED.
    """
    import dataclasses

    from eqcalc.checks.page import write_report
    from eqcalc.checks.suite import check_all as run_checks
    from eqcalc.data.frames import read_structure

    output = out or output
    will_write(output, endings=(".html",))
    keys = {
        "energy_key": energy_key,
        "forces_key": forces_key,
        "stress_key": stress_key,
        "virial_key": virial_key,
    }
    given = _labelled(model, frames, **keys) if frames else None
    suite = run_checks(
        model,
        None if structure is None else read_structure(structure),
        references=_references(references),
        lammps=lammps,
        ranks=ranks,
        steps=steps,
        timestep=timestep,
        temperature=temperature,
        threads=threads,
        say=_say,
    )
    written = write_report(dataclasses.replace(suite, labelled=given), output)
    typer.echo(f"{suite}\nWritten: {', '.join(map(str, written))}")
    raise typer.Exit(STATUS[suite.verdict])


@check_app.command("symmetry")
def check_symmetry(
    model: Model,
    structure: Structure = None,
    *,
    out: Out = Path(),
    asked: Annotated[str, typer.Option("--precision", help="float64, float32 or both.")] = "both",
    old_model: OldModel = None,
) -> None:
    """Rotations, reflections, permutations, supercells.

    And translations, wrapped atoms and other vectors of the same lattice.
    """
    from eqcalc.calculator import EquivariantCalculator
    from eqcalc.checks.symmetry import check_symmetry as run_check

    chosen = ["float64", "float32"] if asked == "both" else [precisions.named(asked, "--precision")]
    model, atoms = _opened(model, structure, old_model, out)
    calculators = {
        str(p): EquivariantCalculator(model, dtype=p, on_domain_exit="ignore") for p in chosen
    }
    _finish(run_check(atoms, calculators), out)


@check_app.command("gradients")
def check_gradients(
    model: Model, structure: Structure = None, *, out: Out = Path(), old_model: OldModel = None
) -> None:
    """Forces and stress against differences of the energy."""
    from eqcalc.calculator import EquivariantCalculator
    from eqcalc.checks.gradients import check_gradients as run_check

    model, atoms = _opened(model, structure, old_model, out)
    calc = EquivariantCalculator(model, dtype="float64", on_domain_exit="ignore")
    _finish(run_check(atoms, calc), out)


@check_app.command("smoothness")
def check_smoothness(
    model: Model, structure: Structure = None, *, out: Out = Path(), old_model: OldModel = None
) -> None:
    """Jumps at the cutoff; holes, when pressed or hot too.

    A hole is where the energy falls though atoms come too close.
    """
    from eqcalc.calculator import EquivariantCalculator
    from eqcalc.checks.smoothness import check_smoothness as run_check

    model, atoms = _opened(model, structure, old_model, out)
    calc = EquivariantCalculator(model, dtype="float64", on_domain_exit="ignore")
    _finish(run_check(atoms, calc), out)


@check_app.command("nve")
def check_nve(
    model: Model,
    structure: Structure = None,
    *,
    out: Out = Path(),
    timestep: TimeStep = None,
    steps: Steps = 300,
    temperature: Temperature = 600.0,
    code: Annotated[str, typer.Option(help="MD code: ase, lammps or both.")] = "both",
    ranks: Ranks = 2,
    threads: Threads = 1,
    max_drift: Annotated[
        float | None, typer.Option(help="Largest drift that passes, meV/atom/ps.")
    ] = None,
    direct_forces: Annotated[
        bool,
        typer.Option(
            "--direct-forces",
            help="Use the network's output direct_forces instead of gradients; ASE only.",
        ),
    ] = False,
    old_model: OldModel = None,
    old_code: Annotated[str | None, typer.Option("--engine", hidden=True)] = None,
) -> None:
    """Energy conservation in ASE and in LAMMPS.

    Three time steps, then float32 and several ranks.
    """
    from eqcalc.checks.nve import check_nve as run_check
    from eqcalc.checks.nve_report import MAX_DRIFT

    code = old_code or code
    codes: dict[str, Any] = {
        "both": ("ase", "lammps"),
        "ase": ("ase",),
        "lammps": ("lammps",),
    }
    if code not in codes:
        raise InputError(f"--code {code}: it must be one of {', '.join(codes)}.")
    model, atoms = _opened(model, structure, old_model, out)
    report = run_check(
        atoms,
        model,
        timestep=timestep,
        steps=steps,
        temperature=temperature,
        engines=codes[code],
        ranks=ranks,
        threads=threads,
        max_drift=MAX_DRIFT if max_drift is None else max_drift,
        progress=True,
        direct_forces=direct_forces,
    )
    _finish(report, out)


@check_app.command("parity")
def check_parity(
    model: Model,
    structure: Structure = None,
    *,
    out: Out = Path(),
    ranks: Annotated[
        list[int] | None,
        typer.Option(help="Numbers of MPI processes; repeat it for several. [default: 1 and 2]"),
    ] = None,
    threads: Threads = 1,
    old_model: OldModel = None,
) -> None:
    """ASE against LAMMPS, on any number of ranks.

    Energies, forces, pressure and atomic virials.
    """
    from eqcalc.checks.parity import check_parity as run_check

    model, atoms = _opened(model, structure, old_model, out)
    report = run_check(atoms, model, ranks=ranks or (1, 2), threads=threads)
    _finish(report, out)


@check_app.command("properties")
def check_properties(
    model: Model,
    structure: Structure = None,
    *,
    out: Out = Path(),
    references: ReferenceFile = None,
    old_model: OldModel = None,
) -> None:
    """Elastic constants, phonons; vibrations of molecules.

    Crystals: E(V), elastic constants, vacancy, phonons. Molecules: geometry, vibrations.
    """
    from eqcalc.calculator import EquivariantCalculator
    from eqcalc.checks.properties import check_properties as run_check

    known = _references(references)
    model, atoms = _opened(model, structure, old_model, out)
    calc = EquivariantCalculator(model, dtype="float64", on_domain_exit="ignore")
    _finish(run_check(atoms, calc, references=known, progress=_say), out)
