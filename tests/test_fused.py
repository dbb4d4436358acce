"""The fused engine against the TorchScript that it is made from."""

import ctypes
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from potentials import untrained
from precompiled import options

from eqcalc import EquivariantCalculator, export, names
from eqcalc.engine import backends, build, fused, kernels, plan, readers, tables
from eqcalc.errors import InputError
from eqcalc.neighbors import Pairs, VerletList, neighbor_list

KINDS = {
    "scalars": {"channels": (9,), "layers": 2},
    "odd channels": {"channels": (7, 3), "layers": 3},
    "l_max 2": {"channels": (8, 6, 20), "layers": 2},
    "l_max 2 parity": {"channels": (4, 3, 2), "parity": True, "layers": 3},
    "l_max 3": {"channels": (5, 4, 3, 2), "layers": 2},
    "l_max 4": {"channels": (3, 3, 2, 2, 2), "layers": 2},
    "one layer": {"channels": (8, 6, 4), "layers": 1},
    "three elements": {
        "channels": (8, 6, 4),
        "layers": 2,
        "elements": (8, 14, 1),
        "options": {"species_messages": True},
    },
    "products": {"channels": (8, 6, 4), "layers": 2, "products": (20, 0)},
    "products, parity": {"channels": (4, 3, 2), "parity": True, "layers": 2, "products": (5, 2)},
    "products, l_max 3": {"channels": (5, 4, 3, 2), "layers": 2, "products": (3, 3)},
    "pairs": {
        "channels": (4, 3, 2),
        "pairs": True,
        "elements": (8, 14, 1),
        "options": {"pair_cutoffs": {"Si": {"Si": 2.7, "O": 3.1}, "O": {"Si": 2.9}}},
    },
    "so3": {"channels": (8, 6, 4), "options": {"so3": True, "gate_activation": "silu"}},
    "xplor": {
        "channels": (4, 3, 2),
        "options": {
            "envelope_onset": 3.3,
            "scalar_bias": True,
            "readout": 0,
            "species_self_connection": False,
            "embedding": 5,
        },
    },
    "irreps by layer": {
        "channels": (4, 4, 4),
        "parity": True,
        "layers": 3,
        "options": {
            "layer_irreps": ["6x0e+3x1o+2x1e", "5x0o+4x0e+3x1o+2x2e", "7x0e+1x1o"],
            "gate_activation": "silu",
            "scalar_bias": True,
            "bessel_frequencies": [0.8 * n for n in range(1, 9)],
            "core_cutoff": 3.5,
            "core_envelope_power": 5,
        },
    },
}


def melt() -> Atoms:
    atoms = bulk("Si", cubic=True).repeat(2)
    atoms.numbers[::3] = 8
    atoms.rattle(0.35, seed=4)
    return atoms


SYSTEMS = {
    "crystal": lambda: bulk("Si", cubic=True),
    "melt": melt,
    "one atom": lambda: bulk("Si"),
    "skewed cell": lambda: Atoms(
        "SiO",
        positions=[[0, 0, 0], [1.2, 1.0, 0.9]],
        cell=[[2.6, 0, 0], [1.9, 2.2, 0], [-0.8, 1.1, 2.4]],
        pbc=True,
    ),
    "molecule": lambda: Atoms(
        "SiO2Si", positions=[[0, 0, 0], [1.6, 0.1, 0], [-0.3, 1.7, 0.2], [0.1, -0.4, 2.2]]
    ),
    "atoms apart": lambda: Atoms("SiOSi", positions=[[0, 0, 0], [0, 0, 1.7], [0, 9.0, 0]]),
    "an atom": lambda: Atoms("O"),
    "no atoms": Atoms,
}


def graph(potential, atoms: Atoms) -> list[torch.Tensor]:
    pairs = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, potential.cutoff)
    vectors = pairs.vectors(atoms.positions, atoms.cell.array)
    arrays = potential.species_of(atoms.numbers), vectors, pairs.edge_src, pairs.edge_dst
    return [torch.from_numpy(a) for a in arrays]


