"""Linear maps, gates and radial networks of training in C++ against the plain ones."""

import copy

import pytest
import torch
from e3nn import o3
from torch.autograd import gradcheck, gradgradcheck

from eqcalc.contract import set_precision
from eqcalc.engine.dense import FusedGate, FusedLinear, FusedRadial, Passes, open_library
from eqcalc.errors import InputError
from eqcalc.models.nequip import NequIPConfig
from eqcalc.models.registry import build
from eqcalc.nn.gate import Gate
from eqcalc.nn.linear import SpeciesLinear
from eqcalc.nn.radial import RadialNetwork
from eqcalc.training.muon import Muon

# whole vectors and rests of them; one row and many; an irrep that the input lacks, one that the
# output lacks
MAPS = [
    ("16x0e+16x1o", "16x0e+16x1o", 1),
    ("33x0e+7x1o+50x2e", "70x0e+5x1o+3x2e", 1),
    ("5x0e+3x1o", "4x0e+2x1o+3x2e", 3),
    ("5x0e+3x1o+2x2e", "49x0e+1x2e", 2),
]


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=["float32", "float64"])
def kernels(request):
    """Precision and the library made for it."""
    return request.param, open_library("float" if request.param == torch.float32 else "double")


def both(plain, fused, *arguments):
    """Values, first and second derivatives in all inputs and weights, of either module."""
    found = []
    for module in (plain, fused):
        x, *rest = arguments
        x = x.clone().requires_grad_()
        y = module(x, *rest)
        torch.manual_seed(1)
        inputs = [x, *module.parameters()]
        first = torch.autograd.grad((y * torch.randn_like(y)).sum(), inputs, create_graph=True)
        scalar = sum((g * torch.randn_like(g)).sum() for g in first)
        second = torch.autograd.grad(scalar, inputs, allow_unused=True)
        found.append([y, *first, *(s for s in second if s is not None)])
    return zip(*found, strict=True)


def agree(pairs, dtype):
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for a, b in pairs:
        assert a.shape == b.shape
        assert (a - b).abs().max() <= tolerance * max(1.0, float(a.detach().abs().max()))


@pytest.mark.parametrize(("irreps_in", "irreps_out", "species"), MAPS)
@pytest.mark.parametrize("atoms", [1, 19, 500])
def test_linear_maps(kernels, irreps_in, irreps_out, species, atoms):
    dtype, library = kernels
    torch.manual_seed(0)
    plain = SpeciesLinear(o3.Irreps(irreps_in), o3.Irreps(irreps_out), species).to(dtype)
    fused = FusedLinear(plain, library, Passes())
    x = torch.randn(atoms, o3.Irreps(irreps_in).dim, dtype=dtype)
    agree(both(plain, fused, x, torch.arange(atoms) * 7 % species), dtype)


def test_no_atoms(kernels):
    dtype, library = kernels
    irreps = o3.Irreps("3x0e+2x1o")
    fused = FusedLinear(SpeciesLinear(irreps, irreps, 2).to(dtype), library, Passes())
    x = torch.zeros(0, irreps.dim, dtype=dtype, requires_grad=True)
    y = fused(x, torch.zeros(0, dtype=torch.int64))
    assert y.shape == (0, irreps.dim)
    (dw,) = torch.autograd.grad(y.sum(), fused.weight)
    assert dw.shape == fused.weight.shape
    assert not dw.any()


@pytest.mark.parametrize("irreps", ["20x0e", "9x0e+3x1o+2x2e", "16x0e+5x0o+16x1o+2x1e"])
def test_gates(kernels, irreps):
    dtype, library = kernels
    torch.manual_seed(0)
    plain = Gate(o3.Irreps(irreps))
    fused = FusedGate(plain, library)
    agree(both(plain, fused, 3.0 * torch.randn(7, plain.irreps_in.dim, dtype=dtype)), dtype)


def test_gates_far_from_zero(kernels):
    """Where exponentials over- and underflow."""
    dtype, library = kernels
    plain = Gate(o3.Irreps("4x0e+4x0o+4x1o"))
    fused = FusedGate(plain, library)
    x = torch.linspace(-2000.0, 2000.0, plain.irreps_in.dim, dtype=dtype).unsqueeze(0)
    for a, b in both(plain, fused, x):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-30)
        assert b.isfinite().all()


@pytest.mark.parametrize("widths", [[8, 3], [8, 64, 33], [5, 17, 16, 40]])
def test_radial_networks(kernels, widths):
    dtype, library = kernels
    torch.manual_seed(0)
    plain = RadialNetwork(widths).to(dtype)
    fused = FusedRadial(plain, library, Passes())
    agree(both(plain, fused, torch.randn(37, widths[0], dtype=dtype)), dtype)


