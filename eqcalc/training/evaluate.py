"""Errors of a model on frames, by config_type, and the figures that show them."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from torch.utils.data import DataLoader

from eqcalc.data.dataset import Batch, GraphDataset
from eqcalc.data.frames import Frame
from eqcalc.data.labels import Labels, stress_matrix
from eqcalc.data.packed import PackedDataset
from eqcalc.export import load
from eqcalc.files import replacing
from eqcalc.training.loss import UNITS
from eqcalc.training.metrics import QUANTITIES, Evaluation, compare
from eqcalc.training.parity import plot_parity
from eqcalc.training.task import predict

__all__ = [
    "Evaluation",
    "evaluate",
    "evaluate_results",
    "evaluate_store",
    "format_table",
    "plot_learning_curve",
    "plot_parity",
    "write_predictions",
]


def _single(batch: Batch, values: Any) -> Iterator[Labels]:
    """Energies, forces and stresses of a batch, structure by structure."""
    end = batch.num_atoms.cumsum(0).tolist()
    energy, forces, stress = (
        getattr(values, name).detach().cpu().double().numpy()
        for name in ("energy", "forces", "stress")
    )
    for k, size in enumerate(batch.num_atoms.tolist()):
        yield Labels(float(energy[k]), forces[end[k] - size : end[k]], stress[k])


def evaluate(model: torch.nn.Module, frames: GraphDataset, batch_size: int = 4) -> Evaluation:
    """`model`: a potential, scripted or not, on the CPU or where its parameters are."""
    result = Evaluation()
    device = next(model.parameters()).device
    for one in DataLoader(frames, batch_size=batch_size, collate_fn=Batch.collate):
        batch = one.to(device)
        values = _single(batch, predict(model, batch))
        indices = batch.index.tolist()
        for n, label, value in zip(indices, _single(batch, batch), values, strict=True):
            pairs = compare(label, value, molecule=not frames.periodic(n))
            result.add(frames.config_type(n), pairs)
    return result


def evaluate_store(
    model: str | os.PathLike,
    store: str | os.PathLike,
    *,
    dtype: str | None = None,
    device: str | None = None,
) -> Evaluation:
    """Errors of a potential file on the frames of a store, read a few at a time.

    Raises:
        InputError: as in `load` and `PackedDataset`: no potential, no store, another cutoff, an
            element that the potential does not know.
    """
    potential = load(model, dtype=dtype, device=device)
    frames = PackedDataset(store, potential.atomic_numbers, potential.cutoff)
    return evaluate(potential.module, frames)


def prediction(result: Mapping[str, Any]) -> Labels:
    """Energy, forces and stress from a calculator's results; no stress where there is none."""
    stress = result.get("stress")
    stress = None if stress is None else stress_matrix(stress, "the prediction")
    return Labels(float(result["energy"]), np.asarray(result["forces"]), stress)


def evaluate_results(frames: Sequence[Frame], results: Sequence[Mapping[str, Any]]) -> Evaluation:
    """Errors of a calculator's results for frames, both in the same order."""
    result = Evaluation()
    for frame, found in zip(frames, results, strict=True):
        label = Labels(frame.energy, frame.forces, frame.stress)
        molecule = not frame.atoms.pbc.any()
        result.add(frame.config_type, compare(label, prediction(found), molecule=molecule))
    return result


def write_predictions(
    path: Path,
    images: Sequence[Atoms],
    frames: Sequence[Frame],
    results: Sequence[Mapping[str, Any]],
) -> None:
    """Extended XYZ of the images with the labels of their files, and beside them

    eqcalc_energy (eV), eqcalc_forces (eV/Å), eqcalc_stress (eV/Å^3, xx yy zz yz xz xy), and errors
    against `frames`, whose stresses may be corrected: eqcalc_energy_error (eV/atom, prediction less
    label), eqcalc_forces_rmse (eV/Å), eqcalc_stress_rmse (eV/Å^3). Written aside and renamed.
    """
    from ase.io import write

    written = []
    for image, frame, found in zip(images, frames, results, strict=True):
        atoms = image.copy()
        atoms.calc = image.calc
        atoms.info |= atoms.info.pop("key_value_pairs", {})  # of an ASE database
        atoms.info.pop("data", None)
        atoms.info["eqcalc_energy"] = float(found["energy"])
        atoms.arrays["eqcalc_forces"] = np.array(found["forces"], dtype=np.float64)
        if "stress" in found:
            atoms.info["eqcalc_stress"] = np.array(found["stress"], dtype=np.float64)
        label = Labels(frame.energy, frame.forces, frame.stress)
        for name, (known, value) in compare(label, prediction(found), molecule=False).items():
            if name == "energy":
                atoms.info["eqcalc_energy_error"] = float(value[0] - known[0])
            elif name in {"forces", "stress"}:
                rmse = math.sqrt(float(np.square(value - known).mean()))
                atoms.info[f"eqcalc_{name}_rmse"] = rmse
        written.append(atoms)
    with replacing(path) as partial:
        write(partial, written, format="extxyz")


def format_table(summary: dict[str, Any]) -> str:
    """Errors by group as text, one row each: MAE / RMSE."""
    shown = [q for q in QUANTITIES if any(q in errors for errors in summary.values())]
    titles = {"stress_offdiagonal": "off-diagonal", "energy_total": "energy of a molecule"}
    rows = [["MAE / RMSE", *(f"{titles.get(q, q)} {QUANTITIES[q][0]}" for q in shown)]]
    for group, errors in summary.items():
        cells = [
            f"{errors[q]['mae']:.2f} / {errors[q]['rmse']:.2f}" if q in errors else "-"
            for q in shown
        ]
        rows.append([group, *cells])
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        "   ".join(
            f"{cell:>{width}}" if k else f"{cell:<{width}}"
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


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
