r"""Properties that a network has beside the energy, and their Cartesian form.

A network makes rows of numbers in e3nn's irreps; users, ASE and files have scalars, vectors and
3x3 tensors. The two are converted at the border, here, by orthonormal matrices,

    row = Q cartesian,   cartesian = Q^T row,

so that squares of differences are those of the Cartesian components. With e_ij = e_i (x) e_j:

| irreps       | Cartesian form           | rows of Q                                       |
|--------------|--------------------------|-------------------------------------------------|
| 0e, 0o       | a number                 | 1                                               |
| 1o, 1e       | vector x y z             | unit matrix                                     |
| 2e           | 3x3, symmetric, no trace | (xz + zx, xy + yx) / sqrt 2,                    |
|              |                          | (2 yy - xx - zz) / sqrt 6,                      |
|              |                          | (yz + zy, zz - xx) / sqrt 2                     |
| 0e + 2e      | 3x3, symmetric           | (xx + yy + zz) / sqrt 3, and those              |
| 0e + 1e + 2e | 3x3                      | and (yz - zy, zx - xz, xy - yx) / sqrt 2        |

A multiple (3x1o) is a list of such; any other irreps stay as they are, in e3nn's order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np

from eqcalc.errors import InputError, did_you_mean


class Irrep(NamedTuple):
    """`multiplicity` times degree `l` and parity `p` (1 or -1)."""

    multiplicity: int
    l: int  # noqa: E741
    p: int

    @property
    def dim(self) -> int:
        return self.multiplicity * (2 * self.l + 1)


#: what outputs of these names are where nothing else is said: irreps, per what, unit
COMMON: dict[str, tuple[str, str, str]] = {
    "dipole": ("1o", "structure", "e*Å"),
    "quadrupole": ("2e", "structure", "e*Å^2"),
    "polarizability": ("0e+2e", "structure", "Å^3"),
    "charges": ("0e", "atom", "e"),
    "magmoms": ("0e", "atom", "mu_B"),
    "born_effective_charges": ("0e+1e+2e", "atom", "e"),
    "direct_forces": ("1o", "atom", "eV/Å"),
}

#: names of what every network with an energy has
RESERVED = frozenset(
    {"energy", "free_energy", "energies", "forces", "stress", "stresses", "virial", "loss"}
)

_SYMMETRIC, _GENERAL = ((0, 1), (2, 1)), ((0, 1), (1, 1), (2, 1))


@dataclass(frozen=True)
class OutputConfig:
    """A property beside the energy. What is unset is that of a common name.

    Attributes:
        name: of the output, and of the labels if nothing else is said. Common ones are dipole,
            quadrupole, polarizability, charges, magmoms, born_effective_charges and direct_forces.
        irreps: in e3nn's notation: "0e" a number, "0o" a pseudoscalar, "1o" a vector, "1e" a
            pseudovector, "2e", "0e+2e", "0e+1e+2e" tensors.
        per: "atom", or "structure": the sum over its atoms.
        key: of the labels in a frame's info, arrays or calculator. Labels are Cartesian: vectors
            x y z, tensors 3x3 (symmetric ones also in ASE's order xx yy zz yz xz xy).
        unit: of labels and predictions, for tables of errors.
        weight: of the loss of this output, whose errors are divided by the root mean square of its
            labels, so that weights of outputs of any unit mean the same.
    """

    name: str = ""
    irreps: str = ""
    per: Literal["", "atom", "structure"] = ""
    key: str = ""
    unit: str = ""
    weight: float = 1.0

    def __post_init__(self) -> None:
        where = f"model.outputs: '{self.name}'"
        fits = re.fullmatch(r"[a-z][a-z0-9_]*", self.name) and not re.search(r"_\d+$", self.name)
        if not fits or self.name in RESERVED:
            raise InputError(
                f"{where} cannot name an output: take small letters, digits and _, no number after "
                f"the last _, and none of {', '.join(sorted(RESERVED))}."
            )
        usual = COMMON.get(self.name, ("", "", ""))
        for option, value in zip(("irreps", "per", "unit"), usual, strict=True):
            if not getattr(self, option):
                object.__setattr__(self, option, value)
        if not (self.irreps and self.per):
            raise InputError(
                f"{where} is no common name{did_you_mean(self.name, COMMON)}: say its irreps, such "
                'as "1o", and per = "atom" or "structure".'
            )
        parts = parsed(self.irreps, where)
        if len({part[1:] for part in parts}) != len(parts):
            raise InputError(
                f"{where}: irreps = '{self.irreps}' has one of them twice: write 2x1o."
            )
        if self.weight < 0.0:
            raise InputError(f"{where}: weight = {self.weight}: it must not be negative.")

    @property
    def parts(self) -> tuple[Irrep, ...]:
        return parsed(self.irreps)

    @property
    def dim(self) -> int:
        """Columns of its rows."""
        return sum(part.dim for part in self.parts)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the Cartesian form, of one atom or structure."""
        return cartesian_form(self.irreps)[0]

    def rows(self, value: Any, count: int) -> np.ndarray:
        """Cartesian labels as rows [count, dim]; count is 1 for a structure.

        Raises:
            ValueError: numbers of another shape; it says which shapes are taken.
        """
        shape, matrix = cartesian_form(self.irreps)
        array = np.asarray(value, dtype=np.float64)
        of_atoms = self.per == "atom"
        lead = (count,) if of_atoms else ()
        symmetric = {part[1:] for part in self.parts} <= {(0, 1), (2, 1)} and shape == (3, 3)
        if symmetric and array.shape == (*lead, 6):
            array = array[..., [0, 5, 4, 5, 1, 3, 4, 3, 2]].reshape(*lead, 3, 3)
        if array.size != count * int(np.prod(shape)) or (of_atoms and array.shape[:1] != lead):
            expected = " x ".join(map(str, (*(("atoms",) if of_atoms else ()), *shape))) or "()"
            also = f" or {'atoms x ' if of_atoms else ''}6 (xx yy zz yz xz xy)" * symmetric
            raise ValueError(f"shape {expected}{also} is expected, not {array.shape}")
        flat = array.reshape(count, -1)
        rows = flat @ matrix.T
        left = np.abs(flat - rows @ matrix)
        known = left[np.isfinite(left)]
        if known.size and known.max() > 1e-3 * np.abs(flat[np.isfinite(flat)]).max():
            what = "symmetric" if len(self.parts) > 1 else "symmetric and has no trace"
            raise ValueError(f"a tensor of irreps {self.irreps} is {what}, unlike this one")
        return rows

    def cartesian(self, rows: np.ndarray) -> Any:
        """Rows [atoms, dim] of the network -> [atoms, *shape], or of a structure [*shape]."""
        shape, matrix = cartesian_form(self.irreps)
        if self.per == "structure":
            value = (rows.sum(axis=0) @ matrix).reshape(shape)
            return float(value) if value.ndim == 0 else value
        return (rows @ matrix).reshape(len(rows), *shape)


@cache
def parsed(irreps: str, where: str = "irreps") -> tuple[Irrep, ...]:
    """The parts of irreps in e3nn's notation.

    Raises:
        InputError: they are none.
    """
    parts = []
    for text in irreps.split("+"):
        found = re.fullmatch(r"\s*(?:(\d+)x)?(\d+)([eo])\s*", text)
        if not found or found[1] == "0":
            raise InputError(f"{where}: '{irreps}' are no irreps: write 1o, 0e+2e or 3x0e.")
        parts.append(Irrep(int(found[1] or 1), int(found[2]), 1 if found[3] == "e" else -1))
    return tuple(parts)


def _tensors() -> dict[int, np.ndarray]:
    """Q of degrees 0, 1 and 2 on 3x3 tensors: [2l + 1, 9], in e3nn's order of m."""
    xx, xy, xz, yx, yy, yz, zx, zy, zz = np.eye(9)
    scalar = np.array([xx + yy + zz]) / np.sqrt(3.0)
    vector = np.array([yz - zy, zx - xz, xy - yx]) / np.sqrt(2.0)
    middle = (2.0 * yy - xx - zz) / np.sqrt(3.0)
    tensor = np.array([xz + zx, xy + yx, middle, yz + zy, zz - xx]) / np.sqrt(2.0)
    return {0: scalar, 1: vector, 2: tensor}


@cache
def cartesian_form(irreps: str) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape of the Cartesian form, and Q [columns of a row, Cartesian components].

    Rows have the channels of an irrep innermost, as all features have.
    """
    parts = parsed(irreps)
    once = tuple(sorted(part[1:] for part in parts))
    if once in (((2, 1),), _SYMMETRIC, _GENERAL) and all(p.multiplicity == 1 for p in parts):
        return (3, 3), np.concatenate([_tensors()[part.l] for part in parts])
    columns = sum(part.dim for part in parts)
    matrix = np.zeros((columns, columns))
    at = 0
    for part in parts:
        for m in range(2 * part.l + 1):
            for channel in range(part.multiplicity):
                row = at + m * part.multiplicity + channel
                matrix[row, at + channel * (2 * part.l + 1) + m] = 1.0
        at += part.dim
    first = parts[0]
    if len(parts) == 1 and first.l <= 1:
        lead = (first.multiplicity,) if first.multiplicity > 1 else ()
        return (*lead, *((3,) if first.l else ())), matrix
    return (columns,), matrix


def described(metadata: Mapping[str, Any]) -> list[OutputConfig]:
    """The outputs of a potential file beside the energy."""
    return [OutputConfig(**document) for document in metadata.get("outputs", ())]


def has_energy(metadata: Mapping[str, Any]) -> bool:
    """Whether a potential file has an energy."""
    return bool(metadata.get("energy", True))


def same(a: OutputConfig, b: OutputConfig) -> bool:
    """Whether they mean the same, wherever their labels come from."""
    return (a.name, a.parts, a.per, a.unit) == (b.name, b.parts, b.per, b.unit)


def slices(outputs: Sequence[OutputConfig]) -> list[slice]:
    """Columns of each output in the rows of all."""
    ends = np.cumsum([0, *(output.dim for output in outputs)])
    return [slice(a, b) for a, b in pairwise(ends)]


def cartesian(outputs: Sequence[OutputConfig], rows: np.ndarray) -> dict[str, Any]:
    """What the rows [atoms, columns of all outputs] of one structure mean, by name."""
    places = zip(outputs, slices(outputs), strict=True)
    return {output.name: output.cartesian(rows[:, place]) for output, place in places}


def refusal(outputs: Iterable[OutputConfig], *, energy: bool) -> str:
    """Why a network is not for LAMMPS, in the words that follow its name; empty if it is."""
    if not energy:
        return "has no energy, which LAMMPS needs: it is for ASE"
    if any(output.name == "direct_forces" for output in outputs):
        return (
            "has direct forces, which are no derivatives of an energy and conserve none: LAMMPS "
            "takes networks without them; in ASE, EquivariantCalculator has direct_forces=True"
        )
    return ""
