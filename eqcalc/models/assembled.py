"""The torch module of a `Program`: operation by operation, staged as every potential is.

Each stage is a module of its own class, whose text is written here, so that it can be read, run
eagerly for training, and scripted for the export like any other.
"""

import linecache
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache
from keyword import iskeyword
from typing import Any
from zlib import crc32

import torch
from e3nn import o3
from torch import Tensor, nn

from eqcalc.errors import InputError
from eqcalc.models.base import Edges, Potential
from eqcalc.models.config import ModelConfig
from eqcalc.models.edge_modules import ARGUMENTS, EDGE_MODULES, frame_limits
from eqcalc.nn.angular import SolidHarmonics, SphericalHarmonics
from eqcalc.nn.contraction import Contraction
from eqcalc.nn.convolution import Convolution
from eqcalc.nn.frames import EdgeFrames
from eqcalc.nn.gate import Gate
from eqcalc.nn.layer_norm import LayerNorm
from eqcalc.nn.linear import ScalarBias, SpeciesLinear
from eqcalc.nn.norm_gate import NormGate
from eqcalc.nn.normalization import Density, DensityNormalization, Normalization
from eqcalc.nn.output_constants import OutputConstants, ReferenceOutputs
from eqcalc.nn.product import ChannelProduct
from eqcalc.nn.radial import EdgeRadialNetwork, PairCutoffs, RadialNetwork
from eqcalc.nn.readout import Readout
from eqcalc.nn.reference import PairConstants
from eqcalc.nn.sphere import SphereActivation
from eqcalc.nn.transform import AgnesiTransform
from eqcalc.outputs import refusal
from eqcalc.program import operations as ops
from eqcalc.program.messages import EdgeProduct, InFrames
from eqcalc.program.program import Program, Stage


@dataclass(frozen=True)
class Surroundings:
    """What modules need beside their operation."""

    num_species: int
    num_radial: int
    avg_num_neighbors: float
    program: Program


def _convolution(op: ops.Convolution) -> Convolution:
    module = Convolution(o3.Irreps(op.irreps_in), op.l_max, o3.Irreps(op.irreps), so3=op.so3)
    if module.irreps_out != o3.Irreps(op.irreps):
        raise ValueError(f"{op.name} has {module.irreps_out}, not {op.irreps}")
    return module


def _radial(op: ops.Radial, around: Surroundings) -> RadialNetwork:
    """One weight for each channel of each path of the convolution that reads them."""
    (reader,) = around.program.readers[op.name]
    kind = RadialNetwork if isinstance(reader, ops.Convolution) else EdgeRadialNetwork
    return kind([around.num_radial, *op.hidden, _module(reader, around).num_weights])


def _linear(op: ops.Linear, around: Surroundings) -> SpeciesLinear:
    count = around.num_species if op.by_species else 1
    return SpeciesLinear(o3.Irreps(op.irreps_in), o3.Irreps(op.irreps), count)


def _normalization(op: ops.Normalization, around: Surroundings) -> Normalization:
    kind = DensityNormalization if op.density else Normalization
    return kind(o3.Irreps(op.irreps), around.avg_num_neighbors)


def _contraction(op: ops.Contraction, around: Surroundings) -> Contraction:
    irreps = o3.Irreps(op.irreps_in), o3.Irreps(op.irreps)
    return Contraction(*irreps, op.correlation, around.num_species)


#: the module of an operation, with initial weights; of those on edges see `edge_modules`
MODULES: dict[type[ops.Operation], Callable[[Any, Surroundings], nn.Module]] = {
    ops.Radial: _radial,
    ops.Convolution: lambda op, _: _convolution(op),
    ops.Density: lambda _, around: Density(around.num_radial),
    ops.Normalization: _normalization,
    ops.Linear: _linear,
    ops.Bias: lambda op, _: ScalarBias(o3.Irreps(op.irreps)),
    ops.Contraction: _contraction,
    ops.Product: lambda op, _: ChannelProduct(o3.Irreps(op.irreps_in), o3.Irreps(op.target)),
    ops.Gate: lambda op, _: Gate(o3.Irreps(op.irreps), op.activation),
    ops.NormGate: lambda op, _: NormGate(o3.Irreps(op.irreps)),
    ops.Readout: lambda op, _: Readout(o3.Irreps(op.irreps_in)[0].mul, op.hidden),
    ops.LayerNorm: lambda op, _: LayerNorm(o3.Irreps(op.irreps)),
    ops.Sphere: lambda op, _: SphereActivation(o3.Irreps(op.irreps), op.polar),
}


