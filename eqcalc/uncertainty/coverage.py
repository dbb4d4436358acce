"""How often predicted deviations are right: real errors beside them, by grade of extrapolation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: edges of the classes of grades; the first is what the training had
EDGES = (0.0, 1.0, 2.0, 4.0, 8.0, np.inf)

#: grades beside the colours of points
TICKS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 32.0, 64.0)

#: of the columns that may be unknown
FORMS = (("predicted", ".3g"), ("ratio", ".2f"), ("within_one", ".0%"), ("within_two", ".0%"))

#: a class of fewer frames says little; errors and deviations agree within a factor of so much
FEWEST, FACTOR = 8, 1.5

#: frames whose points are kept
KEPT = 200


def _label(low: float, high: float) -> str:
    if np.isinf(high):
        return f"above {low:g}"
    return f"up to {high:g}" if low == 0.0 else f"{low:g} to {high:g}"


def _classes(grade: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Classes that have members; edges belong below them."""
    for low, high in pairwise(EDGES):
        inside = (grade > low if low else grade >= 0.0) & (grade <= high)
        if inside.any():
            yield _label(low, high), inside


@dataclass(frozen=True)
class Coverage:
    """Frames with labels.

    Attributes:
        error: [F] meV/atom, predicted energy less label.
        std: [F] meV/atom, predicted standard deviation of it; infinite where there is none.
        grade: [F], the largest of the frame's atoms.
        force_error: [N] meV/Å, |predicted force less label| of atoms with a label.
        atom_grade: [N], of these atoms.
    """

    error: np.ndarray
    std: np.ndarray
    grade: np.ndarray
    force_error: np.ndarray
    atom_grade: np.ndarray

    @classmethod
    def of(
        cls,
        sizes: Sequence[int],
        errors: Sequence[float],
        stds: Sequence[float],
        grades: Sequence[np.ndarray],
        forces: Sequence[np.ndarray | None] = (),
    ) -> Coverage:
        """From frames: atoms; errors and deviations of energies (eV); grades [atoms] of each.

        forces: |error| [atoms] eV/Å of each, None where there is no label.
        """
        size = np.array(sizes, dtype=float)
        known = [k for k, f in enumerate(forces) if f is not None]
        none = np.zeros(0)
        return cls(
            np.array(errors, dtype=float) / size * 1e3,
            np.array(stds, dtype=float) / size * 1e3,
            np.array([g.max(initial=0.0) for g in grades]),
            np.concatenate([none, *(np.asarray(forces[k]) * 1e3 for k in known)]),
            np.concatenate([none, *(grades[k] for k in known)]),
        )

    def rows(self) -> list[dict[str, Any]]:
        """By grade of a frame's worst atom: frames, root mean squares, shares within 1 and 2 std.

        ratio: of the root mean squares, real by predicted; without_offset: of errors less the mean
        of all frames' errors. Without deviations there are None.
        """
        found = []
        offset = self.error.mean() if len(self.error) > 1 else 0.0
        for label, inside in _classes(self.grade):
            error, std = self.error[inside], self.std[inside]
            known = bool(np.isfinite(std).all())
            predicted = _rms(std) if known else None
            found.append(
                {
                    "grade": label,
                    "frames": int(inside.sum()),
                    "error": _rms(error),
                    "predicted": predicted,
                    "ratio": _ratio(_rms(error), predicted),
                    "without_offset": _ratio(_rms(error - offset), predicted),
                    "within_one": float(np.mean(np.abs(error) <= std)) if known else None,
                    "within_two": float(np.mean(np.abs(error) <= 2.0 * std)) if known else None,
                }
            )
        return found

    def force_rows(self) -> list[dict[str, Any]]:
        """By grade of an atom: atoms and the root mean square of the errors of their forces."""
        return [
            {"grade": label, "atoms": int(i.sum()), "error": _rms(self.force_error[i])}
            for label, i in _classes(self.atom_grade)
        ]

    def document(self) -> dict[str, Any]:
        """For JSON, with points of at most KEPT frames spread evenly: error, std, grade.

        offset, scatter: mean of the errors, and their standard deviation from it.
        """
        chosen = np.unique(np.linspace(0, len(self.error) - 1, KEPT).round().astype(int))
        points = np.stack([self.error, self.std, self.grade], axis=1)[chosen]
        return {
            "unit": "meV/atom",
            "offset": float(f"{self.error.mean():.4g}"),
            "scatter": float(f"{self.error.std():.4g}"),
            "rows": self.rows(),
            "force_unit": "meV/Å",
            "force_rows": self.force_rows(),
            "points": [[float(f"{x:.4g}") for x in p] for p in points if np.isfinite(p).all()],
        }


def _rms(values: np.ndarray) -> float:
    return float(f"{np.sqrt(np.mean(np.square(values))):.4g}")


def _ratio(error: float, predicted: float | None) -> float | None:
    return float(f"{error / predicted:.4g}") if predicted else None


def _with_ratio(row: Mapping[str, Any]) -> dict[str, Any]:
    """Files of earlier versions have none."""
    return {"ratio": _ratio(row["error"], row["predicted"]), **row}