def test_second_derivatives_by_finite_differences():
    library = open_library("double")
    torch.manual_seed(0)
    irreps_in, irreps_out = o3.Irreps("3x0e+2x1o"), o3.Irreps("2x0e+3x1o")
    linear = FusedLinear(SpeciesLinear(irreps_in, irreps_out, 2).double(), library, Passes())
    gate = FusedGate(Gate(o3.Irreps("2x0e+1x0o+2x1o")), library)
    species = torch.tensor([1, 0, 1, 1])
    x = torch.randn(4, irreps_in.dim, dtype=torch.float64, requires_grad=True)

    def mapped(x, weight):
        return torch.func.functional_call(linear, {"weight": weight}, (x, species))

    assert gradcheck(mapped, (x, linear.weight))
    assert gradgradcheck(mapped, (x, linear.weight))
    z = torch.randn(3, gate.irreps_in.dim, dtype=torch.float64, requires_grad=True)
    assert gradcheck(gate, (z,))
    assert gradgradcheck(gate, (z,))


def test_passes_without_weights_leave_out_weights_alone(kernels):
    dtype, library = kernels
    irreps = o3.Irreps("3x0e+2x1o")
    passes = Passes()
    fused = FusedLinear(SpeciesLinear(irreps, irreps).to(dtype), library, passes)
    x = torch.randn(5, irreps.dim, dtype=dtype, requires_grad=True)
    y = fused(x, torch.empty(0, dtype=torch.int64)).square().sum()
    whole = torch.autograd.grad(y, (x, fused.weight), retain_graph=True)
    with passes.without_weights():
        dx, dw = torch.autograd.grad(y, (x, fused.weight), retain_graph=True, allow_unused=True)
    assert torch.equal(dx, whole[0])
    assert dw is None
    assert torch.equal(torch.autograd.grad(y, fused.weight)[0], whole[1])


def test_threads_do_not_change_the_numbers(kernels):
    dtype, library = kernels
    torch.manual_seed(0)
    irreps = o3.Irreps("64x0e+40x1o+33x2e")
    fused = FusedLinear(SpeciesLinear(irreps, irreps, 2).to(dtype), library, Passes())
    x = torch.randn(300, irreps.dim, dtype=dtype)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            pairs = both(fused, fused, x, torch.arange(300) % 2)
            found.append([a for a, _ in pairs])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_tensors_that_c_cannot_read_are_refused(kernels):
    dtype, library = kernels
    other = torch.float64 if dtype == torch.float32 else torch.float32
    irreps = o3.Irreps("3x0e+2x1o")
    linear = FusedLinear(SpeciesLinear(irreps, irreps, 2).to(dtype), library, Passes())
    gate = FusedGate(Gate(o3.Irreps("4x0e")), library)
    x, species = torch.randn(5, irreps.dim, dtype=dtype), torch.arange(5) % 2
    with pytest.raises(ValueError, match=f"{other} came where {dtype} or int64"):
        linear(x.to(other), species)
    with pytest.raises(ValueError, match="int32 came where"):
        linear(x, species.int())
    for wrong in (lambda: linear(x[:, 1:], species), lambda: linear(x, species[1:])):
        with pytest.raises(ValueError, match=r"came where .* is needed"):
            wrong()
    with pytest.raises(ValueError, match=r"came where .* is needed"):
        gate(torch.zeros(2, 3, dtype=dtype))
    with pytest.raises(InputError, match="not one of the model's"):
        linear(x, species + 1)
    strided = x.repeat_interleave(2, dim=1)[:, ::2]
    assert torch.equal(
        linear(strided, torch.repeat_interleave(species, 2)[::2]), linear(x, species)
    )


def test_out_of_memory_in_a_thread_is_said(kernels):
    """More rows than any machine has memory for, found out by one of several threads."""
    dtype, library = kernels
    irreps = o3.Irreps("3x0e+2x1o")
    linear = FusedLinear(SpeciesLinear(irreps, irreps).to(dtype), library, Passes())
    x = torch.randn(5, irreps.dim, dtype=dtype)
    linear._kernels.constants[1][1, 1] = 2**50
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(InputError, match="Out of memory in training: use smaller batches"):
            linear(x, torch.empty(0, dtype=torch.int64))
    finally:
        torch.set_num_threads(before)


def test_compiled_muon_takes_the_plain_steps(kernels):
    """Momentum, decay and direction, of matrices wide, tall, square and smaller than a vector."""
    dtype, library = kernels
    torch.manual_seed(2)
    config = NequIPConfig(
        num_layers=2, l_max=2, num_channels=[33, 20, 5], radial_mlp=[12], product_channels=7
    )
    plain = set_precision(build(config, [8, 14], 10.0, [1.0] * 2, [0.0] * 2), dtype)
    compiled = copy.deepcopy(plain)
    start = copy.deepcopy(plain)
    optimizers = Muon(plain, 0.02, 0.1), Muon(compiled, 0.02, 0.1, library=library)
    for _ in range(4):
        for p, q in zip(plain.parameters(), compiled.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    # five quintics raise rounding errors of small singular values by up to 3.4^5
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    moved = zip(plain.parameters(), compiled.parameters(), start.parameters(), strict=True)
    for p, q, was in moved:
        if p.numel():
            assert (p - was).norm() > 0.0
            assert (p - q).norm() <= tolerance * (p - was).norm()
    state = [o.state_dict()["state"] for o in optimizers]
    assert state[0].keys() == state[1].keys()
