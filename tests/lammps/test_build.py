"""Building the plugin, finding it, and what happens where it cannot be built or does not fit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from parity import by_python, pair, read_dump, script, silica_like

from eqcalc import cache
from eqcalc.errors import InputError
from eqcalc.lammps import build, doctor, plugin, run_lmp

#: cmake's and the compiler's, for a plugin that runs a few steps
UNOPTIMISED = {"CMAKE_BUILD_TYPE": "None", "CXXFLAGS": "-O0"}

ASK = "from eqcalc.lammps import plugin_folder; print(plugin_folder())"


def start(code: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_import_is_cheap():
    """LAMMPS imports this on every rank."""
    code = "import eqcalc.lammps, sys; print({'torch', 'numpy', 'ase'} & set(sys.modules))"
    assert start(code).communicate()[0].strip() == "set()"


def test_without_compiler(tmp_path):
    """One sentence, LAMMPS still starts, and it does not try again each time."""
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PATH": str(tmp_path), "CXX": ""}
    for remembered in ("", "Then run 'eqcalc lammps build'"):
        out, err = start(ASK, **environment).communicate()
        assert list(Path(out.strip()).iterdir()) == []
        assert err.count("\n") == 1
        assert "there is no C++ compiler: install g++" in err
        assert remembered in err


def test_why_there_is_no_pair_style(tmp_path, monkeypatch, model):
    """Not only that LAMMPS does not know it: at the first start, and at later ones."""
    path = script(silica_like(1), tmp_path, pair(model))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("EQCALC_COMPILE_LIMIT", "0.01")
    why = r"not available: the plugin was not compiled after 0.01 s: set EQCALC_COMPILE_LIMIT"
    for ranks, advice in ((1, ""), (2, ".* run 'eqcalc lammps build'")):
        with pytest.raises(InputError, match=why + advice):
            run_lmp(path, ranks=ranks)


def test_unwritable_cache(tmp_path):
    """The temporary directory takes over; without that, one sentence, and LAMMPS still starts."""
    environment = {"XDG_CACHE_HOME": "/proc/nope", "TMPDIR": str(tmp_path)}
    mine = tmp_path / f"eqcalc-{os.geteuid()}"
    mine.touch()
    out, err = start(ASK, **environment).communicate()
    assert list(Path(out.strip()).iterdir()) == []
    assert err.count("\n") == 1
    assert "set XDG_CACHE_HOME" in err
    mine.unlink()
    built = build()
    shutil.copytree(built, mine / "lammps" / built.name)
    mine.chmod(0o700)
    (mine / "lammps").chmod(0o700)
    out, err = start(ASK, **environment).communicate()
    assert (Path(out.strip()), err) == (mine / "lammps" / built.name, "")


def test_doctor():
    build()
    findings = doctor()
    assert {f.what for f in findings} >= {"torch", "compiler", "LAMMPS", "MPI", "plugin", "lmp"}
    assert not any(f.advice for f in findings), "\n".join(map(str, findings))


def lmp_with(
    folder: Path, path: Path, ranks: int = 1, **variables: str
) -> subprocess.CompletedProcess:
    """The bare binary, which looks for plugins in `folder` only."""
    installation = plugin.find_installation()
    lmp = installation.library.parent / "lmp"
    environment = {**os.environ, "LAMMPS_PLUGIN_PATH": str(folder), **variables}
    if installation.mpi_library:
        environment["LD_LIBRARY_PATH"] = str(installation.mpi_library.parent)
    command = [str(lmp), "-in", str(path), "-log", "none"]
    if ranks > 1:
        command = [plugin.find_tool("mpirun"), "-n", str(ranks), *command]
    return subprocess.run(
        command, env=environment, cwd=path.parent, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("broken", [False, True], ids=["no compiler", "a compiler that fails"])
def test_without_kernels(broken, tmp_path, quick_model):
    """The plugin is there, but nothing compiles its kernels: torch, said once, unless the fused
    engine was asked for."""
    variables = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    if broken:
        compiler = tmp_path / "c++"
        compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "C++ 1.0" && exit\nexit 1\n')
        compiler.chmod(0o755)
        variables["CXX"] = str(compiler)
    else:
        variables |= {"CXX": "", "PATH": str(tmp_path)}
    atoms = silica_like(1)
    path = script(atoms, tmp_path, pair(quick_model))
    done = lmp_with(build(), path, 2 if broken else 1, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("runs on torch, which is many times slower:") == 1
    reason = "cannot compile eqcalc's kernels" if broken else "There is no C++ compiler"
    assert reason in " ".join(done.stdout.split())
    energies = read_dump(tmp_path / "dump.out")[:, 5]
    np.testing.assert_allclose(energies, by_python(quick_model, atoms).energies, atol=1e-9)
    path = script(atoms, tmp_path, pair(quick_model, "engine fused"))
    done = lmp_with(build(), path, **variables)
    assert done.returncode != 0
    assert reason in done.stdout.partition("ERROR: Pair style equivariant: ")[2]


def test_kernels_where_the_cache_cannot_be_written(tmp_path, quick_model):
    """They go to the temporary directory, and one line says so."""
    variables = {"XDG_CACHE_HOME": "/proc/nope", "TMPDIR": str(tmp_path)}
    path = script(silica_like(1), tmp_path, pair(quick_model, "engine fused"))
    done = lmp_with(build(), path, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "engine fused" in done.stdout
    assert done.stderr.count("set XDG_CACHE_HOME to a folder that only you can write to") == 1


def test_other_lammps_is_refused(tmp_path, model):
    """As if compiled for another update, whose classes have another layout."""
    descriptor, _ = plugin._probe(plugin.find_installation())
    other = descriptor[:-1] + ("1" if descriptor[-1] != "1" else "2")
    library = (build() / plugin.PLUGIN).read_bytes()
    assert library.count(descriptor.encode()) == 1
    changed = library.replace(descriptor.encode(), other.encode())
    (tmp_path / plugin.PLUGIN).write_bytes(changed)
    done = lmp_with(tmp_path, script(silica_like(1), tmp_path, pair(model)))
    assert f"compiled for LAMMPS {other}, but this is LAMMPS {descriptor}" in done.stderr
    assert "run 'eqcalc lammps build'" in done.stderr
    assert "Unrecognized pair style 'equivariant'" in done.stdout


def test_the_parity_tests_can_fail(tmp_path, model, monkeypatch):
    """With the way back of the gradients cut, forces on several ranks are wrong, and only there."""
    way_back = "    pair.reverse(payload(rows));\n"
    installation = plugin.find_installation()
    sources = tmp_path / "sources"
    shutil.copytree(installation.sources, sources)
    text = (sources / "pair_exchange.h").read_text()
    assert text.count(way_back) == 1
    (sources / "pair_exchange.h").write_text(text.replace(way_back, ""))
    (sources / "engine.cpp").write_text("")  # is as it was, and slow to compile
    for name, value in UNOPTIMISED.items():
        monkeypatch.setenv(name, value)
    plugin.compile_plugin(replace(installation, sources=sources), tmp_path, tmp_path / "log")
    shutil.copy2(build() / plugin.ENGINE, tmp_path)
    atoms = silica_like()
    expected = by_python(model, atoms)
    cases = [("fused", 1, 0.0, 1e-9), ("fused", 2, 1e-3, np.inf), ("torch", 2, 1e-3, np.inf)]
    for engine, ranks, low, high in cases:
        path = script(atoms, tmp_path, pair(model, f"engine {engine}"))
        done = lmp_with(tmp_path, path, ranks)
        assert done.returncode == 0, done.stdout
        dump = read_dump(tmp_path / "dump.out")
        np.testing.assert_allclose(dump[:, 5], expected.energies, rtol=0, atol=1e-9)
        assert low <= np.abs(dump[:, 6:9] - expected.forces).max() < high


def test_installed_wheel_and_own_lammps(tmp_path, model):
    """The wheel carries the sources, and builds from them for a LAMMPS below some prefix; of two
    processes, one builds and the other waits."""
    checkout = plugin.find_sources().parent
    wheel = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(wheel, cwd=checkout, capture_output=True, check=True)
    site, prefix = tmp_path / "site", tmp_path / "own lammps"
    with zipfile.ZipFile(next(tmp_path.glob("eqcalc-*.whl"))) as archive:
        archive.extractall(site)
    for mine in plugin.find_sources().iterdir():
        assert (site / "eqcalc" / "_lammps_plugin" / mine.name).read_bytes() == mine.read_bytes()
    # compiled in this session already, from the same bytes, and slow to compile: torch's headers
    (site / "eqcalc" / "_lammps_plugin" / "engine.cpp").write_text("")

    installation = plugin.find_installation()  # as 'make install' puts it
    (prefix / "lib").mkdir(parents=True)
    (prefix / "lib" / "liblammps.so").symlink_to(installation.library)
    (prefix / "include").mkdir()
    shutil.copytree(installation.include, prefix / "include" / "lammps")
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    environment |= UNOPTIMISED
    if installation.mpi_library:
        environment["LD_LIBRARY_PATH"] = str(installation.mpi_library.parent)
    code = f"""
