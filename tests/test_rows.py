"""Where the rows of a plan live (eqcalc.engine.rows)."""

import pytest
import torch
from potentials import untrained

from eqcalc import export
from eqcalc.engine import readers
from eqcalc.engine.rows import Lives


@pytest.fixture(scope="module")
def lives(tmp_path_factory):
    path = untrained(tmp_path_factory.mktemp("rows") / "model.pth", products=(4, 1))
    return Lives(readers.read(export.load(path, dtype=torch.float64), "double"))


@pytest.mark.parametrize(
    ("name", "kept", "gradient"),
    [
        ("mixed_1", True, "as values"),  # left by the layer before, read by the gate alone
        ("factors_1", True, "in block"),  # of a polynomial, whose gradient needs all of them
        ("sum_1", False, "in block"),
        ("products_1", False, "in block"),
        ("x_2", False, "in block"),
        ("energies_inner", True, "as values"),
        ("up_1", True, "in block"),
    ],
)
def test_rows_live_as_long_as_they_are_needed(lives, name, kept, gradient):
    row = lives.row(next(row for row in lives.plan.rows if row.name == name))
    assert (row["kept"], row["gradient"]) == (kept, gradient)


def test_sums_begin_once(lives):
    # sums over neighbours are set as a whole
    assert lives.starts(0) == ["factors_0", "mixed_0", "up_1", "mixed_1"]
    assert set(lives.starts(1)) == {"factors_1", "energies_inner"}
    # not what takes the place of values that are needed
    assert set(lives.gradient_starts(1)) == {
        "sum_1", "factors_1", "products_1", "x_2"
    }  # fmt: skip
    assert set(lives.gradient_starts(0)) == {
        "sum_0", "factors_0", "products_0", "x_1"
    }  # fmt: skip
