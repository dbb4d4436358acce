"""Edge frames and convolutions in them: exact in every direction, and Clebsch-Gordan products."""

import math

import pytest
import torch
from e3nn import o3
from scipy.spatial.transform import Rotation

from eqcalc.contract import set_precision
from eqcalc.nn.attention import Attention
from eqcalc.nn.convolution import Convolution, reached_irreps
from eqcalc.nn.frames import EdgeFrames, frame_sizes, orders_of_rows, wigner_of_rotations
from eqcalc.nn.gate import Gate
from eqcalc.nn.layer_norm import LayerNorm
from eqcalc.nn.linear import SpeciesLinear
from eqcalc.nn.so2 import FrameGate, FrameSum, FromFrames, Modulation, SO2Linear, ToFrames
from eqcalc.nn.sphere import FrameSphereActivation, SphereActivation

AXES = torch.cat([torch.eye(3), -torch.eye(3)]).double()


def natural(mul, l_max):
    return o3.Irreps([(mul, (l, (-1) ** l)) for l in range(l_max + 1)])  # noqa: E741


def directions():
    """Exactly along the axes, 1e-9 beside them, across the plane of two charts, and anywhere."""
    generator = torch.Generator().manual_seed(0)
    beside = [AXES + 1e-9 * torch.roll(torch.eye(3).double(), k, 0).repeat(2, 1) for k in (1, 2)]
    seam = torch.randn(8, 3, dtype=torch.float64, generator=generator)
    seam[:4, 1], seam[4:, 1] = 0.0, -1e-300
    anywhere = torch.randn(40, 3, dtype=torch.float64, generator=generator)
    return torch.cat([AXES, *beside, seam, anywhere])


def matrices(frames, l_max, m_max):
    """One by one, [E, rows, 2l + 1]."""
    sizes = frame_sizes(l_max, m_max)
    parts = frames.split([a * b for a, b in sizes], dim=1)
    return [part.view(-1, *size) for part, size in zip(parts, sizes, strict=True)]


@pytest.mark.parametrize(
    ("l_max", "m_max"), [(0, 0), (1, 1), (2, 2), (3, 1), (4, 4), (6, 2), (6, 6)]
)
def test_frames_are_rotations_that_turn_edges_to_the_axis(l_max, m_max):
    n = directions()
    found = matrices(EdgeFrames(l_max, m_max)(n, n.norm(dim=1)), l_max, m_max)
    whole = matrices(
        EdgeFrames(max(l_max, 1), max(l_max, 1))(n, n.norm(dim=1)), max(l_max, 1), max(l_max, 1)
    )
    vector = whole[1][:, [1, 0, 2]]  # rows x, y, z: the rotation itself
    assert (torch.linalg.det(vector) - 1.0).abs().max() < 1e-12
    for l, matrix in enumerate(found):  # noqa: E741
        kept = [l + m for m in orders_of_rows(l, m_max)]
        assert (matrix - wigner_of_rotations(l, vector)[:, kept]).abs().max() < 1e-12
        assert (matrix @ matrix.mT - torch.eye(len(kept))).abs().max() < 1e-12
        y = o3.spherical_harmonics(l, n, normalize=True, normalization="component")
        turned = (matrix @ y.unsqueeze(2)).squeeze(2)
        turned[:, 0] -= math.sqrt(2 * l + 1)
        assert turned.abs().max() < 1e-12


def test_wigner_matrices_equal_e3nn():
    angles = torch.rand(3, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotations = o3.angles_to_matrix(*angles)
    usual = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)  # of e3nn's generators
        theirs = [o3.wigner_D(l, *angles) for l in range(7)]  # noqa: E741
    finally:
        torch.set_default_dtype(usual)
    for l in range(7):  # noqa: E741
        assert (wigner_of_rotations(l, rotations) - theirs[l]).abs().max() < 1e-12


