"""The picture of a data set: what is in it, and what was flagged."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from eqcalc.data.check import Survey

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

#: config_types beyond these share a colour
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#a6761d", "#7570b3", "#1a1a1a")
_OTHERS, _FLAG = "0.6", "#d00000"

#: copies are no reason to look at a frame's numbers
_UNFLAGGED = {"duplicate", "near_duplicate", "leak", "near_leak", "cell", "missing", "net_force"}


class _Scene:
    """Frames by config_type, largest group first, with their colours."""

    def __init__(self, survey: Survey) -> None:
        self.survey = survey
        groups: dict[str, list[int]] = {}
        for n, frame in enumerate(survey.frames):
            groups.setdefault(frame.config_type, []).append(n)
        self.groups = dict(sorted(groups.items(), key=lambda item: -len(item[1])))
        self.colour = {
            name: _COLOURS[k] if k < len(_COLOURS) else _OTHERS
            for k, name in enumerate(self.groups)
        }
        named = {
            s
            for f in survey.findings
            if f.level != "note" and f.check not in _UNFLAGGED and len(f.sources) < 30
            for s in f.sources
        }
        self.flagged = np.array([f.source in named for f in survey.frames], dtype=bool)

    def points(self, axis: Axes, x: np.ndarray, y: np.ndarray) -> None:
        """One point per frame; test frames hollow, flagged ones ringed."""
        test = np.arange(len(self.survey.frames)) >= self.survey.num_train
        for name, members in self.groups.items():
            chosen = np.zeros(len(test), dtype=bool)
            chosen[members] = True
            colour = self.colour[name]
            axis.plot(x[chosen & ~test], y[chosen & ~test], ".", ms=4, color=colour, alpha=0.7)
            axis.plot(x[chosen & test], y[chosen & test], "o", ms=4, mfc="none", color=colour)
        flagged = self.flagged
        axis.plot(x[flagged], y[flagged], "o", ms=10, mfc="none", mec=_FLAG, mew=1.3)

    def histogram(self, axis: Axes, values: dict[str, np.ndarray], bins: np.ndarray) -> None:
        """Counts by config_type, those without a colour together, on a logarithmic scale."""
        together: dict[str, list[np.ndarray]] = {}
        for name, numbers in values.items():
            together.setdefault(self.colour[name], []).append(numbers[np.isfinite(numbers)])
        for colour, parts in together.items():
            inside = np.clip(np.concatenate(parts), bins[0], bins[-1])
            if len(inside):
                axis.hist(inside, bins, histtype="step", lw=1.3, color=colour)
        axis.set(yscale="log", ylabel="number of atoms")


def _energies(axis: Axes, scene: _Scene) -> None:
    """Each config_type a column, frames in their order within it."""
    x = np.zeros(len(scene.survey.frames))
    for k, members in enumerate(scene.groups.values()):
        x[members] = k + np.linspace(-0.35, 0.35, len(members)) * (len(members) > 1)
    scene.points(axis, x, scene.survey.residual)
    names = [name if len(name) < 14 else name[:12] + "…" for name in scene.groups]
    axis.set_xticks(range(len(names)), names, rotation=30 if len(names) > 3 else 0, fontsize=8)
    if len(names) > 3:
        for label in axis.get_xticklabels():
            label.set_horizontalalignment("right")
    axis.set(
        title="energy, in the order of the frames",
        ylabel="eV/atom, less reference energies",
        xlim=(-0.6, len(names) - 0.4),
    )


def _largest_forces(axis: Axes, scene: _Scene) -> None:
    frames = scene.survey.frames
    largest = np.array(
        [np.nan if f.forces is None else np.linalg.norm(f.forces, axis=1).max() for f in frames]
    )
    scene.points(axis, scene.survey.residual, largest)
    axis.set(
        title="largest force of each frame",
        xlabel="eV/atom, less reference energies",
        ylabel="eV/Å",
    )
    if np.nanmax(largest, initial=0.0) > 50 * np.nanmedian(np.append(largest, 0.1)):
        axis.set_yscale("symlog", linthresh=0.1)


def _force_sizes(axis: Axes, scene: _Scene) -> None:
    frames = scene.survey.frames
    values = {
        name: np.concatenate(
            [np.empty(0)]
            + [
                np.linalg.norm(frames[n].forces, axis=1)
                for n in members
                if frames[n].forces is not None
            ]
        )
        for name, members in scene.groups.items()
    }
    everything = np.concatenate([*values.values(), [1e-3]])
    scene.histogram(axis, values, np.linspace(0.0, everything.max(), 60))
    axis.set(title="forces on atoms", xlabel="eV/Å")


def _distances(axis: Axes, scene: _Scene) -> None:
    shapes = scene.survey.shapes
    values = {
        name: np.concatenate([shapes[n].nearest for n in members])
        for name, members in scene.groups.items()
    }
    everything = np.concatenate(list(values.values()))
    everything = everything[np.isfinite(everything)]
    if not len(everything):
        everything = np.array([0.0, scene.survey.cutoff])
    low, high = everything.min(), everything.max()
    scene.histogram(axis, values, np.linspace(low - 0.05, high + 0.05, 60))
    axis.set(title="distance to the nearest atom", xlabel="Å")


def _neighbors(axis: Axes, scene: _Scene) -> None:
    shapes = scene.survey.shapes
    values = {
        name: np.concatenate([shapes[n].neighbors for n in members]).astype(float)
        for name, members in scene.groups.items()
    }
    everything = np.concatenate(list(values.values()))
    step = max(1, int(np.ceil((np.ptp(everything) + 1) / 60)))
    scene.histogram(
        axis, values, np.arange(everything.min(), everything.max() + 2 * step, step) - 0.5
    )
    axis.axvline(everything.mean(), color="0.4", lw=0.8, ls="--")
    axis.set(
        title=f"neighbours within {scene.survey.cutoff:g} Å, mean {everything.mean():.1f}",
        xlabel="number",
    )


def _volumes(axis: Axes, scene: _Scene) -> None:
    volume = np.array(
        [
            f.atoms.get_volume() / len(f.atoms) if f.atoms.pbc.all() else np.nan
            for f in scene.survey.frames
        ]
    )
    scene.points(axis, volume, scene.survey.residual)
    axis.set(
        title="energy over volume", xlabel="Å³/atom", ylabel="eV/atom, less reference energies"
    )


def _slope(axis: Axes, scene: _Scene, label: str) -> None:
    """Energy differences over works, in meV/atom, with the line that units and signs demand."""
    test, frames = scene.survey.tests[label], scene.survey.frames
    atoms = np.array([len(frames[n].atoms) for n in test.frames[:, 0]])
    work, energy = 1e3 * test.work / atoms, 1e3 * test.energy / atoms
    for name, colour in scene.colour.items():
        chosen = np.array([frames[n].config_type == name for n in test.frames[:, 0]])
        axis.plot(work[chosen], energy[chosen], ".", ms=5, color=colour, alpha=0.7)
    axis.axline((0.0, 0.0), slope=1.0, color="0.4", lw=1.0, ls="--")
    axis.set(
        title=f"energies over {label}: slope {test.slope:.3g}, should be 1",
        xlabel=f"work of the {label} (meV/atom)",
        ylabel="energy difference of similar frames",
    )
    if not test.agrees:
        axis.axline((0.0, 0.0), slope=test.slope, color=_FLAG, lw=1.0)
        axis.title.set_color(_FLAG)
        reach = 1.1 * np.abs(work).max(), 1.3 * np.abs(energy).max()
        axis.set(xlim=(-reach[0], reach[0]), ylim=(-reach[1], reach[1]))


def _panels(survey: Survey) -> list[Callable[[Axes, _Scene], None]]:
    """Those that have something to show."""
    if not survey.frames:
        return []
    panels = [_energies, _volumes, _largest_forces, _force_sizes, _distances, _neighbors]
    if not any(frame.atoms.pbc.all() for frame in survey.frames):
        panels.remove(_volumes)
    if all(frame.forces is None for frame in survey.frames):
        panels = [p for p in panels if p not in (_largest_forces, _force_sizes)]
    tests = [label for label, test in survey.tests.items() if np.isfinite(test.slope)]
    return [*panels, *(partial(_slope, label=label) for label in tests)]


def _handles(scene: _Scene) -> list[Line2D]:
    """What the legend explains."""
    from matplotlib.lines import Line2D

    point = partial(Line2D, [], [], marker="o", ls="")
    shown = [name for name in scene.groups if scene.colour[name] != _OTHERS]
    handles = [point(color=scene.colour[name], label=name) for name in shown]
    if len(shown) < len(scene.groups):
        handles.append(point(color=_OTHERS, label="others"))
    if scene.survey.num_train < len(scene.survey.frames):
        handles.append(point(mfc="none", color="0.3", label="test frame"))
    if scene.flagged.any():
        handles.append(point(ms=10, mfc="none", mec=_FLAG, label="flagged"))
    return handles


def draw(survey: Survey) -> Figure:
    """Up to eight panels; colours are config_types, hollow points test frames, red rings flagged.

    Left out are panels that have nothing to show.
    """
    from matplotlib.figure import Figure

    scene, panels = _Scene(survey), _panels(survey)
    columns = max(1, (len(panels) + 1) // 2)
    figure = Figure(figsize=(4.25 * columns, 8.2), layout="constrained")
    axes = list(figure.subplots(2, columns).ravel())
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, panel in zip(axes, panels, strict=False):
        panel(axis, scene)
        axis.title.set_fontsize(11)
        axis.grid(alpha=0.25)
    if panels:
        figure.legend(
            handles=_handles(scene),
            loc="outside lower center",
            ncols=3 * columns,
            frameon=False,
        )
    return figure
