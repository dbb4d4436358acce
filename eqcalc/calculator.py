"""The ASE calculator."""

from __future__ import annotations

import copy
import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import (
    Calculator,
    CalculatorSetupError,
    PropertyNotImplementedError,
    all_changes,
    compare_atoms,
)
from ase.outputs import Properties, all_outputs

from eqcalc import committee, export, names, network, uncertainty
from eqcalc.derivatives import stress_volume
from eqcalc.domain import ACTIONS, Domain, Exit, OutsideDomainError
from eqcalc.engine.backends import Outcome, Wanted, open_backend, refuse_overlap
from eqcalc.errors import InputError
from eqcalc.neighbors import Pairs, VerletList, neighbor_list
from eqcalc.outputs import OutputConfig, cartesian, described, has_energy, same
from eqcalc.results import OF_ONE, of_outcome, seal
from eqcalc.runtime import TurnLock, own_torch
from eqcalc.structure import Structure

if TYPE_CHECKING:
    from e3nn import o3

#: properties that need no gradient
ENERGIES = frozenset({"energy", "free_energy", "energies", *OF_ONE})


class NoEnergyError(InputError, PropertyNotImplementedError):
    """A network has no such property."""


def _in_batches(structures: Iterable[Atoms], batch_atoms: int) -> Iterator[list[Atoms]]:
    """Runs of structures of at most `batch_atoms` atoms together, or a single larger one."""
    batch: list[Atoms] = []
    size = 0
    for atoms in structures:
        if batch and size + len(atoms) > batch_atoms:
            yield batch
            batch, size = [], 0
        batch.append(atoms)
        size += len(atoms)
    if batch:
        yield batch


def _models(model: Any) -> list[str | os.PathLike]:
    """One model or several; InputError for what is neither a path nor a name."""
    models = [model] if isinstance(model, str | os.PathLike) else model
    if not isinstance(models, Sequence) or isinstance(models, bytes):
        raise InputError(
            f"model is {type(model).__name__}: give a potential file, a model's name such as "
            '"si", or a list of them.'
        )
    for one in models:
        if not isinstance(one, str | os.PathLike):
            raise InputError(
                f"The list of models contains {type(one).__name__}: give files or names of models."
            )
    if not models or "" in models:
        what = "The name of a model" if models else "The list of models"
        raise InputError(f"{what} is empty: name at least one potential file.")
    files: list[str | os.PathLike] = []
    for one in models:
        found = names.member_files([one])
        files += [one] if len(found) == 1 and found[0].name == Path(one).name else found
    return files


