"""An import beside the package that its file comes from, where that is installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from ase import Atoms

from eqcalc.errors import InputError
from eqcalc.importers.convert import Imported, every_element
from eqcalc.importers.nequip_original import NequIPOriginal

#: what float32 leaves: eV per atom, eV/Å
ENERGY, FORCE = 1e-5, 1e-4


@contextmanager
def _installed(package: str) -> Iterator[None]:
    """Imports of the original package: a sentence where there is none."""
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"--verify runs the original package, which is not installed here ({error}): "
            f"'pip install {package}', or leave --verify out."
        ) from None


def _nequip(made: Imported) -> Any:
    return NequIPOriginal(made.source)


def _sevennet(made: Imported) -> Any:
    with _installed("sevenn==0.13.0"):
        from sevenn.calculator import SevenNetCalculator
    task = made.origin.get("task")
    return SevenNetCalculator(str(made.source), modal=task, device="cpu", file_type="checkpoint")


def _mace(made: Imported) -> Any:
    with _installed("mace-torch==0.3.16"):
        from mace.calculators import MACECalculator
    head = {"head": made.origin["task"]} if "task" in made.origin else {}
    return MACECalculator(str(made.source), device="cpu", default_dtype="float32", **head)


def _fairchem(made: Imported) -> Any:
    with _installed("fairchem-core==2.24.0"):
        from fairchem.core import FAIRChemCalculator
        from fairchem.core.units.mlip_unit import load_predict_unit
        from fairchem.core.units.mlip_unit.api.inference import InferenceSettings
    task = made.origin.get("task")
    settings = InferenceSettings(predict_untrained_forces={task})
    unit = load_predict_unit(made.source, settings, device="cpu")
    return FAIRChemCalculator(unit, task_name=task)


#: a calculator of the original package, by its name in the file's origin
ORIGINALS = {
    "NequIP": _nequip,
    "SevenNet": _sevennet,
    "MACE": _mace,
    "fairchem-core": _fairchem,
}


def _results(atoms: Atoms, calculator: Any) -> tuple[float, np.ndarray]:
    atoms = atoms.copy()
    atoms.calc = calculator
    return atoms.get_potential_energy() / len(atoms), atoms.get_forces()


def verify(made: Imported, ours: Any) -> str:
    """One sentence on the differences, on a structure of all elements kept.

    Args:
        made: the import.
        ours: a calculator of it.

    Raises:
        InputError: the package is not installed, or says something else.
    """
    atoms = every_element(ours.members[0].potential.atomic_numbers)
    original = ORIGINALS[made.origin["package"]](made)
    (e, f), (e0, f0) = (_results(atoms, c) for c in (ours, original))
    energy, force = abs(e - e0), float(np.abs(f - f0).max())
    sentence = (
        f"Beside the original, on {len(atoms)} atoms of all elements: {energy:.1e} eV per atom, "
        f"{force:.1e} eV/Å apart."
    )
    if not (energy < ENERGY and force < FORCE):
        raise InputError(f"{made.path} differs from its original. {sentence}")
    return sentence
