"""The description of a network on its way into C++."""

import numpy as np
import pytest
import torch

from eqcalc import export
from eqcalc.engine import fused
from eqcalc.engine.description import encode
from eqcalc.errors import InputError


@pytest.fixture(scope="module")
def prepared(potential_path):
    potential = export.load(potential_path, dtype=torch.float64)
    return fused.prepare(potential, torch.float64, "network")


def opened(library, network):
    return fused.NetworkPool(library, network, lambda: network)


def test_may_lie_anywhere_in_memory(prepared):
    library, network = prepared
    memory = np.frombuffer(b"x" + network, np.uint8)[1:]
    assert opened(library, memory.tobytes()).memory > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda n: n[:-8], "cut short"),
        (lambda n: n + bytes(8), "made by another eqcalc"),
        (lambda n: n.replace(b"shift\0\0\0", b"shaft\0\0\0", 1), "lacks 'shift'"),
        (lambda _: encode({"version": 0}), "made by another eqcalc"),
        (lambda _: encode([1, 2.0, "three"]), "made by another eqcalc"),
    ],
)
def test_faults_have_names(prepared, change, said):
    library, network = prepared
    with pytest.raises(InputError, match=said):
        opened(library, change(network))


def test_what_has_no_tag_is_refused():
    with pytest.raises(TypeError, match="a complex"):
        encode({"number": 1j})