#: those which between them have every sort of step, and are compiled as users' are twice
TWICE = ("odd channels", "l_max 3", "three elements", "products, parity", "pairs")
TWICE += ("irreps by layer",)


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("kind") / "model.pth", **KINDS[request.param])


@pytest.mark.parametrize(
    ("dtype", "radial"),
    [("float32", "table"), ("float64", "network"), ("float64", "table"), ("float32", "network")],
)
def test_is_the_network_of_the_file(kind, dtype, radial, monkeypatch, request):
    """By the compiler as users have it: the usual precision, and a second pair of options of some.
    The others are compiled quickly."""
    twice = request.node.callspec.params["kind"] in TWICE
    optimised = [("float32", "table"), *([("float64", "network")] if twice else [])]
    monkeypatch.setenv(build.MORE_FLAGS, "" if (dtype, radial) in optimised else options("-O0"))
    reference = export.load(kind, dtype="float64")
    engine = fused.fuse(kind, dtype=dtype, radial=radial)
    allowed = {("float64", "table"): 1e-9, ("float64", "network"): 1e-12}.get((dtype, radial), 2e-6)
    for name, make in SYSTEMS.items():
        args = graph(reference, make())
        expected, got = reference.evaluate(*args), engine.evaluate(*args)
        size = max(1.0, float(expected.gradient.abs().max()) if len(expected.gradient) else 1.0)
        assert (got.energies - expected.energies).abs().sum() < allowed * size * 10, name
        if len(expected.gradient):
            assert (got.gradient - expected.gradient).abs().max() < allowed * size, name


@pytest.mark.parametrize("engine", ["fused", "exact"])
def test_calculator_agrees_with_torch(potential_path, engine, crystal):
    values = {}
    for name in (engine, "torch"):
        atoms = crystal.copy()
        atoms.calc = EquivariantCalculator(potential_path, dtype="float64", engine=name)
        assert atoms.calc.backend.name == name
        values[name] = [
            atoms.get_potential_energies(),
            atoms.get_forces(),
            atoms.get_stress(),
            atoms.get_stresses(),
        ]
    for got, expected in zip(*values.values(), strict=True):
        assert got == pytest.approx(expected, abs=1e-9)


def assert_network_of_the_file(path, engine, energy, force):
    """Energies and edge gradients of all systems, relative to the largest force in eV/Å, or 1."""
    reference = export.load(path, dtype="float64")
    for name, make in SYSTEMS.items():
        args = graph(reference, make())
        expected, got = reference.evaluate(*args), engine.evaluate(*args)
        size = max(1.0, float(expected.gradient.abs().max()) if len(expected.gradient) else 1.0)
        assert (got.energies - expected.energies).abs().sum() < energy * size, name
        if len(expected.gradient):
            assert (got.gradient - expected.gradient).abs().max() < force * size, name


def test_solid_harmonics_are_in_its_tables(tmp_path):
    options = {"solid_harmonics": True}
    path = untrained(tmp_path / "m.pth", **KINDS["l_max 2"], options=options)  # and its kernels
    assert_network_of_the_file(path, fused.fuse(path, dtype="float64"), 1e-8, 1e-9)
    assert_forces_and_stress_are_derivatives(path, "fused")


@pytest.mark.parametrize("engine", ["fused", "exact"])
def test_forces_and_stress_are_its_own_derivatives(parity_path, engine):
    assert_forces_and_stress_are_derivatives(parity_path, engine)


