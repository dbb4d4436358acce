"""NequIP 0.7 and later: packages of nequip-package, and checkpoints of nequip-train.

A package is a tree of modules, which tells all. A checkpoint is a state dict and the arguments of
the function that built the network; what the modules keep of those is filled in here.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from e3nn import o3
from torch import Tensor

from eqcalc.errors import InputError
from eqcalc.importers.modules import Modules, irreps_of
from eqcalc.importers.nequip import Layer, Network, refuse
from eqcalc.importers.weights import Weights, state_symbols

#: classes of the modules that are covered
KINDS = {
    *("SequentialGraphNetwork", "SphericalHarmonicEdgeAttrs", "SphericalHarmonics"),
    *("EdgeLengthNormalizer", "BesselEdgeLengthEncoding", "PolynomialCutoff", "ApplyFactor"),
    *("NodeTypeEmbed", "Embedding", "ConvNetLayer", "Gate", "_Sortcut", "Extract", "Activation"),
    *("ModuleList", "normalize2mom", "ElementwiseTensorProduct", "InteractionBlock", "Linear"),
    *("TensorProductScatter", "OpenEquivarianceTensorProductScatter", "TensorProduct"),
    *("CuEquivarianceTensorProductScatter", "ScalarMLPFunction", "Sequential", "DeepLinearMLP"),
    *("ScalarLinearLayer", "SiLU", "NoOpGhostExchangeModule", "FullyConnectedTensorProduct"),
    *("ScalarMLP", "PerTypeScaleShift", "ZBL", "_ZBL", "AtomwiseReduce", "ParameterList"),
    *("AvgNumNeighborsNorm", "Identity", "ModuleDict", "RecursiveScriptModule"),
}
#: parts of the energy model
PARTS = re.compile(
    r"type_embed|spharm|edge_norm|bessel_encode|factor|layer\d+_convnet|per_atom_energy_readout"
    r"|per_type_energy_scale_shift|pair_potential|total_energy_sum"
)
#: a network of theirs has it, behind some prefix
MARK = "type_embed.embed_module.weight"
#: functions that build networks
BUILDERS = ("NequIPGNNModel", "NequIPGNNEnergyModel", "FullNequIPGNNModel", "PresetNequIPGNNModel")
#: their arguments with the values that are covered
COVERED: dict[str, tuple] = {
    "convnet_resnet": (False,),
    "convnet_nonlinearity_type": ("gate",),
    "convnet_nonlinearity_scalars": ({"e": "silu", "o": "tanh"},),
    "convnet_nonlinearity_gates": ({"e": "silu", "o": "tanh"},),
    "categorical_graph_field_embed": (None, []),
}
READ = {
    *("_target_", "r_max", "type_names", "num_layers", "l_max", "parity", "num_features"),
    *("radial_mlp_depth", "radial_mlp_width", "feature_irreps_hidden", "irreps_edge_sh"),
    *("readout_mlp_hidden_layers_depth", "readout_mlp_nonlinearity", "polynomial_cutoff_p"),
    *("avg_num_neighbors", "pair_potential", "per_edge_type_cutoff"),
}
#: what weights repeat, or training alone needs
IGNORED = {
    *("seed", "model_dtype", "compile_mode", "type_embed_num_features", "do_derivatives"),
    *("readout_mlp_hidden_layers_width", "num_bessels", "bessel_trainable", "convnet_sc"),
    *("per_type_energy_scales", "per_type_energy_shifts", "learnable_shift"),
    *("per_type_energy_scales_trainable", "per_type_energy_shifts_trainable"),
}


def is_checkpoint(content: Any) -> bool:
    """Whether what `unpickle.load` returned is one of Lightning's."""
    return (
        isinstance(content, dict)
        and isinstance(content.get("state_dict"), dict)
        and isinstance(content.get("hyper_parameters"), dict)
    )


def release(version: Any, source: str) -> tuple[int, int]:
    """Major and minor number.

    Raises:
        InputError: this is no version.
    """
    parts = re.match(r"(\d+)\.(\d+)", str(version))
    if not parts:
        raise InputError(f"{source} does not say which version of NequIP made it.")
    return int(parts[1]), int(parts[2])


def network_of(tree: Modules, source: str) -> Modules:
    """The energy model of a package.

    Raises:
        InputError: there is none, or several.
    """
    marks = [name for name in tree.tensors if name.endswith(MARK)]
    if len(marks) != 1:
        models = len(marks) or "no"
        raise InputError(f"{source} holds {models} NequIP networks: a package of one is covered.")
    return tree.below(marks[0].removesuffix(f".{MARK}"))


