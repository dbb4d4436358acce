"""Stores on disk: the same batches bit for bit, flat memory, one sentence when one is broken."""

import json
import pickle
import tracemalloc
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.io import read, write
from ase.units import GPa
from torch.utils.data import DataLoader
from typer.testing import CliRunner

from eqcalc.cli import app
from eqcalc.data.dataset import Batch, FrameDataset
from eqcalc.data.frames import read_frames
from eqcalc.data.packed import PackedDataset
from eqcalc.data.statistics import gather, suspicious
from eqcalc.data.store import COLUMNS, is_store, pack
from eqcalc.data.tables import FrameList, Joined
from eqcalc.errors import InputError

DATA = Path(__file__).parent / "data"
FILES = [DATA / name for name in ("lithium_strained.xyz", "acac.xyz", "acac_isolated_atoms.xyz")]
ELEMENTS = [1, 3, 6, 8]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "mixed.eqdata"
    pack(FILES, path, 4.0)
    return path


@pytest.fixture(scope="module")
def frames():
    return read_frames(FILES)


def assert_equal(a: Batch, b: Batch) -> None:
    for batch_a, batch_b in ((a, b), (a.graph, b.graph)):
        for field in fields(batch_a):
            x, y = getattr(batch_a, field.name), getattr(batch_b, field.name)
            if isinstance(x, torch.Tensor):
                assert x.dtype == y.dtype, field.name
                assert x.shape == y.shape, field.name
                assert x.numpy().tobytes() == y.numpy().tobytes(), field.name


@pytest.mark.parametrize("elements", [ELEMENTS, [8, 14, 6, 3, 1]])
def test_batches_are_those_of_frames_bit_for_bit(store, frames, elements):
    packed, held = PackedDataset(store, elements, 4.0), FrameDataset(frames, elements, 4.0)
    assert len(packed) == len(held)
    for n in range(len(held)):
        assert_equal(packed[n], held[n])
        assert packed.config_type(n) == held.config_type(n)
        assert packed.source(n) == held.source(n)
        assert packed.num_atoms(n) == held.num_atoms(n)
        assert packed.periodic(n) == held.periodic(n)
        assert np.array_equal(packed.neighbor_counts(n), held.neighbor_counts(n))
    assert packed.config_types() == held.config_types()
    assert np.array_equal(packed.atom_counts(), held.atom_counts())
    assert np.array_equal(packed.edge_counts(), held.edge_counts())
    assert packed.avg_num_neighbors == held.avg_num_neighbors
    assert_equal(packed.smallest(), held.smallest())
    with pytest.raises(IndexError):
        packed[len(held)]


def test_what_training_needs_without_frames(store, frames):
    packed = PackedDataset(store)
    assert packed.atomic_numbers == ELEMENTS
    assert packed.hash == packed.header["hash"] == FrameList(frames).hash
    for options in ({}, {"given": {"O": -400.0}}, {"isolated": frames[-3:]}):
        expected, got = gather(frames, **options), packed.statistics(**options)
        assert got == expected


def test_subsets(store, frames):
    order = [5, 2, 23, 7]
    part = PackedDataset(store, ELEMENTS).subset(order)
    chosen = [frames[n] for n in order]
    held = FrameDataset(chosen, ELEMENTS, 4.0)
    for n in range(len(order)):
        assert_equal(part[n], held[n])
        assert part.source(n) == chosen[n].source
    assert part.avg_num_neighbors == held.avg_num_neighbors
    assert part.statistics() == gather(chosen)
    assert part.energies().tolist() == [f.energy for f in chosen]
    again = part.subset([2, 0])
    assert [again.source(n) for n in range(2)] == [chosen[2].source, chosen[0].source]
    assert part.hash not in {again.hash, PackedDataset(store).hash}


def test_signs_of_trouble_are_those_of_frames(store, frames):
    packed, statistics = PackedDataset(store), replace(gather(frames), shift=[900.0] * 4)
    joined = Joined([packed.subset(range(5)), FrameList(frames[5:])])
    sentences = suspicious(frames, statistics)
    assert any("far outside what is plausible" in s for s in sentences) or len(sentences) >= 3
    assert suspicious(packed, statistics) == sentences
    assert suspicious(joined, statistics) == sentences
    assert joined.elements() == packed.elements() == ELEMENTS


