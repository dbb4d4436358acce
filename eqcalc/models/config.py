"""Options that every architecture has, and how a network comes from them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from eqcalc.errors import InputError
from eqcalc.nn.radial import BesselBasis, XplorBesselBasis
from eqcalc.outputs import OutputConfig
from eqcalc.program import Program

Problems = list[tuple[bool, str]]


@dataclass(frozen=True)
class ModelConfig:
    """Hyperparameters of a network. Lengths in Å.

    A subclass adds the options of its architecture and makes the `program` of it.

    Attributes:
        architecture: which network; the other options belong to it.
        cutoff: neighbours farther than this are not seen.
        num_radial: Bessel functions.
        bessel_frequencies: 1/Å, one for each Bessel function, instead of n pi / cutoff: as training
            elsewhere has left them.
        radial_scale: factor on the Bessel functions where they enter the radial network. Below 1,
            less of its nonlinearity is used and messages vary more slowly with distance: at 0.3
            molybdenum was learned sooner, with hardly different errors at the end; acetylacetone
            worse, but for the frames farthest from those of the training.
        radial_mlp: hidden widths of the radial network.
        envelope_power: p of the polynomial envelope; 6 is twice continuously differentiable.
        envelope_onset: Å, where an XPLOR envelope begins to fall, in the place of the polynomial
            one; its curvature jumps there, and so do the second derivatives of the energy. 0: the
            polynomial one.
        species_correlation: 0 to 1, of the initial weights of different species. Near 1, species
            stay alike where the data do not tell them apart: a model of several elements that has
            never seen them side by side is then of use for their mixtures.
        initial_messages: root mean square of the messages of the untrained network; an atom's own
            features have 1. Several layers of 1 make a rough function of the positions
            (with products in five layers, forces of 200 eV/Å on acetylacetone), which training
            must forget; 0.5 makes a smooth one.
        exact_isolated_atoms: the energy of an atom without neighbours is its reference energy, as
            in MACE: the first layer has no self-connection, so that no feature is left where there
            is no message. Atoms of low coordination, at
            surfaces and in clusters, are then between what is known, and bonds cost what they
            should; the reference energies must be those of atoms. Not given, training has it
            where an isolated atom of each element is among the data.
        core_repulsion: add the ZBL repulsion at short distance.
        core_cutoff: Å, where that ends; 0: at the sum of the covalent radii.
        core_envelope_power: p of its polynomial envelope.
        pair_potential: add a repulsion of pairs that is fitted to the labels before training; the
            network learns the rest. It sees no distances much shorter than all of the training
            (`eqcalc.training.pairs`). The core repulsion ends inside of the training's distances,
            and at the sum of the covalent radii at most.
        crowding_limit: messages fade from atoms that have more neighbours than any of the training,
            or nearer ones, and such atoms cost 10 eV: dense structures have no holes
            (`eqcalc.nn.crowding`). No number of the training frames changes by it.
        outputs: properties beside the energy, each a table [[model.outputs]] or a common name, as
            in outputs = ["dipole", "charges"]; see `eqcalc.outputs.OutputConfig`.
        energy: false: the network has these outputs alone, and frames need no energies.
    """

    architecture: str = ""
    cutoff: float = 5.0
    num_radial: int = 8
    bessel_frequencies: list[float] = field(default_factory=list)
    radial_scale: float = 1.0
    radial_mlp: list[int] = field(default_factory=lambda: [64, 64])
    envelope_power: int = 6
    envelope_onset: float = 0.0
    species_correlation: float = 0.0
    initial_messages: float = 1.0
    exact_isolated_atoms: bool = False
    core_repulsion: bool = True
    core_cutoff: float = 0.0
    core_envelope_power: int = 6
    pair_potential: bool = False
    crowding_limit: bool = True
    outputs: list[OutputConfig] = field(default_factory=list)
    energy: bool = True

    def __post_init__(self) -> None:
        for wrong, sentence in self.problems():
            if wrong:
                raise InputError(sentence)

    @property
    def architecture_name(self) -> str:
        """As files call it."""
        return type(self).__name__.removesuffix("Config")

    def program(self) -> Program:
        """The network as data.

        Raises:
            InputError: options that make no network.
        """
        raise NotImplementedError

    def radial_basis(self) -> BesselBasis:
        """What the radial networks see."""
        shape = self.cutoff, self.num_radial
        if self.envelope_onset:
            basis = XplorBesselBasis(*shape, self.envelope_onset, self.radial_scale)
        else:
            basis = BesselBasis(*shape, self.envelope_power, self.radial_scale)
        if self.bessel_frequencies:
            basis.orders.copy_(torch.tensor(self.bessel_frequencies, dtype=torch.float64))
        return basis

    def pair_cutoffs_of(self, numbers: list[int]) -> list[list[float]]:
        """Where pairs of species (Z) end, [centre, neighbour] Å, for `Radial`s that ask for it."""
        return [[self.cutoff] * len(numbers)] * len(numbers)

    def not_positive(self, *names: str) -> Problems:
        """Rules that these options are above zero."""
        return [
            (getattr(self, name) <= 0, f"{name} = {getattr(self, name)}: it must be positive.")
            for name in names
        ]

    def negative(self, *names: str) -> Problems:
        """Rules that these options are zero or above."""
        return [
            (
                getattr(self, name) < 0,
                f"{name} = {getattr(self, name)}: it must be positive, or 0 for none.",
            )
            for name in names
        ]

    def not_by_degree(self) -> Problems:
        """Rules of a list num_channels by degree 0 .. l_max."""
        degrees, least = len(self.num_channels), min(self.num_channels, default=0)
        return [
            (
                degrees != self.l_max + 1,
                (
                    f"num_channels has {degrees} entries, but l_max = {self.l_max} needs "
                    f"{self.l_max + 1}: one for each degree 0 .. l_max."
                ),
            ),
            (least <= 0, f"num_channels = {least}: it must be positive."),
        ]

    def problems(self) -> Problems:
        """Whether something is wrong, and the sentence that says so, for each rule."""
        c = self
        names = [output.name for output in c.outputs]
        return [
            (
                len(set(names)) < len(names),
                f"outputs: {', '.join(names)} has one of them twice: name each once.",
            ),
            (
                not (c.energy or c.outputs),
                "energy = false, but there are no outputs: name some in model.outputs.",
            ),
            (
                not c.energy and c.pair_potential,
                "pair_potential is an energy, but energy = false: leave one of the two out.",
            ),
            *self.not_positive("cutoff", "num_radial", "radial_scale", "initial_messages"),
            (
                not 0.0 <= c.species_correlation <= 1.0,
                f"species_correlation = {c.species_correlation}: it must be 0 .. 1.",
            ),
            (
                min(c.envelope_power, c.core_envelope_power) < 3,
                (
                    "envelope_power and core_envelope_power must be at least 3, or forces jump at "
                    "the cutoff."
                ),
            ),
            (
                not 0.0 <= c.envelope_onset < c.cutoff,
                (
                    f"envelope_onset = {c.envelope_onset}: it must lie below the cutoff, "
                    f"{c.cutoff} Å, or be 0 for the polynomial envelope."
                ),
            ),
            (
                not 0.0 <= c.core_cutoff <= c.cutoff,
                f"core_cutoff = {c.core_cutoff}: it must be 0 .. cutoff = {c.cutoff} Å.",
            ),
            (
                bool(c.core_cutoff) and c.pair_potential,
                (
                    "core_cutoff is given, but with pair_potential the distances of the training "
                    "say where the core repulsion ends: leave one of the two out."
                ),
            ),
            (
                len(c.bessel_frequencies) not in (0, c.num_radial),
                (
                    f"bessel_frequencies has {len(c.bessel_frequencies)} entries, but num_radial = "
                    f"{c.num_radial}: one for each."
                ),
            ),
        ]
