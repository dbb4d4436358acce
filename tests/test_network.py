"""Descriptors turn like their irreps; the Hessian is the derivative of the forces."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.vibrations import Vibrations, VibrationsData
from e3nn import o3
from potentials import untrained, write
from scipy.linalg import block_diag
from scipy.spatial.transform import Rotation

from eqcalc import EquivariantCalculator, InputError
from eqcalc.models.registry import model_config


@pytest.fixture(params=["potential_path", "parity_path"])
def calc(request):
    return EquivariantCalculator(request.getfixturevalue(request.param), dtype="float64")


def turned(atoms, matrix):
    other = atoms.copy()
    other.set_cell(atoms.cell.array @ matrix.T)
    other.positions = atoms.positions @ matrix.T
    return other


def wigner(irreps, matrix):
    """D [dim, dim] in float64: e3nn's own is accurate to float32, as torch's default dtype is."""
    sign = np.sign(np.linalg.det(matrix))
    points = np.random.default_rng(0).normal(size=(40, 3))
    blocks = []
    for mul, ir in irreps:
        here, there = (
            o3.spherical_harmonics(ir.l, torch.from_numpy(p), normalize=True).numpy()
            for p in (points, points @ (sign * matrix).T)
        )
        block = np.linalg.lstsq(here, there)[0].T * (ir.p if sign < 0 else 1)
        blocks += [block] * mul
    d = block_diag(*blocks)
    assert np.abs(d - irreps.D_from_matrix(torch.from_numpy(matrix)).numpy()).max() < 1e-6
    return d


@pytest.mark.parametrize("mirror", [1.0, -1.0])
@pytest.mark.parametrize("layer", [0, 1, -1])
def test_descriptors_turn_with_the_structure(calc, crystal, layer, mirror):
    matrix = Rotation.random(random_state=3).as_matrix() * mirror
    irreps = calc.descriptor_irreps(layer)
    here, there = (calc.get_descriptors(a, layer=layer) for a in (crystal, turned(crystal, matrix)))
    assert here.shape == (8, irreps.dim)
    assert np.abs(here).max() > 0.01
    assert np.abs(there - here @ wigner(irreps, matrix).T).max() < 1e-10 * np.abs(here).max()
    before, after = (
        calc.get_descriptors(a, layer=layer, invariants_only=True)
        for a in (crystal, turned(crystal, matrix))
    )
    assert before.shape == (8, irreps.count("0e"))
    assert np.abs(before - after).max() < 1e-10 * np.abs(here).max()


def test_pseudoscalars_are_no_invariants(tmp_path, crystal):
    path = untrained(tmp_path / "deep.pth", channels=(4, 3), parity=True, layers=4)
    calc = EquivariantCalculator(path, dtype="float64", engine="torch")
    irreps = calc.descriptor_irreps(-2)
    assert irreps.count("0o") == irreps.count("0e") == 4
    mirror = np.diag([1.0, 1.0, -1.0])
    pseudo = next(irreps.slices()[k] for k, (_, ir) in enumerate(irreps) if str(ir) == "0o")
    here, there = (calc.get_descriptors(a, layer=-2) for a in (crystal, turned(crystal, mirror)))
    assert np.abs(here[:, pseudo]).max() > 1e-6
    assert np.abs(here[:, pseudo] + there[:, pseudo]).max() < 1e-12
    assert calc.get_descriptors(crystal, layer=-2, invariants_only=True).shape == (8, 4)


def test_irreps_of_inner_layers(parity_path, potential_path):
    both, natural = (
        EquivariantCalculator(p, engine="torch") for p in (parity_path, potential_path)
    )
    assert natural.descriptor_irreps(0) == o3.Irreps("8x0e+6x1o+4x2e")
    assert natural.descriptor_irreps() == o3.Irreps("8x0e")
    assert {str(ir) for _, ir in both.descriptor_irreps(1)} == {"0e", "1o", "1e", "2e", "2o"}


@pytest.mark.parametrize("name", ["mace", "tfn", "invariant", "esen", "equiformer"])
def test_every_architecture_has_descriptors(name, crystal, tmp_path):
    options = {"cutoff": 4.0, "num_layers": 2, "radial_mlp": [8], "l_max": 2, "num_channels": 4}
    if name in ("esen", "equiformer"):
        options |= {"hidden_channels": 4, "feed_forward_channels": 4}
    if name == "invariant":
        del options["l_max"]
    if name == "tfn":
        options["num_channels"] = [4, 3, 2]
    path = write(tmp_path / "model.pth", model_config({"architecture": name} | options))
    calc = EquivariantCalculator(path, dtype="float64", engine="torch")
    matrix = Rotation.random(random_state=3).as_matrix()
    for layer in (0, -1):
        irreps = calc.descriptor_irreps(layer)
        structures = crystal, turned(crystal, matrix)
        here, there = (calc.get_descriptors(a, layer=layer) for a in structures)
        assert irreps.count("0e") > 0
        assert np.ptp(here, axis=0).max() > 1e-3
        deviation = there - here @ wigner(irreps, matrix).T
        assert np.abs(deviation).max() < 1e-10 * np.abs(here).max()


def test_descriptors_are_local_and_permute(calc, crystal):
    order = np.random.default_rng(0).permutation(8)
    x = calc.get_descriptors(crystal, layer=0)
    assert np.allclose(calc.get_descriptors(crystal[order], layer=0), x[order], atol=1e-12)
    cluster = Atoms("SiOSi", [[0, 0, 0], [1.7, 0, 0], [40, 0, 0]])
    near = calc.get_descriptors(cluster)
    cluster.positions[2, 1] += 3.0
    assert np.array_equal(calc.get_descriptors(cluster), near)
    assert not np.array_equal(near[0], near[2])


def test_descriptors_of_a_file_that_does_not_name_its_features(monkeypatch, potential_path):
    """The bundled model says by its parity and widths what it has."""
    silicon = EquivariantCalculator("si", engine="torch")
    monkeypatch.delitem(silicon._network(0, "torch.float32").metadata, "feature_irreps", False)
    assert silicon.descriptor_irreps(0) == o3.Irreps("64x0e+32x1o+32x2e")
    unknown = EquivariantCalculator(potential_path, engine="torch")
    monkeypatch.delitem(unknown._network(0, "torch.float32").metadata, "feature_irreps")
    with pytest.raises(InputError, match=r"model.pth does not say what its features are"):
        unknown.get_descriptors(bulk("Si"))


def test_layers_that_are_not_there(potential_path, crystal):
    calc = EquivariantCalculator(potential_path, engine="torch")
    with pytest.raises(InputError, match=r"layer = 2: model.pth has 2 layers"):
        calc.get_descriptors(crystal, layer=2)
    with pytest.raises(InputError, match="no structure yet"):
        calc.get_descriptors()


def test_answers_are_kept_until_atoms_change(potential_path, crystal, monkeypatch):
    calc = EquivariantCalculator(potential_path, engine="torch")
    first = calc.get_descriptors(crystal)
    first[:] = 0.0
    with monkeypatch.context() as patch:
        patch.setattr("eqcalc.network.features", None)
        assert calc.get_descriptors(crystal).any()
        crystal.info["note"] = "not physics"
        assert calc.get_descriptors(crystal).any()
    kept = calc.get_descriptors(crystal)
    crystal.positions[0, 0] += 0.01
    assert not np.array_equal(calc.get_descriptors(crystal), kept)


def by_differences(atoms, calc, step):
    """Hessian [3N, 3N] from central differences of forces, extrapolated from two steps."""
    rows = []
    for k in range(3 * len(atoms)):
        slopes = []
        for h in (step, step / 2):
            forces = []
            for sign in (1, -1):
                moved = atoms.copy()
                moved.positions.flat[k] += sign * h
                moved.calc = calc
                forces.append(moved.get_forces().ravel())
            slopes.append(-(forces[0] - forces[1]) / (2 * h))
        rows.append((4 * slopes[1] - slopes[0]) / 3)
    return np.array(rows)


@pytest.mark.parametrize("system", ["crystal", "molecule", "tiny cell", "slab"])
def test_hessian_is_the_derivative_of_the_forces(calc, system, crystal, molecule):
    tiny = Atoms("SiO", [[0.1, 0, 0], [1.2, 1.4, 1.1]], cell=[2.7, 2.9, 2.6], pbc=True)
    slab = tiny.repeat((1, 2, 1))
    slab.rattle(0.1, seed=0)
    slab.pbc = [True, True, False]
    atoms = {"crystal": crystal, "molecule": molecule, "tiny cell": tiny, "slab": slab}[system]
    hessian = calc.get_hessian(atoms)
    assert np.array_equal(hessian, hessian.T)
    assert np.abs(hessian - by_differences(atoms, calc, 1e-3)).max() < 1e-6
    translations = np.tile(np.eye(3), (len(atoms), 1))
    assert np.abs(hessian @ translations).max() < 1e-9 * np.abs(hessian).max()


def test_hessian_turns_with_the_structure(potential_path, molecule):
    calc = EquivariantCalculator(potential_path)
    matrix = -Rotation.random(random_state=4).as_matrix()
    hessian = calc.get_hessian(molecule)
    all_atoms = np.kron(np.eye(5), matrix)
    there = calc.get_hessian(turned(molecule, matrix))
    assert np.abs(there - all_atoms @ hessian @ all_atoms.T).max() < 1e-10 * np.abs(hessian).max()


def test_hessian_of_a_lonely_atom(potential_path):
    calc = EquivariantCalculator(potential_path)
    assert not calc.get_hessian(Atoms("Si")).any()


def test_hessian_of_a_supercell_holds_that_of_the_cell(potential_path):
    """Displacements equal in all images: rows of the supercell's Hessian, summed over images."""
    calc = EquivariantCalculator(potential_path)
    cell = Atoms("SiO", [[0.1, 0, 0], [1.2, 1.4, 1.1]], cell=[2.7, 2.9, 2.6], pbc=True)
    double = make_supercell(cell, np.diag([2, 1, 1]))
    large = calc.get_hessian(double).reshape(2, 6, 2, 6)
    assert np.abs(large[0].sum(axis=1) - calc.get_hessian(cell)).max() < 1e-9


def test_frequencies_are_those_of_ase(tmp_path):
    """Silicon at Gamma: ASE's own finite displacements give the same modes."""
    atoms = bulk("Si", a=5.469)
    atoms.calc = calc = EquivariantCalculator("si", dtype="float64")
    exact = VibrationsData.from_2d(atoms, calc.get_hessian(atoms)).get_energies()
    vibrations = Vibrations(atoms, name=str(tmp_path / "vib"), delta=1e-3)
    vibrations.run()
    assert np.abs(exact[3:] - vibrations.get_energies()[3:]).max() < 1e-5
    assert np.ptp(exact[3:].real) < 1e-6  # cubic symmetry: one threefold optical mode
    assert 0.055 < exact[-1].real < 0.070  # experiment: 64.4 meV (15.6 THz)
