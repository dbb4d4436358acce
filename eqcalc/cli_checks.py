"""`eqcalc check ...`: thin layers over eqcalc.checks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eqcalc.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from eqcalc.checks.references import References
    from eqcalc.checks.report import Report

check_app = typer.Typer(no_args_is_help=True, help="Is the potential what it claims to be?")

Structure = Annotated[Path, typer.Argument(help="A structure that ASE reads.")]
Model = Annotated[str, typer.Option("--model", help="A potential file, or a bundled model: si.")]
Out = Annotated[Path, typer.Option(help="Folder for the figures (JSON) and the picture (PNG).")]
Ranks = Annotated[int, typer.Option(help="MPI processes of the run on several in LAMMPS.")]
Threads = Annotated[int, typer.Option(help="Threads of each process.")]
Steps = Annotated[int, typer.Option(help="MD steps at the longest time step.")]
TimeStep = Annotated[
    float | None, typer.Option(help="fs; its half and quarter run as well. Default: 2; 0.5 with H.")
]
Temperature = Annotated[float, typer.Option(help="K, of the first velocities.")]
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


def _say(line: str) -> None:
    typer.echo(line, err=True)


@check_app.command("all")
def check_all(
    model: Annotated[str, typer.Argument(help="A potential file, or a bundled model: si.")],
    structure: Annotated[
        Path | None,
        typer.Argument(help="Crystal, slab or molecule; left out, the crystal of a pure element."),
    ] = None,
    *,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The report; its JSON is written beside it.")
    ] = Path("report.html"),
    references: ReferenceFile = None,
    lammps: Annotated[bool, typer.Option(help="Run LAMMPS too.")] = True,
    ranks: Ranks = 2,
    steps: Steps = 300,
    timestep: TimeStep = None,
    temperature: Temperature = 600.0,
    threads: Threads = 1,
) -> None:
    """Every check that fits, as one HTML page; exit status 1 on FAIL, 3 if UNDECIDED."""
    from eqcalc.checks.page import write_report
    from eqcalc.checks.suite import check_all as run_checks
    from eqcalc.data.frames import read_structure

    if out.suffix != ".html":
        raise InputError(f"--out {out}: the report's name must end in .html.")
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
    written = write_report(suite, out)
    typer.echo(f"{suite}\nWritten: {', '.join(map(str, written))}")
    raise typer.Exit(STATUS[suite.verdict])


@check_app.command("symmetry")
def check_symmetry(
    structure: Structure,
    model: Model,
    out: Out = Path(),
    precision: Annotated[str, typer.Option(help="float64, float32 or both.")] = "both",
) -> None:
    """Rotations, reflections, translations, permutations, wrapping, cell vectors, supercells."""
    from eqcalc.calculator import EquivariantCalculator
    from eqcalc.checks.symmetry import check_symmetry as run_check
    from eqcalc.data.frames import read_structure

    known = {"both": ("float64", "float32"), "float64": ("float64",), "float32": ("float32",)}
    if precision not in known:
        raise InputError(f"--precision {precision}{did_you_mean(precision, known)}.")
    calculators = {
        p: EquivariantCalculator(model, dtype=p, on_domain_exit="ignore") for p in known[precision]
    }
    _finish(run_check(read_structure(structure), calculators), out)


@check_app.command("gradients")
def check_gradients(structure: Structure, model: Model, out: Out = Path()) -> None:
    """Finite differences of the energy against forces and stress, in float64."""
    from eqcalc.calculator import EquivariantCalculator
    from eqcalc.checks.gradients import check_gradients as run_check
    from eqcalc.data.frames import read_structure

    calc = EquivariantCalculator(model, dtype="float64", on_domain_exit="ignore")
    _finish(run_check(read_structure(structure), calc), out)


@check_app.command("smoothness")
def check_smoothness(structure: Structure, model: Model, out: Out = Path()) -> None:
    """Jumps where distances cross the cutoff; holes, on compression and in hot dynamics too."""
    from eqcalc.calculator import EquivariantCalculator
    from eqcalc.checks.smoothness import check_smoothness as run_check
    from eqcalc.data.frames import read_structure

    calc = EquivariantCalculator(model, dtype="float64", on_domain_exit="ignore")
    _finish(run_check(read_structure(structure), calc), out)


@check_app.command("nve")
def check_nve(
    structure: Structure,
    model: Model,
    out: Out = Path(),
    timestep: TimeStep = None,
    steps: Steps = 300,
    temperature: Temperature = 600.0,
    engine: Annotated[str, typer.Option(help="ase, lammps or both.")] = "both",
    ranks: Ranks = 2,
    threads: Threads = 1,
    max_drift: Annotated[float | None, typer.Option(help="meV/atom/ps that pass.")] = None,
) -> None:
    """Energy conservation: three time steps in ASE and LAMMPS, float32, several ranks."""
    from eqcalc.checks.nve import check_nve as run_check
    from eqcalc.checks.nve_report import MAX_DRIFT
    from eqcalc.data.frames import read_structure

    engines = {"both": ("ase", "lammps"), "ase": ("ase",), "lammps": ("lammps",)}
    if engine not in engines:
        raise InputError(f"--engine {engine}: it must be one of {', '.join(engines)}.")
    report = run_check(
        read_structure(structure),
        model,
        timestep=timestep,
        steps=steps,
        temperature=temperature,
        engines=engines[engine],
        ranks=ranks,
        threads=threads,
        max_drift=MAX_DRIFT if max_drift is None else max_drift,
        progress=True,
    )
    _finish(report, out)


@check_app.command("parity")
def check_parity(
    structure: Structure,
    model: Model,
    out: Out = Path(),
    ranks: Annotated[list[int] | None, typer.Option(help="MPI processes; repeatable.")] = None,
    threads: Threads = 1,
) -> None:
    """Energies, forces, pressure and atomic virials in ASE against LAMMPS, on any ranks."""
    from eqcalc.checks.parity import check_parity as run_check
    from eqcalc.data.frames import read_structure

    report = run_check(read_structure(structure), model, ranks=ranks or (1, 2), threads=threads)
    _finish(report, out)


@check_app.command("properties")
def check_properties(
    structure: Structure, model: Model, out: Out = Path(), references: ReferenceFile = None
) -> None:
    """Crystals: E(V), elastic constants, vacancy, phonons. Molecules: geometry, vibrations."""
    from eqcalc.calculator import EquivariantCalculator
    from eqcalc.checks.properties import check_properties as run_check
    from eqcalc.data.frames import read_structure

    calc = EquivariantCalculator(model, dtype="float64", on_domain_exit="ignore")
    known = _references(references)
    _finish(run_check(read_structure(structure), calc, references=known, progress=_say), out)