def _stamp(path: Path) -> tuple[int, int] | None:
    """Changes when a file does: its size in bytes and its time in ns; None if it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


class EquivariantCalculator(Calculator):
    """A potential file, or a committee of them, behind ASE.

    Args:
        model: a potential file, the name of a bundled model ("si") or of published weights that an
            installed package holds ("7net-0", "7net-mf-0:PBE", see `eqcalc.names`), a list of
            such, or the folder that `eqcalc train --committee` wrote: a committee, whose results
            are the means over its members.
        device: "cpu" (default), "cuda", "cuda:1", ..., or "auto": a GPU if there is one.
        dtype: "float32" or "float64"; None takes the file's own. Edge vectors are formed, and
            energies summed, in float64 either way; take "float64" for tight relaxations, phonons
            and long NVE runs.
        engine: "fused" (generated C++, or CUDA on a GPU; radial functions from tables that are
            exact to about 1e-10 eV in float64), "exact" (the same without tables, on the CPU),
            "torch" (the file's own TorchScript, any device); "auto" takes "fused" on the CPU, and
            "torch" on a GPU or where the former cannot be had.
        skin: Å, by which the neighbour list reaches beyond the cutoff so that it can be reused.
        threads: of the engine during a calculation; None takes as many as torch has.
        memory_limit: GB of the GPU that the fused engine takes at most; it then works on the atoms
            in several parts, or says how much it needs. None takes what there is.
        on_domain_exit: "warn" (once for each quantity), "stop" (OutsideDomainError, an InputError)
            or "ignore" where a structure lies outside of what the potential was trained on, as far
            as its file says that (`eqcalc.domain`): distances, numbers of neighbours, density,
            pressure, energy and forces. `evaluate` does not look.
        uncertainty: have every calculation's results contain `energies_std` and `grade`, at less
            than 3 % of its cost; otherwise they are computed when they are asked for.
        direct_forces: take the network's output direct_forces, which is no derivative of an energy,
            for `forces`: no gradient is computed, and there is no stress. Dynamics with them gains
            or loses energy.

    Properties: energy and free_energy (eV), energies [N] (eV), forces [N, 3] (eV/Å), and for
    structures with a periodic direction stress [6] (eV/Å^3, ASE's sign and order): dE/d(strain)
    over the volume of the cell, for a slab with its vacuum (`eqcalc.derivatives.stress_volume`);
    and stresses [N, 6], each atom's share: minus its virial (eqcalc.derivatives) over that volume,
    made symmetric, so that they sum to the stress. When only energies are asked for, no gradient is
    computed. See also `evaluate`, `get_atomic_virials`, `get_hessian` and `get_descriptors`. The
    arrays in `results` cannot be written to; what the methods return is the caller's own.

    What a network has beside the energy (`eqcalc info` lists it) is a property by its name, as in
    `calc.get_property("charges", atoms)` or, for those that ASE knows, `atoms.get_dipole_moment()`:
    vectors x y z, tensors 3x3, in the units of the labels. They are computed when they are asked
    for, or by `evaluate`, by the TorchScript of the file whatever the engine, and are then in
    `results`. A dipole is a sum over atoms, whatever the origin and the boxes that atoms are in: of
    a charged structure with respect to a point that moves with it, of a periodic one on the branch
    of the training's labels. A network without an energy has these properties alone.

    A file that has been calibrated (`eqcalc calibrate`, or at the end of training) knows how far
    it can be trusted (`eqcalc.uncertainty`): `grade` [N], 1 at the edge of the training set and
    far above 1 in what is unlike it; energies_std [N] (eV), the standard deviations of energies;
    and energy_std (eV), that of the structure's energy, whose atoms' errors are not independent.
    They are properties as outputs are: `calc.get_property("grade", atoms)`.

    A committee (`eqcalc.committee`) adds energy_std (eV), energies_std [N] (eV), forces_std [N, 3]
    (eV/Å) and stress_std [6] (eV/Å^3), the standard deviations over its members (divided by their
    number), and forces_deviation [N] (eV/Å), the lengths of forces_std; its grade is the largest of
    its members, if all have one. Members may differ in cutoff and in their lists of elements; a
    structure must consist of elements that all of them know.

    Copies (`copy.copy`, `copy.deepcopy`) share the loaded networks and cost nothing, but have
    results and a neighbour list of their own; pickles carry the options and results, and open the
    files again. Threads that share one calculator take turns, whatever their structures; with a
    copy for each thread they keep their neighbour lists, too. What the program sets in torch
    (inference mode, autocast, default dtype and device, TensorFloat-32) changes no number.

    Raises:
        InputError: at construction, when the file, device or precision does not fit; at
            calculation, for elements that the model lacks, positions that are not finite,
            overlapping atoms and too little memory.
    """

    implemented_properties: list[str] = [  # noqa: RUF012 - a committee has its own
        "energy",
        "free_energy",
        "energies",
        "forces",
        "stress",
        "stresses",
    ]

    def __init__(
        self,
        model: str | os.PathLike | Sequence[str | os.PathLike],
        *,
        device: str | None = None,
        dtype: str | None = None,
        engine: str = "auto",
        skin: float = 0.5,
        threads: int | None = None,
        memory_limit: float | None = None,
        on_domain_exit: str = "warn",
        direct_forces: bool = False,
        uncertainty: bool = False,
    ) -> None:
        super().__init__()
        if on_domain_exit not in ACTIONS:
            raise InputError(
                f"on_domain_exit = '{on_domain_exit}': it must be one of {', '.join(ACTIONS)}."
            )
        for name, value in (("skin", skin), ("threads", threads)):
            if not isinstance(value, Real) and (name, value) != ("threads", None):
                raise InputError(f"{name} = {value!r}: it must be a number.")
        if not 0.0 <= skin < np.inf:
            raise InputError(f"skin = {skin} Å: it must be finite and must not be negative.")
        if threads is not None and (threads < 1 or threads != int(threads)):
            raise InputError(f"threads = {threads}: it must be at least 1, and whole.")
        if memory_limit is not None and not (isinstance(memory_limit, Real) and memory_limit > 0):
            raise InputError(f"memory_limit = {memory_limit!r}: it must be a number of GB above 0.")
        models = _models(model)
        self._models = [names.lasting(m) for m in models]
        self._options: dict[str, Any] = {
            "device": device,
            "dtype": dtype,
            "engine": engine,
            "threads": threads,
            "memory_limit": memory_limit,
        }
        self._skin, self._on_domain_exit = skin, on_domain_exit
        self._left: set[str] = set()
        self._lock = TurnLock()
        self._virials: np.ndarray | None = None
        self._kept: tuple[Atoms | None, dict[Any, np.ndarray]] = None, {}
        self._direct = direct_forces
        self._always = uncertainty
        self._load()
        self.implemented_properties = self._known_properties()
        if uncertainty:
            self.require_uncertainty()

    def require_uncertainty(self) -> None:
        """InputError unless the files know grades and deviations (`eqcalc.uncertainty`)."""
        if not self._forms:
            self._refuse("grade")

    def _load(self) -> None:
        paths = [names.find(model) for model in self._models]
        self._opened = [_stamp(path) for path in paths]
        documents = [export.read_metadata(path) for path in paths]
        self._has_energy = all(map(has_energy, documents))
        options = dict(self._options)
        if options["engine"] == "auto" and (self._direct or not self._has_energy):
            options["engine"] = "torch"  # compiled engines have nothing else than the energy
        self.members: list[Any] = [open_backend(path, **options) for path in paths]
        #: what each member has beside the energy, and what all of them have
        self._outputs_of = [described(document) for document in documents]
        first, *rest = self._outputs_of
        self._outputs = [out for out in first if all(any(same(out, o) for o in r) for r in rest)]
        #: TorchScript of the members by (member, dtype), opened when it is needed
        self._networks: dict[tuple[int, str], export.PotentialFile] = {}
        found = [uncertainty.read(path) for path in paths] if self._gradient else []
        #: of each member, if all have one
        self._forms = [form for form in found if form] if all(found) else []
        self._lacking = next((p for p, f in zip(paths, found, strict=False) if not f), paths[0])
        watches = [Domain.watch(member.potential.metadata) for member in self.members]
        silent = self._on_domain_exit == "ignore"
        self._watches = [None if silent else watch for watch in watches]
        self._new_list()

    def _known_properties(self) -> list[str]:
        """InputError if direct forces were asked for, and there are none."""
        outputs = [output.name for output in self._outputs]
        if self._direct and "direct_forces" not in outputs:
            raise InputError(
                f"{self.potential.path.name} has no output direct_forces: leave direct_forces out."
            )
        known = type(self).implemented_properties if self._has_energy else ["forces"]
        if not self._gradient:
            known = [name for name in known if not name.startswith("stress")]
        if not (self._has_energy or self._direct):
            known = []
        spread = committee.properties_of(known) if self.members[1:] else []
        if self._forms:
            spread += ["grade"] if self.members[1:] else OF_ONE
        return [*known, *spread, *outputs]

    @property
    def outputs(self) -> list[OutputConfig]:
        """What all members have beside the energy."""
        return list(self._outputs)

    @property
    def _gradient(self) -> bool:
        """Whether forces are derivatives of an energy."""
        return self._has_energy and not self._direct

    def _new_list(self) -> None:
        cutoff = max(member.potential.cutoff for member in self.members)
        self.neighbors = VerletList(cutoff, self._skin)
        self._unwatched: tuple[Pairs | None, int] = None, 0

    def __repr__(self) -> str:
        names = [member.potential.path.name for member in self.members]
        what = repr(names[0]) if len(names) == 1 else repr(names)
        return (
            f"{type(self).__name__}({what}, engine={self.engine!r}, dtype={self.dtype!r}, "
            f"cutoff={self.cutoff:g} Å, elements={' '.join(self.elements)})"
        )

    @property
    def cutoff(self) -> float:
        """Å; of a committee the largest."""
        return max(member.potential.cutoff for member in self.members)

    @property
    def elements(self) -> list[str]:
        """Symbols of the elements that all members know, in the order of the first."""
        known = [set(member.potential.symbols) for member in self.members]
        return [s for s in self.potential.symbols if all(s in others for others in known)]

    @property
    def dtype(self) -> str:
        """The precision of the network as it runs: "float32" or "float64"."""
        return str(self.potential.dtype).removeprefix("torch.")

    @property
    def engine(self) -> str:
        """What runs: "fused", "exact" or "torch", whatever "auto" has become."""
        return self.backend.name

    @property
    def metadata(self) -> dict[str, Any]:
        """What the (first) file carries, as `eqcalc info --json` prints it; a copy."""
        return copy.deepcopy(self.potential.metadata)

    def todict(self, skip_default: bool = True) -> dict[str, Any]:  # noqa: ARG002, FBT001, FBT002
        """What a database of ASE keeps of the calculator: the files with their SHA-256 and options.

        A file that has been replaced since the calculator opened it has None there.
        """
        files = [
            {"file": str(member.potential.path), "sha256": self._sha256(k)}
            for k, member in enumerate(self.members)
        ]
        return {
            "models": files,
            "engine": self.engine,
            "dtype": self.dtype,
            "eqcalc_version": metadata.version("eqcalc"),
            **({"direct_forces": True} if self._direct else {}),
        }

    def _sha256(self, member: int) -> str | None:
        """Of a member's file, unless it is another one by now."""
        path, opened = self.members[member].potential.path, self._opened[member]
        if _stamp(path) != opened:
            return None
        return hashlib.sha256(path.read_bytes()).hexdigest()

    @property
    def backend(self) -> Any:
        """The engine of the first model."""
        return self.members[0]

    @property
    def potential(self) -> Any:
        """The first model: its metadata, cutoff, elements and precision."""
        return self.backend.potential

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            state = self.__dict__.copy()
        opened = "members", "neighbors", "_networks", "_watches", "_unwatched", "_opened", "_forms"
        for name in opened:
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        seal(self.results)
        self._load()

    def __copy__(self) -> EquivariantCalculator:
        other = type(self).__new__(type(self))
        with self._lock:
            other.__dict__.update(self.__dict__)
            other.results = dict(self.results)
            other._kept = self._kept[0], dict(self._kept[1])
            other._left = set(self._left)
        other._lock = TurnLock()
        other._new_list()
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> EquivariantCalculator:
        other = copy.copy(self)
        memo[id(self)] = other
        for name in ("atoms", "results", "_kept", "_virials", "_models", "_options", "parameters"):
            setattr(other, name, copy.deepcopy(getattr(other, name), memo))
        seal(other.results)
        return other

    def set(self, **kwargs: Any) -> dict[str, Any]:
        """Options are fixed at construction; ASE's own `set` would take any name in silence."""
        if kwargs:
            raise CalculatorSetupError(
                f"EquivariantCalculator has no parameter to set ({', '.join(kwargs)}): "
                "make a new calculator instead."
            )
        return {}

    def _run(
        self,
        numbers: np.ndarray,
        positions: np.ndarray,
        pairs: Pairs,
        wanted: Wanted,
        *,
        outputs: bool,
    ) -> list[Outcome]:
        """What every member says of atoms with numbers [N] at positions [N, 3] Å."""
        found = []
        for k, member in enumerate(self.members):
            outcome = Outcome(None)
            if self._gradient:
                species = member.potential.species_of(numbers)
                outcome = member.compute(species, positions, pairs, wanted)
            if outputs or not self._gradient:
                outcome = self._with_outputs(k, outcome, numbers, positions, pairs)
            found.append(outcome)
        return found

    def _with_outputs(
        self, k: int, outcome: Outcome, numbers: np.ndarray, positions: np.ndarray, pairs: Pairs
    ) -> Outcome:
        """Rows of a member's outputs beside the energy, and what follows from them."""
        potential = self.members[k].potential
        if self.members[k].name != "torch":
            potential = self._network(k, str(potential.dtype))
        with own_torch(self._options["threads"]):
            energies, rows = network.output_rows(potential, numbers, positions, pairs)
        if self._gradient:
            return outcome._replace(rows=rows)
        refuse_overlap(pairs.edge_dst, pairs.edge_src, pairs.vectors(positions))
        forces = None
        if self._direct:
            forces = cartesian(potential.outputs, rows)["direct_forces"]
        return Outcome(energies if self._has_energy else None, forces, rows=rows)

    def _results(
        self, numbers: np.ndarray, outcomes: Sequence[Outcome], volume: float | None
    ) -> dict[str, Any]:
        """ASE's results of one structure."""
        pairs = zip(outcomes, self._outputs_of, strict=True)
        results = committee.consensus(
            [of_outcome(outcome, volume, outputs) for outcome, outputs in pairs]
        )
        features = outcomes[0].features
        if features is not None:
            species = self.potential.species_of(numbers)
            results["energy_std"] = self._forms[0].energy_std(species, features)
        return results

    def _wanted(self, properties: Sequence[str]) -> Wanted:
        """What is to be computed for these."""
        others = {output.name for output in self._outputs}
        alone = not self.members[1:] and bool(self._forms)
        return Wanted(
            gradient=not (ENERGIES | others).issuperset(properties),
            features=alone and "energy_std" in properties,
            uncertainty=self._always
            or "grade" in properties
            or (alone and "energies_std" in properties),
        )

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        with self._lock:
            atoms = self._structure_now(atoms).copy()
            structure = Structure.of(atoms)
            volume = stress_volume(structure.cell, structure.pbc)
            if volume is None and any(name.startswith("stress") for name in properties):
                raise PropertyNotImplementedError(
                    "Stress needs a periodic direction and a cell with a volume: here pbc = "
                    f"{structure.pbc.tolist()} and the cell vectors are {structure.cell.tolist()}."
                )
            others = {output.name for output in self._outputs}
            pairs = self.neighbors.pairs(structure)
            outcomes = self._run(
                structure.numbers,
                structure.positions,
                pairs,
                self._wanted(properties),
                outputs=not others.isdisjoint(properties),
            )
            # only now: what failed leaves no structure behind that older results do not belong to
            self.atoms = atoms
            results = self._results(structure.numbers, outcomes, volume)
            # of the same structure others may have been asked for before
            self.results = results if system_changes else self.results | results
            seal(self.results)
            virials = [outcome.virials for outcome in outcomes if outcome.virials is not None]
            if virials:
                self._virials = committee.mean(virials)
            self._watch_domain(structure, pairs, volume if structure.pbc.all() else None)

    def _watch_domain(self, structure: Structure, pairs: Pairs, volume: float | None) -> None:
        """Says once of each quantity that it is outside of the training (`eqcalc.domain`).

        Of a run that goes on with the same list of neighbours, every eighth structure is looked at,
        for it costs a few per cent of an evaluation.
        """
        known, skipped = self._unwatched
        self._unwatched = pairs, 0 if pairs is not known or skipped >= 7 else skipped + 1
        if not any(self._watches) or self._unwatched[1]:
            return
        vectors = pairs.vectors(structure.positions)
        length = np.sqrt(np.einsum("ex,ex->e", vectors, vectors))
        for member, watch in zip(self.members, self._watches, strict=True):
            if watch is None:
                continue
            near = length < member.potential.cutoff
            found = watch.exits(
                member.potential.species_of(structure.numbers),
                pairs.edge_src[near],
                pairs.edge_dst[near],
                length[near],
                energy=self.results.get("energy"),
                forces=self.results.get("forces"),
                stress=self.results.get("stress"),
                volume=volume,
            )
            for out in found:
                self._say(member.potential.path.stem, out)

    def _say(self, name: str, out: Exit) -> None:
        if self._on_domain_exit == "stop":
            raise OutsideDomainError(
                f"Outside of the training of {name}: {out.sentence}; on_domain_exit is 'stop'."
            )
        if out.quantity not in self._left:
            self._left.add(out.quantity)
            warnings.warn(
                f"Outside of the training of {name}: {out.sentence}. Energies and forces there are "
                "extrapolations. (Said once; on_domain_exit = 'stop' ends a run here.)",
                stacklevel=2,
            )

    def get_property(
        self,
        name: str,
        atoms: Atoms | None = None,
        allow_calculation: bool = True,  # noqa: FBT001, FBT002 - the base class has it so
    ) -> Any:
        """ASE's; one thread at a time, as atoms and results of the calculator belong together."""
        with self._lock:
            if name not in self.implemented_properties:
                self._refuse(name)
            if atoms is None and allow_calculation:
                self._structure_now(None)
            return super().get_property(name, atoms, allow_calculation)

    def _refuse(self, name: str) -> None:
        """Says why a property is not there, where that is not plain."""
        path = self.potential.path.name
        if name == committee.FORCES_DEVIATION and not self.members[1:]:
            raise NoEnergyError(
                "One model cannot disagree with itself: give EquivariantCalculator a list of "
                "models."
            )
        if name in OF_ONE and self._gradient and not self._forms:
            raise NoEnergyError(f"{self._lacking.name} {uncertainty.MISSING}.")
        if not self._has_energy:
            known = ", ".join(self.implemented_properties)
            raise NoEnergyError(f"{path} has no energy, so there is no {name}: it has {known}.")
        if self._direct:
            raise NoEnergyError(
                f"Direct forces are no derivatives of an energy, so there is no {name}: leave "
                "direct_forces out."
            )

    def calculation_required(self, atoms: Atoms, properties: Sequence[str]) -> bool:
        with self._lock:
            return super().calculation_required(atoms, properties)

    def calculate_properties(self, atoms: Atoms, properties: Sequence[str]) -> Properties:
        with self._lock:
            return super().calculate_properties(atoms, properties)

    def export_properties(self) -> Properties:
        """The results that ASE has a name for: not a committee's standard deviations."""
        with self._lock:
            return Properties({k: v for k, v in self.results.items() if k in all_outputs})

    def _structure_now(self, atoms: Atoms | None) -> Atoms:
        """These atoms, or else those of the last calculation."""
        atoms = self.atoms if atoms is None else atoms
        if atoms is None:
            raise InputError("There is no structure yet: give the atoms.")
        return atoms

    def evaluate(
        self, structures: Iterable[Atoms], *, batch_atoms: int = 1000, uncertainty: bool = False
    ) -> list[dict[str, Any]]:
        """Results of many structures, of any sizes and periodicities, several at a time.

        Args:
            structures: any iterable; their own calculators are neither used nor changed.
            batch_atoms: how many atoms go through the network together.
            uncertainty: whether the results have grades and standard deviations, too.

        Returns:
            For every structure the dictionary that `results` would be after its forces were asked
            for (energy, free_energy, energies, forces; stress and stresses where a direction is
            periodic; the standard deviations of a committee; outputs beside the energy).

        Raises:
            InputError: as for a single structure; the sentence begins with its place in the list.
        """
        if isinstance(structures, Atoms):
            raise InputError("evaluate takes a list of structures: write evaluate([atoms]).")
        if batch_atoms < 1:
            raise InputError(f"batch_atoms = {batch_atoms}: it must be at least 1.")
        if uncertainty:
            self.require_uncertainty()
        alone = not self.members[1:]
        wanted = Wanted(True, uncertainty and alone, uncertainty or self._always)
        results: list[dict[str, Any]] = []
        for batch in _in_batches(structures, batch_atoms):
            checked = [self._checked(atoms, len(results) + k) for k, atoms in enumerate(batch)]
            sizes = [len(structure.numbers) for structure, _ in checked]
            outcomes = self._run(
                np.concatenate([structure.numbers for structure, _ in checked]),
                np.concatenate([structure.positions for structure, _ in checked]),
                Pairs.side_by_side([pairs for _, pairs in checked], sizes),
                wanted,
                outputs=bool(self._outputs),
            )
            ends = np.cumsum(sizes)
            for (structure, _), end in zip(checked, ends, strict=True):
                mine = slice(end - len(structure.numbers), end)
                own = [
                    Outcome(*(None if v is None else v[mine].copy() for v in o)) for o in outcomes
                ]
                volume = stress_volume(structure.cell, structure.pbc)
                results.append(self._results(structure.numbers, own, volume))
        return results

    def _checked(self, atoms: Atoms, place: int) -> tuple[Structure, Pairs]:
        """One structure of a list and its pairs; what is wrong with it is said with its place."""
        try:
            structure = Structure.of(atoms)
            for member in self.members:
                member.potential.species_of(structure.numbers)
            cutoff = self.neighbors.cutoff
            found = neighbor_list(structure.positions, structure.cell, structure.pbc, cutoff)
            pairs = found.in_space(structure.cell)
            refuse_overlap(pairs.edge_dst, pairs.edge_src, pairs.vectors(structure.positions))
        except InputError as error:
            raise InputError(f"Structure {place} of the list: {error}") from None
        return structure, pairs

    def _network(self, member: int, dtype: str) -> export.PotentialFile:
        """A member's TorchScript, opened once."""
        key = member, dtype
        with self._lock:
            if key not in self._networks:
                potential = self.members[member].potential
                device, path = potential.device, potential.path
                self._networks[key] = export.load(path, device=device, dtype=dtype)
            return self._networks[key]

    def _once(self, key: Any, atoms: Atoms | None, make: Callable[[Atoms], np.ndarray]) -> Any:
        """What `make` says of the atoms, kept until they change."""
        with self._lock:
            atoms = self._structure_now(atoms)
            known = self._kept[0]
            if known is None or compare_atoms(known, atoms, tol=0.0, excluded_properties=_IGNORED):
                self._kept = atoms.copy(), {}
            kept = self._kept[1]
            if key not in kept:
                with own_torch(self._options["threads"]):
                    kept[key] = make(atoms)
            return kept[key].copy()

    def get_atomic_virials(self, atoms: Atoms | None = None) -> np.ndarray:
        """Virials [N, 3, 3] eV, -sum_i r_ij (x) dE/dr_ij for neighbour j; not symmetric per atom.

        They sum to minus volume times stress, and exist without periodicity too. See
        eqcalc.derivatives.
        """
        with self._lock:
            if not self._gradient:
                self._refuse("virial")
            self.get_property("forces", atoms)
            assert self._virials is not None  # comes with the forces
            return self._virials.copy()

    def get_hessian(self, atoms: Atoms | None = None) -> np.ndarray:
        """Second derivatives of the energy, [3N, 3N] eV/Å^2, rows and columns atom by atom.

        Exact derivatives of the file's TorchScript in float64, whatever engine and precision the
        calculator has; the mean of a committee. In a periodic system all images of an atom move
        together: the Hessian of the phonons at Gamma. Constraints are not applied. Costs 3N
        gradients and their memory: meant for up to some hundred atoms.
        """
        if not self._gradient:
            self._refuse("Hessian")

        def make(atoms: Atoms) -> np.ndarray:
            pairs = self.neighbors.pairs(atoms)
            hessians = [
                network.hessian(self._network(k, "float64"), atoms.numbers, atoms.positions, pairs)
                for k in range(len(self.members))
            ]
            return committee.mean(hessians)

        return self._once("hessian", atoms, make)

    def get_descriptors(
        self, atoms: Atoms | None = None, *, invariants_only: bool = False, layer: int = -1
    ) -> np.ndarray:
        """What the network has learned of every atom's surroundings: its features after a layer.

        Args:
            atoms: a structure.
            invariants_only: only the channels that rotations and reflections leave alone (0e).
            layer: 0, 1, ... or from the last -1, -2, ...; the last layer often has invariants only.

        Returns:
            [N, width], in the order of `descriptor_irreps(layer)` as in e3nn: channel by channel,
            m innermost, so that turning the structure by R gives `x @ irreps.D_from_matrix(R).T`.
        """
        irreps = self.descriptor_irreps(layer)

        def make(atoms: Atoms) -> np.ndarray:
            potential = self._network(0, str(self.potential.dtype))
            pairs = self.neighbors.pairs(atoms)
            return network.features(potential, atoms.numbers, atoms.positions, pairs, layer)

        x = self._once(("descriptors", layer), atoms, make)
        if not invariants_only:
            return x
        blocks = zip(irreps, irreps.slices(), strict=True)
        scalars = [x[:, place] for (_, ir), place in blocks if ir.l == 0 and ir.p == 1]
        return np.concatenate(scalars, axis=1)

    def descriptor_irreps(self, layer: int = -1) -> o3.Irreps:
        """The irreps of the descriptors of a layer."""
        if len(self.members) > 1:
            raise InputError(
                "The members of a committee have features of their own: "
                "make a calculator of one model for its descriptors."
            )
        return network.feature_irreps(self._network(0, str(self.potential.dtype)), layer)


#: what changes no energy: kept results outlive it
_IGNORED = ("initial_charges", "initial_magmoms")
