"""The network of a potential file as data, for people and for engines."""

from __future__ import annotations

import os

from eqcalc.errors import InputError
from eqcalc.export import program_document, read_metadata
from eqcalc.files import user_path
from eqcalc.models.registry import model_config
from eqcalc.program import Program


def read_program(path: str | os.PathLike) -> Program:
    """The network of a file as data; of files that do not carry it, what their options make.

    Raises:
        InputError: it is an older file that does not say its options.
    """
    path = user_path(path)
    metadata = read_metadata(path)
    document = program_document(path)
    if document is not None:
        return Program.from_document(document)
    hyper = dict(metadata.get("hyperparameters", {}))
    if "avg_num_neighbors" not in hyper:
        raise InputError(f"{path} does not say what network it is: export it again.")
    del hyper["avg_num_neighbors"]
    return model_config(hyper).program()
