"""Training on a store: bit for bit that on the same frames in files, and nothing held in memory."""

import json
import tracemalloc

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from runs import MODEL, history, tiny, train_in_pieces, weights, write_frames

from eqcalc.data.dataset import Batch
from eqcalc.data.packed import PackedDataset
from eqcalc.data.store import pack
from eqcalc.errors import InputError
from eqcalc.training.dryrun import dry_run
from eqcalc.training.members import train_committee
from eqcalc.training.prepare import prepare
from eqcalc.training.run import export_run, train


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, str]:
    """Two groups of frames, some of them without forces, and others to validate; and stores."""
    folder = tmp_path_factory.mktemp("data")
    molecules = write_frames(folder / "a.xyz", 8, importance=3.0)
    images = read(molecules, ":")
    for atoms in images[::3]:
        del atoms.calc.results["forces"]
    write(molecules, images, format="extxyz")
    found = {"a": molecules, "b": write_frames(folder / "b.xyz", 8, config_type="surface", seed=1)}
    found["val"] = write_frames(folder / "val.xyz", 4, seed=2)
    for name, files in {"train": [molecules, found["b"]], "held": [found["val"]]}.items():
        found[f"{name}.eqdata"] = str(folder / f"{name}.eqdata")
        pack(files, found[f"{name}.eqdata"], 4.0, weight_key="importance")
    return found


def config(train_on, val=None, **options):
    section = {"train": train_on, "val": val or [], "weight_key": "importance"}
    return tiny("", data=section, config_weights={"surface": 2.0}, epochs=3, **options)


def assert_same_run(a, b, *, hashes=True):
    assert history(a) == history(b)
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    documents = [
        [json.loads((out / name).read_text()) for name in ("setup.json", "summary.json")]
        for out in (a, b)
    ]
    for setup, summary in documents:
        for place in (setup, summary["data"]) if not hashes else ():
            del place["train_hash"], place["val_hash"]
        assert setup
    assert documents[0] == documents[1]


@pytest.mark.usefixtures("no_potential_file")
@pytest.mark.parametrize("val", ["split", "store", "files", "table"])
def test_it_is_that_on_files_bit_for_bit(data, tmp_path, monkeypatch, val):
    sets = {
        "split": ([], []),
        "store": ([data["val"]], [data["held.eqdata"]]),
        "files": ([data["val"]], [data["val"]]),
        "table": (
            {"x": [data["val"]], "y": [data["a"]]},
            {"x": [data["held.eqdata"]], "y": [data["a"]]},
        ),
    }[val]
    options = {"balance": val == "store"}
    train(config([data["a"], data["b"]], sets[0], **options), tmp_path / "f", quiet=True)
    packed = config([data["train.eqdata"]], sets[1], **options)
    if val == "split":
        train_in_pieces(packed, tmp_path / "s", monkeypatch)
    else:
        train(packed, tmp_path / "s", quiet=True)
    assert_same_run(tmp_path / "f", tmp_path / "s", hashes=val in {"store", "files"})
    if val == "table":
        setups = [json.loads((tmp_path / out / "setup.json").read_text()) for out in "fs"]
        assert setups[0]["train_hash"] == setups[1]["train_hash"]
    reference = [export_run(tmp_path / out, tmp_path / out / "again.pth") for out in "fs"]
    for document in reference:
        document.pop("training")
    assert reference[0] == reference[1]


def test_weights(data):
    prepared = prepare(config([data["train.eqdata"]]))
    got = Batch.collate([*prepared.train, *prepared.val["validation"]]).weight
    assert isinstance(prepared.train, PackedDataset)
    assert sorted(got.tolist()) == [2.0] * 8 + [3.0] * 8


@pytest.mark.usefixtures("no_potential_file")
def test_other_frames_other_run(data, tmp_path):
    train(config([data["train.eqdata"]]), tmp_path / "r", quiet=True)
    with pytest.raises(InputError, match="another setting of the data"):
        train(config([data["b"]]), tmp_path / "r", quiet=True)


