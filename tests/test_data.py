"""Frames in: labels, missing labels, reference energies, splits, and signs of trouble."""

import bz2
import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

from eqcalc.data.dataset import EpochShuffle, FrameDataset, split_indices
from eqcalc.data.frames import Frame, FrameHash, iter_frames, read_frames, read_structure, to_frame
from eqcalc.data.spellings import label_of
from eqcalc.data.statistics import gather, suspicious
from eqcalc.derivatives import stress_volume
from eqcalc.errors import InputError

DATA = Path(__file__).parent / "data"


def test_labels_equal_what_ase_reads():
    frames = read_frames(DATA / "lithium_strained.xyz")
    images = read(DATA / "lithium_strained.xyz", ":")
    assert len(frames) == len(images) == 22
    for frame, atoms in zip(frames, images, strict=True):
        assert frame.energy == atoms.get_potential_energy()
        assert np.array_equal(frame.forces, atoms.get_forces())
        if "stress" in atoms.calc.results:
            assert np.array_equal(frame.stress, atoms.get_stress(voigt=False))
        else:
            assert frame.stress is None
    assert 0 < sum(f.stress is None for f in frames) < 22


def test_molecules_and_crystals_make_one_set():
    frames = read_frames([DATA / "lithium_strained.xyz", DATA / "acac.xyz"])
    dataset = FrameDataset(frames, [1, 3, 6, 8], 4.0)
    assert dataset[0].graph.volume[0] == pytest.approx(frames[0].atoms.get_volume())
    assert dataset[len(dataset) - 1].graph.volume[0] == 0.0
    assert dataset[len(dataset) - 1].stress.isnan().all()
    edges = sum(item.graph.num_edges for item in dataset.items)
    assert dataset.avg_num_neighbors == edges / sum(len(f.atoms) for f in frames)


def test_reference_energies():
    frames = read_frames(DATA / "acac.xyz")
    isolated = read_frames(DATA / "acac_isolated_atoms.xyz")
    statistics = gather(frames, isolated=isolated)
    assert statistics.atomic_numbers == [1, 6, 8]
    by_number = {int(f.atoms.numbers[0]): f.energy for f in isolated}
    assert statistics.shift == [by_number[z] for z in (1, 6, 8)]
    given = gather(frames, isolated=isolated, given={"O": -1.0})
    assert given.shift == [by_number[1], by_number[6], -1.0]
    fitted = gather(read_frames(DATA / "silicon_surfaces.xyz"))
    assert fitted.energy_rms < 0.3  # what the fit leaves is a surface energy, not 5 eV
    with pytest.raises(InputError, match="'Xx': not a chemical symbol"):
        gather(frames, given={"Xx": 1.0})


def test_split_is_repeatable_and_keeps_the_groups():
    frames = read_frames([DATA / "lithium_strained.xyz", DATA / "silicon_surfaces.xyz"])
    groups = [f.config_type for f in frames]
    train, val = split_indices(groups, 0.3, seed=5)
    assert split_indices(groups, 0.3, seed=5) == (train, val)
    assert sorted(train + val) == list(range(len(frames)))
    assert {groups[n] for n in val} == {"Elastic", "Surface"}
    with pytest.raises(InputError, match="single frame cannot be split"):
        split_indices(["all"], 0.1, 0)


def test_shuffle_depends_on_the_epoch_only():
    shuffle = EpochShuffle(20, seed=3)
    first = list(shuffle)
    shuffle.set_epoch(4)
    fourth = list(shuffle)
    assert sorted(fourth) == list(range(20))
    assert fourth != first
    other = EpochShuffle(20, seed=3)
    other.set_epoch(4)
    assert list(other) == fourth


def labelled(scale_energy=1.0):
    """Frames whose energies are in another unit."""
    images = read(DATA / "lithium_strained.xyz", ":")
    rng = np.random.default_rng(0)
    for atoms in images:
        forces = rng.normal(scale=0.3, size=(len(atoms), 3))
        energy = (atoms.get_potential_energy() + rng.normal(scale=0.3)) * scale_energy
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return images


