"""Files of NequIP from before its modules were those of its program: the program, and the modules.

Degrees and channels are read out of the scripted modules; parities, which they do not say and no
plan needs, are called even.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from eqcalc.engine.bricks import children
from eqcalc.program import operations as ops
from eqcalc.program.former import FORMER
from eqcalc.program.program import Program


def is_former(module: Any) -> bool:
    """Whether the layers of a scripted potential have the former names."""
    return all("linear_up" in dict(layer.named_children()) for layer in children(module.layers))


def _parts(layer: Any, k: int) -> dict[str, Any]:
    """What a layer has, by the names of operations; older files lack some."""
    found = {}
    for former, name in FORMER.items():
        part: Any = layer
        for step in former.split("."):
            part = getattr(part, step, None)
        if part is not None and "." not in name:
            found[name.format(k=k, next=k + 1)] = part
    found[f"m_{k}"] = SimpleNamespace(norm=layer.message_norm)
    return found


def _operations(
    found: dict[str, Any], k: int, before: str, after: str, factors: str
) -> list[ops.Operation]:
    """Of layer k; before, after: irreps of features. Irreps that no plan needs are left empty."""
    operations: list[ops.Operation] = [ops.Linear(f"up_{k}", f"x_{k}", "", before)]
    up, mixed, sums = f"up_{k}", f"mixed_{k}", [f"own_{k}", f"mix_{k}"]
    if f"up_bias_{k}" in found:
        up = f"up_bias_{k}"
        operations.append(ops.Bias(up, f"up_{k}", before))
    operations += [
        ops.Radial(f"r_{k}", ()),
        ops.Convolution(f"sum_{k}", up, f"r_{k}", "", 0, ""),
        ops.Normalization(f"m_{k}", f"sum_{k}", ""),
        ops.Linear(f"own_{k}", f"x_{k}", "", ""),
        ops.Linear(f"mix_{k}", f"m_{k}", "", ""),
    ]
    if factors:
        operations += [
            ops.Linear(f"factors_{k}", f"m_{k}", "", factors),
            ops.Product(f"products_{k}", f"factors_{k}", "", "", ""),
            ops.Linear(f"more_{k}", f"products_{k}", "", ""),
        ]
        sums.append(f"more_{k}")
    operations.append(ops.Add(mixed, tuple(sums), ""))
    if f"gate_bias_{k}" in found:
        mixed = f"gate_bias_{k}"
        operations.append(ops.Bias(mixed, f"mixed_{k}", ""))
    return [*operations, ops.Gate(f"x_{k + 1}", mixed, after)]


def former_nequip(module: Any) -> tuple[Program, dict[str, Any]]:
    """The program of a scripted NequIP, and its modules by the names of operations."""
    channels = module.species_embedding.shape[1]
    operations: list[ops.Operation] = [ops.Embedding("x_0", channels)]
    modules: dict[str, Any] = {}
    irreps = f"{channels}x0e"
    for k, layer in enumerate(children(module.layers)):
        found = _parts(layer, k)
        blocks = found[f"x_{k + 1}"]._blocks
        after = "+".join(f"{mul}x{dim // 2}e" for _, dim, mul, _, _ in blocks)
        factors = ""
        if f"products_{k}" in found:
            width = int(found[f"products_{k}"].num_channels)
            degrees = [dim // 2 for _, dim, _, _, _ in found[f"factors_{k}"]._blocks]
            factors = "+".join(f"{width}x{degree}e" for degree in degrees)
        operations += _operations(found, k, irreps, after, factors)
        modules |= found
        irreps = after
    last = children(module.layers)[-1]
    modules["energies"] = SimpleNamespace(inner=last.readout_in, outer=last.readout_out)
    operations += [
        ops.Readout("energies", f"x_{k + 1}", irreps),
        ops.Output("energy", ("energies",)),
    ]
    return Program(tuple(operations)), modules