def test_dry_run_and_committee(data, tmp_path):
    reports = [
        dry_run(config(files)).splitlines()
        for files in ([data["a"], data["b"]], [data["train.eqdata"]])
    ]
    lines = [[line for line in report if "time" not in line] for report in reports]
    assert lines[0][:5] == lines[1][:5]
    assert lines[0][4].startswith("neighbours")
    one_epoch = {"val_fraction": 0.25, "train": [data["train.eqdata"]]}
    summary = train_committee(tiny("", data=one_epoch, epochs=1), tmp_path / "c", 2, quiet=True)
    files = {"val_fraction": 0.25, "train": [data["a"], data["b"]], "weight_key": "importance"}
    expected = train_committee(tiny("", data=files, epochs=1), tmp_path / "f", 2, quiet=True)
    assert summary == expected


@pytest.mark.usefixtures("no_potential_file")
def test_fine_tuning_with_a_new_element(data, tmp_path):
    train(config([data["a"], data["b"]]), tmp_path / "original", quiet=True)
    files = write_frames(tmp_path / "c.xyz", 8, symbols="LiC", seed=3)
    pack(files, tmp_path / "c.eqdata", 4.0)
    tuned = []
    for name in (files, str(tmp_path / "c.eqdata")):
        section = {"model": str(tmp_path / "original")}
        out = tmp_path / f"tuned{len(tuned)}"
        train(tiny(name, fine_tune=section, epochs=1), out, quiet=True)
        tuned.append(out)
    assert_same_run(*tuned, hashes=False)


def test_memory_stays_flat_while_preparing(tmp_path):
    """Statistics, signs of trouble, constants of the network, splits: none needs the whole set."""
    atoms = bulk("Si", cubic=True) * (2, 2, 2)
    peaks, sizes = [], []
    for count in (40, 160):
        images = []
        for n in range(count):
            images.append(atoms.copy())
            images[-1].rattle(0.05, seed=n)
            forces = np.random.default_rng(n).normal(size=atoms.positions.shape)
            labels = {"energy": -300.0 + forces[0, 0], "forces": forces}
            images[-1].calc = SinglePointCalculator(images[-1], **labels)
        write(tmp_path / "many.xyz", images, format="extxyz")
        store = tmp_path / f"{count}.eqdata"
        pack(tmp_path / "many.xyz", store, 4.0)
        sizes.append(sum(path.stat().st_size for path in store.iterdir()))
        del images
        tracemalloc.start()
        prepared = prepare(tiny(str(store)))
        smallest = prepared.val["validation"].smallest()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert smallest.graph.num_edges == prepared.val["validation"].edge_counts().min()
    assert peaks[1] - peaks[0] < 0.05 * (sizes[1] - sizes[0])


def test_what_is_wrong_is_said(data, tmp_path):
    store = data["train.eqdata"]
    with pytest.raises(InputError, match=r"data\.train names the store .* and 1 more: a store"):
        prepare(config([store, data["a"]]))
    with pytest.raises(InputError, match=r"data\.val\.x names the store"):
        prepare(config([store], {"x": [data["val"], data["held.eqdata"]]}))
    with pytest.raises(InputError, match=r"of 4 Å, the model has 3\.5 Å: pack .*--cutoff 3\.5"):
        prepare(config([store], model=MODEL | {"cutoff": 3.5}))
    with pytest.raises(InputError, match="is no data store: make one with 'eqcalc data pack"):
        prepare(config([str(tmp_path / "nowhere.eqdata")]))
    carbon = write_frames(tmp_path / "c.xyz", 4, symbols="C")
    pack(carbon, tmp_path / "c.eqdata", 4.0)
    with pytest.raises(InputError, match=r"c\.xyz, frame 0 contains C, which no"):
        prepare(config([store], [str(tmp_path / "c.eqdata")]))
