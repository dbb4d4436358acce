"""NequIP 0.5 and 0.6: TorchScript that nequip-deploy made, and folders of a training.

Both are a configuration, every option of which must be known, and a state dict.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import yaml
from e3nn import o3
from torch import Tensor

from eqcalc.errors import InputError
from eqcalc.importers.modules import Modules
from eqcalc.importers.nequip import Layer, Network, refuse
from eqcalc.importers.weights import E3NN_SILU, Weights, linear_blocks, state_symbols

#: options with the values that are covered
COVERED: dict[str, tuple] = {
    "nonlinearity_type": ("gate",),
    "resnet": (False,),
    "nonlinearity_scalars": ({"e": "silu", "o": "tanh"},),
    # gates are even
    "nonlinearity_gates": ({"e": "silu", "o": "tanh"}, {"e": "silu", "o": "abs"}, {"e": "silu"}),
    "global_rescale_shift": (None,),
    "pair_style": ("ZBL",),
    "units": ("metal",),
    "model_input_fields": ({},),
    "compile_model": (False,),
}
BUILDERS = (
    *("SimpleIrrepsConfig", "EnergyModel", "PerSpeciesRescale", "PairPotentialTerm"),
    *("ForceOutput", "StressForceOutput", "RescaleEnergyEtc"),
    *("initialize_from_state", "load_model_state", "uniform_initialize_FCs"),
)
READ = {
    *("r_max", "num_layers", "l_max", "parity", "num_features", "chemical_embedding_irreps_out"),
    *("feature_irreps_hidden", "irreps_edge_sh", "conv_to_output_hidden_irreps_out"),
    *("num_basis", "invariant_layers", "invariant_neurons", "avg_num_neighbors", "use_sc"),
    *("PolynomialCutoff_p", "model_builders", "type_names", "type_to_chemical_symbol"),
    *("chemical_symbol_to_type", "chemical_symbols", "num_types", "nequip_version"),
}
#: options of the training, or that repeat what the weights say; those that end in _ are prefixes
IGNORED = (
    *("BesselBasis_trainable", "default_dtype", "model_dtype", "allow_tf32", "device", "seed"),
    *("root", "run_name", "append", "verbose", "workdir", "restart", "requeue", "log", "filename"),
    *("dataset", "validation_dataset", "key_mapping", "include_keys", "exclude_keys", "ase_args"),
    *("include_frames", "var_num_neighbors", "learning_rate", "batch_size", "max_epochs"),
    *("train_val_split", "shuffle", "use_ema", "max_gradient_norm", "train_on_keys", "fp16"),
    *("report_init_validation", "model_debug_mode", "equivariance_test", "grad_anomaly_mode"),
    *("gpu_oom_offload", "warn_unused", "wandb", "tensorboard", "e3nn_version", "torch_version"),
    *("torch_runstats_version", "code_commits", "train_idcs", "val_idcs", "parameters", "progress"),
    *("validation_batch_size", "dataloader_num_workers", "cumulative_wall", "kwargs", "restart"),
    *("per_species_rescale_", "global_rescale_scale", "global_rescale_scale_", "_jit_"),
    *("global_rescale_shift_trainable", "initial_model_state", "load_model_state", "final_"),
    *("dataset_", "validation_dataset_", "npz_", "optimizer_", "lr_scheduler_", "early_stopping_"),
    *("loss_", "metrics_", "wandb_", "log_", "save_", "n_train", "n_val", "ema_", "end_of_"),
    *("init_callbacks", "start_of_", "initial_model_state_", "load_model_state_", "n_train_"),
    *("dataloader_", "gmm_"),
)
#: a state dict of theirs has it, behind some prefix
MARK = "chemical_embedding.linear.weight"


class _Loader(yaml.SafeLoader):
    """Python's own tags become nothing."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def configuration(text: str, source: str) -> dict[str, Any]:
    """Of a config.yaml.

    Raises:
        InputError: it is none.
    """
    try:
        config = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise InputError(f"{source}: its configuration is broken: {error}.") from None
    if not isinstance(config, dict):
        raise InputError(f"{source}: its configuration is empty.")
    return config


def is_state(content: Any) -> bool:
    """Whether what `unpickle.load` returned is a state dict of theirs."""
    return isinstance(content, dict) and any(str(k).endswith(MARK) for k in content)


def _ignored(name: str) -> bool:
    return name in IGNORED or any(name.startswith(p) for p in IGNORED if p.endswith("_"))


