"""`eqcalc data ...`: thin layers over eqcalc.data."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eqcalc.cli_shared import will_write, will_write_to
from eqcalc.errors import InputError

if TYPE_CHECKING:
    from eqcalc.data.labels import LabelKeys

data_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Check, pack and merge data sets."
)

Frames = Annotated[
    list[Path], typer.Argument(metavar="FRAMES", help="Frames in any format that ASE reads.")
]
EnergyKey = Annotated[str, typer.Option(help="Name of the energy in the files.")]
ForcesKey = Annotated[str, typer.Option(help="Name of the forces in the files.")]
PulayPressure = Annotated[
    float,
    typer.Option(help="Pulay pressure, GPa, that is added to the stresses in the files."),
]
StressKey = Annotated[str, typer.Option(help="Name of the stress in the files.")]
VirialKey = Annotated[
    str, typer.Option(help="Name of a virial (eV) to be read for the stress, -virial / volume.")
]


@data_app.command("check")
def data_check(
    frames: Frames,
    *,
    test: Annotated[
        list[Path] | None,
        typer.Option(help="Test frames; copies of them among FRAMES are errors."),
    ] = None,
    cutoff: Annotated[float, typer.Option(help="Å, of the model to be trained.")] = 5.0,
    plot: Annotated[Path | None, typer.Option(help="Write a picture of the data (PNG).")] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write all findings with their frames as JSON."),
    ] = None,
    json_: Annotated[Path | None, typer.Option("--json", hidden=True)] = None,
    energy_key: EnergyKey = "energy",
    forces_key: ForcesKey = "forces",
    stress_key: StressKey = "stress",
    virial_key: VirialKey = "",
    pulay_pressure: PulayPressure = 0.0,
) -> None:
    """Find wrong units and signs, outliers, copies, overlaps.

    Also copies of test frames. The exit status is 1 on errors.
    """
    from eqcalc.checks.report import write_json
    from eqcalc.data.check import check
    from eqcalc.data.check_plot import draw
    from eqcalc.files import write_bytes

    output = output or json_
    will_write(output)
    will_write(plot, endings=(".png",))
    survey = check(
        frames,
        test or (),
        cutoff=cutoff,
        energy_key=energy_key,
        forces_key=forces_key,
        stress_key=stress_key,
        virial_key=virial_key,
        pulay_pressure=pulay_pressure,
    )
    typer.echo(str(survey))
    written = []
    if output:
        written.append(write_json(output, survey.to_dict()))
    if plot:
        picture = io.BytesIO()
        draw(survey).savefig(picture, format="png", dpi=110)
        written.append(write_bytes(plot, picture.getvalue()))
    if written:
        typer.echo(f"Written: {', '.join(map(str, written))}")
    if not survey.passed:
        raise typer.Exit(1)


@data_app.command("pack")
def data_pack(
    frames: Frames,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Data store to write: NAME.eqdata.")
    ],
    *,
    cutoff: Annotated[float, typer.Option(help="Å, of the model to be trained.")] = 5.0,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Of the training to come: its cutoff, names of labels, pulay_pressure and "
            "[[model.outputs]] in place of these options."
        ),
    ] = None,
    energy_key: EnergyKey = "energy",
    forces_key: ForcesKey = "forces",
    stress_key: StressKey = "stress",
    virial_key: VirialKey = "",
    pulay_pressure: PulayPressure = 0.0,
    weight_key: Annotated[str, typer.Option(help="Name of the frames' weights, if any.")] = "",
) -> None:
    """Prepare a data set that does not fit into memory.

    Graphs and labels are made once and kept on disk.
    """
    from ase.data import chemical_symbols

    from eqcalc.data.store import pack

    will_write_to(output)
    keys: LabelKeys = {
        "energy_key": energy_key,
        "forces_key": forces_key,
        "stress_key": stress_key,
        "virial_key": virial_key,
        "pulay_pressure": pulay_pressure,
        "weight_key": weight_key,
    }
    if config:
        cutoff, keys = _of_config(config)
    header = pack(frames, output, cutoff, **keys)
    size = sum(path.stat().st_size for path in output.iterdir())
    symbols = ", ".join(chemical_symbols[z] for z in header["elements"])
    typer.echo(
        f"{output}: {header['frames']} frames, {header['atoms']} atoms of {symbols}, "
        f"{header['edges']} edges within {header['cutoff']:g} Å, {size / 1e6:.3g} MB"
    )


def _of_config(path: Path) -> tuple[float, LabelKeys]:
    """Cutoff (Å), and how labels are found."""
    from eqcalc.training.config import read_config
    from eqcalc.training.frames import label_keys

    asked = read_config(path)
    pressure = asked.data.pulay_pressure
    if pressure == "measured":
        raise InputError(
            f'{path}: data.pulay_pressure = "measured" cannot be packed: give the GPa as a number.'
        )
    return asked.model.cutoff, label_keys(asked, float(pressure))


@data_app.command("merge")
def data_merge(
    frames: Frames,
    output: Annotated[Path, typer.Option("-o", "--output", help="Extended XYZ to write.")],
    *,
    keep: Annotated[
        str,
        typer.Option(help="first or last of two copies whose labels differ. [default: refuse]"),
    ] = "",
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Do not check whether units and methods agree.")
    ] = False,
    energy_key: EnergyKey = "energy",
    forces_key: ForcesKey = "forces",
    stress_key: StressKey = "stress",
    virial_key: VirialKey = "",
) -> None:
    """Join files, with each structure once.

    Labels get their usual names. Copies, turned or reordered or not, are left out and counted.
    Files whose units or methods differ are refused, as are copies with different labels unless
    --keep says which one stays.
    """
    from eqcalc.data.merge import merge
    from eqcalc.sampling.dynamics import write_frames

    will_write(output, endings=(".xyz", ".extxyz"))
    merged = merge(
        frames,
        keep=keep,
        check_units=not unchecked,
        energy_key=energy_key,
        forces_key=forces_key,
        stress_key=stress_key,
        virial_key=virial_key,
    )
    write_frames(output, merged.frames)
    typer.echo(f"{output}: {merged}")
