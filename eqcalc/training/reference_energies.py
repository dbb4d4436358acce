"""Which reference energies are given (by options, isolated atoms or cohesive energies) and which
are to be fitted.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ase.data import atomic_numbers as number_of
from ase.data import chemical_symbols

from eqcalc.data.cohesive import isolated_energies
from eqcalc.data.frames import Frame, read_frames
from eqcalc.data.isolated import chosen_atoms
from eqcalc.data.labels import LabelKeys
from eqcalc.data.tables import FrameTable
from eqcalc.errors import InputError
from eqcalc.training.finetune import Source
from eqcalc.training.options import Config


@dataclass(frozen=True)
class GivenEnergies:
    """Reference energies that the statistics of the training frames do not fit.

    Attributes:
        energies: eV by symbol, but for those of `isolated`.
        isolated: frames of one atom each, whose energies count as well.
        free: Z of the elements of a network to fine-tune that are to be fitted to what it leaves.
    """

    energies: dict[str, float]
    isolated: list[Frame]
    free: list[int]


def given_energies(
    config: Config, source: Source | None, train: FrameTable, named: Sequence[Frame]
) -> GivenEnergies:
    """As the options say; with a network to fine-tune, its own are given too.

    Args:
        config: of training.
        source: the network to fine-tune.
        train: the training frames.
        named: frames called isolated atoms.

    Raises:
        InputError: exact isolated atoms would have energies from a fit to something else.
    """
    isolated = _isolated_atoms(config, named)
    if not config.model.energy:
        return GivenEnergies({chemical_symbols[z]: 0.0 for z in train.elements()}, isolated, [])
    given = config.data.reference_energies
    if source:
        given = _known_energies(source, isolated) | given
    measured = {int(frame.atoms.numbers[0]) for frame in isolated}
    unknown = sorted(set(train.elements()) - measured - {number_of.get(s) for s in given})
    cohesive: dict[str, float] = {}
    if config.data.cohesive_energies:
        cohesive = isolated_energies(train, unknown, config.data.cohesive_energies)
    unknown = [z for z in unknown if chemical_symbols[z] not in cohesive]
    if config.model.exact_isolated_atoms and unknown:
        symbols = ", ".join(chemical_symbols[z] for z in unknown)
        raise InputError(
            f"model.exact_isolated_atoms needs the energy of an isolated atom of {symbols}: give "
            "data.isolated_atoms, data.reference_energies or data.cohesive_energies."
        )
    free = _unfixed_elements(config, source, train, isolated) if source else []
    free = [z for z in free if chemical_symbols[z] not in cohesive]
    return GivenEnergies(cohesive | given, isolated, free)


def _isolated_atoms(config: Config, named: Sequence[Frame]) -> list[Frame]:
    """One of each element that data.isolated_atoms or frames called so have; says which."""
    data = config.data
    keys: LabelKeys = {"energy_key": data.energy_key, "forces_key": "", "stress_key": ""}
    file = read_frames(data.isolated_atoms, **keys) if data.isolated_atoms else []
    isolated, sentence = chosen_atoms(named, file, data.reference_energies)
    if sentence:
        warnings.warn(sentence, stacklevel=4)
    return isolated


def _known_energies(source: Source, isolated: Iterable[Frame]) -> dict[str, float]:
    """Reference energies [eV] of the source by symbol, but for elements of `isolated` frames."""
    measured = {int(frame.atoms.numbers[0]) for frame in isolated}
    pairs = zip(source.constants.atomic_numbers, source.constants.shift, strict=True)
    return {chemical_symbols[z]: energy for z, energy in pairs if z not in measured}


def _unfixed_elements(
    config: Config, source: Source, train: FrameTable, isolated: Sequence[Frame]
) -> list[int]:
    """Z of the elements of the training data whose reference energy is nowhere given."""
    fixed = {number_of[symbol] for symbol in config.data.reference_energies}
    fixed |= {int(frame.atoms.numbers[0]) for frame in isolated}
    if not config.fine_tune.refit_energies:
        fixed |= set(source.constants.atomic_numbers)
    return sorted(set(train.elements()) - fixed)