def test_loaders_of_several_processes(store, frames):
    packed = PackedDataset(store, ELEMENTS)
    assert len(pickle.dumps(packed)) < 5000  # columns are opened again, not sent
    loader = DataLoader(packed, batch_size=7, collate_fn=Batch.collate, num_workers=1)
    held = FrameDataset(frames, ELEMENTS, 4.0)
    start = 0
    for batch in loader:
        size = len(batch.index)
        assert_equal(batch, Batch.collate(held.items[start : start + size]))
        start += size
    assert start == len(held)


def test_memory_stays_flat_while_packing(tmp_path):
    atoms = bulk("Si", cubic=True) * (2, 2, 2)
    atoms.info["energy"] = -1.0
    peaks = []
    for count in (30, 120):
        images = []
        for n in range(count):
            images.append(atoms.copy())
            images[-1].rattle(0.05, seed=n)
        write(tmp_path / "many.xyz", images)
        del images
        tracemalloc.start()
        pack(tmp_path / "many.xyz", tmp_path / f"{count}.eqdata", 5.0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    sizes = [
        sum(p.stat().st_size for p in (tmp_path / f"{count}.eqdata").iterdir())
        for count in (30, 120)
    ]
    assert peaks[1] - peaks[0] < 0.05 * (sizes[1] - sizes[0])


def test_frames_without_edges(tmp_path):
    pack(DATA / "acac_isolated_atoms.xyz", tmp_path / "a.eqdata", 4.0)
    packed = PackedDataset(tmp_path / "a.eqdata")
    held = FrameDataset(read_frames(DATA / "acac_isolated_atoms.xyz"), [1, 6, 8], 4.0)
    assert_equal(packed[1], held[1])
    assert packed.avg_num_neighbors == 1.0


def test_a_failure_leaves_the_old_store(tmp_path, frames):
    store = tmp_path / "a.eqdata"
    pack(DATA / "acac.xyz", store, 4.0)
    before = PackedDataset(store).hash
    bad = frames[0].atoms.copy()
    write(tmp_path / "bad.xyz", bad)
    with pytest.raises(InputError, match="no energy"):
        pack([DATA / "lithium_strained.xyz", tmp_path / "bad.xyz"], store, 4.0)
    assert PackedDataset(store).hash == before
    assert not list(tmp_path.glob("*.partial"))
    pack(DATA / "lithium_strained.xyz", store, 4.0)
    assert PackedDataset(store).header["elements"] == [3]


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("how", ["truncated", "missing"])
def test_broken_columns(tmp_path, column, how):
    store = tmp_path / "a.eqdata"
    pack(DATA / "lithium_strained.xyz", store, 4.0)
    path = store / f"{column}.npy"
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=rf"is incomplete: {column}\.npy .* pack the frames again"):
        PackedDataset(store)


