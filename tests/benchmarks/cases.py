"""What is compared: networks of one size in every package, and the structures they are put on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

from eqcalc import export
from eqcalc.models.esen import ESENConfig
from eqcalc.models.mace import MACEConfig
from eqcalc.models.nequip import NequIPConfig
from eqcalc.models.registry import build
from eqcalc.neighbors import neighbor_list

CUTOFF = 5.0  # Å
NEIGHBOURS = 28  # of every atom of the crystal
CLOSEST = 2.1  # Å, in the melt
DEFAULTS = NequIPConfig()
MACE_MLP = [64, 64, 64]  # mace-torch's


@dataclass(frozen=True)
class Case:
    """One line of the comparison.

    Attributes:
        channels: of the features of degree 0, 1, 2, natural parity.
        dtype: of the network.
        symbols: elements, in the order of the species.
        kind: "nequip", of that many layers and channels, "mace", of l_max 3 and correlation 3 with
            features up to the degree that channels are given for, or "esen", with as many channels
            within messages and in feed-forward parts.
    """

    name: str
    atoms: int
    channels: tuple[int, ...] = (32, 32, 32)
    layers: int = 4
    dtype: Literal["float32", "float64"] = "float32"
    symbols: tuple[str, ...] = ("Si",)
    structure: Literal["crystal", "melt"] = "crystal"
    kind: Literal["nequip", "mace", "esen"] = "nequip"

    @property
    def network(self) -> dict[str, Any]:
        """Size of the network, for every package."""
        return {
            "kind": self.kind,
            "channels": list(self.channels),
            "layers": self.layers,
            "dtype": self.dtype,
            "symbols": list(self.symbols),
            "cutoff": CUTOFF,
            "num_radial": DEFAULTS.num_radial,
            "radial_mlp": MACE_MLP if self.kind == "mace" else list(DEFAULTS.radial_mlp),
            "avg_num_neighbors": float(NEIGHBOURS),
        }

    def describe(self) -> str:
        kind = {"mace": "MACE of correlation 3, ", "esen": "eSEN of l_max 3, "}.get(self.kind, "")
        wide = "/".join(map(str, self.channels)) if len(set(self.channels)) > 1 else ""
        return (
            f"{kind}{wide or self.channels[0]} channels, {self.layers} layers, {self.dtype}, "
            f"{self.structure}, {self.atoms} atoms, {'+'.join(self.symbols)}"
        )


CASES = {
    case.name: case
    for case in (
        Case("32ch-64", 64),
        Case("32ch-216", 216),
        Case("32ch-1000", 1000),
        Case("float64", 216, dtype="float64"),
        Case("64ch", 216, channels=(64, 64, 64)),
        Case("three-elements", 216, symbols=("Si", "Ge", "C")),
        Case("melt", 216, structure="melt"),
        Case("mace", 216, channels=(128, 128), layers=2, kind="mace"),
        Case("esen", 216, channels=(32,) * 4, layers=3, kind="esen"),
        Case("esen-128", 64, channels=(128,) * 4, layers=3, kind="esen"),
        # of the default sizes, without products of messages, which other packages do not have
        Case("default", 216, channels=tuple(DEFAULTS.num_channels), layers=DEFAULTS.num_layers),
    )
}


def crystal(num_atoms: int, seed: int = 0) -> Atoms:
    """Diamond silicon, displaced by 0.05 Å: the shells at 4.50 and 5.43 Å stay apart."""
    repeat = round((num_atoms / 8) ** (1 / 3))
    atoms = bulk("Si", cubic=True).repeat(repeat)
    if len(atoms) != num_atoms:
        raise ValueError(f"{num_atoms} atoms are no cube of the 8-atom cell")
    atoms.rattle(0.05, seed=seed)
    return atoms


def melt(num_atoms: int, seed: int = 0) -> Atoms:
    """Liquid-like silicon whose density varies along x by a factor of about two.

    Strong random displacements and a density wave; overlaps are pushed apart to `CLOSEST`.
    """
    atoms = crystal(num_atoms)
    rng = np.random.default_rng(seed)
    atoms.positions += rng.normal(scale=0.7, size=(num_atoms, 3))
    length = atoms.cell[0, 0]
    phase = 2.0 * np.pi / length
    atoms.positions[:, 0] += 0.35 / phase * np.sin(phase * atoms.positions[:, 0])
    for _ in range(500):
        pairs = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, CLOSEST)
        if not len(pairs.edge_dst):
            return atoms
        vectors = pairs.vectors(atoms.positions, atoms.cell.array)
        distance = np.linalg.norm(vectors, axis=1, keepdims=True)
        push = -0.5 * (CLOSEST + 0.02 - distance) * vectors / distance
        np.add.at(atoms.positions, pairs.edge_dst, push)
    raise ValueError("the melt keeps overlapping atoms")


def structure_of(case: Case) -> Atoms:
    return melt(case.atoms) if case.structure == "melt" else crystal(case.atoms)


def write_structure(case: Case, atoms: Atoms, path: Path) -> dict[str, float]:
    """Writes the graph that every package is given, and says how many neighbours atoms have.

    Raises:
        ValueError: the atoms of a crystal do not have `NEIGHBOURS` each.
    """
    num_atoms = len(atoms)
    species = np.random.default_rng(1).integers(0, len(case.symbols), num_atoms)
    atoms.set_chemical_symbols([case.symbols[k] for k in species])
    positions, cell = atoms.get_positions(), atoms.cell.array
    pairs = neighbor_list(positions, cell, atoms.pbc, CUTOFF)
    counts = np.bincount(pairs.edge_dst, minlength=num_atoms)
    if case.structure == "crystal" and not (counts == NEIGHBOURS).all():
        raise ValueError(f"an atom of the crystal has {counts.min()} to {counts.max()} neighbours")
    np.savez(
        path,
        positions=positions,
        cell=cell,
        numbers=atoms.numbers,
        species=species.astype(np.int64),
        edge_dst=pairs.edge_dst,
        edge_src=pairs.edge_src,
        cell_shift=pairs.cell_shift,
        edge_vec=pairs.vectors(positions, cell),
    )
    return {"min": int(counts.min()), "mean": float(counts.mean()), "max": int(counts.max())}


def write_export(case: Case, path: Path) -> Path:
    """Our network of that size with random weights, as a potential file."""
    torch.manual_seed(0)
    size = case.network
    shared = {key: size[key] for key in ("cutoff", "num_radial", "radial_mlp")}
    if case.kind == "mace":
        config = MACEConfig(
            **shared,
            num_layers=size["layers"],
            num_channels=size["channels"][0],
            l_max=3,
            feature_l_max=len(size["channels"]) - 1,
        )
    elif case.kind == "esen":
        width = size["channels"][0]
        config = ESENConfig(
            **shared,
            num_layers=size["layers"],
            l_max=len(size["channels"]) - 1,
            num_channels=width,
            hidden_channels=width,
            feed_forward_channels=width,
        )
    else:
        config = NequIPConfig(
            product_channels=0,
            **shared,
            num_layers=size["layers"],
            l_max=len(size["channels"]) - 1,
            num_channels=size["channels"],
            parity=False,
        )
    numbers = sorted({int(Atoms(s).numbers[0]) for s in case.symbols})
    count = len(numbers)
    model = build(config, numbers, size["avg_num_neighbors"], [1.0] * count, [0.0] * count, None)
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=1)
    pairs = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF)
    model.reference_structure = export.reference_structure(
        model,
        torch.arange(len(atoms)) % count,
        torch.from_numpy(pairs.vectors(atoms.positions, atoms.cell.array)),
        torch.from_numpy(pairs.edge_src),
        torch.from_numpy(pairs.edge_dst),
    )
    return export.save(
        model, path, {"architecture": config.architecture_name, "config": asdict(config)}
    )
