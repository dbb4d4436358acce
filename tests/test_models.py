"""Every architecture's exam: symmetry, derivatives, smoothness, awkward inputs, TorchScript."""

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from e3nn import o3
from potentials import some_pairs
from scipy.spatial.transform import Rotation

from eqcalc import derivatives
from eqcalc.contract import set_precision
from eqcalc.errors import InputError
from eqcalc.export import quiet_torchscript
from eqcalc.graph import Graph
from eqcalc.models.nequip import NequIPConfig
from eqcalc.models.registry import build, model_config
from eqcalc.neighbors import neighbor_list
from eqcalc.nn.angular import SolidHarmonics, SphericalHarmonics
from eqcalc.nn.convolution import Convolution
from eqcalc.nn.linear import SpeciesLinear, block_offsets
from eqcalc.nn.product import ChannelProduct
from eqcalc.nn.radial import BesselBasis, polynomial_envelope
from eqcalc.program.operations import Product

CASES = {  # channels, parity, layers, channels and l_max of products, further options
    "l_max 0": ([6], False, 2, 0, 0, {}),
    "l_max 1": ([5, 3], False, 2, 0, 0, {}),
    "l_max 2": ([5, 4, 3], False, 3, 0, 0, {}),
    "l_max 2, parity": ([4, 3, 2], True, 3, 0, 0, {}),
    "l_max 3": ([4, 3, 3, 2], False, 2, 0, 0, {}),
    "l_max 0, products": ([6], False, 2, 4, 0, {}),
    "l_max 2, scalar products": ([5, 4, 3], False, 3, 4, 0, {}),
    "l_max 2, products": ([5, 4, 3], False, 2, 4, 2, {}),
    "l_max 2, parity, products": ([4, 3, 2], True, 3, 3, 2, {}),
    "l_max 3, products": ([4, 3, 3, 2], False, 2, 3, 3, {}),
    "l_max 2, isolated atoms": ([5, 4, 3], False, 3, 0, 0, {"exact_isolated_atoms": True}),
    "l_max 2, parity, products, isolated atoms": (
        [4, 3, 2],
        True,
        2,
        3,
        2,
        {"exact_isolated_atoms": True},
    ),
    "l_max 2, natural, silu gates, XPLOR": (
        [5, 4, 3],
        False,
        2,
        0,
        0,
        {
            "gate_activation": "silu",
            "envelope_onset": 3.0,
            "scalar_bias": True,
            "species_self_connection": False,
            "embedding": 3,
        },
    ),
    "irreps by layer": (
        [4, 4],
        True,
        3,
        0,
        0,
        {"layer_irreps": ["6x0e+3x1o+2x1e", "5x0o+4x0e+3x1o", "7x0e"], "core_cutoff": 3.5},
    ),
    "l_max 2, pairs": ([5, 4, 3], False, 2, 0, 0, {"pair_potential": True}),
    # to degree 1: r^l makes energies steep, and central differences are off by h^2 (5e-7 at degree
    # 2); test_fused.py has degree 2, with differences of higher order
    "l_max 1, solid harmonics": ([5, 4], True, 2, 0, 0, {"solid_harmonics": True}),
    "l_max 1, by species": (
        [5, 3],
        False,
        2,
        0,
        0,
        {"pair_cutoffs": {"Si": {"Si": 3.0, "O": 3.3}}, "species_messages": True},
    ),
}
CUTOFF = 4.0