def test_wrong_units_are_pointed_out(tmp_path):
    write(tmp_path / "good.xyz", labelled())
    good = read_frames(tmp_path / "good.xyz")
    assert suspicious(good, gather(good)) == []
    write(tmp_path / "kj.xyz", labelled(96.485))
    frames = read_frames(tmp_path / "kj.xyz")
    assert "kJ/mol instead of eV" in " ".join(suspicious(frames, gather(frames)))
    images = labelled()
    images[3].calc.results["energy"] -= 1e5
    write(tmp_path / "outlier.xyz", images)
    frames = read_frames(tmp_path / "outlier.xyz")
    assert "outlier.xyz, frame 3" in " ".join(suspicious(frames, gather(good)))
    assert "far outside what is plausible" in " ".join(suspicious(frames, gather(good)))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda a: a.calc.results.pop("energy"), "has no energy under the key 'energy'"),
        (lambda a: a.calc.results.update(energy=np.nan), "the energy is not a finite number"),
        (lambda a: a.positions.__setitem__((1, 2), np.nan), "position of atom 1 is .* not a fin"),
    ],
)
def test_broken_frames_are_named(change, sentence):
    atoms = read(DATA / "lithium_strained.xyz", 0)
    change(atoms)
    with pytest.raises(InputError, match=sentence):
        to_frame(atoms, "here")


def test_other_key_names(tmp_path):
    atoms = read(DATA / "lithium_strained.xyz", 0)
    energy = atoms.get_potential_energy()
    atoms.calc = None
    atoms.info["dft_energy"] = energy
    write(tmp_path / "a.xyz", atoms)
    assert read_frames(tmp_path / "a.xyz", energy_key="dft_energy")[0].energy == energy
    with pytest.raises(InputError, match=r"it has: .*dft_energy.*data\.energy_key"):
        read_frames(tmp_path / "a.xyz")


def test_unreadable_and_missing_files(tmp_path):
    (tmp_path / "noise.xyz").write_text("not a structure\n")
    with pytest.raises(InputError, match="ASE cannot read"):
        read_frames(tmp_path / "noise.xyz")
    with pytest.raises(InputError, match="There is no file"):
        read_frames(tmp_path / "absent.xyz")


def test_unknown_element_and_overlap():
    frames = read_frames(DATA / "silicon_surfaces.xyz")
    with pytest.raises(InputError, match="contains Si, which no"):
        FrameDataset(frames, [3], 4.0)
    close = Atoms("Li2", positions=[[0, 0, 0], [0, 0, 0.01]])
    close.info["energy"] = 0.0
    with pytest.raises(InputError, match=r"less than 0\.1 Å apart"):
        FrameDataset([to_frame(close, "here")], [3], 4.0)


def test_files_of_one_name_are_told_apart(tmp_path):
    atoms = read(DATA / "lithium_strained.xyz", 0)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "train.xyz", [atoms, atoms])
    paths = [tmp_path / folder / "train.xyz" for folder in ("a", "b")]
    sources = [f.source for f in read_frames(paths)]
    assert len(set(sources)) == 4
    assert sources[3] == f"{paths[1]}, frame 1"
    assert read_frames(paths[0])[1].source == "train.xyz, frame 1"


def test_frames_are_read_one_at_a_time(tmp_path):
    images = read(DATA / "lithium_strained.xyz", ":3")
    del images[2].calc.results["energy"]
    write(tmp_path / "a.xyz", images)
    frames = iter_frames(tmp_path / "a.xyz")
    assert next(frames).source == "a.xyz, frame 0"
    next(frames)
    with pytest.raises(InputError, match="frame 2 has no energy"):
        next(frames)


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz"])
def test_compressed_files(tmp_path, ending):
    opener = {".gz": gzip, ".bz2": bz2, ".xz": lzma}[ending].open
    plain = DATA / "lithium_strained.xyz"
    with opener(tmp_path / f"a.xyz{ending}", "wb") as file:
        file.write(plain.read_bytes())
    packed, expected = read_frames(tmp_path / f"a.xyz{ending}"), read_frames(plain)
    assert [f.energy for f in packed] == [f.energy for f in expected]
    assert all(np.array_equal(a.forces, b.forces) for a, b in zip(packed, expected, strict=True))
    last = read_structure(tmp_path / f"a.xyz{ending}")
    assert np.array_equal(last.positions, expected[-1].atoms.positions)


