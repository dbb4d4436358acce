"""Can the stresses be in eV/Å^3? A bound of magnitude, for frames whose energies cannot tell.

Energies of strained frames measure the stress (`eqcalc.data.check_units`). Frames in one cell have
no such energies, but numbers in kbar or GPa taken for eV/Å^3 are 1602 or 160 times too large, which
three bounds notice. The first two are on the virial per atom, the eigenvalues of stress * V / N:

1. No bond pulls by more than about 10 eV: the strongest that are known, along a carbon chain or
   [100] in diamond, give 12 eV per atom along one direction, most matter 1 eV. Compression comes
   from the repulsion of nuclei through the inner electrons, less than twice that of Ziegler,
   Biersack and Littmark (The Stopping and Range of Ions in Matter, 1985), and from the Fermi
   pressure of the outer electrons, 2/5 of the Fermi energy for one electron per atom. Iron at
   360 GPa, 16 eV per atom, and tungsten at 1000 GPa, 61, stay within these. Beyond them there may
   be no more than `ONE` eV per atom in any frame, and
2. `HALF` eV per atom in half of all frames, which is the whole cohesion of most solids.
3. Two frames of the same atoms whose cells differ by a small strain have stresses that differ by
   the stiffness of matter times the strain and by what moves with the forces F on atoms: each bond
   of length l adds l F / V, at random, in all F v^(-2/3) / sqrt(N), v the volume per atom. Half of
   all frames may exceed `STIFFNESS` * strain + F v^(-2/3) / sqrt(N) no more than `PAIRS` times. In
   real data the median is 0.1 to 4, in GPa 20 to 600. N counts no further than `RANDOM`, as a
   crystal and its melt differ everywhere alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from ase.units import GPa

from eqcalc.data.dataset import Batch, GraphDataset
from eqcalc.data.findings import Finding
from eqcalc.data.frames import Frame
from eqcalc.derivatives import stress_volume
from eqcalc.neighbors import neighbor_list

#: eV per atom beyond the bounds in one frame, and in half of all
ONE, HALF = 25.0, 5.0

#: what the stresses of two frames may differ by: eV/Å^3 per strain (diamond has 7), at strains up
#: to the second number; the force (eV/Å) that is allowed for at least, for relaxed structures, and
#: where forces are not known, as in a melt; the factor
STIFFNESS, STRAIN, FORCE, HOT, PAIRS = 8.0, 0.05, 0.3, 2.0, 20.0

#: atoms whose forces add at random
RANDOM = 500

#: the ratio of differences to their bound that is typical for stresses in eV/Å^3
TYPICAL = 1.0

#: frames of the same atoms that are compared
MOST = 1000

#: coefficients and exponents of the universal screening function
_SCREENING = np.array([[0.18175, 0.50986, 0.28022, 0.02817], [3.1998, 0.94229, 0.4029, 0.20162]])

#: Å, at which that repulsion is nothing; hbar^2 / 2m in eV Å^2
_REACH, _FERMI = 4.0, 3.81


@dataclass(frozen=True)
class StressRow:
    """What the bounds need of a frame.

    Attributes:
        source: its name in messages.
        stress: [3, 3] eV/Å^3.
        volume: Å^3.
        size: atoms.
        force: root mean square, eV/Å; HOT without forces.
        beyond: eV per atom of the virial that no bond and no repulsion explains; may be negative.
        cell: [3, 3] Å; None if it is not known any more.
        atoms: equal for frames of the same elements in the same order.
    """

    source: str
    stress: np.ndarray
    volume: float
    size: int
    force: float
    beyond: float
    cell: np.ndarray | None = None
    atoms: bytes = b""


def _repulsion(vectors: np.ndarray, z_dst: np.ndarray, z_src: np.ndarray) -> float:
    """Largest eigenvalue (eV) of 1/2 sum_ij r (x) f of the screened repulsion of nuclei.

    vectors: [E, 3] Å; z_dst, z_src: [E] atomic numbers.
    """
    distance = np.linalg.norm(vectors, axis=1)
    x = distance * (z_dst**0.23 + z_src**0.23) / 0.4685
    screened = np.exp(-np.outer(x, _SCREENING[1])) * _SCREENING[0]
    # r f = (phi(x) - x phi'(x)) Z Z' e^2 / (4 pi eps0 r)
    size = (screened * (1.0 + np.outer(x, _SCREENING[1]))).sum(axis=1)
    size *= 14.3996 * z_dst * z_src / distance
    virial = 0.5 * np.einsum("e,ea,eb->ab", size / distance**2, vectors, vectors)
    return float(np.linalg.eigvalsh(virial)[-1])


def _row(
    source: str, stress: np.ndarray, volume: float, edges, numbers: np.ndarray, **rest
) -> StressRow:
    """`edges()`: vectors [E, 3] Å, centres and neighbours [E]."""
    size = len(numbers)
    low, _, high = np.linalg.eigvalsh(0.5 * (stress + stress.T)) * volume / size
    pushed = -low
    if pushed > HALF:  # else the repulsion does not matter
        vectors, dst, src = edges()
        z = numbers.astype(np.float64)
        pushed -= 2.0 * _repulsion(vectors, z[dst], z[src]) / size
        pushed -= 0.4 * _FERMI * (3.0 * np.pi**2 * size / volume) ** (2 / 3)
    return StressRow(source, stress, volume, size, beyond=max(high, pushed), **rest)


def _force(forces: np.ndarray | None) -> float:
    known = forces is not None and np.isfinite(forces).all()
    return float(np.sqrt(np.square(forces).mean())) if known else HOT


def frame_row(frame: Frame) -> StressRow | None:
    """Of a frame; None where it has no stress."""
    atoms = frame.atoms
    volume = stress_volume(atoms.cell.array, atoms.pbc)
    if frame.stress is None or volume is None:
        return None

    def edges() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        pairs = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, _REACH)
        return pairs.vectors(atoms.positions, atoms.cell.array), pairs.edge_dst, pairs.edge_src

    return _row(
        frame.source,
        frame.stress,
        volume,
        edges,
        atoms.numbers,
        force=_force(frame.forces),
        cell=atoms.cell.array,
        atoms=atoms.numbers.tobytes() + atoms.pbc.tobytes(),
    )


def store_rows(frames: GraphDataset, atomic_numbers: list[int]) -> list[StressRow]:
    """Of up to `MOST` frames of a store, evenly spread; the third bound needs cells, unknown here.

    atomic_numbers: Z of each species in its batches.
    """
    number = min(MOST, len(frames))
    return [
        _batch_row(frames[n], frames.source(n), np.array(atomic_numbers))
        for n in (k * len(frames) // number for k in range(number))
        if bool(frames[n].stress.isfinite().all())
    ]


def _batch_row(item: Batch, source: str, atomic_numbers: np.ndarray) -> StressRow:
    graph = item.graph
    edges = graph.edge_vec.numpy(), graph.edge_dst.numpy(), graph.edge_src.numpy()
    numbers = atomic_numbers[graph.species.numpy()]
    stress, volume = item.stress[0].numpy(), float(graph.volume)
    return _row(source, stress, volume, lambda: edges, numbers, force=_force(item.forces.numpy()))


def _ratios(rows: list[StressRow]) -> np.ndarray:
    """Differences of stresses over their bound, of each row and the one of the nearest cell."""
    groups: dict[bytes, list[StressRow]] = {}
    for row in rows:
        if row.cell is not None:
            groups.setdefault(row.atoms, []).append(row)
    ratios = []
    for members in groups.values():
        step = -(-len(members) // MOST)
        group = members[::step]
        count = len(group)
        cells = np.array([row.cell for row in group])
        for a in range(count if count > 1 else 0):
            row = group[a]
            strains = np.abs(np.linalg.solve(row.cell, cells) - np.eye(3)).max(axis=(1, 2))
            strains[a] = np.inf
            # among equal cells one from the other half: neighbours in a trajectory are alike
            order = (np.arange(count) + a + max(1, count // 2)) % count
            other = order[strains[order].argmin()]
            if strains[other] > STRAIN:
                continue
            force = max(row.force, group[other].force, FORCE)
            moved = force * (row.volume / row.size) ** (-2 / 3) / np.sqrt(min(row.size, RANDOM))
            bound = STIFFNESS * strains[other] + moved
            ratios.append(np.linalg.norm(row.stress - group[other].stress) / bound)
    return np.array(ratios)


def magnitude(rows: Iterable[StressRow | None]) -> list[Finding]:
    """An error where the stresses are too large to be in eV/Å^3, with the unit they look like."""
    rows = [row for row in rows if row is not None]
    if not rows:
        return []
    beyond = np.array([row.beyond for row in rows])
    ratios = _ratios(rows)
    ratio = float(np.median(ratios)) if len(ratios) >= 3 else 0.0
    worst = rows[int(beyond.argmax())]
    if beyond.max() > ONE:
        reason = f"{worst.source} has a virial of {beyond.max():.3g} eV per atom"
        reason += " beyond what bonds pull and nuclei push"
        bad = [row for row in rows if row.beyond > ONE]
    elif np.median(beyond) > HALF:
        reason = (
            f"half of the frames have a virial of more than {np.median(beyond):.3g} eV per atom"
        )
        reason += " beyond what nuclei push, all the cohesion of a solid"
        bad = [row for row in rows if row.beyond > HALF]
    elif ratio > PAIRS:
        reason = f"in cells that are alike they differ {ratio:.3g} times as much as the forces on"
        reason += " atoms and the strain allow"
        bad = rows
    else:
        return []
    largest = max(float(np.abs(row.stress).max()) for row in rows)
    number = f"in {len(bad)} of {len(rows)} frames" if len(rows) > 1 else "in the only frame"
    sentence = (
        f"The stresses are too large for eV/Å^3 {number}: up to {largest:.3g} eV/Å^3 are "
        f"{largest / GPa:.4g} GPa, and {reason}. {_looks_like(rows, ratio, largest)}; convert them "
        'or correct these frames, or leave the stresses out with data.stress_key = "".'
    )
    return [Finding("error", "magnitude", sentence, tuple(row.source for row in bad))]


def _looks_like(rows: list[StressRow], ratio: float, largest: float) -> str:
    """The unit that makes the stresses usual, those that are as likely beside it."""
    volume = float(np.median([row.volume for row in rows]))
    units = {
        "GPa": (1 / GPa, "divide by 160.2"),
        "kbar": (10 / GPa, "divide by 1602; VASP's sign and order differ from ASE's"),
        "the virial in eV": (volume, "divide by minus the volume, as data.virial_key does"),
    }
    usual = np.array([np.linalg.norm(r.stress) * r.volume / r.size for r in rows])
    factor = ratio / TYPICAL if ratio > PAIRS else float(np.median(usual)) / 0.5
    apart = {name: abs(np.log(factor / value)) for name, (value, _) in units.items()}
    apart["the virial in eV"] += 0.4  # seldom called a stress
    near = [k for k in sorted(apart, key=apart.get) if apart[k] < min(apart.values()) + 1.3]
    words = [
        f"{name} ({units[name][1]}: up to {largest / units[name][0] / GPa:.3g} GPa)"
        for name in near
    ]
    return f"They look like {' or '.join(words)}"
