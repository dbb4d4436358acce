"""The generated kernels against the plain convolution: values, first and second derivatives."""

import copy

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from e3nn import o3
from precompiled import options
from torch import nn

from eqcalc import derivatives
from eqcalc.contract import set_precision
from eqcalc.data.dataset import Batch, FrameDataset
from eqcalc.data.frames import Frame
from eqcalc.engine.build import MORE_FLAGS
from eqcalc.engine.training import (
    FusedContraction,
    FusedConvolution,
    FusedProduct,
    fuse,
    islands_of,
    pairs_of,
)
from eqcalc.errors import InputError
from eqcalc.models.mace import MACEConfig
from eqcalc.models.nequip import NequIPConfig
from eqcalc.models.registry import build
from eqcalc.nn.contraction import Contraction

CASES = [
    # channels per l, parity, layers, channels and l_max of products: odd numbers are not multiples
    # of any vector width
    ([8], False, 2, 0, 0),
    ([7, 5, 3], False, 3, 0, 0),
    ([6, 4, 3], True, 3, 0, 0),
    ([5, 4, 3, 2], False, 3, 0, 0),
    ([4, 3, 2, 2, 1], False, 2, 0, 0),
    ([8], False, 2, 5, 0),
    ([7, 5, 3], False, 2, 5, 0),
    ([7, 5, 3], False, 3, 9, 2),
    ([6, 4, 3], True, 2, 3, 2),
    ([5, 4, 3, 2], False, 2, 3, 3),
]


def mixed_batch():
    """A melt-like cell, a tiny cell with many images, a molecule and an atom on its own."""
    rng = np.random.default_rng(7)
    cell = bulk("Si", cubic=True)
    cell.numbers[::3] = 8
    cell.positions += 0.15 * rng.normal(size=cell.positions.shape)
    tiny = bulk("Si")
    molecular = molecule("H2O")
    molecular.numbers[:] = [8, 14, 14]
    structures = [cell, tiny, molecular, type(cell)("O")]
    frames = [Frame(a, 0.0, None, None, "x", "x") for a in structures]
    return Batch.collate(FrameDataset(frames, [8, 14], 4.0).items).graph


def derivatives_of(model, graph):
    """Energies, edge gradient, and the gradient of a force-like loss in every weight."""
    edge_vec = graph.edge_vec.clone().requires_grad_()
    energies = model(graph.species, edge_vec, graph.edge_src, graph.edge_dst, graph.num_atoms)
    gradient = derivatives.edge_gradient(energies, edge_vec, differentiable=True)
    model.zero_grad()
    (gradient.pow(2).sum() + energies.pow(2).sum()).backward()
    weights = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return energies.detach(), gradient.detach(), weights


@pytest.mark.parametrize(("channels", "parity", "layers", "products", "product_l_max"), CASES)
def test_equal_to_plain_network(channels, parity, layers, products, product_l_max):
    torch.manual_seed(3)
    config = NequIPConfig(
        cutoff=4.0,
        num_layers=layers,
        l_max=len(channels) - 1,
        num_channels=channels,
        parity=parity,
        product_channels=products,
        product_l_max=product_l_max,
    )
    plain = build(config, [8, 14], 20.0, [1.0, 1.0], [0.0, 0.0])
    assert_equal_to_plain(plain, products=products > 0)


def test_equal_to_plain_network_with_solid_harmonics():
    torch.manual_seed(3)
    config = NequIPConfig(
        product_channels=0, cutoff=4.0, num_layers=3, num_channels=[7, 5, 3], solid_harmonics=True
    )
    assert_equal_to_plain(build(config, [8, 14], 20.0, [1.0, 1.0], [0.0, 0.0]), products=False)


