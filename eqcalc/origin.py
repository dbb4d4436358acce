"""Where an imported potential comes from, in the one line that people see."""

from __future__ import annotations

from typing import Any

#: beside the network in an export
TEXT_FILE = "eqcalc_origin.txt"


def line(origin: dict[str, Any]) -> str:
    """Title, task, package, version, licence and citation of what an export was imported from.

    Args:
        origin: of the export's metadata.
    """
    task = f", task {origin['task']}" if "task" in origin else ""
    changed = f"; {origin['changed']}" if "changed" in origin else ""
    return (
        f"{origin['title']}{task}, {origin['package']} {origin['package_version']} "
        f"({origin['licence']}); {origin['citation']}{changed}"
    )
