"""SevenNet checkpoints (Park et al., J. Chem. Theory Comput. 20, 4857 (2024)), by file content.

Their network is NequIP's with parity ignored, SiLU gates and a linear readout; a multi-task one
adds, for the task, constants to even scalars (Kim et al., J. Am. Chem. Soc. 147, 1042 (2025)).
"""

from __future__ import annotations

from typing import Any

import torch
from e3nn import o3

from eqcalc.errors import InputError
from eqcalc.importers.interactions import Interaction, interactions
from eqcalc.importers.weights import (
    E3NN_SILU,
    E3NN_TANH,
    OUR_SILU,
    OUR_TANH,
    Weights,
    fill_linear,
    fill_radial,
    linear_blocks,
    wigner_signs,
)
from eqcalc.models.assembled import Assembled
from eqcalc.models.nequip import NequIPConfig, target_irreps
from eqcalc.models.registry import build
from eqcalc.nn.convolution import Coupling, allowed_paths

CITATION = "Park et al., J. Chem. Theory Comput. 20, 4857 (2024), doi:10.1021/acs.jctc.4c00190"

#: options with the values that are covered; others of the network are read below
COVERED = {
    "_model_type": ("E3_equivariant_model",),
    "interaction_type": ("nequip",),
    "self_connection_type": ("linear", "nequip"),
    "act_radial": ("silu",),
    "lmax_edge": (-1,),
    "lmax_node": (-1,),
    "use_bias_in_linear": (False,),
    "readout_as_fcn": (False,),
    "_normalize_sph": (True, False),
    "use_modal_node_embedding": (False,),
}
READ = {
    *("act_gate", "act_scalar", "_type_map", "irreps_manual", "channel", "lmax", "is_parity"),
    *("radial_basis", "cutoff_function", "cutoff", "num_convolution_layer"),
    *("weight_nn_hidden_neurons", "version", "_modal_map", "use_modality", "default_modal"),
    *("use_modal_self_inter_intro", "use_modal_self_inter_outro", "use_modal_output_block"),
}
#: options of the training, or that repeat what the weights say
IGNORED = {
    *("chemical_species", "_chemical_species_by_atomic_number", "_number_of_species"),
    *("avg_num_neigh", "conv_denominator", "shift", "scale", "train_shift_scale"),
    *("train_avg_num_neigh", "train_denominator", "optimize_by_reduce", "modal_list"),
    *("readout_fcn_hidden_neurons", "readout_fcn_activation", "_number_of_modalities"),
    *("use_modal_wise_shift", "use_modal_wise_scale", "use_species_wise_shift_scale"),
    *("use_weight", "device", "optimizer", "scheduler", "loss", "optim_param", "scheduler_param"),
    *("loss_param", "continue", "random_seed", "epoch", "force_loss_weight", "stress_loss_weight"),
    *("use_testset", "_num_workers", "per_epoch", "_is_trace_stress", "is_train_stress"),
    *("train_shuffle", "error_record", "best_metric", "csv_log", "is_ddp", "local_rank", "rank"),
    *("world_size", "load_dataset_path", "load_validset_path", "load_trainset_path"),
    *("load_testset_path", "save_dataset_path", "dtype", "data_format", "data_format_args"),
    *("format_outputs_for_ase", "save_by_label", "save_by_train_valid", "data_divide_ratio"),
    *("batch_size", "preprocess_num_cores", "data_shuffle", "_data_divided", "dataset_type"),
    *("ddp_backend", "num_workers", "use_cueq", "cuequivariance_config", "use_flash_tp"),
    *("use_oeq", "weight_ema", "_cueq_config"),
    *("compute_statistics", "data_modality", "data_weight"),  # of 0.12, SevenNet-Omni for one
    *("train_shift", "train_scale", "energy_loss_weight", "grad_clip", "model_averaging"),
    *("model_averaging_param", "use_regularization", "regularization_weight"),
    *("regularization_param", "train_by_batch", "compile", "loader_kwargs"),
    *("checkpoint", "reset_optimizer", "reset_scheduler", "reset_epoch", "load_memory_path"),
    *("use_statistic_values_of_checkpoint", "rehearsal", "mem_batch_size", "mem_ratio"),
}

#: names in checkpoints of SevenNet 0.9.1 and before, once blanks are underscores
RENAMED = {
    "EdgeEmbedding.": "edge_embedding.",
    "reducing_nn_input_to_hidden.": "reduce_input_to_hidden.",
    "reducing_nn_hidden_to_energy.": "reduce_hidden_to_energy.",
    ".denumerator": ".denominator",
}