SMALL_BLOCKS = {
    "num_layers": 2,
    "l_max": 2,
    "num_channels": 4,
    "hidden_channels": 3,
    "feed_forward_channels": 5,
}
OTHERS = {  # architectures that are programs
    "invariant": {"architecture": "invariant", "num_channels": 6},
    "mace": {"architecture": "mace", "num_channels": 4, "l_max": 2},
    "mace, isolated atoms": {
        "architecture": "mace",
        "num_channels": 3,
        "l_max": 1,
        "correlation": 4,
        "num_layers": 1,
        "exact_isolated_atoms": True,
    },
    "mace, densities": {
        "architecture": "mace",
        "num_channels": 3,
        "l_max": 2,
        "feature_l_max": 2,
        "correlation": 2,
        "self_connections": [False, True],
        "density_normalization": True,
        "distance_transform": "agnesi",
    },
    "tfn": {"architecture": "tfn", "num_channels": [5, 4, 3], "num_layers": 2},
    "tfn, gates, pairs": {
        "architecture": "tfn",
        "num_channels": [5, 4],
        "l_max": 1,
        "nonlinearity": "gate",
        "pair_potential": True,
    },
    "esen": {**SMALL_BLOCKS, "architecture": "esen", "l_max": 3},
    "esen, sphere": {
        **SMALL_BLOCKS,
        "architecture": "esen",
        "l_max": 1,
        "m_max": 1,
        "nonlinearity": "sphere",
        "num_channels": 6,
        "sphere_points": 18,
    },
    "equiformer": {**SMALL_BLOCKS, "architecture": "equiformer", "num_heads": 2},
    "equiformer_v2": {
        **SMALL_BLOCKS,
        "architecture": "equiformer_v2",
        "num_heads": 2,
    },
    "equiformer_v2, gates": {
        **SMALL_BLOCKS,
        "architecture": "equiformer_v2",
        "message_nonlinearity": "gate",
        "nonlinearity": "gate",
        "num_heads": 4,
    },
}
EVERY = [*CASES, *OTHERS]


def make(case, dtype=torch.float64, num_layers=None, seed=1, **options):
    torch.manual_seed(seed)
    if case in OTHERS:
        common = {"cutoff": CUTOFF, "radial_mlp": [12], "radial_scale": 0.6, "readout": 6}
        config = model_config(common | OTHERS[case] | options)
        model = build(config, [8, 14], 15.0, [0.7, 1.1], [-2.0, -5.0], some_pairs(2))
        return set_precision(model, dtype).eval()
    channels, parity, layers, product_channels, product_l_max, further = CASES[case]
    config = NequIPConfig(
        cutoff=CUTOFF,
        num_layers=num_layers or layers,
        l_max=len(channels) - 1,
        num_channels=channels,
        parity=parity,
        radial_mlp=[12],
        radial_scale=0.6,
        product_channels=product_channels,
        product_l_max=product_l_max,
        readout=6,
        **further,
        **options,
    )
    model = build(config, [8, 14], 15.0, [0.7, 1.1], [-2.0, -5.0], some_pairs(2))
    return set_precision(model, dtype).eval()


def to_graph(atoms):
    pairs = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF)
    n = len(atoms)
    return Graph(
        species=torch.from_numpy((atoms.numbers == 14).astype(np.int64)),
        edge_vec=torch.from_numpy(pairs.vectors(atoms.positions, atoms.cell.array)),
        edge_src=torch.from_numpy(pairs.edge_src),
        edge_dst=torch.from_numpy(pairs.edge_dst),
        batch=torch.zeros(n, dtype=torch.int64),
        volume=torch.tensor([atoms.get_volume() if atoms.pbc.all() else 0.0]),
    )


def outputs(model, graph):
    """Atomic energies, forces and strain derivative as numpy arrays."""
    vec = graph.edge_vec.clone().requires_grad_()
    energies = model(graph.species, vec, graph.edge_src, graph.edge_dst, graph.num_atoms)
    gradient = derivatives.edge_gradient(energies, vec)
    forces = derivatives.forces(gradient, graph.edge_src, graph.edge_dst, graph.num_atoms)
    strain = derivatives.strain_derivative(
        gradient, graph.edge_vec, graph.batch[graph.edge_dst], graph.num_graphs
    )
    return energies.detach().numpy(), forces.numpy(), strain.numpy()


def close(a, b, tolerance):
    return np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("case", EVERY)
