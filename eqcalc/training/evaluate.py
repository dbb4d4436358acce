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
from eqcalc.models.base import Potential
from eqcalc.outputs import OutputConfig
from eqcalc.training.loss import UNITS
from eqcalc.training.metrics import QUANTITIES, Comparisons, compare, compare_outputs
from eqcalc.training.parity import plot_parity
from eqcalc.training.task import predict
from eqcalc.uncertainty.coverage import Coverage

__all__ = [
    "Comparisons",
    "coverage_of",
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


def _rows(batch: Batch, values: Mapping[str, torch.Tensor]) -> Iterator[dict[str, np.ndarray]]:
    """Other outputs of a batch, structure by structure."""
    sizes = batch.num_atoms.tolist()
    parts = {
        name: rows.cpu().split(sizes if name in batch.atom_outputs else 1)
        for name, rows in values.items()
    }
    for k in range(len(sizes)):
        yield {name: part[k].numpy() for name, part in parts.items()}


def evaluate(model: torch.nn.Module, frames: GraphDataset, batch_size: int = 4) -> Comparisons:
    """`model`: a potential, scripted or not, on the CPU or where its parameters are.

    Outputs beside the energy are looked at where it is a potential that is not scripted.
    """
    outputs = model.output_configs if isinstance(model, Potential) else ()
    result = Comparisons({output.name: output.unit for output in outputs})
    device = next(model.parameters()).device
    for one in DataLoader(frames, batch_size=batch_size, collate_fn=Batch.collate):
        batch = one.to(device)
        predicted = predict(model, batch)
        found: list[dict[str, np.ndarray]] = [{} for _ in batch.index]
        indices = batch.index.tolist()
        if predicted.energy is not None:
            labels = _single(batch, batch), _single(batch, predicted)
            for k, (n, label, value) in enumerate(zip(indices, *labels, strict=True)):
                found[k] = compare(label, value, molecule=not frames.periodic(n))
        known = batch.atom_outputs | batch.structure_outputs
        rows = _rows(batch, known), _rows(batch, predicted.outputs)
        for k, (n, label, value) in enumerate(zip(indices, *rows, strict=True)):
            result.add(frames.config_type(n), found[k] | compare_outputs(label, value))
    return result


def evaluate_store(
    model: str | os.PathLike,
    store: str | os.PathLike,
    *,
    dtype: str | None = None,
    device: str | None = None,
) -> Comparisons:
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


def evaluate_results(
    frames: Sequence[Frame],
    results: Sequence[Mapping[str, Any]],
    outputs: Sequence[OutputConfig] = (),
) -> Comparisons:
    """Errors of a calculator's results for frames, both in the same order.

    outputs: that it has beside the energy.
    """
    result = Comparisons({output.name: output.unit for output in outputs})
    for frame, found in zip(frames, results, strict=True):
        pairs = _compare_energy(frame, found, molecule=not frame.atoms.pbc.any())
        pairs |= _compare_others(frame, found, outputs)
        result.add(frame.config_type, pairs)
    return result


def coverage_of(frames: Sequence[Frame], results: Sequence[Mapping[str, Any]]) -> Coverage | None:
    """Errors beside predicted deviations, where a calculator's results have these."""
    pairs = [
        (frame, found)
        for frame, found in zip(frames, results, strict=True)
        if {"grade", "energy_std"} <= found.keys() and math.isfinite(frame.energy)
    ]
    if not pairs:
        return None
    forces = [
        None if frame.forces is None else np.linalg.norm(found["forces"] - frame.forces, axis=1)
        for frame, found in pairs
    ]
    return Coverage.of(
        [len(frame.atoms) for frame, _ in pairs],
        [found["energy"] - frame.energy for frame, found in pairs],
        [found["energy_std"] for _, found in pairs],
        [found["grade"] for _, found in pairs],
        forces,
    )


def _compare_energy(
    frame: Frame, found: Mapping[str, Any], *, molecule: bool
) -> dict[str, np.ndarray]:
    if "energy" not in found:
        return {}
    label = Labels(frame.energy, frame.forces, frame.stress)
    return compare(label, prediction(found), molecule=molecule)


def _compare_others(
    frame: Frame, found: Mapping[str, Any], outputs: Sequence[OutputConfig]
) -> dict[str, np.ndarray]:
    counts = {"atom": len(frame.atoms), "structure": 1}
    rows = {out.name: out.rows(found[out.name], counts[out.per]) for out in outputs}
    return compare_outputs(frame.outputs, rows)


#: what predictions say of their own errors
KNOWN = {"grade", "energies_std", "energy_std"}


def write_predictions(
    path: Path,
    images: Sequence[Atoms],
    frames: Sequence[Frame],
    results: Sequence[Mapping[str, Any]],
    outputs: Sequence[OutputConfig] = (),
) -> None:
    """Extended XYZ of the images with the labels of their files, and beside them

    eqcalc_energy (eV), eqcalc_forces (eV/Å), eqcalc_stress (eV/Å^3, xx yy zz yz xz xy), and errors
    against `frames`, whose stresses may be corrected: eqcalc_energy_error (eV/atom, prediction less
    label), eqcalc_forces_rmse (eV/Å), eqcalc_stress_rmse (eV/Å^3). Other outputs are there as
    eqcalc_NAME, Cartesian, and grades and deviations, where the model knows them, as eqcalc_grade,
    eqcalc_energies_std (eV) and eqcalc_energy_std (eV). Written aside and renamed.
    """
    from ase.io import write

    written = []
    for image, frame, found in zip(images, frames, results, strict=True):
        atoms = image.copy()
        atoms.calc = image.calc
        atoms.info |= atoms.info.pop("key_value_pairs", {})  # of an ASE database
        atoms.info.pop("data", None)
        for output in outputs:
            value = np.array(found[output.name], dtype=np.float64)
            if output.per == "atom":
                atoms.arrays[f"eqcalc_{output.name}"] = value.reshape(len(atoms), -1)
            else:
                atoms.info[f"eqcalc_{output.name}"] = value
        if "energy" in found:
            atoms.info["eqcalc_energy"] = float(found["energy"])
            atoms.arrays["eqcalc_forces"] = np.array(found["forces"], dtype=np.float64)
        for name in KNOWN & found.keys():
            value = np.array(found[name], dtype=np.float64)
            (atoms.arrays if value.ndim else atoms.info)[f"eqcalc_{name}"] = value
        if "stress" in found:
            atoms.info["eqcalc_stress"] = np.array(found["stress"], dtype=np.float64)
        for name, (known, value) in _compare_energy(frame, found, molecule=False).items():
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
    there = dict.fromkeys(q for errors in summary.values() for q in errors)
    shown = [q for q in QUANTITIES if q in there]
    shown += [q for q in there if q not in QUANTITIES]
    units = {
        q: errors[q]["unit"] for errors in summary.values() for q in errors if "unit" in errors[q]
    }
    units = {q: unit for q, (unit, _) in QUANTITIES.items()} | units
    titles = {"stress_offdiagonal": "off-diagonal", "energy_total": "energy of a molecule"}
    rows = [["MAE / RMSE", *(f"{titles.get(q, q)} {units[q]}".strip() for q in shown)]]
    for group, errors in summary.items():
        cells = []
        for q in shown:
            form = ".2f" if q in QUANTITIES else ".3g"  # units of outputs may be of any size
            error = [errors[q][kind] for kind in ("mae", "rmse")] if q in errors else []
            cells.append(" / ".join(f"{value:{form}}" for value in error) or "-")
        rows.append([group, *cells])
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        "   ".join(
            f"{cell:>{width}}" if k else f"{cell:<{width}}"
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def plot_learning_curve(
    history: Path, path: Path, units: Mapping[str, tuple[str, float]] = UNITS
) -> None:
    """Errors over epochs, from the CSV of a run; units: of the quantities to show."""
    from matplotlib.figure import Figure

    with history.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(13 / 3 * len(units), 3.8), layout="constrained")
    axes = figure.subplots(1, len(units), squeeze=False)[0]
    for axis, (name, (unit, _)) in zip(axes, units.items(), strict=True):
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