def assert_forces_and_stress_are_derivatives(path, engine):
    atoms = melt()
    atoms.calc = EquivariantCalculator(path, dtype="float64", engine=engine)
    forces, stress = atoms.get_forces(), atoms.get_stress(voigt=False)
    h = 1e-4
    rng = np.random.default_rng(0)
    for _ in range(3):
        direction = rng.normal(size=forces.shape)
        direction /= np.linalg.norm(direction)
        energies = []
        for n in (-2, -1, 1, 2):
            moved = atoms.copy()
            moved.calc = atoms.calc
            moved.positions += n * h * direction
            energies.append(moved.get_potential_energy())
        slope = (energies[0] - 8 * energies[1] + 8 * energies[2] - energies[3]) / (12 * h)
        assert -(forces * direction).sum() == pytest.approx(slope, abs=1e-7)

        strain = rng.normal(size=(3, 3))
        strain /= np.linalg.norm(strain)
        energies = []
        for n in (-2, -1, 1, 2):
            strained = atoms.copy()
            strained.calc = atoms.calc
            strained.set_cell(atoms.cell @ (np.eye(3) + n * h * strain), scale_atoms=True)
            energies.append(strained.get_potential_energy())
        slope = (energies[0] - 8 * energies[1] + 8 * energies[2] - energies[3]) / (12 * h)
        expected = (stress * strain).sum() * atoms.get_volume()
        assert expected == pytest.approx(slope, abs=1e-6)


def intervals_of(table, cutoff):
    """Left end and length (Å) of each interval."""
    ends = [start for start, _ in table.segments[1:]] + [cutoff]
    parts = [(a, b, n) for (a, n), b in zip(table.segments, ends, strict=True)]
    left = np.concatenate([np.linspace(a, b, n, endpoint=False) for a, b, n in parts])
    return left, np.concatenate([np.full(n, (b - a) / n) for a, b, n in parts])


@pytest.mark.parametrize("degree", [5, 7])
def test_tables_are_smooth_at_the_knots(potential_path, degree):
    potential = export.load(potential_path, dtype="float64")
    read = readers.read(potential, "double")
    tables.tabulate(potential.module, read, degree=degree, tolerance=1e-6)
    powers = np.arange(degree + 1)
    for layer in read.layers:
        table = layer.table.coefficients
        _, step = intervals_of(layer.table, potential.cutoff)
        for order in range(3):  # value, slope and curvature in t
            factor = np.prod([powers - n for n in range(order)], axis=0) * np.ones(degree + 1)
            unit = (step / step.max())[:, None] ** order
            at = [factor * t ** np.maximum(powers - order, 0) for t in (0.5, -0.5)]
            end, begin = (np.einsum("kdw,d->kw", table, a) / unit for a in at)
            end, begin = end[:-1], begin[1:]
            assert np.abs(end - begin).max() < 1e-11 * np.abs(table[:, 0]).max()


def test_table_meets_its_tolerance(potential_path):
    """Between the knots too, not only where the builder looked."""
    potential = export.load(potential_path, dtype="float64")
    read = readers.read(potential, "double")
    errors = tables.tabulate(potential.module, read, degree=7, tolerance=1e-9)
    assert max(errors) < 1e-9
    r = np.random.default_rng(0).uniform(1.0, potential.cutoff, 2000)
    for k, layer in enumerate(read.layers):
        left, step = intervals_of(layer.table, potential.cutoff)
        interval = np.searchsorted(left, r, side="right") - 1
        t = ((r - left[interval]) / step[interval] - 0.5)[:, None]
        values = sum(layer.table.coefficients[interval, d] * t**d for d in range(8))
        exact = potential.module.radial(k, torch.from_numpy(r)).detach().numpy()
        got = values[:, layer.weights.places] / layer.weights.scales
        assert np.abs(got - exact).max() < 3e-9 * np.abs(exact).max()


def test_rounding_is_not_taken_for_an_error():
    """Near the cutoff weights are small: an error that intervals could not lessen made 2500."""
    potential = export.load(names.find("si"), dtype="float64")
    read = readers.read(potential, "double")
    degree, tolerance = fused.TABLES["double"]
    errors = tables.tabulate(potential.module, read, degree=degree, tolerance=tolerance)
    assert max(errors) < tolerance
    assert max(len(layer.table.coefficients) for layer in read.layers) < 700


