"""Checkpoints whose parameters have other names, or another order, than the network has now.

Optimisers know parameters by their numbers alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eqcalc.errors import InputError
from eqcalc.files import replacing
from eqcalc.program.former import present_name


def present_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights and constants under the names that they have now."""
    return {present_name(name): value for name, value in state.items()}


def renew(path: Path, task: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Rewrites a checkpoint so that training can go on from it, if it is not of this shape.

    Args:
        path: of the checkpoint.
        task: what is trained.
        optimizer: of the task's parameters.

    Raises:
        InputError: the network of the checkpoint is another one.
    """
    saved = torch.load(path, map_location="cpu", weights_only=True)
    old, wanted = present_state(saved["state_dict"]), task.state_dict()
    parameters = {name: p for name, p in task.named_parameters() if p.numel()}
    if [name for name in old if name in parameters] == list(parameters) and all(
        name in saved["state_dict"] for name in wanted
    ):
        return
    different = InputError(
        f"{path} was written by an eqcalc whose network had other parts, and cannot be gone on "
        f"from: train into another folder with fine_tune.model = '{path.parent}'."
    )
    for key in ("state_dict", "current_model_state"):
        if key in saved:
            state = present_state(saved[key])
            if not wanted.keys() <= state.keys():
                raise different
            saved[key] = {n: state[n] if value.numel() else value for n, value in wanted.items()}
    empty = [name for name, value in old.items() if not value.numel()]
    names = {p: name for name, p in parameters.items()}
    places = {name: n for n, name in enumerate(old)}
    (state,) = saved["optimizer_states"]
    made = optimizer.state_dict()["param_groups"]
    groups = zip(optimizer.param_groups, made, state["param_groups"], strict=True)
    moved: dict[int, Any] = {}
    for group, now, before in groups:
        mine = [names[p] for p in group["params"] if p in names]
        order = sorted(mine, key=places.__getitem__)
        if len(before["params"]) == len(mine) + len(empty):  # an optimiser that has these, too
            order = sorted([*mine, *empty], key=places.__getitem__)
        if len(before["params"]) != len(order):
            raise different
        numbers = dict(zip(order, before["params"], strict=True))
        for p, number in zip(group["params"], now["params"], strict=True):
            if names.get(p) in numbers and numbers[names[p]] in state["state"]:
                moved[number] = state["state"][numbers[names[p]]]
        before["params"] = now["params"]
    state["state"] = moved
    with replacing(path) as partial:
        torch.save(saved, partial)
