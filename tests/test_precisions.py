"""Every place where a precision is asked for knows the same names."""

from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from ase.build import bulk

from eqcalc import cli_shared, export
from eqcalc.errors import InputError
from eqcalc.lammps import write_input
from eqcalc.training.config import from_dict


def of_files(precision):
    return str(export.precision(precision, {"dtype": "float32"})).removeprefix("torch.")


def of_commands(precision):
    return cli_shared.precision(precision) or "float32"


def of_training(precision):
    return from_dict({"training": {"precision": precision}}).training.precision


def of_lammps(precision):
    with TemporaryDirectory() as folder:
        script = write_input(bulk("Si"), "si", folder, precision=precision).read_text()
    words = {"single": "float32", "double": "float64"}
    return next((name for word, name in words.items() if f"precision {word}" in script), "float32")


PLACES = [of_files, of_commands, of_training, of_lammps]


@pytest.mark.parametrize("asked", PLACES)
def test_usual_names(asked):
    names = {"float32": "float32", "single": "float32", "float64": "float64", "double": "float64"}
    assert {name: asked(name) for name in names} == names
    with pytest.raises(InputError, match=r"'float46'.* must be float32 or float64"):
        asked("float46")


@pytest.mark.parametrize("asked", [of_files, of_commands, of_lammps])
def test_precision_of_the_file(asked):
    assert asked("file") == asked(None) == "float32"


def test_types_of_torch_and_numpy():
    for kind in (torch.float64, np.float64, np.dtype("float64"), "torch.float64"):
        assert export.precision(kind, {"dtype": "float32"}) == torch.float64
    with pytest.raises(InputError, match="must be float32 or float64"):
        export.precision(torch.float16, {"dtype": "float32"})
    with pytest.raises(InputError, match=r"training\.precision 'file'"):
        of_training("file")
