r"""The eSEN of fairchem-core as a potential of ours (Fu et al., arXiv:2502.12147), in torch alone.

It is close to our `esen`, but each layer has parts that no operation of `eqcalc.program` expresses,
so that there is no Program and compiled engines refuse the file:

    x_i  = e(Z_i) + 1/5 sum_j u(r_ij) D^T R0(r_ij, Z_j, Z_i)           degrees l > 0 before layer 1
    y    = x + sum_j u(r_ij) D^T W2 gate( W1 R(r_ij, Z_j, Z_i) D (n_j, n_i) ),   n = norm(x) + s
    x'   = y + W4 gate( W3 norm(y) )
    E_i  = perceptron( norm(x)_0 )

W1 and W2 mix the components m and -m of an edge's frame like complex numbers, (a + i b)(x_m + i
x_-m), which commutes with rotations about the edge but not with reflections: energies of mirror
images differ. Radial networks R read embeddings of both elements beside Gaussians of the distance.
s is a constant of the task, the charge and the spin.

Parameters are called as in its files. Features are [N, (l_max + 1)^2, channels] in a row.
"""

from dataclasses import dataclass

import torch
from e3nn import o3
from torch import Tensor, nn
from torch.nn.functional import silu

from eqcalc.models.base import Edges, Potential
from eqcalc.models.blocks import doubled, natural
from eqcalc.models.config import ModelConfig
from eqcalc.nn.angular import SphericalHarmonics
from eqcalc.nn.frames import EdgeFrames
from eqcalc.nn.radial import polynomial_envelope
from eqcalc.nn.so2 import FrameSum, Modulation, ToFrames

RESCALE = 5.0  # of the first sum over neighbours
EPSILON = 1e-5  # of the mean square in normalisations


@dataclass(frozen=True)
class FairchemESENConfig(ModelConfig):
    """Sizes of its network. Lengths in Å.

    Attributes:
        edge_channels: of the elements' embeddings and of hidden layers of radial networks.
    """

    num_layers: int = 2
    l_max: int = 2
    m_max: int = 2
    num_channels: int = 128
    hidden_channels: int = 128
    edge_channels: int = 128
    architecture: str = "fairchem_esen"
    envelope_power: int = 5
    core_repulsion: bool = False
    crowding_limit: bool = False

    @property
    def irreps(self) -> o3.Irreps:
        """Of an atom."""
        return natural(self.num_channels, self.l_max)


class GaussianBasis(nn.Module):
    """exp(-(r - r_k)^2 / (2 w^2)), centres r_k from 0 to the cutoff, w twice their distance.

    Centres are rounded to float32, as the package has them. forward: r [E] Å -> [E, num_radial].
    """

    cutoff: float

    def __init__(self, cutoff: float, num_radial: int, power: int) -> None:
        super().__init__()
        self.cutoff, self.power = float(cutoff), power
        centres = torch.linspace(0.0, cutoff, num_radial, dtype=torch.float32)
        self.coefficient = -0.5 / (2.0 * (centres[1] - centres[0])).item() ** 2
        self.register_buffer("centres", centres.double())

    def forward(self, r: Tensor) -> Tensor:
        return torch.exp(self.coefficient * (r.unsqueeze(1) - self.centres.to(r.dtype)).square())

    def envelope(self, r: Tensor) -> Tensor:
        """u(r / cutoff) [E]."""
        return polynomial_envelope(r / self.cutoff, self.power)

    def transformed(self, x: Tensor, r: Tensor) -> Tensor:
        """Another distance x [E] in the Gaussians; u is no part of them."""
        return self.forward(x) + 0.0 * r.unsqueeze(1)


class EdgeScalars(nn.Module):
    """What radial networks read: the basis, and embeddings of both elements -> [E, all]."""

    def __init__(self, num_species: int, channels: int) -> None:
        super().__init__()
        self.source = nn.Parameter(torch.randn(num_species, channels))
        self.target = nn.Parameter(torch.randn(num_species, channels))

    def forward(self, edges: Edges) -> Tensor:
        source = self.source[edges.species[edges.src]]
        target = self.target[edges.species[edges.dst]]
        return torch.cat([edges.radial, source, target], dim=1)


