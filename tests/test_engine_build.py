"""Compilers that hang or fail, caches that cannot be written: what the engines then do; headers."""

import os
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import pytest

from eqcalc import EquivariantCalculator, cache
from eqcalc.engine import build
from eqcalc.engine.prepare import prepared
from eqcalc.errors import InputError
from eqcalc.models import registry
from eqcalc.models.nequip import NequIPConfig
from eqcalc.training.network import ready
from eqcalc.training.options import TrainingConfig

#: compilers that say their version and then ...
HANGS = "sleep 600 & echo $! > {folder}/child; wait"
SAYS_NOTHING = "exit 0"
WRITES_RUBBISH = 'while [ "$1" != -o ]; do shift; done; echo rubbish > "$2"'
FINDS_NO_ROOM = "echo 'cannot write: No space left on device' >&2; exit 1"


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Sets the compiler to a script, with an empty cache."""

    def use(script: str) -> None:
        path = tmp_path / "c++"
        first = 'if [ "$1" = --version ]; then echo "c++ 1.0"; exit; fi\n'
        path.write_text(f"#!/bin/sh\n{first}{script.format(folder=tmp_path)}\n")
        path.chmod(0o755)
        monkeypatch.setenv("CXX", str(path))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(cache, "_told", set())
    build.compiled.cache_clear()
    build._too_long.clear()
    yield use
    build.compiled.cache_clear()
    build._too_long.clear()


def test_the_time_to_compile_is_limited(compiler, tmp_path, monkeypatch):
    """In one sentence, once, and the compiler's children end too."""
    compiler(HANGS)
    monkeypatch.setenv("EQCALC_COMPILE_LIMIT", "1")
    for _ in range(2):
        with pytest.raises(build.EngineUnavailable, match=r"after 1 s: set EQCALC_COMPILE_LIMIT"):
            build.compile_library("")
        child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 30
    while Path(f"/proc/{child}").exists():
        state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":
            break
        assert time.monotonic() < deadline
    assert not list((tmp_path / "home" / "eqcalc" / "kernels").glob("partial-*"))
    monkeypatch.setenv("EQCALC_COMPILE_LIMIT", "soon")
    with pytest.raises(InputError, match="'soon': it must be a number of seconds"):
        build.compile_library("another")


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (SAYS_NOTHING, "cannot compile eqcalc's kernels: no library, exit status 0"),
        (WRITES_RUBBISH, r"cannot be loaded .*: remove that folder"),
        (FINDS_NO_ROOM, "no folder to keep compiled code in .*No space left on device"),
    ],
)
def test_torch_takes_over_from_a_compiler_that_fails(compiler, script, sentence, potential_path):
    compiler(script)
    with pytest.warns(UserWarning, match=f"Running on torch, .*{sentence}") as said:
        assert EquivariantCalculator(potential_path).backend.name == "torch"
    assert len(said) == 1
    with pytest.raises(InputError, match=sentence):
        EquivariantCalculator(potential_path, engine="fused")
    with pytest.raises(InputError, match=sentence):
        prepared(potential_path, "double", "table")
    model = registry.build(
        NequIPConfig(product_channels=0, l_max=1, num_channels=[2, 2], num_layers=1),
        [14],
        4.0,
        [1.0],
        [0.0],
    )
    with pytest.warns(UserWarning, match=f"Training without compiled kernels, .*{sentence}"):
        assert ready(model, TrainingConfig(device="cpu")) is model


def test_without_a_cache_the_temporary_directory_does(tmp_path, potential_path):
    """In a process of its own: compiled once, said once."""
    code = f"""
from ase.build import bulk
from eqcalc import EquivariantCalculator, cache
for engine in ("auto", "fused"):
    calc = EquivariantCalculator({str(potential_path)!r}, engine=engine)
    print(calc.backend.name, calc.potential.library.path, calc.get_potential_energy(bulk("Si")))
"""
    environment = {**os.environ, "XDG_CACHE_HOME": "/proc/nope", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {line[0] for line in lines} == {"fused"}
    mine = tmp_path / f"eqcalc-{os.geteuid()}" / "kernels"
    assert {Path(line[1]).parent.parent for line in lines} == {mine}
    assert done.stderr.count("set XDG_CACHE_HOME") == 1
    assert lines[0] == lines[1]


#: headers of an engine that are opened each alone, and those that others open
APART = {
    "eqcalc.engine": (
        {"muon.h", "radial_network.h", "no_messages.h"},
        {"dense.h", "gpu_interface.h"},  # the former is in muon.h
    ),
    "eqcalc.engine.cuda": ({"training_task.h"}, set()),  # which stands for task.h
}


@pytest.mark.parametrize("package", APART)
def test_headers_open_by_themselves(package, tmp_path):
    """As in an editor: in the reverse of their order in sources, and what is the other of two."""
    folder = Path(str(resources.files(package))) / "csrc"
    alone, apart = APART[package]
    apart = alone | apart
    found = [{path.name for path in folder.glob(f"*.{kind}")} - apart for kind in ("h", "cuh")]
    groups = [sorted(names, reverse=True) for names in found if names]
    names = set().union(*found)
    for number, group in enumerate([*groups, *([name] for name in sorted(alone))]):
        lines = "\n".join(f'#include "{name}"' for name in group)
        (tmp_path / f"{number}.cpp").write_text(lines, encoding="utf-8")
    flags = ["-std=c++17", "-fsyntax-only", "-fopenmp", "-w", f"-I{folder}"]
    command = [build.find_compiler()[0], *flags, *map(str, tmp_path.glob("*.cpp"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:3000]
    for name in {*names, *apart} - {"interface.h", "gpu_interface.h"}:  # these are C's
        assert "#pragma once" in (folder / name).read_text(encoding="utf-8"), name
        assert '"' not in "".join(
            line for line in build.header(name, package).splitlines() if line.startswith("#include")
        )
