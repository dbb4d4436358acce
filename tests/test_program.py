"""Networks as data: what a program says, and that it is the network."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from ase.build import bulk
from e3nn import o3
from former_nequip import FormerNequIP
from scipy.spatial.transform import Rotation
from test_models import make, outputs, to_graph

from eqcalc.contract import set_precision
from eqcalc.errors import InputError
from eqcalc.models.assembled import Assembled
from eqcalc.models.nequip import NequIPConfig
from eqcalc.models.registry import architectures, build, model_config
from eqcalc.nn.contraction import Contraction, symmetric_basis
from eqcalc.program import Add, Convolution, Embedding, Linear, Output, Program, Radial, Readout
from eqcalc.program.former import former_name, present_name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scalar_bias": True, "gate_activation": "silu", "species_self_connection": False},
        {"parity": True, "product_channels": 4, "product_l_max": 2, "readout": 0},
        {"so3": True, "embedding": 3, "species_messages": True},
    ],
)
def test_the_program_of_nequip_is_nequip(options, crystal):
    """The same weights as in the equation written by hand give the same numbers."""
    sizes = {"cutoff": 4.0, "num_layers": 3, "num_channels": [5, 4, 3], "radial_mlp": [12]}
    config = NequIPConfig(**sizes | {"product_channels": 0} | options)
    arguments = (config, [8, 14], 15.0, [0.7, 1.1], [-2.0, -5.0])
    torch.manual_seed(3)
    written = set_precision(FormerNequIP(*arguments), torch.float64)
    torch.manual_seed(3)
    assembled = set_precision(build(*arguments), torch.float64)
    theirs = {present_name(name): p for name, p in written.named_parameters() if p.numel()}
    ours = {name: p for name, p in assembled.named_parameters() if p.numel()}
    assert ours.keys() == theirs.keys()
    assert [former_name(name) for name in theirs] == [
        n for n, p in written.named_parameters() if p.numel()
    ]
    with torch.no_grad():
        for name, p in ours.items():
            assert torch.equal(p, theirs[name])  # a seed means the same as ever
            if name.endswith(".bias"):
                p.copy_(torch.nn.init.normal_(theirs[name]))
    assert assembled.exchange_widths == written.exchange_widths
    graph = to_graph(crystal)
    for a, b in zip(outputs(assembled, graph), outputs(written, graph), strict=True):
        assert abs(a - b).max() <= 1e-12 * abs(b).max()


@pytest.mark.parametrize("name", sorted(architectures()))
def test_programs_survive_as_data_and_can_be_read(name):
    program = model_config({"architecture": name}).program()
    assert Program.from_document(program.document()) == program
    text = str(program)
    assert text.count("-- ranks exchange") == len(program.stages) - 1 > 0
    for op in program.operations:
        assert op.name in text
    newer = program.document() | {"program_version": 99}
    with pytest.raises(InputError, match="newer eqcalc"):
        Program.from_document(newer)
    newer = program.document()
    newer["operations"][-1] = {"operation": "Teleport", "name": "x"}
    with pytest.raises(InputError, match="Teleport"):
        Program.from_document(newer)


def test_programs_read_only_what_is_made_before():
    with pytest.raises(ValueError, match="reads y"):
        Program((Embedding("x", 4), Linear("z", "y", "4x0e", "4x0e")))
    with pytest.raises(ValueError, match="no name"):
        Program((Embedding("x", 4), Embedding("x", 4)))


@pytest.mark.parametrize("name", ["species", "lambda", "forward", "training"])
def test_names_that_mean_something_are_refused(name):
    config = model_config({"architecture": "invariant"})
    program = Program(
        (
            *(Embedding("a", 3), Radial("r", (5,))),
            Convolution(name, "a", "r", "3x0e", 0, "3x0e"),
            *(Readout("energies", name, "3x0e"), Output("energy", ("energies",))),
        )
    )
    with pytest.raises(ValueError, match="means something here"):
        Assembled(program, config, [14], 15.0, [1.0], [0.0])


def test_cutoffs_of_pairs_are_part_of_the_description():
    config = NequIPConfig(product_channels=0, pair_cutoffs={"Si": {"O": 3.0}})
    assert "MLP(bessel(pair_cutoffs(r))" in str(config.program())


def test_values_that_outlive_an_exchange_travel_with_it(crystal):
    """A value of the first stage that the last one reads is carried; others are not sent."""
    features = "3x0e+3x1o"
    program = Program(
        (
            Embedding("a", 3),
            *(Radial("r", (5,)), Convolution("b", "a", "r", "3x0e", 1, features)),
            *(Radial("s", (5,)), Convolution("c", "b", "s", features, 1, "6x0e+6x1o")),
            Linear("c_scalars", "c", "6x0e+6x1o", "3x0e"),
            *(Radial("t", (5,)), Convolution("d", "c_scalars", "t", "3x0e", 1, "3x0e")),
            Linear("b_scalars", "b", features, "3x0e"),
            Add("e", ("d", "b_scalars"), "3x0e"),
            *(Readout("energies", "e", "3x0e"), Output("energy", ("energies",))),
        )
    )
    assert [stage.takes for stage in program.stages] == [("a",), ("b",), ("b", "c")]
    assert "c_scalars" in program.stages[2].everywhere
    config = model_config({"architecture": "invariant", "cutoff": 4.0})
    torch.manual_seed(0)
    model = Assembled(program, config, [8, 14], 15.0, [1.0, 1.0], [0.0, 0.0])
    model = set_precision(model, torch.float64).eval()
    assert model.exchange_widths == [12, 12 + 24]
    graph = to_graph(crystal)
    energies, forces, _ = outputs(model, graph)
    matrix = Rotation.random(random_state=1).as_matrix()
    turned = crystal.copy()
    turned.set_cell(crystal.cell.array @ matrix.T)
    turned.positions = crystal.positions @ matrix.T
    again, turned_forces, _ = outputs(model, to_graph(turned))
    assert abs(again - energies).max() < 1e-10
    assert abs(turned_forces - forces @ matrix.T).max() < 1e-10


def _matrix(irreps, matrix):
    """How a rotation or reflection acts on features, channels innermost."""
    points = torch.randn(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    proper = matrix * torch.linalg.det(matrix)
    blocks = []
    for mul, ir in irreps:
        before, after = (
            o3.spherical_harmonics(ir.l, p, normalize=True, normalization="component")
            for p in (points, points @ proper.T)
        )
        turned = torch.linalg.lstsq(before, after).solution.T
        sign = ir.p if torch.linalg.det(matrix) < 0 else 1
        blocks.append(torch.kron(sign * turned, torch.eye(mul, dtype=torch.float64)))
    return torch.block_diag(*blocks)


@pytest.mark.parametrize(
    ("irreps_in", "irreps_out", "correlation"),
    [
        ("2x0e+2x1o+2x2e", "2x0e+2x1o+2x2e", 3),
        ("2x0e+2x1o+2x2e+2x3o", "2x0e", 4),
        ("2x0e+2x0o+2x1o+2x1e", "2x0o+2x1e", 3),
    ],
)
def test_contractions_turn_with_their_features(irreps_in, irreps_out, correlation):
    irreps_in, irreps_out = o3.Irreps(irreps_in), o3.Irreps(irreps_out)
    torch.manual_seed(0)
    contraction = set_precision(Contraction(irreps_in, irreps_out, correlation, 2), torch.float64)
    x = torch.randn(6, irreps_in.dim, dtype=torch.float64)
    species = torch.tensor([0, 1, 1, 0, 1, 0])
    values = contraction(x, species)
    proper = torch.from_numpy(Rotation.random(random_state=2).as_matrix())
    for matrix in (proper, -proper):
        turned = contraction(x @ _matrix(irreps_in, matrix).T, species)
        torch.testing.assert_close(
            turned, values @ _matrix(irreps_out, matrix).T, rtol=1e-10, atol=1e-10
        )
    scaled = contraction(2.0 * x, species)  # degrees 1 .. correlation, no constant
    assert not contraction(0.0 * x, species).any()
    assert (scaled - 2.0 * values).abs().max() > 1.0


@pytest.mark.parametrize("degree", [2, 3])
def test_symmetric_basis_is_complete(degree):
    """As many scalars and vectors as characters of SO(3) say (natural parity, l <= 2)."""
    irreps = o3.Irreps("0e+1o+2e")
    angles = (torch.arange(4096, dtype=torch.float64) + 0.5) * (math.pi / 4096)

    def character(l, angle):  # noqa: E741
        return sum(torch.cos(m * angle) for m in range(-l, l + 1))

    def of_features(power, sign):
        """sign: of a proper rotation 1, of one times the inversion -1."""
        return sum(
            character(ir.l, power * angles) * (ir.p if sign < 0 else 1) ** power for _, ir in irreps
        )

    counts = {}
    for target in ("0e", "1o", "2e", "1e"):
        ir = o3.Irrep(target)
        total = 0.0
        for sign in (1, -1):
            p1, p2, p3 = (of_features(k, sign) for k in (1, 2, 3))
            symmetric = {2: (p1**2 + p2) / 2, 3: (p1**3 + 3 * p1 * p2 + 2 * p3) / 6}[degree]
            weight = (1 - torch.cos(angles)) / 4096  # Haar measure of the rotation angle
            own = character(ir.l, angles) * (ir.p if sign < 0 else 1)
            total += float((weight * symmetric * own).sum()) / 2
        counts[target] = round(total)
    found = symmetric_basis(irreps, degree)
    assert {t: len(found.get(o3.Irrep(t), ())) for t in counts} == counts


def test_own_architectures_are_named_by_their_module(monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    config = model_config({"architecture": "toy_network:ToyConfig", "channels": 3})
    model = build(config, [14], 10.0, [1.0], [0.0])
    energies, forces, _ = outputs(set_precision(model, torch.float64), _silicon())
    assert abs(forces).max() > 1e-3
    assert abs(energies).max() > 1e-3
    for name, sentence in (
        ("nequipp", "did you mean 'nequip'"),
        ("toy_network:Nothing", "cannot be imported"),
        ("no_such_network:Nothing", "cannot be imported"),
        ("math:sqrt", "no subclass of ModelConfig"),
    ):
        with pytest.raises(InputError, match=sentence):
            model_config({"architecture": name})
    with pytest.raises(InputError, match=r"Unknown option 'model.num_layers'"):
        model_config({"architecture": "toy_network:ToyConfig", "num_layers": 3})


def _silicon():
    crystal = bulk("Si", cubic=True)
    crystal.rattle(0.1, seed=1)
    graph = to_graph(crystal)
    return dataclasses.replace(graph, species=0 * graph.species)


def test_messages_of_programs_are_calibrated(crystal):
    model = make("mace")
    graph = to_graph(crystal)
    edges = graph.edge_vec, graph.edge_src, graph.edge_dst
    model.calibrate(graph.species, *edges, target=0.5)
    sizes = []
    feats = model.embed(graph.species)
    known = model.edges(graph.species, *edges)
    for k, layer in enumerate(model.layers):
        scales = torch.tensor(model.message_scales()[k])
        sizes.append(torch.tensor(model.message_sizes(layer, feats, known, len(crystal))) * scales)
        feats, _ = layer(feats, known, len(crystal))
    for size in sizes:
        assert size.max() == pytest.approx(0.5, rel=1e-3)
