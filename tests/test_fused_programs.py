"""Networks that are programs on the fused engine, against the TorchScript that they are read of."""

from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
import pytest
import torch
from potentials import write
from precompiled import options
from test_fused import SYSTEMS, assert_network_of_the_file, graph

from eqcalc import export
from eqcalc.engine import fused, tables
from eqcalc.engine.bricks import activation_scale
from eqcalc.engine.build import MORE_FLAGS, EngineUnavailable
from eqcalc.engine.contraction import contraction
from eqcalc.engine.density import few_functions
from eqcalc.models.config import ModelConfig
from eqcalc.models.invariant import InvariantConfig
from eqcalc.models.mace import MACEConfig
from eqcalc.models.tfn import TFNConfig
from eqcalc.nn import activations
from eqcalc.program import Convolution, Embedding, Output, Program, Radial, Readout

SMALL = {"cutoff": 4.0, "radial_mlp": [16], "radial_scale": 0.8, "num_layers": 2}


def mace(**options):
    return MACEConfig(**SMALL, num_channels=5, l_max=2, **options)


# those of a kind share their kernels
PROGRAMS = {
    "mace": mace(),
    "mace, correlation 4": mace(correlation=4, readout=0),
    "mace, pairs": mace(correlation=1, pair_potential=True),
    "mace, species": mace(self_connections=[False, True]),
    "mace, densities": mace(correlation=2, density_normalization=True, distance_transform="agnesi"),
    "mace, densities, crowded": mace(
        correlation=2, density_normalization=True, distance_transform="agnesi"
    ),
    "tfn, norms": TFNConfig(**SMALL, l_max=1, num_channels=[5, 3]),
    "tfn, gates": TFNConfig(**SMALL, l_max=1, num_channels=[5, 3], nonlinearity="gate"),
    "tfn, crowded": TFNConfig(**SMALL, l_max=1, num_channels=[5, 3]),
    "invariant": InvariantConfig(**SMALL, num_channels=9),
}


@pytest.fixture(scope="module", params=PROGRAMS)
def program(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "model.pth"
    write(path, PROGRAMS[request.param], crowding="crowded" in request.param)
    return path, fused.fuse(path, dtype="float64", radial="network")


def test_is_the_network_of_the_file(program):
    path, engine = program
    assert_network_of_the_file(path, engine, 1e-11, 1e-12)


def test_gradient_is_that_of_the_energy(program):
    _, engine = program
    species, vec, src, dst = graph(engine, SYSTEMS["melt"]())
    gradient = engine.evaluate(species, vec, src, dst).gradient
    direction = torch.randn(vec.shape, generator=torch.Generator().manual_seed(0)).double()
    direction /= direction.norm()
    h = 1e-3
    moved = [float(engine.evaluate(species, vec + n * h * direction, src, dst).energies.sum())
             for n in (-2, -1, 1, 2)]  # fmt: skip
    slope = (moved[0] - 8 * moved[1] + 8 * moved[2] - moved[3]) / (12 * h)
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-7, abs=1e-8)


def test_threads_change_nothing_but_rounding(program):
    _, engine = program
    species, vec, src, dst = (a.numpy() for a in graph(engine, SYSTEMS["melt"]()))
    edges = fused.EdgeArrays(src, dst, vec)
    one, three = engine.run(species, edges, 1), engine.run(species, edges, 3)
    for a, b in zip(one, three, strict=True):
        assert np.abs(a - b).max() < 1e-12 * max(1.0, np.abs(a).max())


def test_tables_are_as_good_as_the_network(program, monkeypatch):
    monkeypatch.setenv(MORE_FLAGS, options("-O0"))  # what is compiled as users' are, is above
    path, engine = program
    table = fused.fuse(path, dtype="float64", radial="table")
    args = graph(engine, SYSTEMS["skewed cell"]())
    expected, got = engine.evaluate(*args), table.evaluate(*args)
    size = max(1.0, float(expected.gradient.abs().max()))
    assert (got.gradient - expected.gradient).abs().max() < 2e-11 * size