class Message(torch.nn.Module):
    """A convolution in frames: modulated, mixed, gated or on the sphere, mixed and summed."""

    def __init__(self, irreps, m_max, nonlinearity=""):
        super().__init__()
        l_max = len(irreps) - 1
        both = o3.Irreps([(2 * mul, ir) for mul, ir in irreps])
        gate = Gate(irreps).irreps_in if nonlinearity == "gate" else irreps
        self.edge_frames = EdgeFrames(l_max, m_max)
        self.to_frames = ToFrames(irreps, m_max, l_max, m_max)
        self.modulation = Modulation(both, m_max)
        self.first = SO2Linear(both, m_max, gate, m_max)
        self.second = SO2Linear(irreps, m_max, irreps, m_max)
        self.sum = FrameSum(irreps, m_max, 1, l_max, m_max)
        self.gate = self.sphere = None
        if nonlinearity == "gate":
            self.gate = FrameGate(irreps, m_max)
        elif nonlinearity == "sphere":
            self.sphere = FrameSphereActivation(irreps, m_max, 14, l_max, m_max)

    def forward(self, x, vec, src, dst):
        length = vec.norm(dim=1)
        frames = self.edge_frames(vec, length)
        y = self.to_frames(x, x, frames, src, dst)
        radial = torch.cos(length.unsqueeze(1) * torch.arange(self.modulation.num_weights) / 9)
        y = self.first(self.modulation(y, radial))
        if self.gate is not None:
            y = self.gate(y)
        if self.sphere is not None:
            y = self.sphere(y, frames)
        return self.sum(self.second(y), torch.exp(-length).unsqueeze(1), frames, dst, len(x))


def edges(vec):
    """Each edge has two atoms of its own: neighbour 2k + 1, centre 2k."""
    k = torch.arange(len(vec))
    return 2 * k + 1, 2 * k


def rotated(irreps, matrix):
    """How a rotation or reflection acts on rows of features, channels innermost."""
    proper = (matrix * torch.linalg.det(matrix)).unsqueeze(0)
    sign = 1.0 if torch.linalg.det(matrix) > 0 else -1.0
    return torch.block_diag(
        *(
            torch.kron(
                wigner_of_rotations(ir.l, proper)[0].contiguous() * (ir.p if sign < 0 else 1),
                torch.eye(mul, dtype=torch.float64),
            )
            for mul, ir in irreps
        )
    )


@pytest.mark.parametrize("nonlinearity", ["", "gate"])
@pytest.mark.parametrize(("l_max", "m_max"), [(1, 1), (3, 2), (6, 2)])
def test_messages_turn_and_are_reflected_with_their_edges(l_max, m_max, nonlinearity):
    torch.manual_seed(1)
    irreps = natural(3, l_max)
    message = set_precision(Message(irreps, m_max, nonlinearity), torch.float64)
    vec = directions()
    x = torch.randn(2 * len(vec), irreps.dim, dtype=torch.float64)
    plain = message(x, vec, *edges(vec))
    proper = torch.from_numpy(Rotation.random(random_state=4).as_matrix())
    for matrix in (proper, -proper, torch.diag(torch.tensor([1.0, -1.0, 1.0])).double()):
        act = rotated(irreps, matrix)
        turned = message(x @ act.T, vec @ matrix.T, *edges(vec))
        assert (turned - plain @ act.T).abs().max() < 1e-12 * plain.abs().max()


@pytest.mark.parametrize("nonlinearity", ["gate", "sphere"])
def test_derivatives_along_every_axis(nonlinearity):
    """At the poles, on the plane where charts meet, 1e-9 beside: finite differences, twice."""
    torch.manual_seed(2)
    irreps = natural(2, 2)
    message = set_precision(Message(irreps, 2, nonlinearity), torch.float64)
    vec = (1.7 * directions()[:26]).requires_grad_()
    x = torch.randn(2 * len(vec), irreps.dim, dtype=torch.float64)
    weights = torch.randn(2 * len(vec), irreps.dim, dtype=torch.float64)

    def energy(vec):
        return (message(x, vec, *edges(vec)) * weights).sum()

    step = 1e-3
    (gradient,) = torch.autograd.grad(energy(vec), vec)
    for axis in range(3):
        for k in (0, 1, 2, 3, 4, 5, 8, 13, 19, 24):
            moved = vec.detach().clone()
            slope = 0.0
            for n, c in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
                moved[k, axis] += n * step
                slope += c * float(energy(moved).detach()) / (12 * step)
                moved[k, axis] -= n * step
            assert abs(slope - float(gradient[k, axis])) < 1e-7
    few = vec.detach()[[0, 1, 2, 3, 4, 5, 8, 18, 22]].requires_grad_()
    x, weights = x[: 2 * len(few)], weights[: 2 * len(few)]
    assert torch.autograd.gradgradcheck(energy, (few,), atol=1e-5, fast_mode=True)