def table(document: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Column heads and cells of `Coverage.document`, for people."""
    heads = ["grade", "frames", "error meV/atom", "predicted", "ratio", "within 1 std", "2 std"]
    cells = [
        [
            row["grade"],
            str(row["frames"]),
            f"{row['error']:.3g}",
            *("-" if row[name] is None else f"{row[name]:{form}}" for name, form in FORMS),
        ]
        for row in map(_with_ratio, document["rows"])
    ]
    return heads, cells


def force_table(document: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The same of atoms' forces."""
    cells = [
        [row["grade"], str(row["atoms"]), f"{row['error']:.3g}"] for row in document["force_rows"]
    ]
    return ["grade", "atoms", "force error meV/Å (RMS)"], cells


def remarks(document: Mapping[str, Any]) -> list[str]:
    """Where deviations are wrong, a sentence each, of classes of FEWEST frames or more."""
    judged = [
        row
        for row in map(_with_ratio, document["rows"])
        if row["frames"] >= FEWEST and row["ratio"] is not None
    ]
    wrong = []
    for row in judged:
        if 1.0 / FACTOR <= row["ratio"] <= FACTOR:
            continue
        side = "small" if row["ratio"] > 1.0 else "large"
        wrong.append(
            f"Grade {row['grade']}: deviations are too {side}, errors of energies being "
            f"{row['ratio']:.2g} times the predicted ones, with {100 * row['within_two']:.0f} % of "
            f"{row['frames']} frames within two deviations (95 % would be right)."
        )
    if judged and not wrong:
        wrong.append(f"At these grades errors and deviations agree within a factor of {FACTOR:g}.")
    offset, scatter = document.get("offset", 0.0), document.get("scatter", 0.0)
    if judged and abs(offset) > scatter:
        wrong.append(
            f"These errors are mostly one offset, {offset:+.3g} meV/atom, with a scatter of "
            f"{scatter:.3g} around it, so that they say little of energy differences"
            f"{_scattered(judged)}; 'eqcalc calibrate --refit-energies' leaves constants out."
        )
    return wrong


def _scattered(rows: Sequence[Mapping[str, Any]]) -> str:
    """Ratios without the offset; files of earlier versions have none."""
    known = [row for row in rows if "without_offset" in row]
    ratios = ", ".join(f"{row['without_offset']:.2g} (grade {row['grade']})" for row in known)
    return f" (without it, real by predicted errors: {ratios})" if known else ""


def text(document: Mapping[str, Any]) -> str:
    """Both tables, root mean squares, and `remarks`.

    68 and 95 % within one and two deviations would be right of normal errors.
    """
    parts = []
    for heads, cells in (table(document), force_table(document)):
        widths = [max(len(row[k]) for row in (heads, *cells)) for k in range(len(heads))]
        if cells:
            parts.append(
                "\n".join(
                    "   ".join(
                        f"{cell:<{w}}" if k == 0 else f"{cell:>{w}}"
                        for k, (cell, w) in enumerate(zip(row, widths, strict=True))
                    )
                    for row in (heads, *cells)
                )
            )
    said = remarks(document)
    return "\n\n".join([*parts, "\n".join(said)] if said else parts)


def draw(document: Mapping[str, Any]) -> Figure:
    """Real errors of energies over predicted deviations, coloured by grade; errors by grade."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    points = np.array(document["points"]).reshape(-1, 3)
    if len(points):
        std, error = np.maximum(points[:, 1], 1e-6), np.maximum(np.abs(points[:, 0]), 1e-6)
        marks = left.scatter(
            std, error, c=np.log2(np.maximum(points[:, 2], 0.25)), s=12, cmap="viridis"
        )
        bar = figure.colorbar(marks, ax=left, label="grade of the worst atom")
        low, high = marks.get_clim()
        ticks = [t for t in TICKS if low <= np.log2(t) <= high]
        bar.set_ticks(np.log2(ticks), labels=[f"{t:g}" for t in ticks])
        ends = np.array([std.min() / 1.5, std.max() * 1.5])
        for factor, style in ((1.0, "-"), (2.0, "--")):
            left.plot(ends, factor * ends, style, color="0.4", lw=0.8, label=f"{factor:g} std")
        left.set(xscale="log", yscale="log")
        left.legend(frameon=False, fontsize=8)
    left.set(xlabel="predicted std (meV/atom)", ylabel="|error of the energy| (meV/atom)")
    rows = [row for row in document["rows"] if row["predicted"] is not None]
    place = np.arange(len(rows))
    right.bar(place - 0.2, [row["error"] for row in rows], 0.4, label="error", color="#0072b2")
    right.bar(
        place + 0.2, [row["predicted"] for row in rows], 0.4, label="predicted", color="#e69f00"
    )
    right.set_xticks(place, [f"{row['grade']}\n{row['frames']} frames" for row in rows])
    right.set(xlabel="grade of the worst atom", ylabel="root mean square (meV/atom)")
    right.legend(frameon=False, fontsize=8)
    for axis in (left, right):
        axis.grid(alpha=0.25)
    return figure
