"""A network: its operations in order, and what follows from them alone."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from eqcalc.errors import InputError
from eqcalc.program.operation import Operation
from eqcalc.program.operations import OPERATIONS, Embedding, Output, Readout

#: raised when a change makes older readers wrong
PROGRAM_VERSION = 1


@dataclass(frozen=True)
class Stage:
    """What ranks compute between two exchanges of ghost atoms' features.

    Attributes:
        takes: names of the values that it gets, for ghosts too.
        operations: in order.
        everywhere: names of the values that are needed for ghosts as well.
        gives: names of the values that later stages need; of the last one, what its readouts read.
    """

    takes: tuple[str, ...]
    operations: tuple[Operation, ...]
    everywhere: frozenset[str]
    gives: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """Operations, each of which reads values made before it.

    Raises:
        ValueError: a name is missing, is taken twice or is no identifier.
    """

    operations: tuple[Operation, ...]

    def __post_init__(self) -> None:
        known: set[str] = set()
        for op in self.operations:
            if not op.name.isidentifier() or op.name in known:
                raise ValueError(f"{op.name!r} is no name for a new value")
            for name in op.inputs:
                if name not in known:
                    raise ValueError(f"{op.name} reads {name}, which no earlier operation makes")
            known.add(op.name)

    @cached_property
    def by_name(self) -> dict[str, Operation]:
        return {op.name: op for op in self.operations}

    @cached_property
    def on_edges(self) -> frozenset[str]:
        """Names of the values that lie on edges."""
        found: set[str] = set()
        for op in self.operations:
            if op.on_edges or (op.on_edges is None and op.inputs[0] in found):
                found.add(op.name)
        return frozenset(found)

    @property
    def outputs(self) -> tuple[Output, ...]:
        return tuple(op for op in self.operations if isinstance(op, Output))

    def reaching(self, output: str) -> Program:
        """What one output needs, and no more."""
        wanted = {output}
        for op in reversed(self.operations):
            if op.name in wanted:
                wanted.update(op.inputs)
        return Program(tuple(op for op in self.operations if op.name in wanted))

    def document(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {
            "program_version": PROGRAM_VERSION,
            "operations": [op.document() for op in self.operations],
        }

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Program:
        """What `document` of this or an older version returned.

        Raises:
            InputError: it is of a newer version.
        """
        if document["program_version"] > PROGRAM_VERSION:
            raise InputError(
                "The network's description is of a newer eqcalc than this one: update eqcalc."
            )
        return cls(tuple(map(_operation, document["operations"])))

    def __str__(self) -> str:
        """A line for each value: what it is, its irreps, where ranks exchange."""
        rows: list[tuple[str, str, str]] = []
        for number, stage in enumerate(self.stages):
            if number:
                rows.append((f"-- ranks exchange {', '.join(stage.takes)} --", "", ""))
            for op in stage.operations:
                irreps = str(getattr(op, "irreps", ""))
                irreps += " on edges" if irreps and op.name in self.on_edges else ""
                rows.append((op.name, op.formula(), irreps))
        width = max(len(name) for name, formula, _ in rows if formula)
        middle = max(len(formula) for _, formula, _ in rows)
        lines = (
            f"{name:<{width}} = {formula:<{middle}}  {irreps}".rstrip() if formula else name
            for name, formula, irreps in rows
        )
        return "\n".join(lines)

    @cached_property
    def readers(self) -> dict[str, list[Operation]]:
        """The operations that read each value."""
        readers: dict[str, list[Operation]] = {op.name: [] for op in self.operations}
        for op in self.operations:
            for name in op.inputs:
                readers[name].append(op)
        return readers

    @cached_property
    def depth(self) -> dict[str, int]:
        """How many sums over neighbours lead to each value."""
        depth: dict[str, int] = {}
        for op in self.operations:
            before = max((depth[name] for name in op.inputs), default=0)
            depth[op.name] = before + op.gathers
        return depth

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The operations, cut where neighbours are read of what a sum over neighbours has led to.

        A linear map, or what else is `local`, whose value only later stages read is computed there:
        what ranks exchange is then read by several operations, but sent once. Embeddings are made
        before the first stage.
        """
        place: dict[str, int] = {}
        for op in reversed(self.operations):
            place[op.name] = max(self.depth[op.name] - 1, 0)
            if isinstance(op, Embedding):
                place[op.name] = -1
            elif op.name in self.on_edges or op.local:
                readers = self.readers[op.name]
                later = (place[r.name] for r in readers if not isinstance(r, Output))
                place[op.name] = max(place[op.name], min(later, default=0))
        count = 1 + max(place.values())
        return tuple(self._stage(k, place) for k in range(count))

    def _stage(self, k: int, place: dict[str, int]) -> Stage:
        mine = [op for op in self.operations if place[op.name] == k]
        takes = self._carried(k, place)
        wanted: set[str] = set()
        for op in reversed(mine):
            wanted.update(op.neighbours)
            if op.name in wanted:
                wanted.update(op.inputs)
        gives = self._carried(k + 1, place) or self._read_out(mine)
        return Stage(takes, tuple(mine), frozenset(wanted), gives)

    def _read_out(self, operations: list[Operation]) -> tuple[str, ...]:
        """Those of these values from which energies are read."""
        readouts = [op for op in operations if isinstance(op, Readout)]
        read = {name for op in readouts for name in op.inputs}
        return tuple(op.name for op in operations if op.name in read)

    def _carried(self, k: int, place: dict[str, int]) -> tuple[str, ...]:
        """Values made before stage k and read in it or later."""
        return tuple(
            op.name
            for op in self.operations
            if place[op.name] < k
            and any(
                place[reader.name] >= k and not isinstance(reader, Output)
                for reader in self.readers[op.name]
            )
        )


def _operation(document: dict[str, Any]) -> Operation:
    values = dict(document)
    kind = OPERATIONS.get(values.pop("operation"))
    if kind is None:
        raise InputError(
            f"The network has the operation {document['operation']}, which this eqcalc does not "
            "know: update eqcalc."
        )
    names = {field.name for field in dataclasses.fields(kind)}
    if unknown := values.keys() - names:
        raise InputError(
            f"The operation {document['name']} has the option {min(unknown)}, which this eqcalc "
            "does not know: update eqcalc."
        )
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