def test_room_on_the_stack_is_for_all_products(tmp_path):
    """Those of messages count where all others are of scalars."""
    path = untrained(tmp_path / "model.pth", products=(4, 2))
    read = readers.read(export.load(path, dtype="float64"), "double")
    for layer in read.layers:
        layer.steps = [
            step
            for step in layer.steps
            if not isinstance(step, plan.LinearStep)
            or step.dim == 1
            or step.target.startswith("factors")
        ]
    assert "MOST_ROWS = 5," in kernels.library_source(read, "network", 7)[0]


def test_only_steps_that_a_network_has_are_compiled(tmp_path):
    """What it lacks takes long to compile."""
    read = readers.read(export.load(untrained(tmp_path / "m.pth"), dtype="float64"), "double")
    source, _ = kernels.library_source(read, "network", 7)
    kinds = {type(step).__name__ for layer in read.layers for step in layer.steps}
    assert {"LinearStep", "GateStep", "ReadoutStep"} <= kinds
    made = set(re.findall(r"class (\w+Step) final", source))
    assert made == kinds
    assert set(re.findall(r"make_unique<(\w+Step)>", source)) == kinds


@pytest.mark.parametrize("products", [(0, 0), (5, 2)])
def test_threads_change_nothing_but_rounding(products, tmp_path):
    engine = fused.fuse(untrained(tmp_path / "model.pth", products=products), dtype="float64")
    atoms = melt().repeat((1, 1, 2))
    species, vec, src, dst = (a.numpy() for a in graph(engine, atoms))
    edges = fused.EdgeArrays(src, dst, vec)
    one = engine.run(species, edges, 1)
    for threads in (2, 3, 7):
        got, again = engine.run(species, edges, threads), engine.run(species, edges, threads)
        for a, b, c in zip(one, got, again, strict=True):
            assert np.abs(a - b).max() < 1e-11
            assert np.array_equal(b, c)  # the same to the last bit


def test_sizes_may_change_from_call_to_call(potential_path):
    engine = fused.fuse(potential_path, dtype="float64")
    first = None
    for name in ("crystal", "melt", "an atom", "no atoms", "molecule", "crystal"):
        got = engine.evaluate(*graph(engine, SYSTEMS[name]()))
        if name == "crystal":
            first = got if first is None else first
            assert torch.equal(got.energies, first.energies)