def test_symmetry(case, dtype, tolerance, crystal):
    model = make(case, dtype)
    energies, forces, strain = outputs(model, to_graph(crystal))
    assert np.abs(forces).max() > 1e-2
    rotation = Rotation.random(random_state=3).as_matrix()
    for matrix in (rotation, rotation @ np.diag([1, 1, -1]), -np.eye(3)):
        turned = crystal.copy()
        turned.set_cell(crystal.cell.array @ matrix.T)
        turned.positions = crystal.positions @ matrix.T
        e, f, s = outputs(model, to_graph(turned))
        assert close(e, energies, tolerance)
        assert close(f, forces @ matrix.T, tolerance)
        assert close(s[0], matrix @ strain[0] @ matrix.T, tolerance)
    moved = crystal.copy()
    moved.positions += [0.3, -1.7, 25.0]
    order = np.random.default_rng(0).permutation(len(crystal))
    for other, index in ((moved, slice(None)), (crystal[order], order)):
        e, f, _ = outputs(model, to_graph(other))
        assert close(e, energies[index], tolerance)
        assert close(f, forces[index], tolerance)
    e, f, s = outputs(model, to_graph(crystal.repeat((1, 2, 1))))
    assert close(e, np.tile(energies, 2), tolerance)
    assert close(f, np.tile(forces, (2, 1)), tolerance)
    assert close(s, 2 * strain, tolerance)
    assert abs(forces.sum(axis=0)).max() <= 20 * tolerance * np.abs(forces).max()


@pytest.mark.parametrize("case", EVERY)
def test_forces_and_strain_are_finite_differences(case, crystal):
    model = make(case)
    _, forces, strain = outputs(model, to_graph(crystal))
    step = 1e-4

    def energy(change):
        atoms = crystal.copy()
        change(atoms)
        return outputs(model, to_graph(atoms))[0].sum()

    for atom, axis in ((0, 0), (3, 2), (5, 1)):

        def displace(atoms, h, atom=atom, axis=axis):
            atoms.positions[atom, axis] += h

        slope = (energy(lambda a: displace(a, step)) - energy(lambda a: displace(a, -step))) / (
            2 * step
        )
        assert abs(slope + forces[atom, axis]) < 1e-7
    for i, j in ((0, 0), (1, 2)):

        def stretch(atoms, h, i=i, j=j):
            deformation = np.eye(3)
            deformation[i, j] += h / 2
            deformation[j, i] += h / 2
            atoms.set_cell(atoms.cell.array @ deformation, scale_atoms=True)

        slope = (energy(lambda a: stretch(a, step)) - energy(lambda a: stretch(a, -step))) / (
            2 * step
        )
        assert abs(slope - strain[0, i, j]) < 1e-6  # eV per cell of 8 atoms, not per volume


@pytest.mark.parametrize("case", ["l_max 2, parity", *OTHERS])
def test_second_derivatives_for_training(case, molecule):
    model = make(case)
    graph = to_graph(molecule)
    keep = graph.edge_vec.norm(dim=1) < 0.95 * CUTOFF

    def forces(vec):
        energies = model(graph.species, vec, graph.edge_src[keep], graph.edge_dst[keep], 5)
        return derivatives.edge_gradient(energies, vec, differentiable=True)

    vec = graph.edge_vec[keep].clone().requires_grad_()
    assert torch.autograd.gradcheck(forces, (vec,), eps=1e-5, atol=1e-5, fast_mode=True)


def test_chirality():
    """Mirror images have one energy, but an inner pseudoscalar tells them apart."""
    # four different arms around a centre
    arms = np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / math.sqrt(3)
    left = Atoms("Si5", np.vstack([[0, 0, 0], arms * [[1.5], [1.8], [2.1], [2.4]]]))
    right = left.copy()
    right.positions[:, 0] *= -1
    model = make("l_max 2, parity", num_layers=4)
    energy = [outputs(model, to_graph(a))[0] for a in (left, right)]
    assert close(energy[0], energy[1], 1e-10)

    def pseudoscalars(atoms):
        graph = to_graph(atoms)
        edges = model.edges(graph.species, graph.edge_vec, graph.edge_src, graph.edge_dst)
        feats = model.embed(graph.species)
        for layer in model.layers[:3]:
            feats, _ = layer(feats, edges, len(atoms))
        irreps = model.layers[2].irreps_out
        at = dict(zip([str(ir) for _, ir in irreps], block_offsets(irreps), strict=False))["0o"]
        return feats[:, at : at + 4].detach().numpy()

    a, b = pseudoscalars(left), pseudoscalars(right)
    assert np.abs(a).max() > 1e-6
    assert close(a, -b, 1e-9)


