"""Convolutions of training on a GPU, which is emulated (emulated.py), against the plain ones."""

import copy

import pytest
import torch
from e3nn import o3
from test_kernels import derivatives_of, mixed_batch
from torch import nn

from eqcalc.contract import set_precision
from eqcalc.engine.cuda import platform
from eqcalc.engine.cuda.training import fuse_convolutions
from eqcalc.engine.training import FusedConvolution, pairs_of
from eqcalc.errors import InputError
from eqcalc.models.mace import MACEConfig
from eqcalc.models.nequip import NequIPConfig
from eqcalc.models.registry import build
from eqcalc.nn.convolution import Convolution
from eqcalc.training import network
from eqcalc.training.options import TrainingConfig

SMALL = {"cutoff": 4.0, "num_layers": 2}

#: numbers of channels that fill no, one and more than one warp
NETWORKS = {
    "nequip": NequIPConfig(product_channels=0, **SMALL, l_max=2, num_channels=[40, 5, 3]),
    "parity": NequIPConfig(product_channels=0, **SMALL, l_max=1, num_channels=[32, 4], parity=True),
    "mace": MACEConfig(**SMALL, l_max=1, num_channels=6, correlation=2),
}

pytestmark = pytest.mark.usefixtures("emulated_gpu")


class Alone(nn.Module):
    """A convolution of l_max 2."""

    def __init__(self) -> None:
        super().__init__()
        irreps = o3.Irreps("3x0e+2x1o+2x2e")
        self.convolution = Convolution(irreps, 2, o3.Irreps("1x0e+1x1o+1x1e+1x2e"))


def test_first_and_second_derivatives_of_all_arguments():
    """Y_0, which a network never changes, among them."""
    torch.manual_seed(1)
    model = Alone().double()
    fused = fuse_convolutions(copy.deepcopy(model)).convolution
    assert isinstance(fused, FusedConvolution)
    src, dst = torch.tensor([2, 1, 0, 2, 3, 1]), torch.tensor([0, 0, 1, 1, 1, 2])

    def of(x, y, weights, convolution=fused):
        return convolution(x, y, weights, src, dst, 3)

    shapes = (4, fused.irreps_in.dim), (6, 9), (6, fused.num_weights)
    arrays = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    expected = of(*arrays, convolution=model.convolution)
    assert (of(*arrays) - expected).abs().max() < 1e-13 * expected.abs().max()
    few = {"raise_exception": True, "fast_mode": True}
    assert torch.autograd.gradcheck(of, arrays, **few)
    assert torch.autograd.gradgradcheck(of, arrays, **few)


@pytest.mark.parametrize("name", NETWORKS)
def test_equal_to_plain_network(name):
    """Energies, forces and the gradient of a loss on both."""
    torch.manual_seed(3)
    plain = build(NETWORKS[name], [8, 14], 20.0, [1.0, 1.0], [0.0, 0.0])
    graph = mixed_batch()
    expected = derivatives_of(set_precision(plain, torch.float64), graph)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        fused = fuse_convolutions(set_precision(copy.deepcopy(plain), dtype))
        assert sum(type(module) is FusedConvolution for module in fused.modules()) == 2
        assert list(fused.state_dict()) == list(plain.state_dict())
        for where in (fused, copy.deepcopy(fused)):
            with pairs_of(where, graph):
                got = derivatives_of(where, graph)
            for a, b in zip(expected, got, strict=True):
                assert (a - b).abs().max() <= tolerance * a.abs().max()


def test_lists_are_made_once_for_a_graph(monkeypatch):
    """Layers share them, and the next graph has its own."""
    sorts = []
    monkeypatch.setattr(
        "eqcalc.engine.cuda.training.torch.argsort",
        lambda *a, argsort=torch.argsort, **k: sorts.append(1) or argsort(*a, **k),
    )
    model = fuse_convolutions(build(NETWORKS["parity"], [8, 14], 20.0, [1.0, 1.0], [0.0, 0.0]))
    graph = mixed_batch()
    for _ in range(2):
        with pairs_of(model, graph):
            model(graph.species, graph.edge_vec, graph.edge_src, graph.edge_dst, graph.num_atoms)
    assert len(sorts) == 2


def test_training_takes_them_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = build(NETWORKS["parity"], [8, 14], 20.0, [1.0, 1.0], [0.0, 0.0])
    plain = network.ready(copy.deepcopy(model), TrainingConfig(fused=False, device="cuda"))
    assert not any(isinstance(module, FusedConvolution) for module in plain.modules())
    fused = network.ready(copy.deepcopy(model), TrainingConfig(device="cuda"))
    assert any(isinstance(module, FusedConvolution) for module in fused.modules())

    def fails(source, architecture):  # noqa: ARG001
        raise InputError("no compiler")

    monkeypatch.setattr(platform.PLATFORM, "image", fails)
    with pytest.warns(UserWarning, match="without compiled kernels.*no compiler"):
        left = network.ready(model, TrainingConfig(device="cuda"))
    assert not any(isinstance(module, FusedConvolution) for module in left.modules())


def test_a_gpu_that_cannot_be_had_is_said(monkeypatch):
    monkeypatch.setenv("EQCALC_EMULATION_TAKEN", "1")
    fused = fuse_convolutions(Alone()).convolution
    src, dst = torch.tensor([1, 0]), torch.tensor([0, 1])
    arrays = (
        torch.randn(2, fused.irreps_in.dim),
        torch.randn(2, 9),
        torch.randn(2, fused.num_weights),
    )
    with pytest.raises(
        InputError, match=r"be opened \(CUDA_ERROR_DEVICE_UNAVAILABLE\): train with"
    ):
        fused(*arrays, src, dst, 2)
