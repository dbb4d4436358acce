"""Arrays that users give: converted to what everything behind this border expects, or refused.

Behind it positions and cells are contiguous float64, numbers and indices contiguous int64; C code
and compiled extensions read the memory as that.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

import numpy as np
from ase import Atoms

from eqcalc.errors import InputError

#: Å from the origin; beyond, float64 is coarser than 1e-8 Å and no longer resolves bonds
FARTHEST = 1e8


def as_array(
    values: Any, shape: tuple[int | None, ...], name: str, dtype: type = np.float64
) -> np.ndarray:
    """`values` as a contiguous array of `dtype`, the same memory where it is one already.

    Args:
        values: numbers in any layout; integers and floats of any precision.
        shape: None for a dimension of any length.
        name: for the message, such as "positions".
        dtype: np.float64 or np.int64; floats become integers only where nothing is lost.

    Raises:
        InputError: another shape, or values that are not real numbers.
    """
    if type(values) is np.ndarray and values.dtype == dtype and values.flags.c_contiguous:
        array = converted = values
    else:
        array, converted = _converted(values, name, dtype)
    if len(array.shape) != len(shape) or any(
        n not in (None, m) for n, m in zip(shape, array.shape, strict=True)
    ):
        expected = " x ".join("N" if n is None else str(n) for n in shape)
        raise InputError(
            f"The {name} have shape {' x '.join(map(str, array.shape)) or 'of one number'}: "
            f"it must be {expected}."
        )
    return converted


def _converted(values: Any, name: str, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """As they came, and contiguous in `dtype`."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"The {name} cannot be read as an array: {error}.") from None
    if array.dtype.kind not in "fiu":
        raise InputError(
            f"The {name} are of type {array.dtype}: they must be real numbers "
            f"({np.dtype(dtype).name})."
        )
    if np.ma.is_masked(values):
        raise InputError(f"The {name} are a masked array with entries left out: fill them in.")
    with np.errstate(invalid="ignore", over="ignore"):
        converted: np.ndarray = np.ascontiguousarray(array, dtype=dtype)
    if converted.dtype.kind == "i" and not np.array_equal(converted, array):
        raise InputError(f"The {name} must be integers of at most 64 bits.")
    return array, converted


def _directions(pbc: Any) -> np.ndarray:
    """[3] bool of three flags, or of one for all directions."""
    flags = np.asarray(pbc)
    if flags.dtype == bool and flags.shape == (3,):
        return flags
    known = flags.dtype.kind in "biuf" and flags.shape in ((), (3,))
    if not known or not np.isin(flags, (False, True)).all():
        raise InputError(f"pbc = {pbc}: it must be true or false, or three of these.")
    return np.broadcast_to(flags.astype(bool), 3)


def _refuse_positions(positions: np.ndarray) -> NoReturn:
    bad = np.flatnonzero(~np.isfinite(positions).all(axis=1))
    if len(bad):
        raise InputError(
            f"The position of atom {bad[0]} is {positions[bad[0]]}: not a finite number "
            f"({len(bad)} atoms in all); the structure is broken before eqcalc sees it."
        )
    worst = int(np.abs(positions).max(axis=1).argmax())
    raise InputError(
        f"The position of atom {worst} is {positions[worst]}: beyond {FARTHEST:.0e} Å from the "
        "origin no bond can be resolved; move or wrap the atoms to near the cell."
    )


def check_structure(
    positions: Any, cell: Any, pbc: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions [N, 3] Å and cell [3, 3] Å in float64, pbc [3] bool.

    Raises:
        InputError: no neighbour list can be made of them.
    """
    positions = as_array(positions, (None, 3), "positions")
    cell = as_array(cell, (3, 3), "cell vectors")
    pbc = _directions(pbc)
    if not np.abs(positions).max(initial=0.0) <= FARTHEST:
        _refuse_positions(positions)
    _check_cell(cell.tobytes(), pbc.tobytes())
    return positions, cell, pbc


@lru_cache(maxsize=64)  # most structures have the cell of the one before
def _check_cell(entries: bytes, directions: bytes) -> None:
    """InputError for cell vectors [3, 3] (float64) and pbc [3] that no list can be made of."""
    cell = np.frombuffer(entries).reshape(3, 3)
    pbc = np.frombuffer(directions, dtype=bool)
    if not np.isfinite(cell).all():
        raise InputError(f"The cell has entries that are not finite numbers: {cell.tolist()}.")
    if np.abs(cell).max() > FARTHEST:
        raise InputError(
            f"The cell has vectors longer than {FARTHEST:.0e} Å ({cell.tolist()}): "
            "are they in other units?"
        )
    periodic = cell[pbc]
    if len(periodic):
        singular = np.linalg.svd(periodic, compute_uv=False)
        if singular[-1] < 1e-6:
            axes = "".join(a for a, p in zip("abc", pbc, strict=True) if p)
            raise InputError(
                f"The structure is periodic along {axes}, but those cell vectors are zero or "
                f"linearly dependent ({periodic.tolist()}): set the cell, or turn pbc off there."
            )


class Structure(NamedTuple):
    """numbers [N] int64; positions [N, 3] Å and cell [3, 3] Å, float64; pbc [3] bool: checked."""

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray

    @classmethod
    def of(cls, atoms: Atoms | Structure) -> Structure:
        """InputError for atoms of which no neighbour list can be made."""
        if isinstance(atoms, Structure):
            return atoms
        if not isinstance(atoms, Atoms):
            raise InputError(f"ase.Atoms are needed here, not {type(atoms).__name__}.")
        numbers = as_array(atoms.numbers, (None,), "atomic numbers", np.int64)
        positions, cell, pbc = check_structure(atoms.positions, atoms.cell.array, atoms.pbc)
        if len(numbers) != len(positions):
            raise InputError(
                f"There are {len(numbers)} atomic numbers and {len(positions)} positions: "
                "there must be as many of one as of the other."
            )
        return cls(numbers, positions, cell, pbc)
