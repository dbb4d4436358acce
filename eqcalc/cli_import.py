"""`eqcalc import`: potentials of other packages become exports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eqcalc import precisions
from eqcalc.cli_shared import OldDtype, will_write


def import_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A SevenNet checkpoint, or the name of one that an installed sevenn package "
            "holds: 7net-0, 7net-l3i5, 7net-mf-0:PBE. Of NequIP: a package (.nequip.zip), a "
            "checkpoint, what nequip-deploy made, or the folder of a training with 0.5 or 0.6. Of "
            "MACE: a .model file. Of fairchem-core: a checkpoint of a conservative eSEN.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The potential file to write.")],
    *,
    elements: Annotated[
        str | None,
        typer.Option(help='Those to keep, as in "Li Fe P O": a smaller file. Default: all.'),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Of a multi-task model, or a head of MACE.")
    ] = None,
    asked: Annotated[
        str | None,
        typer.Option("--precision", help="Of the weights: float32 or float64. [default: float32]"),
    ] = None,
    old_dtype: OldDtype = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Compare with the original package, installed here."),
    ] = False,
) -> None:
    """Turn a model of another package into a potential file."""
    from eqcalc.importers import import_model

    will_write(output)
    dtype = precisions.named(asked or old_dtype or "float32", "--precision")
    kept = elements.replace(",", " ").split() if elements else None
    made = import_model(source, output, elements=kept, task=task, dtype=dtype)
    typer.echo(f"{output}: {made.line()}")
    if verify:
        from eqcalc.calculator import EquivariantCalculator
        from eqcalc.importers.verify import verify as compare

        calculator = EquivariantCalculator(made.path, engine="torch", dtype="float64")
        typer.echo(compare(made, calculator))