def _check_modules(net: Modules, source: str) -> None:
    for path, kind in net.kinds.items():
        if kind not in KINDS or (path and not PARTS.fullmatch(path.partition(".")[0])):
            raise InputError(f"{source}: its module {path} of class {kind} is not covered.")
    expected = {
        ".resnet": (False,),
        ".do_categorical_graph_field_embed": (False,),
        ".bias": (None, False),
        "total_energy_sum.reduce": ("sum",),
        "total_energy_sum.constant": (1.0,),
        "spharm.sh.normalization": ("component",),
        "spharm.sh.normalize": (True,),
    }
    for path, value in net.values.items():
        for end, covered in expected.items():
            if f".{path}".endswith(end) and value not in covered:
                raise refuse(source, path, value)
    gate = re.compile(r"equivariant_nonlin\.act_(scalars|gates)\.acts\.\d+\.f$")
    for path, value in net.values.items():
        if gate.search(path) and getattr(value, "__name__", "") not in ("silu", "tanh"):
            raise refuse(source, path, getattr(value, "__name__", value))


def _alpha(net: Modules, weights: Weights, where: str) -> float:
    """What weights are multiplied by: a buffer in some versions."""
    buffer = f"{where}.alpha"
    return float(weights.take(buffer, 1) if buffer in weights else net.values[buffer])


def _matrices(net: Modules, weights: Weights, where: str) -> list[Tensor]:
    """Of a perceptron without biases whose only nonlinearity, if any, is SiLU."""
    deep = [name for name in net.tensors if re.fullmatch(rf"{where}\.mlp\.weights\.\d+", name)]
    if deep:  # linear
        product = weights.take(deep[0])
        for name in deep[1:]:
            product = product @ weights.take(name)
        return [product * _alpha(net, weights, f"{where}.mlp")]
    matrices = []
    numbers = re.compile(rf"{where}\.mlp\.(\d+)\.weight")
    found = sorted(int(m[1]) for name in net.tensors if (m := numbers.fullmatch(name)))
    for n in found:
        layer = f"{where}.mlp.{n}"
        matrices.append(weights.take(f"{layer}.weight") * _alpha(net, weights, layer))
        between = net.kinds.get(f"{where}.mlp.{n + 1}")
        if n != found[-1] and between != "SiLU":
            raise refuse(weights.source, f"{where}.nonlinearity", between)
    return matrices


def _norm(net: Modules, weights: Weights, where: str, count: int) -> Tensor:
    """What atoms send is multiplied by, [1] or [species], in the ways in which versions keep it."""
    for name in ("avg_num_neighbors_norm.norm_const", "scatter_norm_factor"):
        if f"{where}.{name}" in weights:
            norm = weights.take(f"{where}.{name}").flatten()
            if len(norm) not in (1, count):
                raise refuse(weights.source, "avg_num_neighbors", norm.pow(-2.0).tolist())
            return norm
    factor = net.values.get(f"{where}.scatter_norm_factor")
    if factor is not None:
        return torch.tensor([float(factor)], dtype=torch.float64)
    neighbours = net.values.get(f"{where}.avg_num_neighbors")
    given = 1.0 if neighbours is None else neighbours
    return torch.tensor(given, dtype=torch.float64).view(-1).rsqrt()


