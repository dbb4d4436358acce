"""Programs that compile: found and run. Light: LAMMPS imports this on every rank."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence

from eqcalc.errors import InputError

#: seconds that one compilation may take, unless EQCALC_COMPILE_LIMIT says another number
COMPILE_LIMIT = 900.0
#: seconds that a program may take to say its version
ANSWER_LIMIT = 60.0


def compile_limit() -> float:
    """Seconds that one compilation may take."""
    text = os.environ.get("EQCALC_COMPILE_LIMIT") or COMPILE_LIMIT
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not limit > 0.0:
        raise InputError(f"EQCALC_COMPILE_LIMIT is '{text}': it must be a number of seconds.")
    return limit


def run(
    command: Sequence[str | os.PathLike], limit: float, stderr: int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    """What a program says, in English; it and its children end with the time limit (seconds).

    Raises:
        OSError: it cannot be started.
        subprocess.TimeoutExpired: it took too long.
    """
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},
        process_group=0,
    ) as process:
        try:
            said = process.communicate(timeout=limit)
        except BaseException:  # ctrl-c, too, does not reach another process group
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, *said)


def output(command: Sequence[str | os.PathLike]) -> str:
    """What a program prints; nothing if it cannot be run, fails or does not end."""
    try:
        done = run(command, ANSWER_LIMIT)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def find_compiler() -> tuple[str, str] | None:
    """Path and version of the C++ compiler: `$CXX`, else g++, c++ or clang++; None without one."""
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        path = shutil.which(name) if name else None
        version = output([path, "--version"]).partition("\n")[0] if path else ""
        if version:
            return path, version
    return None
