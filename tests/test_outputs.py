"""Outputs beside the energy: their symmetry, their Cartesian form, their file and ASE."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from e3nn import o3
from scipy.spatial.transform import Rotation
from test_models import CUTOFF, to_graph

from eqcalc import EquivariantCalculator, export
from eqcalc.contract import set_precision
from eqcalc.errors import InputError
from eqcalc.export import quiet_torchscript
from eqcalc.graph import Graph
from eqcalc.models.registry import build, model_config
from eqcalc.nn.output_constants import OutputConstants, ReferenceOutputs
from eqcalc.outputs import OutputConfig, cartesian
from eqcalc.program import Program

OUTPUTS = [
    "dipole",
    "polarizability",
    "charges",
    "direct_forces",
    "born_effective_charges",
    {"name": "twist", "irreps": "0o", "per": "structure"},
    {"name": "axial", "irreps": "2x1e", "per": "atom"},
]
BLOCKS = {
    "l_max": 2,
    "num_layers": 2,
    "num_channels": 4,
    "hidden_channels": 3,
    "feed_forward_channels": 5,
}
NETWORKS = {
    "nequip": {"num_channels": [5, 4, 3]},
    "tfn": {"num_channels": [5, 4, 3]},
    "tfn, gates, one map": {"num_channels": [4, 4, 3], "nonlinearity": "gate", "readout": 0},
    "mace": {"num_channels": 3, "l_max": 2, "feature_l_max": 1},
    "esen": BLOCKS,
    "esen, sphere": {**BLOCKS, "nonlinearity": "sphere", "readout": 0},
    "equiformer": BLOCKS | {"num_heads": 2, "attention_channels": 2},
    "equiformer_v2": BLOCKS | {"num_heads": 2, "attention_channels": 2},
    "nequip, isolated atoms": {"num_channels": [5, 4, 3], "exact_isolated_atoms": True},
}
ROTATION = Rotation.random(random_state=3).as_matrix()
MATRICES = {"rotation": ROTATION, "rotated mirror image": -ROTATION}


def make(case, outputs=OUTPUTS, **options):
    """Untrained, in float64, its constants other than one and zero."""
    torch.manual_seed(1)
    common = {"cutoff": CUTOFF, "radial_mlp": [12], "radial_scale": 0.6, "readout": 6}
    common |= {"architecture": case.split(",")[0], "outputs": outputs}
    config = model_config(common | NETWORKS[case] | options)
    model = build(config, [8, 14], 15.0, [0.7, 1.1], [-2.0, -5.0])
    model.reference_outputs = ReferenceOutputs(some_constants(config.outputs))
    return set_precision(model, torch.float64).eval()


def some_constants(outputs):
    """Scales of their own for each irrep, and shifts of even scalars."""
    scale, shift = [], [[], []]
    for output in outputs:
        for n, part in enumerate(output.parts):
            scale += [0.5 + 0.3 * n] * part.dim
            for s in (0, 1):
                even = (part.l, part.p) == (0, 1)
                shift[s] += [0.2 - 0.5 * s if even else 0.0] * part.dim
    return OutputConstants(scale, shift, [1.0] * len(outputs))


def results(model, atoms):
    graph = to_graph(atoms)
    edges = graph.edge_vec, graph.edge_src, graph.edge_dst
    energies, rows = model.outputs(graph.species, *edges, graph.num_atoms)
    assert torch.equal(energies, model(graph.species, *edges, graph.num_atoms))
    return cartesian(model.output_configs, rows.detach().numpy())


def turned(name, value, matrix):
    """What rotations and reflections make of a property."""
    sign = np.sign(np.linalg.det(matrix))
    if name in {"dipole", "direct_forces"}:
        return value @ matrix.T
    if name == "axial":
        return sign * value @ matrix.T
    if name in {"polarizability", "born_effective_charges"}:
        return matrix @ value @ matrix.T
    return sign * value if name == "twist" else value


def close(a, b, tolerance=1e-10):
    return np.abs(np.subtract(a, b)).max() <= tolerance * np.abs(b).max()


@pytest.fixture
def chiral():
    """A molecule without any symmetry."""
    positions = np.random.default_rng(0).normal(size=(6, 3)) * 1.5
    return Atoms("SiO2SiO2", positions=positions)


@pytest.mark.parametrize("case", NETWORKS)
def test_every_irrep_turns_as_it_must(case, chiral):
    model = make(case)
    before = results(model, chiral)
    for name, value in before.items():
        assert np.abs(value).max() > 1e-4, name
    for matrix in MATRICES.values():
        moved = chiral.copy()
        moved.positions = chiral.positions @ matrix.T + [5.0, -3.0, 1.0]
        for name, value in results(model, moved).items():
            assert close(value, turned(name, before[name], matrix), 1e-9), name
    order = np.random.default_rng(1).permutation(len(chiral))
    for output, (name, value) in zip(
        model.output_configs, results(model, chiral[order]).items(), strict=True
    ):
        known = before[name]
        assert close(value, known[order] if output.per == "atom" else known), name


def test_a_pseudoscalar_vanishes_where_a_mirror_image_is_the_molecule(chiral):
    """Four atoms in a plane are their own mirror image."""
    model = make("nequip")
    flat = chiral[:4]
    flat.positions[:, 2] = 0.0
    assert abs(results(model, flat)["twist"]) < 1e-12 < abs(results(model, chiral)["twist"])


@pytest.mark.parametrize("case", ["nequip", "mace", "equiformer"])
def test_batch_equals_single_and_isolated_atoms_have_their_shifts(case, crystal, molecule):
    model = make(case)
    structures = [crystal, molecule, Atoms("Si")]
    graph = Graph.collate([to_graph(a) for a in structures])
    edges = graph.edge_vec, graph.edge_src, graph.edge_dst
    together = model.outputs(graph.species, *edges, graph.num_atoms)[1].detach().numpy()
    at = 0
    for atoms in structures:
        rows = together[at : at + len(atoms)]
        at += len(atoms)
        found, single = cartesian(model.output_configs, rows), results(model, atoms)
        for name, value in single.items():
            assert np.abs(np.subtract(found[name], value)).max() < 1e-10, name
    alone = results(model, Atoms("Si"))
    assert not np.any(alone["dipole"])
    assert not np.any(alone["axial"])
    assert close(alone["polarizability"], np.eye(3) * alone["polarizability"][0, 0])


def test_an_output_follows_its_atoms_smoothly_over_the_cutoff():
    """A pair just inside the cutoff has what two atoms alone have."""
    model = make("tfn")
    pair = Atoms("SiO", [[0, 0, 0], [0, 0, CUTOFF - 1e-3]])
    near = results(model, pair)
    assert np.abs(near["dipole"]).max() < 1e-6
    alone = [results(model, Atoms(s))["charges"][0] for s in ("Si", "O")]
    assert np.abs(near["charges"] - alone).max() < 1e-6


@pytest.mark.parametrize("irreps", ["1o", "1e", "2e", "0e+2e", "2e+0e", "0e+1e+2e", "2x1o", "0o"])
@pytest.mark.parametrize("matrix", MATRICES)
def test_cartesian_form_is_that_of_e3nn(irreps, matrix):
    """Rows turned by Wigner's matrices are Cartesian tensors turned by the rotation."""
    output, matrix = OutputConfig("q", irreps, "atom"), MATRICES[matrix]
    rows = np.random.default_rng(2).normal(size=(3, output.dim))
    blocks, at = [], 0
    for mul, ir in o3.Irreps(irreps):
        wigner = ir.D_from_matrix(torch.tensor(matrix, dtype=torch.float32)).numpy()
        block = rows[:, at : at + mul * ir.dim].reshape(3, ir.dim, mul)
        blocks.append(np.einsum("mn,anc->amc", wigner, block).reshape(3, -1))
        at += mul * ir.dim
    value, found = output.cartesian(rows), output.cartesian(np.concatenate(blocks, axis=1))
    sign = np.sign(np.linalg.det(matrix))
    expected = {
        (): lambda: sign * value,
        (3,): lambda: value @ matrix.T * (sign if irreps == "1e" else 1.0),
        (2, 3): lambda: value @ matrix.T,
        (3, 3): lambda: matrix @ value @ matrix.T,
    }[output.shape]()
    assert np.abs(found - expected).max() < 1e-5  # Wigner's matrices are in float32
    assert np.abs(output.rows(value, 3) - rows).max() < 1e-14
    assert np.isclose(np.square(value).sum(), np.square(rows).sum())