def test_many_kinds_of_bonds_run_on_the_radial_network(tmp_path, monkeypatch):
    path = tmp_path / "model.pth"
    write(path, PROGRAMS["mace, densities"], seed=1)
    monkeypatch.setattr(tables, "MOST_FUNCTIONS", 0)
    reference, engine = export.load(path, dtype="float64"), fused.fuse(path, dtype="float64")
    args = graph(reference, SYSTEMS["skewed cell"]())
    expected, got = reference.evaluate(*args), engine.evaluate(*args)
    size = max(1.0, float(expected.gradient.abs().max()))
    assert (got.gradient - expected.gradient).abs().max() < 1e-12 * size


def test_few_functions_of_distance_make_all():
    """Some of the networks here begin with densities of species, others with messages."""
    r = np.linspace(0.01, 4.0, 300)
    mixed = np.random.default_rng(0).normal(size=(3, 40))
    values = np.stack([np.exp(-r), np.exp(-2 * r), np.exp(-3 * r)], axis=1)[:, None] @ mixed
    scale = np.ones(len(r))
    v = few_functions(values, scale, r[1] - r[0], 1e-11)
    assert v.shape == (3, 40)
    assert values @ v.T @ v == pytest.approx(values, abs=1e-12)
    assert v @ v.T == pytest.approx(np.eye(3), abs=1e-12)


def test_terms_become_products_of_two_factors():
    rng = np.random.default_rng(0)
    rows, channels = 3, 2
    monomials = [m for n in range(1, 5) for m in combinations_with_replacement(range(rows), n)]
    terms = [(out, m[::-1]) for m in monomials for out in (0, 1) if rng.random() < 0.7]
    coefficients = rng.normal(size=(2, channels, len(terms)))
    made = contraction(
        "x", "y", channels=channels, rows_in=[0, 2, 4], rows_out=[0, 2], terms=terms,
        coefficients=coefficients,
    )  # fmt: skip
    x = rng.normal(size=(rows, channels))
    factors = np.stack([*x, *(x[i] * x[j] for i, j in zip(made.first, made.second, strict=True)),
                        np.ones(channels)])  # fmt: skip
    for species in (0, 1):
        expected, got = np.zeros((2, 2, channels))
        for (out, rows_of), c in zip(terms, coefficients[species].T, strict=True):
            expected[out] += c * x[list(rows_of)].prod(0)
        for t, out in enumerate(made.out):
            c = made.coefficients[species, :, t]
            got[out] += c * factors[made.left[t]] * factors[made.right[t]]
        assert got == pytest.approx(expected, rel=1e-13)
    keys = list(zip(made.out, made.left, strict=True))
    assert keys == sorted(keys)  # those of a group lie together


@dataclass(frozen=True)
class BareConfig(ModelConfig):
    """Messages that are not normalised: only normalised ones fade where it is crowded."""

    def program(self):
        return Program(
            (
                *(Embedding("a", 4), Radial("r", (8,))),
                Convolution("m", "a", "r", "4x0e", 0, "4x0e"),
                *(Readout("energies", "m", "4x0e"), Output("energy", ("energies",))),
            )
        )


def test_messages_that_do_not_fade_are_not_made_to(tmp_path):
    config = BareConfig(cutoff=4.0, radial_mlp=[16])
    plain, crowded = tmp_path / "plain.pth", tmp_path / "crowded.pth"
    write(plain, config)
    fused.fuse(plain, dtype="float64")
    write(crowded, config, crowding=True)
    with pytest.raises(EngineUnavailable, match="all messages fade that crowd, also m"):
        fused.fuse(crowded, dtype="float64")


@pytest.mark.parametrize("name", ["silu", "tanh", "sigmoid"])
def test_activations_are_scaled_as_in_the_modules(name):
    one = torch.ones((), dtype=torch.float64)
    plain = {"silu": torch.nn.functional.silu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}[name]
    scaled = getattr(activations, name)(one)
    assert float(scaled) == pytest.approx(activation_scale(name) * float(plain(one)), rel=1e-15)
