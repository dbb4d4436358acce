"""Errors of models trained with the configurations beside this file, next to published ones.

    eqcalc train examples/train_acac.toml --out runs/acac
    eqcalc train examples/train_acac_from_xtb.toml --out runs/acac_from_xtb
    eqcalc train examples/train_elements.toml --out runs/mo     (li and si by --set, see there)
    python examples/accuracy.py --data PATH/TO/DATA --runs runs --out examples

acac.pth has been trained further (acac_bonds.py): move runs/acac away to have its figures. Every
set whose run (or examples/NAME.pth) is there is evaluated on its test frames, the others keep
what accuracy.json says of them; writes accuracy.json and accuracy.png and prints the table.
3BPA has learned frames at 300 K and is judged at 600 K, on frames of the ensemble of the published
test, not its own; what extrapolates was chosen with them in view.
References are figures of the MACE paper
(arXiv:2206.07697) for molecules and of Zuo et al. (2020) for elements; their force errors of
elements are rounded to 0.01 eV/Å.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from eqcalc import EquivariantCalculator
from eqcalc.data.frames import read_frames
from eqcalc.training.evaluate import evaluate_results


@dataclass(frozen=True)
class Set:
    """A test set: its file, the measure that papers quote, and their rows.

    Reference rows are (energy, forces) in meV per molecule or per atom, and meV/Å.
    """

    title: str
    test: str
    measure: str
    energy: str
    references: dict[str, tuple[float, float]] = field(default_factory=dict)


ACAC = {"BOTNet": (0.89, 6.3), "NequIP": (0.81, 5.9), "MACE": (0.9, 5.1)}
BPA = {"NequIP": (11.2, 26.4), "MACE": (9.7, 21.8)}
ASPIRIN = {"GAP": (17.7, 44.9), "ACE": (6.1, 17.9), "NequIP": (2.3, 8.2), "MACE": (2.2, 6.6)}
SETS = {
    "acac": Set("AcAc, 300 K", "acac/test_MD_300K.xyz.gz", "rmse", "energy_total", ACAC),
    "acac_from_xtb": Set(
        "AcAc from GFN2-xTB", "acac/test_MD_300K.xyz.gz", "rmse", "energy_total", ACAC
    ),
    "3bpa": Set("3BPA, 600 K from 300 K", "3BPA/ood_600K.xyz.gz", "rmse", "energy_total", BPA),
    "aspirin": Set(
        "rMD17 aspirin",
        "rmd17_aspirin/test.xyz.gz",
        "mae",
        "energy_total",
        ASPIRIN,
    ),
    "aspirin_from_xtb": Set(
        "aspirin from GFN2-xTB", "rmd17_aspirin/test.xyz.gz", "mae", "energy_total", ASPIRIN
    ),
    "benzene": Set("rMD17 benzene", "rmd17_benzene/test.xyz.gz", "mae", "energy_total"),
    "si": Set(
        "mlearn Si",
        "mlearn_Si/test.xyz.gz",
        "mae",
        "energy",
        {"GAP": (2.91, 70.0), "MTP": (2.21, 60.0)},
    ),
    "li": Set(
        "mlearn Li",
        "mlearn_Li/test.xyz.gz",
        "mae",
        "energy",
        {"GAP": (0.49, 10.0), "MTP": (0.49, 10.0)},
    ),
    "mo": Set(
        "mlearn Mo",
        "mlearn_Mo/test.xyz.gz",
        "mae",
        "energy",
        {"GAP": (2.24, 90.0), "MTP": (2.83, 90.0)},
    ),
    "nbmotaw": Set("Nb-Mo-Ta-W", "nbmotaw/test_unary.xyz.gz", "rmse", "energy"),
}


def model_of(name: str, runs: Path) -> Path | None:
    """The run's export, or the file that is kept beside this script."""
    choices = (runs / name / "model.pth", Path(__file__).with_name(f"{name}.pth"))
    return next((path for path in choices if path.is_file()), None)


def row(entry: Set, model: Path, data: Path) -> dict:
    """Errors of all frames and of each config_type."""
    calculator = EquivariantCalculator(model)
    frames = read_frames(data / entry.test)
    results = calculator.evaluate(frame.atoms for frame in frames)
    metadata = calculator.potential.metadata
    return {
        "parameters": metadata["num_parameters"],
        "best_epoch": metadata.get("training", {}).get("best_epoch"),
        "errors": evaluate_results(frames, results).summary(),
    }


def table(results: dict[str, dict]) -> str:
    """Ours and the references, one row per set, in the measure that papers quote."""
    lines = ["| set | measure | energy | forces meV/Å | stress GPa | published: energy / forces |"]
    lines.append("|---|---|---|---|---|---|")
    for name, result in results.items():
        entry, errors = SETS[name], result["errors"]["all"]
        unit = "meV" if entry.energy == "energy_total" else "meV/atom"
        stress = f"{errors['stress'][entry.measure]:.2f}" if "stress" in errors else ""
        others = ", ".join(f"{k} {e:g} / {f:g}" for k, (e, f) in entry.references.items())
        lines.append(
            f"| {entry.title} | {entry.measure.upper()} | "
            f"**{errors[entry.energy][entry.measure]:.2f}** {unit} | "
            f"**{errors['forces'][entry.measure]:.1f}** | {stress} | {others} |"
        )
    return "\n".join(lines)


def draw(results: dict[str, dict], path: Path) -> None:
    """Bars of energy and force errors, ours beside the published ones."""
    figure = Figure(figsize=(2.3 * max(2, len(results)), 5.6), layout="constrained")
    axes = figure.subplots(2, len(results), squeeze=False)
    for column, (name, result) in zip(axes.T, results.items(), strict=True):
        entry, errors = SETS[name], result["errors"]["all"]
        ours = errors[entry.energy][entry.measure], errors["forces"][entry.measure]
        unit = "meV" if entry.energy == "energy_total" else "meV/atom"
        for k, (axis, label) in enumerate(
            zip(column, (f"energy ({unit})", "forces (meV/Å)"), strict=True)
        ):
            names = [*entry.references, "eqcalc"]
            values = [*(reference[k] for reference in entry.references.values()), ours[k]]
            bars = axis.bar(names, values, color=["0.75"] * len(entry.references) + ["tab:blue"])
            axis.bar_label(bars, fmt="%.3g", fontsize=8)
            axis.set_ylabel(f"{label} {entry.measure.upper()}", fontsize=9)
            axis.tick_params(axis="x", labelrotation=45, labelsize=8)
            axis.spines[["top", "right"]].set_visible(False)
            axis.margins(y=0.12)
            axis.set_xlim(-0.6, max(3, len(names)) - 0.4)
        column[0].set_title(entry.title, fontsize=10)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=Path(), help="where to write")
    options = parser.parse_args()
    before = options.out / "accuracy.json"
    known = json.loads(before.read_text(encoding="utf-8")) if before.is_file() else {}
    results = {}
    for name, entry in SETS.items():
        model = model_of(name, options.runs)
        if model:
            print(f"{name}: {model}")
            results[name] = row(entry, model, options.data)
        elif name in known:
            print(f"{name}: no run in {options.runs}, kept as it is in {before}")
            results[name] = known[name]
        else:
            print(f"{name}: no run in {options.runs}, left out")
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    (options.out / "accuracy.json").write_text(text, encoding="utf-8")
    draw(results, options.out / "accuracy.png")
    print(table(results))


if __name__ == "__main__":
    main()
