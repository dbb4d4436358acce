"""Which of NequIP's file formats a file has, by its content."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import yaml

from eqcalc.errors import InputError
from eqcalc.importers import nequip_new, nequip_old, unpickle
from eqcalc.importers.modules import PACKAGE, TORCHSCRIPT, Archive
from eqcalc.importers.nequip import AUTHORS, CITATION, Network


def _deployed(archive: Archive) -> tuple[Network, str]:
    """TorchScript of nequip-deploy."""
    source = archive.path.name
    text = archive.text("extra/config")
    if not text or "extra/type_names" not in archive:
        raise InputError(
            f"{source} is TorchScript, but not of nequip-deploy 0.5 or 0.6: of a model of later "
            "versions, import the package or the checkpoint that it was compiled from."
        )
    config = nequip_old.configuration(text, source)
    version = archive.text("extra/nequip_version") or str(config.get("nequip_version") or "")
    tree = archive.modules(TORCHSCRIPT)
    network = nequip_old.read({**config, "nequip_version": version}, tree.tensors, tree, source)
    if network.types != archive.text("extra/type_names").split():
        raise InputError(f"{source}: its types and its elements differ: it is not covered.")
    return network, version or "0.5"


def _package(archive: Archive) -> tuple[Network, str]:
    """An archive of nequip-package."""
    source = archive.path.name
    try:
        about = yaml.safe_load(archive.text("model/package_metadata.txt")) or {}
        versions = about.get("versions") or yaml.safe_load(archive.text("model/versions.txt")) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{source}: its metadata are broken: {error}.") from None
    version = str(versions.get("nequip", ""))
    if nequip_new.release(versions.get("e3nn", "0.5"), source) < (0, 5):
        raise InputError(f"{source}: its e3nn_version = {versions['e3nn']} is not covered.")
    tree = archive.modules(PACKAGE)
    kinds = [path for path, kind in tree.kinds.items() if kind.endswith("GraphModel")]
    types = tree.values.get(f"{kinds[0]}.type_names" if kinds else "")
    if not types:
        raise InputError(f"{source} does not say which elements it knows.")
    return nequip_new.read(nequip_new.network_of(tree, source), list(types), source), version


def _checkpoint(content: dict[str, Any], source: str) -> tuple[Network, str]:
    """A checkpoint of nequip-train 0.7 or later."""
    net, types = nequip_new.from_checkpoint(content, source)
    versions = content["hyper_parameters"]["info_dict"]["versions"]
    return nequip_new.read(net, types, source), str(versions["nequip"])


def _folder(content: dict[str, Any], path: Path) -> tuple[Network, str]:
    """best_model.pth of nequip-train 0.5 or 0.6, with config.yaml beside it."""
    text = path.with_name("config.yaml")
    if not text.is_file():
        raise InputError(
            f"{path.name} holds weights alone: {text} must lie beside it, as in the folder of its "
            "training, or make a file with nequip-deploy."
        )
    config = nequip_old.configuration(text.read_text(encoding="utf-8"), path.name)
    network = nequip_old.read(config, content, None, path.name)
    return network, str(config.get("nequip_version") or "0.5 or 0.6")


def kind(path: Path) -> str:
    """What NequIP wrote a file as: TorchScript, package, checkpoint, folder; empty if it did not.

    Raises:
        InputError: it is compiled, or broken.
    """
    if zipfile.is_zipfile(path):
        archive = Archive(path)
        if PACKAGE[0] in archive:
            return "package"
        if "constants.pkl" in archive:
            return "TorchScript"
        if any(name.endswith((".pt2", ".so")) or "aotinductor" in name for name in archive.names()):
            raise InputError(
                f"{path.name} is compiled: import the package or the checkpoint that it was made "
                "from."
            )
    content = unpickle.load(path)
    if nequip_new.is_checkpoint(content):
        return "checkpoint"
    return "folder" if nequip_old.is_state(content) else ""


def network(path: Path) -> tuple[Network, str]:
    """The network of a file of some `kind`, and the version of NequIP that wrote it.

    Raises:
        InputError: it has something that is not covered.
    """
    found = kind(path)
    if found == "package":
        return _package(Archive(path))
    if found == "TorchScript":
        return _deployed(Archive(path))
    content = unpickle.load(path)
    return _checkpoint(content, path.name) if found == "checkpoint" else _folder(content, path)


def origin(version: str) -> dict[str, Any]:
    """What metadata say of where a network comes from."""
    return {
        "package": "NequIP",
        "package_version": version,
        "authors": AUTHORS,
        "citation": CITATION,
    }
