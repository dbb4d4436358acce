"""Parts of molecules pulled away along bonds: which parts, how near, and whose labels they have."""

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.lj import LennardJones
from ase.io import read
from typer.testing import CliRunner

from eqcalc import InputError
from eqcalc.cli import app
from eqcalc.sampling.dynamics import Sampling, Tally, sample
from eqcalc.sampling.pulled import bonds, part, pulled, shortest
from eqcalc.sampling.teachers import Calculated


def test_what_hangs_on_a_bond():
    ethanol = molecule("CH3CH2OH")
    pairs = bonds(ethanol)
    assert len(pairs) == len(ethanol) - 1  # no ring
    (oxygen,) = np.flatnonzero(ethanol.numbers == 8)
    carbon = next(i for pair in pairs for i in pair if oxygen in pair and ethanol.numbers[i] == 6)
    assert sorted(ethanol.numbers[part(pairs, carbon, oxygen)]) == [1, 8]
    assert sorted(part(pairs, carbon, oxygen) + part(pairs, oxygen, carbon)) == [*range(9)]
    benzene = molecule("C6H6")
    held = {
        (i in part(bonds(benzene), i, j), *sorted(benzene.numbers[[i, j]]))
        for i, j in bonds(benzene)
    }
    assert held == {(True, 6, 6), (False, 1, 6)}


def test_frames_lose_bonds_and_press_nothing():
    starts = []
    for seed in range(4):
        starts.append(molecule("CH3CH2OH"))
        starts[-1].rattle(0.03, seed=seed)
    least = {pair: min(shortest(s)[pair] for s in starts) for pair in shortest(starts[0])}

    def some():
        frames = pulled(starts, 4.0, np.random.default_rng(3))
        return [next(frames) for _ in range(60)]

    frames = some()
    for frame, again in zip(frames, some(), strict=True):
        assert np.array_equal(frame.positions, again.positions)
        assert all(d >= least[pair] for pair, d in shortest(frame).items())
    lost = [8 - len(bonds(frame)) for frame in frames]
    assert {0, 1, 2} <= set(lost)  # bonds that are but stretched, cut, and more than one cut


@pytest.mark.parametrize("start", [molecule("H"), bulk("Si"), bulk("Cu", "fcc", 3.6)])
def test_nothing_to_pull(start):
    with pytest.raises(InputError, match="no bonds to be pulled"):
        next(pulled([start], 4.0, np.random.default_rng(1)))


def test_labels_are_the_teachers(tmp_path):
    teacher = Calculated(LennardJones(rc=8.0), "lj")
    tally = Tally()
    frames = [*sample(teacher, [molecule("CH4")], Sampling(frames=5, pull=2.0), tally)]
    assert tally.frames == tally.trajectories == len(frames) == 5
    assert {f.info["config_type"] for f in frames} == {"lj_pulled"}
    for frame in frames:
        expected = frame.copy()
        expected.calc = LennardJones(rc=8.0)
        assert frame.get_potential_energy() == pytest.approx(expected.get_potential_energy())
        assert np.abs(frame.get_forces() - expected.get_forces()).max() < 1e-9
    with pytest.raises(InputError, match="in cells as they are"):
        Sampling(pull=1.0, strain=0.1)
    molecule("CH4").write(tmp_path / "a.xyz")
    arguments = ["sample", "ase.calculators.lj:LennardJones", "--start", str(tmp_path / "a.xyz")]
    written = str(tmp_path / "b.xyz")
    result = CliRunner().invoke(app, [*arguments, "--pull", "3", "--frames", "4", "-o", written])
    assert result.exit_code == 0, result.output
    assert len(read(written, ":")) == 4
