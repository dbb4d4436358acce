"""`eqcalc calibrate`: a thin layer over eqcalc.training.calibration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eqcalc.cli_data import EnergyKey, ForcesKey, StressKey, VirialKey
from eqcalc.cli_shared import Model, will_write
from eqcalc.errors import InputError

if TYPE_CHECKING:
    from eqcalc.calculator import EquivariantCalculator
    from eqcalc.data.frames import Frame
    from eqcalc.uncertainty import Coverage


def rows(document: dict[str, Any]) -> list[tuple[str, str]]:
    """For people: what the metadata say of an uncertainty."""
    of = f"{document['atoms']} atoms in {document['frames']} training frames"
    what = f"{document['features']} features of {of} ({', '.join(document['elements'])})"
    found = [("uncertainty", what)]
    if document["errors"]:
        found.append(("  fitted to", f"{document['errors']} energies"))
        for row in document["coverage"]["rows"]:
            predicted = "infinite" if row["predicted"] is None else f"{row['predicted']:.3g}"
            text = f"error {row['error']:.3g}, predicted {predicted} meV/atom (RMS)"
            found.append((f"  grade {row['grade']}", f"{row['frames']} frames: {text}"))
    else:
        missing = "no energies held out: grades, no deviations (--validation, or 20 frames)"
        found.append(("  fitted to", missing))
    for symbol, (median, largest) in document.get("validation_grade", {}).items():
        found.append((f"  grade of {symbol}", f"{median:.3g} (median), at most {largest:.3g}"))
    return found


def evaluate_frames(
    calculator: EquivariantCalculator,
    paths: list[Path],
    pulay_pressure: float = 0.0,
    **keys: str,
) -> tuple[list[Frame], list[dict[str, Any]]]:
    """Labelled frames of files, and a calculator's results for them, uncertainties among these.

    keys: names of the labels, as in `eqcalc.data.frames.read_frames`.

    Raises:
        InputError: what cannot be read; an element that the model lacks, with the frame's name.
    """
    from eqcalc.data.frames import read_frames

    labelled = read_frames(
        paths,
        **keys,
        pulay_pressure=pulay_pressure,
        outputs=calculator.outputs,
        without_energy="energy" not in calculator.implemented_properties,
    )
    for frame in labelled:
        try:
            for member in calculator.members:
                member.potential.species_of(frame.atoms.numbers)
        except InputError as error:
            raise InputError(f"{frame.source}: {error}") from None
    known = "grade" in calculator.implemented_properties
    images = (frame.atoms for frame in labelled)
    return labelled, list(calculator.evaluate(images, uncertainty=known))


def show_coverage(coverage: Coverage | None, picture: Path | None) -> dict[str, Any]:
    """Prints real errors beside predicted ones and draws them; as data, for JSON.

    Raises:
        InputError: there is nothing to draw.
    """
    if coverage is None:
        if picture:
            raise InputError(
                f"--calibration {picture}: the model knows no uncertainty: run 'eqcalc calibrate "
                "MODEL frames.xyz' with its training frames."
            )
        return {}
    from eqcalc.uncertainty.coverage import draw, text

    document = coverage.document()
    typer.echo(f"\n{text(document)}")
    if picture:
        draw(document).savefig(picture, dpi=120)
    return {"uncertainty": document}


def calibrate_command(
    model: Model,
    frames: Annotated[
        list[Path],
        typer.Argument(
            metavar="FRAMES", help="Labelled frames: those that the model was trained on."
        ),
    ],
    *,
    validation: Annotated[
        list[Path] | None,
        typer.Option(
            help="Unseen labelled frames, to whose energies deviations are fitted; default: every "
            "tenth of FRAMES, whose errors are smaller where the model was trained on them."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The file to write; default: MODEL itself."),
    ] = None,
    refit_energies: Annotated[
        bool,
        typer.Option(
            "--refit-energies",
            help="Labels are of another method: a constant per element is fitted and not counted "
            "as an error.",
        ),
    ] = False,
    engine: Annotated[str, typer.Option(help="auto, fused, exact or torch.")] = "auto",
    energy_key: EnergyKey = "energy",
    forces_key: ForcesKey = "forces",
    stress_key: StressKey = "stress",
    virial_key: VirialKey = "",
) -> None:
    """Add extrapolation grades and deviations to a potential.

    Works for any potential file, imported ones too. Weights and results stay as they are, bit by
    bit. Files of 'eqcalc train' and 'eqcalc export' have been calibrated already.
    """
    from eqcalc import names
    from eqcalc.data.frames import read_frames
    from eqcalc.data.isolated import named_atoms
    from eqcalc.data.tables import FrameList
    from eqcalc.training.calibration import calibrate

    path = names.find(model)
    target = output or path
    will_write(target)
    keys = {
        "energy_key": energy_key,
        "forces_key": forces_key,
        "stress_key": stress_key,
        "virial_key": virial_key,
    }
    sets = []
    for paths in (frames, validation or []):
        found = FrameList(read_frames(paths, **keys) if paths else [])
        sets.append([found.frames[n] for n in named_atoms(found)[1]])
    document = calibrate(path, target, *sets, refit_energies=refit_energies, engine=engine)
    for name, value in rows(document):
        typer.echo(f"{name:<20}{value}")
    typer.echo(f"Written: {target}")
