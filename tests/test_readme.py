"""README.md: its Python runs, its commands exist, its picture and links are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python_snippets_run(capsys):
    assert blocks("python")
    for snippet in blocks("python"):
        exec(compile(snippet, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_set_up_commands_are_one_line_each():
    setup = [b for b in blocks("bash") if b.startswith("python3 -m venv")]
    assert len(setup) == 2
    for command, ending in zip(setup, ("examples/relax_and_nve.py", "-m pytest"), strict=True):
        assert command.count("\n") == 1
        assert command.strip().endswith(ending)
        assert "pip install torch==" in command


def test_commands_exist():
    from typer.testing import CliRunner

    from eqcalc.cli import app

    words = {
        tuple(w for w in line.split()[1:3] if re.fullmatch(r"[a-z]+", w))
        for block in (*blocks("bash"), *re.findall(r"`(eqcalc [^`]*)`", README))
        for line in block.splitlines()
        if line.startswith("eqcalc ")
    }
    assert len(words) >= 6
    groups = {"check", "data", "lammps"}
    for command in words:
        call = command if command[0] in groups else command[:1]
        result = CliRunner().invoke(app, [*call, "--help"])
        assert result.exit_code == 0, call


@pytest.mark.parametrize("target", re.findall(r"\]\(((?!http)[^)]+)\)", README))
def test_links_lead_somewhere(target):
    assert (ROOT / target).exists()