class NormedPerceptron(nn.Module):
    """Linear maps with layer normalisation and SiLU between them: [E, widths[0]] -> widths[-1]."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        maps: list[nn.Module] = []
        for n in range(1, len(widths)):
            maps.append(nn.Linear(widths[n - 1], widths[n]))
            if n + 1 < len(widths):
                maps += [nn.LayerNorm(widths[n]), nn.SiLU()]
        self.net = nn.Sequential(*maps)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class ComplexMap(nn.Module):
    """(a + i b)(x_m + i x_-m) over degrees and channels: rows -m, m of [E, 2, K] -> [E, 2, K']."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.fc = nn.Linear(inputs, 2 * outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.fc(x).chunk(2, dim=2)
        return torch.stack([a[:, 0] + b[:, 1], a[:, 1] - b[:, 0]], dim=1)


class ComplexConvolution(nn.Module):
    """All orders: list of [E, 1 or 2, K_m] -> likewise; `extra` scalars come first in m = 0.

    Args:
        inputs, outputs: channels of every degree.
    """

    def __init__(self, l_max: int, m_max: int, inputs: int, outputs: int, extra: int) -> None:
        super().__init__()
        degrees = [l_max + 1 - m for m in range(m_max + 1)]
        self.widths = [n * inputs for n in degrees]
        self.fc_m0 = nn.Linear(self.widths[0], degrees[0] * outputs + extra)
        self.so2_m_conv = nn.ModuleList(ComplexMap(n * inputs, n * outputs) for n in degrees[1:])

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        found = [self.fc_m0(x[0])]
        for m, part in enumerate(self.so2_m_conv):
            found.append(part(x[m + 1]))
        return found


class MeanSquareNorm(nn.Module):
    """Over all degrees, scalars without their mean: [N, (l_max + 1)^2, channels] -> the same."""

    def __init__(self, l_max: int, channels: int) -> None:
        super().__init__()
        self.epsilon = EPSILON
        self.affine_weight = nn.Parameter(torch.ones(l_max + 1, channels))
        self.affine_bias = nn.Parameter(torch.zeros(channels))
        dims = torch.arange(l_max + 1) * 2 + 1
        self.register_buffer("degree", torch.repeat_interleave(torch.arange(l_max + 1), dims))
        share = torch.repeat_interleave(1.0 / (dims.double() * (l_max + 1)), dims)
        self.register_buffer("share", share)

    def forward(self, x: Tensor) -> Tensor:
        own = x[:, :1] - x[:, :1].mean(dim=2, keepdim=True)
        x = torch.cat([own, x[:, 1:]], dim=1)
        square = (x.square().mean(dim=2) * self.share.to(x.dtype)).sum(dim=1)
        x = x * torch.rsqrt(square + self.epsilon).view(-1, 1, 1) * self.affine_weight[self.degree]
        return torch.cat([x[:, :1] + self.affine_bias, x[:, 1:]], dim=1)


class DegreeLinear(nn.Module):
    """A matrix for each degree, a bias for scalars: [N, (l_max + 1)^2, in] -> [..., out]."""

    def __init__(self, l_max: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(l_max + 1, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.dims = [2 * degree + 1 for degree in range(l_max + 1)]

    def forward(self, x: Tensor) -> Tensor:
        found: list[Tensor] = []
        for degree, block in enumerate(x.split(self.dims, dim=1)):
            y = block @ self.weight[degree].T
            found.append(y + self.bias if degree == 0 else y)
        return torch.cat(found, dim=1)


class AtomGates(nn.Module):
    """Two maps with gates between them, [N, (l_max + 1)^2, channels] -> the same."""

    def __init__(self, l_max: int, channels: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.scalar_mlp = nn.Sequential(nn.Linear(channels, l_max * hidden), nn.SiLU())
        self.so3_linear_1 = DegreeLinear(l_max, channels, hidden)
        self.so3_linear_2 = DegreeLinear(l_max, hidden, channels)
        dims = torch.arange(1, l_max + 1) * 2 + 1
        self.register_buffer("gate", torch.repeat_interleave(torch.arange(l_max), dims))

    def forward(self, x: Tensor) -> Tensor:
        gates = torch.sigmoid(self.scalar_mlp(x[:, 0])).view(x.shape[0], -1, self.hidden)
        x = self.so3_linear_1(x)
        x = torch.cat([silu(x[:, :1]), x[:, 1:] * gates[:, self.gate]], dim=1)
        return self.so3_linear_2(x)


class NeighbourDegrees(nn.Module):
    """The stage before the first layer: element embeddings [M, channels] -> features of atoms."""

    def __init__(self, config: FairchemESENConfig, scalars: EdgeScalars, widths: list[int]) -> None:
        super().__init__()
        c = config
        self.irreps_out = c.irreps
        self.scalars = scalars
        self.rad_func = NormedPerceptron([*widths, (c.l_max + 1) * c.num_channels])
        self.sum = FrameSum(c.irreps, 0, 1, c.l_max, c.m_max)
        self.channels, self.rescale = c.num_channels, RESCALE

    def radial(self, basis: Tensor) -> Tensor:
        """None that depend on the distance alone."""
        return basis[:, :0]

    def forward(self, node_feats: Tensor, edges: Edges, num_local: int) -> tuple[Tensor, Tensor]:
        along = [self.rad_func(self.scalars(edges)).unsqueeze(1)]
        weights = edges.envelope.unsqueeze(1) / self.rescale
        x = self.sum(along, weights, edges.frames, edges.dst, num_local)
        own = node_feats[:num_local] + x[:, : self.channels]
        energies = torch.zeros(num_local, dtype=torch.float64, device=x.device)
        return torch.cat([own, x[:, self.channels :]], dim=1), energies


class FrameBlock(nn.Module):
    """A layer."""

    def __init__(self, config: FairchemESENConfig, scalars: EdgeScalars, widths: list[int]) -> None:
        super().__init__()
        c = config
        orders = c.l_max, c.m_max
        self.irreps_out = c.irreps
        self.scalars = scalars
        self.channels, self.hidden = c.num_channels, c.hidden_channels
        self.gates = c.l_max * c.hidden_channels
        self.register_buffer("system", torch.zeros(c.num_channels, dtype=torch.float64))
        self.norm_1 = MeanSquareNorm(c.l_max, c.num_channels)
        self.norm_2 = MeanSquareNorm(c.l_max, c.num_channels)
        self.to_frames = ToFrames(c.irreps, c.m_max, *orders)
        sizes = 2 * c.num_channels, c.hidden_channels
        self.so2_conv_1 = ComplexConvolution(*orders, *sizes, self.gates)
        self.so2_conv_2 = ComplexConvolution(*orders, c.hidden_channels, c.num_channels, 0)
        self.modulation = Modulation(doubled(c.irreps), c.m_max)
        self.rad_func = NormedPerceptron([*widths, self.modulation.num_weights])
        self.sum = FrameSum(c.irreps, c.m_max, 1, *orders)
        self.atom_wise = AtomGates(c.l_max, c.num_channels, c.hidden_channels)

    def radial(self, basis: Tensor) -> Tensor:
        """None that depend on the distance alone."""
        return basis[:, :0]

    def activated(self, x: list[Tensor]) -> list[Tensor]:
        """Scalars through SiLU, other degrees times gates, which come first in m = 0."""
        gates = torch.sigmoid(x[0][:, :, : self.gates])
        own = silu(x[0][:, :, self.gates : self.gates + self.hidden])
        found = [torch.cat([own, x[0][:, :, self.gates + self.hidden :] * gates], dim=2)]
        for m in range(1, len(x)):
            found.append(x[m] * gates[:, :, (m - 1) * self.hidden :])  # noqa: PERF401
        return found

    def after(self, node_feats: Tensor, edges: Edges, num_local: int) -> Tensor:
        """[M, irreps.dim] -> [num_local, (l_max + 1)^2, channels]."""
        x = node_feats.view(node_feats.shape[0], -1, self.channels)
        n = self.norm_1(x)
        n = torch.cat([n[:, :1] + self.system.to(n.dtype), n[:, 1:]], dim=1).flatten(1)
        inside = self.to_frames(n, n, edges.frames, edges.src, edges.dst)
        inside = self.modulation(inside, self.rad_func(self.scalars(edges)))
        inside = self.so2_conv_2(self.activated(self.so2_conv_1(inside)))
        weights = edges.envelope.unsqueeze(1)
        made = self.sum(inside, weights, edges.frames, edges.dst, num_local)
        x = x[:num_local] + made.view(num_local, -1, self.channels)
        return x + self.atom_wise(self.norm_2(x))

    def forward(self, node_feats: Tensor, edges: Edges, num_local: int) -> tuple[Tensor, Tensor]:
        energies = torch.zeros(num_local, dtype=torch.float64, device=node_feats.device)
        return self.after(node_feats, edges, num_local).flatten(1), energies


class LastFrameBlock(FrameBlock):
    """The same, and energies of its scalars."""

    def __init__(self, config: FairchemESENConfig, scalars: EdgeScalars, widths: list[int]) -> None:
        super().__init__(config, scalars, widths)
        channels, hidden = config.num_channels, config.hidden_channels
        self.norm = MeanSquareNorm(config.l_max, channels)
        maps = nn.Linear(channels, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 1)
        self.energy_block = nn.Sequential(maps[0], nn.SiLU(), maps[1], nn.SiLU(), maps[2])

    def forward(self, node_feats: Tensor, edges: Edges, num_local: int) -> tuple[Tensor, Tensor]:
        x = self.after(node_feats, edges, num_local)
        return x.flatten(1), self.energy_block(self.norm(x)[:, 0])[:, 0].to(torch.float64)


class FairchemESEN(Potential):
    """Its network; scale, shift: eV by species (see `eqcalc.nn.reference`)."""

    def __init__(
        self,
        config: FairchemESENConfig,
        atomic_numbers: list[int],
        scale: list[float],
        shift: list[float],
    ) -> None:
        super().__init__(atomic_numbers, config.cutoff)
        c = config
        self.radial_basis = GaussianBasis(c.cutoff, c.num_radial, c.envelope_power)
        self.spherical_harmonics = SphericalHarmonics(0)
        self.edge_frames = EdgeFrames(c.l_max, c.m_max)
        self.species_embedding = nn.Parameter(torch.randn(len(atomic_numbers), c.num_channels))
        scalars = EdgeScalars(len(atomic_numbers), c.edge_channels)
        widths = [c.num_radial + 2 * c.edge_channels, c.edge_channels, c.edge_channels]
        blocks = [FrameBlock(c, scalars, widths) for _ in range(c.num_layers - 1)]
        last = LastFrameBlock(c, scalars, widths)
        self.layers = nn.ModuleList([NeighbourDegrees(c, scalars, widths), *blocks, last])
        self.exchange_widths = [c.irreps.dim] * c.num_layers
        self.add_pair_terms(c, scale, shift, None)
