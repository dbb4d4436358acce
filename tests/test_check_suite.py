"""`eqcalc check`: the commands, the report, and exit codes that tell pass from fail."""

import json
import re
from pathlib import Path

import pytest
from ase import Atoms
from ase.build import bulk, diamond100
from test_checks import Wrong
from test_units import without_unit
from typer.testing import CliRunner

from eqcalc import InputError
from eqcalc.checks import compression, hot
from eqcalc.checks.page import render, write_report
from eqcalc.checks.report import Report
from eqcalc.checks.suite import CheckOutcome, Suite, _outcome, check_all, default_structure
from eqcalc.cli import app, main

STATIC = ("symmetry", "gradients", "smoothness")


@pytest.fixture
def brief(monkeypatch):
    """Smoothness with fewer compressions and shorter hot runs."""
    monkeypatch.setattr(hot, "STEPS", 60)
    monkeypatch.setattr(hot, "STEPS_MOLECULE", 100)
    monkeypatch.setattr(compression, "NUM_STEPS", 9)


def never(*_, **__):
    """In the place of a check."""
    raise InputError("not now")


def call(*arguments):
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def test_all_on_the_bundled_model(tmp_path):
    """Without LAMMPS and with short dynamics; the page needs nothing but itself."""
    out = tmp_path / "deep" / "report.html"
    result = call("all", "si", "--out", out, "--no-lammps", "--steps", 90)
    assert result.exit_code == 0, result.output
    document = json.loads(out.with_suffix(".json").read_text())
    assert document["passed"]
    assert not without_unit(document)
    verdicts = {name: check["verdict"] for name, check in document["checks"].items()}
    assert verdicts.pop("parity") == "SKIPPED"
    assert verdicts == dict.fromkeys((*STATIC, "nve", "properties"), "PASS")
    page = out.read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 5
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert "<script" not in page
    assert "C44_clamped" in page
    assert len(page) < 600_000
    assert not list(out.parent.glob("*.partial"))


def test_all_says_why_a_model_fails(tmp_path, monkeypatch):
    monkeypatch.setattr("eqcalc.checks.suite.EquivariantCalculator", Wrong)
    monkeypatch.setattr("eqcalc.checks.nve.EquivariantCalculator", Wrong)
    for check in ("smoothness", "properties"):  # are not looked at here
        monkeypatch.setattr(f"eqcalc.checks.suite.check_{check}", never)
    out = tmp_path / "r.html"
    result = call("all", "si", "--out", out, "--no-lammps", "--steps", 30)
    assert result.exit_code == 1
    checks = json.loads(out.with_suffix(".json").read_text())["checks"]
    for name in ("symmetry", "gradients", "nve"):
        assert checks[name]["verdict"] == "FAIL", name
        assert checks[name]["failures"][0] in result.output
    assert "The forces differ from the energy&#x27;s derivative" in out.read_text()


@pytest.mark.parametrize("kind", ["molecule", "slab"])
@pytest.mark.usefixtures("brief")
def test_all_on_other_structures(kind):
    if kind == "molecule":
        atoms = Atoms("Si4", [[0, 0, 0], [2.3, 0.1, 0], [0.1, 2.3, 0.2], [0.3, 0, 2.3]])
    else:
        atoms = diamond100("Si", (2, 2, 4), vacuum=6.0, periodic=False)
    suite = check_all("si", atoms, lammps=False, steps=20)
    found = {outcome.name: outcome for outcome in suite.outcomes}
    assert not [found[name].failures for name in (*STATIC[:2],) if found[name].failures]
    assert not [f for f in found["smoothness"].failures if "jumps" in f]
    if kind == "slab":
        assert "not of slabs" in found["properties"].skipped
    else:
        assert len(found["properties"].report.spectrum) == 6


def test_structure_that_does_not_relax_is_a_failure(monkeypatch):
    def does_not(*_, **__):
        raise InputError("The structure does not relax.")

    monkeypatch.setattr("eqcalc.checks.suite.crystal.relax", does_not)
    for check in ("nve", "smoothness", "properties"):
        monkeypatch.setattr(f"eqcalc.checks.suite.check_{check}", never)
    suite = check_all("si", lammps=False)
    assert not suite.passed
    assert suite.outcomes[0].failures == ["The structure does not relax."]


@pytest.mark.parametrize("error", [RuntimeError("no such thing"), InputError("not for this")])
def test_one_check_that_raises_leaves_the_others(tmp_path, monkeypatch, error):
    """Its sentence is its verdict; page and JSON are written."""

    def stop(*_, **__):
        raise error

    monkeypatch.setattr("eqcalc.checks.suite.check_gradients", stop)
    monkeypatch.setattr("eqcalc.checks.suite.check_smoothness", stop)
    monkeypatch.setattr("eqcalc.checks.suite.check_nve", stop)
    suite = check_all("si", lammps=False)
    verdicts = {outcome.name: outcome.verdict for outcome in suite.outcomes}
    assert verdicts["gradients"] == verdicts["nve"] == "FAIL"
    assert verdicts["symmetry"] == verdicts["properties"] == "PASS"
    assert not suite.passed
    page, document = (p for p in reversed(write_report(suite, tmp_path / "report.html")))
    assert str(error) in page.read_text()
    gradients = json.loads(document.read_text())["checks"]["gradients"]
    assert str(error) in gradients["failures"][0]
    assert ("traceback" in gradients) == isinstance(error, RuntimeError)


class NoNumbers(Report):
    """Nothing failed, and its figures cannot be written."""

    name, title, method = "x", "X", ""
    failures: tuple = ()

    def tables(self):
        return []

    def figures(self):
        return {"error": float("nan")}


