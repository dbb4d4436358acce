"""Stages, weights, validation sets, schedules, optimisers: each does what its option says."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import read, write
from runs import checkpoint, column, history, tiny, train_in_pieces, weights, write_frames

from eqcalc.data.dataset import Batch, FrameDataset
from eqcalc.data.frames import read_frames
from eqcalc.errors import InputError
from eqcalc.training.callbacks import Checkpoints, History, share_of_newest
from eqcalc.training.distributed import World
from eqcalc.training.folder import load_run
from eqcalc.training.loss import Loss, component_weights, residuals
from eqcalc.training.optimizers import LearningRate, make_optimizer, stalls, stopping
from eqcalc.training.options import SecondStageConfig, TrainingConfig, usual_batch, usual_epochs
from eqcalc.training.prepare import prepare
from eqcalc.training.report import EpochLines
from eqcalc.training.run import train
from eqcalc.training.sampling import BalancedShuffle
from eqcalc.training.task import SetErrors, predict

pytestmark = pytest.mark.usefixtures("no_potential_file")


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> str:
    return write_frames(tmp_path_factory.mktemp("data") / "train.xyz", 12)


ALL_WEIGHTS = ("energy_weight", "force_weight", "stress_weight")
SECOND = {"start": 2, "energy_weight": 50.0, "learning_rate": 1e-3}


@pytest.mark.parametrize(
    "options",
    [
        {"second_stage": SECOND},
        {"second_stage": {"start": 2, "energy_weight": 50.0}, "schedule": "plateau"},
        {
            "optimizer": "adamw",
            "schedule": "plateau",
            "plateau_patience": 0,
            "plateau_factor": 0.3,
            "learning_rate": 0.1,
        },
        {"optimizer": "muon"},
        {"optimizer": "schedule_free"},
        {"patience": 2, "learning_rate": 0.1, "balance": True},
    ],
    ids=["second-stage", "second-stage-plateau", "plateau", "muon", "schedule-free", "patience"],
)
def test_resumed_is_uninterrupted(frames, tmp_path, monkeypatch, options):
    config = tiny(frames, epochs=5, **options)
    train(config, tmp_path / "whole", quiet=True)
    train_in_pieces(config, tmp_path / "pieces", monkeypatch)
    assert history(tmp_path / "whole") == history(tmp_path / "pieces")
    for name in ("last.ckpt", "best.ckpt"):
        whole, pieces = (weights(tmp_path / part, name) for part in ("whole", "pieces"))
        assert all(torch.equal(tensor, pieces[key]) for key, tensor in whole.items())
    if options.get("schedule") == "plateau" and "plateau_factor" in options:
        assert len(set(column(tmp_path / "whole", "learning_rate")[1:])) > 1, "nothing to compare"


def test_second_stage_changes_the_loss_and_seeks_its_own_best(frames, tmp_path):
    train(tiny(frames, second_stage=SECOND), tmp_path / "two", quiet=True)
    train(tiny(frames, schedule="constant"), tmp_path / "one", quiet=True)
    losses = column(tmp_path / "two", "val_loss")
    assert min(losses[2:]) > min(losses[:2])  # fifty times the energy: not comparable
    assert checkpoint(tmp_path / "two", "best.ckpt")["epoch"] == losses.index(min(losses[2:]))
    rates = column(tmp_path / "two", "learning_rate")
    assert rates[1] < 0.3 * 5e-3  # each stage has its own cosine
    assert rates[2] < 1e-3
    energy = column(tmp_path / "two", "val_energy_mae")[-1] * 1e-3
    assert losses[-1] > 40.0 * (energy - 0.002)  # the weight of the second stage
    assert json.loads((tmp_path / "two" / "config.json").read_text())["training"]["second_stage"]


def test_best_is_that_of_the_stage(tmp_path):
    class Trainer:
        is_global_zero = True

        def save_checkpoint(self, path):
            path.write_text(str(self.current_epoch))

    second = SecondStageConfig(start=3, energy_weight=9.0)
    history, trainer = History(tmp_path / "history.csv"), Trainer()
    checkpoints = Checkpoints(tmp_path, TrainingConfig(epochs=8, second_stage=second), history)
    best = []
    for epoch, loss in enumerate([3.0, 1.0, 2.0, 50.0, 40.0, 45.0, 39.0, 39.0]):
        trainer.current_epoch = epoch
        history.rows.append({"epoch": epoch, "val_loss": loss})
        checkpoints.on_train_epoch_end(trainer, None)
        best.append(int((tmp_path / "best.ckpt").read_text()))
        assert int((tmp_path / "last.ckpt").read_text()) == epoch
    assert best == [0, 1, 1, 3, 4, 4, 6, 6]
    assert not list(tmp_path.glob("*.partial"))


def test_schedules():
    steps = 10

    def rates(losses=(), **options):
        rate = LearningRate(TrainingConfig(warmup_steps=4, learning_rate=1.0, **options), steps)
        return [rate(step, dict(enumerate(losses))) for step in range(60)]

    cosine = rates(epochs=6)
    assert cosine[:3] == pytest.approx([0.2, 0.4, 0.6], rel=0.01)
    assert cosine[30] == pytest.approx(0.5)
    assert cosine[59] < 1e-3
    two = rates(epochs=6, second_stage=SecondStageConfig(start=4, learning_rate=0.1))
    assert two[20] == pytest.approx(0.5)
    assert two[39] < 2e-3
    assert two[40] == pytest.approx(0.1)
    assert two[50] == pytest.approx(0.05)
    shared = rates(epochs=6, second_stage=SecondStageConfig(start=4, energy_weight=2.0))
    assert shared == cosine
    stalled = {"schedule": "plateau", "plateau_patience": 1, "epochs": 6}
    plateau = rates([1.0, 0.9, 0.9, 0.9, 0.8, 0.8], **stalled)
    assert plateau[35] == 1.0
    assert plateau[40] == plateau[59] == 0.5
    assert rates(schedule="constant", epochs=6)[59] == 1.0


def test_warm_up_takes_a_tenth_of_a_short_run():
    options = {"schedule": "constant", "learning_rate": 1.0, "warmup_steps": 100}
    short = LearningRate(TrainingConfig(epochs=8, **options), 10)
    assert [short(step, {}) for step in (0, 7, 8)] == pytest.approx([1 / 9, 8 / 9, 1.0])
    assert LearningRate(TrainingConfig(epochs=800, **options), 10)(50, {}) < 0.6
    # extended later, it begins as it did
    extended = LearningRate(TrainingConfig(epochs=800, **options), 10, ends=[8])
    assert [extended(step, {}) for step in range(30)] == [short(step, {}) for step in range(30)]
    network = torch.nn.Linear(2, 2)
    free = TrainingConfig(optimizer="schedule_free", **options)
    assert make_optimizer(network, free, steps=50).param_groups[0]["warmup_steps"] == 5
    assert make_optimizer(network, free, steps=5000).param_groups[0]["warmup_steps"] == 100


def test_epochs_that_are_not_given_follow_from_the_number_of_frames(frames):
    assert [usual_epochs(n) for n in (5, 50, 500, 5000, 10**6)] == [300, 300, 100, 32, 10]
    prepared = prepare(tiny(frames, epochs=0))
    assert prepared.config.training.epochs == usual_epochs(len(prepared.train)) == 300
    assert prepare(tiny(frames, epochs=7)).config.training.epochs == 7
    with pytest.raises(InputError, match=r"second_stage\.start = 400, but the last epoch is 299"):
        prepare(tiny(frames, epochs=0, second_stage={"start": 400, "energy_weight": 9.0}))


def test_frames_per_step_that_are_not_given_follow_from_the_number_of_frames(frames):
    assert [usual_batch(n) for n in (5, 50, 200, 500, 1000, 5000)] == [1, 1, 1, 2, 3, 4]
    assert prepare(tiny(frames, batch_size=0)).config.training.batch_size == 1
    assert prepare(tiny(frames, batch_size=3)).config.training.batch_size == 3
    assert World(size=2).usual_batch(1000) == 4  # shared evenly
    assert World(size=8).usual_batch(5) == 8
    with pytest.raises(InputError, match=r"batch_size must not be negative, not -1"):
        TrainingConfig(batch_size=-1)


def test_averaged_weights_forget_the_beginning_of_a_short_run():
    def reached(decay, steps):
        """The average of a weight that is 0 in the first half of a run and 1 in the second."""
        average = 0.0
        for step in range(1, steps + 1):
            average += share_of_newest(decay, step) * ((2 * step > steps) - average)
        return average

    assert 1.0 - 0.999**40 < 0.05  # the exponential average alone
    assert reached(0.999, 80) > 0.9
    assert share_of_newest(0.9, 1000) == pytest.approx(0.1)  # long runs have that alone
    assert share_of_newest(0.9, 50) > 0.15


def test_bar_shows_errors_of_weights_as_they_are_beside_averaged_ones():
    tally = SetErrors()
    tally.absolute["forces"], tally.count["forces"] = 0.5, 10

    class Task:
        train_tally = tally

    history = History(Path("none.csv"))
    bar = EpochLines(TrainingConfig(), history)
    assert bar.compared(Task()) == "F 50 meV/Å"
    history.rows.append({"epoch": 0, "val_forces_mae": 80.0})
    assert bar.compared(Task()) == "F 50 (averaged 80) meV/Å"


def test_early_stop_is_due_after_epochs_without_a_better_one():
    def due(losses, **options):
        config = TrainingConfig(epochs=100, patience=3, **options)
        return stopping(config, dict(enumerate(losses)))

    falling = [1.0 / (n + 1) for n in range(40)]
    assert due(falling) is None
    assert due([*falling, 1.0, 1.0]) is None
    assert due([*falling, 1.0, 1.0, 1.0]) == (43, 47)
    assert due([*falling, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]) == (43, 47)  # also if it falls again
    assert due([*falling, 1.0, 1.0, 1.0], optimizer="schedule_free") == (43, 43)
    late = SecondStageConfig(start=42, energy_weight=9.0)
    assert due([*falling, 1.0, 1.0, 1.0], second_stage=late) is None
    assert due([1.0] * 98)[1] <= 100
    config = TrainingConfig(epochs=100, patience=3, schedule="constant", warmup_steps=0)
    rate = LearningRate(config, 10)
    losses = dict(enumerate([*falling, 1.0, 1.0, 1.0, 0.9]))
    steps = [rate(step, losses) / config.learning_rate for step in (429, 430, 450, 469)]
    assert steps == pytest.approx([1.0, 1.0, 0.5, 0.0], abs=2e-3)


def test_plateau_agrees_with_torch():
    generator = torch.Generator().manual_seed(0)
    losses = (1.0 + torch.rand(300, generator=generator) - torch.arange(300) / 150).tolist()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.9, patience=5, eps=0.0)
    for n, loss in enumerate(losses):
        theirs.step(loss)
        expected = round(math.log(optimizer.param_groups[0]["lr"], 0.9))
        assert stalls(losses[: n + 1], 5) == expected
    assert expected > 3


def test_weights_of_frames_multiply_their_loss(frames, tmp_path):
    surface = write_frames(tmp_path / "s.xyz", 4, config_type="surface", seed=1, importance=3.0)
    given = read_frames([frames, surface], weight_key="importance")
    assert [f.weight for f in given] == [1.0] * 12 + [3.0] * 4
    config = tiny(frames, data={"train": [frames, surface], "weight_key": "importance"})
    assert prepare(config).train.items[-1].weight == 3.0
    config = tiny(frames, data={"train": [frames, surface]}, config_weights={"surface": 2.0})
    prepared = prepare(config)
    weights = [float(item.weight) for item in prepared.train]
    assert set(zip(prepared.train.config_types(), weights, strict=True)) == {
        ("molecule", 1.0),
        ("surface", 2.0),
    }
    batch = Batch.collate(prepared.train.items)
    loss = Loss(config.training)
    difference = residuals(predict(prepared.model, batch), batch)
    value = loss(difference, component_weights(batch))
    # the same as if surfaces stood twice in the data, but for the number of labels
    twice = [i for i in prepared.train.items for _ in range(int(i.weight))]
    repeated = Batch.collate(twice)
    again = residuals(predict(prepared.model, repeated), repeated)
    sums = loss.sums(again)
    counts = {name: v.numel() for name, v in difference.items()}
    assert float(loss.combine(sums, counts)) == pytest.approx(float(value))
    assert value > 1.01 * loss(difference)


def test_names_that_do_not_exist(frames, tmp_path):
    surface = write_frames(tmp_path / "s.xyz", 4, config_type="surface")
    config = tiny(frames, data={"train": [frames, surface]}, config_weights={"surfaces": 2.0})
    with pytest.raises(InputError, match=r"'surfaces' \(did you mean 'surface'"):
        prepare(config)
    config = tiny(frames, data={"val": {"bulk": [surface]}}, monitor=["bluk"])
    with pytest.raises(InputError, match=r"no validation set 'bluk' \(did you mean 'bulk'"):
        prepare(config)
    broken = read(frames, ":2")
    broken[1].info["w"] = -1.0
    write(tmp_path / "b.xyz", broken)
    with pytest.raises(InputError, match=r"b\.xyz, frame 1: its w is -1"):
        read_frames(tmp_path / "b.xyz", weight_key="w")
    for wrong, sentence in (
        ({"second_stage": {"start": 2}}, "needs both its start"),
        ({"second_stage": {"energy_weight": 2.0}}, "needs both its start"),
        ({"second_stage": {"start": 9, "energy_weight": 2.0}}, "the last epoch is 3"),
        ({"optimizer": "schedule_free", "schedule": "plateau"}, "takes no schedule"),
        ({"plateau_factor": 1.5}, "between 0 and 1"),
        ({"config_weights": {"a": -1.0}}, "must not be negative"),
        ({"force_weight": -1.0}, "must not be negative, nor all zero"),
        (
            {"second_stage": {"start": 2, **dict.fromkeys(ALL_WEIGHTS, 0.0)}},
            r"from epoch 2\) must not be negative, nor all zero",
        ),
    ):
        with pytest.raises(InputError, match=sentence):
            tiny(frames, **wrong)


def test_several_validation_sets(frames, tmp_path):
    near = write_frames(tmp_path / "near.xyz", 3, seed=5)
    far = write_frames(tmp_path / "far.xyz", 5, seed=6)
    val = {"near": [near], "far": [far]}
    summary = train(tiny(frames, data={"val": val}), tmp_path / "all", quiet=True)
    assert summary["errors"]["validation near"]["all"]["energy"]["count"] == 3
    assert summary["errors"]["validation far"]["all"]["energy"]["count"] == 5
    parts = [column(tmp_path / "all", f"val_{name}_loss")[-1] for name in ("near", "far")]
    total = column(tmp_path / "all", "val_loss")[-1]
    assert total == pytest.approx((3 * parts[0] + 5 * parts[1]) / 8, rel=1e-12)
    errors = [column(tmp_path / "all", f"val_{n}energy_mae")[-1] for n in ("near_", "far_", "")]
    assert errors[2] == pytest.approx((3 * errors[0] + 5 * errors[1]) / 8, rel=1e-12)
    train(tiny(frames, data={"val": val}, monitor=["far"]), tmp_path / "far", quiet=True)
    assert column(tmp_path / "far", "val_loss") == column(tmp_path / "all", "val_far_loss")


@pytest.mark.parametrize("optimizer", ["muon", "schedule_free"])
def test_optimizers_learn(frames, tmp_path, optimizer):
    rate = 0.05 if optimizer == "schedule_free" else 0.02
    train(tiny(frames, epochs=25, optimizer=optimizer, learning_rate=rate), tmp_path, quiet=True)
    losses = column(tmp_path, "train_loss")
    assert losses[-1] < 0.6 * losses[0]
    if optimizer == "schedule_free":  # validated, saved and exported is the average, not y or z
        run = load_run(tmp_path)
        config = tiny(frames)
        batch = Batch.collate(next(iter(prepare(config).val.values())).items)
        loss = Loss(config.training)(residuals(predict(run.model, batch), batch))
        assert float(loss) == pytest.approx(column(tmp_path, "val_loss")[run.epoch], rel=1e-5)
        saved = checkpoint(tmp_path)
        assert saved["optimizer_states"][0]["param_groups"][0]["train_mode"] is False
        assert "current_model_state" not in saved


def test_early_stop_ends_once_and_for_all(frames, tmp_path):
    config = tiny(frames, epochs=60, patience=1, learning_rate=0.3, schedule="constant")
    train(config, tmp_path / "r", quiet=True)
    losses = column(tmp_path / "r", "val_loss")
    first = next(n for n, (a, b) in enumerate(pairwise(losses), 1) if b >= a)
    rates = column(tmp_path / "r", "learning_rate")
    assert rates[: first + 1] == pytest.approx([0.3] * (first + 1), rel=1e-6)
    assert all(b < a for a, b in pairwise(rates[first:]))
    assert rates[-1] < 0.1
    assert len(losses) == first + 1 + max(1, round(0.1 * (first + 1))) < 60
    before = history(tmp_path / "r")
    train(config, tmp_path / "r", quiet=True)
    assert history(tmp_path / "r") == before


def test_early_stop_counts_in_the_last_stage(frames, tmp_path):
    stage = {"start": 4, "energy_weight": 2.0}
    options = {"epochs": 60, "patience": 1, "learning_rate": 1.0, "ema_decay": 0.0}
    config = tiny(frames, schedule="constant", second_stage=stage, **options)
    train(config, tmp_path, quiet=True)
    losses = column(tmp_path, "val_loss")
    assert any(b >= a for a, b in pairwise(losses[:4])), "nothing to ignore"
    assert 5 < len(losses) < 60


def test_runs_from_before_new_options_still_resume(frames, tmp_path):
    config = tiny(frames, epochs=2)
    train(config, tmp_path, quiet=True)
    old = json.loads((tmp_path / "config.json").read_text())
    for key in ("optimizer", "second_stage", "config_weights", "monitor", "tensorboard"):
        del old["training"][key]
    del old["fine_tune"], old["data"]["weight_key"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    load_run(tmp_path)
    train(config, tmp_path, quiet=True)
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(InputError, match=r"another setting of training\.optimizer"):
        train(tiny(frames, epochs=2, optimizer="adamw"), tmp_path, quiet=True)


def test_batch_without_weights_counts_every_frame_once(frames):
    items = FrameDataset(read_frames(frames), [1, 3], 4.0).items
    assert component_weights(Batch.collate(items)) is None


def test_balanced_batches():
    generator = np.random.default_rng(0)
    sizes = np.where(generator.random(103) < 0.1, 1000, 10) + generator.integers(0, 5, 103)
    balanced = BalancedShuffle(sizes, 8, seed=3)
    worst = {"balanced": [], "plain": []}
    orders = []
    for epoch in range(20):
        balanced.set_epoch(epoch)
        orders.append(list(balanced))
        assert sorted(orders[-1]) == list(range(103))
        assert list(balanced) == orders[-1]
        plain = np.random.default_rng(epoch).permutation(103)
        for name, order in (("balanced", orders[-1]), ("plain", plain)):
            batches = np.array_split(sizes[order], range(8, 103, 8))
            worst[name].append(max(b.sum() for b in batches[:-1]))
    assert (sizes > 900).sum() <= 12, "more large frames than batches"
    assert max(worst["balanced"]) < 1200  # one large frame each
    assert np.mean(worst["plain"]) > 2000
    assert len({tuple(order) for order in orders}) == 20
    assert len({frozenset(order[:8]) for order in orders}) == 20  # batches are not fixed
    assert sorted(BalancedShuffle([1, 2, 3], 8, seed=0)) == [0, 1, 2]


def test_divergence_is_said_with_the_frames(frames, tmp_path):
    with pytest.raises(
        InputError, match=r"finite number in epoch \d on train\.xyz, frame \d+; .*lower"
    ):
        train(tiny(frames, learning_rate=1e30, gradient_clip=0.0), tmp_path, quiet=True)
