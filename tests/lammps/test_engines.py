"""The engines behind the pair style: the same numbers, and what happens where one cannot be had."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
from parity import SYSTEMS, assert_equal, by_lammps, by_python, pair, script, silica_like

from eqcalc import export
from eqcalc.errors import InputError
from eqcalc.lammps import run_lmp


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("engine", ["fused", "exact", "torch"])
def test_all_engines_agree_with_python(engine, ranks, model, tmp_path):
    atoms = SYSTEMS["triclinic"]()
    options = f"precision double engine {engine}"
    got, _, output = by_lammps(script(atoms, tmp_path, pair(model, options)), ranks)
    assert f"double precision, engine {engine}" in output
    assert_equal(got, by_python(model, atoms))


@pytest.mark.parametrize("engine", ["fused", "exact", "torch"])
def test_three_layers_with_both_parities_on_ranks(engine, parity_path, tmp_path):
    atoms = silica_like()
    options = f"precision double engine {engine}"
    got, _, _ = by_lammps(script(atoms, tmp_path, pair(parity_path, options)), 4)
    assert_equal(got, by_python(parity_path, atoms))


@pytest.mark.parametrize(("engine", "ranks"), [("fused", 1), ("fused", 4), ("torch", 2)])
def test_messages_to_crowded_atoms_fade(engine, ranks, crowded, pairs, tmp_path):
    """As in Python, also where a crowded atom and its neighbours are on different ranks."""
    atoms = silica_like()
    atoms.set_cell(0.92 * atoms.cell, scale_atoms=True)
    options = f"precision double engine {engine}"
    got, _, _ = by_lammps(script(atoms, tmp_path, pair(crowded, options)), ranks)
    assert_equal(got, by_python(crowded, atoms))
    assert np.abs(got.forces - by_python(pairs, atoms).forces).max() > 0.1


def test_threads(model, tmp_path):
    atoms = silica_like()
    options = "precision double threads 2"
    got, _, output = by_lammps(script(atoms, tmp_path, pair(model, options)))
    assert "engine fused, 2 threads" in output
    assert_equal(got, by_python(model, atoms))


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_threads_that_are_not_granted_change_nothing(limit, products, tmp_path, monkeypatch):
    atoms = silica_like()
    found = [by_lammps(script(atoms, tmp_path, pair(products, "precision double")))[0]]
    monkeypatch.setenv("OMP_THREAD_LIMIT", str(limit))
    for threads, option, of_lammps in ((1, "", 1), (2, "", 2), (4, "", 4), (4, " threads 4", 1)):
        path = script(atoms, tmp_path, pair(products, f"precision double{option}"))
        got, _, output = by_lammps(path, threads=of_lammps)
        assert f"engine fused, {threads} thread" in output
        found.append(got)
    for other in found:
        assert_equal(other, found[0], 1e-12)


def test_energy_forces_and_stress_are_consistent(model, tmp_path):
    """Finite differences of LAMMPS's own energy on the tables of the fused engine."""
    atoms = silica_like()
    got, _, _ = by_lammps(script(atoms, tmp_path, pair(model, "precision double")))
    rng = np.random.default_rng(1)
    direction = rng.normal(size=(len(atoms), 3))
    direction /= np.linalg.norm(direction)
    h = 1e-3
    energies = []
    for n in (-2, -1, 1, 2):
        moved = atoms.copy()
        moved.positions += n * h * direction
        path = script(moved, tmp_path, pair(model, "precision double"))
        energies.append(by_lammps(path)[1]["PotEng"][-1])
    slope = (energies[0] - 8 * energies[1] + 8 * energies[2] - energies[3]) / (12 * h)
    assert -(got.forces * direction).sum() == pytest.approx(slope, abs=1e-7)


def test_architectures_unknown_to_it_run_on_torch(model, tmp_path):
    document = {**export.load(model).metadata, "architecture": "Unheard"}
    other = tmp_path / "other.pth"
    _changed_copy(model, other, {export.METADATA_FILE: document, export.PROGRAM_FILE: None})
    atoms = silica_like()
    got, _, output = by_lammps(script(atoms, tmp_path, pair(other)), 2)
    warning = "runs on torch, which is many times slower: The fused engine does not know the"
    assert warning in " ".join(output.split())
    assert_equal(got, by_python(model, atoms))
    with pytest.raises(InputError, match="does not know the architecture Unheard"):
        run_lmp(script(atoms, tmp_path, pair(other, "engine fused")))


def test_bugs_of_the_reader_are_not_covered_up(model, tmp_path):
    """A file whose reading ends in something else than what the engine does not cover."""
    other = tmp_path / "other.pth"
    _changed_copy(model, other, {export.PROGRAM_FILE: ["a list has no version"]})
    path = script(silica_like(), tmp_path, pair(other))
    with pytest.raises(InputError, match=r"could not read .* for its generated kernels"):
        run_lmp(path)


def test_without_a_working_python_it_runs_on_torch(model, tmp_path):
    atoms = silica_like()
    commands = ["shell putenv PYTHONHOME=/nowhere", *pair(model)]
    got, _, output = by_lammps(script(atoms, tmp_path, commands))
    assert "could not prepare the kernels: run 'eqcalc lammps doctor'" in " ".join(output.split())
    assert "engine torch on cpu" in output
    assert_equal(got, by_python(model, atoms))


def _changed_copy(source, target, documents):
    """Of a potential file, with other documents in it; None: without them."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for item in old.infolist():
            content, name = old.read(item), item.filename.rpartition("/")[2]
            if name in documents:
                content = json.dumps(documents[name]).encode()
            if documents.get(name, content) is not None:
                new.writestr(item, content)


def test_engine_that_cannot_be(model, tmp_path):
    with pytest.raises(InputError, match="engine must be fused, exact or torch, not 'fast'"):
        run_lmp(script(silica_like(), tmp_path, pair(model, "engine fast")))
