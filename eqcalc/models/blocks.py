"""Parts that networks on edges share: how features come in and what follows their messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from e3nn import o3

from eqcalc.models.config import ModelConfig, Problems
from eqcalc.models.outputs import (
    Features,
    needs_both_parities,
    of_both_parities,
    output_operations,
    wanted_irreps,
)
from eqcalc.nn.gate import gate_input
from eqcalc.program import (
    Add,
    Embedding,
    FrameGate,
    FrameSphere,
    Gate,
    LayerNorm,
    Linear,
    Modulation,
    Operation,
    Output,
    Program,
    Radial,
    Readout,
    SO2Linear,
    Sphere,
    ToFrames,
)


def natural(num_channels: int, l_max: int) -> o3.Irreps:
    """Equally many channels of each degree, natural parity."""
    return o3.Irreps([(num_channels, (l, (-1) ** l)) for l in range(l_max + 1)])  # noqa: E741


def doubled(irreps: o3.Irreps) -> o3.Irreps:
    """Those of two atoms side by side."""
    return o3.Irreps([(2 * mul, ir) for mul, ir in irreps])


@dataclass(frozen=True)
class BlocksConfig(ModelConfig):
    """What networks of blocks have in common; the messages are their own. Lengths in Å.

    Attributes:
        num_layers: the receptive field is num_layers * cutoff.
        l_max: highest degree of features.
        num_channels: of every degree.
        hidden_channels: of every degree of a message between its two maps.
        feed_forward_channels: of every degree between the two maps of an atom by itself.
        nonlinearity: there, of degrees above 0: gates, or the sphere (`eqcalc.nn.sphere`).
        sphere_points: 0: the nonlinearity on the sphere is SiLU's expansion to second order, which
            turns with its argument exactly; otherwise SiLU on a grid of so many points along the
            axis and twice as many around it, which turns with it up to an error: 24 for 1e-6 eV/Å
            with l_max 3.
        readout: hidden width of the readout of the last layer's scalars; 0: it is linear.
    """

    num_layers: int = 3
    l_max: int = 3
    num_channels: int = 32
    hidden_channels: int = 32
    feed_forward_channels: int = 64
    nonlinearity: Literal["gate", "sphere"] = "gate"
    sphere_points: int = 0
    readout: int = 32

    def problems(self) -> Problems:
        return [
            *super().problems(),
            *self.not_positive("num_layers", "num_channels", "hidden_channels"),
            *self.not_positive("feed_forward_channels"),
            *self.negative("l_max", "readout", "sphere_points"),
            (
                0 < self.sphere_points <= self.l_max,
                (
                    f"sphere_points = {self.sphere_points}: it must be above l_max = {self.l_max}, "
                    "or 0 for the expansion of SiLU."
                ),
            ),
        ]

    def program(self) -> Program:
        operations: list[Operation] = [Embedding("x_0", self.num_channels)]
        before = natural(self.num_channels, 0)
        for k in range(self.num_layers):
            last = k + 1 == self.num_layers
            after = natural(self.num_channels, self._last_degree() if last else self.l_max)
            operations.append(LayerNorm(f"n_{k}", f"x_{k}", str(before)))
            operations += self.messages(k, before, after)
            operations += self._after_messages(k, before, after)
            before = after
        normed = Features(f"n_{self.num_layers}", before)
        operations.append(LayerNorm(normed.name, f"x_{self.num_layers}", str(before)))
        if self.energy:
            operations.append(Readout("energies", normed.name, str(before), self.readout))
            operations.append(Output("energy", ("energies",)))
        if needs_both_parities(self.outputs):
            made, normed = of_both_parities(normed, self.outputs, self.num_channels)
            operations += made
        return Program((*operations, *output_operations(self.outputs, [normed], self.readout)))

    def _last_degree(self) -> int:
        """Of features behind the last layer: what outputs are, or are made of."""
        wanted = self.l_max if needs_both_parities(self.outputs) else 0
        return min(self.l_max, max([wanted, *(ir.l for ir in wanted_irreps(self.outputs))]))

    def messages(self, k: int, before: o3.Irreps, after: o3.Irreps) -> list[Operation]:
        """Of the features n_k, up to their scaled sums out_k of irreps `after`."""
        raise NotImplementedError

    def _after_messages(self, k: int, before: o3.Irreps, after: o3.Irreps) -> list[Operation]:
        """x + out, and what an atom makes of it by itself."""
        x, own, y = f"x_{k}", f"own_{k}", f"y_{k}"
        operations: list[Operation] = []
        terms = [f"out_{k}"]
        if k > 0 or not self.exact_isolated_atoms:
            if before == after:
                own = x
            else:
                operations.append(Linear(own, x, str(before), str(after)))
            terms.append(own)
        inner = natural(self.feed_forward_channels, len(after) - 1)
        sphere = self.nonlinearity == "sphere" and len(after) > 1
        wide = inner if sphere else gate_input(inner)
        kind = Sphere(f"act_{k}", f"wide_{k}", str(inner), self.sphere_points)
        return [
            *operations,
            Add(y, tuple(terms), str(after)),
            LayerNorm(f"normed_{k}", y, str(after)),
            Linear(f"wide_{k}", f"normed_{k}", str(after), str(wide)),
            kind if sphere else Gate(f"act_{k}", f"wide_{k}", str(inner)),
            Linear(f"narrow_{k}", f"act_{k}", str(inner), str(after)),
            Add(f"x_{k + 1}", (y, f"narrow_{k}"), str(after)),
        ]


@dataclass(frozen=True)
class AttentionConfig(BlocksConfig):
    """Of blocks whose messages have weights from attention.

    Attributes:
        num_heads: each has weights of its own for an equal share of num_channels.
        attention_channels: scalars from which a head's weights are made.
    """

    hidden_channels: int = 16
    num_heads: int = 4
    attention_channels: int = 8

    def problems(self) -> Problems:
        return [
            *super().problems(),
            *self.not_positive("num_heads", "attention_channels"),
            (
                self.num_heads > 0 and self.num_channels % self.num_heads != 0,
                (
                    f"num_heads = {self.num_heads}: num_channels = {self.num_channels} must be a "
                    "multiple of it."
                ),
            ),
        ]


@dataclass(frozen=True)
class FramesConfig(BlocksConfig):
    """Of blocks whose messages are made in frames of edges.

    Attributes:
        m_max: components of messages with larger |m| about the edge are left out.
    """

    m_max: int = 2

    def problems(self) -> Problems:
        return [*super().problems(), *self.negative("m_max")]

    def order(self, before: o3.Irreps, after: o3.Irreps) -> int:
        """Highest |m| of messages: scalars have 0 alone, before and after."""
        return min(self.m_max, len(before) - 1, len(after) - 1)

    def in_frames(self, k: int, before: o3.Irreps, order: int) -> list[Operation]:
        """Features of both atoms in the edge's frame, times functions of distance: edge_k."""
        both, n = str(doubled(before)), f"n_{k}"
        return [
            ToFrames(f"pair_{k}", n, n, str(before), order, both),
            Radial(f"r_{k}", tuple(self.radial_mlp)),
            Modulation(f"edge_{k}", f"pair_{k}", f"r_{k}", order, both),
        ]

    def hidden(self, k: int, before: o3.Irreps, order: int, *, sphere: bool) -> list[Operation]:
        """Mixed and through a nonlinearity, gates or the sphere: act_edge_k."""
        inner = natural(self.hidden_channels, self.l_max)
        wide = str(inner if sphere else gate_input(inner))
        both, source, act = str(doubled(before)), f"hidden_{k}", f"act_edge_{k}"
        kind = FrameSphere(act, source, order, self.sphere_points, str(inner))
        return [
            SO2Linear(source, f"edge_{k}", both, order, order, wide),
            kind if sphere else FrameGate(act, source, order, str(inner)),
        ]
