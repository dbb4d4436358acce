"""Checkpoints of fairchem-core 2: its eSEN as `eqcalc.importers.fairchem_network`.

Conservative eSEN (Fu et al., arXiv:2502.12147; eSCNMDBackbone) with gates is covered; what else a
file has, mixtures of experts (UMA) among it, a sentence names. Atoms are neutral; the spin is 1,
as the package has it by default, for the task omol, and not given for others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from ase.data import chemical_symbols
from torch import Tensor

from eqcalc.errors import InputError
from eqcalc.importers.fairchem_network import FairchemESEN, FairchemESENConfig
from eqcalc.importers.unpickle import Stub

CHECKPOINT = "MLIPInferenceCheckpoint"
BACKBONES = "eSCNMDBackbone", "eSCNMDMoeBackbone", "escnmd_backbone", "escnmd_moe_backbone"


def is_checkpoint(content: Any) -> bool:
    """Whether a file's content is what fairchem-core 2 saves for inference."""
    return isinstance(content, Stub) and content.path.rpartition(".")[2] == CHECKPOINT


def _plain(value: Any) -> Any:
    """A node of OmegaConf as what it holds."""
    inside = getattr(value, "__dict__", {}) if isinstance(value, Stub) else {}
    for name in ("_content", "_val"):
        if name in inside:
            return _plain(inside[name])
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _options(content: Stub) -> dict[str, Any]:
    config = _plain(getattr(content, "model_config", {}))
    return config if isinstance(config, dict) else {}


def _weights(content: Stub) -> dict[str, Tensor]:
    """By name, of the averaged network if there is one, in float64."""
    found = getattr(content, "ema_state_dict", None) or getattr(content, "model_state_dict", None)
    found = found if isinstance(found, Mapping) else {}
    return {
        name.removeprefix("module.").removeprefix("module."): w.double()
        for name, w in found.items()
        if isinstance(w, Tensor) and w.is_floating_point()
    }


def _not_covered(backbone: Mapping[str, Any]) -> Iterator[str]:
    """Parts that the network here lacks."""
    if backbone.get("num_experts"):
        yield f"a mixture of {backbone['num_experts']} experts"
    if backbone.get("direct_forces", True):
        yield "forces that are no gradient of the energy (direct_forces)"
    if backbone.get("charge_balanced_channels") or backbone.get("spin_balanced_channels"):
        yield "channels that add up to the charge or the spin of all atoms"
    if backbone.get("ff_type", "grid") == "grid":
        yield "perceptrons on a grid of the sphere (ff_type = grid)"
    if backbone.get("act_type", "gate") != "gate":
        yield f"messages through a grid of the sphere (act_type = {backbone['act_type']})"
    if backbone.get("chg_spin_emb_type") == "lin_emb":
        yield "linear embeddings of charge and spin (chg_spin_emb_type = lin_emb)"
    if backbone.get("norm_type", "rms_norm_sh") != "rms_norm_sh":
        yield f"another normalisation (norm_type = {backbone['norm_type']})"


def _tasks(content: Stub) -> list[dict[str, Any]]:
    """Those of energies."""
    every = _plain(getattr(content, "tasks_config", [])) or []
    return [t for t in every if isinstance(t, dict) and t.get("property") == "energy"]


def _task(content: Stub, name: str, wanted: str | None) -> tuple[str, dict[str, Any]]:
    """The data set that was asked for, or the only one, and its task; without any, an empty one."""
    sets = {str(label): t for t in _tasks(content) for label in t.get("datasets", [])}
    if wanted is None and len(sets) > 1:
        raise InputError(f"{name} has the tasks {', '.join(sets)}: choose one with --task.")
    if wanted is not None and wanted not in sets:
        raise InputError(f"{name} has no task {wanted!r}: it has {', '.join(sets) or 'none'}.")
    label = wanted or next(iter(sets), "")
    return label, sets.get(label, {})


def _energies(task: Mapping[str, Any], name: str) -> tuple[float, list[float]]:
    """What the network's energy is multiplied by, and the energy of each element by Z (eV)."""
    normalizer = task.get("normalizer") or {}
    mean, scale = (
        float(normalizer.get(key, 0.0 if key == "mean" else 1.0)) for key in ("mean", "rmsd")
    )
    if mean:
        raise InputError(f"{name} adds {mean:g} eV to each structure: no potential here does.")
    values = task.get("element_references") or []
    while isinstance(values, Mapping):  # a class and its arguments, by name or in a row
        values = values.get("element_references", values.get("_args_"))
    if values is None:
        raise InputError(f"{name} has reference energies in a form that is not covered.")
    return scale, torch.as_tensor(values, dtype=torch.float64).flatten().tolist()


def _system(weights: Mapping[str, Tensor], backbone: Mapping[str, Any], task: str) -> Tensor:
    """What is added to every atom's scalars: of no charge, of the spin and of the task."""
    parts = []
    for kind, value in (("charge", 0.0), ("spin", 1.0 if task == "omol" else 0.0)):
        place = f"backbone.{kind}_embedding."
        if (w := weights.get(place + "W")) is not None:
            angle = value * w * (2.0 * math.pi)
            part = torch.cat([angle.sin(), angle.cos()])
            parts.append(part * 0.0 if kind == "spin" and value == 0.0 else part)
        else:
            table = weights[place + "rand_emb.weight"]
            parts.append(table[int(value) + (100 if kind == "charge" else 0)])
    if backbone.get("use_dataset_embedding", True):
        named = backbone.get("dataset_mapping") or {}
        place = f"backbone.dataset_embedding.dataset_emb_dict.{named.get(task, task)}.weight"
        if place not in weights:
            raise KeyError(place)
        parts.append(weights[place][0])
    mixed = weights["backbone.mix_csd.weight"] @ torch.cat(parts)
    return torch.nn.functional.silu(mixed + weights["backbone.mix_csd.bias"])


