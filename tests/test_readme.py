"""The pages: their Python runs, their commands exist, their pictures and links are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *(ROOT / folder / "README.md" for folder in ("examples", "lammps_plugin", "tests")),
    *sorted((ROOT / "eqcalc").glob("*/README.md")),
]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
README = TEXTS["README.md"]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("page", [name for name, text in TEXTS.items() if "```python" in text])
def test_python_snippets_run(page, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for snippet in blocks(TEXTS[page], "python"):
        exec(compile(snippet, page, "exec"), {})
    assert capsys.readouterr().out


def test_the_first_page_is_short():
    assert len(README.encode()) <= 8000


def test_set_up_commands_are_one_line_each():
    setup = [b for b in blocks(README, "bash") if b.startswith("python3 -m venv")]
    assert len(setup) == 2
    for command, ending in zip(setup, ("examples/relax_and_nve.py", "-m pytest -n 2"), strict=True):
        assert command.count("\n") == 1
        assert command.strip().endswith(ending)
        assert "pip install torch==" in command


def test_commands_exist():
    from typer.testing import CliRunner

    from eqcalc.cli import app

    words = {
        tuple(w for w in line.split()[1:3] if re.fullmatch(r"[a-z]+", w))
        for text in TEXTS.values()
        for block in (*blocks(text, "bash"), *re.findall(r"`(eqcalc [^`]*)`", text))
        for line in block.splitlines()
        if line.startswith("eqcalc ")
    }
    assert len(words) >= 6
    groups = {"check", "data", "lammps"}
    for command in words:
        call = command if command[0] in groups else command[:1]
        result = CliRunner().invoke(app, [*call, "--help"])
        assert result.exit_code == 0, call


@pytest.mark.parametrize(
    ("page", "target"),
    [
        (page, target)
        for page, text in TEXTS.items()
        for target in re.findall(r"\]\(((?!http)[^)#]+)\)", text)
    ],
)
def test_links_lead_somewhere(page, target):
    assert ((ROOT / page).parent / target).exists()


def test_options_exist():
    """Every `section.option` that a page names outside of its listings."""
    from eqcalc.models.registry import architectures
    from eqcalc.training.options import Config

    known = Config().to_dict()
    known["model"] = set().union(*(vars(config()) for config in architectures().values()))
    option = r"(?<![\w./])(data|model|training|fine_tune|pretrain)\.([a-z_]+)(?=$|[\s=,}])"
    named = {
        (page, section, name)
        for page, text in TEXTS.items()
        for code in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        for section, name in re.findall(option, code)
        if name not in {"pth", "png", "xyz", "nequip", "py"}
    }
    assert len(named) > 30
    assert not [each for each in named if each[2] not in known[each[1]]]
