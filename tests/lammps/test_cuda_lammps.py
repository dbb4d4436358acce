"""`device cuda engine fused` of the pair style, on GPUs that are emulated (../emulated.py)."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from emulated import Counts, counts_of_processes
from parity import (
    COLUMNS,
    ELEMENTS,
    assert_equal,
    by_lammps,
    by_python,
    pair,
    read_dump,
    script,
    silica_like,
)
from test_training_domain import with_domain

from eqcalc.errors import InputError
from eqcalc.lammps import read_thermo, run_lmp
from eqcalc.lammps.box import write_data
from eqcalc.lammps.plugin import find_tool

TESTS = Path(__file__).parent.parent

#: what Python does when it starts: the pair style has it prepare files
CUSTOMIZE = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
if "eqcalc.engine.prepare" in sys.orig_argv:
    from emulated import Emulated
    from eqcalc.engine.cuda import platform
    platform.PLATFORM = Emulated()
"""


@pytest.fixture
def emulated(tmp_path, monkeypatch):
    folder = tmp_path / "customized"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(CUSTOMIZE)
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)


#: lists are new every third step and last while the box changes; an atom that nobody sees
RUN = (
    "group away id 5",
    "neigh_modify every 3 delay 0 check no exclude group away all",
    "velocity all create 900 1",
    "timestep 0.001",
    "fix 1 all npt temp 900 900 0.1 iso 1e5 1e5 0.1",
    "run 5",
    "write_dump all custom dump.out " + COLUMNS + " modify sort id format float %.16g",
)

#: a change of elements that no new list follows; ghosts on other ranks do not learn of it
SWAP = ("run 0", "set atom 1 type 2", "set atom 2 type 1", "run 1 pre no")


@pytest.fixture(scope="module")
def on_cpu(crowded, tmp_path_factory):
    """The run on the CPU."""
    folder = tmp_path_factory.mktemp("cpu")
    options = "precision double engine fused"
    return by_lammps(script(silica_like(1), folder, pair(crowded, options), after=RUN))


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(("device", "ranks"), [("cuda:1", 1), ("cuda", 2), ("cuda", 4)])
def test_is_the_engine_of_the_cpu(device, ranks, crowded, on_cpu, tmp_path, monkeypatch):
    """A list is on the GPU for several steps; features of ghosts go through the host. On 4 ranks,
    slices of tables are in shared memory."""
    if ranks == 4:
        monkeypatch.setenv("EQCALC_GPU_SLICES", "yes")
        monkeypatch.setenv("EQCALC_EMULATION_SHARED", str(8 << 20))
    monkeypatch.setenv("EQCALC_EMULATION_COUNTS", str(tmp_path / "counts"))
    options = f"precision double engine fused device {device}"
    path = script(silica_like(1), tmp_path, pair(crowded, options), after=RUN)
    got, thermo, output = by_lammps(path, ranks)
    assert "engine fused, on a GPU" in output
    expected, energies, _ = on_cpu
    assert_equal(got, expected, 1e-12)
    assert np.abs(thermo["PotEng"] - energies["PotEng"]).max() < 1e-10
    for counts, _ in counts_of_processes(tmp_path / "counts"):
        assert (counts.slices > 0) == (ranks == 4)


@pytest.mark.usefixtures("emulated")
def test_elements_that_change_between_lists(quick_model, tmp_path):
    """As in trial moves of fix atom/swap."""
    energies = []
    for device in ("cpu", "cuda"):
        folder = tmp_path / device
        folder.mkdir()
        commands = pair(quick_model, f"precision double engine fused device {device}")
        path = script(silica_like(1), folder, commands, after=SWAP)
        energies.append(read_thermo(run_lmp(path))["PotEng"][-1])
    assert energies[0] == pytest.approx(energies[1], abs=1e-11)


@pytest.mark.usefixtures("emulated")
def test_a_step_sends_positions_and_brings_forces(quick_model, tmp_path, monkeypatch):
    """And virials when they are asked for; on several ranks rows that others have, no more."""
    atoms = silica_like()
    moved = {}
    for steps in (1, 3):
        folder = tmp_path / str(steps)
        folder.mkdir()
        monkeypatch.setenv("EQCALC_EMULATION_COUNTS", str(folder / "counts"))
        after = ("neigh_modify every 100", "fix 1 all nve", "thermo 100", f"run {steps}")
        options = "precision single engine fused device cuda"
        run_lmp(script(atoms, folder, pair(quick_model, options), after=after))
        ((counts, _),) = counts_of_processes(folder / "counts")
        moved[steps] = np.array(counts)
    # the last step of a run asks for more, in both
    of_step = Counts(*(moved[3] - moved[1]) / 2)
    places = of_step.up / 24
    assert places == int(places)
    assert len(atoms) < places < 10 * len(atoms)
    assert of_step.kernels == 5 + 5 * 2 - 1
    assert (of_step.down, of_step.waits) == (len(atoms) * 8 * (2 + 3), 1)


