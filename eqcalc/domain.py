"""The training domain of a potential: what its frames contain, and whether a structure leaves it.

A network interpolates; outside of its frames its numbers mean nothing, however smooth they are. So
every export carries the ranges of its training frames, and ASE and LAMMPS say when a run leaves
them. The document (`metadata["domain"]`) holds for each quantity what the training had and, with a
margin, the limits that readers compare with:

| key                 | by                | unit      | margin                          |
|---------------------|-------------------|-----------|---------------------------------|
| `shortest_distance` | pair of elements  | Å         | 5 % shorter                     |
| `neighbors`         | element           |           | within the cutoff; 30 % and two |
| `density`           |                   | atoms/Å^3 | 10 %                            |
| `pressure`          |                   | GPa       | a quarter of the range and 1    |
| `energy_per_atom`   |                   | eV        | a quarter of the range and 0.05 |
| `force`             |                   | eV/Å      | half as much again              |
| `temperature`       |                   | K         | none: it is not watched         |

Density and pressure are of frames that have a stress (`eqcalc.derivatives.stress_volume`), energies
are above the reference energies of the atoms, forces the largest of one atom. A pair of elements
that the training never had within the cutoff has no distance: it is outside wherever it occurs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import units

from eqcalc.errors import InputError

#: of the document
VERSION = 1
#: name of the limits for the pair style, in the zip of an export
TEXT_FILE = "eqcalc_domain.txt"

#: what to do on leaving it
ACTIONS = "warn", "stop", "ignore"


def _span(values: Sequence[float], margin: float, extra: float) -> dict[str, list[float]]:
    """Range of values, and limits beyond it by a share of the range and a constant."""
    low, high = float(np.min(values)), float(np.max(values))
    room = margin * (high - low) + extra
    limits = [_short(low - room), _short(high + room)]
    return {"training": [_short(low), _short(high)], "limits": limits}


def _short(value: float) -> float:
    """Six digits, so that machines agree on them."""
    return float(f"{value:.6g}")


def where_unmet(shortest: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """Shortest distances [species, species] Å, and what stands for pairs that never met (inf).

    That is the mean of what each element has with itself, as in a fitted pair potential: an alloy
    is no denser than the metals of which the frames are. Else it is `otherwise`.
    """
    like = 0.5 * np.add.outer(shortest.diagonal(), shortest.diagonal())
    return np.where(np.isfinite(shortest), shortest, np.where(np.isfinite(like), like, otherwise))


class OutsideDomainError(InputError):
    """A structure is outside of the training domain, and `on_domain_exit` is "stop"."""


@dataclass(frozen=True)
class Exit:
    """One way in which a structure is outside: what a reader of logs needs to know.

    Attributes:
        quantity: key of the document.
        atom: index of the atom, or None where the whole structure is meant.
        sentence: with the figure and the training's.
    """

    quantity: str
    atom: int | None
    sentence: str


@dataclass(frozen=True)
class Domain:
    """The document, and tables of its limits."""

    document: dict[str, Any]

    @classmethod
    def watch(cls, metadata: dict[str, Any]) -> DomainWatch | None:
        """For evaluations of the potential with this metadata, if it has a domain."""
        domain = cls.read(metadata)
        return DomainWatch(domain, metadata["reference_energies"]) if domain else None

    @classmethod
    def read(cls, metadata: dict[str, Any]) -> Domain | None:
        """From an export's metadata; None where it has no domain, or one of a later version."""
        document = metadata.get("domain")
        return cls(document) if document and document.get("version") == VERSION else None

    @staticmethod
    def of(
        *,
        symbols: Sequence[str],
        shortest: np.ndarray,
        neighbors: np.ndarray,
        frames: int,
        atoms: int,
        spans: dict[str, Sequence[float]],
        force: float | None,
        temperature: float | None,
    ) -> Domain:
        """From what training frames have.

        Args:
            symbols: of the model's species.
            shortest: [species, species] Å, inf where a pair never comes within the cutoff.
            neighbors: [species, 2] fewest and most neighbours within the cutoff; fewest is above
                most for an element without atoms.
            frames, atoms: how many.
            spans: values of density, pressure and energy_per_atom; empty where unknown.
            force: the largest, eV/Å.
            temperature: the highest, K.
        """
        document: dict[str, Any] = {"version": VERSION, "frames": frames, "atoms": atoms}
        pairs = {}
        for i, a in enumerate(symbols):
            for k, b in enumerate(symbols[i:], i):
                r = float(shortest[i, k])
                known = np.isfinite(r)
                pairs[f"{a}-{b}"] = {
                    "training": _short(r) if known else None,
                    "limit": _short(0.95 * r) if known else None,
                }
        document["shortest_distance"] = pairs
        document["neighbors"] = {
            symbol: {
                "training": [int(low), int(high)],
                "limits": [max(int(0.7 * low) - 2, 0), int(np.ceil(1.3 * high)) + 2],
            }
            for symbol, (low, high) in zip(symbols, neighbors, strict=True)
            if low <= high
        }
        if len(spans["density"]):
            low, high = float(np.min(spans["density"])), float(np.max(spans["density"]))
            document["density"] = {
                "training": [_short(low), _short(high)],
                "limits": [_short(0.9 * low), _short(1.1 * high)],
            }
        for name, extra in (("pressure", 1.0), ("energy_per_atom", 0.05)):
            if len(spans[name]):
                document[name] = _span(spans[name], 0.25, extra)
        if force is not None:
            document["force"] = {"training": _short(force), "limit": _short(1.5 * force)}
        if temperature is not None:
            document["temperature"] = _short(temperature)
        return Domain(document)

    def _pairs(self, symbols: Sequence[str], key: str) -> np.ndarray:
        table = np.full((len(symbols), len(symbols)), np.inf)
        places = {symbol: n for n, symbol in enumerate(symbols)}
        for name, entry in self.document["shortest_distance"].items():
            a, b = (places.get(symbol) for symbol in name.split("-"))
            if a is not None and b is not None and entry[key] is not None:
                table[a, b] = table[b, a] = entry[key]
        return table

    def shortest_training(self, symbols: Sequence[str]) -> np.ndarray:
        """[S, S] Å: the training's shortest distance of two elements; inf where they never met."""
        return self._pairs(symbols, "training")

    def shortest_limits(self, symbols: Sequence[str]) -> np.ndarray:
        """[S, S] Å: below is outside; inf where two elements never met."""
        return self._pairs(symbols, "limit")

    def neighbor_limits(self, symbols: Sequence[str]) -> np.ndarray:
        """[S, 2]: fewer or more neighbours within the cutoff are outside."""
        known = self.document["neighbors"]
        return np.array([known[s]["limits"] if s in known else [0, -1] for s in symbols])

    def text(self) -> str:
        """The limits in plain lines, for the pair style."""
        lines = [f"eqcalc-domain {VERSION}"]
        for name, entry in self.document["shortest_distance"].items():
            limit = "inf" if entry["limit"] is None else f"{entry['limit']:.6g}"
            lines.append(f"shortest_distance {name.replace('-', ' ')} {limit}")
        for symbol, entry in self.document["neighbors"].items():
            lines.append(f"neighbors {symbol} {entry['limits'][0]} {entry['limits'][1]}")
        for name in ("density", "pressure", "energy_per_atom"):
            if name in self.document:
                low, high = self.document[name]["limits"]
                lines.append(f"{name} {low:.6g} {high:.6g}")
        if "force" in self.document:
            lines.append(f"force {self.document['force']['limit']:.6g}")
        return "\n".join(lines) + "\n"

    def rows(self) -> Iterator[tuple[str, str]]:
        """For people: name and figures of the training."""
        document = self.document
        yield "training domain", f"{document['frames']} frames, {document['atoms']} atoms"
        met, never = [], []
        for name, entry in document["shortest_distance"].items():
            r = entry["training"]
            (never if r is None else met).append(name if r is None else f"{name} {r:.3f} Å")
        yield "  shortest distance", ", ".join(met) or "none"
        if never:
            yield "  never met", ", ".join(never)
        ranges = {s: entry["training"] for s, entry in document["neighbors"].items()}
        yield "  neighbours", ", ".join(f"{s} {low}-{high}" for s, (low, high) in ranges.items())
        for name, label, unit in (
            ("density", "density", "atoms/Å^3"),
            ("pressure", "pressure", "GPa"),
            ("energy_per_atom", "energy", "eV/atom above the reference energies"),
        ):
            if name in document:
                low, high = document[name]["training"]
                yield f"  {label}", f"{low:.4g} to {high:.4g} {unit}"
        if "force" in document:
            yield "  largest force", f"{document['force']['training']:.4g} eV/Å"
        if "temperature" in document:
            yield "  highest temperature", f"{document['temperature']:.0f} K"