class NoPicture(NoNumbers):
    def figures(self):
        return {}

    def draw(self):
        raise IndexError("no such axis")


def test_picture_that_cannot_be_drawn_does_not_stop_the_report(tmp_path):
    outcome = _outcome("x", "X", NoPicture)
    assert outcome.verdict == "FAIL"
    assert "IndexError" in outcome.failures[0]
    page, document = reversed(
        write_report(Suite({"file": "a.pth"}, "x", [outcome]), tmp_path / "report.html")
    )
    assert "in draw" in page.read_text()
    assert "in draw" in json.loads(document.read_text())["checks"]["x"]["traceback"]


def test_structure_that_cannot_be_prepared_is_checked_as_it_is(monkeypatch):
    def singular(*_, **__):
        raise ValueError("singular")

    monkeypatch.setattr("eqcalc.checks.suite.structures.primitive_cell", singular)
    for check in ("nve", "smoothness", "properties"):
        monkeypatch.setattr(f"eqcalc.checks.suite.check_{check}", never)
    suite = check_all("si", lammps=False)
    found = {outcome.name: outcome for outcome in suite.outcomes}
    assert "singular" in found["relaxation"].failures[0]
    assert "singular" in found["cells"].failures[0]
    assert found["symmetry"].verdict == "PASS"


class Undecided(NoNumbers):
    undecided = ("run longer, at least 90 steps",)

    def figures(self):
        return {}


def test_no_verdict_is_neither_pass_nor_fail(tmp_path, monkeypatch):
    """In the page, the JSON and the exit status; a failure beside it stands."""
    suite = Suite({"file": "a.pth"}, "x", [_outcome("x", "X", Undecided)])
    assert suite.verdict == "UNDECIDED"
    assert not suite.passed
    page, document = reversed(write_report(suite, tmp_path / "report.html"))
    assert '<span class="UNDECIDED">UNDECIDED</span>' in page.read_text()
    assert "run longer, at least 90 steps" in page.read_text()
    written = json.loads(document.read_text())
    assert written["verdict"] == written["checks"]["x"]["verdict"] == "UNDECIDED"
    monkeypatch.setattr("eqcalc.checks.suite.check_all", lambda *_, **__: suite)
    assert call("all", "si", "--out", tmp_path / "r.html").exit_code == 3
    failed = Suite(suite.model, "x", [*suite.outcomes, CheckOutcome("y", "Y", error="no")])
    assert failed.verdict == "FAIL"
    monkeypatch.setattr("eqcalc.checks.nve.check_nve", lambda *_, **__: Undecided())
    bulk("Si").write(tmp_path / "si.xyz")
    result = call("nve", tmp_path / "si.xyz", "--model", "si", "--out", tmp_path / "out")
    assert result.exit_code == 3
    assert "UNDECIDED" in result.output


def test_figures_that_are_not_finite_do_not_stop_the_report(tmp_path):
    outcome = _outcome("x", "X", NoNumbers)
    assert outcome.verdict == "FAIL"
    assert "ValueError" in outcome.failures[0]
    write_report(Suite({"file": "a.pth"}, "x", [outcome]), tmp_path / "report.html")


def test_default_structures():
    assert len(default_structure(["Si"])) == 2
    with pytest.raises(InputError, match="The model knows O, Si, so give a structure"):
        default_structure(["O", "Si"])
    with pytest.raises(InputError, match="no simple crystal of O"):
        default_structure(["O"])


def test_page_escapes_what_it_is_given(tmp_path):
    suite = Suite({"file": "<b>.pth"}, "x", [CheckOutcome("a", "<i>", error="1 < 2 & 3")])
    page = render(suite)
    assert "<b>" not in page
    assert "<i>" not in page
    assert "1 &lt; 2 &amp; 3" in page
    with pytest.raises(InputError, match=r"must end in \.html"):
        write_report(suite, tmp_path / "r.pdf")


def test_nothing_half_written(tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    path.write_text("old")
    monkeypatch.setattr("eqcalc.files.Path.replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(Suite({"file": "m"}, "x", []), path)
    assert path.read_text() == "old"
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.usefixtures("brief")
def test_single_commands(tmp_path):
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=1)
    structure = tmp_path / "si.xyz"
    atoms.write(structure)
    common = (structure, "--model", "si", "--out", tmp_path / "out")
    for name in STATIC:
        result = call(name, *common)
        assert result.exit_code == 0, result.output
        assert "PASS" in result.output
        assert json.loads((tmp_path / "out" / f"{name}.json").read_text())["passed"]
    references = tmp_path / "r.toml"
    references.write_text("C11 = { value = 200.0, tolerance = 1.0 }")
    result = call("properties", *common, "--references", references)
    assert result.exit_code == 1
    assert "but 200 ± 1 is expected" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nve", "si.xyz", "--model", "si", "--engine", "gromacs"), "both, ase, lammps"),
        (("symmetry", "si.xyz", "--model", "sj"), "no model file 'sj'"),
        (("symmetry", "si.xyz", "--model", "si", "--precision", "half"), "float64"),
        (("all", "si", "-o", "r.pdf"), "must end in .html"),
        (("all", "si", "cu.xyz"), "Cu"),
        (("parity", "si.xyz", "--model", "si", "--ranks", "0"), "must be positive"),
    ],
)
def test_mistakes_are_one_sentence(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    bulk("Si").write("si.xyz")
    bulk("Cu").write("cu.xyz")
    monkeypatch.setattr("sys.argv", ["eqcalc", "check", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert len([line for line in said.splitlines() if line.startswith("Error:")]) == 1
    assert not Path("r.pdf").exists()
