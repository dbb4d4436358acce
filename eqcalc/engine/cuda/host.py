"""The C++ host of the GPU engine, and the description of a network that it reads.

The host's library has the interface of the CPU's engine (csrc/interface.h) and some more, so that
ASE and LAMMPS use it in the same way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eqcalc.engine.build import compile_library, header
from eqcalc.engine.cuda.convolution import LANES
from eqcalc.engine.cuda.nodes import ATOMS
from eqcalc.engine.cuda.source import DeviceCode, text
from eqcalc.engine.cuda.variants import Variant
from eqcalc.engine.description import DESCRIPTION_VERSION, encode
from eqcalc.engine.plan import Plan, RadialTable

_BEGIN = """#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <limits>
#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace {{
using T = {scalar};
using I = std::int64_t;
constexpr I DESCRIPTION_VERSION = {version};
"""


def host_library(scalar: str) -> Path:
    """The compiled host for networks of that scalar.

    Raises:
        EngineUnavailable: there is no C++ compiler.
    """
    parts = [
        header("interface.h"),
        header("gpu_interface.h").replace('#include "interface.h"\n', ""),
        _BEGIN.format(scalar=scalar, version=DESCRIPTION_VERSION),
        text("task.h"),
        "}\n",
        header("callee.h"),
        header("description.h"),
        header("graph.h"),
        *map(text, ("driver.h", "device.h", "table.h", "list.h", "step.h", "network.h")),
        header("pairs.h"),
        text("engine.h"),
    ]
    return compile_library("\n".join(parts), "-ldl")


def _radial(table: RadialTable, num_functions: int, cutoff: float) -> dict[str, Any]:
    """Functions of distance, [intervals, kinds, lines, degree + 1, 32].

    What a warp reads lies together. num_functions: of each kind of bond.
    """
    made = table.coefficients
    intervals, degrees, functions = made.shape
    made = made.reshape(intervals, degrees, functions // LANES, LANES).transpose(0, 2, 1, 3)
    return {
        "cutoff": float(cutoff),
        "segments": [{"start": float(a), "intervals": n} for a, n in table.segments],
        "table": made,
        "interval_stride": made[0].size,
        "kind_stride": num_functions * degrees,
    }


def network_bytes(
    plan: Plan, code: DeviceCode, image: bytes, driver: str, variant: Variant
) -> bytes:
    """The network's description for `eqcalc_open`.

    Args:
        variant: how it is run.
        image: the compiled kernels.
        driver: the library of the GPU's driver.
    """
    num_counts = 0 if plan.counts is None else plan.counts.matrix.shape[1]
    begins = {row.name: row.begin for row in plan.rows}
    layers: list[dict[str, Any]] = []
    for k, layer in enumerate(plan.layers):
        layers.append(
            {
                **code.layers[k],
                "features": layer.features,
                "messages": layer.messages,
                "radial": _radial(layer.table, layer.num_weights, plan.cutoff),
                "count": layer.count,
                "species_features": begins[layer.features] if k == 0 else None,
            }
        )
    return encode(
        {
            "version": DESCRIPTION_VERSION,
            "driver": driver,
            "image": image,
            "num_species": plan.num_species,
            "num_y": (plan.l_max + 1) ** 2 - 1,
            "atoms_per_block": ATOMS,
            "fades": int(plan.crowding is not None or plan.counts is not None),
            "num_counts": num_counts,
            "counts": plan.counts
            and _radial(plan.counts.table, -(-num_counts // LANES) * LANES, plan.cutoff),
            "graphs": int(variant.graphs),
            "num_features": plan.num_features,
            "pool_width": code.nodes.pool_width,
            "rows": code.nodes.rows,
            "layers": layers,
            "weights": code.weights,
            "constants": code.constants,
        }
    )