def _module(op: ops.Operation, around: Surroundings) -> nn.Module:
    if type(op) in EDGE_MODULES:
        return EDGE_MODULES[type(op)](op, *frame_limits(around.program))
    return MODULES[type(op)](op, around)


def harmonics_degree(program: Program) -> int:
    """The highest of the harmonics that its operations read."""
    products = [o for o in program.operations if isinstance(o, ops.Convolution | EdgeProduct)]
    return max((o.l_max for o in products), default=0)


class _Text:
    """The text of a stage's class."""

    def __init__(self, program: Program, stage: Stage) -> None:
        self._stage = stage
        self._all_rows = {*stage.takes, *stage.everywhere}
        self._on_edges = program.on_edges
        self._l_max = harmonics_degree(program)
        made = {op.name for op in stage.operations}
        terms = {
            out.name: [name for name in out.sources if name in made] for out in program.outputs
        }
        self._energies = terms.pop("energy", [])
        self._widths = {
            out.name: o3.Irreps(out.irreps).dim for out in program.outputs if out.name in terms
        }
        self._outputs = terms

    def _rows(self, name: str, reader: str) -> str:
        """A value as an operation reads it: for ghosts too, or for local atoms alone."""
        sliced = name in self._all_rows and reader not in self._all_rows
        return f"{name}[:num_local]" if sliced else name

    def _call(self, op: ops.Operation) -> str:
        if type(op) in ARGUMENTS:
            return f"self.{op.name}({ARGUMENTS[type(op)](op)})"
        source = self._rows(op.inputs[0], op.name) if op.inputs else ""
        species = "species" if op.name in self._all_rows else "species[:num_local]"
        if op.name in self._on_edges:
            species = (
                "edges.species[edges.dst]" if getattr(op, "by_species", False) else "edges.dst"
            )
        arguments = source
        match op:
            case ops.Add():
                return " + ".join(self._rows(name, op.name) for name in op.sources)
            case ops.Radial():
                arguments = "edges.radial"
            case ops.Density():
                arguments = "edges.radial, edges.dst, num_local"
            case ops.Convolution():
                harmonics = "edges.attrs"
                if op.l_max < self._l_max:
                    harmonics += f"[:, :{(op.l_max + 1) ** 2}]"
                edges = f"{harmonics}, {op.radial}, edges.src, edges.dst"
                arguments = f"{op.source}, {edges}, num_local"
            case ops.Normalization():
                arguments = ", ".join([source, "edges.calm", *([op.density] if op.density else [])])
            case ops.Linear() | ops.Contraction():
                arguments = f"{source}, {species}"
        return f"self.{op.name}({arguments})"

    def __str__(self) -> str:
        takes, gives = self._stage.takes, self._stage.gives
        steps = [op for op in self._stage.operations if not isinstance(op, ops.Output)]
        radial = [f"self.{op.name}(basis)" for op in steps if isinstance(op, ops.Radial)]
        body = ["species = edges.species", f"{', '.join(takes)} = node_feats"]
        if len(takes) > 1:
            body[1] += ".split(self.widths_in, dim=1)"
        body += [f"{op.name} = {self._call(op)}" for op in steps]
        energy = "torch.zeros(num_local, dtype=torch.float64, device=node_feats.device)"
        for name in self._energies:
            energy += f" + {name}.to(torch.float64)"
        local = [f"{name}[:num_local]" if name in self._all_rows else name for name in gives]
        features = f"torch.cat([{', '.join(local)}], dim=1)" if len(local) > 1 else "".join(local)
        result = f"return {features or 'node_feats.new_zeros(num_local, 0)'}, {energy}"
        methods = self._method("forward", 2, [*body, result])
        if self._outputs:
            methods = self._method("with_outputs", 3, [*body, f"{result}, {self._rows_made()}"])
            call = "features, energies, _ = self.with_outputs(node_feats, edges, num_local)"
            methods += self._method("forward", 2, [call, "return features, energies"])
        return "\n".join(
            [
                "class Stage(_Stage):",
                "    def radial(self, basis: Tensor) -> Tensor:",
                f"        return torch.cat([{', '.join(radial)}], dim=1)",
                "",
                *methods,
            ]
        )

    @staticmethod
    def _method(name: str, results: int, body: list[str]) -> list[str]:
        return [
            f"    def {name}(",
            "        self, node_feats: Tensor, edges: Edges, num_local: int",
            f"    ) -> tuple[{', '.join(['Tensor'] * results)}]:",
            *(f"        {line}" for line in body),
            "",
        ]

    def _rows_made(self) -> str:
        """What this stage adds to the outputs' rows [num_local, columns of all]."""
        columns = []
        for name, terms in self._outputs.items():
            local = [f"{t}[:num_local]" if t in self._all_rows else t for t in terms]
            zeros = f"node_feats.new_zeros(num_local, {self._widths[name]})"
            columns.append(" + ".join(local) or zeros)
        return f"torch.cat([{', '.join(columns)}], dim=1)"


