"""Opening the same file again: nothing is done twice, nothing is shared that can change."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from potentials import untrained

from eqcalc import EquivariantCalculator, export
from eqcalc.engine import fused
from eqcalc.reuse import Reused


@pytest.fixture
def calls(monkeypatch):
    """Names of the expensive functions that ran."""
    names = []

    def watch(place, name):
        real = getattr(place, name)

        def watched(*args, **options):
            names.append(name)
            return real(*args, **options)

        monkeypatch.setattr(place, name, watched)

    watch(torch.jit, "load")
    watch(export, "deviation")
    watch(fused, "prepare")
    return names


@pytest.mark.parametrize(
    "engine", ["fused", pytest.param("exact", marks=pytest.mark.slow), "torch"]
)
def test_nothing_is_done_twice(calls, potential_path, crystal, engine):
    first = EquivariantCalculator(potential_path, engine=engine, dtype="float64")
    assert calls
    expected = first.get_potential_energy(crystal)
    calls.clear()
    second = EquivariantCalculator(potential_path, engine=engine, dtype="float64")
    export.load(potential_path, dtype="float64")
    del first
    third = EquivariantCalculator([potential_path] * 2, engine=engine, dtype="float64")
    assert calls == []
    assert second.get_potential_energy(crystal) == expected
    assert third.get_potential_energy(crystal) == expected


@pytest.mark.parametrize("engine", ["fused", "torch"])
def test_another_file_of_the_same_name_is_opened(tmp_path, potential_path, crystal, engine):
    path = tmp_path / "model.pth"
    shutil.copy(potential_path, path)
    old = EquivariantCalculator(path, engine=engine).get_potential_energy(crystal)
    untrained(path, seed=1)
    new = EquivariantCalculator(path, engine=engine).get_potential_energy(crystal)
    export.MODULES.forget()
    fused.NETWORKS.forget()
    assert new == EquivariantCalculator(path, engine=engine).get_potential_energy(crystal)
    assert abs(new - old) > 1e-3


def test_what_one_changes_no_other_sees(potential_path):
    first = export.load(potential_path)
    with torch.no_grad():
        for parameter in first.module.parameters():
            parameter.zero_()
    first.metadata.clear()
    second = export.load(potential_path)
    assert max(export.deviation(second.module).values()) < 2e-3
    assert second.metadata["cutoff"] == second.cutoff
    engines = [fused.fuse(potential_path) for _ in range(2)]
    engines[0].metadata.clear()
    engines[0].atomic_numbers.clear()
    assert engines[1].metadata["cutoff"] == second.cutoff
    assert engines[1].atomic_numbers == second.atomic_numbers == [8, 14]


def test_calculators_of_one_file_in_several_threads(potential_path, crystal):
    frames = []
    for seed in range(24):
        frames.append(crystal.copy())
        frames[-1].rattle(0.05, seed=seed)
    one = EquivariantCalculator(potential_path, dtype="float64")
    expected = [one.get_potential_energy(atoms) for atoms in frames]

    def run(start):
        calculator = EquivariantCalculator(potential_path, dtype="float64")
        return [calculator.get_potential_energy(atoms) for atoms in frames[start::4]]

    with ThreadPoolExecutor(4) as pool:
        for start, got in enumerate(pool.map(run, range(4))):
            assert got == pytest.approx(expected[start::4], abs=1e-11, rel=0)


def test_large_ones_are_let_go():
    class Thing(list):
        __hash__ = object.__hash__

    reused = Reused(100, len)
    things = [reused.get(k, lambda: Thing(range(60))) for k in range(3)]
    assert list(reused._recent) == [2]
    assert reused.get(0, Thing) is things[0]  # it is in use
    things[0].extend(range(60))
    reused.trim()
    assert list(reused._recent) == []
    del things[0]
    assert reused.get(0, Thing) == []