@pytest.mark.parametrize("case", EVERY)
def test_staged_scripted_and_plain_agree(case, crystal):
    model = make(case)
    graph = to_graph(crystal)
    with quiet_torchscript():
        scripted = torch.jit.script(model)
    for a, b in zip(outputs(model, graph), outputs(scripted, graph), strict=True):
        assert close(a, b, 1e-12)
    for owner in (model, scripted):
        edges = owner.edges(graph.species, graph.edge_vec, graph.edge_src, graph.edge_dst)
        feats = owner.embed(graph.species)
        energies = torch.zeros(len(crystal), dtype=torch.float64)
        for k, layer in enumerate(owner.layers):
            if k > 0:
                assert feats.shape[1] == model.exchange_widths[k - 1]
            feats, readout = layer(feats, edges, len(crystal))
            energies = energies + readout
            weights = model.layers[k].radial(edges.radial)
            told = edges.length
            if model.inner_limit is not None:
                told = model.inner_limit(graph.species, edges.src, edges.dst, told)
                assert (told > edges.length).any()
            if model.pair_cutoffs is not None:
                told = model.pair_cutoffs(graph.species, edges.src, edges.dst, told)
            if model.distance_transform is None:
                assert torch.equal(owner.radial(k, told), weights)
        total = owner.finish(graph.species, edges, energies).detach().numpy()
        assert close(total, outputs(model, graph)[0], 1e-12)


def test_batch_equals_single(crystal, molecule):
    model = make("l_max 2")
    structures = [crystal, molecule, Atoms("Si"), bulk("Si")]
    together = outputs(model, Graph.collate([to_graph(a) for a in structures]))
    single = [outputs(model, to_graph(a)) for a in structures]
    for k in range(3):
        assert close(together[k], np.concatenate([s[k] for s in single]), 1e-12)


@pytest.mark.parametrize("case", ["l_max 2", *OTHERS])
def test_isolated_atom_and_no_atoms(case):
    model = make(case)
    energies, forces, _ = outputs(model, to_graph(Atoms("Si")))
    assert np.isfinite(energies).all()
    assert not forces.any()
    empty = torch.empty(0, dtype=torch.int64)
    assert model(empty, torch.empty(0, 3, dtype=torch.float64), empty, empty, 0).shape == (0,)
    # a pair just inside the cutoff is two isolated atoms, smoothly
    pair = Atoms("Si2", [[0, 0, 0], [0, 0, CUTOFF - 1e-3]])
    near, force, _ = outputs(model, to_graph(pair))
    assert np.abs(near - energies[0]).max() < 1e-6
    assert np.abs(force).max() < 1e-4


@pytest.mark.parametrize("case", ["l_max 2", *OTHERS])
def test_energy_is_twice_differentiable_at_the_cutoff(case):
    model = make(case)
    triangle = Atoms("Si3", [[0, 0, 0], [0, 2.2, 0], [0, 0, 3.0]])

    def force(z):
        atoms = triangle.copy()
        atoms.positions[2] = [0, 0, z]
        return outputs(model, to_graph(atoms))[1][2, 2]

    steps = np.array([-1e-3, -5e-4, 5e-4, 1e-3]) + CUTOFF
    values = [force(z) for z in steps]
    inside, outside = values[1] - values[0], values[3] - values[2]
    assert abs(inside - outside) / 5e-4 < 1e-2  # curvature, eV/Å^2, continuous to O(step)
    u = polynomial_envelope(torch.tensor([1.0 - 1e-4, 1.0, 1.5], dtype=torch.float64), 6)
    assert abs(u[0]) < 1e-9
    assert u[1] == u[2] == 0


def test_pairs_end_at_their_cutoffs():
    model = make("l_max 1, by species")  # the atom at the centre first: Si-Si 3.0, Si-O 3.3 Å
    for symbols, ends in (("Si2", (3.0, 3.0)), ("SiO", (3.3, CUTOFF)), ("O2", (CUTOFF, CUTOFF))):
        alone = outputs(model, to_graph(Atoms(symbols, [[0, 0, 0], [0, 0, 9.0]])))[0]
        for distance in np.arange(2.8, 4.0, 0.1):
            pair = Atoms(symbols, [[0, 0, 0], [0, 0, distance + 0.01]])
            seen = np.abs(outputs(model, to_graph(pair))[0] - alone) > 0.0
            assert seen.tolist() == [distance + 0.01 < end for end in ends]