def assert_equal_to_plain(plain, *, products):
    graph = mixed_batch()
    # in float32 too: the plain network's own rounding is up to 5e-5 here
    expected = derivatives_of(set_precision(plain, torch.float64), graph)
    # compiled as users' are in the precision that training has by default, quickly in the other,
    # in which test_sanitizers.py records and test_threads.py repeats what optimised kernels do
    for dtype, tolerance, flags in (
        (torch.float64, 1e-12, options("-O0")),
        (torch.float32, 2e-5, ""),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(MORE_FLAGS, flags)
            fused = fuse(set_precision(copy.deepcopy(plain), dtype))
        assert all(
            isinstance(getattr(layer, f"sum_{k}"), FusedConvolution)
            for k, layer in enumerate(fused.layers)
        )
        if products:
            assert all(
                isinstance(getattr(layer, f"products_{k}"), FusedProduct)
                for k, layer in enumerate(fused.layers)
            )
        assert list(fused.state_dict()) == list(plain.state_dict())
        for a, b in zip(expected, derivatives_of(fused, graph), strict=True):
            assert (a - b).abs().max() <= tolerance * a.abs().max()


class Contracted(nn.Module):
    """A contraction of three channels, of two species."""

    def __init__(self, correlation):
        super().__init__()
        irreps = o3.Irreps("3x0e+3x1o+3x2e"), o3.Irreps("3x0e+3x1o")
        self.contraction = Contraction(*irreps, correlation, 2)


@pytest.mark.parametrize("correlation", [1, 3])
def test_contractions_are_twice_differentiable(correlation):
    torch.manual_seed(0)
    model = Contracted(correlation).double()
    x = torch.randn(3, 27, dtype=torch.float64, requires_grad=True)
    species = torch.tensor([1, 0, 1])
    expected = model.contraction(x, species)
    fused = fuse(copy.deepcopy(model)).contraction
    assert isinstance(fused, FusedContraction)
    assert (fused(x, species) - expected).abs().max() < 1e-12 * expected.abs().max()

    def of(x, weight):
        fused._parameters["weight"] = weight
        return fused(x, species)

    weight = fused.weight.detach().clone().requires_grad_()
    few = {"raise_exception": True, "fast_mode": True}
    assert torch.autograd.gradcheck(of, (x, weight), **few)
    assert torch.autograd.gradgradcheck(of, (x, weight), **few)
    with pytest.raises(InputError, match="species"):
        fused(x, species + 1)


def test_networks_of_contractions_equal_plain_ones():
    torch.manual_seed(3)
    config = MACEConfig(cutoff=4.0, num_channels=5, l_max=1, correlation=3, radial_mlp=[8])
    plain = build(config, [8, 14], 20.0, [1.0, 1.0], [0.0, 0.0], None)
    graph = mixed_batch()
    expected = derivatives_of(set_precision(plain, torch.float64), graph)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        fused = fuse(set_precision(copy.deepcopy(plain), dtype))
        assert any(isinstance(part, FusedContraction) for part in fused.modules())
        assert list(fused.state_dict()) == list(plain.state_dict())
        for a, b in zip(expected, derivatives_of(fused, graph), strict=True):
            assert (a - b).abs().max() <= tolerance * a.abs().max()


def test_copies_compute_the_same():
    torch.manual_seed(3)
    config = NequIPConfig(
        cutoff=4.0, num_layers=2, l_max=1, num_channels=[4, 2], product_channels=3
    )
    model = build(config, [8, 14], 20.0, [1.0, 1.0], [0.0, 0.0])
    fused = fuse(set_precision(model, torch.float32))
    graph = mixed_batch()
    twin = copy.deepcopy(fused)
    assert torch.equal(derivatives_of(fused, graph)[2], derivatives_of(twin, graph)[2])


def test_islands_are_the_structures():
    graph = mixed_batch()
    cuts = islands_of(graph.edge_src, graph.edge_dst)
    batch_of_edge = graph.batch[graph.edge_dst]
    starts = torch.nonzero(batch_of_edge.diff()).squeeze(1) + 1
    assert cuts.tolist() == [0, *starts.tolist(), graph.num_edges]
    assert islands_of(cuts[:0], cuts[:0]).tolist() == [0]


def test_threads_do_not_change_the_numbers():
    torch.manual_seed(3)
    config = NequIPConfig(
        cutoff=4.0, num_layers=2, l_max=2, num_channels=[6, 4, 2], product_channels=3
    )
    model = fuse(set_precision(build(config, [8, 14], 20.0, [1.0, 1.0], [0.0, 0.0]), torch.float64))
    graph = mixed_batch()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = derivatives_of(model, graph)
        torch.set_num_threads(2)
        two = derivatives_of(model, graph)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(one, two, strict=True):
        assert (a - b).abs().max() <= 1e-13 * a.abs().max()


def forces_of(model, graph):
    """Forces, strain derivative, and the gradient of a loss of them in every weight."""
    edge_vec = graph.edge_vec.clone().requires_grad_()
    with pairs_of(model, graph):
        energies = model(graph.species, edge_vec, graph.edge_src, graph.edge_dst, graph.num_atoms)
        gradient = derivatives.edge_gradient(energies, edge_vec, differentiable=True)
    forces = derivatives.forces(gradient, graph.edge_src, graph.edge_dst, graph.num_atoms)
    strain = derivatives.strain_derivative(
        gradient, graph.edge_vec, graph.batch[graph.edge_dst], graph.num_graphs
    )
    model.zero_grad()
    (forces.pow(2).sum() + strain.pow(2).sum() + energies.pow(2).sum()).backward()
    weights = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return energies.detach(), forces.detach(), strain.detach(), weights


def test_radial_networks_once_per_pair_change_nothing():
    torch.manual_seed(3)
    config = NequIPConfig(
        product_channels=0, cutoff=4.0, num_layers=3, l_max=2, num_channels=[6, 4, 2]
    )
    plain = build(config, [8, 14], 20.0, [1.0, 1.0], [0.0, 0.0])
    set_precision(plain, torch.float64)
    fused = fuse(copy.deepcopy(plain))
    rows = []
    network = fused.layers[1].r_1
    network.register_forward_hook(lambda _, __, out: rows.append(len(out)))
    graph = mixed_batch()
    results = forces_of(fused, graph)
    assert rows == [graph.num_edges // 2]
    for a, b in zip(forces_of(plain, graph), results, strict=True):
        assert (a - b).abs().max() <= 1e-12 * a.abs().max()
    derivatives_of(fused, graph)  # without pairs again
    assert rows[-1] == graph.num_edges


def test_copies_have_pairs_of_their_own():
    torch.manual_seed(3)
    config = NequIPConfig(
        product_channels=0, cutoff=4.0, num_layers=2, l_max=1, num_channels=[4, 2]
    )
    fused = fuse(build(config, [8, 14], 20.0, [1.0, 1.0], [0.0, 0.0]))
    twin = copy.deepcopy(fused)
    assert list(twin.state_dict()) == list(fused.state_dict())
    graph = mixed_batch()
    with pairs_of(twin, graph):
        assert twin.layers[0].r_0._pairing is twin.fused.pairing
        assert twin.fused.pairing.first is not None
        assert fused.fused.pairing.first is None
