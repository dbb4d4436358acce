"""One name, one meaning: no two public classes of the package share theirs."""

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "eqcalc"

#: a module of eqcalc.nn computes the operation of the same name in eqcalc.program
PAIRED = {"nn", "program"}


def defined() -> dict[str, set[str]]:
    """Modules by the names of their public classes."""
    places = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        module = path.relative_to(PACKAGE).with_suffix("").as_posix()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].add(module)
    return places


def test_classes_do_not_share_names():
    found = defined()
    assert len(found) > 200
    for name, modules in found.items():
        parts = [module.partition("/")[0] for module in sorted(modules)]
        fine = len(modules) == 1 or parts == sorted(PAIRED)
        assert fine, f"{name}: {sorted(modules)}"
