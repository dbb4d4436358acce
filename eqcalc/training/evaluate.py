"""Errors of a model on frames, by config_type, and the figures that show them."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from eqcalc.data.dataset import Batch, FrameDataset
from eqcalc.training.loss import UNITS, residuals
from eqcalc.training.task import Errors, predict


@dataclass
class Evaluation:
    """Errors by group, and labels against predictions for the parity plot (eV, Å)."""

    groups: dict[str, Errors] = field(default_factory=dict)
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = field(
        default_factory=lambda: {name: [] for name in UNITS}
    )

    def summary(self) -> dict[str, Any]:
        """{"all": ..., config_type: ...}, each {quantity: {mae, rmse, count}} in UNITS."""
        return {name: errors.summary() for name, errors in self.groups.items()}


def evaluate(model: torch.nn.Module, frames: FrameDataset, batch_size: int = 4) -> Evaluation:
    """`model`: a potential, scripted or not, on the CPU or where its parameters are."""
    result = Evaluation(groups={"all": Errors()})
    device = next(model.parameters()).device
    for one in DataLoader(frames, batch_size=batch_size, collate_fn=Batch.collate):
        batch = one.to(device)
        prediction = predict(model, batch)
        atom_end = batch.num_atoms.cumsum(0)
        for k, index in enumerate(batch.index.tolist()):
            atoms = slice(int(atom_end[k] - batch.num_atoms[k]), int(atom_end[k]))
            single = Batch(
                graph=batch.graph,
                energy=batch.energy[k : k + 1],
                forces=batch.forces[atoms],
                stress=batch.stress[k : k + 1],
                num_atoms=batch.num_atoms[k : k + 1],
                index=batch.index[k : k + 1],
            )
            part = type(prediction)(
                prediction.energy[k : k + 1],
                prediction.forces[atoms],
                prediction.stress[k : k + 1],
            )
            difference = residuals(part, single)
            group = frames.frames[index].config_type
            result.groups["all"].add(difference)
            result.groups.setdefault(group, Errors()).add(difference)
            per_atom = single.num_atoms
            for name, label, value in (
                ("energy", single.energy / per_atom, part.energy / per_atom),
                ("forces", single.forces, part.forces),
                ("stress", single.stress, part.stress),
            ):
                known = torch.isfinite(label)
                if known.any():
                    pair = (label[known].cpu().numpy(), value[known].cpu().numpy())
                    result.pairs[name].append(pair)
    return result


def format_table(summary: dict[str, Any]) -> str:
    """Errors by group as text, one row each: MAE / RMSE."""
    header = "".join(f"{name + ' ' + UNITS[name][0]:>24}" for name in UNITS)
    rows = [f"{'MAE / RMSE':<20}{header}"]
    for group, errors in summary.items():
        cells = [
            f"{errors[name]['mae']:.2f} / {errors[name]['rmse']:.2f}" if name in errors else "-"
            for name in UNITS
        ]
        rows.append(f"{group:<20}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(rows)


def plot_parity(results: dict[str, Evaluation], path: Path) -> None:
    """Predictions over labels: energy per atom, force components, stress components."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.4), layout="constrained")
    axes = figure.subplots(1, 3)
    scales = {"energy": ("eV/atom", 1.0), "forces": ("eV/Å", 1.0), "stress": ("GPa", 1.602e2)}
    for axis, (name, (unit, _)) in zip(axes, UNITS.items(), strict=True):
        shown, scale = scales[name]
        lines = []
        for label, result in results.items():
            if not result.pairs[name]:
                continue
            x, y = (np.concatenate(c) * scale for c in zip(*result.pairs[name], strict=True))
            axis.plot(x, y, ".", ms=3, alpha=0.6, label=label, rasterized=True)
            error = result.summary()["all"][name]
            lines.append(f"{label}: MAE {error['mae']:.2f} {unit}")
        if not lines:
            axis.set_axis_off()
            continue
        axis.axline((x[0], x[0]), slope=1, color="0.4", lw=0.8, zorder=0)
        axis.set_title(f"{name}\n" + "\n".join(lines), fontsize=10)
        axis.set_xlabel(f"DFT ({shown})")
        axis.set_ylabel(f"model ({shown})")
        axis.legend(frameon=False, markerscale=3)
    figure.savefig(path, dpi=130)


def plot_learning_curve(history: Path, path: Path) -> None:
    """Errors over epochs, from the CSV of a run."""
    from matplotlib.figure import Figure

    with history.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, (name, (unit, _)) in zip(axes, UNITS.items(), strict=True):
        for part in ("train", "val"):
            key = f"{part}_{name}_mae"
            points = [(float(r["epoch"]), float(r[key])) for r in rows if r.get(key)]
            if points:
                axis.plot(*zip(*points, strict=True), lw=1.2, label=part)
        if not axis.lines:  # no labels of this kind
            axis.set_axis_off()
            continue
        axis.set(yscale="log", xlabel="epoch", ylabel=f"{name} MAE ({unit})")
        axis.legend(frameon=False)
        axis.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=130)
