"""The parity plot: predictions over labels, and what is left of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase.units import GPa

from eqcalc.training.metrics import QUANTITIES, Comparisons

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: shown quantity, its unit on the axes, that unit in eV and Å, unit of the errors, that unit
_PANELS = {
    "energy": ("eV/atom", 1.0, "meV/atom", 1e-3),
    "forces": ("eV/Å", 1.0, "meV/Å", 1e-3),
    "stress": ("GPa", GPa, "GPa", GPa),
}

_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#a6761d", "#7570b3", "#1a1a1a")


def _series(results: dict[str, Comparisons]) -> list[tuple[str, Comparisons, str | None]]:
    """What gets a colour: the parts of a run, or the config_types of a single evaluation."""
    if len(results) > 1:
        return [(name, result, None) for name, result in results.items()]
    (name, result), *_ = results.items()
    groups = sorted(result.groups, key=lambda g: -result.sample("forces", g).shape[1])
    if len(groups) < 2:
        return [(name, result, None)]
    return [(group, result, group) for group in groups]


def _marks(quantity: str) -> list[tuple[str, dict]]:
    """Quantities drawn in a panel: off-diagonal stresses are hollow triangles over the points."""
    point = {"marker": ".", "ms": 4, "alpha": 0.6}
    if quantity != "stress":
        return [(quantity, point)]
    return [("stress", point), ("stress_offdiagonal", {"marker": "^", "ms": 5, "mfc": "none"})]


def _panel(top: Axes, bottom: Axes, quantity: str, results: dict[str, Comparisons]) -> None:
    own = _unit(quantity, results)
    unit, scale, error_unit, error_scale = _PANELS.get(quantity, (own, 1.0, own, 1.0))
    for colour, (label, result, group) in enumerate(_series(results)):
        for name, mark in _marks(quantity):
            known, value = result.sample(name, group)
            if not len(known):
                continue
            style = mark | {"ls": "", "color": _COLOURS[colour % len(_COLOURS)]}
            text = label if name == quantity else f"{label}, off-diagonal"
            top.plot(known / scale, value / scale, label=text, rasterized=True, **style)
            bottom.plot(known / scale, (value - known) / error_scale, rasterized=True, **style)
    everything = np.concatenate([result.sample(quantity).ravel() for result in results.values()])
    top.axline((everything[0] / scale,) * 2, slope=1, color="0.4", lw=0.8, zorder=0)
    bottom.axhline(0.0, color="0.4", lw=0.8, zorder=0)
    lines = [quantity]
    for label, result in results.items():
        error = result.summary()["all"].get(quantity)
        if error:
            error_is_in = QUANTITIES.get(quantity, (own,))[0]
            shown = f"MAE {error['mae']:.3g}, RMSE {error['rmse']:.3g} {error_is_in}"
            lines.append(f"{label}: {shown}")
    top.set_title("\n".join(lines), fontsize=10)
    top.set(ylabel=f"model ({unit})")
    known = "DFT" if quantity in _PANELS else "label"
    bottom.set(xlabel=f"{known} ({unit})", ylabel=f"model less {known} ({error_unit})")
    for axis in (top, bottom):
        axis.grid(alpha=0.25)
        axis.locator_params(axis="x", nbins=5)  # total energies have many digits
    top.legend(frameon=False, fontsize=8, markerscale=1.6)


def _unit(quantity: str, results: dict[str, Comparisons]) -> str:
    """Of an output beside the energy."""
    return next((r.outputs[quantity] for r in results.values() if quantity in r.outputs), "")


def plot_parity(results: dict[str, Comparisons], path: Path) -> None:
    """Predictions over labels and errors over labels: energy per atom, forces, stress components,
    other outputs.

    Several evaluations are told apart by colour, or the config_types of a single one. Of millions
    of points a sample is drawn, and the picture says so; the errors in the titles are those of all.
    """
    from matplotlib.figure import Figure

    every = dict.fromkeys([*_PANELS, *(name for r in results.values() for name in r.outputs)])
    shown = [q for q in every if any(len(r.sample(q)[0]) for r in results.values())]
    figure = Figure(figsize=(14 / 3 * max(2, len(shown)), 7.5), layout="constrained")
    if any(result.thinned() for result in results.values()):
        figure.suptitle("errors of all frames; points of a sample", fontsize=9)
    if shown:
        axes = figure.subplots(2, len(shown), sharex="col", height_ratios=(3, 2), squeeze=False)
        for column, quantity in zip(axes.T, shown, strict=True):
            _panel(*column, quantity, results)
    figure.savefig(path, dpi=120)