def test_stores_that_do_not_fit(tmp_path, store):
    with pytest.raises(InputError, match="for a cutoff of 4 Å, the model has 5 Å"):
        PackedDataset(store, ELEMENTS, 5.0)
    with pytest.raises(InputError, match="contains Li, which no training frame has"):
        PackedDataset(store, [1, 6, 8])
    with pytest.raises(InputError, match="is no data store"):
        PackedDataset(tmp_path)
    with pytest.raises(InputError, match=r"must be called NAME\.eqdata"):
        pack(FILES, tmp_path / "a", 4.0)
    (tmp_path / "b.eqdata").mkdir()
    (tmp_path / "b.eqdata" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is no store: remove it"):
        pack(FILES, tmp_path / "b.eqdata", 4.0)
    assert (tmp_path / "b.eqdata" / "thesis.txt").exists()
    header = json.loads((store / "header.json").read_text())
    (tmp_path / "c.eqdata").mkdir()
    (tmp_path / "c.eqdata" / "header.json").write_text(json.dumps(header | {"version": 99}))
    with pytest.raises(InputError, match="has version 99"):
        PackedDataset(tmp_path / "c.eqdata")
    (tmp_path / "c.eqdata" / "header.json").write_text("{")
    with pytest.raises(InputError, match="is broken: pack it again"):
        PackedDataset(tmp_path / "c.eqdata")
    assert is_store(store)
    assert not is_store(FILES[0])


def test_a_pressure_that_the_stress_lacks(tmp_path, store):
    from eqcalc.training.config import from_dict
    from eqcalc.training.frames import dataset, load_frames

    def labels(source, pressure):
        data = {"train": [str(source)], "val_fraction": 0.05, "pulay_pressure": pressure}
        config = from_dict({"data": data, "model": {"cutoff": 4.0}})
        train = load_frames(config).train
        frames = dataset(train, [3], config)
        return np.array([frames[n].stress[0].numpy() for n in range(len(frames))])

    path = tmp_path / "p.eqdata"
    command = ["data", "pack", str(FILES[0]), "-o", str(path), "--cutoff", "4"]
    run = CliRunner().invoke(app, [*command, "--pulay-pressure", "2"])
    assert run.exit_code == 0
    known = labels(FILES[0], 0.0)
    for source in (path, FILES[0]):
        added = known - labels(source, 2.0)  # a pressure is minus a third of the trace
        expected = np.where(np.isnan(known), np.nan, 2.0 * GPa * np.eye(3))
        np.testing.assert_allclose(added, expected, atol=1e-12)
    assert 5 < np.isfinite(known[:, 0, 0]).sum() < len(known)
    for source, pressure in ((path, 0.0), (store, 2.0)):
        with pytest.raises(InputError, match=f"data.pulay_pressure is {pressure:g}: change that"):
            labels(source, pressure)
    with pytest.raises(InputError, match="no pulay_pressure can be"):
        labels(path, "measured")
    with pytest.raises(InputError, match='must be a number of GPa or "measured"'):
        labels(path, "automatic")


def test_gradients_of_the_loss_are_those_of_frames(store, frames):
    from eqcalc.training.config import from_dict
    from eqcalc.training.loss import Loss, residuals
    from eqcalc.training.network import build_model
    from eqcalc.training.setup import Constants
    from eqcalc.training.task import predict

    config = from_dict(
        {"model": {"cutoff": 4.0, "num_layers": 1, "l_max": 1, "num_channels": [4, 2]}}
    )
    packed = PackedDataset(store)
    statistics = packed.statistics()
    scale = [statistics.force_rms] * len(statistics.atomic_numbers)
    constants = Constants(
        statistics.atomic_numbers, packed.avg_num_neighbors, scale, statistics.shift
    )
    model = build_model(config, constants)
    gradients = []
    for dataset in (packed, FrameDataset(frames, ELEMENTS, 4.0)):
        batch = Batch.collate([dataset[n] for n in (0, 3, 22, 23)])
        difference = residuals(predict(model, batch, differentiable=True), batch)
        model.zero_grad()
        Loss(config.training)(difference).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert gradients[0]
    assert all(torch.equal(x, y) for x, y in zip(*gradients, strict=True))


def test_evaluation_of_a_store(store, frames, tmp_path):
    from potentials import untrained

    from eqcalc.export import load
    from eqcalc.training.evaluate import evaluate

    model = load(untrained(tmp_path / "m.pth", elements=ELEMENTS, layers=1)).module
    packed, held = PackedDataset(store, ELEMENTS, 4.0), FrameDataset(frames, ELEMENTS, 4.0)
    summary = evaluate(model, packed).summary()
    assert summary == evaluate(model, held).summary()
    assert {"all", "Elastic"} <= summary.keys()


def test_command(tmp_path):
    command = ["data", "pack", str(FILES[0]), "-o", str(tmp_path / "a.eqdata"), "--cutoff", "4"]
    run = CliRunner().invoke(app, command, catch_exceptions=False)
    assert run.exit_code == 0
    assert "22 frames, 44 atoms of Li" in run.output
    assert len(PackedDataset(tmp_path / "a.eqdata", cutoff=4.0)) == 22


def test_labels_of_a_store_are_those_that_are_asked_for(tmp_path):
    """Other names in a config are refused, or told of where an older store does not say."""
    from eqcalc.training.config import from_dict
    from eqcalc.training.frames import load_frames

    images = read(DATA / "lithium_strained.xyz", ":4")
    for atoms in images:
        atoms.info["dft_energy"] = atoms.get_potential_energy()
    write(tmp_path / "a.xyz", images)
    folder = tmp_path / "a.eqdata"
    pack(tmp_path / "a.xyz", folder, 4.0, energy_key="dft_energy")

    def load(**data):
        data = {"train": [str(folder)], **data}
        return load_frames(from_dict({"data": data, "model": {"cutoff": 4.0}})).train

    assert len(load(energy_key="dft_energy")) == 3
    with pytest.raises(InputError, match=r"packed with --energy-key 'dft_energy', data\."):
        load(energy_key="REF_energy")
    header = json.loads((folder / "header.json").read_text())
    del header["labels"]
    (folder / "header.json").write_text(json.dumps(header))
    with pytest.warns(UserWarning, match="does not say under which names"):
        load(energy_key="dft_energy")
