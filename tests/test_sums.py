"""Sums of products: gradients and motions against finite differences (eqcalc.program.sums)."""

import math

import numpy as np
import pytest

from eqcalc.program.sums import Sum, gradient, inputs, move, moved, needed, transpose

#: values that are read twice, in one product as well, and by several sums
SUMS = [
    Sum("a", ((2.0, ("x", "x")), (1.0, ("x", "y")))),
    Sum("b", ((-0.5, ("a", "x")), (1.5, ("z",)))),
    Sum("c", ((1.0, ("a", "b", "y")), (0.7, ("a", "z")))),
    Sum("d", ((1.0, ("b", "b")),)),
]
VALUES = {"x": 0.7, "y": -1.3, "z": 0.4}
WEIGHTS = {"c": 1.1, "d": -0.6}  # of what nobody reads, in an energy


def worked_out(sums, values):
    values = dict(values)
    for made in sums:
        values[made.value] = sum(c * math.prod(values[f] for f in fs) for c, fs in made.terms)
    return values


def gradients(values):
    """Of the energy, by the transposed sums."""
    given = {gradient(name): weight for name, weight in WEIGHTS.items()}
    return worked_out([*SUMS, *transpose(SUMS)], {**values, **given})


def energy(values):
    made = worked_out(SUMS, values)
    return sum(weight * made[name] for name, weight in WEIGHTS.items())


def difference(function, direction, step=1e-5):
    ends = [
        function({k: v + sign * step * direction.get(k, 0.0) for k, v in VALUES.items()})
        for sign in (1, -1)
    ]
    return (ends[0] - ends[1]) / (2 * step)


@pytest.mark.parametrize("name", VALUES)
def test_transposed_sums_are_gradients(name):
    assert gradients(VALUES)[gradient(name)] == pytest.approx(difference(energy, {name: 1.0}), 1e-8)


@pytest.mark.parametrize("directions", [{"x": 0.3, "y": 1.0, "z": -0.8}, {"z": 1.0}])
def test_values_and_gradients_move(directions):
    both = [*SUMS, *transpose(SUMS)]
    motions = move(both, directions)
    given = {moved(name): direction for name, direction in directions.items()}
    given |= {gradient(name): weight for name, weight in WEIGHTS.items()}
    made = worked_out([*both, *motions], {**VALUES, **given})
    for name in ("c", "d", *map(gradient, VALUES)):
        expected = difference(lambda values, name=name: gradients(values)[name], directions)
        assert made.get(moved(name), 0.0) == pytest.approx(expected, 1e-8)


def test_what_is_needed_of_a_list():
    back = transpose(SUMS)
    assert [made.value for made in needed([*SUMS, *back], ["b"])] == ["a", "b"]
    assert inputs(SUMS) == ["x", "y", "z"]
    assert set(inputs([*SUMS, *back])) == {"x", "y", "z", "dc", "dd"}
    assert not np.any([made.value == "dc" for made in back])
