"""The pages: their Python runs, their commands exist, their pictures and links are there."""

import re
from pathlib import Path

import pytest
from precompiled import options
from runs import MODEL, write_frames

from eqcalc import InputError
from eqcalc.engine.build import MORE_FLAGS

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


def test_my_system_in_ten_minutes(tmp_path, monkeypatch):
    """Line by line, on a few frames and with a tiny network; `lmp` itself runs in tests/lammps."""
    from typer.testing import CliRunner

    from eqcalc.cli import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(MORE_FLAGS, options("-O0"))
    write_frames("frames.xyz", 24)
    write_frames("test.xyz", 4, seed=1)
    write_frames("structure.xyz", 1, seed=2)
    more = {
        "train": [f"--set=model.{name}={value}" for name, value in MODEL.items()]
        + ["--set=training.epochs=2", "--set=training.fused=false"],
        "evaluate": ["--engine=torch"],
        "check": ["--no-lammps", "--steps=20"],
    }
    for check in ("smoothness", "nve", "properties"):  # take their time, and have their own tests
        monkeypatch.setattr(f"eqcalc.checks.suite.check_{check}", not_now)
    (block,) = [b for b in blocks(README, "bash") if b.startswith("eqcalc data check")]
    lines = block.splitlines()
    assert lines.pop() == "lmp -in in.lammps"
    assert [line.split()[1] for line in lines] == ["data", "train", "evaluate", "check", "lammps"]
    for line in lines:
        words = line.split()[1:]
        done = CliRunner().invoke(app, [*words, *more.get(words[0], [])])
        assert done.exit_code == int("check all" in line), done.output + repr(done.exception)
    for name in ("runs/mine/model.pth", "parity.png", "report.html", "in.lammps"):
        assert (tmp_path / name).stat().st_size > 100
    script = (tmp_path / "in.lammps").read_text()
    assert "fix integrate all nvt temp 600" in script


def not_now(*_, **__):
    """In the place of a check."""
    raise InputError("not now")


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