#: names that the text of a stage uses otherwise
TAKEN = {"self", "torch", "Tensor", "Edges", "node_feats", "edges", "num_local", "species", "basis"}


class _Stage(nn.Module):
    """One layer of the contract in `eqcalc.models.base`; subclasses are written by `_Text`."""

    widths_in: list[int]


@lru_cache(maxsize=64)
def _class_of(text: str) -> type[_Stage]:
    """The class that a text defines, its source at hand for TorchScript."""
    name = f"<stage {crc32(text.encode()):x}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    scope: dict[str, Any] = {
        "__name__": __name__,
        "torch": torch,
        "Tensor": Tensor,
        "Edges": Edges,
        "_Stage": _Stage,
    }
    exec(compile(text, name, "exec"), scope)
    return scope["Stage"]


def _irreps(program: Program, names: tuple[str, ...]) -> o3.Irreps:
    return o3.Irreps("+".join(program.by_name[name].irreps for name in names))


def _stage(program: Program, stage: Stage, around: Surroundings) -> _Stage:
    blank = _Stage()
    for op in stage.operations:
        if op.name in TAKEN or iskeyword(op.name) or hasattr(blank, op.name):
            raise ValueError(f"{op.name!r} cannot name a value: it means something here")
    module = _class_of(str(_Text(program, stage)))()
    module.widths_in = [_irreps(program, (name,)).dim for name in stage.takes]
    module.irreps_out = _irreps(program, stage.gives)
    for op in stage.operations:
        if type(op) in MODULES or type(op) in EDGE_MODULES:
            module.add_module(op.name, _module(op, around))
    return module


class Assembled(Potential):
    """The potential that a program describes.

    Args:
        program: with one embedding.
        config: what every architecture has (`eqcalc.models.config`).
        atomic_numbers: Z of each species.
        avg_num_neighbors: of the training set; messages are divided by its root until `calibrate`.
        scale, shift: eV, one per species (see ReferenceEnergy).
        pair_constants: of the pair potential, if the config has one; None: it is zero.
    """

    def __init__(
        self,
        program: Program,
        config: ModelConfig,
        atomic_numbers: list[int],
        avg_num_neighbors: float,
        scale: list[float],
        shift: list[float],
        pair_constants: PairConstants | None = None,
    ) -> None:
        super().__init__(atomic_numbers, config.cutoff)
        self.program = program
        self.radial_basis = config.radial_basis()
        products = [o for o in program.operations if isinstance(o, ops.Convolution | EdgeProduct)]
        solid = {getattr(product, "solid", False) for product in products}
        if len(solid) > 1:
            raise InputError("All convolutions of a network have solid harmonics, or none has.")
        harmonics = SolidHarmonics if solid == {True} else SphericalHarmonics
        self.spherical_harmonics = harmonics(harmonics_degree(program))
        if any(isinstance(op, InFrames) for op in program.operations):
            self.edge_frames = EdgeFrames(*frame_limits(program))
        transforms = {op.transform for op in program.operations if isinstance(op, ops.Radial)}
        if transforms == {"agnesi"}:
            self.distance_transform = AgnesiTransform(self.atomic_numbers)
        elif transforms == {"pair_cutoffs"}:
            self.pair_cutoffs = PairCutoffs(config.pair_cutoffs_of(atomic_numbers), config.cutoff)
        elif transforms != {""}:
            raise ValueError(f"distances are transformed in one way for all, not {transforms}")
        (embedding,) = (op for op in program.operations if isinstance(op, ops.Embedding))
        num_species = len(atomic_numbers)
        self.species_embedding = nn.Parameter(torch.randn(num_species, embedding.channels))
        around = Surroundings(num_species, config.num_radial, avg_num_neighbors, program)
        self.layers = nn.ModuleList(_stage(program, s, around) for s in program.stages)
        self.exchange_widths = [sum(layer.widths_in) for layer in list(self.layers)[1:]]
        if config.species_correlation > 0.0:
            self.correlate_species(config.species_correlation)
        self.add_pair_terms(config, scale, shift, pair_constants)

    def _made_by(self, *kinds: type[ops.Operation]) -> list[tuple[ops.Operation, nn.Module]]:
        """Operations of these kinds with their modules."""
        modules = {name: module for layer in self.layers for name, module in layer.named_children()}
        return [(op, modules[op.name]) for op in self.program.operations if isinstance(op, kinds)]

    def species_tables(self) -> list[nn.Parameter]:
        tables = [
            module.weight
            for op, module in self._made_by(ops.Linear, ops.Contraction)
            if isinstance(op, ops.Contraction) or op.by_species
        ]
        return [self.species_embedding, *tables]

    @staticmethod
    def _norms(layer: nn.Module) -> list[Normalization]:
        return [module for module in layer.children() if isinstance(module, Normalization)]

    def message_scales(self) -> list[list[float]]:
        return [[s for norm in self._norms(layer) for s in norm.scales()] for layer in self.layers]

    def set_message_scales(self, scales: list[list[float]]) -> None:
        for layer, values in zip(self.layers, scales, strict=True):
            left = list(values)
            for norm in self._norms(layer):
                norm.set_scales(left[: len(norm.widths)])
                del left[: len(norm.widths)]

    def message_sizes(
        self, layer: nn.Module, node_feats: Tensor, edges: Edges, num_local: int
    ) -> list[float]:
        sizes: list[float] = []

        def look(norm: Normalization, args: tuple[Tensor, ...]) -> None:
            parts = args[0].detach().split(norm.widths, dim=1)
            sizes.extend(float(part.square().mean().sqrt()) for part in parts)

        hooks = [norm.register_forward_pre_hook(look) for norm in self._norms(layer)]
        try:
            layer(node_feats, edges, num_local)
        finally:
            for hook in hooks:
                hook.remove()
        return sizes