def test_core_repulsion_closes_the_hole():
    model = make("l_max 2")
    energies = [
        outputs(model, to_graph(Atoms("Si2", [[0, 0, 0], [0, 0, d]])))[0].sum()
        for d in (0.2, 0.4, 0.8, 1.2)
    ]
    assert energies[0] > energies[1] > energies[2] > energies[3]
    assert energies[0] > 500


@pytest.mark.parametrize("l_max", [0, 1, 2, 3, 4])
def test_spherical_harmonics_equal_e3nn(l_max):
    vec = torch.randn(20, 3, dtype=torch.float64)
    ours = SphericalHarmonics(l_max)(vec, vec.norm(dim=1))
    irreps = o3.Irreps.spherical_harmonics(l_max)
    theirs = o3.spherical_harmonics(irreps, vec, normalize=True, normalization="component")
    assert (ours - theirs).abs().max() < 1e-12
    solid = SolidHarmonics(l_max)(vec, vec.norm(dim=1))
    theirs = o3.spherical_harmonics(irreps, vec, normalize=False, normalization="component")
    assert (solid - theirs).abs().max() < 1e-12 * max(1.0, float(theirs.abs().max()))


def component_major(irreps, x):
    """e3nn's [mul, 2l + 1] blocks in our [2l + 1, mul] order."""
    parts = x.split([mul * ir.dim for mul, ir in irreps], dim=-1)
    return torch.cat(
        [
            p.view(*p.shape[:-1], mul, ir.dim).transpose(-1, -2).flatten(-2)
            for p, (mul, ir) in zip(parts, irreps, strict=True)
        ],
        dim=-1,
    )


