"""Every option of training, with its default, in one place.

Sections of the file are the dataclasses below: [data], [model], [fine_tune], [pretrain], [training]
and [training.second_stage].
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from eqcalc import precisions
from eqcalc.errors import InputError
from eqcalc.models.config import ModelConfig
from eqcalc.models.nequip import NequIPConfig


@dataclass(frozen=True)
class DataConfig:
    """Where the frames come from.

    Attributes:
        train: files that ASE reads, or one data store that `eqcalc data pack` made with the cutoff
            of the model, for sets that do not fit into memory; relative paths start at the config
            file. A store's labels are those that it was packed with.
        val: validation files or a store, or a table of them by name ([data.val] with bulk =
            ["a.xyz"], ...), which gives each set its own errors; empty holds out `val_fraction` of
            the training frames.
        val_fraction: share of frames held out, at least one frame.
        split_seed: of the frames held out; unset: training.seed.
        energy_key, forces_key, stress_key: names of the labels in files; "" leaves forces or
            stress out.
        virial_key: name of a virial (eV), read in place of a stress: stress = -virial / volume.
        pulay_pressure: GPa that the stresses in the files lack beside the energies, where the
            plane-wave basis is too small for them; it is added. "measured": what strained copies
            of a structure among the training frames show, as in `eqcalc data check`.
        weight_key: name of a number by which a frame's loss is multiplied; empty for none. A frame
            without it counts once.
        isolated_atoms: a file of one-atom frames whose energies become the reference energies.
        reference_energies: eV of an isolated atom by symbol, e.g. {Si = -0.1}; over the file.
            Elements without either are fitted to the training energies by least squares.
        cohesive_energies: eV per atom by symbol, e.g. {Mo = 6.82}, or "experimental". An isolated
            atom is then that much above the lowest training frame of its element alone; for
            elements whose isolated atoms nobody computed.
    """

    train: list[str] = field(default_factory=list)
    val: list[str] | dict[str, list[str]] = field(default_factory=list)
    val_fraction: float = 0.1
    split_seed: int | None = None
    energy_key: str = "energy"
    forces_key: str = "forces"
    stress_key: str = "stress"
    virial_key: str = ""
    pulay_pressure: float | str = 0.0
    weight_key: str = ""
    isolated_atoms: str = ""
    reference_energies: dict[str, float] = field(default_factory=dict)
    cohesive_energies: dict[str, float] | str = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.cohesive_energies, str) and self.cohesive_energies != "experimental":
            raise InputError(
                f"data.cohesive_energies = {self.cohesive_energies!r}: it must be a table of eV "
                'per atom or "experimental".'
            )
        if isinstance(self.pulay_pressure, str) and self.pulay_pressure != "measured":
            raise InputError(
                f"data.pulay_pressure = {self.pulay_pressure!r}: it must be a number of GPa or "
                '"measured".'
            )


@dataclass(frozen=True)
class FineTuneConfig:
    """A trained model to start from.

    Attributes:
        model: a potential file, a model's name ("si", "7net-0"), a run folder or one of its
            checkpoints; or the folder of a committee, from whose members those of another one
            begin; empty starts from random weights. The [model] section is taken from it.
        freeze: parameters that stay as they are, by name with * and ?, e.g. ["layers.0.*"].
        refit_energies: fit the reference energies of all elements that data.reference_energies and
            data.isolated_atoms do not give, for labels from another electronic structure method;
            otherwise those of the elements that the model knows are kept. The distances below
            which a network with a pair potential sees a constant are then measured anew, too.
        drop_elements: forget elements that the data lack, so that the file is smaller and nobody
            takes it for them; otherwise they are kept as they are.
    """

    model: str = ""
    freeze: list[str] = field(default_factory=list)
    refit_energies: bool = False
    drop_elements: bool = False

    def __post_init__(self) -> None:
        if not self.model and (self.freeze or self.refit_energies or self.drop_elements):
            raise InputError(
                "fine_tune.freeze, refit_energies and drop_elements need a fine_tune.model."
            )


@dataclass(frozen=True)
class PretrainConfig:
    """A teacher to learn from first, in RUN/pretrain, before fine-tuning on the data.

    Its dynamics, begun at the training frames, give frames with its labels, as `eqcalc sample`
    does; a new network learns them, with the options of [model] and, but for those below,
    [training]. It is then fine-tuned on the data, reference energies fitted anew. Outputs beside
    the energy are learned of a teacher that has them in the same unit, the others of the data.

    Attributes:
        teacher: "gfn2" or "gfn1" (GFN2- or GFN1-xTB, by the package tblite), a potential file, a
            model's name ("7net-0"), the folder of a committee, or a calculator of ASE as
            MODULE:CLASS ("ase.calculators.emt:EMT"); empty for none.
        teacher_options: keyword arguments of the teacher's calculator.
        frames: how many.
        temperatures: K, of Langevin dynamics; trajectories take them in turn.
        length: frames of a trajectory.
        interval: fs between them.
        strain: largest component of the strain of a trajectory's cell, drawn anew for each.
        epochs: over these frames.
        learning_rate: of the optimizer, at the start of these epochs.
    """

    teacher: str = ""
    teacher_options: dict[str, Any] = field(default_factory=dict)
    frames: int = 14000
    temperatures: list[float] = field(default_factory=lambda: [300.0, 600.0, 1000.0, 1500.0])
    length: int = 50
    interval: float = 10.0
    strain: float = 0.0
    epochs: int = 9
    learning_rate: float = 2e-2

    def __post_init__(self) -> None:
        for name in ("epochs", "learning_rate"):
            if getattr(self, name) <= 0:
                raise InputError(f"pretrain.{name} must be positive, not {getattr(self, name)}.")


@dataclass(frozen=True)
class SecondStageConfig:
    """Another loss towards the end, as a rule with more weight on energies.

    Losses of the two stages cannot be compared: the best epoch is sought in the second one alone,
    and early stopping counts there.

    Attributes:
        start: epoch, counted from 0, with which it begins; 0 for none.
        energy_weight, force_weight, stress_weight: unset: as in the first stage.
        learning_rate: with it each stage has a schedule of its own; unset: one schedule for both.
    """

    start: int = 0
    energy_weight: float | None = None
    force_weight: float | None = None
    stress_weight: float | None = None
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        changes = self.energy_weight, self.force_weight, self.stress_weight, self.learning_rate
        if self.start < 0:
            raise InputError(f"training.second_stage.start must not be negative: {self.start}.")
        if (self.start > 0) != any(c is not None for c in changes):
            raise InputError(
                "training.second_stage needs both its start (an epoch) and what changes then: "
                "energy_weight, force_weight, stress_weight or learning_rate."
            )


@dataclass(frozen=True)
class TrainingStage:
    """Epochs start .. end - 1 and what holds in them."""

    start: int
    end: int
    learning_rate: float
    weights: dict[str, float]


def _wrong_weights(stage: TrainingStage) -> InputError:
    weights = ", ".join(f"{k} {w:g}" for k, w in stage.weights.items())
    return InputError(
        f"The weights in training ({weights}, from epoch {stage.start}) must not be negative, nor "
        "all zero."
    )


def usual_epochs(frames: int) -> int:
    """100 sqrt(500 / frames), from 10 to 300: more frames need fewer epochs, but more steps."""
    return round(min(300.0, max(10.0, 100.0 * math.sqrt(500.0 / frames))))


def usual_batch(frames: int) -> int:
    """sqrt(frames / 100), rounded, from 1 to 4: few frames need noisy steps, and many of them."""
    return round(min(4.0, max(1.0, math.sqrt(frames / 100.0))))


@dataclass(frozen=True)
class TrainingConfig:
    """How the weights are found.

    Attributes:
        epochs: upper limit; 0: 100 sqrt(500 / training frames), from 10 to 300.
        batch_size: structures per step, over all processes; 0: sqrt(training frames / 100), from 1
            to 4, and a multiple of the number of processes. Small batches make more steps, and
            noisier ones: of few frames, unseen ones are then better.
        balance: put frames of all sizes into each batch, so that no batch has all the large ones;
            for data of very different sizes, where the largest batch determines the memory.
        optimizer: "muon" for matrices and AdamW for the rest; "adamw", which needs several times
            as many epochs, at a fifth of the learning rate; or "schedule_free" AdamW, which needs
            neither a schedule nor averaged weights.
        learning_rate: of the optimizer, at the start.
        schedule: "cosine" to zero over the stage, "plateau" (reduced when validation stalls) or
            "constant"; none of them is used by "schedule_free".
        plateau_factor: by which "plateau" multiplies the learning rate.
        plateau_patience: epochs without improvement that "plateau" waits.
        warmup_steps: linear warm-up of the learning rate; at most a tenth of all steps.
        weight_decay: of the optimizer.
        gradient_clip: largest norm of the gradient; 0 for none.
        loss: "huber", "mae" or "mse", of energy per atom, force and stress components.
        energy_weight, force_weight, stress_weight: per eV/atom, eV/Å and eV/Å^3 of "huber" and
            "mae"; per square of these for "mse".
        config_weights: factors on the loss of all frames of a config_type, e.g. {surface = 2.0}.
        huber_delta: where "huber" turns from quadratic to linear, for the energy per atom in
            eV; ten times that for forces in eV/Å; as it is for stress in eV/Å^3.
        ema_decay: of the averaged weights that are validated and exported; 0 for none. The average
            reaches back a tenth of the steps so far at most, so that a short run's is not of its
            beginning.
        monitor: names of the validation sets whose frames make val_loss, which chooses the best
            epoch; empty for all.
        patience: epochs without improvement, in the last stage, before the learning rate falls to
            zero, over a tenth of the epochs so far, and training stops; 0 for never.
        seed: of weights, split and shuffling.
        precision: "float32" or "float64" of the network; sums of energies, reference energies and
            the loss are float64 in both.
        device: "cpu", "cuda" or "auto".
        threads: torch threads on CPU; 0 leaves torch's own choice.
        fused: compile the network's kernels for this machine (CPU only; several times faster, the
            same numbers to rounding); without a C++ compiler training says so and goes on without.
        tensorboard: write the columns of history.csv to RUN/tensorboard, too.
        second_stage: see there.
    """

    epochs: int = 0
    batch_size: int = 0
    balance: bool = False
    optimizer: Literal["muon", "adamw", "schedule_free"] = "muon"
    learning_rate: float = 2e-2
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    plateau_factor: float = 0.5
    plateau_patience: int = 10
    warmup_steps: int = 100
    weight_decay: float = 0.01
    gradient_clip: float = 10.0
    loss: Literal["huber", "mae", "mse"] = "huber"
    energy_weight: float = 1.0
    force_weight: float = 1.0
    stress_weight: float = 10.0
    config_weights: dict[str, float] = field(default_factory=dict)
    huber_delta: float = 0.002
    ema_decay: float = 0.99
    monitor: list[str] = field(default_factory=list)
    patience: int = 0
    seed: int = 1
    precision: str = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    fused: bool = True
    tensorboard: bool = False
    second_stage: SecondStageConfig = field(default_factory=SecondStageConfig)

    def __post_init__(self) -> None:
        for name in ("learning_rate", "huber_delta"):
            if getattr(self, name) <= 0:
                raise InputError(f"training.{name} must be positive, not {getattr(self, name)}.")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 0:
                raise InputError(
                    f"training.{name} must not be negative, not {getattr(self, name)}."
                )
        precision = precisions.named(self.precision, "training.precision")
        object.__setattr__(self, "precision", precision)
        if not 0.0 <= self.ema_decay < 1.0:
            raise InputError(f"training.ema_decay must be in [0, 1), not {self.ema_decay}.")
        if not 0.0 < self.plateau_factor < 1.0:
            raise InputError(
                f"training.plateau_factor must lie between 0 and 1, not {self.plateau_factor}."
            )
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.optimizer == "schedule_free" and self.schedule == "plateau":
            raise InputError(
                'training.optimizer = "schedule_free" takes no schedule: remove schedule = '
                '"plateau" or choose another optimizer.'
            )
        if self.second_stage.start >= self.epochs > 0:
            raise InputError(
                f"training.second_stage.start = {self.second_stage.start}, but the last epoch is "
                f"{self.epochs - 1}: start earlier or raise training.epochs."
            )
        self._check_weights()

    def _check_weights(self) -> None:
        for stage in self.stages:
            if min(stage.weights.values()) < 0.0:
                raise _wrong_weights(stage)
        for name, weight in self.config_weights.items():
            if weight < 0.0:
                raise InputError(
                    f"training.config_weights.{name} must not be negative, not {weight}."
                )

    @property
    def averaged(self) -> bool:
        """Whether averaged weights are kept beside those that are trained."""
        return self.ema_decay > 0.0 and self.optimizer != "schedule_free"

    @property
    def stages(self) -> list[TrainingStage]:
        """One or two."""
        second = self.second_stage
        weights = {
            "energy": self.energy_weight,
            "forces": self.force_weight,
            "stress": self.stress_weight,
        }
        if not second.start:
            return [TrainingStage(0, self.epochs, self.learning_rate, weights)]
        given = (second.energy_weight, second.force_weight, second.stress_weight)
        new = {k: w if g is None else g for (k, w), g in zip(weights.items(), given, strict=True)}
        rate = self.learning_rate if second.learning_rate is None else second.learning_rate
        return [
            TrainingStage(0, second.start, self.learning_rate, weights),
            TrainingStage(second.start, self.epochs, rate, new),
        ]

    def stage(self, epoch: int) -> TrainingStage:
        """The one that an epoch belongs to."""
        return [s for s in self.stages if s.start <= epoch][-1]


@dataclass(frozen=True)
class Config:
    """A training run.

    `given` names the options that were written down, as "section.option", in contrast to those that
    have their default.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=NequIPConfig)
    fine_tune: FineTuneConfig = field(default_factory=FineTuneConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    given: frozenset[str] = field(default=frozenset(), compare=False)

    def __post_init__(self) -> None:
        if self.pretrain.teacher and self.fine_tune.model:
            raise InputError(
                "pretrain.teacher and fine_tune.model both say where training begins: name one."
            )
        of_outputs = any(output.weight for output in self.model.outputs)
        for stage in self.training.stages:
            of_energy = self.model.energy and any(stage.weights.values())
            # the outputs of a network to fine-tune are not known yet
            if not (of_energy or of_outputs or self.fine_tune.model):
                raise _wrong_weights(stage)

    def to_dict(self) -> dict[str, Any]:
        document = dataclasses.asdict(self)
        del document["given"]
        return document
