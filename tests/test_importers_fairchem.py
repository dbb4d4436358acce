"""fairchem-core's eSEN: the same numbers as the package, and sentences for what is not covered.

tests/data/fairchem.json holds options of three networks, and what fairchem-core 2.24.0 makes of
them: tests/peers/fairchem_random.py, whose weights follow from their names, so that they need not
be kept. Where EQCALC_FAIRCHEM is `install`, which makes an environment in build/peers (minutes,
once), or names an interpreter with the package, it is asked anew.
"""

import dataclasses
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from imported import peer_python, results, structure

from eqcalc import EquivariantCalculator
from eqcalc.checks.gradients import check_gradients
from eqcalc.checks.parity import check_parity
from eqcalc.checks.symmetry import check_symmetry
from eqcalc.engine.plan import NotCovered
from eqcalc.errors import InputError
from eqcalc.importers import import_model

HERE = Path(__file__).parent
CASES = json.loads((HERE / "data/fairchem.json").read_text("utf-8"))
PYTHON = os.environ.get("EQCALC_FAIRCHEM")
CLASS = "fairchem.core.models.uma.escn_md.eSCNMDBackbone"
OPTIONS = {"model": CLASS, "direct_forces": False, "ff_type": "spectral"}


def weights_of(shapes):
    """As in tests/peers/fairchem_random.py."""
    made = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng([ord(c) for c in name])
        fan = shape[-1] if len(shape) > 1 else 10
        made[name] = torch.from_numpy(rng.normal(size=shape) / np.sqrt(fan)).float()
    return made


@pytest.fixture
def save(tmp_path, monkeypatch):
    """Saves a checkpoint under the name of fairchem's class."""
    path = "fairchem.core.units.mlip_unit.api.inference"
    kind = dataclasses.make_dataclass(
        "MLIPInferenceCheckpoint",
        ["model_config", "model_state_dict", "ema_state_dict", "tasks_config"],
        namespace={"__module__": path},
    )
    module = types.ModuleType(path)
    module.MLIPInferenceCheckpoint = kind
    names = path.split(".")
    for n in range(1, len(names)):
        monkeypatch.setitem(sys.modules, ".".join(names[:n]), types.ModuleType(names[n - 1]))
    monkeypatch.setitem(sys.modules, path, module)

    def saved(weights, tasks=(), **options):
        file = tmp_path / "esen.pt"
        averaged = {f"module.{name}": w for name, w in weights.items()}
        document = {"backbone": OPTIONS | options, "heads": {}}
        torch.save(kind(document, weights, averaged, list(tasks)), file)
        return file

    return saved


def tasks_of(case):
    return [
        {
            "property": "energy",
            "datasets": [name],
            "normalizer": {"mean": 0.0, "rmsd": scale},
            "element_references": {"element_references": {"_args_": [references]}},
        }
        for name, (scale, references) in case["asked"]["tasks"].items()
    ]


@pytest.fixture(params=CASES)
def case(request, save):
    """A checkpoint, and what the package makes of it."""
    found = CASES[request.param]
    backbone = found["asked"]["backbone"]
    return save(weights_of(found["shapes"]), tasks_of(found), **backbone), found


def assert_same(source, folder, expected, atoms=None):
    for task, known in expected.items():
        path = import_model(source, folder / f"{task}.pth", task=task, dtype="float64").path
        energy, forces = results(path, atoms, engine="torch", dtype="float64")
        assert np.abs(known["forces"]).max() > 1e-2
        assert energy == pytest.approx(known["energy"], abs=1e-6)
        assert forces == pytest.approx(np.array(known["forces"]), abs=1e-6)


def test_numbers_are_those_of_the_package(case, tmp_path):
    source, found = case
    assert_same(source, tmp_path, found["results"])


@pytest.mark.skipif(not PYTHON, reason="EQCALC_FAIRCHEM is not 'install' and names no interpreter")
@pytest.mark.parametrize("name", CASES)
def test_its_own_checkpoint_is_read(name, tmp_path):
    asked = json.dumps(CASES[name]["asked"])
    script = HERE / "peers/fairchem_random.py"
    python = peer_python("fairchem") if PYTHON == "install" else PYTHON
    done = subprocess.run(
        [python, script, tmp_path], input=asked, capture_output=True, text=True, check=True
    )
    assert_same(tmp_path / "esen.pt", tmp_path, json.loads(done.stdout)["results"])


@pytest.fixture
def three(save, tmp_path):
    """The file, and an import with three of its elements."""
    found = CASES["small"]
    source = save(weights_of(found["shapes"]), tasks_of(found), **found["asked"]["backbone"])
    elements = ["O", "Si", "Cu"]
    return source, import_model(source, tmp_path / "m.pth", elements=elements, dtype="float64").path


def test_a_part_of_the_elements_has_the_same_numbers(three, tmp_path):
    source, path = three
    known = CASES["small"]["results"]["omat"]
    assert results(path, engine="torch")[0] == pytest.approx(known["energy"], abs=1e-6)
    with pytest.raises(InputError, match="does not know U"):
        import_model(source, tmp_path / "u.pth", elements=["U"])
    with pytest.raises(NotCovered, match="FairchemESEN"):
        EquivariantCalculator(path, engine="fused")


def test_all_symmetries_but_reflections_and_exact_derivatives(three):
    """m and -m are mixed: mirrored it is another network."""
    calc = EquivariantCalculator(three[1], engine="torch", dtype="float64")
    symmetry = check_symmetry(structure(), calc)
    broken = {"reflection", "inversion"}
    assert {failure.split(" changes")[0] for failure in symmetry.failures} == broken
    assert {"rotation 1", "permutation", "supercell", "wrapping"} < symmetry.deviations.keys()
    gradients = check_gradients(structure(), calc)
    assert gradients.passed, str(gradients)


@pytest.mark.slow
@pytest.mark.lammps
@pytest.mark.filterwarnings("ignore:Running on torch")
def test_lammps_has_the_same_numbers(three):
    report = check_parity(structure(), three[1], ranks=(1, 2, 4), precisions=("float64",))
    assert report.passed, str(report)


def test_what_is_not_covered_is_named(save, tmp_path):
    def said(weights=None, tasks=(), **options):
        with pytest.raises(InputError) as caught:
            import_model(save(weights or {}, tasks, **options), tmp_path / "model.pth")
        return str(caught.value)

    refused = said(ff_type="grid", direct_forces=True, num_experts=8, act_type="s2")
    for part in ("mixture of 8 experts", "direct_forces", "ff_type = grid", "act_type = s2"):
        assert part in refused
    assert "norm_type" not in refused
    assert "'EScAIPBackbone' of fairchem-core" in said(model="x.EScAIPBackbone")
    assert "has no weights 'backbone.sphere" in said()
    two = [{"property": "energy", "datasets": [name]} for name in ("omat", "omol")]
    assert "tasks omat, omol: choose one with --task" in said(tasks=two)
    shifted = [{"property": "energy", "datasets": ["omat"], "normalizer": {"mean": 2.0}}]
    assert "adds 2 eV to each structure" in said(tasks=shifted)
