"""From a file of another package, recognised by its content, to an export of ours."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii

from eqcalc import export, origin, precisions
from eqcalc.errors import InputError
from eqcalc.importers import fairchem, mace, nequip, nequip_files, published, sevennet, unpickle
from eqcalc.importers.modules import collected
from eqcalc.models.base import Potential
from eqcalc.models.config import ModelConfig
from eqcalc.neighbors import neighbor_list


@dataclass(frozen=True)
class Imported:
    """What was written.

    Attributes:
        path: of the export.
        source: what was read.
        origin: source, package, version, authors, citation, as in its metadata.
    """

    path: Path
    source: Path
    origin: dict[str, Any]

    def line(self) -> str:
        """For people."""
        return origin.line(self.origin)


def _elements(symbols: Sequence[str] | None) -> list[int] | None:
    if not symbols:
        return None
    unknown = [s for s in symbols if atomic_numbers.get(s, 0) == 0]
    if unknown:
        raise InputError(f"There is no element {', '.join(unknown)}: name symbols.")
    return sorted({atomic_numbers[s] for s in symbols})


def every_element(numbers: Sequence[int]) -> Atoms:
    """A dense periodic structure with all these elements, no two atoms nearer than bonds are.

    Sites of a simple cubic lattice, displaced by up to a tenth of its constant.
    """
    count = max(8, len(numbers))
    shape = [max(2, round(count ** (1.0 / 3.0)))] * 2
    shape.append(-(-count // (shape[0] * shape[1])))
    radii = [covalent_radii[z] for z in numbers]
    constant = 1.2 * 2.0 * min(max(np.median(radii), 1.0), 1.4)
    sites = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, 3)
    rng = np.random.default_rng(0)
    places = constant * (sites + rng.uniform(-0.1, 0.1, sites.shape))
    order = rng.permutation(len(sites))
    kinds = np.array([numbers[n % len(numbers)] for n in range(len(sites))])[order]
    return Atoms(kinds, positions=places, cell=constant * np.array(shape), pbc=True)


def _with_reference(model: Potential) -> Potential:
    """The reference structure holds every element, so that whoever opens the file tests them."""
    atoms = every_element(model.atomic_numbers)
    pairs = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, model.cutoff)
    vectors = pairs.vectors(atoms.positions, atoms.cell.array)
    place = {z: n for n, z in enumerate(model.atomic_numbers)}
    arrays = [vectors, pairs.edge_src, pairs.edge_dst]
    species = torch.tensor([place[z] for z in atoms.numbers.tolist()])
    graph = species, *map(torch.from_numpy, arrays)
    model.reference_structure = export.reference_structure(model, *graph)
    return model


def _read(
    path: Path, keep: list[int] | None, task: str | None
) -> tuple[Potential, ModelConfig, dict[str, Any]]:
    """The network of a file, its options and origin; what kind of file it is, its content tells."""
    if nequip_files.kind(path):
        if task is not None:
            raise InputError(f"{path.name} has one task: leave out --task {task}.")
        network, version = nequip_files.network(path)
        return *nequip.convert(network, keep), nequip_files.origin(version)
    content = unpickle.load(path)
    if isinstance(content, unpickle.Stub) and mace.is_model(found := collected(content)):
        return mace.convert(found, path.name, keep, task)
    if fairchem.is_checkpoint(content):
        return fairchem.convert(content, path.name, keep, task)
    if not sevennet.is_checkpoint(content):
        raise InputError(
            f"{path} is no file of SevenNet, NequIP, MACE or fairchem-core: no other kind is "
            "covered yet."
        )
    return sevennet.convert(content, path.name, keep, task)


def import_model(
    source: str | Path,
    output: str | Path,
    *,
    elements: Sequence[str] | None = None,
    task: str | None = None,
    dtype: str = "float32",
) -> Imported:
    """Reads a file of another package (`_read`) and writes an export with the same numbers.

    Args:
        source: the file, a folder of NequIP's training, or a name in `published.NAMES`, with the
            task behind it (NAME:TASK).
        output: where to write.
        elements: symbols of those to keep, default all; fewer make smaller files.
        task: of a multi-task model, or a head.
        dtype: of the weights in the export; those of published files are float32.

    Raises:
        InputError: no such file, a kind of file or an option that is not covered.
    """
    dtype = precisions.named(dtype, "dtype")
    folder = Path(source).expanduser()
    if folder.is_dir():
        path, named = folder / "best_model.pth", None
    else:
        path, named = published.find(source)
    model, config, package = _read(path, _elements(elements), task or named)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    title, licence = published.KNOWN.get(digest, (path.name, "licence not known"))
    known = {"source": path.name, "sha256": digest, "title": title, "licence": licence}
    facts = {**known, **package}
    for parameter in model.parameters():  # constants stay in float64, as in files of training
        parameter.data = parameter.data.to(getattr(torch, dtype))
    model = _with_reference(model)
    hyper = dataclasses.asdict(config) | {"avg_num_neighbors": 1.0}
    export.save(
        model,
        output,
        {"architecture": config.architecture_name, "hyperparameters": hyper, "origin": facts},
    )
    return Imported(Path(output), path, facts)