class DomainWatch:
    """Compares evaluations with a domain.

    Args:
        domain: of the potential.
        reference: reference energies by symbol of the potential's species, in order, eV.
    """

    def __init__(self, domain: Domain, reference: Mapping[str, float]) -> None:
        symbols = list(reference)
        self.document, self.symbols = domain.document, symbols
        self.limits = domain.shortest_limits(symbols)
        self.training = domain.shortest_training(symbols)
        self.counts = domain.neighbor_limits(symbols)
        self.reference = np.array([*reference.values()])

    def exits(
        self,
        species: np.ndarray,
        edge_src: np.ndarray,
        edge_dst: np.ndarray,
        length: np.ndarray,
        *,
        energy: float | None = None,
        forces: np.ndarray | None = None,
        stress: np.ndarray | None = None,
        volume: float | None = None,
    ) -> Iterator[Exit]:
        """What is outside, at most one of each quantity: the worst.

        Args:
            species: [N] of the atoms.
            edge_src, edge_dst: [E] neighbour and centre.
            length: [E] Å, of the neighbours within the cutoff.
            energy: eV; forces: [N, 3] eV/Å; stress: [6] eV/Å^3; volume: Å^3 of what is
                periodic in three directions: vacuum is no density.
        """
        yield from self._distance(species, edge_src, edge_dst, length)
        yield from self._neighbors(species, edge_dst)
        size = len(species)
        if not size:
            return
        if energy is not None:
            per_atom = (energy - self.reference[species].sum()) / size
            yield from self._range("energy_per_atom", per_atom)
        if volume is not None:
            yield from self._range("density", size / volume)
            if stress is not None:
                yield from self._range("pressure", -float(stress[:3].mean()) / units.GPa)
        if forces is not None and "force" in self.document:
            square = np.einsum("ix,ix->i", forces, forces)
            worst = int(square.argmax())
            size, entry = float(np.sqrt(square[worst])), self.document["force"]
            if size > entry["limit"]:
                figures = f"{size:.4g} eV/Å (training: up to {entry['training']:.4g} eV/Å)"
                yield Exit("force", worst, f"the force on atom {worst} is {figures}")

    def _distance(
        self, species: np.ndarray, edge_src: np.ndarray, edge_dst: np.ndarray, length: np.ndarray
    ) -> Iterator[Exit]:
        if not len(length):
            return
        if len(self.symbols) == 1:
            if length.min() >= self.limits[0, 0]:
                return
            ratio = length / self.limits[0, 0]
        else:
            ratio = length / self.limits[species[edge_dst], species[edge_src]]
        worst = int(ratio.argmin())
        if ratio[worst] >= 1.0:
            return
        i, k = int(edge_dst[worst]), int(edge_src[worst])
        a, b = species[i], species[k]
        name = f"{self.symbols[min(a, b)]}-{self.symbols[max(a, b)]}"
        known = self.training[a, b]
        had = f"not shorter than {known:.3f} Å" if np.isfinite(known) else "they never met"
        figures = f"{length[worst]:.3f} Å apart (training: {had})"
        yield Exit("shortest_distance", i, f"atoms {i} and {k} ({name}) are {figures}")

    def _neighbors(self, species: np.ndarray, edge_dst: np.ndarray) -> Iterator[Exit]:
        number = np.bincount(edge_dst, minlength=len(species))
        low, high = self.counts[species].T
        bad = np.flatnonzero((number < low) | ((number > high) & (high >= 0)))
        if len(bad):
            beyond = np.maximum(low - number, number - high)
            worst = int(bad[beyond[bad].argmax()])
            symbol = self.symbols[species[worst]]
            least, most = self.document["neighbors"][symbol]["training"]
            figures = f"{number[worst]} neighbours (training: {least} to {most})"
            yield Exit("neighbors", worst, f"atom {worst} ({symbol}) has {figures}")

    def _range(self, name: str, value: float) -> Iterator[Exit]:
        entry = self.document.get(name)
        if entry is None or entry["limits"][0] <= value <= entry["limits"][1]:
            return
        label, unit = {
            "density": ("density", "atoms/Å^3"),
            "pressure": ("pressure", "GPa"),
            "energy_per_atom": ("energy above the reference energies", "eV/atom"),
        }[name]
        low, high = entry["training"]
        figures = f"{value:.4g} {unit} (training: {low:.4g} to {high:.4g})"
        yield Exit(name, None, f"the {label} is {figures}")