@pytest.mark.parametrize("radial", ["table", "network"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_what_is_not_a_number_stays_so(potential_path, crystal, dtype, radial):
    """No crash: the caller learns which atom it was."""
    engine = fused.fuse(potential_path, dtype=dtype, radial=radial)
    species, vectors, src, dst = graph(engine, crystal)
    vectors[(src == 3) | (dst == 3)] = float("nan")
    out = engine.evaluate(species, vectors, src, dst)
    assert torch.isnan(out.energies[3])
    assert torch.isnan(out.gradient[dst == 3]).all()


def test_selected_pairs_are_those_of_a_new_list(potential_path):
    engine = fused.fuse(potential_path)
    atoms = melt()
    verlet = VerletList(engine.cutoff, 0.8)
    pairs = verlet.candidates(atoms)
    atoms.positions += 0.05
    assert verlet.candidates(atoms) is pairs
    shifts = pairs.cell_shift @ atoms.cell.array
    got, nearest = engine.select((pairs.edge_dst, pairs.edge_src), shifts, atoms.positions)
    expected, vectors = pairs.within(engine.cutoff, atoms.positions, atoms.cell.array)
    assert len(got.src) < len(pairs.edge_src)
    assert np.array_equal(got.src, expected.edge_src)
    assert np.array_equal(got.dst, expected.edge_dst)
    assert np.abs(got.vec - vectors).max() < 1e-14
    lengths = np.linalg.norm(vectors, axis=1)
    assert lengths[nearest] == pytest.approx(lengths.min(), rel=1e-14)
    # and all at once is what it is piece by piece
    species = engine.species_of(atoms.numbers)
    energies, gradient = engine.run(species, got, 2)
    forces, virials = engine.forces(len(atoms), got, gradient)
    listed = pairs.in_space(atoms.cell.array)
    step = engine.evaluate_pairs(species, atoms.positions, listed, 2)
    for mine, theirs in zip(step, (energies, forces, virials), strict=False):
        assert np.array_equal(mine, theirs)
    assert step[3] == lengths[nearest]
    alone = engine.evaluate_pairs(species, atoms.positions, listed, 2, gradient=False)
    assert np.array_equal(alone[0], energies)
    assert alone[1:3] == (None, None)


def test_memory_of_a_thousand_atoms():
    """The bundled model, tables included."""
    engine = fused.fuse(names.find("si"))
    atoms = bulk("Si", cubic=True).repeat(5)
    atoms.rattle(0.05, seed=0)
    engine.evaluate(*graph(engine, atoms))
    assert engine.memory < 100e6


def test_without_a_compiler_torch_takes_over(potential_path, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "find_compiler", lambda: None)
    build.compiled.cache_clear()
    with pytest.warns(UserWarning, match=r"Running on torch.*no C\+\+ compiler: install g\+\+"):
        assert EquivariantCalculator(potential_path).backend.name == "torch"
    with pytest.raises(InputError, match=r"no C\+\+ compiler"):
        EquivariantCalculator(potential_path, engine="fused")
    build.compiled.cache_clear()


def test_other_architectures_run_on_torch(potential_path, monkeypatch):
    monkeypatch.setattr(export, "program_document", lambda _: None)
    with pytest.warns(UserWarning, match="does not know the architecture NequIP"):
        assert EquivariantCalculator(potential_path).backend.name == "torch"


def test_wrong_numbers_are_noticed(potential_path, monkeypatch):
    tabulate = tables.tabulate

    def wrong(module, read, **options):
        errors = tabulate(module, read, **options)
        read.layers[0].table.coefficients *= 1.001
        return errors

    monkeypatch.setattr(fused, "tabulate", wrong)
    with pytest.raises(InputError, match="does not reproduce the reference structure"):
        EquivariantCalculator(potential_path, dtype="float64")  # not torch instead


def test_bugs_of_the_reader_are_not_covered_up(potential_path, monkeypatch):
    def broken(*_):
        raise AttributeError("a bug")

    monkeypatch.setattr(readers, "read_program", broken)
    with pytest.raises(AttributeError, match="a bug"):
        EquivariantCalculator(potential_path)


def test_reference_structure_is_evaluated_on_the_threads_asked_for(potential_path, monkeypatch):
    run, counts = fused.FusedPotential.run, []

    def spy(self, species, edges, threads, **options):
        counts.append(threads)
        return run(self, species, edges, threads, **options)

    monkeypatch.setattr(fused.FusedPotential, "run", spy)
    EquivariantCalculator(potential_path, threads=3)
    assert counts == [3]


@pytest.mark.parametrize("kind", ["float32", "strided", "int32 indices"])
def test_arrays_are_converted_where_they_cross_into_c(potential_path, crystal, kind):
    engine = fused.fuse(potential_path, dtype="float64")
    species, vec, src, dst = (a.numpy() for a in graph(engine, crystal))
    vec = vec.astype(np.float32).astype(np.float64)  # the same numbers in either precision
    expected = engine.run(species, fused.EdgeArrays(src, dst, vec), 1)
    given = {
        "float32": fused.EdgeArrays(src, dst, vec.astype(np.float32)),
        "strided": fused.EdgeArrays(np.repeat(src, 2)[::2], dst, np.asfortranarray(vec)),
        "int32 indices": fused.EdgeArrays(src.astype(np.int32), dst.astype(np.int32), vec),
    }[kind]
    got = engine.run(species.astype(np.int32), given, 1)
    assert all(np.array_equal(a, b) for a, b in zip(expected, got, strict=True))
    forces = [
        engine.forces(len(species), edges, expected[1].astype(given.vec.dtype))
        for edges in (given, fused.EdgeArrays(src, dst, vec))
    ]
    assert all(np.array_equal(a, b) for a, b in zip(*forces, strict=True))


def test_arrays_that_cannot_be_meant_are_refused(potential_path, crystal):
    engine = fused.fuse(potential_path, dtype="float64")
    species, vec, src, dst = (a.numpy() for a in graph(engine, crystal))
    for bad in (vec[:-1], vec[:, :2], vec.astype(complex)):
        with pytest.raises(ValueError, match=r"came where .* is needed"):
            engine.run(species, fused.EdgeArrays(src, dst, bad), 1)
    for wrong in (len(species), -1):
        other = src.copy()
        other[3] = wrong
        with pytest.raises(InputError, match="edges are out of range"):
            engine.run(species, fused.EdgeArrays(other, dst, vec), 1)
        with pytest.raises(ValueError, match="atoms that are not among the 8"):
            engine.forces(8, fused.EdgeArrays(other, dst, vec), vec)
        with pytest.raises(ValueError, match="atoms that are not among the 8"):
            engine.select((dst, other), np.zeros_like(vec), crystal.positions)
        with pytest.raises(InputError, match="atoms that are not there"):
            engine.evaluate_pairs(species, crystal.positions, Pairs(dst, other, vec), 1)
        with pytest.raises(InputError, match=r"species .* out of range"):
            engine.run(np.full(8, wrong), fused.EdgeArrays(src, dst, vec), 1)
    with pytest.raises(InputError, match="not sorted by centre"):
        engine.run(species, fused.EdgeArrays(src, dst[::-1], vec), 1)


def test_out_of_memory_is_said_and_leaves_the_engine_usable(potential_path, crystal):
    engine = fused.fuse(potential_path, dtype="float64")
    species, vec, src, dst = (a.numpy() for a in graph(engine, crystal))
    edges = fused.EdgeArrays(src, dst, vec)
    expected = engine.run(species, edges, 2)
    rows = fused.GraphArguments(8, 8, 2**45, len(src), *(a.ctypes.data for a in (species, *edges)))
    arrays = np.empty(8), np.empty_like(vec)
    with (
        engine._networks.one() as handle,
        pytest.raises(InputError, match="out of memory: use fewer atoms"),
    ):
        engine.library.checked(
            "eqcalc_evaluate", handle, ctypes.byref(rows), None, 2,
            *(ctypes.c_void_p(a.ctypes.data) for a in arrays),
        )  # fmt: skip
    got = engine.run(species, edges, 2)
    assert all(np.array_equal(a, b) for a, b in zip(expected, got, strict=True))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"engine": "fast"}, "There is no engine 'fast'; there are 'auto' and 'fused'"),
        ({"engine": "exact", "device": "cuda"}, "runs on the CPU"),
        ({"engine": "fused", "device": "cuda:x"}, "runs on the CPU"),
    ],
)
def test_engines_that_cannot_be(potential_path, options, sentence):
    with pytest.raises(InputError, match=sentence):
        backends.open_backend(potential_path, **options)


def test_many_processes_may_start_at_once(potential_path, tmp_path):
    code = (
        f"from eqcalc.engine.fused import fuse; print(fuse({str(potential_path)!r}).library.path)"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    started = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    outputs = {process.communicate()[0] for process in started}
    assert [process.returncode for process in started] == [0, 0, 0]
    assert len(outputs) == 1
    assert len([p for p in (tmp_path / "eqcalc" / "kernels").iterdir() if p.is_dir()]) == 1
