"""The C++ host of the GPU engine, and the description of a network that it reads.

The host's library has the interface of the CPU's engine (csrc/interface.h) and some more, so that
ASE and LAMMPS use it in the same way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from eqcalc.engine.build import compile_library, header
from eqcalc.engine.cuda.convolution import LANES
from eqcalc.engine.cuda.nodes import ATOMS
from eqcalc.engine.cuda.source import DeviceCode, text
from eqcalc.engine.description import DESCRIPTION_VERSION, encode
from eqcalc.engine.plan import LayerPlan, Plan

_BEGIN = """#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
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
        _BEGIN.format(scalar=scalar, version=DESCRIPTION_VERSION),
        text("task.h"),
        "}\n",
        header("description.h"),
        header("graph.h"),
        *map(text, ("driver.h", "device.h", "network.h")),
        header("pairs.h"),
        text("engine.h"),
    ]
    return compile_library("\n".join(parts), "-ldl")


def _table(layer: LayerPlan) -> np.ndarray:
    """[intervals, kinds, lines, degree + 1, 32]: what a warp reads lies together."""
    made = layer.table.coefficients
    intervals, degrees, functions = made.shape
    return made.reshape(intervals, degrees, functions // LANES, LANES).transpose(0, 2, 1, 3)


def network_bytes(plan: Plan, code: DeviceCode, image: bytes, driver: str) -> bytes:
    """The network's description for `eqcalc_open`.

    Args:
        image: the compiled kernels.
        driver: the library of the GPU's driver.
    """
    begins = {row.name: row.begin for row in plan.rows}
    layers: list[dict[str, Any]] = []
    for k, layer in enumerate(plan.layers):
        table = _table(layer)
        segments = [{"start": float(a), "intervals": n} for a, n in layer.table.segments]
        layers.append(
            {
                **code.layers[k],
                "features": layer.features,
                "messages": layer.messages,
                "cutoff": float(plan.cutoff),
                "segments": segments,
                "table": table,
                "interval_stride": table[0].size,
                "kind_stride": layer.num_weights * table.shape[2],
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
            "fades": int(plan.crowding is not None),
            "num_features": plan.num_features,
            "pool_width": code.nodes.pool_width,
            "rows": code.nodes.rows,
            "layers": layers,
            "weights": code.weights,
            "constants": code.constants,
        }
    )
