"""The Muon optimiser against torch's own, matrix by matrix, and AdamW for the rest."""

import torch
from e3nn import o3

from eqcalc.models.nequip import NequIPConfig
from eqcalc.models.registry import build
from eqcalc.nn.linear import SpeciesLinear
from eqcalc.training.muon import Muon, matrix_shapes, orthogonalize


def potential():
    torch.manual_seed(3)
    config = NequIPConfig(
        product_channels=0, num_layers=2, l_max=1, num_channels=[8, 4], radial_mlp=[8], readout=4
    )
    return build(config, [3, 8], 10.0, [1.0, 1.0], [0.0, 0.0])


def test_orthogonalize_keeps_directions_and_levels_sizes():
    torch.manual_seed(0)
    for rows, columns in ((12, 5), (5, 12), (7, 7)):
        u, _, vh = torch.linalg.svd(torch.randn(3, rows, columns), full_matrices=False)
        sizes = torch.logspace(0, -1.5, u.shape[-1])
        out = orthogonalize(u * sizes @ vh)
        inner = u.mT @ out @ vh.mT
        levels = torch.diagonal(inner, dim1=-2, dim2=-1)
        assert levels.min() > 0.5
        assert levels.max() < 1.3
        assert (inner - torch.diag_embed(levels)).abs().max() < 1e-4


def test_every_weight_is_a_matrix_or_known_not_to_be():
    model = potential()
    shapes = matrix_shapes(model)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    for name, blocks in shapes.items():
        assert sum(rows * columns for rows, columns in blocks) == sizes[name], name
    rest = {name for name in sizes if name not in shapes and sizes[name]}
    assert rest == {"species_embedding", "layers.1.energies.inner", "layers.1.energies.outer"}


def test_matrix_of_a_species_linear_steps_as_alone():
    """Each (species, irrep) block takes the step that torch's Muon takes with that matrix alone."""
    torch.manual_seed(1)
    irreps = o3.Irreps("6x0e+4x1o")
    module = SpeciesLinear(irreps, o3.Irreps("5x0e+3x1o"), 2)
    start = module.weight.detach().clone()
    ours = Muon(module, 0.01, weight_decay=0.1)
    places = [(s, first, i, o) for s in range(2) for _, _, i, o, first in module._blocks]

    def blocks(weight):
        return [weight[s, first : first + i * o].view(i, o) for s, first, i, o in places]

    alone = [torch.nn.Parameter(block.clone()) for block in blocks(start)]
    theirs = torch.optim.Muon(alone, 0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        gradient = torch.randn_like(start)
        module.weight.grad = gradient
        for p, block in zip(alone, blocks(gradient), strict=True):
            p.grad = block.clone()
        ours.step()
        theirs.step()
    for p, was, block in zip(alone, blocks(start), blocks(module.weight.detach()), strict=True):
        expected = p.detach() - was
        difference = (block - was - expected).norm() / expected.norm()
        assert difference < 0.05, difference  # torch iterates in bfloat16


def test_the_rest_takes_adamw_steps():
    model, other = potential(), potential()
    ours = Muon(model, 0.01, weight_decay=0.1)
    theirs = torch.optim.AdamW([other.species_embedding], 0.01, weight_decay=0.1)
    for _ in range(3):
        gradient = torch.randn_like(model.species_embedding)
        model.species_embedding.grad = gradient
        other.species_embedding.grad = gradient.clone()
        ours.step()
        theirs.step()
    difference = model.species_embedding - other.species_embedding
    assert difference.abs().max() < 1e-6
    untouched = potential().layers[0].up_0.weight
    assert torch.equal(model.layers[0].up_0.weight, untouched)


def test_parameters_without_decay():
    """Weight decay alone: gradients of zero move nothing else."""
    model, start = potential(), potential()
    optimizer = Muon(model, 0.01, weight_decay=0.5, undecayed=["species_embedding"])
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for (name, p), q in zip(model.named_parameters(), start.parameters(), strict=True):
        factor = 1.0 if name == "species_embedding" else 1.0 - 0.005
        assert torch.allclose(p, factor * q, rtol=1e-6), name


def test_state_survives_saving():
    model, resumed = potential(), potential()
    first, second = Muon(model, 0.01), Muon(resumed, 0.01)
    gradients = [[torch.randn_like(p) for p in model.parameters()] for _ in range(4)]

    def steps(optimizer, network, batches):
        for batch in batches:
            for p, g in zip(network.parameters(), batch, strict=True):
                p.grad = g.clone()
            optimizer.step()

    steps(first, model, gradients)
    steps(second, resumed, gradients[:2])
    third_model = potential()
    third_model.load_state_dict(resumed.state_dict())
    third = Muon(third_model, 0.01)
    third.load_state_dict(second.state_dict())
    steps(third, third_model, gradients[2:])
    for a, b in zip(model.parameters(), third_model.parameters(), strict=True):
        assert torch.equal(a, b)
