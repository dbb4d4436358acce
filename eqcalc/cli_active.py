"""`eqcalc label`: thin layers over eqcalc.active."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from eqcalc.cli_shared import will_write
from eqcalc.errors import InputError

XYZ = (".xyz", ".extxyz")


def keyword_arguments(text: str) -> dict[str, Any]:
    """Of a calculator, as JSON.

    Raises:
        InputError: it is none, or no table.
    """
    try:
        options = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"--kwargs {text}: this is no JSON ({error}); write '{{\"name\": value}}'."
        ) from None
    if not isinstance(options, dict):
        raise InputError(f"--kwargs {text}: write '{{\"name\": value}}'.")
    return options


def label_command(
    frames: Annotated[list[Path], typer.Argument(help="Structures in any format that ASE reads.")],
    *,
    calculator: Annotated[
        str,
        typer.Option(
            help="MODULE:CLASS of a calculator of ASE (ase.calculators.vasp:Vasp), gfn2 or gfn1, a "
            "model's name, a potential file, or the folder of a committee."
        ),
    ],
    kwargs: Annotated[
        str, typer.Option(help="Keyword arguments of the calculator, as JSON.")
    ] = "{}",
    output: Annotated[Path, typer.Option("-o", "--output", help="Extended XYZ to write.")],
) -> None:
    """Energies, forces and stresses of structures by any calculator of ASE.

    Run the same command again to go on after an interruption. Frames that the calculator fails for
    are named at the end and kept in OUTPUT_failed.xyz; the same command tries them again.
    """
    from eqcalc.active.label import identity, label_frames
    from eqcalc.data.frames import iter_images
    from eqcalc.progress import Progress
    from eqcalc.sampling.teachers import open_teacher

    options = keyword_arguments(kwargs)
    will_write(output, endings=XYZ)
    images = list(iter_images(frames))
    teacher = open_teacher([calculator], options)
    with Progress(len(images), "frames") as bar:
        outcome = label_frames(teacher, identity(calculator, options), images, output, bar.update)
    typer.echo(f"{output}: {outcome}")
