"""Sums of products: gradients and motions against finite differences (eqcalc.program.sums, and
those of Clebsch-Gordan products, eqcalc.program.trilinear).
"""

import math

import numpy as np
import pytest
from e3nn import o3

from eqcalc.program.sums import Sum, gradient, inputs, move, moved, needed, transpose
from eqcalc.program.trilinear import TrilinearForm

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


def coupling(l1, l2, l3):
    """A form with two harmonics of each number, as a path of a convolution may have."""
    w3j = o3.wigner_3j(l1, l2, l3).double()
    terms = [(*map(int, at), float(w3j[tuple(at)])) for at in w3j.abs().gt(1e-9).nonzero()]
    return TrilinearForm(tuple(terms))


@pytest.mark.parametrize("ls", [(0, 1, 1), (1, 1, 0), (1, 2, 1), (2, 2, 3)])
def test_gradients_of_a_trilinear_form(ls):
    """All orders of summation against differences; what is made of sums, and their transposes."""
    form, rng = coupling(*ls), np.random.default_rng(5)
    factors = {k: rng.normal(size=2 * degree + 1) for k, degree in zip("xyg", ls, strict=True)}
    weight = 0.7

    def value(of):
        return weight * sum(c * of["x"][a] * of["y"][b] * of["g"][d] for a, b, d, c in form.terms)

    def difference(kind, n):
        ends = [{k: v.copy() for k, v in factors.items()} for _ in range(2)]
        ends[0][kind][n] += 0.5
        ends[1][kind][n] -= 0.5
        return value(ends[0]) - value(ends[1])  # exact: the form is linear

    expected = {
        kind: np.array([difference(kind, n) for n in range(len(numbers))])
        for kind, numbers in factors.items()
    }
    for of in "xyg":
        for within in {*"xyg"} - {of}:
            (other,) = {*"xyg"} - {of, within}
            found = np.zeros_like(factors[of])
            for (n, m), inner in form.gradient(of, within).items():
                found[n] += (
                    weight * sum(c * factors[within][k] for k, c in inner) * (factors[other][m])
                )
            np.testing.assert_allclose(found, expected[of], atol=1e-14)

    couplings, messages = form.sums()
    sums = [*couplings, *messages]
    given = {f"{k}{n}": v for k in "xy" for n, v in enumerate(factors[k])} | {"r": weight}
    given |= {gradient(f"m{n}"): v for n, v in enumerate(factors["g"])}
    made = worked_out([*sums, *transpose(sums)], given)
    for kind, name in (("g", "m"), ("x", "dx"), ("y", "dy")):
        found = [made.get(f"{name}{n}", 0.0) for n in range(len(expected[kind]))]
        np.testing.assert_allclose(found, expected[kind], atol=1e-14)
    assert made["dr"] == pytest.approx(value(factors) / weight, rel=1e-12)
