"""The labels that a structure carries: energy, forces and stress, under which names and where.

Units: energy eV (of the whole structure), forces eV/Å, stress eV/Å^3 with ASE's sign (compression
negative, tension positive; i.e. dE/d(strain) / V, V as in `eqcalc.derivatives.stress_volume`),
virial eV: minus V times the stress.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
from ase import Atoms
from ase.units import GPa

from eqcalc.derivatives import stress_volume
from eqcalc.errors import InputError, did_you_mean
from eqcalc.outputs import OutputConfig

#: names that are read where no others are given
DEFAULT_KEYS = {"energy": "energy", "forces": "forces", "stress": "stress", "virial": ""}


class LabelKeys(TypedDict, total=False):
    """How labels are read.

    Attributes:
        energy_key, forces_key, stress_key: the labels' names; "" leaves forces or stress out.
            VASP's forces belong to energy_key="free_energy"; "energy" is extrapolated to no
            smearing.
        virial_key: name of a virial (eV), read in place of a stress: stress = -virial / volume.
        weight_key: name of the frame's weight in the loss, in `info`; empty for 1.
        pulay_pressure: GPa, constant, that the stress of the data lacks beside the derivative of
            its energies (Francis and Payne, J. Phys. Condens. Matter 2, 4395 (1990)); added.
        outputs: labels beside these that are read, too.
        without_energy: frames need no energy, and none is read.
    """

    energy_key: str
    forces_key: str
    stress_key: str
    virial_key: str
    weight_key: str
    pulay_pressure: float
    outputs: Sequence[OutputConfig]
    without_energy: bool


class Labels(NamedTuple):
    """As they stand in the data, finite or not: eV, eV/Å [N, 3], eV/Å^3 [3, 3]; None if absent."""

    energy: float | None
    forces: np.ndarray | None
    stress: np.ndarray | None


def key_of(label: str, keys: LabelKeys) -> str:
    """The name under which "energy", "forces", "stress" or "virial" is read; "" if it is not."""
    return keys.get(f"{label}_key", DEFAULT_KEYS[label])


def asked_by_name(keys: LabelKeys) -> dict[str, str]:
    """Labels that are read under a name of their own, and that name."""
    names = {label: key_of(label, keys) for label in DEFAULT_KEYS}
    return {label: key for label, key in names.items() if key and key != DEFAULT_KEYS[label]}


def check_keys(keys: LabelKeys) -> None:
    """InputError if both a stress and a virial are asked for by name."""
    asked = asked_by_name(keys)
    if {"stress", "virial"} <= asked.keys():
        raise InputError(
            f"data.stress_key = '{asked['stress']}' and data.virial_key = '{asked['virial']}' both "
            "name the stress: leave one out."
        )


def places(atoms: Atoms) -> list[dict[str, Any]]:
    """Where labels may be: a calculator's results, info, arrays, and what an ASE database adds."""
    results = atoms.calc.results if atoms.calc is not None else {}
    extra = (atoms.info.get("key_value_pairs"), atoms.info.get("data"))
    return [results, atoms.info, atoms.arrays, *(place for place in extra if place)]


def find_label(atoms: Atoms, key: str) -> Any:
    """What has this name, from the first of the places that has it; None for no name."""
    found = (place[key] for place in places(atoms) if key and place.get(key) is not None)
    return next(found, None)


def config_type(atoms: Atoms) -> str:
    """The name of the group a structure belongs to."""
    group = find_label(atoms, "config_type")
    return "all" if group is None else str(group)


def is_isolated_atom(group: str) -> bool:
    """Whether a config_type says, as in files for GAP and MACE, that a frame is a free atom.

    Its energy is the reference energy of its element.
    """
    name = "".join(letter for letter in group.lower() if letter.isalnum())
    return name in {"isolatedatom", "isolatedatoms"}


def add_pressure(stress: np.ndarray | None, pressure: float) -> np.ndarray | None:
    """stress [3, 3] eV/Å^3 with `pressure` GPa more compression; None stays so."""
    return None if stress is None else stress - pressure * GPa * np.eye(3)


def _numbers(value: Any, what: str, source: str) -> np.ndarray:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{source}: {what} is {value!r}: numbers are expected.") from None


def stress_matrix(value: Any, source: str, what: str = "the stress") -> np.ndarray:
    """[3, 3] of a stress as [6] in ASE's order xx yy zz yz xz xy, [9] or [3, 3]."""
    value = _numbers(value, what, source)
    if value.shape == (6,):
        xx, yy, zz, yz, xz, xy = value
        return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    if value.size == 9:
        return value.reshape(3, 3)
    raise InputError(f"{source}: {what} has shape {value.shape}; 6 (Voigt) or 3x3 is expected.")


