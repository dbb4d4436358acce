"""Imports go one way, and what must be light stays light."""

import ast
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "eqcalc"

#: what every part may import
EVERYWHERE = {"errors", "extras", "files", "precisions", "progress"}

#: what each part may import of the package, besides itself
ALLOWED = {
    "errors": set(),
    "contract": set(),
    "derivatives": set(),
    "graph": set(),
    "files": {"errors"},
    "progress": set(),
    "precisions": {"errors"},
    "extras": set(),
    "cache": {"errors", "files"},
    "toolchain": {"errors"},
    "structure": {"errors"},
    "runtime": {"errors"},
    "reuse": {"runtime"},
    "neighbors": {"structure"},
    "domain": {"errors"},
    "origin": set(),
    "names": {"cache", "importers"},
    "nn": {"errors", "program"},
    "sections": {"errors"},
    "objects": {"errors"},
    "program": {"errors"},
    "outputs": {"errors"},
    "models": {"contract", "errors", "nn", "objects", "outputs", "program", "sections"},
    "describe": {"errors", "export", "files", "models", "program"},
    "export": {
        *("contract", "derivatives", "domain", "errors", "origin", "outputs", "reuse", "runtime"),
        "structure",
    },
    "uncertainty": {"errors", "export", "program", "runtime"},
    "engine": {
        *("contract", "derivatives", "errors", "export", "graph", "neighbors", "nn", "runtime"),
        *("cache", "files", "outputs", "program", "reuse", "toolchain", "uncertainty"),
    },
    "results": {"engine", "outputs"},
    "committee": {"results"},
    "data": {"derivatives", "errors", "graph", "neighbors", "outputs"},
    "training": {
        *("contract", "data", "derivatives", "engine", "errors", "export", "graph", "models", "nn"),
        *("committee", "domain", "names", "outputs", "program", "runtime", "sampling", "sections"),
        "uncertainty",
    },
    "importers": {"errors", "export", "models", "neighbors", "nn", "origin"},
    "network": {"derivatives", "errors", "export", "neighbors", "structure"},
    "calculator": {
        *("derivatives", "domain", "engine", "errors", "export", "neighbors", "network", "runtime"),
        *("committee", "names", "outputs", "results", "structure", "uncertainty"),
    },
    "observers": {"calculator", "committee", "errors"},
    "active": {"calculator", "committee", "data", "errors", "names", "sampling"},
    "adapters": {"calculator", "errors"},
    "sampling": {
        *("calculator", "committee", "derivatives", "errors", "names", "objects", "outputs"),
    },
    "lammps": {"cache", "errors", "export", "files", "names", "neighbors", "toolchain"},
    "checks": {
        *("calculator", "derivatives", "domain", "errors", "lammps", "neighbors", "uncertainty"),
    },
}


def imported(path: Path) -> set[str]:
    parts = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "eqcalc":
                names = [f"eqcalc.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        parts |= {n.split(".")[1] for n in names if n.startswith("eqcalc.")}
    return parts


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_go_down_only(part):
    files = (
        (PACKAGE / part).rglob("*.py") if (PACKAGE / part).is_dir() else [PACKAGE / f"{part}.py"]
    )
    for path in files:
        assert imported(path) - {part, *EVERYWHERE} <= ALLOWED[part], path


def test_every_part_is_listed():
    found = {
        p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()
    }
    commands = {name for name in found if name == "cli" or name.startswith("cli_")}
    assert found - {"__init__", "__main__"} - commands == set(ALLOWED)


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import eqcalc", ("torch", "ase", "numpy", "lightning")),
        ("import eqcalc.lammps", ("torch", "ase", "numpy")),
        ("import eqcalc.cli", ("torch", "ase", "lightning", "matplotlib")),
        ("from eqcalc import EquivariantCalculator", ("lightning", "e3nn")),
    ],
)
def test_light_imports_stay_light(statement, heavy):
    code = f"{statement}\nimport sys\nassert not [m for m in {heavy!r} if m in sys.modules]"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "path", sorted((PACKAGE.parent / "examples").glob("*.py")), ids=lambda p: p.stem
)
def test_examples_import_what_exists(path):
    """Also those that take too long to be run here."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("eqcalc"):
            module = importlib.import_module(node.module)
            for name in node.names:
                submodule = f"{node.module}.{name.name}"
                known = hasattr(module, name.name) or importlib.util.find_spec(submodule)
                assert known, f"{path.name}: {submodule}"