@pytest.mark.parametrize(("l_in", "l_out"), [(1, 1), (2, 2), (3, 2), (1, 4)])
def test_equals_the_clebsch_gordan_convolution(l_in, l_out):
    """Every path (l1, l2 -> l3) mixed by a matrix of its own: W of each |m| follows from them."""
    torch.manual_seed(3)
    irreps_in, irreps_out, l_sh = natural(3, l_in), natural(2, l_out), l_in + l_out
    products = reached_irreps(irreps_in, l_sh, irreps_out)
    full = set_precision(Convolution(irreps_in, l_sh, products), torch.float64)
    mix = set_precision(SpeciesLinear(products, irreps_out), torch.float64)
    l_max, m_max = max(l_in, l_out), min(l_in, l_out)
    linear = set_precision(SO2Linear(irreps_in, m_max, irreps_out, m_max), torch.float64)
    blocks = [torch.zeros(shape, dtype=torch.float64) for shape in linear.shapes]
    first = {}
    parts = mix.weight[0].split([a * 2 for _, _, a, _, _ in mix._blocks])
    for path in full.paths:
        l1, l3, mul = irreps_in[path.block].ir.l, path.ir_out.l, path.mul
        at = first.get(l3, 0)
        first[l3] = at + mul
        matrix = parts[l3].view(-1, 2)[at : at + mul] / math.sqrt(products[l3].mul)
        w3j = o3.wigner_3j(l1, path.l2, l3, dtype=torch.float64)
        for m in range(min(l1, l3) + 1):
            c = w3j[l1 + m, path.l2, l3 + m] * math.sqrt((2 * l3 + 1) * (2 * path.l2 + 1))
            assert abs(w3j[l1 - m, path.l2, l3 - m] - w3j[l1 + m, path.l2, l3 + m]) < 1e-14
            rows, columns = 3 * (l1 - m), 2 * (l3 - m)
            root = math.sqrt(linear.shapes[m][0])
            blocks[m][rows : rows + mul, columns : columns + 2] += c * root * matrix
    with torch.no_grad():
        linear.weight.copy_(torch.cat([block.flatten() for block in blocks]))

    vec = directions()
    src, dst = edges(vec)
    count = 2 * len(vec)
    x = torch.randn(count, irreps_in.dim, dtype=torch.float64)
    u = torch.exp(-vec.norm(dim=1)).unsqueeze(1)
    y = o3.spherical_harmonics(list(range(l_sh + 1)), vec, True, normalization="component")
    sums = full(x, y, u.expand(-1, full.num_weights), src, dst, count)
    expected = mix(sums, torch.empty(0, dtype=torch.int64))

    frames = EdgeFrames(l_max, m_max)(vec, vec.norm(dim=1))
    both = ToFrames(irreps_in, m_max, l_max, m_max)(x, 0 * x, frames, src, dst)
    source = []
    for m, block in enumerate(both):  # the channels of the centre are taken out
        degrees = block.view(*block.shape[:2], l_in + 1 - m, 2, 3)
        source.append(degrees[:, :, :, 0].flatten(2))
    back = FrameSum(irreps_out, m_max, 1, l_max, m_max)
    got = back(linear(source), u, frames, dst, count)
    assert (got - expected).abs().max() < 1e-12 * expected.abs().max()


def test_frames_and_back():
    irreps = natural(4, 4)
    vec = directions()
    frames = EdgeFrames(5, 4)(vec, vec.norm(dim=1))
    x = torch.randn(2 * len(vec), irreps.dim, dtype=torch.float64)
    inside = ToFrames(irreps, 4, 5, 4)(x, x, frames, *edges(vec))
    both = o3.Irreps([(8, ir) for _, ir in irreps])
    src, dst = edges(vec)
    for block, (mul, ir), feats in zip(
        FromFrames(both, 4, 5, 4)(inside, frames),
        irreps,
        x.split([mul * ir.dim for mul, ir in irreps], 1),
        strict=True,
    ):
        pairs = block.view(len(vec), ir.dim, 2, mul)
        rows = feats.view(-1, ir.dim, mul)
        assert (pairs[:, :, 0] - rows[src]).abs().max() < 1e-12
        assert (pairs[:, :, 1] - rows[dst]).abs().max() < 1e-12


@pytest.mark.parametrize(("polar", "error"), [(4, 5e-1), (8, 5e-3), (16, 1e-5), (32, 1e-9)])
def test_activations_on_the_sphere_turn_up_to_the_error_of_their_grid(polar, error):
    torch.manual_seed(0)
    irreps = natural(8, 3)
    activation = SphereActivation(irreps, polar)
    x = torch.randn(5, irreps.dim, dtype=torch.float64)
    act = rotated(irreps, torch.from_numpy(Rotation.random(random_state=2).as_matrix()))
    plain = activation(x)
    found = float((activation(x @ act.T) - plain @ act.T).norm() / plain[:, 8:].norm())
    assert error / 1000 < found < error


