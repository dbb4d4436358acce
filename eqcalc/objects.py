"""Objects of users' own modules, by name."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from eqcalc.errors import InputError


def named(name: str, what: str) -> Any:
    """What MODULE:NAME names, the module found as `python` would find it in the current folder.

    Args:
        name: with its module.
        what: for the sentence, such as "The teacher".

    Raises:
        InputError: it cannot be imported.
    """
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{what} {name} cannot be imported: {error}.") from None
    finally:
        sys.path.remove(here)
