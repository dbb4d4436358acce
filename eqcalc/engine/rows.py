"""How long the rows of a plan live, and where: decided here, carried out by csrc/network.h.

A row that is used in one layer only is kept for a block of atoms; all others for all atoms, as are
those whose values the way back needs. A gradient takes its row's place where the values are not
needed any more when its sum begins: where the way back does not need them at all, or where the one
step that needs them is the one that makes the gradient.
"""

from __future__ import annotations

from typing import Any

from eqcalc.engine.plan import LayerPlan, Plan, Row, Step


def _used(layer: LayerPlan) -> set[str]:
    """Rows of the atoms that a layer works on, all but its features."""
    used = {layer.messages, *(name for step in layer.steps for name in step.rows)}
    if layer.message and layer.message.centre != layer.features:
        used.add(layer.message.centre)
    return used


class Lives:
    """Where rows are in the layers of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.steps: list[Step] = [step for layer in plan.layers for step in layer.steps]
        self.layers = {
            row.name: [k for k, layer in enumerate(plan.layers) if row.name in _used(layer)]
            for row in plan.rows
        }
        self.features = {layer.features for layer in plan.layers}
        # rows that messages need on the way back: the centre's, and their own where the weights of
        # attention share a total
        by_message = [layer for layer in plan.layers if layer.message]
        self.read_again = {layer.message.centre for layer in by_message} - self.features
        self.read_again |= {layer.messages for layer in by_message if layer.message.heads}

    def needed(self, name: str) -> bool:
        """By the way back."""
        by_step = any(step.source == name and step.needs_source for step in self.steps)
        return by_step or name in self.read_again

    def carried(self, name: str) -> bool:
        """From layer to layer."""
        return len(self.layers[name]) > 1

    def gradient(self, name: str) -> str:
        """Its place: "as values", "kept" or "in block"."""
        readers = [step for step in self.steps if step.source == name]
        if self.needed(name):
            alone = len(readers) == 1 and readers[0].in_place and name not in self.read_again
            return "as values" if alone else "kept" if self.carried(name) else "in block"
        return "as values" if self.carried(name) else "in block"

    def row(self, row: Row) -> dict[str, Any]:
        """A row as C++ reads it."""
        of_neighbours = row.name in self.features
        return {
            "name": row.name,
            "width": row.width,
            "begin": row.begin,
            "of_neighbours": of_neighbours,
            "kept": of_neighbours or self.needed(row.name) or self.carried(row.name),
            "gradient": self.gradient(row.name),
        }

    def starts(self, layer: int) -> list[str]:
        """Rows whose sums begin in a layer."""
        set_whole = {step.rows[-1] for step in self.steps if step.sets_target}
        set_whole |= {layer.messages for layer in self.plan.layers}
        return [
            name
            for name, layers in self.layers.items()
            if layers and layers[0] == layer and name not in set_whole
        ]

    def gradient_starts(self, layer: int) -> list[str]:
        """Rows the sums of whose gradients begin there, on the way back."""
        return [
            name
            for name, layers in self.layers.items()
            if layers
            and layers[-1] == layer
            and name not in self.features
            and not (self.needed(name) and self.gradient(name) == "as values")
        ]
