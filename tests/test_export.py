"""The potential file: self-sufficient, self-checking, and never half-written."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from eqcalc import export
from eqcalc.errors import InputError


def rewritten(source, target, change):
    """A copy of a potential file with one of its members changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for item in old.infolist():
            new.writestr(item, change(item.filename, old.read(item)))
    return target


def test_bare_torch_opens_it(potential_path):
    code = f"""
import sys, torch
module = torch.jit.load({str(potential_path)!r})
ref = module.reference_structure
e = module(ref.species, ref.edge_vec, ref.edge_src, ref.edge_dst, len(ref.species))
assert e.dtype == torch.float64 and (e - ref.energies).abs().max() < 1e-4
assert module.format_version == 1 and module.cutoff == 4.0
assert list(module.atomic_numbers) == [8, 14] and len(module.exchange_widths) == 1
assert "eqcalc" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_reading_needs_no_models(potential_path):
    code = f"""
import sys
from eqcalc import EquivariantCalculator
EquivariantCalculator({str(potential_path)!r})
assert not [m for m in sys.modules if m.startswith(("eqcalc.models", "eqcalc.nn", "e3nn"))]
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_no_trace_of_the_machine_that_made_it(potential_path):
    source = str(Path(export.__file__).parent).encode()
    with zipfile.ZipFile(potential_path) as archive:
        assert not [n for n in archive.namelist() if source in archive.read(n)]


def test_metadata(potential_path):
    document = export.read_metadata(potential_path)
    assert document["species"] == ["O", "Si"]
    assert document["cutoff"] == 4.0
    assert document["dtype"] == "float32"
    assert document["units"]["energy"] == "eV"
    assert document["reference_energies"] == {"O": -1.0, "Si": -2.0}


@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-11), ("float32", 1e-4)])
def test_reference_structure_is_reproduced(potential_path, dtype, limit):
    potential = export.load(potential_path, dtype=dtype)
    assert max(export.deviation(potential.module).values()) < limit
    assert potential.module.reference_structure.energies.dtype == torch.float64


def test_tampered_weights_are_refused(potential_path, tmp_path):
    module = torch.jit.load(str(potential_path))
    extra = {export.METADATA_FILE: json.dumps(export.read_metadata(potential_path))}
    next(iter(module.parameters())).data.mul_(1.01)
    torch.jit.save(module, str(tmp_path / "bad.pth"), _extra_files=extra)
    with pytest.raises(InputError, match="does not reproduce its own reference structure"):
        export.load(tmp_path / "bad.pth")


def test_foreign_files_are_refused(tmp_path):
    (tmp_path / "text.pth").write_text("hello")
    torch.save({"a": torch.ones(2)}, tmp_path / "checkpoint.pth")
    for name in ("text.pth", "checkpoint.pth"):
        with pytest.raises(InputError, match=r"is not an eqcalc potential file; make one with"):
            export.load(tmp_path / name)
    with pytest.raises(InputError, match="There is no model file"):
        export.load(tmp_path / "absent.pth")


@pytest.mark.parametrize(
    ("version", "advice"), [(2, "update eqcalc"), (0, "export the model again")]
)
def test_other_format_versions_are_refused(potential_path, tmp_path, version, advice):
    def change(name, data):
        if name.endswith(export.METADATA_FILE):
            return json.dumps(json.loads(data) | {"format_version": version}).encode()
        return data

    path = rewritten(potential_path, tmp_path / "other.pth", change)
    with pytest.raises(InputError, match=f"has format version {version}.*{advice}"):
        export.load(path)


def test_truncated_files_are_refused(potential_path, tmp_path):
    data = potential_path.read_bytes()
    (tmp_path / "half.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError):
        export.load(tmp_path / "half.pth")


def test_a_failed_export_leaves_the_old_file(potential_path, tmp_path):
    path = tmp_path / "model.pth"
    shutil.copy(potential_path, path)
    before = path.read_bytes()

    class Impossible(torch.nn.Module):
        cutoff, atomic_numbers, exchange_widths, layers = 4.0, [14], [], []

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))
            self.reference_energy = torch.nn.Module()
            self.reference_energy.shift = torch.zeros(1)

        def forward(self, x):
            return open(x)  # noqa: PTH123 - TorchScript has no files

    with pytest.raises(RuntimeError):
        export.save(Impossible(), path, {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.pth"]