@pytest.mark.parametrize("l_max", [1, 2, 3, 4])
def test_the_expansion_on_the_sphere_turns_exactly(l_max):
    """And is the product of two functions: of Y_lm with themselves, Gaunt's coefficients."""
    irreps = natural(4, l_max)
    activation = SphereActivation(irreps, 0)
    x = torch.randn(5, irreps.dim, dtype=torch.float64)
    matrix = torch.from_numpy(Rotation.random(random_state=2).as_matrix())
    for act in (rotated(irreps, matrix), rotated(irreps, -matrix)):
        assert (activation(x @ act.T) - activation(x) @ act.T).abs().max() < 1e-12
    vector = torch.zeros(1, (l_max + 1) ** 2, 1, dtype=torch.float64)
    vector[0, 2] = 1.0  # y: f = sqrt(3) cos / (l_max + 1), f^2 has degrees 0 and 2
    found = SphereActivation(natural(1, l_max), 0).on_rows(vector)[0, :, 0]
    expected = torch.zeros((l_max + 1) ** 2, dtype=torch.float64)
    expected[2] = 0.5
    if l_max > 1:
        expected[6] = 0.25 * 2.0 / math.sqrt(5.0) / (l_max + 1)
    assert (found / math.sqrt(16.0 / 7.0) - expected).abs().max() < 1e-14


def test_activations_on_the_sphere_are_the_same_in_frames():
    irreps = natural(4, 2)
    vec = directions()
    frames = EdgeFrames(2, 2)(vec, vec.norm(dim=1))
    x = torch.randn(2 * len(vec), irreps.dim, dtype=torch.float64)
    both = o3.Irreps([(8, ir) for _, ir in irreps])
    inside = ToFrames(irreps, 2, 2, 2)(x, x, frames, *edges(vec))
    activated = FrameSphereActivation(both, 2, 7, 2, 2)(inside, frames)
    expected = SphereActivation(irreps, 7)(x).split([mul * ir.dim for mul, ir in irreps], 1)
    src, _ = edges(vec)
    for block, (mul, ir), feats in zip(
        FromFrames(both, 2, 2, 2)(activated, frames), irreps, expected, strict=True
    ):
        own = block.view(len(vec), ir.dim, 2, mul)[:, :, 0]
        assert (own - feats.view(-1, ir.dim, mul)[src]).abs().max() < 1e-12


def attention():
    torch.manual_seed(0)
    return set_precision(Attention(2, 5), torch.float64)


def test_attention_shares_and_fades():
    """Below 1 in sum; a neighbour that leaves takes its weight with it; none is fine."""
    module = attention()
    scalars = 30.0 * torch.randn(7, 10, dtype=torch.float64)
    dst = torch.tensor([0, 0, 0, 2, 2, 3, 3])
    u = torch.tensor([1.0, 0.5, 0.2, 1.0, 0.7, 1.0, 0.0], dtype=torch.float64)
    weights = module(scalars, u, dst, 5)
    sums = torch.zeros(5, 2, dtype=torch.float64).index_add(0, dst, weights)
    assert weights.min() >= 0.0
    assert sums.max() < 1.0 + 1e-15
    assert not weights[6].any()
    assert torch.equal(weights[5], module(scalars[:6], u[:6], dst[:6], 4)[5])
    z = (1.676532470331092 * torch.nn.functional.silu(scalars)).view(7, 2, 5)
    share = u.unsqueeze(1) * torch.exp((z * module.weight).sum(2) / math.sqrt(5))
    expected = share[:3] / (1.0 + share[:3].sum(0))
    assert torch.allclose(weights[:3], expected, rtol=1e-12, atol=0.0)


def test_second_derivatives_of_attention_and_normalisation():
    module = attention()
    dst = torch.tensor([0, 0, 0, 2, 2])
    scalars = torch.randn(5, 10, dtype=torch.float64, requires_grad=True)
    u = torch.rand(5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda s, u: module(s, u, dst, 3), (scalars, u))
    norm = set_precision(LayerNorm(natural(2, 1)), torch.float64)
    torch.nn.init.normal_(norm.gains)
    x = torch.randn(3, 8, dtype=torch.float64)
    x[1] = 0.0  # smooth where features vanish
    x[2] *= 1e-9
    assert torch.autograd.gradgradcheck(norm, (x.requires_grad_(),))
    assert not norm(x)[1].any()
