"""Messages that operations on edges make, on the fused engine: the rules of their way back."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from ase import Atoms
from potentials import write
from scipy.spatial.transform import Rotation
from test_fused import graph
from test_fused_programs import (  # noqa: F401 - the same exam, of the networks below
    SMALL,
    SYSTEMS,
    test_gradient_is_that_of_the_energy,
    test_is_the_network_of_the_file,
    test_tables_are_as_good_as_the_network,
    test_threads_change_nothing_but_rounding,
)

from eqcalc import export
from eqcalc.engine import fused, message_kernels, message_plan
from eqcalc.engine.cuda.source import DeviceCode
from eqcalc.engine.message_plan import FrameLayout
from eqcalc.engine.plan import NotCovered
from eqcalc.engine.readers import read
from eqcalc.models.config import ModelConfig
from eqcalc.models.equiformer import EquiformerConfig
from eqcalc.models.equiformer_v2 import EquiformerV2Config
from eqcalc.models.esen import ESENConfig
from eqcalc.nn.frames import wigner_of_rotations
from eqcalc.program import (
    Attention,
    Embedding,
    FrameGate,
    FrameSphere,
    FrameSum,
    LayerNorm,
    Linear,
    Modulation,
    Output,
    Program,
    Radial,
    Readout,
    SO2Linear,
    ToFrames,
    messages,
    operations,
    transpose,
)

BLOCKS = {"l_max": 2, "num_channels": 6, "hidden_channels": 3, "readout": 3}
BLOCKS |= {"feed_forward_channels": 4}
HEADS = {"num_heads": 2, "attention_channels": 3}
# the maps of the second are multiplied as wide ones are
NETWORKS = {
    "esen": ESENConfig(**SMALL, **BLOCKS, m_max=1),
    "esen, sphere, crowded, wide": ESENConfig(**SMALL, **BLOCKS, m_max=1, nonlinearity="sphere"),
    "equiformer_v2": EquiformerV2Config(**SMALL, **BLOCKS, **HEADS, m_max=1),
    "equiformer": EquiformerConfig(**SMALL, **BLOCKS, **HEADS),
}


@pytest.fixture(scope="module", params=NETWORKS)
def program(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("messages") / "model.pth"
    write(path, NETWORKS[request.param], crowding="crowded" in request.param)
    with pytest.MonkeyPatch.context() as patch:
        if "wide" in request.param:
            patch.setattr(message_kernels, "WIDE", 1)
        yield path, fused.fuse(path, dtype="float64", radial="network")


def test_every_operation_on_edges_has_a_transpose():
    assert set(messages.MESSAGES) | {operations.Linear, operations.Gate} == set(transpose.RULES)
    with pytest.raises(ValueError, match="n: LayerNorm has no transpose"):
        transpose.transpose([LayerNorm("n", "x", "4x0e")])


def test_gradients_are_whole_when_they_are_read():
    """Whatever a gradient reads has been made, and nothing adds to it later."""
    config = EquiformerV2Config()
    every = config.program().operations
    (end,) = (op for op in every if op.name == "sum_1")
    on_edges = config.program().on_edges
    message = [op for op in every if op.name in on_edges and op.name.endswith("_1")]
    message = [op for op in message if not isinstance(op, operations.Radial)] + [end]
    back = transpose.transpose(message)
    made = {"d_sum_1"}
    for n, op in enumerate(back):
        assert op.source in made, op
        if weights := getattr(op, "weights", ""):
            made.add(weights)
        made.add(op.name)
        assert all(later.name != op.source for later in back[n:])
    assert {"d_n_1", "d_edge_1", "d_share_1", "d_alpha_1"} <= made
    again = {op.name for op in transpose.needed_again(message)}
    assert "message_1" not in again
    assert {"pair_1", "hidden_1", "value_1", "share_1"} <= again


def test_what_is_kept_of_edges_leaves_no_map_to_be_made_again():
    for config in (ESENConfig(), EquiformerV2Config(), EquiformerConfig()):
        program = config.program()
        on_edges = program.on_edges - {"r_1", "r2_1"}
        message = [
            op
            for op in program.operations
            if op.name == "sum_1" or (op.name in on_edges and op.name.endswith("_1"))
        ]
        kept = transpose.worth_keeping(message)
        again = transpose.needed_again(message, kept)
        assert kept
        assert not any(isinstance(op, transpose.MAPS) for op in again)
        assert len(again) < len(transpose.needed_again(message))


def test_results_do_not_depend_on_how_many_edges_are_kept(program, monkeypatch):
    """Of all atoms, of some, of none: the same numbers to the last bit."""
    path, whole = program
    edges = graph(whole, SYSTEMS["melt"]())
    wanted, held = whole.evaluate(*edges), [whole.memory]
    for room in (2**14, 0):
        monkeypatch.setattr(message_plan, "KEPT_BYTES", room)
        fused.NETWORKS.forget()  # else it is the same network
        part = fused.fuse(path, dtype="float64", radial="network")
        found = part.evaluate(*edges)
        held.append(part.memory)
        assert torch.equal(found.energies, wanted.energies)
        assert torch.equal(found.gradient, wanted.gradient)
    assert held[0] > held[1] > held[2]


@pytest.mark.parametrize("degree", range(5))
def test_generators_are_those_of_wigner_matrices(degree):
    h = 1e-4
    for k, made in enumerate(transpose.generators(degree)):
        axis = np.eye(3)[k]
        turns = [Rotation.from_rotvec(n * h * axis).as_matrix() for n in (-2, -1, 1, 2)]
        d = wigner_of_rotations(degree, torch.tensor(np.array(turns))).numpy()
        slope = (d[0] - 8 * d[1] + 8 * d[2] - d[3]) / (12 * h)
        assert np.abs(made - slope).max() < 1e-10


def test_rows_in_frames_have_places_of_their_own():
    layout = FrameLayout(((3, 3), (2,), (5,)), 1, 8)
    assert [layout.stride(degree) for degree in range(3)] == [16, 8, 8]
    places = [at + c for k in range(3) for at in layout.rows(k) for c in range(layout.stride(k))]
    assert sorted(places) == list(range(layout.width))
    assert [len(layout.rows(degree)) for degree in range(3)] == [1, 3, 3]
    assert len(set(layout.channels(0))) == 3 + 3 + 2 + 5
    assert layout.at(1) + 2 * layout.columns(1) == layout.width


# the operations between the features in frames and the sum, one more each time
RULES = {
    "mixed": ("SO2Linear",),
    "gated": ("SO2Linear", "FrameGate"),
    "on the sphere": ("SO2Linear", "FrameSphere"),
    "weighted": ("SO2Linear", "Attention"),
}


@dataclass(frozen=True)
class OfOperations(ModelConfig):
    """Two layers, the messages of the second of which go through some operations alone."""

    through: tuple[str, ...] = ()

    def program(self) -> Program:
        few, every, more = "4x0e", "4x0e+4x1o+4x2e", "8x0e+8x1o+8x2e"
        width = every if self.through else more
        steps = [
            *(Embedding("x_0", 4), ToFrames("pair_0", "x_0", "x_0", few, 0, "8x0e")),
            *(Radial("r_0", (8,)), Modulation("edge_0", "pair_0", "r_0", 0, "8x0e")),
            SO2Linear("message_0", "edge_0", "8x0e", 0, 0, every),
            *(FrameSum("sum_0", "message_0", 0, every), Linear("x_1", "sum_0", every, every)),
            ToFrames("pair_1", "x_1", "x_1", every, 1, more),
            *(Radial("r_1", (8,)), Modulation("edge_1", "pair_1", "r_1", 1, more)),
        ]
        source, weights = "edge_1", ""
        for kind in self.through:
            if kind == "SO2Linear":
                gated = "FrameGate" in self.through
                wide = "12x0e+4x1o+4x2e" if gated else every
                steps.append(SO2Linear("mixed", source, more, 1, 1, wide))
                source = "mixed"
            elif kind == "FrameGate":
                steps.append(FrameGate("gated", source, 1, every))
                source = "gated"
            elif kind == "FrameSphere":
                steps.append(FrameSphere("sphere", source, 1, 0, every))
                source = "sphere"
            else:
                steps.append(SO2Linear("alpha", "edge_1", more, 1, 0, "6x0e"))
                steps.append(Attention("share", "alpha", 2, 3, in_frames=True))
                weights = "share"
        heads = 2 if weights else 1
        return Program(
            (
                *steps,
                FrameSum("sum_1", source, 1, width, weights, heads),
                Readout("energies", "sum_1", width, 5),
                Output("energy", ("energies",)),
            )
        )


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_against_finite_differences(rule, tmp_path):
    """In float64; edges lie along the axes, and there is one of its kind on either pole."""
    path = tmp_path / "model.pth"
    write(path, OfOperations(cutoff=4.0, radial_mlp=[8], through=RULES[rule]), seed=3)
    engine = fused.fuse(path, dtype="float64")
    atoms = Atoms("SiO3Si", [[0, 0, 0], [0, 1.7, 0], [0, -1.8, 1e-9], [1.9, 0, 0], [0.1, 0.4, -2]])
    species, vec, src, dst = graph(engine, atoms)
    gradient = engine.evaluate(species, vec, src, dst).gradient
    direction = torch.randn(vec.shape, generator=torch.Generator().manual_seed(0)).double()
    h = 5e-4
    moved = [float(engine.evaluate(species, vec + n * h * direction, src, dst).energies.sum())
             for n in (-2, -1, 1, 2)]  # fmt: skip
    slope = (moved[0] - 8 * moved[1] + 8 * moved[2] - moved[3]) / (12 * h)
    assert abs(slope) > 1e-3
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-7)


def test_what_is_refused_and_why(tmp_path):
    path = tmp_path / "model.pth"
    write(path, OfOperations(cutoff=4.0, radial_mlp=[8]))
    with pytest.raises(NotCovered, match="cannot sum edge_1 as it is: it needs a linear map"):
        read(export.load(path, dtype="float64"), "double")
    write(path, OfOperations(cutoff=4.0, radial_mlp=[8], through=RULES["mixed"]))
    plan = read(export.load(path, dtype="float64"), "double")
    with pytest.raises(NotCovered, match="GPU engine does not know messages that operations on"):
        DeviceCode(plan, 7)
