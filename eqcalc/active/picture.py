"""A picture of a choice: pool, training and chosen frames, and the uncertainty of each."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eqcalc.active.select import TITLES, Selection

POOL, TRAIN, CHOSEN = "#9aa5b1", "#3b6ea8", "#d1495b"


def _map(axis: Axes, selection: Selection) -> None:
    """Mean features of the frames on their two principal axes."""
    for points, colour, size, label in (
        (selection.pool_points, POOL, 10, "pool"),
        (selection.train_points, TRAIN, 14, "training"),
        (selection.pool_points[selection.chosen], CHOSEN, 24, "chosen"),
    ):
        number = int(np.isfinite(points).all(axis=1).sum())
        if number:
            axis.scatter(*points.T, s=size, c=colour, lw=0, label=f"{label}, {number} frames")
    axis.set(xlabel="first principal axis of features", ylabel="second", title="Frames")
    axis.legend(frameon=False, fontsize=8)


def _values(axis: Axes, selection: Selection) -> None:
    """Of each frame: novelty to the right, uncertainty upwards, where there is one."""
    measure = selection.measure
    axis.set_xlabel("distance of the newest atom from the training, in features")
    if measure is None:
        edges = np.histogram_bin_edges(selection.novelty[np.isfinite(selection.novelty)], 30)
        axis.hist(selection.novelty, edges, color=POOL, label="pool")
        axis.hist(selection.novelty[selection.chosen], edges, color=CHOSEN, label="chosen")
        axis.set(ylabel="frames", yscale="log", title="Novelty")
    else:
        x, y = selection.novelty, np.where(np.isinf(measure.values), np.nan, measure.values)
        axis.scatter(x, y, s=10, c=POOL, lw=0, label="pool")
        axis.scatter(x[selection.chosen], y[selection.chosen], s=24, c=CHOSEN, lw=0, label="chosen")
        for bound in selection.window:
            if np.isfinite(bound):
                axis.axhline(bound, color="k", lw=0.8, ls="--")
        positive = y[np.isfinite(y)].min(initial=np.inf) > 0.0
        axis.set(ylabel=TITLES[measure.name], yscale="log" if positive else "linear")
        bounded = np.isfinite(selection.window).any()
        axis.set_title("Uncertainty, dashed: the window" if bounded else "Uncertainty")
    axis.legend(frameon=False, fontsize=8)


def draw(selection: Selection) -> Figure:
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _map(left, selection)
    _values(right, selection)
    for axis in (left, right):
        axis.grid(alpha=0.25, lw=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    return figure
