"""What a run keeps of its data and its network's constants: RUN/setup.json, which has a version.

Version 1 did not say its number, nor `scale` where all species have the root mean square force.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from eqcalc.errors import InputError
from eqcalc.nn.crowding import CrowdingConstants
from eqcalc.nn.output_constants import OutputConstants
from eqcalc.nn.reference import PairConstants

#: of the document that this eqcalc writes
VERSION = 2


@dataclass(frozen=True)
class Constants:
    """What a network needs besides options and weights.

    Attributes:
        atomic_numbers: Z of each species, ascending.
        avg_num_neighbors: of the training frames.
        scale, shift: eV, one per species.
        message_scales: by layer and irrep, once they are measured (`Potential.calibrate`).
        pair_constants: of the pair potential, where the network has one.
        crowding: where messages begin to fade, once it is measured.
        outputs: of outputs beside the energy, where the network has any.
    """

    atomic_numbers: list[int]
    avg_num_neighbors: float
    scale: list[float]
    shift: list[float]
    message_scales: list[list[float]] | None = None
    pair_constants: PairConstants | None = None
    crowding: CrowdingConstants | None = None
    outputs: OutputConstants | None = None


@dataclass(frozen=True)
class RunSetup:
    """Facts about the data of a run, and the constants of its network.

    Attributes:
        constants: of the network.
        force_rms: of the training frames, eV/Å.
        train_frames, val_frames: how many there are.
        train_hash, val_hash: of their labels and structures.
        val_sets: frames of each validation set, where these have names.
        pulay_pressure: GPa, added to all stresses.
        origin: what an imported model that was fine-tuned comes from.
        domain: limits of the training frames (`eqcalc.domain`); None: not measured.
        ends: epochs at which the run ended before it was extended, ascending.
    """

    constants: Constants
    force_rms: float
    train_frames: int
    val_frames: int
    train_hash: str
    val_hash: str
    val_sets: dict[str, int] = field(default_factory=dict)
    pulay_pressure: float = 0.0
    origin: dict[str, Any] = field(default_factory=dict)
    domain: dict[str, Any] | None = None
    ends: list[int] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The document; what is empty is left out."""
        constants = self.constants
        parts = {
            "pair_potential": constants.pair_constants,
            "crowding": constants.crowding,
            "outputs": constants.outputs,
        }
        optional = {
            "val_sets": self.val_sets,
            **{name: asdict(part) for name, part in parts.items() if part},
            "pulay_pressure": self.pulay_pressure,
            "origin": self.origin,
            "domain": self.domain,
            "ends": self.ends,
        }
        return {
            "version": VERSION,
            "atomic_numbers": constants.atomic_numbers,
            "reference_energies": constants.shift,
            "scale": constants.scale,
            "force_rms": self.force_rms,
            "avg_num_neighbors": constants.avg_num_neighbors,
            "message_scales": constants.message_scales,
            "train_frames": self.train_frames,
            "val_frames": self.val_frames,
            "train_hash": self.train_hash,
            "val_hash": self.val_hash,
            **{name: value for name, value in optional.items() if value},
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> RunSetup:
        """From a document of this version or an earlier one.

        Raises:
            InputError: it is of a later one.
        """
        document = _upgraded(document)
        pairs, crowding, outputs = map(document.get, ("pair_potential", "crowding", "outputs"))
        constants = Constants(
            atomic_numbers=document["atomic_numbers"],
            avg_num_neighbors=document["avg_num_neighbors"],
            scale=document["scale"],
            shift=document["reference_energies"],
            message_scales=document["message_scales"],
            pair_constants=PairConstants(**pairs) if pairs else None,
            crowding=CrowdingConstants.read(crowding) if crowding else None,
            outputs=OutputConstants(**outputs) if outputs else None,
        )
        names = ("force_rms", "train_frames", "val_frames", "train_hash", "val_hash")
        optional = ("val_sets", "pulay_pressure", "origin", "domain", "ends")
        return cls(
            constants,
            **{name: document[name] for name in names},
            **{name: document[name] for name in optional if name in document},
        )

    def agrees_with(self, stored: Mapping[str, Any]) -> bool:
        """Whether a folder's document is of the same data and constants.

        Numbers may differ by what another order of summation changes. What an earlier version did
        not measure, and how often the run was extended, is left out.
        """
        mine, stored = self.to_dict(), _upgraded(stored)
        skipped = {"version", "ends", *({"domain"} - stored.keys())}
        if stored.get("crowding", {}).keys() != mine.get("crowding", {}).keys():
            skipped.add("crowding")
        known, new = ({k: v for k, v in s.items() if k not in skipped} for s in (stored, mine))
        return _alike(known, new)


def _upgraded(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document of any known version as the present one writes it."""
    version = document.get("version", 1)
    if version > VERSION:
        raise InputError(
            f"The run folder was written by a later eqcalc (its setup.json has version {version}, "
            f"this one reads up to {VERSION}): update eqcalc, or train into another folder."
        )
    usual = {"scale": [document["force_rms"]] * len(document["atomic_numbers"])}
    return usual | dict(document)


def _alike(a: Any, b: Any) -> bool:
    """Equal, numbers up to what another way of summing them changes."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[name], b[name]) for name in a)
    return bool(a == b)