def _stress(atoms: Atoms, source: str, keys: LabelKeys) -> np.ndarray | None:
    """[3, 3] eV/Å^3 from a stress or a virial.

    Raises:
        InputError: one that was asked for by name is there, but the structure can have none.
    """
    virial_key, stress_key = key_of("virial", keys), key_of("stress", keys)
    key = virial_key or stress_key
    value = find_label(atoms, key)
    if value is None:
        return None
    volume = stress_volume(atoms.cell.array, atoms.pbc)
    if volume is None:
        if key == DEFAULT_KEYS["stress"]:  # `spellings.LabelSurvey` tells of it
            return None
        reason = (
            "its cell has no volume; give the cell its third vector, vacuum included"
            if atoms.pbc.any()
            else "the structure is periodic in no direction; set pbc if it should be"
        )
        raise InputError(
            f"{source}: '{key}' was asked for, but a stress needs a volume, and {reason}, or "
            "remove the label from this frame."
        )
    matrix = stress_matrix(value, source, "the virial" if virial_key else "the stress")
    return -matrix / volume if virial_key else matrix


def read_labels(atoms: Atoms, source: str, keys: LabelKeys) -> Labels:
    """What a structure carries under these names; of a frame of one isolated atom the energy alone.

    Raises:
        InputError: a label is no number, has a wrong shape, or was asked for by name and cannot be
            used.
    """
    energy_key = key_of("energy", keys)
    energy = find_label(atoms, energy_key)
    if energy is not None:
        try:
            energy = float(energy)
        except (TypeError, ValueError):
            raise InputError(
                f"{source}: '{energy_key}' is {energy!r}, not one number: name the key of the "
                "energy with data.energy_key."
            ) from None
    if is_isolated_atom(config_type(atoms)):
        return Labels(energy, None, None)
    forces = find_label(atoms, key_of("forces", keys))
    if forces is not None:
        forces = _numbers(forces, "the force label", source)
        if forces.shape != (len(atoms), 3):
            raise InputError(f"{source}: the forces have shape {forces.shape}, not (atoms, 3).")
    stress = _stress(atoms, source, keys)
    return Labels(energy, forces, add_pressure(stress, keys.get("pulay_pressure", 0.0)))


def output_key(output: OutputConfig, keys: LabelKeys) -> str:
    """The name under which an output's labels are read; direct forces are the forces."""
    usual = key_of("forces", keys) if output.name == "direct_forces" else output.name
    return output.key or usual


def read_outputs(atoms: Atoms, source: str, keys: LabelKeys) -> dict[str, np.ndarray]:
    """What a structure carries of the outputs, as rows of their irreps [atoms or 1, columns].

    Raises:
        InputError: a label is no number, has a wrong shape or symmetry, or is not finite.
    """
    found = {}
    for output in keys.get("outputs", ()):
        key = output_key(output, keys)
        value = find_label(atoms, key)
        if value is None:
            continue
        numbers = _numbers(value, f"'{key}'", source)
        try:
            rows = output.rows(numbers, len(atoms) if output.per == "atom" else 1)
        except ValueError as error:
            raise InputError(f"{source}: '{key}' for the output {output.name}: {error}.") from None
        if not np.isfinite(rows).all():
            raise InputError(f"{source}: '{key}' is not a finite number; remove this frame.")
        found[output.name] = rows
    return found


def _names(atoms: Atoms) -> list[str]:
    """Of all that a structure carries."""
    names = {name for place in places(atoms) for name in place} - {"numbers", "positions"}
    return sorted(names)


def without_output(images: Iterable[Atoms], output: OutputConfig, keys: LabelKeys) -> str:
    """One sentence about frames without an output; images: some, for the names that they have."""
    key, known = output_key(output, keys), sorted({name for a in images for name in _names(a)})
    return (
        f"No training frame has the output {output.name} under the key '{key}'"
        f"{did_you_mean(key, known) if known else ''}: name the right key with key = ... in "
        "[[model.outputs]]."
    )


def without_energy(atoms: Atoms, source: str, keys: LabelKeys) -> str:
    """One sentence about a structure without an energy."""
    known = ", ".join(_names(atoms)) or "nothing"
    return (
        f"{source} has no energy under the key '{key_of('energy', keys)}' (it has: {known}): "
        "name the right key with data.energy_key or --energy-key."
    )