def test_ase_database(tmp_path):
    from ase.db import connect

    images = read(DATA / "lithium_strained.xyz", ":3")
    with connect(tmp_path / "a.db") as database:
        for n, atoms in enumerate(images):
            database.write(
                atoms,
                config_type="strained",
                ref_energy=-10.0 - n,
                data={"ref_forces": np.full((len(atoms), 3), 0.5)},
            )
    with pytest.warns(UserWarning, match=r"'ref_energy' \(up to 8\.2 eV away\) and 'ref_forces'"):
        frames = read_frames(tmp_path / "a.db")
    for frame, atoms in zip(frames, images, strict=True):
        assert frame.energy == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
        assert np.allclose(frame.forces, atoms.get_forces(), atol=1e-12)
        assert frame.config_type == "strained"
        assert (frame.stress is None) == ("stress" not in atoms.calc.results)
    assert np.array_equal(read_structure(tmp_path / "a.db").positions, images[-1].positions)
    other = read_frames(tmp_path / "a.db", energy_key="ref_energy", forces_key="ref_forces")
    assert [f.energy for f in other] == [-10.0, -11.0, -12.0]
    assert np.array_equal(other[0].forces, np.full((2, 3), 0.5))
    with pytest.raises(InputError, match=r"it has: .*ref_energy"):
        read_frames(tmp_path / "a.db", energy_key="dft")


#: what VASP writes, as far as its reader looks at it; stress in kbar with VASP's sign
VASPRUN = """<?xml version="1.0" encoding="ISO-8859-1"?>
<modeling>
 <generator><i name="version" type="string">5.4.4</i></generator>
 <kpoints><varray name="kpointlist"><v>0.0 0.0 0.0</v></varray></kpoints>
 <parameters></parameters>
 <atominfo>
  <atoms>2</atoms><types>1</types>
  <array name="atoms">
   <field type="string">element</field><field type="int">atomtype</field>
   <set><rc><c>Si</c><c>1</c></rc><rc><c>Si</c><c>1</c></rc></set>
  </array>
 </atominfo>
{structure}
{steps}
</modeling>
"""
STRUCTURE = """ <structure{name}>
   <crystal><varray name="basis">
    <v>0.0 2.7 2.7</v><v>2.7 0.0 2.7</v><v>2.7 2.7 0.0</v></varray></crystal>
   <varray name="positions"><v>0.0 0.0 0.0</v><v>0.25 0.25 0.26</v></varray>
  </structure>"""
STEP = """ <calculation>
  <scstep><energy><i name="e_fr_energy">{free}</i><i name="e_wo_entrp">{energy}</i>
   <i name="e_0_energy">{energy}</i></energy></scstep>
{structure}
  <varray name="forces"><v>0.1 0.2 0.3</v><v>-0.1 -0.2 -0.3</v></varray>
  <varray name="stress"><v>16.0 1.0 2.0</v><v>1.0 17.0 3.0</v><v>2.0 3.0 18.0</v></varray>
  <energy><i name="e_fr_energy">{free}</i><i name="e_wo_entrp">{energy}</i>
   <i name="e_0_energy">{energy}</i></energy>
 </calculation>"""