def read(net: Modules, types: list[str], source: str) -> Network:
    """The network of a package, or of what `from_checkpoint` made.

    Raises:
        InputError: something is not covered.
    """
    _check_modules(net, source)
    weights, count = Weights(net.tensors, source), len(types)
    cutoff = float(net.values["edge_norm.r_max"])
    inverse = weights.take("edge_norm._rmax_recip")
    if inverse.numel() not in (1, count**2):
        raise refuse(source, "per_edge_type_cutoff", inverse.reciprocal().tolist())
    power = float(net.values["bessel_encode.cutoff.p"])
    embedding = weights.take(MARK)
    layers = []
    while f"layer{len(layers)}_convnet" in net.kinds:
        where = f"layer{len(layers)}_convnet"
        own = f"{where}.conv.sc.weight"
        product = "tp_scatter.tp" if f"{where}.conv.tp_scatter" in net.kinds else "tp"
        layers.append(
            Layer(
                hidden=irreps_of(net.values[f"{where}.feature_irreps_hidden"]),
                up=weights.take(f"{where}.conv.linear_1.weight"),
                mix=weights.take(f"{where}.conv.linear_2.weight"),
                own=weights.take(own) if own in weights else None,
                radial=_matrices(net, weights, f"{where}.conv.edge_mlp"),
                norm=_norm(net, weights, f"{where}.conv", count),
                symbols=state_symbols(weights, f"{where}.conv.{product}", current=True),
            )
        )
    scale, shift = (
        _by_type(weights, f"per_type_energy_scale_shift.{name}", count, default)
        for name, default in (("scales", 1.0), ("shifts", 0.0))
    )
    network = Network(
        source=source,
        types=types,
        cutoff=cutoff,
        harmonics=irreps_of(net.values["spharm.irreps_edge_sh"]),
        frequencies=weights.take("bessel_encode.bessel_weights").flatten() * math.pi / cutoff,
        prefactor=float(net.values["factor.factor"]) * cutoff / math.pi,
        power=power,
        features=embedding,
        attributes=embedding,
        layers=layers,
        readout=_matrices(net, weights, "per_atom_energy_readout.mlp_module"),
        scale=scale,
        shift=shift,
        core_power=float(net.values.get("pair_potential.cutoff.p", power)),
        pair_cutoffs=inverse.reciprocal().view(count, count) if inverse.numel() > 1 else None,
    )
    if "pair_potential" in net.kinds:
        network.coulomb = 2.0 * float(weights.take("pair_potential._qqr2exesquare", 1))
        _check_repulsion(network, weights.take("pair_potential.atomic_numbers", count))
    weights.finish(
        lambda name: "_w3j_" in name or name.endswith(("output_mask", "_tensor_constant"))
    )
    return network


def _by_type(weights: Weights, name: str, count: int, default: float) -> Tensor:
    values = weights.take(name).flatten() if name in weights else torch.empty(0)
    values = values if values.numel() else torch.tensor([default], dtype=torch.float64)
    return values.expand(count)


def _check_repulsion(network: Network, numbers: Tensor) -> None:
    """Raises InputError where the ZBL term is of other units or other elements."""
    from ase.data import atomic_numbers

    if not 14.0 < network.coulomb < 15.0:
        raise refuse(network.source, "pair_potential units", f"e^2/(4 pi eps0) = {network.coulomb}")
    if [atomic_numbers.get(t, 0) for t in network.types] != numbers.to(torch.int64).tolist():
        raise refuse(network.source, "pair_potential chemical_species", numbers.tolist())


def from_checkpoint(content: dict[str, Any], source: str) -> tuple[Modules, list[str]]:
    """The tree of modules of a checkpoint's network, and its types.

    Raises:
        InputError: the checkpoint does not hold all that is needed.
    """
    model = dict(content["hyper_parameters"].get("model") or {})
    target = str(model.get("_target_", "")).rpartition(".")[2]
    if target not in BUILDERS:
        raise InputError(
            f"{source}: a checkpoint whose network is made by {target or 'an unknown function'} "
            "does not hold all that is needed: make a package of it with nequip-package."
        )
    for name, value in model.items():
        if name in COVERED:
            if value not in COVERED[name]:
                raise refuse(source, name, value)
        elif name not in READ | IGNORED:
            raise refuse(source, name, value)
    if target == "PresetNequIPGNNModel" or "preset" in model:
        raise InputError(
            f"{source}: a checkpoint of a preset does not say what that is: make a package of it "
            "with nequip-package."
        )
    state = _averaged(content["state_dict"], model, source)
    tree = network_of(Modules(tensors=state), source)
    versions = (content["hyper_parameters"].get("info_dict") or {}).get("versions") or {}
    _fill_in(tree, model, release(versions.get("nequip"), source), source)
    return tree, [str(t) for t in model["type_names"]]


def _averaged(state: dict[str, Tensor], model: dict[str, Any], source: str) -> dict[str, Tensor]:
    """The state dict with the averaged weights, if the training kept some (EMALightningModule)."""
    start = "ema.ema_weight_"
    averages = sorted(
        (int(name.removeprefix(start)), t) for name, t in state.items() if name.startswith(start)
    )
    state = {k: t for k, t in state.items() if k.startswith("model.") and torch.is_tensor(t)}
    if not averages:
        return state
    constants = [
        *("output_mask", "_rmax_recip", "atomic_numbers", "_qqr2exesquare", "norm_const"),
        *(() if model.get("bessel_trainable") else ("bessel_weights",)),
        *(() if model.get("per_type_energy_scales_trainable") else ("scales",)),
        *(() if model.get("per_type_energy_shifts_trainable") else ("shifts",)),
    ]
    names = [
        k
        for k, t in state.items()
        if t.numel() and not k.endswith(tuple(constants)) and "_w3j_" not in k
    ]
    shapes = [t.shape for _, t in averages]
    if [state[k].shape for k in names] != shapes:
        raise InputError(
            f"{source}: it is not clear which weights its averages belong to: make a package of "
            "it with nequip-package."
        )
    return {**state, **dict(zip(names, (t for _, t in averages), strict=True))}