def _head(weights: Mapping[str, Tensor], name: str) -> str:
    """Where the perceptron of the energy is."""
    end = ".energy_block.0.weight"
    found = [key.removesuffix("0.weight") for key in weights if key.endswith(end)]
    if len(found) != 1:
        raise InputError(f"{name} has {len(found)} heads for energies, and one is covered.")
    return found[0]


def _fill(model: FairchemESEN, weights: Mapping[str, Tensor], head: str, system: Tensor) -> None:
    """All parameters, by the names in the file."""
    rows = torch.tensor(model.atomic_numbers)
    of = "backbone."
    model.species_embedding.data = weights[of + "sphere_embedding.weight"][rows] + system
    first, *blocks = model.layers
    first.scalars.source.data = weights[of + "source_embedding.weight"][rows]
    first.scalars.target.data = weights[of + "target_embedding.weight"][rows]
    named = {
        f"rad_func.{key}": of + f"edge_degree_embedding.rad_func.{key}"
        for key, _ in first.rad_func.named_parameters()
    }
    _set(first, named, weights)
    for k, block in enumerate(blocks):
        block.system.copy_(system)
        named = {}
        for key, _ in block.named_parameters():
            within = f"{of}blocks.{k}."
            if key.startswith("energy_block."):
                named[key] = head + key.removeprefix("energy_block.")
            elif key.startswith("norm."):
                named[key] = of + key
            elif key.startswith("rad_func."):
                named[key] = f"{within}edge_wise.so2_conv_1.{key}"
            elif key.startswith("so2_conv_"):
                named[key] = f"{within}edge_wise.{key}"
            elif not key.startswith("scalars."):
                named[key] = within + key
        _set(block, named, weights)


def _set(module: torch.nn.Module, named: Mapping[str, str], weights: Mapping[str, Tensor]) -> None:
    parameters = dict(module.named_parameters())
    for key, source in named.items():
        if source not in weights or weights[source].shape != parameters[key].shape:
            raise KeyError(source)
        parameters[key].data = weights[source].clone()


def convert(
    content: Stub, name: str, keep: list[int] | None, task: str | None
) -> tuple[FairchemESEN, FairchemESENConfig, dict[str, Any]]:
    """The network of a checkpoint, its options and origin.

    Raises:
        InputError: a network or an option that is not covered.
    """
    document = _options(content)
    backbone = document.get("backbone", {})
    kind = str(backbone.get("model", "unknown")).rpartition(".")[2]
    if kind not in BACKBONES:
        raise InputError(f"{name} is a network '{kind}' of fairchem-core: it is not covered.")
    if parts := list(_not_covered(backbone)):
        raise InputError(
            f"{name} is an eSEN of fairchem-core ('{kind}'), which has parts that no network here "
            f"has: {'; '.join(parts)}. Train architecture = 'esen' on frames that it has labelled."
        )
    heads = [head or {} for head in document.get("heads", {}).values()]
    if "mean" in [{**h, **(h.get("head_kwargs") or {})}.get("reduce") for h in heads]:
        raise InputError(f"{name} gives energies per atom (reduce = mean), which is not covered.")
    weights = _weights(content)
    label, chosen = _task(content, name, task)
    scale, shifts = _energies(chosen, name)
    try:
        table = weights["backbone.sphere_embedding.weight"]
        numbers = list(range(1, len(table)))
        if lacking := [chemical_symbols[z] for z in keep or [] if z not in numbers]:
            raise InputError(f"{name} does not know {', '.join(lacking)}.")
        numbers = keep or numbers
        channels = weights["backbone.source_embedding.weight"].shape[1]
        read = weights["backbone.edge_degree_embedding.rad_func.net.0.weight"].shape[1]
        config = FairchemESENConfig(
            cutoff=float(backbone.get("cutoff", 5.0)),
            num_radial=read - 2 * channels,
            num_layers=int(backbone.get("num_layers", 2)),
            l_max=int(backbone.get("lmax", 2)),
            m_max=int(backbone.get("mmax", 2)),
            num_channels=table.shape[1],
            hidden_channels=int(backbone.get("hidden_channels", 128)),
            edge_channels=channels,
        )
        shift = [shifts[z] if z < len(shifts) else 0.0 for z in numbers]
        model = FairchemESEN(config, numbers, [scale] * len(numbers), shift)
        with torch.no_grad():
            _fill(model, weights, _head(weights, name), _system(weights, backbone, label))
    except KeyError as error:
        raise InputError(f"{name} has no weights {error} as an eSEN has.") from None
    origin = {
        "package": "fairchem-core",
        "package_version": "2",
        "authors": "X. Fu, B. M. Wood, L. Barroso-Luque and others, Meta",
        "citation": "Fu et al., arXiv:2502.12147",
        **({"task": label} if label else {}),
    }
    return model, config, origin