def test_vasprun(tmp_path):
    steps = "\n".join(
        STEP.format(free=-10.8 - n, energy=-10.7 - n, structure=STRUCTURE.format(name=""))
        for n in range(2)
    )
    initial = STRUCTURE.format(name=' name="initialpos"')
    (tmp_path / "vasprun.xml").write_text(VASPRUN.format(structure=initial, steps=steps))
    frames = read_frames(tmp_path / "vasprun.xml")
    assert [f.energy for f in frames] == [-10.7, -11.7]
    assert frames[1].forces[0].tolist() == [0.1, 0.2, 0.3]
    # compression is positive in VASP, negative here; 1602 kbar are 1 eV/Å^3
    expected = -np.array([[16.0, 1, 2], [1, 17, 3], [2, 3, 18]]) / 1602.1766
    assert np.allclose(frames[0].stress, expected, rtol=1e-6)
    with gzip.open(tmp_path / "vasprun.xml.gz", "wb") as file:
        file.write((tmp_path / "vasprun.xml").read_bytes())
    assert [f.energy for f in read_frames(tmp_path / "vasprun.xml.gz")] == [-10.7, -11.7]
    free = read_frames(tmp_path / "vasprun.xml", energy_key="free_energy")
    assert [f.energy for f in free] == [-10.8, -11.8]


#: the same for OUTCAR
OUTCAR_HEAD = """ POTCAR:    PAW_PBE Si 05Jan2001
 POTCAR:    PAW_PBE Si 05Jan2001
   ions per type =               2
   ISPIN  =      1    spin polarized calculation?
   k-points  NKPTS =      1   k-points in BZ  NKDIM =      1   number of bands  NBANDS=      8
 k-points in reciprocal lattice and weights: gamma
   0.00000000  0.00000000  0.00000000       1.000
"""
OUTCAR_STEP = """
--------------------------------------- Iteration      {n}(   1)  -------------------------------
  in kB      16.00000    17.00000    18.00000     1.00000     3.00000     2.00000
      direct lattice vectors                 reciprocal lattice vectors
     0.000000000  2.700000000  2.700000000    -0.185185185  0.185185185  0.185185185
     2.700000000  0.000000000  2.700000000     0.185185185 -0.185185185  0.185185185
     2.700000000  2.700000000  0.000000000     0.185185185  0.185185185 -0.185185185

 POSITION                                       TOTAL-FORCE (eV/Angst)
 -----------------------------------------------------------------------------------
      0.00000      0.00000      0.00000         0.100000      0.200000      0.300000
      1.37700      1.37700      1.35000        -0.100000     -0.200000     -0.300000
 -----------------------------------------------------------------------------------

  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)
  ---------------------------------------------------
  free  energy   TOTEN  =       {free:.8f} eV

  energy  without entropy=      {energy:.8f}  energy(sigma->0) =      {energy:.8f}
"""


@pytest.mark.parametrize("name", ["OUTCAR", "OUTCAR.gz"])
def test_outcar(tmp_path, name):
    steps = [OUTCAR_STEP.format(n=n + 1, free=-10.8 - n, energy=-10.7 - n) for n in range(2)]
    with (gzip.open if name.endswith(".gz") else open)(tmp_path / name, "wt") as file:
        file.write(OUTCAR_HEAD + "".join(steps))
    frames = read_frames(tmp_path / name)
    assert [f.energy for f in frames] == pytest.approx([-10.7, -11.7])
    free = read_frames(tmp_path / name, energy_key="free_energy")
    assert [f.energy for f in free] == pytest.approx([-10.8, -11.8])
    assert frames[1].forces[0].tolist() == [0.1, 0.2, 0.3]
    assert frames[0].atoms.positions[1].tolist() == [1.377, 1.377, 1.35]
    expected = -np.array([[16.0, 1, 2], [1, 17, 3], [2, 3, 18]]) / 1602.1766
    assert np.allclose(frames[0].stress, expected, rtol=1e-6)


def test_a_named_label_that_no_frame_has(tmp_path):
    write(tmp_path / "a.xyz", read(DATA / "lithium_strained.xyz", ":3"))
    with pytest.raises(InputError, match=r"No frame has forces under the key 'F': correct data\."):
        read_frames(tmp_path / "a.xyz", forces_key="F")
    images = read(DATA / "lithium_strained.xyz", ":3")
    images[0].info["energy_text"] = "minus ten"
    write(tmp_path / "a.xyz", images)
    with pytest.raises(InputError, match="is 'minus ten', not one number"):
        read_frames(tmp_path / "a.xyz", energy_key="energy_text")