class WithOutputs(Assembled):
    """A potential with outputs beside the energy, or without an energy; arguments as above.

    Attributes:
        refused_by_lammps: why LAMMPS cannot run it, in the words that follow its name, or empty.
    """

    refused_by_lammps: str

    def __init__(self, program: Program, config: ModelConfig, *rest: Any) -> None:
        super().__init__(program, config, *rest)
        made = [out.name for out in program.outputs if out.name != "energy"]
        self.output_configs = tuple(config.outputs)
        if made != [output.name for output in config.outputs]:
            raise InputError(
                f"The architecture {config.architecture} has no outputs beside the energy: remove "
                "model.outputs, or take nequip."
            )
        self.has_energy = config.energy
        self.refused_by_lammps = refusal(self.output_configs, energy=config.energy)
        self.num_columns = sum(output.dim for output in self.output_configs)
        counts = len(self.atomic_numbers), self.num_columns, len(made)
        self.set_output_constants(OutputConstants.blank(*counts))

    def only_for(self, outputs: Collection[str]) -> list[nn.Parameter]:
        """Parameters that these outputs depend on, and no other output, nor the energy."""
        others = [out.name for out in self.program.outputs if out.name not in outputs]
        needed = {op.name for name in others for op in self.program.reaching(name).operations}
        modules = (pair for layer in self.layers for pair in layer.named_children())
        return [p for name, m in modules if name not in needed for p in m.parameters()]

    def output_constants(self) -> OutputConstants:
        """Scales, shifts and root mean squares of the outputs."""
        return self.reference_outputs.constants()

    def set_output_constants(self, constants: OutputConstants) -> None:
        """Takes what `output_constants` of a network of the same outputs returned."""
        self.reference_outputs = ReferenceOutputs(constants)

    @torch.jit.export
    def outputs(
        self,
        species: Tensor,
        edge_vec: Tensor,
        edge_src: Tensor,
        edge_dst: Tensor,
        num_local: int,
    ) -> tuple[Tensor, Tensor]:
        """Atomic energies [num_local] eV and rows of all outputs [num_local, columns], float64.

        Arguments as of `forward`. Rows are in the irreps and units of the outputs, one behind the
        other; those of outputs per structure are to be summed.
        """
        edges = self.edges(species, edge_vec, edge_src, edge_dst)
        node_feats = self.embed(species)
        energies = torch.zeros(num_local, dtype=torch.float64, device=edge_vec.device)
        rows = energies.new_zeros(num_local, self.num_columns)
        for layer in self.layers:
            node_feats, readout, more = layer.with_outputs(node_feats, edges, num_local)
            energies = energies + readout
            rows = rows + more.to(torch.float64)
        rows = self.reference_outputs(species[:num_local], rows)
        return self.finish(species, edges, energies), rows