def is_checkpoint(content: Any) -> bool:
    """Whether what `unpickle.load` returned is one."""
    return (
        isinstance(content, dict)
        and isinstance(content.get("config"), dict)
        and "cutoff_function" in content["config"]
        and isinstance(content.get("model_state_dict"), dict)
    )


def _refuse(source: str, name: str, value: Any) -> InputError:
    return InputError(f"{source}: its option {name} = {value!r} is not covered.")


def _check_options(c: dict[str, Any], source: str) -> None:
    for name, value in c.items():
        if name in COVERED:
            if value not in COVERED[name]:
                raise _refuse(source, name, value)
        elif name not in READ | IGNORED and not name.endswith("_cp"):
            raise _refuse(source, name, value)
    for name in ("act_gate", "act_scalar"):
        if c[name] != {"e": "silu", "o": "tanh"}:
            raise _refuse(source, name, c[name])
    if c["radial_basis"].get("radial_basis_name") != "bessel":
        raise _refuse(source, "radial_basis", c["radial_basis"])
    if c["cutoff_function"].get("cutoff_function_name") not in ("XPLOR", "poly_cut"):
        raise _refuse(source, "cutoff_function", c["cutoff_function"])


def _layer_irreps(c: dict[str, Any]) -> list[o3.Irreps]:
    """After each layer, in e3nn's order."""
    if c["irreps_manual"]:
        return [o3.Irreps(text) for text in c["irreps_manual"]][1:]
    parities = (-1, 1) if c["is_parity"] else (1,)
    full = [(c["channel"], (l, p)) for l in range(c["lmax"] + 1) for p in parities]  # noqa: E741
    count = c["num_convolution_layer"]
    return [*([o3.Irreps(full)] * (count - 1)), o3.Irreps([(c["channel"], (0, 1))])]


def _config(c: dict[str, Any], frequencies: list[float], *, tasks: bool) -> NequIPConfig:
    layers = _layer_irreps(c)
    envelope, cutoff = c["cutoff_function"], float(c["cutoff"])
    xplor = envelope["cutoff_function_name"] == "XPLOR"
    num_radial = c["radial_basis"]["bessel_basis_num"]
    by_degree = {ir.l: mul for mul, ir in layers[0]}
    return NequIPConfig(
        cutoff=cutoff,
        num_layers=c["num_convolution_layer"],
        l_max=c["lmax"],
        num_channels=[by_degree.get(l, 1) for l in range(c["lmax"] + 1)],  # noqa: E741
        so3=not c["is_parity"],
        solid_harmonics=not c["_normalize_sph"],
        layer_irreps=[str(irreps) for irreps in layers],
        embedding=o3.Irreps(c["irreps_manual"][0]).dim if c["irreps_manual"] else c["channel"],
        gate_activation="silu",
        species_self_connection=c["self_connection_type"] == "nequip",
        scalar_bias=tasks,
        num_radial=num_radial,
        bessel_frequencies=frequencies,
        radial_scale=2.0 / cutoff / (cutoff * (2.0 / 3.0) ** 0.5),  # 2 / r_c sin(q r) / r
        radial_mlp=list(c["weight_nn_hidden_neurons"]),
        envelope_power=6 if xplor else int(envelope["poly_cut_p_value"]),
        envelope_onset=float(envelope["cutoff_on"]) if xplor else 0.0,
        product_channels=0,
        readout=0,
        core_repulsion=False,
        crowding_limit=False,
    )


def _renamed(name: str) -> str:
    name = name.replace(" ", "_")
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name