from eqcalc.lammps import build, plugin
print(plugin.find_sources())
print(build(lammps={str(prefix)!r}))
"""
    both = [start(code, **environment) for _ in range(2)]
    (out, err), (also, waited) = [process.communicate() for process in both]
    assert out, err
    assert out == also
    assert (err + waited).count("building the LAMMPS plugin once") == 1
    sources, folder = map(Path, out.splitlines())
    assert sources == site / "eqcalc" / "_lammps_plugin"
    assert folder.is_relative_to(tmp_path / "eqcalc")
    assert {p.name for p in folder.iterdir()} == {plugin.ENGINE, plugin.PLUGIN, cache.USED}
    assert not list(folder.parent.glob("partial-*"))

    atoms = silica_like(1)
    done = lmp_with(folder, script(atoms, tmp_path, pair(model)), ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    dump, expected = read_dump(tmp_path / "dump.out"), by_python(model, atoms)
    np.testing.assert_allclose(dump[:, 6:9], expected.forces, rtol=0, atol=1e-9)


@pytest.mark.parametrize("lacking", ["lib/liblammps.so", "include/lammps/pair.h"])
def test_prefix_without_lammps(lacking, tmp_path):
    """One sentence names the file and how LAMMPS has to be installed."""
    for name in {"lib/liblammps.so", "include/lammps/pair.h"} - {lacking}:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=f"{lacking} is missing: install LAMMPS as a shared"):
        build(tmp_path)


def test_prefix_whose_library_does_not_load(tmp_path, monkeypatch):
    """The loader's own reason, and what to do."""
    for name in ("lib/liblammps.so", "include/lammps/pair.h"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"file too short\): .* into LD_LIBRARY_PATH"):
        build(tmp_path)


