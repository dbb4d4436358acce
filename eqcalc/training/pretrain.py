"""What a network learns before it sees the training frames: a teacher's energies and forces.

A section [pretrain] makes a run of two runs. RUN/pretrain holds the first one, see
`eqcalc.training.folder`, and beside it

RUN/pretrain/frames_000.xyz ...   what it learns, `CHUNK` frames each, every file with its own seed
RUN/pretrain/sampling.json        how they were made

Files appear whole, so that a run that was killed goes on with the first one that is missing.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ase import Atoms
from ase.calculators.calculator import CalculatorError
from ase.data import chemical_symbols
from ase.io import write

from eqcalc.data.store import is_store
from eqcalc.errors import InputError, Interrupted
from eqcalc.files import replacing, write_json
from eqcalc.progress import Progress
from eqcalc.sampling.dynamics import Sampling, Tally, sample
from eqcalc.sampling.teachers import Teacher, open_teacher
from eqcalc.training.distributed import World
from eqcalc.training.folder import read_json
from eqcalc.training.options import (
    Config,
    DataConfig,
    FineTuneConfig,
    PretrainConfig,
    SecondStageConfig,
)
from eqcalc.training.prepare import Prepared

#: folder in that of the run
PRETRAINING = "pretrain"

#: frames of a file: what a kill can cost
CHUNK = 1000

#: share of the teacher's frames that is held out
HELD_OUT = 0.02


def check_pretraining(config: Config) -> None:
    """InputError where trajectories could not start, before any work is done."""
    stores = [path for path in config.data.train if is_store(path)]
    if stores:
        raise InputError(
            f"pretrain.teacher = {config.pretrain.teacher!r} needs structures to start from, and "
            f"the store '{stores[0]}' holds no positions: name the files that it was packed from "
            "in data.train."
        )
    chunks(config)


def chunks(config: Config) -> list[Sampling]:
    """What each file holds.

    Raises:
        InputError: options that are not positive.
    """
    options = config.pretrain
    whole = Sampling(
        frames=options.frames,
        temperatures=options.temperatures,
        length=options.length,
        interval=options.interval,
        strain=options.strain,
    )
    number = -(-options.frames // CHUNK)
    return [
        dataclasses.replace(
            whole,
            frames=min(CHUNK, options.frames - k * CHUNK),
            seed=1000 * config.training.seed + k,
        )
        for k in range(number)
    ]


def _write_whole(frames: Iterable[Atoms], path: Path, progress: Callable[[], object]) -> None:
    """All frames or, whatever happens, none; `progress` is called after each."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        for frame in frames:
            write(file, frame, format="extxyz")
            progress()


def _teacher(config: Config) -> Teacher:
    options = config.pretrain
    return open_teacher([options.teacher], options.teacher_options, config.model.outputs)


def check_labels(config: Config, teacher: Teacher, start: Atoms) -> None:
    """InputError where the teacher has nothing that the network learns, or labels of another form.

    start: a structure that trajectories start from.
    """
    name = config.pretrain.teacher
    of_energy = config.model.energy and any(config.training.stages[0].weights.values())
    if not (of_energy or any(output.weight for output in teacher.outputs)):
        wanted = ", ".join(output.name for output in config.model.outputs)
        raise InputError(
            f"pretrain.teacher = {name!r} labels nothing that this network learns ({wanted}, in "
            "the units of model.outputs): take another teacher or leave the section [pretrain] out."
        )
    if not teacher.outputs:
        return
    atoms = start.copy()
    atoms.calc = teacher.drivers[0]
    try:
        labels = teacher.label(atoms)
        for output in teacher.outputs:
            if output.name in labels:
                output.rows(labels[output.name], len(atoms) if output.per == "atom" else 1)
    except (CalculatorError, NotImplementedError) as error:
        raise InputError(
            f"pretrain.teacher = {name!r} cannot label the first training frame: {error}."
        ) from None
    except ValueError as error:
        raise InputError(
            f"pretrain.teacher = {name!r} has another form of the output {output.name}: {error}."
        ) from None


def start_structures(prepared: Prepared) -> list[Atoms]:
    """Where trajectories start: the frames of training, those that are held out excepted."""
    return [frame.atoms for frame in prepared.train.frames if len(frame.atoms) > 1]


