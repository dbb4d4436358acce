"""What every operation of a network has."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Operation:
    """name: of the value that it makes, a Python identifier."""

    name: str

    #: fields that name values
    reads: ClassVar[tuple[str, ...]] = ("source",)
    #: fields among them whose values are read at an edge's neighbour, so that ghosts need them
    reads_neighbours: ClassVar[tuple[str, ...]] = ()
    #: whether the value is on edges; None: it lies where its source does
    on_edges: ClassVar[bool | None] = False
    #: whether it sums over a centre's edges what has been read at neighbours
    gathers: ClassVar[bool] = False
    #: whether it is cheap enough to be made again for ghosts rather than sent
    local: ClassVar[bool] = False

    def named(self, fields: tuple[str, ...]) -> tuple[str, ...]:
        """The values that these fields name."""
        found: list[str] = []
        for name in fields:
            value = getattr(self, name)
            found += [value] if isinstance(value, str) else value
        return tuple(name for name in found if name)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values that it reads."""
        return self.named(self.reads)

    @property
    def neighbours(self) -> tuple[str, ...]:
        """Names of the values that it reads at neighbours."""
        return self.named(self.reads_neighbours)

    def document(self) -> dict[str, Any]:
        """As plain data."""
        return {"operation": type(self).__name__, **dataclasses.asdict(self)}

    def formula(self) -> str:
        """What it does, in a line."""
        raise NotImplementedError