@pytest.mark.usefixtures("emulated")
def test_atoms_without_ghosts_are_worked_on_during_exchanges(quick_model, tmp_path, monkeypatch):
    """In a wire: their kernels wait in the queue while ranks talk, and nothing changes."""
    atoms = silica_like(1).repeat((10, 1, 1))
    atoms.rattle(0.05, seed=2)
    atoms.pbc = [True, False, False]
    monkeypatch.setenv("EQCALC_EMULATION_COUNTS", str(tmp_path / "counts"))
    after = (
        "neigh_modify every 2 delay 0 check no",
        "fix 1 all nve",
        "run 3",
        "write_dump all custom dump.out " + COLUMNS + " modify sort id format float %.16g",
    )
    got = []
    for device, ranks in (("cpu", 1), ("cuda", 2)):
        folder = tmp_path / device
        folder.mkdir()
        options = f"precision double engine fused device {device}"
        path = script(atoms, folder, pair(quick_model, options), after=after)
        got.append(by_lammps(path, ranks)[0])
    assert_equal(got[1], got[0], 1e-12)
    found = counts_of_processes(tmp_path / "counts")
    assert len(found) == 2
    for counts, _ in found:
        # two kernels for a layer forward and four back, at each of four steps
        assert counts.left >= 4 * (2 + 4)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("ranks", [1, 2])
def test_committees_and_what_the_training_had(ranks, quick_model, one_layer, tmp_path):
    """Deviations, and sentences with the same atoms and figures."""
    limits = ("shortest_distance Si O 2.1", "shortest_distance O O inf", "neighbors Si 0 3")
    bounds = with_domain(quick_model, tmp_path, *limits)
    dumped, lines = [], []
    for device in ("cpu", "cuda"):
        folder = tmp_path / device
        folder.mkdir()
        commands = [
            f"pair_style equivariant precision double engine fused device {device}",
            f'pair_coeff * * "{bounds}" "{one_layer}" O Si',
            "fix deviation all pair 1 equivariant force_deviation 0 energy_deviation 0",
        ]
        path = script(silica_like(1), folder, commands)
        text = path.read_text().replace("c_full[*]", "c_full[*] f_deviation[*]")
        path.write_text(text)
        lines.append(said_of(run_lmp(path, ranks=ranks)))
        dumped.append(read_dump(folder / "dump.out"))
    assert len(lines[0]) == 2
    assert lines[0] == lines[1]
    assert dumped[0][:, -2:].min() > 1e-3
    assert np.abs(dumped[0] - dumped[1]).max() < 1e-12 * np.abs(dumped[0]).max()


def said_of(output: str) -> list[str]:
    """What is outside of the training."""
    return re.findall(r"outside of the training of .*?, (.*?): forces", " ".join(output.split()))


#: ranks' GPUs, and what the launcher does not tell
WORLDS = {
    "two GPUs": ({}, [], [0, 1, 0, 1]),
    "two GPUs, ranks that nobody tells": ({}, ["MPI_LOCALRANKID"], [0, 1, 0, 1]),
    "one GPU for all ranks": ({"EQCALC_EMULATION_DEVICES": "1"}, [], [0, 0, 0, 0]),
}


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("world", WORLDS)
def test_gpus_of_partitions(world, quick_model, tmp_path, monkeypatch):
    """Two partitions of two ranks each: every rank of the machine takes the next GPU, and where
    there are fewer, several ranks share one. Results are those of the CPU."""
    variables, unset, gpus = WORLDS[world]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("EQCALC_EMULATION_COUNTS", str(tmp_path / "counts"))
    structures = [silica_like(1), silica_like(1, seed=4)]
    commands = pair(quick_model, "precision double engine fused device cuda")
    path = script(structures[0], tmp_path, commands)
    text = path.read_text().replace("structure.data", "structure.${w}.data")
    path.write_text("variable w world 0 1\n" + text.replace("dump.out", "dump.${w}.out"))
    for k, atoms in enumerate(structures):
        write_data(atoms, ELEMENTS, tmp_path / f"structure.{k}.data")
    command = [find_tool("mpirun"), "-n", "4", "env", *(f"--unset={name}" for name in unset)]
    command += [find_tool("lmp"), "-partition", "2x2", "-in", path.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    for k, atoms in enumerate(structures):
        dump, expected = read_dump(tmp_path / f"dump.{k}.out"), by_python(quick_model, atoms)
        np.testing.assert_allclose(dump[:, 5], expected.energies, rtol=0, atol=1e-10)
        np.testing.assert_allclose(dump[:, 6:9], expected.forces, rtol=0, atol=1e-9)
    found = counts_of_processes(tmp_path / "counts")
    assert [[n for n, kernels in enumerate(used) if kernels] for _, used in found] == [
        [gpu] for gpu in gpus
    ]


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("ranks", [1, 2])
def test_too_little_memory_is_said(ranks, quick_model, tmp_path, monkeypatch):
    """By the rank that has too little; all end."""
    commands = pair(quick_model, "precision double engine fused device cuda")
    path = script(silica_like(1), tmp_path, commands)
    monkeypatch.setenv("EQCALC_EMULATION_MEGABYTES", "4")
    run_lmp(path, ranks=ranks)  # few atoms fit
    with pytest.raises(InputError, match="the GPU has too little memory: use fewer atoms per proc"):
        run_lmp(script(silica_like(4), tmp_path, commands), ranks=ranks, timeout=120)


@pytest.mark.usefixtures("emulated")
def test_a_gpu_that_is_not_there_is_said(crowded, tmp_path):
    commands = pair(crowded, "precision double engine fused device cuda:5")
    with pytest.raises(InputError, match="GPU 5 was asked for, but there are 2"):
        run_lmp(script(silica_like(1), tmp_path, commands))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(crowded, tmp_path):
    commands = pair(crowded, "engine fused device cuda")
    with pytest.raises(InputError, match="There is no NVIDIA driver here"):
        run_lmp(script(silica_like(1), tmp_path, commands))
