"""Runs the real `lmp`, and reads what it prints."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

from eqcalc.errors import InputError
from eqcalc.files import user_path
from eqcalc.lammps.plugin import INSTALL_LAMMPS, NOT_AVAILABLE, find_tool

if TYPE_CHECKING:
    import numpy as np

LOG_FILE = "log.lammps"


def run_lmp(
    script: str | os.PathLike,
    cwd: str | os.PathLike | None = None,
    ranks: int = 1,
    threads: int = 1,
    *,
    timeout: float | None = None,
) -> str:
    """Runs the `lmp` that is installed beside this Python, and returns what it prints.

    Args:
        script: input script.
        cwd: where to run; None is the script's folder.
        ranks: MPI processes.
        threads: of each.
        timeout: s.

    Raises:
        InputError: no LAMMPS, or LAMMPS stopped with an error: its own sentence; where it lacks
            the pair style, why that could not be built or loaded.
    """
    script = user_path(script).resolve()
    lmp, mpirun = find_tool("lmp"), find_tool("mpirun")
    if lmp is None or (ranks > 1 and mpirun is None):
        missing = "LAMMPS" if lmp is None else "mpirun"
        raise InputError(f"{missing} is not installed for this Python: {INSTALL_LAMMPS}")
    command = [lmp, "-nocite", "-log", LOG_FILE, "-in", str(script)]
    if ranks > 1 and mpirun is not None:
        command = [mpirun, "-n", str(ranks), *command]
    try:
        done = subprocess.run(
            command,
            cwd=script.parent if cwd is None else cwd,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"LAMMPS did not finish {script} within {timeout:g} s.") from None
    error = re.search(
        r"^ERROR(?: on proc \d+)?: (.*?)(?: \(\S+:\d+\))?$", done.stdout, re.MULTILINE
    )
    if done.returncode or error:
        said = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
        reason = error[1] if error else f"exit status {done.returncode}: {said[-1]}"
        lacking = re.search(rf"^eqcalc: ({NOT_AVAILABLE}.*)$", done.stderr, re.MULTILINE)
        if lacking and reason.startswith("Unrecognized"):
            reason = lacking[1]
        raise InputError(f"LAMMPS stopped in {script}: {reason}")
    return done.stdout


def read_thermo(output: str) -> dict[str, np.ndarray]:
    """The last thermo table in what LAMMPS prints, or in its log: column name -> values."""
    import numpy as np

    names: list[str] = []
    rows: list[list[float]] = []
    inside = False
    for line in output.splitlines():
        words = line.split()
        if words[:1] == ["Step"]:
            names, rows, inside = words, [], True
        elif line.startswith("Loop time"):
            inside = False
        elif inside and len(words) == len(names) and re.match(r"^-?\d+$", words[0]):
            rows.append([float(word) for word in words])
    if not rows:
        raise InputError("There is no thermo table in LAMMPS's output.")
    return dict(zip(names, np.array(rows).T, strict=True))