def test_labels_of_wrong_shape_or_symmetry_are_refused():
    polarizability = OutputConfig("polarizability")
    six = [1.0, 2.0, 3.0, 0.1, 0.2, 0.3]  # xx yy zz yz xz xy
    matrix = [[1.0, 0.3, 0.2], [0.3, 2.0, 0.1], [0.2, 0.1, 3.0]]
    assert np.allclose(polarizability.cartesian(polarizability.rows(six, 1)), matrix)
    assert np.allclose(polarizability.rows(np.ravel(matrix), 1), polarizability.rows(six, 1))
    with pytest.raises(ValueError, match="symmetric, unlike"):
        polarizability.rows([[1.0, 0.3, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 3.0]], 1)
    with pytest.raises(ValueError, match="no trace, unlike"):
        OutputConfig("quadrupole").rows(np.eye(3), 1)
    with pytest.raises(ValueError, match=r"shape 3 is expected, not \(4,\)"):
        OutputConfig("dipole").rows([0.0] * 4, 1)
    with pytest.raises(ValueError, match=r"shape atoms x 3 is expected, not \(2, 3\)"):
        OutputConfig("direct_forces").rows(np.zeros((2, 3)), 3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"outputs": ["dipol"]}, "did you mean 'dipole'"),
        ({"outputs": [{"name": "spin"}]}, "say its irreps"),
        ({"outputs": [{"name": "spin", "irreps": "1x", "per": "atom"}]}, "no irreps"),
        ({"outputs": [{"name": "spin", "irreps": "1o+1o", "per": "atom"}]}, "write 2x1o"),
        ({"outputs": [{"irreps": "1o"}]}, "cannot name an output"),
        ({"outputs": ["forces"]}, "cannot name an output"),
        ({"outputs": ["charges_1"]}, "cannot name an output"),
        ({"outputs": ["dipole", "dipole"]}, "twice"),
        ({"outputs": [{"name": "dipole", "weigth": 2.0}]}, "did you mean 'weight'"),
        ({"outputs": [{"name": "dipole", "weight": -2.0}]}, "must not be negative"),
        ({"outputs": [3]}, "a table is expected"),
        ({"energy": False}, "there are no outputs"),
        ({"outputs": ["dipole"], "energy": False, "pair_potential": True}, "is an energy"),
        ({"outputs": ["dipole"], "so3": True}, "have no so3, solid_harmonics or pair_cutoffs"),
    ],
)
def test_what_cannot_be_an_output_is_said_in_a_sentence(options, sentence):
    with pytest.raises(InputError, match=sentence):
        model_config(options)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("invariant", {}),
        ("nequip", {"l_max": 0, "num_channels": [4]}),
        ("mace", {"l_max": 0, "feature_l_max": 0}),
        ("toy_network:ToyConfig", {}),
    ],
)
def test_irreps_that_no_path_reaches_are_refused(architecture, options):
    config = model_config({"architecture": architecture, "outputs": ["dipole"]} | options)
    with pytest.raises(InputError, match=r"no path of this network|has no outputs beside"):
        build(config, [14], 15.0, [1.0], [0.0])