def test_convolution_and_linear_equal_e3nn():
    irreps = o3.Irreps("4x0e+3x1o+2x2e")
    convolution = Convolution(irreps, 2, irreps)
    sh = o3.Irreps.spherical_harmonics(2)
    mid = [(p.mul, p.ir_out) for p in convolution.paths]
    product = o3.TensorProduct(
        irreps,
        sh,
        o3.Irreps(mid),
        [(p.block, p.l2, k, "uvu", True) for k, p in enumerate(convolution.paths)],
        shared_weights=False,
        internal_weights=False,
        path_normalization="none",
    ).to(torch.float64)
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    x, y, r = random(6, irreps.dim), random(15, 9), random(15, convolution.num_weights)
    src = torch.randint(6, (15,), generator=generator)
    dst = torch.randint(6, (15,), generator=generator).sort().values
    messages = product(x[src], y, r)
    summed = torch.zeros(6, messages.shape[1], dtype=torch.float64).index_add(0, dst, messages)
    # gather the pieces of each irrep: [N, mul, 2l + 1] side by side over paths
    pieces = summed.split([mul * ir.dim for mul, ir in mid], dim=1)
    expected = []
    for _, ir in convolution.irreps_out:
        mine = [
            p.view(6, mul, ir.dim)
            for p, (mul, other) in zip(pieces, mid, strict=True)
            if other == ir
        ]
        expected.append(torch.cat(mine, dim=1).transpose(1, 2).flatten(1))
    got = convolution(component_major(irreps, x), y, r, src, dst, 6)
    assert (got - torch.cat(expected, dim=1)).abs().max() < 1e-6  # e3nn keeps float32 constants

    ours = SpeciesLinear(irreps, irreps).to(torch.float64)
    theirs = o3.Linear(irreps, irreps).to(torch.float64)
    theirs.weight.data = ours.weight.data[0].clone()
    expected = component_major(irreps, theirs(x))
    assert (ours(component_major(irreps, x), torch.empty(0)) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("irreps", ["3x0e+3x1o+3x2e", "2x0e+2x0o+2x1o+2x1e", "3x0e"])
def test_products_equal_e3nn(irreps):
    """Every path there is but the products of an irrep with itself that vanish."""
    irreps = o3.Irreps(irreps)
    channels = irreps[0].mul
    ours = ChannelProduct(irreps, irreps).to(torch.float64)
    paths = [
        (a, b, ir)
        for _, ir in irreps
        for a, (_, ir_a) in enumerate(irreps)
        for b, (_, ir_b) in enumerate(irreps[a:], start=a)
        if ir in ir_a * ir_b
    ]
    theirs = o3.TensorProduct(
        irreps,
        irreps,
        o3.Irreps([(channels, ir) for _, _, ir in paths]),
        [(a, b, k, "uuu", False) for k, (a, b, _) in enumerate(paths)],
        path_normalization="none",
    ).to(torch.float64)
    x = torch.randn(5, irreps.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pieces = theirs(x, x).split([channels * ir.dim for _, _, ir in paths], dim=1)
    vanish = [piece.abs().max() < 1e-6 for piece in pieces]
    assert sum(vanish) == sum(a == b and ir.l % 2 == 1 for a, b, ir in paths)
    expected = []
    for _, ir in ours.irreps_out:
        mine = [
            piece.view(5, channels, ir.dim)
            for piece, gone, (_, _, other) in zip(pieces, vanish, paths, strict=True)
            if other == ir and not gone
        ]
        expected.append(torch.cat(mine, dim=1).transpose(1, 2).flatten(1))
    got = ours(component_major(irreps, x))
    assert (got - torch.cat(expected, dim=1)).abs().max() < 1e-6  # e3nn keeps float32 constants


def test_species_in_one_product_equal_one_by_one():
    """Small batches stack the species; many atoms are sorted by species. Both mean the same."""
    irreps = o3.Irreps("4x0e+3x1o+2x2e")
    linear = SpeciesLinear(irreps, o3.Irreps("5x0e+2x0o+3x1o+4x2e"), 3).to(torch.float64)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, irreps.dim, dtype=torch.float64, generator=generator).requires_grad_()
    species = torch.randint(3, (1000,), generator=generator)
    together = linear(x, species)
    pieces = torch.cat([linear(x[n : n + 100], species[n : n + 100]) for n in range(0, 1000, 100)])
    assert (together - pieces).abs().max() < 1e-13
    seed = torch.randn(pieces.shape, dtype=torch.float64, generator=generator)
    for sorted_way, stacked_way in zip(
        torch.autograd.grad((together * seed).sum(), (x, linear.weight)),
        torch.autograd.grad((pieces * seed).sum(), (x, linear.weight)),
        strict=True,
    ):
        assert (sorted_way - stacked_way).abs().max() < 1e-12
    one = SpeciesLinear(irreps, o3.Irreps("5x0e+2x0o+3x1o+4x2e"), 1).to(torch.float64)
    one.weight.data = linear.weight.data[2:3]
    mine = species == 2
    assert (together[mine] - one(x[mine], species[mine])).abs().max() < 1e-13
    assert not together[:, 5:7].any()  # no 0o goes in


@pytest.mark.parametrize("target", [1.0, 0.5])
@pytest.mark.parametrize("structure", ["crystal", "molecule"])
def test_calibrated_messages_have_the_mean_square_asked_for(structure, target, request):
    model = make("l_max 2", num_layers=4)
    graph = to_graph(request.getfixturevalue(structure))
    model.calibrate(graph.species, graph.edge_vec, graph.edge_src, graph.edge_dst, target)
    edges = model.edges(graph.species, graph.edge_vec, graph.edge_src, graph.edge_dst)
    x = model.embed(graph.species).detach()
    for k, layer in enumerate(model.layers):
        norm, scaled = getattr(layer, f"m_{k}"), []
        norm.register_forward_hook(lambda *call, kept=scaled: kept.append(call[2].detach()))
        x, _ = layer(x, edges, graph.num_atoms)
        for part in scaled[0].split(norm.widths, 1):
            assert part.square().mean().sqrt().item() == pytest.approx(target, rel=5e-3), k

    again = make("l_max 2", num_layers=4)
    again.set_message_scales(model.message_scales())
    for one, two in zip(outputs(model, graph), outputs(again, graph), strict=True):
        assert np.array_equal(one, two)


def test_products_that_are_not_given_are_half_as_wide_as_the_scalars():
    def widths(**options):
        operations = NequIPConfig(**options).program().operations
        return {op.name: o3.Irreps(op.irreps_in) for op in operations if isinstance(op, Product)}

    by_default = widths()
    assert by_default.keys() == {"products_0", "products_1", "products_2"}
    assert {mul for irreps in by_default.values() for mul, _ in irreps} == {64}
    assert {mul for mul, _ in widths(num_channels=[10, 4, 4])["products_0"]} == {5}
    assert {mul for mul, _ in widths(product_channels=3)["products_0"]} == {3}
    assert not widths(product_channels=0)


def test_impossible_configurations_are_refused():
    with pytest.raises(InputError, match="num_channels has 2 entries, but l_max = 2 needs 3"):
        NequIPConfig(l_max=2, num_channels=[4, 4])
    with pytest.raises(InputError, match="cutoff = -1"):
        NequIPConfig(cutoff=-1.0)
    with pytest.raises(InputError, match="product_channels = -2: it must be positive, or 0"):
        NequIPConfig(product_channels=-2)
    with pytest.raises(InputError, match=r"product_l_max = 3: it must be 0 \.\. l_max = 2"):
        NequIPConfig(product_channels=4, product_l_max=3)
    with pytest.raises(InputError, match="product_l_max = 1, but there are no products"):
        NequIPConfig(product_channels=0, product_l_max=1)
    with pytest.raises(InputError, match=r"species_correlation = 1\.5: it must be 0 \.\. 1"):
        NequIPConfig(species_correlation=1.5)
    with pytest.raises(InputError, match=r"initial_messages = 0\.0: it must be positive"):
        NequIPConfig(initial_messages=0.0)
    with pytest.raises(InputError, match=r"pair_cutoffs\.Si\.O = 6\.0: it must be 0 "):
        NequIPConfig(pair_cutoffs={"Si": {"O": 6.0}})
    with pytest.raises(ValueError, match=r"no path from 3x0e .* into 2x1e"):
        Convolution(o3.Irreps("3x0e"), 2, o3.Irreps("2x1e"))
    with pytest.raises(ValueError, match="appears twice"):
        SpeciesLinear(o3.Irreps("2x0e+3x0e"), o3.Irreps("2x0e"))


@pytest.mark.parametrize(
    "name",
    [
        *("l_max 2", "l_max 2, parity, products", "invariant", "mace", "tfn"),
        *("esen", "equiformer", "equiformer_v2"),
    ],
)
def test_isolated_atoms_have_their_reference_energy(name):
    none = torch.zeros(0, dtype=torch.int64)
    species, vectors = torch.tensor([0, 1, 1]), torch.zeros(0, 3, dtype=torch.float64)
    if name in OTHERS:
        exact = make(name, species_correlation=0.5, exact_isolated_atoms=True)
    else:
        exact = make(f"{name}, isolated atoms", species_correlation=0.5)
    assert exact(species, vectors, none, none, 3).tolist() == [-2.0, -5.0, -5.0]
    other = make(name, species_correlation=0.5)(species, vectors, none, none, 3)
    assert (other - torch.tensor([-2.0, -5.0, -5.0])).abs().min() > 1e-3


@pytest.mark.parametrize("correlation", [0.0, 0.6, 1.0])
def test_initial_weights_of_species_are_correlated_as_asked(correlation):
    torch.manual_seed(0)
    config = NequIPConfig(product_channels=0, species_correlation=correlation)
    model = build(config, [1, 6, 8], 20.0, [1.0] * 3, [0.0] * 3)
    for table in model.species_tables()[1:]:  # the embedding is too small to tell
        assert table.shape[0] == 3
        expected = torch.full((3, 3), correlation).fill_diagonal_(1.0)
        assert (torch.corrcoef(table.detach()) - expected).abs().max() < 0.03
        assert table.std().item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_bessel_basis_has_its_mean_square_in_the_ball(scale):
    basis = BesselBasis(5.0, 4, 6, scale)
    r = torch.linspace(1e-4, 5.0, 20001, dtype=torch.float64)
    bare = basis(r) / polynomial_envelope(r / 5.0, 6).clamp_min(1e-12).unsqueeze(1)
    weight = 3 * r**2 / 125.0
    mean = torch.trapezoid(bare[:-1].square() * weight[:-1].unsqueeze(1), r[:-1], dim=0)
    assert (mean / scale**2 - 1).abs().max() < 5e-3
