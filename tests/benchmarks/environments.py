"""A virtual environment for each peer, made with venv and pip."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Peer:
    """A package that is compared.

    Attributes:
        label: in tables.
        script: of its worker, beside this file.
        package, version: what pip installs; None runs in our own environment.
        also: what pip installs beside it.
        networks: the kinds that it runs (see cases.py).
        bare: the package without what it asks for, of which `also` is what it needs.
    """

    label: str
    script: str
    package: str | None = None
    version: str | None = None
    also: tuple[str, ...] = ()
    networks: tuple[str, ...] = ("nequip",)
    bare: bool = False


OF_FORMER_NEQUIP = (
    *("ase", "e3nn<0.6", "torch-runstats", "torch-ema", "pyyaml", "tqdm", "setuptools<81"),
)

PEERS = {
    "nequip": Peer("NequIP 0.19.1 AOTInductor", "row_nequip.py", "nequip", "0.19.1"),
    # those of former formats, for tests/test_importers_peers.py alone
    "nequip-0.5": Peer(
        *("NequIP 0.5.6", "", "nequip", "0.5.6"), also=OF_FORMER_NEQUIP, networks=(), bare=True
    ),
    "nequip-0.6": Peer(
        *("NequIP 0.6.2", "", "nequip", "0.6.2"), also=OF_FORMER_NEQUIP, networks=(), bare=True
    ),
    "mace": Peer("MACE 0.3.16", "row_mace.py", "mace-torch", "0.3.16", networks=("nequip", "mace")),
    "symmetrix": Peer(
        "Symmetrix-XL 0.1.1",
        "row_symmetrix.py",
        "symmetrix-xl",
        "0.1.1",
        also=("symmetrix-xl-cpu-avx512==0.1.1", "mace-torch==0.3.16"),
        networks=("mace",),
    ),
    "sevenn": Peer("SevenNet 0.13.0", "row_sevenn.py", "sevenn", "0.13.0"),
    "fairchem": Peer(
        "fairchem-core 2.24.0",
        "row_fairchem.py",
        "fairchem-core",
        "2.24.0",
        also=(
            *("ase>=3.26", "ase-db-backends", "backoff", "clusterscope==0.0.18", "e3nn>=0.5"),
            *("huggingface-hub", "hydra-core", "lmdb<=1.7.3", "monty", "numba", "orjson"),
            *("requests", "setuptools<81", "submitit", "torchtnt", "tqdm", "wandb", "websockets"),
        ),
        networks=("esen",),
        bare=True,  # it asks for packages of CUDA, which a CPU does not need
    ),
    "e3nn": Peer("e3nn by hand, TorchScript", "scripted_e3nn.py"),
}


class UnavailableError(Exception):
    """A peer that cannot run here; the message is one sentence."""


def _installed(python: Path, package: str) -> str | None:
    code = f"from importlib.metadata import version as v; print(v({package!r}), v('torch'))"
    if not python.is_file():
        return None
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def found_python(name: str, folder: Path) -> Path | None:
    """The interpreter of a peer's environment if that has the right versions."""
    peer = PEERS[name]
    if peer.package is None:
        return Path(sys.executable)
    python = folder.resolve() / name / "bin" / "python"
    found = (_installed(python, peer.package) or "").split()
    wanted = [peer.version, TORCH.partition("==")[2]]
    return python if [v.partition("+")[0] for v in found] == wanted else None


def python_of(name: str, folder: Path) -> Path:
    """The same; the environment is made if it is not there.

    Raises:
        UnavailableError: it cannot be installed.
    """
    if python := found_python(name, folder):
        return python
    peer = PEERS[name]
    home = folder.resolve() / name
    python = home / "bin" / "python"
    print(f"{peer.label}: making its environment in {home}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    pip = [python, "-m", "pip", "install", "--quiet"]
    package = f"{peer.package}=={peer.version}"
    packages = [[*pip, package, *peer.also, TORCH]]
    if peer.bare:
        packages = [[*pip, *peer.also, TORCH], [*pip, "--no-deps", package]]
    for command in (  # torch first and by version: a CPU wheel is taken where there is one
        [sys.executable, "-m", "venv", home],
        [*pip, TORCH],
        *packages,
    ):
        try:
            subprocess.run(
                [str(word) for word in command],
                check=True,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.CalledProcessError) as error:
            said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
            raise UnavailableError(f"{peer.label} cannot be installed here: {said[-1]}") from None
    return python