@pytest.mark.parametrize(
    ("pbc", "height", "volume"),
    [
        ((True, True, True), 20.0, 240.0),
        ((True, True, False), 20.0, 240.0),  # of the cell, vacuum included
        ((False, True, False), 20.0, 240.0),
        ((True, True, True), -20.0, 240.0),
        ((True, True, False), 0.0, None),
        ((False, False, False), 20.0, None),
    ],
)
def test_volume_of_a_stress(pbc, height, volume):
    cell = np.array([[3.0, 0.0, 0.0], [1.0, 4.0, 0.0], [0.5, 0.7, height]])
    found = stress_volume(cell if height else np.diag([3.0, 4.0, 0.0]), np.array(pbc))
    assert found == (volume and pytest.approx(volume, rel=1e-14))


def slab(pbc="TTF", **stress) -> Atoms:
    """Two atoms in a cell of 240 Å^3, with labels in `info`."""
    atoms = Atoms("Li2", positions=[[0.0, 0, 0], [0, 0, 2.8]], cell=[3.0, 4.0, 20.0])
    atoms.pbc = [letter == "T" for letter in pbc]
    atoms.info.update(energy=-1.0, **stress)
    return atoms


VOIGT = np.array([0.01, 0.02, 0.03, 0.004, 0.005, 0.006])
MATRIX = np.array([[0.01, 0.006, 0.005], [0.006, 0.02, 0.004], [0.005, 0.004, 0.03]])


@pytest.mark.parametrize("pbc", ["TTT", "TTF", "FTF"])
def test_a_stress_needs_one_periodic_direction(pbc):
    named = to_frame(slab(pbc, REF_stress=VOIGT), "here", stress_key="REF_stress")
    assert np.array_equal(named.stress, MATRIX)
    assert np.array_equal(to_frame(slab(pbc, stress=VOIGT), "here").stress, MATRIX)
    virial = to_frame(slab(pbc, virial=-240.0 * MATRIX), "here", virial_key="virial")
    assert np.allclose(virial.stress, MATRIX, rtol=1e-14, atol=0.0)
    assert FrameDataset([named], [3], 4.0)[0].graph.volume.tolist() == pytest.approx([240.0])
    assert to_frame(slab(pbc, stress=VOIGT), "here", stress_key="").stress is None


def test_a_stress_without_volume_is_refused_or_told_of(tmp_path):
    for key in ("stress_key", "virial_key"):
        with pytest.raises(InputError, match=r"'dft' was asked for, .* periodic in no direction"):
            to_frame(slab("FFF", dft=VOIGT), "here", **{key: "dft"})
    flat = slab("TTF", dft=VOIGT)
    flat.cell[2] = 0.0
    with pytest.raises(InputError, match="its cell has no volume"):
        to_frame(flat, "here", stress_key="dft")
    write(tmp_path / "a.xyz", [slab("TTT", stress=VOIGT), slab("FFF", stress=VOIGT)])
    with pytest.warns(UserWarning, match=r"stress of 1 frame is left out \(first a\.xyz, frame 1"):
        frames = read_frames(tmp_path / "a.xyz")
    assert [f.stress is None for f in frames] == [False, True]
    with pytest.raises(InputError, match="both name the stress: leave one out"):
        read_frames(tmp_path / "a.xyz", stress_key="a", virial_key="b")
    with pytest.raises(InputError, match="No frame has a virial under the key 'b'"):
        read_frames(tmp_path / "a.xyz", virial_key="b")
    with pytest.raises(InputError, match="the stress is 'unknown': numbers are expected"):
        to_frame(slab("TTT", dft="unknown"), "here", stress_key="dft")


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("force", "forces"),
        ("REF_forces", "forces"),
        ("dft_force", "forces"),
        ("forces-vasp", "forces"),
        ("virials", "virial"),
        ("REF_virial", "virial"),
        ("virial_stress", "virial"),
        ("stresses", "stress"),
        ("dft_stress", "stress"),
        ("DFT_energy", "energy"),
        ("TotEnergy", "energy"),
        ("total_energy", "energy"),
        ("free_energy", None),
        ("eqcalc_forces", None),
        ("force_mask", None),
        ("kinetic_energy", None),
        ("vdw_energy", None),
        ("energy_hartree", None),
        ("positions", None),
    ],
)
def test_spellings(name, label):
    assert label_of(name) == label


