"""The training domain of a set of frames: its limits (`eqcalc.domain`), and crowding in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
from ase import Atoms, units
from ase.data import chemical_symbols, covalent_radii

from eqcalc.data.dataset import GraphDataset
from eqcalc.domain import Domain, where_unmet
from eqcalc.nn.crowding import COMPRESSED, COUNTED, Crowding, CrowdingConstants

#: of the sum of the covalent radii: a unit of length for two elements that never meet
UNMET = 0.9
#: keys of a frame that tell its temperature in K
TEMPERATURES = "temperature", "Temperature", "temp", "T"


def shortest_distances(frames: GraphDataset, species: int) -> np.ndarray:
    """[species, species] Å, of all frames; inf for pairs that never come within the cutoff."""
    shortest = np.full((species, species), np.inf)
    for item in frames:
        graph = item.graph
        pairs = graph.species[graph.edge_dst].numpy(), graph.species[graph.edge_src].numpy()
        np.minimum.at(shortest, pairs, graph.edge_vec.norm(dim=1).numpy())
    return np.minimum(shortest, shortest.T)


def temperature(structures: Iterable[tuple[Atoms, str]]) -> float | None:
    """The highest that structures or their config_types ("MD 300 K", "300K_MD") tell, K."""
    found = []
    for atoms, name in structures:
        given = [atoms.info[key] for key in TEMPERATURES if key in atoms.info]
        given += re.findall(r"(\d+(?:\.\d+)?) ?K(?![A-Za-z0-9])", name)
        found += [float(t) for t in given if str(t).replace(".", "", 1).isdigit()]
        if atoms.has("momenta") and len(atoms) > 1:
            found.append(2.0 * atoms.get_kinetic_energy() / (3.0 * len(atoms) * units.kB))
    return max((t for t in found if 0.0 < t < 1e5), default=None)


def measure(
    frames: GraphDataset,
    atomic_numbers: Sequence[int],
    reference: Sequence[float],
    highest: float | None = None,
) -> Domain:
    """The domain of training frames.

    Args:
        frames: graphs and labels, all of which are looked at.
        atomic_numbers: Z of each species.
        reference: energies of the species' atoms, eV.
        highest: temperature, K.
    """
    count = len(atomic_numbers)
    neighbors = np.tile([np.iinfo(np.int64).max, -1], (count, 1))
    spans: dict[str, list[float]] = {"density": [], "pressure": [], "energy_per_atom": []}
    force: float | None = None
    table = np.asarray(reference)
    for item in frames:
        graph, size = item.graph, item.graph.num_atoms
        species = graph.species.numpy()
        number = np.bincount(graph.edge_dst.numpy(), minlength=size)
        np.minimum.at(neighbors[:, 0], species, number)
        np.maximum.at(neighbors[:, 1], species, number)
        per_atom = (float(item.energy) - table[species].sum()) / size
        spans["energy_per_atom"] += [per_atom] if np.isfinite(per_atom) else []
        if graph.volume > 0.0:
            spans["density"].append(size / float(graph.volume))
            pressure = -float(item.stress[0].diagonal().mean()) / units.GPa
            spans["pressure"] += [pressure] if np.isfinite(pressure) else []
        squares = item.forces.square().sum(dim=1).numpy()
        squares = squares[np.isfinite(squares)]
        if len(squares):
            force = max(force or 0.0, float(np.sqrt(squares.max())))
    return Domain.of(
        symbols=[chemical_symbols[z] for z in atomic_numbers],
        shortest=shortest_distances(frames, count),
        neighbors=neighbors,
        frames=len(frames),
        atoms=int(frames.atom_counts().sum()),
        spans=spans,
        force=force,
        temperature=highest,
    )


def crowding_of(
    frames: GraphDataset,
    atomic_numbers: Sequence[int],
    cutoff: float,
    known: CrowdingConstants | None = None,
) -> CrowdingConstants:
    """What makes atoms more crowded than in any of the frames (`eqcalc.nn.crowding`).

    Args:
        frames: all of which are looked at.
        atomic_numbers: Z of each species.
        cutoff: Å.
        known: of a network that is trained further, for these species, distances being inf and
            coordinations 0 where it knows none; coordinations only rise.

    Returns:
        Numbers of six digits, so that machines agree on them.
    """
    count = len(atomic_numbers)
    shortest = shortest_distances(frames, count)
    if known is None:
        unknown = np.full_like(shortest, np.inf).tolist()
        known = CrowdingConstants(unknown, unknown, [0.0] * count)
    shortest = np.where(np.isfinite(known.distances), known.distances, shortest)
    radii = covalent_radii[list(atomic_numbers)]
    bonds = np.add.outer(radii, radii)
    unit = np.minimum(where_unmet(shortest, UNMET * bonds), cutoff / COUNTED[1])
    distances, closest = (
        np.vectorize(lambda r: float(f"{r:.6g}"))(r).tolist()
        for r in (unit, np.minimum(unit, bonds))
    )
    measure_with = Crowding(CrowdingConstants(distances, closest, [1.0] * count))
    most = np.zeros(count)
    for item in frames:
        graph = item.graph
        length = COMPRESSED * graph.edge_vec.norm(dim=1)
        n = measure_with.neighbours(graph.species, graph.edge_src, graph.edge_dst, length)
        np.maximum.at(most, graph.species.numpy(), n.numpy())
    most = np.maximum(most, 1.0)  # atoms that stand alone may still form a pair
    largest = [max(k, float(f"{n:.6g}")) for k, n in zip(known.coordination, most, strict=True)]
    return CrowdingConstants(distances, closest, largest)