def _sorted_paths(version: str) -> bool:
    """Whether columns of radial weights follow the sorted irreps of messages, as from 0.11 on."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return (major, minor) >= (0, 11)


def _is_constant(name: str) -> bool:
    return "_w3j_" in name or name.endswith("output_mask")


class _Task:
    """One task of several, or the only one.

    Its place k is a one-hot vector of even scalars behind the others of some linear maps.
    """

    def __init__(self, c: dict[str, Any], task: str | None, source: str) -> None:
        tasks = dict(c.get("_modal_map") or {}) if c.get("use_modality") else {}
        self.count = len(tasks)
        self.options = c
        if not tasks:
            if task is not None:
                raise InputError(f"{source} has one task: leave out --task {task}.")
            self.name, self.place = None, 0
            return
        if task not in tasks:
            raise InputError(
                f"{source} has the tasks {', '.join(tasks)}: choose one with --task "
                f"{next(iter(tasks))}, or behind the model's name (NAME:{next(iter(tasks))})"
                + (f"; there is no {task}." if task else ".")
            )
        self.name, self.place = task, int(tasks[task])

    def split(
        self, weight: torch.Tensor, irreps_in: o3.Irreps, irreps_out: o3.Irreps, option: str
    ) -> tuple[dict[o3.Irrep, torch.Tensor], torch.Tensor | None]:
        """Matrices by irrep, and the constants that the task adds to even scalars."""
        extended = bool(self.count and self.options.get(option))
        wide = [*irreps_in, *([(self.count, o3.Irrep("0e"))] if extended else [])]
        blocks = linear_blocks(weight, wide, irreps_out)
        by_irrep = {irreps_out[k].ir: m for (i, k), m in blocks.items() if i < len(irreps_in)}
        scalars = next((k for k, (_, ir) in enumerate(irreps_out) if ir == o3.Irrep("0e")), None)
        return by_irrep, blocks[len(irreps_in), scalars][self.place] if extended else None

    def row(self, values: torch.Tensor) -> torch.Tensor:
        """Of a table [species] or [tasks, species]."""
        return values[self.place] if values.dim() == 2 else values


def _own(
    weights: Weights, layer: Interaction, k: int, rows: list[int], of: int
) -> dict[o3.Irrep, torch.Tensor]:
    """Matrices of the self-connection: shared, or [species, in, out]."""
    name, out = f"{k}_self_connection_intro", layer.gate.irreps_in
    if layer.own.num_species == 1 and f"{name}.linear.weight" in weights:
        blocks = linear_blocks(weights.take(f"{name}.linear.weight"), layer.irreps_in, out)
        return {out[n].ir: matrix for (_, n), matrix in blocks.items()}
    flat = weights.take(f"{name}.fc_tensor_product.weight").flatten()
    matrices, at = {}, 0
    for mul, ir in layer.irreps_in:
        for mul_out, other in out:
            if ir == other:
                size = mul * of * mul_out
                cube = flat[at : at + size].view(mul, of, mul_out).permute(1, 0, 2)
                matrices[ir] = cube[rows] / (mul * of) ** 0.5
                at += size
    if at != len(flat):
        raise InputError(f"{weights.source}: '{name}' is not covered.")
    return matrices


def _all_paths(layer: Interaction, options: dict[str, Any], *, last: bool) -> list[Coupling]:
    """Those of the file: into every irrep up to the highest degree that the layer keeps."""
    parities = (1,) if last or not options["is_parity"] else (1, -1)
    degrees = range(layer.irreps_out.lmax + 1)
    into = o3.Irreps([(1, (l, p)) for l in degrees for p in parities])  # noqa: E741
    l_max, so3 = layer.convolution.l_max, not options["is_parity"]
    return allowed_paths(layer.irreps_in, l_max, into, so3=so3)


def _columns(layer: Interaction, paths: list[Coupling], version: str) -> list[int]:
    """Columns of the file's radial weights in the order of ours; `paths` are the file's."""
    places = list(range(len(paths)))
    if _sorted_paths(version):
        places.sort(key=lambda n: paths[n].ir_out)
    starts, at = {}, 0
    for n in places:
        starts[paths[n]] = at
        at += paths[n].mul
    return [starts[path] + n for path in layer.convolution.paths for n in range(path.mul)]


def _fill_layer(
    layer: Interaction,
    weights: Weights,
    k: int,
    task: _Task,
    rows: list[int],
    of: int,
    version: str,
) -> None:
    """k: of the layer; rows: the species kept, of `of`."""
    # after the gates, their features are so many times ours
    ratios = {ir: E3NN_SILU / OUR_SILU if k else 1.0 for _, ir in layer.irreps_in}
    if o3.Irrep("0o") in ratios:
        ratios[o3.Irrep("0o")] = E3NN_TANH / OUR_TANH
    irreps, before = layer.irreps_in, layer.gate.irreps_in
    up, up_bias = task.split(
        weights.take(f"{k}_self_interaction_1.linear.weight"), irreps, irreps,
        "use_modal_self_inter_intro",
    )  # fmt: skip
    every = _all_paths(layer, task.options, last=layer.readout is not None)
    messages = o3.Irreps([(path.mul, path.ir_out) for path in every]).sort().irreps.simplify()
    mix, mix_bias = task.split(
        weights.take(f"{k}_self_interaction_2.linear.weight"), messages, before,
        "use_modal_self_inter_outro",
    )  # fmt: skip
    own = _own(weights, layer, k, rows, of)
    fill_linear(layer.up, {ir: m * ratios[ir] for ir, m in up.items()}, irreps)
    fill_linear(layer.own, {ir: m * ratios[ir] for ir, m in own.items()}, before)
    fill_linear(layer.mix, mix, before)
    with torch.no_grad():
        layer.norm.fill_(1.0 / float(weights.take(f"{k}_convolution.denominator", 1)))
        for module, bias in ((layer.up_bias, up_bias), (layer.gate_bias, mix_bias)):
            if bias is not None:
                module.bias.copy_(bias)
    paths = layer.convolution.paths
    prefix = f"{k}_convolution.convolution._compiled_main_left_right._w3j"
    signs = wigner_signs(
        paths, irreps, lambda *degrees: weights.peek("_".join([prefix, *map(str, degrees)]))
    )
    matrices = [
        weights.take(f"{k}_convolution.weight_nn.layer{n}.weight", len(w) * w.shape[1])
        for n, w in enumerate(layer.radial.weights[:-1])
    ]
    width = len(layer.radial.weights[-1]) * sum(path.mul for path in every)
    of_paths = weights.take(f"{k}_convolution.weight_nn.layer{len(matrices)}.weight", width)
    matrices.append(of_paths[:, _columns(layer, every, version)])
    fill_radial(layer, matrices, list(range(len(paths))), signs)


def convert(
    content: dict[str, Any], source: str, keep: list[int] | None, task: str | None
) -> tuple[Assembled, NequIPConfig, dict[str, Any]]:
    """The network in float64, its options, and what metadata say of its origin.

    Args:
        content: of the checkpoint.
        source: its name, for sentences.
        keep: Z of the elements to keep; None: all.
        task: of a multi-task checkpoint.
    """
    c = {"_normalize_sph": False, "interaction_type": "nequip", **content["config"]}
    _check_options(c, source)
    chosen = _Task(c, task, source)
    named = {_renamed(k): v for k, v in content["model_state_dict"].items()}
    weights = Weights(named, source)
    known = {int(z): int(n) for z, n in c["_type_map"].items()}
    # files with the option `univ` have a place for Z = 0, too
    numbers = sorted([z for z in known if z > 0] if keep is None else keep)
    if not set(numbers) <= set(known):
        from ase.data import chemical_symbols

        lacking = [chemical_symbols[z] for z in numbers if z not in known]
        raise InputError(f"{source} does not know {', '.join(lacking)}.")
    rows, of = [known[z] for z in numbers], len(known)

    frequencies = weights.take("edge_embedding.basis_function.coeffs").tolist()
    config = _config(c, frequencies, tasks=chosen.count > 0)
    scale = chosen.row(weights.take("rescale_atomic_energy.scale"))
    shift = chosen.row(weights.take("rescale_atomic_energy.shift"))
    scale, shift = (x.expand(of) if x.numel() == 1 else x for x in (scale, shift))
    scale, shift = scale[rows], shift[rows]
    last = target_irreps(config)[-1]
    hidden = max(1, c["channel"] // 2)
    v, constant = chosen.split(
        weights.take("reduce_input_to_hidden.linear.weight"), last, o3.Irreps([(hidden, "0e")]),
        "use_modal_output_block",
    )  # fmt: skip
    out = weights.take("reduce_hidden_to_energy.linear.weight", hidden) / hidden**0.5
    if constant is not None:
        shift = shift + scale * float(constant @ out)
    model = build(config, numbers, 1.0, scale.tolist(), shift.tolist()).double()
    table = weights.take("onehot_to_feature_x.linear.weight", of * config.embedding)
    with torch.no_grad():
        model.species_embedding.copy_(table.view(of, -1)[rows] / of**0.5)
        for k, layer in enumerate(interactions(model)):
            _fill_layer(layer, weights, k, chosen, rows, of, str(c["version"]))
        readout = v[o3.Irrep("0e")] @ out * (E3NN_SILU / OUR_SILU)
        interactions(model)[-1].readout.outer.copy_(readout * len(readout) ** 0.5)
    weights.finish(_is_constant)
    origin = {
        "package": "SevenNet",
        "package_version": str(c["version"]),
        "authors": "Y. Park, J. Kim, S. Hwang, S. Han and others, Seoul National University",
        "citation": CITATION,
        **({"task": chosen.name} if chosen.name else {}),
    }
    return model, config, origin