SMALL = {"l_max": 1, "num_channels": [4, 3], "num_layers": 2, "radial_mlp": [6], "readout": 4}


def exported(path, outputs=("dipole", "charges"), **options):
    model = make("nequip", list(outputs), **SMALL, **options)
    atoms = Atoms("SiO3", [[0, 0, 0], [1.6, 0, 0], [0, 1.7, 0], [0, 0.1, 1.6]])
    graph = to_graph(atoms)
    edges = graph.edge_vec, graph.edge_src, graph.edge_dst
    model.reference_structure = export.reference_structure(model, graph.species, *edges)
    return export.save(model, path, {"architecture": "NequIP"}), model


def test_scripted_and_plain_agree_and_the_program_survives(chiral):
    model = make("nequip")
    assert Program.from_document(model.program.document()) == model.program
    assert {out.name: out.per for out in model.program.outputs}["charges"] == "atom"
    graph = to_graph(chiral)
    arguments = graph.species, graph.edge_vec, graph.edge_src, graph.edge_dst, len(chiral)
    with quiet_torchscript():
        scripted = torch.jit.script(model)
    with torch.no_grad():
        for a, b in zip(scripted.outputs(*arguments), model.outputs(*arguments), strict=True):
            assert close(a.numpy(), b.numpy(), 1e-12)