def label_frames(prepared: Prepared, folder: Path, world: World, *, quiet: bool) -> list[Path]:
    """The teacher's frames; what is missing of them is made, by all processes together.

    Raises:
        InputError: the teacher is not there or cannot do it; the folder holds other frames.
        Interrupted: ctrl-c.
    """
    config = prepared.config
    options = config.pretrain
    plan = chunks(config)
    paths = [folder / f"frames_{k:03d}.xyz" for k in range(len(plan))]
    _claim(prepared, folder, world)
    folder.mkdir(parents=True, exist_ok=True)  # the first process may be behind
    mine = [k for k in range(len(plan)) if k % world.size == world.rank]
    missing = [k for k in mine if not paths[k].is_file()]
    starts = start_structures(prepared)
    if missing and starts:
        check_labels(config, _teacher(config), starts[0])
    total = sum(plan[k].frames for k in mine)
    done = total - sum(plan[k].frames for k in missing)
    try:
        with Progress(total, f"frames of {options.teacher}", done=done, quiet=quiet) as bar:
            for k in missing:
                # anew, as teachers begin from what they found last: files depend on nothing else
                frames = sample(_teacher(config), starts, plan[k], Tally())
                _write_whole(frames, paths[k], bar.update)
    except KeyboardInterrupt:
        raise Interrupted(
            f"Interrupted after {sum(p.is_file() for p in paths)} of {len(paths)} files of frames: "
            "run the same command again to go on."
        ) from None
    # there is no process group yet to wait with; torchrun ends all processes when one fails
    while not all(path.is_file() for path in paths):
        time.sleep(0.2)
    return paths


def _claim(prepared: Prepared, folder: Path, world: World) -> None:
    """Says whose frames the folder holds; InputError if they are others."""
    record = {
        **dataclasses.asdict(prepared.config.pretrain),
        "seed": prepared.config.training.seed,
        "starts": prepared.setup.train_hash,
    }
    for name in ("epochs", "learning_rate"):  # of the run
        del record[name]
    if outputs := prepared.config.model.outputs:
        record["outputs"] = [dataclasses.asdict(output) for output in outputs]
    path = folder / "sampling.json"
    if path.is_file() and any(folder.glob("frames_*.xyz")):  # else nothing could be mixed up
        old = read_json(path)
        usual = dataclasses.asdict(PretrainConfig())  # where it was written before there was one
        changed = [n for n, value in record.items() if old.get(n, usual.get(n)) != value]
        if changed:
            named = {"seed": "training.seed", "starts": "the data", "outputs": "model.outputs"}
            changes = ", ".join(named.get(name, f"pretrain.{name}") for name in changed)
            raise InputError(
                f"{folder} holds frames of another setting of {changes}: choose another folder "
                "with --out, or restore the setting to resume."
            )
    elif world.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, record)


def isolated_energies(teacher: Teacher, numbers: Sequence[int]) -> dict[str, float]:
    """Energies [eV] of atoms alone, by symbol."""
    energies = {}
    for z in numbers:
        atom = Atoms(numbers=[z], positions=[[0.0, 0.0, 0.0]])
        atom.calc = teacher.drivers[0]
        energies[chemical_symbols[z]] = float(teacher.label(atom)["energy"])
    return energies


def first_run(prepared: Prepared, frames: Sequence[Path], batch_size: int = 0) -> Config:
    """The config of the run that learns the teacher's frames; `batch_size` 0: as suits so many."""
    config = prepared.config
    given = {}
    if config.model.energy and config.model.exact_isolated_atoms:
        teacher = _teacher(config)
        given = isolated_energies(teacher, prepared.setup.constants.atomic_numbers)
    usual = World.from_environment().usual_batch(config.pretrain.frames)
    return dataclasses.replace(
        config,
        data=DataConfig(
            train=[str(path.resolve()) for path in frames],
            val_fraction=HELD_OUT,
            reference_energies=given,
        ),
        pretrain=PretrainConfig(),
        training=dataclasses.replace(
            config.training,
            epochs=config.pretrain.epochs,
            batch_size=batch_size or usual,
            learning_rate=config.pretrain.learning_rate,
            second_stage=SecondStageConfig(),
            config_weights={},
            monitor=[],
            patience=0,
        ),
    )


def second_run(config: Config, folder: Path) -> Config:
    """`config`, begun with what has been learned in `folder`."""
    return dataclasses.replace(
        config,
        pretrain=PretrainConfig(),
        fine_tune=FineTuneConfig(str(folder), refit_energies=True),
    )


def estimate(prepared: Prepared, step: float) -> dict[str, float]:
    """Seconds that "frames" and "epochs" will take, from those of a training step.

    Raises:
        InputError: as in `label_frames`.
    """
    options, batch = prepared.config.pretrain, prepared.config.training.batch_size
    teacher = _teacher(prepared.config)
    few = dataclasses.replace(chunks(prepared.config)[0], frames=4, length=4)
    frames = sample(teacher, start_structures(prepared), few, Tally())
    next(frames)  # the first one includes what is done once
    start = time.perf_counter()
    labelled = sum(1 for _ in frames)
    each = (time.perf_counter() - start) / labelled
    steps = -(-options.frames // batch)
    return {"frames": each * options.frames, "epochs": steps * step * options.epochs}