def _check_options(c: dict[str, Any], source: str, *, old_defaults: bool) -> None:
    softplus = {"e": "ssp", "o": "tanh"}
    names = ("nonlinearity_scalars", "nonlinearity_gates") if old_defaults else ()
    defaults = dict.fromkeys(names, softplus)
    for name, value in {**defaults, **c}.items():
        if name in COVERED:
            if value not in COVERED[name]:
                raise refuse(source, name, value)
        elif name not in READ and not _ignored(name):
            raise refuse(source, name, value)
    builders = [str(b).rpartition(".")[2] for b in c.get("model_builders", [])]
    for builder in c.get("model_builders", []):
        if builder not in BUILDERS and str(builder).removeprefix("nequip.model.") not in BUILDERS:
            raise refuse(source, "model_builders", builder)
    ordered = [b for b in builders if b in ("PerSpeciesRescale", "PairPotentialTerm")]
    if ordered != sorted(ordered, reverse=True):  # the repulsion would be scaled by species
        raise refuse(source, "model_builders", builders)


def _irreps(c: dict[str, Any], source: str) -> dict[str, o3.Irreps]:
    """The four options with irreps, as given or as the simple ones make them."""
    irreps: dict[str, Any] = {}
    if "l_max" in c and "num_features" in c:
        full, mul = bool(c.get("parity", True)), int(c["num_features"])
        degrees = range(int(c["l_max"]) + 1)
        parities = (1, -1) if full else (1,)
        irreps = {
            "chemical_embedding_irreps_out": [(mul, (0, 1))],
            "irreps_edge_sh": o3.Irreps.spherical_harmonics(int(c["l_max"]), p=-1 if full else 1),
            "feature_irreps_hidden": [(mul, (l, p)) for p in parities for l in degrees],  # noqa: E741
            "conv_to_output_hidden_irreps_out": [(max(1, mul // 2), (0, 1))],
        }
    names = ("chemical_embedding_irreps_out", "irreps_edge_sh", "feature_irreps_hidden")
    for name in (*names, "conv_to_output_hidden_irreps_out"):
        if name in c:
            given = c[name]
            whole = isinstance(given, int)
            irreps[name] = o3.Irreps.spherical_harmonics(given) if whole else given
        elif name not in irreps:
            raise InputError(f"{source}: its configuration has no {name}.")
    return {name: o3.Irreps(value) for name, value in irreps.items()}


def _types(c: dict[str, Any], source: str) -> list[str]:
    """Elements in the order of the types."""
    by_type = c.get("type_to_chemical_symbol")
    if by_type:
        return [str(by_type[n]) for n in sorted(by_type, key=int)]
    if c.get("chemical_symbol_to_type"):
        places = c["chemical_symbol_to_type"]
        return sorted(places, key=places.get)
    if "type_names" not in c:
        raise InputError(f"{source}: its configuration does not say which elements it knows.")
    return [str(t) for t in c["type_names"]]


def _scales(weights: Weights, prefix: str, count: int) -> tuple[Tensor, Tensor, float]:
    """Scale and shift by species, and by how much the repulsion is scaled besides."""
    scale, shift = torch.ones(count).double(), torch.zeros(count).double()
    for name in [n for n in ("scales", "shifts") if f"{prefix}per_species_rescale.{n}" in weights]:
        values = weights.take(f"{prefix}per_species_rescale.{name}")
        if values.numel() and name == "scales":
            scale = values.expand(count)
        elif values.numel():
            shift = values.expand(count)
    # RescaleOutput may wrap the model, also more than once
    whole, above = 1.0, prefix.split(".")
    for n in range(len(above)):
        outer = ".".join(above[:n])
        for name in ("scale_by", "shift_by"):
            full = f"{outer}.{name}" if outer else name
            values = weights.take(full) if full in weights else torch.empty(0)
            if values.numel() and name == "scale_by":
                whole *= float(values)
            elif values.numel() and float(values):
                raise refuse(weights.source, "global_rescale_shift", float(values))
    return scale * whole, shift * whole, whole


def _layer(weights: Weights, where: str, hidden: o3.Irreps, norm: Tensor, num_layers: int) -> Layer:
    """The interaction block at `where`, whose radial network has that many layers."""
    radial = []
    for n in range(num_layers):
        w = weights.take(f"{where}.conv.fc.layer{n}.weight")
        radial.append(w / math.sqrt(len(w)) * (E3NN_SILU if n else 1.0))
    own = f"{where}.conv.sc.weight"
    return Layer(
        hidden=hidden,
        up=weights.take(f"{where}.conv.linear_1.weight"),
        mix=weights.take(f"{where}.conv.linear_2.weight"),
        own=weights.take(own) if own in weights else None,
        radial=radial,
        norm=norm,
        symbols=state_symbols(weights, f"{where}.conv.tp"),
    )


def _check_values(found: Modules, c: dict[str, Any], network: Network, source: str) -> None:
    """What TorchScript keeps of its options, against the configuration."""
    expected = {
        "radial_basis.basis.r_max": network.cutoff,
        "radial_basis.basis.prefactor": network.prefactor,
        "radial_basis.cutoff.p": network.power,
        "radial_basis.cutoff._factor": 1.0 / network.cutoff,
        "spharm_edges.sh.normalization": "component",
        "spharm_edges.sh.normalize": True,
        **{f"layer{k}_convnet.resnet": False for k in range(len(network.layers))},
        **{
            f"layer{k}_convnet.conv.avg_num_neighbors": c["avg_num_neighbors"]
            for k in range(len(network.layers))
        },
    }
    for name, value in expected.items():
        if name in found.values and found.values[name] != value:
            raise refuse(source, name, found.values[name])


def read(
    config: dict[str, Any], tensors: dict[str, Tensor], found: Modules | None, source: str
) -> Network:
    """A network.

    Args:
        config: of config.yaml.
        tensors: the state dict.
        found: the tree of modules of TorchScript, if it is that.
        source: name of the file, for sentences.

    Raises:
        InputError: something is not covered.
    """
    mark = next((name for name in tensors if name.endswith(MARK)), None)
    if mark is None:
        raise InputError(
            f"{source} has no weights of NequIP under names of their own, as from freezing or "
            "another architecture: make a file with nequip-deploy of 0.5 or 0.6."
        )
    prefix = mark.removesuffix(MARK)
    version = str(config.get("nequip_version") or "")
    # 0.6 has a GraphModel around it all; without other versions' names, 0.5
    _check_options(config, source, old_defaults=not version or version.startswith("0.5"))
    c = {"num_layers": 3, "invariant_layers": 1, "PolynomialCutoff_p": 6.0, **config}
    if "avg_num_neighbors" not in c or isinstance(c["avg_num_neighbors"], str):
        raise InputError(
            f"{source}: its configuration does not say what avg_num_neighbors is: make a file with "
            "nequip-deploy."
        )
    if float(c["PolynomialCutoff_p"]) % 1.0:
        raise refuse(source, "PolynomialCutoff_p", c["PolynomialCutoff_p"])
    irreps, types = _irreps(c, source), _types(c, source)
    embedding = irreps["chemical_embedding_irreps_out"]
    if any(ir != o3.Irrep("0e") for _, ir in embedding):
        raise refuse(source, "chemical_embedding_irreps_out", str(embedding))
    weights, count, cutoff = Weights(tensors, source), len(types), float(c["r_max"])
    norm = torch.tensor([float(c["avg_num_neighbors"] or 1.0)], dtype=torch.float64).rsqrt()
    hidden = irreps["feature_irreps_hidden"]
    depth = int(c["invariant_layers"]) + 1
    last = irreps["conv_to_output_hidden_irreps_out"]
    scale, shift, whole = _scales(weights, prefix, count)
    network = Network(
        source=source,
        types=types,
        cutoff=cutoff,
        harmonics=irreps["irreps_edge_sh"],
        frequencies=weights.take(f"{prefix}radial_basis.basis.bessel_weights") / cutoff,
        prefactor=2.0 / cutoff,
        power=float(c["PolynomialCutoff_p"]),
        features=weights.take(mark, count * embedding.dim).view(count, -1) / math.sqrt(count),
        attributes=torch.eye(count, dtype=torch.float64),
        layers=[
            _layer(weights, f"{prefix}layer{k}_convnet", hidden, norm, depth)
            for k in range(int(c["num_layers"]))
        ],
        readout=[],
        scale=scale,
        shift=shift,
        core_power=float(c["PolynomialCutoff_p"]),
    )
    out = sum(mul for mul, ir in last if ir == o3.Irrep("0e"))
    network.readout = [
        _readout(weights.take(f"{prefix}conv_to_output_hidden.linear.weight"), hidden, last)
        @ weights.take(f"{prefix}output_hidden_to_scalar.linear.weight", out).view(-1, 1)
        / math.sqrt(out)
    ]
    if f"{prefix}pair_potential._qqr2exesquare" in weights:
        network.coulomb = (
            2.0 * whole * float(weights.take(f"{prefix}pair_potential._qqr2exesquare", 1))
        )
        weights.take(f"{prefix}pair_potential.atomic_numbers", count)
    weights.finish(lambda name: "_w3j_" in name or name.endswith("output_mask"))
    if found is not None:
        _check_values(found.below(prefix.rstrip(".")), c, network, source)
    return network


def _readout(weight: Tensor, hidden: o3.Irreps, out: o3.Irreps) -> Tensor:
    """The matrix [in, out] of even scalars."""
    scalar = o3.Irrep("0e")
    blocks = linear_blocks(weight, [x for x in hidden if x[1] == scalar], out)
    return torch.cat([blocks[k] for k in sorted(blocks)], dim=1)
