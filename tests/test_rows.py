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
        ("before_gate_1", True, "as values"),  # left by the layer before, read by the gate alone
        ("factors_1", True, "in block"),  # of a polynomial, whose gradient needs all of them
        ("messages_1", False, "in block"),
        ("products_1", False, "in block"),
        ("after_gate_1", False, "in block"),
        ("hidden", True, "as values"),
        ("features_1", True, "in block"),
    ],
)
def test_rows_live_as_long_as_they_are_needed(lives, name, kept, gradient):
    row = lives.row(next(row for row in lives.plan.rows if row.name == name))
    assert (row["kept"], row["gradient"]) == (kept, gradient)


def test_sums_begin_once(lives):
    # messages are set as a whole
    assert lives.starts(0) == ["before_gate_0", "factors_0", "features_1", "before_gate_1"]
    assert set(lives.starts(1)) == {"factors_1", "hidden"}
    # not what takes the place of values that are needed
    assert set(lives.gradient_starts(1)) == {
        "messages_1", "factors_1", "products_1", "after_gate_1"
    }  # fmt: skip
    assert set(lives.gradient_starts(0)) == {
        "messages_0", "factors_0", "products_0", "after_gate_0"
    }  # fmt: skip
