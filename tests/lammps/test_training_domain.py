"""A run that leaves what the training contained says so, once, with the atom and the figure."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import small, untrained
from parity import by_lammps, by_python, pair, script, silica_like

from eqcalc import EquivariantCalculator
from eqcalc.domain import Domain
from eqcalc.errors import InputError
from eqcalc.lammps import run_lmp

SENTENCE = r"outside of the potential's training, (.*?): forces and energies there are"


def with_domain(model: Path, folder: Path, *limits: str) -> Path:
    """A copy of the file whose training had these limits."""
    path = folder / "with domain.pth"
    with zipfile.ZipFile(model) as old, zipfile.ZipFile(path, "w") as new:
        root = old.namelist()[0].split("/")[0]
        for item in old.infolist():
            if not item.filename.endswith("eqcalc_domain.txt"):
                new.writestr(item, old.read(item))
        new.writestr(f"{root}/extra/eqcalc_domain.txt", "\n".join(["eqcalc-domain 1", *limits]))
    return path


def said(output: str) -> list[str]:
    return re.findall(SENTENCE, " ".join(output.split()))


WIDE = (
    "shortest_distance Si O 1.0",
    "shortest_distance Si Si 1.0",
    "shortest_distance O O 1.0",
    "neighbors Si 0 500",
    "neighbors O 0 500",
    "density 0.0 1.0",
    "pressure -1e6 1e6",
    "energy_per_atom -1e6 1e6",
    "of_a_later_version 1 2",
)


@pytest.mark.parametrize(("engine", "ranks"), [("fused", 3), ("torch", 1)])
def test_figures(engine, ranks, quick_model, tmp_path):
    """Each quantity once in two steps, the worst place, and figures as Python has them."""
    atoms = silica_like()
    distances = atoms.get_all_distances(mic=True) + 99.0 * np.eye(len(atoms))
    oxygen = atoms.numbers == 8
    i, k = divmod(np.where(oxygen[:, None] & ~oxygen, distances, 99.0).argmin(), len(atoms))
    counts = (distances < 3.5).sum(1)  # the cutoff is below half the cell
    most = np.where(oxygen, 0, counts).argmax()
    expected = by_python(quick_model, atoms)
    excess = (expected.energy + 3.0 * (~oxygen).sum() + 2.0 * oxygen.sum()) / len(atoms)
    volume = atoms.get_volume()
    pressure = np.trace(expected.virial) / (3.0 * volume) * 160.2176634
    limits = (
        f"shortest_distance Si O {distances[i, k] + 0.01:.4f}",
        "shortest_distance O O inf",
        "neighbors O 0 500",
        f"neighbors Si 0 {counts[most] - 1}",
        "density 1.0 2.0",
        "pressure 1e6 2e6",
        "energy_per_atom 1e6 2e6",
    )
    bounds = with_domain(quick_model, tmp_path, *limits[:1], *limits[2:])
    after = ("fix 1 all nve", "timestep 1e-9", "thermo 1", "run 2")
    options = f"precision double engine {engine}"
    path = script(atoms, tmp_path, pair(bounds, options), after=after)
    lines = said(run_lmp(path, ranks=ranks))
    number = r"([-+.\de]+)"
    assert len(lines) == 5
    assert set(map(int, re.match(r"atoms (\d+) and (\d+)", lines[0]).groups())) == {i + 1, k + 1}
    assert f"{distances[i, k]:.3f} Å apart (limit of the training:" in lines[0]
    ids = [n + 1 for n in np.flatnonzero(~oxygen & (counts == counts[most]))]
    assert int(re.match(r"atom (\d+) \(Si\) has", lines[1])[1]) in ids
    assert f"has {counts[most]} neighbors" in lines[1]
    assert float(re.search(f"reference energies is {number} eV", lines[2])[1]) == pytest.approx(
        excess, rel=1e-3
    )
    assert float(re.search(f"density is {number} ", lines[3])[1]) == pytest.approx(
        len(atoms) / volume, rel=1e-3
    )
    assert float(re.search(f"pressure is {number} GPa", lines[4])[1]) == pytest.approx(
        pressure, rel=1e-3
    )
    never = with_domain(quick_model, tmp_path, limits[1])
    output = run_lmp(script(atoms, tmp_path, pair(never, options)), ranks=ranks)
    assert re.match(r"atoms \d+ and \d+ \(O-O\) are .* \(training: they never met\)", *said(output))


def test_inside_nothing_is_said(quick_model, tmp_path):
    """Nor for a file without a domain; and the numbers are the same."""
    atoms = silica_like()
    for model in (quick_model, with_domain(quick_model, tmp_path, *WIDE)):
        got, _, output = by_lammps(script(atoms, tmp_path, pair(model)))
        assert not said(output)
        assert got.energy == pytest.approx(by_python(quick_model, atoms).energy, rel=1e-12)


def test_again_in_the_next_run(quick_model, tmp_path):
    model = with_domain(quick_model, tmp_path, "density 1.0 2.0")
    after = ("run 0", "run 0")
    assert len(said(run_lmp(script(silica_like(1), tmp_path, pair(model), after=after)))) == 2
    ignored = script(silica_like(1), tmp_path, pair(model, "domain ignore"), after=after)
    assert not said(run_lmp(ignored))


@pytest.mark.parametrize("ranks", [1, 3])
def test_stop(ranks, quick_model, tmp_path):
    """All processes end with the sentence of the one that has the atom."""
    atoms = silica_like()
    atoms.positions[20] = atoms.positions[21] + [0.0, 0.0, 0.7]
    model = with_domain(quick_model, tmp_path, *WIDE)
    with pytest.raises(InputError, match=SENTENCE) as error:
        run_lmp(script(atoms, tmp_path, pair(model, "domain stop")), ranks=ranks, timeout=60)
    assert re.search(r"atoms (21 and 22|22 and 21) \(.*\) are 0.700 Å apart", str(error.value))


def test_part_of_a_box_has_no_density(quick_model, tmp_path):
    """Beside atoms of another style neither density nor pressure is the potential's."""
    model = with_domain(quick_model, tmp_path, "density 1.0 2.0", "pressure 1e6 2e6")
    lines = [
        "pair_style hybrid equivariant lj/cut 3.0",
        f'pair_coeff * * equivariant "{model}" NULL Si',
        "pair_coeff 1 * lj/cut 0.0 1.0",
    ]
    assert not said(run_lmp(script(silica_like(), tmp_path, lines)))


def test_unknown_action(quick_model, tmp_path):
    path = script(silica_like(1), tmp_path, pair(quick_model, "domain loud"))
    with pytest.raises(InputError, match="domain must be warn, stop or ignore, not 'loud'"):
        run_lmp(path)


def test_limits_of_an_export(tmp_path):
    """Written by `export.save`, read by the pair style: the same figures as in Python's warning."""
    symbols = ["Si", "O"]
    domain = Domain.of(
        symbols=symbols,
        shortest=np.array([[1.0, np.inf], [np.inf, 1.0]]),
        neighbors=np.array([[0, 500], [0, 500]]),
        frames=1,
        atoms=1,
        spans={"density": [], "pressure": [], "energy_per_atom": []},
        force=None,
        temperature=None,
    )
    path = untrained(tmp_path / "domain.pth", small(2), domain=domain.document)
    atoms = silica_like(1)
    _, _, output = by_lammps(script(atoms, tmp_path, pair(path)))
    (sentence,) = said(output)
    assert "Si" in sentence
    assert "O" in sentence
    atoms.calc = EquivariantCalculator(path)
    with pytest.warns(UserWarning, match=r"\(Si-O\) are .* they never met"):
        atoms.get_potential_energy()
