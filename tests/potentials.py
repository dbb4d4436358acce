"""Untrained potentials: random weights obey every law of physics that we check."""

import shutil
from pathlib import Path

import torch
from ase.build import bulk

from eqcalc import export, uncertainty
from eqcalc.importers import published
from eqcalc.models.nequip import NequIPConfig
from eqcalc.models.registry import build
from eqcalc.neighbors import neighbor_list
from eqcalc.nn.crowding import CrowdingConstants
from eqcalc.nn.reference import PairConstants, PairEnergy


def some_pairs(num_species):
    """Pair constants of a strength that forces feel, other ones for every two species.

    Inner limits lie among the bonds of silicon, but for the first species, which has none.
    """
    shape = num_species, num_species, PairEnergy.TERMS
    random = torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    scale = 5.0 * torch.exp(PairEnergy.RATE * torch.arange(1.0, PairEnergy.TERMS + 1.0))
    coefficients = (random + random.transpose(0, 1)) * scale
    limits = [
        [2.2 + 0.1 * (a + b) if a + b else 0.0 for a in range(num_species)]
        for b in range(num_species)
    ]
    return PairConstants(coefficients.tolist(), [[0.9] * num_species] * num_species, limits)


def some_crowding(num_species):
    """Silicon's neighbours, the second ones in part, crowd some atoms more than others."""
    distances = [[2.2 + 0.1 * (a + b) for a in range(num_species)] for b in range(num_species)]
    closest = [[r - 0.05 * len(row) for r in row] for row in distances]
    return CrowdingConstants(distances, closest, [4.7 + 0.4 * a for a in range(num_species)])


def untrained(
    path,
    *,
    channels=(8, 6, 4),
    parity=False,
    layers=2,
    products=(0, 0),
    elements=(8, 14),
    seed=0,
    cutoff=4.0,
    pairs=False,
    crowding=False,
    options=None,
):
    """Writes an export with random weights and returns its path.

    products: their channels and l_max. pairs: with a pair potential. crowding: messages to most
    atoms of silicon at its usual density fade, more or less. options: of NequIPConfig.
    """
    config = NequIPConfig(
        cutoff=cutoff,
        num_layers=layers,
        l_max=len(channels) - 1,
        num_channels=list(channels),
        parity=parity,
        radial_mlp=[16],
        radial_scale=0.8,
        product_channels=products[0],
        product_l_max=products[1],
        pair_potential=pairs,
        **(options or {}),
    )
    return write(path, config, elements, seed=seed, crowding=crowding)


def write(path, config, elements=(8, 14), *, seed=0, crowding=False):
    """Writes an export of any architecture with random weights and returns its path.

    crowding: True, or a module in the place of eqcalc.nn.crowding.
    """
    torch.manual_seed(seed)
    count = len(elements)
    shift = [-1.0 - k for k in range(count)]
    model = build(config, list(elements), 16.0, [1.0] * count, shift, some_pairs(count))
    if crowding is True:
        model.limit_crowding(some_crowding(count))
    elif crowding:
        model.crowding = crowding
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=1)
    pairs = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, config.cutoff)
    vectors = torch.from_numpy(pairs.vectors(atoms.positions, atoms.cell.array))
    species = torch.arange(len(atoms)) % count
    edges = torch.from_numpy(pairs.edge_src), torch.from_numpy(pairs.edge_dst)
    # every irrep has a scale of its own, as in trained networks
    scales = [[x * (0.7 + 0.3 * (n % 3)) for n, x in enumerate(r)] for r in model.message_scales()]
    model.set_message_scales(scales)
    for name, parameter in model.named_parameters():
        if name.endswith("_bias.bias"):
            torch.nn.init.normal_(parameter)
    model.reference_structure = export.reference_structure(model, species, vectors, *edges)
    return export.save(model, path, {"architecture": config.architecture_name})


def calibrated(source, target, frames):
    """A copy of a potential whose training were these frames."""
    file = export.load(source, dtype="float64")
    known = []
    for atoms in frames:
        pairs = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, file.cutoff)
        vectors = torch.from_numpy(pairs.vectors(atoms.positions, atoms.cell.array))
        edges = torch.from_numpy(pairs.edge_src), torch.from_numpy(pairs.edge_dst)
        kind = torch.as_tensor(file.species_of(atoms.numbers))
        features = uncertainty.features(file, kind, vectors, *edges).numpy()
        known.append(uncertainty.FrameFeatures(kind.numpy(), features))
    uncertainty.write(source, target, uncertainty.fit(known)[0], {"version": 1})
    return target


def installed_sevenn(folder: Path) -> Path:
    """A folder for sys.path with a package sevenn that cannot be imported and two files of weights.

    "7net-0" knows O, Si and Cu, "7net-mf-0" has the tasks omat24 and mpa.
    """
    data = Path(__file__).parent / "data" / "sevennet"
    for name, file in (("7net-0", "so3.pth"), ("7net-mf-0", "tasks.pth")):
        path = folder / "sevenn" / "pretrained_potentials" / published.SEVENN[name]
        path.parent.mkdir(parents=True)
        shutil.copy(data / file, path)
    (folder / "sevenn" / "__init__.py").write_text("raise RuntimeError('nobody imports this')\n")
    return folder
