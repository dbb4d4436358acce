"""Our potentials in other packages, each in an environment of its own beside this one."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.socketio import SocketIOCalculator
from ase.io import write
from potentials import untrained

from eqcalc import EquivariantCalculator

PEERS = Path(__file__).parent / "peers"

#: without torch and what else is here already
TORCH_SIM = (
    *("torch-sim-atomistic==0.3.0", "vesin", "vesin-torch", "h5py", "tables", "blosc2", "ndindex"),
    *("py-cpuinfo", "numexpr", "msgpack"),
)


@pytest.fixture(scope="module")
def torch_sim(request):
    """A folder with torch-sim, kept between runs."""
    folder = request.config.cache.mkdir("torch_sim_0_3_0")
    if not (folder / "torch_sim").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
        done = subprocess.run(
            [*pip, str(folder), *TORCH_SIM], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"the registry does not give torch-sim: {done.stderr.strip()[-200:]}")
    return folder


def test_torch_sim(torch_sim, tmp_path):
    """Its own validation of models, our calculator, and energy conservation of a batch."""
    potential = untrained(tmp_path / "m.pth", elements=(14, 26), channels=(6, 4))
    paths = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", ""), str(torch_sim)]
    done = subprocess.run(
        [sys.executable, str(PEERS / "torch_sim_model.py"), str(potential)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    for name, limit in (("float64", 1e-9), ("clusters", 1e-9), ("float32", 1e-4)):
        assert max(figures[name].values()) < limit, name
    assert figures["float64"]["stress"] > 0.0
    long, short = figures["spread"]
    assert len(long) == 2
    for a, b in zip(long, short, strict=True):
        assert a / b == pytest.approx(4.0, rel=0.3)


def test_line_for_ipi(tmp_path):
    """The page's own line, against a server of the protocol, which sends and receives stresses."""
    page = (PEERS.parents[1] / "examples" / "README.md").read_text()
    (line,) = re.findall(r'^python -c "(.*SocketClient.*)"$', page, flags=re.MULTILINE)
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=1)
    write(tmp_path / "start.xyz", atoms)
    socket = f"eqcalc-test-{os.getpid()}"
    assert line.count("unixsocket='ipi'") == 1
    command = [sys.executable, "-c", line.replace("unixsocket='ipi'", f"unixsocket='{socket}'")]
    with (
        SocketIOCalculator(unixsocket=socket, timeout=300) as server,
        subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) as client,
    ):
        atoms.calc = server
        found = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
        server.close()
        client.communicate(timeout=60)
    atoms.calc = EquivariantCalculator("si")
    assert found[0] == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
    np.testing.assert_allclose(found[1], atoms.get_forces(), atol=1e-5)
    np.testing.assert_allclose(found[2], atoms.get_stress(), atol=1e-7)


@pytest.fixture
def packages():
    """The Python of an environment with eqcalc, phono3py, matcalc, janus-core and ipi; to make one
    takes minutes."""
    if "EQCALC_ASE_PACKAGES" not in os.environ:
        pytest.skip("EQCALC_ASE_PACKAGES names no interpreter that has phono3py, matcalc, ...")
    return Path(os.environ["EQCALC_ASE_PACKAGES"])


def figures(packages, name, folder):
    command = [packages, PEERS / "ase_packages.py", name]
    environment = {**os.environ, "PYTHONPATH": str(PEERS.parents[1])}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_phono3py(packages, tmp_path):
    """Cubic force constants are derivatives of our exact Hessian."""
    found = figures(packages, "phono3py", tmp_path)
    assert found["largest"] > 10.0
    assert found["off"] < 3e-4 * found["largest"]  # its differences of 0.01 Å


def test_matcalc(packages, tmp_path):
    found = figures(packages, "matcalc", tmp_path)
    for theirs, ours in found.values():
        assert theirs == pytest.approx(ours, rel=0.01)


def test_janus_core(packages, tmp_path):
    found = figures(packages, "janus_core", tmp_path)
    assert found.keys() == {"energy", "forces", "stress"}
    assert max(found.values()) < 1e-12


def test_ipi(packages, tmp_path):
    """i-PI with the page's line and input: fluctuations follow the step squared."""
    page = (PEERS.parents[1] / "examples" / "README.md").read_text()
    (line,) = re.findall(r'^python -c "(.*SocketClient.*)"$', page, flags=re.MULTILINE)
    text = (PEERS.parents[1] / "examples" / "ipi.xml").read_text()
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=1)
    write(tmp_path / "start.xyz", atoms)
    assert text.count(">20<") == text.count(">1.0<") == text.count("<address>ipi<") == 1
    changes = []
    for steps, timestep in ((20, 1.0), (40, 0.5)):
        socket = f"eqcalc-{os.getpid()}-{steps}"
        own = text.replace(">20<", f">{steps}<").replace(">1.0<", f">{timestep}<")
        (tmp_path / "ipi.xml").write_text(own.replace("<address>ipi<", f"<address>{socket}<"))
        with subprocess.Popen(
            [packages.parent / "i-pi", "ipi.xml"], cwd=tmp_path, stdout=subprocess.DEVNULL
        ) as server:
            while not Path(f"/tmp/ipi_{socket}").exists():
                assert server.poll() is None
                time.sleep(0.1)
            client = line.replace("unixsocket='ipi'", f"unixsocket='{socket}'")
            client = client.replace("C('si')", "C('si', dtype='float64')")
            subprocess.run([sys.executable, "-c", client], cwd=tmp_path, check=True)
        found = np.loadtxt(tmp_path / "ipi.out")
        assert len(found) == steps + 1
        # an eV is 0.036749326 Hartree there, 0.0367493225 here
        assert found[0, 3] == pytest.approx(start_energy(atoms), rel=3e-7)
        changes.append(np.ptp(found[:, 2]))
    assert changes[0] / changes[1] == pytest.approx(4.0, rel=0.1)


def start_energy(atoms):
    atoms.calc = EquivariantCalculator("si", dtype="float64")
    return atoms.get_potential_energy()


def test_without_torch_sim():
    code = "import eqcalc.adapters.torch_sim"
    blocked = f"import sys; sys.modules['torch_sim'] = None; {code}"
    done = subprocess.run(
        [sys.executable, "-c", blocked], capture_output=True, text=True, check=False
    )
    assert "pip install torch-sim-atomistic" in done.stderr