def test_inside_python(tmp_path, model):
    """LAMMPS's Python module beside torch in one process: same numbers, torch left as it was."""
    path = script(silica_like(1), tmp_path, pair(model, "threads 1"))
    code = f"""
import torch, os
os.chdir({str(path.parent)!r})
torch.set_num_threads(2)
from mpi4py import MPI
from lammps import lammps
lmp = lammps(cmdargs=["-screen", "none", "-log", "none"])
lmp.file({path.name!r})
strategy = torch.jit.set_fusion_strategy([("STATIC", 2), ("DYNAMIC", 10)])
print(lmp.get_thermo("pe"), torch.get_num_threads(), strategy, torch.get_default_dtype())
"""
    out, err = start(code).communicate()
    assert out, err
    energy, threads, rest = out.split(" ", 2)
    assert float(energy) == pytest.approx(by_python(model, silica_like(1)).energy, rel=1e-12)
    assert threads == "2"
    assert "DYNAMIC" in rest
    assert "float32" in rest


def test_sub_communicators(tmp_path, model):
    """Four processes, two simulations of two ranks by mpi4py, one of them with more steps."""
    path = script(silica_like(), tmp_path, pair(model))
    text = path.read_text().replace("dump.out", "dump.${half}.out")
    path.write_text(text.replace("run 0", "run ${half}"))
    code = f"""
import os
import re
from mpi4py import MPI
from lammps import lammps
os.chdir({str(tmp_path)!r})
half = MPI.COMM_WORLD.rank // 2
communicator = MPI.COMM_WORLD.Split(half)
options = ["-screen", "none", "-log", "none", "-var", "half", str(half)]
lmp = lammps(comm=communicator, cmdargs=options)
lmp.file({path.name!r})
"""
    command = [plugin.find_tool("mpirun"), "-n", "4", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = by_python(model, silica_like())
    for half in (0, 1):
        dump = read_dump(tmp_path / f"dump.{half}.out")
        np.testing.assert_allclose(dump[:, 6:9], expected.forces, rtol=0, atol=1e-9)


def test_models_in_the_home_folder(tmp_path, model, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.folder("lammps").parent.parent))
    monkeypatch.setenv("HOME", str(Path(model).parent))
    for engine in ("fused", "torch"):
        run_lmp(script(silica_like(1), tmp_path, pair(f"~/{Path(model).name}", f"engine {engine}")))
        dump, expected = read_dump(tmp_path / "dump.out"), by_python(model, silica_like(1))
        np.testing.assert_allclose(dump[:, 5], expected.energies, rtol=0, atol=1e-9)
        (tmp_path / "dump.out").unlink()


def test_timing_is_printed_when_asked(tmp_path, model):
    said = []
    for options in ("", "timing yes"):
        path = script(silica_like(1), tmp_path, pair(model, options), after=("run 5",))
        said.append("microseconds per atom and call" in run_lmp(path))
    assert said == [False, True]
