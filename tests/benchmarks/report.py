"""Tables, ratios, machine description and picture of inference.py's results.

python tests/benchmarks/report.py results.json picture.png [CASE ...]
"""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import sys
import textwrap
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

OURS = "eqcalc "


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    cpu, flags = platform.processor() or platform.machine(), ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
        flags = next(x for x in lines if x.startswith("flags"))
    except (OSError, StopIteration):
        pass
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "avx512": "avx512f" in flags,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "versions": {name: version(name) for name in ("eqcalc", "e3nn", "numpy")},
        "threads": 1,
        "date": dt.datetime.now(tz=dt.UTC).isoformat(timespec="minutes"),
        "load_average": os.getloadavg(),
    }


def summarise(facts: dict[str, dict[str, Any]], atoms: int) -> dict[str, dict[str, Any]]:
    """Medians and quartiles in µs per atom, and the ratios of CPU time to our engines."""
    rows = {}
    for label, row in facts.items():
        per_atom = {
            clock: 1e6 * np.quantile(values, [0.25, 0.5, 0.75]) / atoms
            for clock, values in row["seconds"].items()
        }
        rows[label] = {
            "cpu_us_per_atom": float(per_atom["cpu"][1]),
            "cpu_quartiles": [float(per_atom["cpu"][0]), float(per_atom["cpu"][2])],
            "wall_us_per_atom": float(per_atom["wall"][1]),
            "memory_mb": row["memory_mb"],
            "torch": row["torch"],
            "seconds": row["seconds"],
        }
    for row in rows.values():
        row["times"] = {
            label: row["cpu_us_per_atom"] / each["cpu_us_per_atom"]
            for label, each in rows.items()
            if label.startswith(OURS)
        }
    return rows


def table(result: dict[str, Any]) -> str:
    """One case: a row says how many times as long it takes as each of our engines."""
    rows = sorted(result["rows"].items(), key=lambda item: item[1]["cpu_us_per_atom"])
    engines = [label for label, _ in rows if label.startswith(OURS)]
    near = result["neighbours"]
    lines = [
        f"{result['description']}; {near['min']}-{near['max']} neighbours, {near['mean']:.1f} mean",
        f"  {'µs/atom':<30}{'CPU':>8}{'quartiles':>16}{'clock':>8}{'peak MB':>9}"
        + "".join(f"{'× ' + e.removeprefix(OURS):>9}" for e in engines),
    ]
    for label, row in rows:
        spread = "{:.1f}-{:.1f}".format(*row["cpu_quartiles"])
        memory = "-" if row["memory_mb"] is None else f"{row['memory_mb']:.0f}"
        lines.append(
            f"  {label:<30}{row['cpu_us_per_atom']:>8.1f}{spread:>16}"
            f"{row['wall_us_per_atom']:>8.1f}{memory:>9}"
            + "".join(f"{row['times'][e]:>9.1f}" for e in engines)
        )
    for engine, value in result["force_deviation_from_torch"].items():
        lines.append(f"  forces of '{engine}' differ from 'torch' by {value:.1e} eV/Å at most")
    return "\n".join(lines)


def plot(document: dict[str, Any], path: Path, cases: list[str] | None = None) -> None:
    """Horizontal bars, one panel for each case, one logarithmic axis."""
    from matplotlib.figure import Figure

    results = [r for r in document["cases"] if r["rows"] and (not cases or r["name"] in cases)]
    columns = 1 if len(results) == 1 else 2
    tall = -(-len(results) // columns)
    bars = max(len(r["rows"]) for r in results)
    figure = Figure(figsize=(6.0 * columns, (0.26 * bars + 0.55) * tall + 0.5), layout="tight")
    panels = figure.subplots(tall, columns, sharex=True, squeeze=False).ravel()
    for panel in panels[len(results) :]:
        panel.set_visible(False)
    every = [row["cpu_us_per_atom"] for r in results for row in r["rows"].values()]
    panels[0].set_xlim(10.0 ** np.floor(np.log10(min(every) / 1.5)), 3.0 * max(every))
    for panel, result in zip(panels, results, strict=False):
        rows = sorted(result["rows"].items(), key=lambda item: -item[1]["cpu_us_per_atom"])
        values = [row["cpu_us_per_atom"] for _, row in rows]
        colours = ["#c1440e" if label.startswith(OURS) else "#8a94a0" for label, _ in rows]
        drawn = panel.barh([label for label, _ in rows], values, color=colours, log=True)
        panel.bar_label(
            drawn,
            labels=[f"{v:.0f}" if v > 99 else f"{v:.1f}" for v in values],
            padding=3,
            fontsize=8,
        )
        title = "\n".join(textwrap.wrap(result["description"], 72))
        panel.set_title(title, fontsize=9, loc="left")
        panel.tick_params(labelsize=8)
        panel.xaxis.set_minor_formatter("")
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelbottom=True)
    for panel in panels[max(0, len(results) - columns) : len(results)]:
        panel.set_xlabel("CPU µs per atom: energy, forces and stress, one thread", fontsize=8)
    about = document["machine"]
    note = f"{about['cpu']}, torch {about['torch']}, {about['date'][:10]}"
    figure.text(0.99, 0.002, note, ha="right", fontsize=6, color="#666666")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    plot(json.loads(Path(sys.argv[1]).read_text("utf-8")), Path(sys.argv[2]), sys.argv[3:] or None)