@pytest.mark.parametrize(
    "engine", ["torch", pytest.param("fused", marks=[pytest.mark.compile, pytest.mark.slow])]
)
def test_ase_has_the_outputs_of_a_file_whatever_the_engine(engine, tmp_path, chiral):
    path, model = exported(tmp_path / "model.pth")
    expected = results(model, chiral)
    calc = EquivariantCalculator(path, engine=engine)
    assert calc.backend.name == engine
    chiral.calc = calc
    forces = chiral.get_forces()
    assert "dipole" not in calc.results
    assert close(chiral.get_dipole_moment(), expected["dipole"], 1e-8)
    assert close(chiral.get_charges(), expected["charges"], 1e-8)
    assert np.array_equal(calc.results["forces"], forces)  # kept, for the structure is the same
    chiral.rattle(0.1, seed=4)
    (found,) = calc.evaluate([chiral])
    for name, value in results(model, chiral).items():
        assert close(found[name], value, 1e-8)
        assert np.shape(found[name]) == np.shape(value)
    with pytest.raises(PropertyNotImplementedError):
        calc.get_property("magmoms", chiral)


def test_a_committee_gives_the_mean_of_what_all_have(tmp_path, chiral):
    one, _ = exported(tmp_path / "one.pth")
    two, _ = exported(tmp_path / "two.pth", outputs=["dipole"])
    alone = [EquivariantCalculator(p, engine="torch") for p in (one, two)]
    together = EquivariantCalculator([one, two], engine="torch")
    each = [calc.get_property("dipole", chiral.copy()) for calc in alone]
    assert close(together.get_property("dipole", chiral), np.mean(each, axis=0))
    assert "charges" not in together.implemented_properties


def test_a_changed_output_is_noticed_when_the_file_is_opened(tmp_path):
    path, model = exported(tmp_path / "model.pth")
    assert max(export.deviation(export.load(path).module).values()) < 1e-12
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.layers[-1].dipole_0.weight.mul_(1.001)
    export.save(other, path, {"architecture": "NequIP"})
    with pytest.raises(InputError, match=r"does not reproduce its own reference.*outputs"):
        export.load(path)


def test_a_network_without_an_energy_says_so(tmp_path, chiral):
    path, model = exported(tmp_path / "model.pth", outputs=["dipole"], energy=False)
    calc = EquivariantCalculator(path)
    chiral.calc = calc
    assert close(chiral.get_dipole_moment(), results(model, chiral)["dipole"], 1e-8)
    assert calc.implemented_properties == ["dipole"]
    assert set(calc.results) == {"dipole"}
    with pytest.raises(InputError, match="no energy, so there is no forces: it has dipole"):
        chiral.get_forces()
    with pytest.raises(PropertyNotImplementedError):
        chiral.get_potential_energy()
    with pytest.raises(InputError, match="energies and their derivatives, not dipole"):
        EquivariantCalculator(path, engine="fused")


def test_direct_forces_take_the_place_of_forces(tmp_path, chiral):
    path, model = exported(tmp_path / "model.pth", outputs=["direct_forces"])
    expected = results(model, chiral)["direct_forces"]
    chiral.calc = EquivariantCalculator(path, direct_forces=True)
    assert close(chiral.get_forces(), expected, 1e-8)
    energy = chiral.get_potential_energy()
    with pytest.raises(InputError, match="no derivatives of an energy"):
        chiral.calc.get_property("stress", chiral)
    with pytest.warns(UserWarning, match="energies and their derivatives, not direct_forces"):
        chiral.calc = EquivariantCalculator(path)
    assert chiral.get_potential_energy() == pytest.approx(energy, abs=1e-9)
    gradient = chiral.get_forces()
    assert np.abs(gradient - expected).max() > 0.1
    assert close(chiral.calc.get_property("direct_forces", chiral), expected, 1e-8)
    other, _ = exported(tmp_path / "other.pth", outputs=["dipole"])
    with pytest.raises(InputError, match="has no output direct_forces"):
        EquivariantCalculator(other, direct_forces=True)


def test_defaults_of_common_names():
    assert dataclasses.astuple(OutputConfig("dipole"))[:5] == (
        "dipole",
        "1o",
        "structure",
        "",
        "e*Å",
    )
    own = OutputConfig("dipole", unit="Debye", key="mu", weight=3.0)
    assert (own.irreps, own.unit, own.key, own.weight) == ("1o", "Debye", "mu", 3.0)
