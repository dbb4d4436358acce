"""`eqcalc select` and `eqcalc label`: thin layers over eqcalc.active."""

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
    frames: Annotated[
        list[Path],
        typer.Argument(metavar="FRAMES", help="Structures in any format that ASE reads."),
    ],
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
    """Label structures with any calculator of ASE.

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


def select_command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A potential file, a model's name, or the folder of a committee."
        ),
    ],
    pool: Annotated[
        list[Path], typer.Argument(metavar="POOL", help="Structures in any format that ASE reads.")
    ],
    *,
    number: Annotated[
        int, typer.Option("-n", "--number", help="Largest number of frames to choose.")
    ] = 50,
    output: Annotated[Path, typer.Option("-o", "--output", help="Extended XYZ to write.")],
    train: Annotated[
        list[Path] | None,
        typer.Option(help="Training frames that the model has; copies of them are not chosen."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="d-optimal (most information), farthest (from training and chosen frames) or "
            "random."
        ),
    ] = "d-optimal",
    low: Annotated[
        float | None,
        typer.Option(
            help="Lowest uncertainty of a frame to choose: a grade (usually 1), or a committee's "
            "deviation in eV/Å."
        ),
    ] = None,
    high: Annotated[
        float | None, typer.Option(help="Highest uncertainty of a frame to choose.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Picture of pool, training and chosen frames (PNG). [default: OUTPUT.png]"
        ),
    ] = None,
    keep_labels: Annotated[
        bool,
        typer.Option("--keep-labels", help="Keep the labels that chosen frames have in the pool."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Random seed of the method random.")] = 1,
) -> None:
    """Choose frames to label: uncertain, new, unlike each other.

    The uncertainty of a frame is that of its most uncertain atom: by how much the forces of a
    committee's members deviate, or the extrapolation grade of one model. Without either, frames are
    chosen by their features alone.
    """
    from eqcalc.active.picture import draw
    from eqcalc.active.select import select, written
    from eqcalc.calculator import EquivariantCalculator
    from eqcalc.checks.report import png
    from eqcalc.data.frames import iter_images
    from eqcalc.files import write_bytes
    from eqcalc.sampling.dynamics import write_frames

    plot = plot or output.with_suffix(".png")
    will_write(output, endings=XYZ)
    will_write(plot, endings=(".png",))
    calculator = EquivariantCalculator(model, on_domain_exit="ignore")
    images, known = list(iter_images(pool)), list(iter_images(train or []))
    selection = select(
        calculator,
        images,
        known,
        number=number,
        method=method,
        window=(low, high),
        seed=seed,
    )
    write_frames(output, written(selection, images, keep_labels=keep_labels))
    write_bytes(plot, png(draw(selection)))
    typer.echo(f"{output}: {selection}\n{plot}: pool, training and choice.")
