"""Training from Python: `eqcalc.train`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms

from eqcalc.data.frames import GIVEN_AS
from eqcalc.errors import InputError, did_you_mean
from eqcalc.files import replacing, user_path
from eqcalc.training.config import from_dict
from eqcalc.training.options import Config, DataConfig, TrainingConfig

if TYPE_CHECKING:
    from ase.db.core import Database

#: one file or several, or structures with their labels
Frames = str | os.PathLike | Atoms | Sequence[str | os.PathLike | Atoms]

#: what may be given for frames
GIVE = "give files that ASE reads, or structures with their labels"

#: what structures are called in messages
GIVEN = {"frames": "the frames given", "val": "the validation frames given"}

#: sections that are given whole, as their options share names with others
SECTIONS = ("data", "model", "training", "fine_tune", "pretrain")


@dataclass(frozen=True)
class TrainedRun:
    """A finished training run.

    Attributes:
        folder: where its files are (`eqcalc.training.folder`).
        summary: best_epoch, data and errors; errors[part][config_type][quantity] has mae, rmse and
            count, in meV/atom, meV/Å and GPa. Empty on processes other than the first.
    """

    folder: Path
    summary: dict[str, Any]

    @property
    def model(self) -> Path:
        """The potential file, for `EquivariantCalculator` and LAMMPS."""
        return self.folder / "model.pth"


def train(
    frames: Frames,
    out: str | os.PathLike,
    *,
    val: Frames | None = None,
    quiet: bool = False,
    **options: Any,
) -> TrainedRun:
    """Trains a potential; the same call goes on with a run that was broken off, or returns it.

        run = eqcalc.train("frames.xyz", "runs/mine", epochs=50, cutoff=5.0)
        atoms.calc = eqcalc.EquivariantCalculator(run.model)

    Args:
        frames: files that ASE reads or a data store; or structures with their labels (eV, eV/Å,
            eV/Å^3) as results of a calculator or under names of their own in `info` and `arrays`,
            which are kept in the run folder.
        out: the run folder.
        val: the same for validation; None holds out a share of the frames.
        quiet: print nothing.
        options: of [data], [model] and [training] by their names, as `eqcalc config` prints them
            (`epochs`, `cutoff`, `energy_key`, ...); whole sections as dictionaries:
            `fine_tune={"model": "si"}`, `pretrain={"teacher": "gfn2"}`.

    Raises:
        InputError: an unknown option, bad data, or a folder that holds another run.
        Interrupted: ctrl-c.
    """
    from eqcalc.training.run import train as run_training

    config = config_of(**options)  # before anything is written
    if not isinstance(out, str | os.PathLike):
        raise InputError(f"out is {type(out).__name__}: give the name of the run folder.")
    folder = user_path(out)
    files: dict[str, Any] = {
        option: _files(given, folder / f"{option}.db", name)
        for option, name, given in (("train", "frames", frames), ("val", "val", val))
        if option == "train" or given is not None
    }
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, **files))
    return TrainedRun(folder, run_training(config, folder, quiet=quiet))


def config_of(**options: Any) -> Config:
    """The config of the options that `train` takes."""
    return from_dict(_document(options))


def _document(options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Nested as in a config file."""
    document: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    places = {f.name: "data" for f in dataclasses.fields(DataConfig)}
    places |= {f.name: "training" for f in dataclasses.fields(TrainingConfig)}
    for reserved in ("train", "val"):
        places.pop(reserved)
    model = _model_options(options)
    places |= dict.fromkeys(model, "model")
    for name, value in options.items():
        if name in SECTIONS:
            if not isinstance(value, dict):
                raise InputError(f"{name} is a section: give a dictionary of its options.")
            document[name] |= value
        elif name in places:
            document[places[name]][name] = value
        else:
            raise InputError(f"Unknown option '{name}'{did_you_mean(name, [*places, *SECTIONS])}.")
    return document


def _model_options(options: dict[str, Any]) -> list[str]:
    """Names of the options of the architecture that is asked for."""
    from eqcalc.models.registry import DEFAULT, config_type

    section = options.get("model", {})
    named = section.get("architecture", DEFAULT) if isinstance(section, dict) else DEFAULT
    name = str(options.get("architecture", named))
    return [f.name for f in dataclasses.fields(config_type(name))]


def _files(frames: Frames | None, database: Path, name: str) -> list[str]:
    """Names of files; structures are written to one of their own.

    Raises:
        InputError: neither files nor structures, or both.
    """
    kinds = (str, os.PathLike, Atoms)
    given = [frames] if isinstance(frames, kinds) else frames
    if not isinstance(given, Iterable) or isinstance(given, bytes):
        raise InputError(f"{name} is {type(given).__name__}: {GIVE}.")
    given = list(given)
    for one in given:
        if not isinstance(one, kinds):
            raise InputError(f"{name} contains {type(one).__name__}: {GIVE}.")
    structures = [one for one in given if isinstance(one, Atoms)]
    paths = [str(user_path(one).resolve()) for one in given if not isinstance(one, Atoms)]
    if not structures:
        return paths
    if paths:
        raise InputError(f"{name}: give files or structures, not both.")
    database.parent.mkdir(parents=True, exist_ok=True)
    write_structures(structures, database, GIVEN[name])
    return [str(database.resolve())]


def write_structures(structures: Iterable[Atoms], path: Path, given_as: str = "") -> None:
    """A database of ASE with structures and all their labels, to the last digit.

    Args:
        structures: with labels.
        path: of the database.
        given_as: what to call them in messages, in place of the file's name.
    """
    from ase.db import connect

    with replacing(path) as partial, connect(partial, type="db", serial=True) as database:
        database.metadata = {GIVEN_AS: given_as}
        for atoms in structures:
            _write(database, atoms)


def _write(database: Database, atoms: Atoms) -> None:
    standard = Atoms().arrays.keys() | {"momenta", "tags", "masses", "initial_magmoms"}
    extra = {k: v for k, v in atoms.arrays.items() if k not in standard}
    results = atoms.calc.results if atoms.calc is not None else {}
    kinds = (str, bool, int, float, np.number, np.ndarray, list, tuple)
    data = {k: v for k, v in {**atoms.info, **extra, **results}.items() if isinstance(v, kinds)}
    bare = atoms.copy()
    bare.info = {}
    database.write(bare, data=data)
