"""C++ of the steps between two convolutions: of the kinds that a network has, and their sizes."""

from __future__ import annotations

from eqcalc.engine.build import header
from eqcalc.engine.contraction_kernels import contraction_kernels
from eqcalc.engine.plan import (
    AddStep,
    ContractionStep,
    DensityStep,
    GateStep,
    LayerNormStep,
    LinearStep,
    NormGateStep,
    Plan,
    ReadoutStep,
    SphereStep,
    Step,
)

#: where the class of the same name is, in csrc/
HEADERS: dict[type[Step], str] = {
    AddStep: "add_step.h",
    ContractionStep: "contraction.h",
    DensityStep: "density_step.h",
    GateStep: "gate_step.h",
    LayerNormStep: "layer_norm_step.h",
    LinearStep: "linear_step.h",
    NormGateStep: "norm_gate_step.h",
    ReadoutStep: "readout_step.h",
    SphereStep: "sphere.h",
}

_MAKE = """
namespace {{
COLD std::unique_ptr<Step> make_step(const Record &from, int source, int target)
{{
{cases}
  refuse("step", from.kind());
}}
}}
"""


def _most_sphere_rows(plan: Plan, steps: list[Step]) -> int:
    rows = [step.sphere.to_grid.shape[1] for step in steps if isinstance(step, SphereStep)]
    if plan.frames:
        rows.append((plan.frames.degree + 1) ** 2)
    return max(rows, default=1)


def step_source(plan: Plan) -> str:
    """The steps' classes, and what makes one of its description.

    Steps of contractions note the number of their kernel in the plan.
    """
    steps = [step for layer in plan.layers for step in layer.steps]
    most = max((s.dim for s in steps if isinstance(s, LinearStep | DensityStep)), default=1)
    kinds = [kind for kind in HEADERS if any(type(step) is kind for step in steps)]
    headers = {HEADERS[kind] for kind in kinds}
    if any(layer.message for layer in plan.layers):
        headers.add(HEADERS[SphereStep])  # messages have functions on the sphere, too
    cases = "\n".join(
        f'  if (from.kind() == "{kind.__name__}")\n'
        f"    return std::make_unique<{kind.__name__}>(from, source, target);"
        for kind in kinds
    )
    sizes = f"MOST_ROWS = {most}, MOST_SPHERE_ROWS = {_most_sphere_rows(plan, steps)}"
    return "\n".join(
        [
            f"namespace {{\nconstexpr int {sizes};\n}}\n",
            header("steps.h"),
            contraction_kernels(plan) if ContractionStep in kinds else "",
            *map(header, sorted(headers)),
            _MAKE.format(cases=cases),
        ]
    )