def test_other_spellings_are_named_with_their_option(tmp_path):
    """A column `force` and a key `virial`, as other codes write them."""
    atoms = slab("TTT", virial=-240.0 * MATRIX, virials=-240.0 * MATRIX)
    atoms.arrays["force"] = np.full((2, 3), 0.5)
    write(tmp_path / "a.xyz", [atoms, atoms])
    with pytest.warns(UserWarning, match="which is not read") as told:
        frames = read_frames(tmp_path / "a.xyz")
    assert frames[0].forces is None
    assert frames[0].stress is None
    sentences = [str(w.message) for w in told]
    assert len(sentences) == 3
    assert "2 of 2 frames have no forces under the key 'forces' but 'force'" in sentences[0]
    for sentence, name in zip(sentences, ("forces", "virial", "virial"), strict=True):
        assert f"--{name}-key" in sentence
    keys = {"forces_key": "force", "virial_key": "virial"}
    (frame, _) = read_frames(tmp_path / "a.xyz", **keys)
    assert np.array_equal(frame.forces, np.full((2, 3), 0.5))
    assert np.allclose(frame.stress, MATRIX, rtol=1e-14, atol=0.0)


def test_two_sets_of_labels(tmp_path):
    """The same numbers twice, or a virial beside the stress that it makes, are one set."""
    atoms = slab("TTT", stress=VOIGT, virial=-240.0 * MATRIX, REF_energy=-1.0)
    write(tmp_path / "a.xyz", atoms)
    read_frames(tmp_path / "a.xyz")  # no warning
    atoms.info["REF_energy"] = -3.5
    write(tmp_path / "a.xyz", atoms)
    with pytest.warns(
        UserWarning, match=r"'energy' is used, and 'REF_energy' \(up to 2\.5 eV away"
    ):
        read_frames(tmp_path / "a.xyz")
    (frame,) = read_frames(tmp_path / "a.xyz", energy_key="REF_energy")  # chosen: no warning
    assert frame.energy == -3.5


def test_the_hash_of_frames_knows_periodicity():
    """Hashes of crystals and of molecules without a cell are those that older runs keep."""

    def digest(*atoms):
        made = FrameHash()
        for one in atoms:
            made.add(to_frame(one, "here"))
        return made.hexdigest()

    every = {pbc: digest(slab(pbc)) for pbc in ("TTT", "TTF", "FTT", "FFF")}
    assert len(set(every.values())) == 4
    assert every["TTT"] == "a620363ca1049267"
    molecule = slab("FFF")
    molecule.cell = None
    assert digest(molecule) == "6a26c80a7463dbd4"


def test_arrays_of_other_types_make_the_same_graph():
    """float32 and columns first, as some readers and programs leave them."""
    atoms = read(DATA / "lithium_strained.xyz", 0)
    atoms.positions = np.round(atoms.positions, 2).astype(np.float32)
    odd = atoms.copy()
    odd.arrays["positions"] = np.asfortranarray(atoms.positions.astype(np.float32))
    for made in (odd, atoms):
        made.info["energy"] = -1.0
        made.arrays["forces"] = np.asfortranarray(np.ones((len(atoms), 3), dtype=np.float32))
    frame = to_frame(odd, "here")
    assert frame.atoms.positions.dtype == np.float64
    straight = Frame(odd, -1.0, odd.arrays["forces"], None, "all", "here")
    expected, *others = (
        FrameDataset([f], [3], 4.0)[0] for f in (to_frame(atoms, "a"), frame, straight)
    )
    for batch in others:
        assert torch.equal(batch.graph.edge_vec, expected.graph.edge_vec)
        for tensor in (batch.graph.edge_vec, batch.forces, batch.graph.volume):
            assert tensor.dtype == torch.float64
            assert tensor.is_contiguous()