def _hidden(model: dict[str, Any], version: tuple[int, int]) -> list[o3.Irreps]:
    """Features after each layer, of arguments with defaults as in `version`."""
    if "feature_irreps_hidden" in model:
        return [o3.Irreps(text) for text in model["feature_irreps_hidden"]]
    l_max, full = int(model.get("l_max", 1)), bool(model.get("parity", True))
    muls = model.get("num_features", 32)
    muls = [muls] * (l_max + 1) if isinstance(muls, int) else list(muls)
    degrees = range(l_max + 1)
    if version >= (0, 16):  # without parity, it is the natural one
        pairs = [(l, p) for l in degrees for p in ((1, -1) if full else ((-1) ** l,))]  # noqa: E741
    else:  # without parity, there is none
        pairs = [(l, p) for p in ((1, -1) if full else (1,)) for l in degrees]  # noqa: E741
    inner = o3.Irreps([(muls[l], (l, p)) for l, p in pairs])  # noqa: E741
    last = o3.Irreps([(muls[0], (0, 1))])
    return [inner] * (int(model.get("num_layers", 4)) - 1) + [last]


def _fill_in(tree: Modules, model: dict[str, Any], version: tuple[int, int], source: str) -> None:
    """Values and kinds of modules, as the package's functions would make them."""
    cutoff, hidden = float(model["r_max"]), _hidden(model, version)
    if "irreps_edge_sh" in model:
        given = model["irreps_edge_sh"]
        sh = o3.Irreps.spherical_harmonics(given) if isinstance(given, int) else o3.Irreps(given)
    else:
        natural = version >= (0, 16) or bool(model.get("parity", True))
        sh = o3.Irreps.spherical_harmonics(int(model.get("l_max", 1)), p=-1 if natural else 1)
    power = float(model.get("polynomial_cutoff_p", 6))
    tree.values |= {
        "edge_norm.r_max": cutoff,
        "spharm.irreps_edge_sh": sh,
        "bessel_encode.cutoff.p": power,
        "factor.factor": 2.0 * math.pi / cutoff**2,
    }
    neighbours = model.get("avg_num_neighbors")
    if isinstance(neighbours, dict):
        neighbours = [float(neighbours[str(t)]) for t in model["type_names"]]
    for k, irreps in enumerate(hidden):
        tree.kinds[f"layer{k}_convnet"] = "ConvNetLayer"
        tree.values[f"layer{k}_convnet.feature_irreps_hidden"] = irreps
        tree.values[f"layer{k}_convnet.conv.avg_num_neighbors"] = neighbours
        if any(".conv.tp_scatter." in name for name in tree.tensors):
            tree.kinds[f"layer{k}_convnet.conv.tp_scatter"] = "TensorProductScatter"
        _perceptron(tree, f"layer{k}_convnet.conv.edge_mlp", "silu")
    nonlinearity = model.get("readout_mlp_nonlinearity", "silu")
    _perceptron(tree, "per_atom_energy_readout.mlp_module", nonlinearity)
    pair = model.get("pair_potential")
    if pair is not None:
        if not str(pair.get("_target_", "")).endswith("pair_potential.ZBL"):
            raise refuse(source, "pair_potential", pair.get("_target_"))
        own = 6.0 if version >= (0, 17) else power
        tree.kinds["pair_potential"] = "ZBL"
        tree.values["pair_potential.cutoff.p"] = float(pair.get("polynomial_cutoff_p", own))


def _perceptron(tree: Modules, where: str, nonlinearity: str | None) -> None:
    """What its layers are scaled by, and what is between them."""
    linear = nonlinearity in (None, "None", "null")
    weight = re.compile(rf"{where}\.mlp\.(?:weights\.)?(\d+)(?:\.weight)?$")
    found = sorted((int(m[1]), name) for name in tree.tensors if (m := weight.match(name)))
    product = 1.0
    for n, name in found:
        gain = 1.0 if n == found[0][0] or linear else math.sqrt(2.0)
        alpha = gain / math.sqrt(tree.tensors[name].shape[0])
        product *= alpha
        tree.values[f"{where}.mlp.{n}.alpha"] = alpha
        if n != found[-1][0] and not linear:
            kind = {"silu": "SiLU"}.get(str(nonlinearity), str(nonlinearity))
            tree.kinds[f"{where}.mlp.{n + 1}"] = kind
    tree.values[f"{where}.mlp.alpha"] = product
