"""The plan of a NequIP, read out of its scripted module (eqcalc.models.nequip).

Layer k of an atom: messages m_k of features up_k x_k; then

    before the gate   p_k = own_k x_k + mix_k m_k + out_k B_k,   B_k = products of into_k m_k
    after it          x_{k+1} = gate(p_k)

of which the energy is read in the last layer. What the first layer makes of the species alone is
worked out here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from eqcalc.engine import bricks
from eqcalc.engine.arrays import as_array
from eqcalc.engine.bricks import NamedLayout, children
from eqcalc.engine.plan import GateStep, LayerPlan, Layout, Plan, Row, Step


def _begin(module: Any, name: str, layout: Layout) -> np.ndarray:
    """What sums begin with: a bias, or zeros."""
    if name in dict(module.named_children()):  # older files lack them
        return bricks.bias(getattr(module, name), layout)
    return np.zeros(layout.width)


def _product(
    module: Any, messages: NamedLayout, outputs: NamedLayout, norm: np.ndarray, number: int
) -> tuple[list[Row], list[Step]]:
    """Products of messages with themselves (eqcalc.nn.product): new rows, steps."""
    of_channels, padding = module.channel_product, messages.layout.padding
    channels = int(of_channels.num_channels)
    blocks = tuple((dim, (channels,)) for dim, _ in messages.layout.blocks)
    factors = NamedLayout(f"factors_{number}", Layout(blocks, padding))
    products = NamedLayout(f"products_{number}", bricks.product_layout(of_channels, padding))
    steps = [
        *bricks.linear_steps(module.linear_in.linear, messages, factors, norm),
        bricks.product_step(of_channels, factors, products),
        *bricks.linear_steps(module.linear_out.linear, products, outputs),
    ]
    return [factors.row(), products.row()], steps


def _readout(module: Any, after: NamedLayout, scale: np.ndarray, silu: float) -> Any:
    inner, outer = as_array(module.readout_in), as_array(module.readout_out)
    if getattr(module, "linear_readout", False):  # older files lack it
        inner = inner[:0]
    return bricks.readout_steps(after, inner, outer, scale, silu, "hidden")


def read_nequip(module: torch.jit.ScriptModule, scalar: str, padding: int) -> Plan:
    """The plan of a scripted `eqcalc.models.nequip.NequIP` in float64."""
    reference = module.reference_energy
    modules = children(module.layers)
    silu = next(s[0] for s in (bricks.activation_scales(m.gate) for m in modules) if 0 in s)
    weight = as_array(module.species_embedding)
    inputs = Layout(((1, (weight.shape[1],)),), padding)
    embedding = np.zeros((len(weight), inputs.width))
    embedding[:, inputs.channels(0)] = weight

    rows: list[Row] = []
    layers: list[LayerPlan] = []
    after = NamedLayout("embedding", inputs)
    for k, layer in enumerate(modules):
        x = NamedLayout(f"features_{k}", after.layout)
        convolution, weights, outputs = bricks.convolution(layer.convolution, x.layout)
        before, gated, blocks = bricks.gate(layer.gate, padding)
        messages, before = (
            NamedLayout(f"messages_{k}", outputs),
            NamedLayout(f"before_gate_{k}", before),
        )
        up = bricks.linear_steps(layer.linear_up.linear, after, x)
        own = bricks.linear_steps(layer.self_connection, after, before)
        begins = _begin(layer, "up_bias", x.layout), _begin(layer, "gate_bias", before.layout)
        if k == 0:
            begins = (
                bricks.of_species(up, embedding, begins[0]),
                bricks.of_species(own, embedding, begins[1]),
            )
        else:
            layers[-1].steps += [*up, *own]
            begins = begins[0][None], begins[1][None]
        after = NamedLayout(f"after_gate_{k}", gated)
        norm = as_array(layer.message_norm)
        steps: list[Step] = [*bricks.linear_steps(layer.linear_mix.linear, messages, before, norm)]
        made: list[Row] = [messages.row(), after.row()]
        if getattr(layer, "product", None) is not None:  # older files lack it
            of_products = _product(layer.product, messages, before, norm, k)
            made, steps = made + of_products[0], steps + of_products[1]
        steps.append(GateStep(before.name, after.name, blocks))
        if layer.has_readout:
            of_readout = _readout(layer, after, as_array(reference.scale), silu)
            made, steps = made + of_readout[0], steps + of_readout[1]
        rows += [x.row(begins[0]), before.row(begins[1]), *made]
        layers.append(
            LayerPlan(
                convolution,
                weights,
                bricks.radial_matrices(
                    layer.radial_network, weights, convolution.num_weights, padding
                ),
                x.name,
                messages.name,
                steps,
            )
        )
    return bricks.network_plan(module, scalar, padding, rows, layers, silu)
