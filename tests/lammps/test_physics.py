"""LAMMPS's own energy against LAMMPS's own forces and pressure, and a short trajectory."""

from __future__ import annotations

import numpy as np
import pytest
from ase import units
from parity import BAR, by_lammps, by_python, pair, script, silica_like, tensor

from eqcalc.lammps import read_thermo, run_lmp, write_input


@pytest.mark.parametrize(("ranks", "kind"), [(1, "model"), (2, "model"), (2, "products")])
def test_finite_differences(ranks, kind, request, tmp_path):
    model = request.getfixturevalue(kind)
    atoms = silica_like(1)
    step = 1e-3
    moves = [(7, a) for a in "xyz"] + [(4, "x")]
    lines = ["run 0", "group one id 7", "group other id 4"]
    for atom, axis in moves:
        name = "one" if atom == 7 else "other"
        for times in (-1, 2, -1):  # to -step, to +step, and back
            shift = " ".join(str(times * step) if a == axis else "0" for a in "xyz")
            lines += [f"displace_atoms {name} move {shift}", "run 0 post no"]
    strain = 1e-4
    lines += [f"change_box all x scale {1 - strain} remap", "run 0 post no"]
    lines += [f"change_box all x scale {(1 + strain) / (1 - strain)!r} remap", "run 0 post no"]
    path = script(atoms, tmp_path, pair(model), after=tuple(lines))
    output = run_lmp(path, ranks=ranks)
    tables = output.split("Step ")[1:]
    energies = [read_thermo("Step " + table)["PotEng"][-1] for table in tables]

    got, thermo, _ = by_lammps(script(atoms, tmp_path, pair(model)), ranks)
    for k, (atom, axis) in enumerate(moves):
        low, high = energies[1 + 3 * k], energies[2 + 3 * k]
        force = -(high - low) / (2 * step)
        assert force == pytest.approx(got.forces[atom - 1, "xyz".index(axis)], abs=2e-4)
    low, high = energies[-2:]
    virial = -(high - low) / (2 * strain)
    assert virial == pytest.approx(got.virial[0, 0], rel=1e-5, abs=1e-4)
    assert virial == pytest.approx(thermo["Pxx"][-1] * BAR * atoms.get_volume(), rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("kind", ["model", "products"])
def test_energy_is_conserved(kind, request, tmp_path):
    """The fluctuation of the total energy falls with the square of the time step."""
    model = request.getfixturevalue(kind)
    atoms = silica_like(1)
    spread = []
    for timestep in (0.4, 0.2):
        path = write_input(
            atoms,
            model,
            tmp_path,
            temperature=100.0,
            timestep_fs=timestep,
            steps=round(80 / timestep),
            thermo_every=1,
            dump_every=0,
            digits=15,
        )
        thermo = read_thermo(run_lmp(path))
        spread.append(thermo["TotEng"].std())
        kinetic = thermo["KinEng"].std()
    assert spread[0] / spread[1] == pytest.approx(4.0, rel=0.25)
    assert spread[1] < 1e-3 * kinetic


@pytest.mark.parametrize("ranks", [1, 3])
def test_life_of_a_script(ranks, model, tmp_path):
    """Several runs, atoms deleted in between, a restart read back, another potential in place."""
    atoms = silica_like()
    after = (
        "velocity all create 300 1",
        "fix 1 all nve",
        "run 5",
        "group gone id 1 2 3 17",
        "delete_atoms group gone compress no",
        "run 5",
        "write_restart saved.restart",
        "run 0",
        "unfix 1",
        "clear",
        "read_restart saved.restart",
        *pair(model),
        "run 0",
        "pair_style equivariant precision single",
        *pair(model, "precision single")[1:],
        "run 0",
    )
    output = run_lmp(script(atoms, tmp_path, pair(model), after=after), ranks=ranks)
    tables = [read_thermo("Step " + table) for table in output.split("Step ")[1:]]
    saved, restored, single = (
        table["E_pair" if "E_pair" in table else "PotEng"][-1] for table in tables[-3:]
    )
    assert restored == pytest.approx(saved, rel=1e-7)  # printed with few digits
    assert single == pytest.approx(saved, rel=1e-5)


def test_variable_cell(model, tmp_path):
    """fix box/relax brings the pressure down along with the forces."""
    after = ("fix 1 all box/relax tri 0.0 vmax 0.001", "minimize 0 1e-8 30 60")
    path = script(silica_like(1), tmp_path, pair(model), after=after)
    text = path.read_text().replace("read_data", "box tilt large\nread_data")
    path.write_text(text.replace("pair_style", "change_box all triclinic\npair_style"))
    thermo = read_thermo(run_lmp(path))
    assert abs(thermo["Press"][-1]) < 0.7 * abs(thermo["Press"][0])
    assert thermo["PotEng"][-1] < thermo["PotEng"][0]


def test_heat_flux(model, tmp_path):
    """compute heat/flux takes the nine components: J V = sum_i (E_i + K_i) v_i - sum_i S_i v_i."""
    atoms = silica_like(1)
    rng = np.random.default_rng(0)
    atoms.set_velocities(rng.normal(size=(len(atoms), 3)))
    after = (
        "compute kinetic all ke/atom",
        "compute flux all heat/flux kinetic energies full",
        "thermo_style custom step pe press pxx pyy pzz pxy pxz pyz vol c_flux[*]",
        "thermo_modify format float %.16g",
        "dump velocities all custom 1 dump.v id vx vy vz c_kinetic",
        "dump_modify velocities sort id format float %.16g",
        "run 0",
    )
    got, thermo, _ = by_lammps(script(atoms, tmp_path, pair(model), after=after))
    text = (tmp_path / "dump.v").read_text().rsplit("vz c_kinetic", 1)[1]
    rows = np.array([[float(w) for w in line.split()] for line in text.split("\n")[1:] if line])
    velocities, kinetic = rows[:, 1:4], rows[:, 4]
    flux = np.einsum("iab,ib->a", got.atomic_virials, velocities)
    flux += ((got.energies + kinetic)[:, None] * velocities).sum(0)
    said = np.array([thermo[f"c_flux[{k}]"][-1] for k in (1, 2, 3)])
    np.testing.assert_allclose(said, flux, rtol=1e-7)


@pytest.mark.parametrize("ranks", [1, 2])
def test_heat_flux_carries_the_energy(ranks, one_layer, tmp_path):
    """J V = d/dt sum_i r_i (E_i + K_i), by differences in Python along the motion of a cluster.

    True for one layer: there an atom's energy depends on its own neighbours only.
    """
    atoms = silica_like(1)
    atoms.pbc = False
    velocities = np.random.default_rng(0).normal(size=(len(atoms), 3))  # Å/ps
    kinetic = 0.5 * atoms.get_masses() * (velocities**2).sum(1) * (1000 * units.fs) ** -2
    step = 1e-5  # ps

    def moment(time: float) -> np.ndarray:
        moved = atoms.copy()
        moved.positions += time * velocities
        return by_python(one_layer, moved).energies @ moved.positions

    now = by_python(one_layer, atoms)
    flux = (moment(step) - moment(-step)) / (2 * step)
    flux += kinetic @ velocities + (now.forces * velocities).sum(1) @ atoms.positions

    atoms.set_velocities(velocities / (1000 * units.fs))
    after = (
        "compute kinetic all ke/atom",
        "compute flux all heat/flux kinetic energies full",
        "thermo_style custom step c_flux[*]",
        "thermo_modify format float %.16g",
        "run 0",
    )
    path = script(atoms, tmp_path, pair(one_layer), after=after)
    thermo = read_thermo(run_lmp(path, ranks=ranks))
    said = [thermo[f"c_flux[{k}]"][-1] for k in (1, 2, 3)]
    np.testing.assert_allclose(said, flux, rtol=1e-7)


def test_pressure_is_symmetric_tensor():
    np.testing.assert_equal(tensor(np.arange(6.0)), tensor(np.arange(6.0)).T)
