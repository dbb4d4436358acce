"""Frames on disk, prepared once: graphs and labels of sets that do not fit into memory.

A store is a folder (NAME.eqdata) of plain .npy columns, opened as memory maps, and header.json:

| column         | shape     | meaning                                             |
|----------------|-----------|-----------------------------------------------------|
| `first_atom`   | [F + 1]   | where the atoms of each frame begin, and the end    |
| `first_edge`   | [F + 1]   | the same for edges                                  |
| `energy`       | [F]       | eV                                                  |
| `stress`       | [F, 3, 3] | eV/Å^3, NaN where there is none                     |
| `volume`       | [F]       | Å^3 that the stress refers to, 0 where none can be   |
| `group`        | [F]       | index in the header's `config_types`                |
| `origin`       | [F, 2]    | index in the header's `files`, number in that file  |
| `periodic`     | [F]       | in any direction                                    |
| `numbers`      | [N]       | Z                                                   |
| `forces`       | [N, 3]    | eV/Å, NaN where there are none                      |
| `edge_src`, `edge_dst`, `pair` | [E] | as in eqcalc.graph, counted within the frame |
| `edge_vec`     | [E, 3]    | Å                                                   |
| `output_NAME`  | [N or F, columns] | labels of one of the header's `outputs`, or NaN |
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Unpack

from eqcalc.data.check_magnitude import StressRow, frame_row, magnitude
from eqcalc.data.columns import ColumnWriter
from eqcalc.data.dataset import Batch, frame_to_batch
from eqcalc.data.frames import Frame, FrameHash, iter_frames
from eqcalc.data.labels import DEFAULT_KEYS, LabelKeys, key_of, output_key, without_output
from eqcalc.errors import InputError
from eqcalc.files import replacing, user_path
from eqcalc.outputs import OutputConfig

FORMAT = "eqcalc data store"
VERSION = 1

#: frames whose stresses are judged together
MOST_ROWS = 20_000

#: name -> (type, shape of one row); the length follows from the header
COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "first_atom": ("<i8", ()),
    "first_edge": ("<i8", ()),
    "energy": ("<f8", ()),
    "weight": ("<f8", ()),
    "stress": ("<f8", (3, 3)),
    "volume": ("<f8", ()),
    "group": ("<i4", ()),
    "origin": ("<i4", (2,)),
    "periodic": ("|b1", ()),
    "numbers": ("|u1", ()),
    "forces": ("<f8", (3,)),
    "edge_src": ("<i4", ()),
    "edge_dst": ("<i4", ()),
    "pair": ("<i4", ()),
    "edge_vec": ("<f8", (3,)),
}


def packed_outputs(header: dict[str, Any]) -> list[OutputConfig]:
    """Outputs beside the energy that a store has labels of; their keys are those that were read."""
    return [OutputConfig(**document) for document in header.get("outputs", ())]


def columns_of(outputs: Sequence[OutputConfig]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """All columns of a store with these outputs, as COLUMNS."""
    return COLUMNS | {f"output_{output.name}": ("<f8", (output.dim,)) for output in outputs}


def lengths(header: dict[str, Any]) -> dict[str, int]:
    """Rows of each column."""
    frames, atoms, edges = (header[name] for name in ("frames", "atoms", "edges"))
    rows = dict.fromkeys(COLUMNS, frames)
    for output in packed_outputs(header):
        rows[f"output_{output.name}"] = atoms if output.per == "atom" else frames
    rows |= dict.fromkeys(("first_atom", "first_edge"), frames + 1)
    rows |= dict.fromkeys(("numbers", "forces"), atoms)
    return rows | dict.fromkeys(("edge_src", "edge_dst", "pair", "edge_vec"), edges)


def is_store(path: str | os.PathLike) -> bool:
    """Whether a path names a store (a folder), rather than a file of frames."""
    return user_path(path).is_dir() or user_path(path).suffix == ".eqdata"


def pack(
    paths: Iterable[str | os.PathLike] | str | os.PathLike,
    output: str | os.PathLike,
    cutoff: float,
    **keys: Unpack[LabelKeys],
) -> dict[str, Any]:
    """Reads frames one at a time and writes a store; returns its header.

    The folder is written aside and renamed; a store of that name is replaced, anything else is not.

    Args:
        paths: files that ASE reads.
        output: NAME.eqdata.
        cutoff: Å, of the model to be trained.
        keys: see LabelKeys.

    Raises:
        InputError: as for `read_frames`; a bad name or cutoff; stresses that cannot be in eV/Å^3;
            no room on the disk.
    """
    output = user_path(output)
    if output.suffix != ".eqdata":
        raise InputError(f"The store '{output}' must be called NAME.eqdata.")
    if not cutoff > 0.0:
        raise InputError(f"The cutoff is {cutoff} Å: it must be positive.")
    if output.exists() and not (output / "header.json").is_file():
        raise InputError(f"'{output}' is there and is no store: remove it or choose another name.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with replacing(output) as partial:
            partial.mkdir()
            return _write(iter_frames(paths, **keys), partial, cutoff, keys)
    except OSError as error:
        raise InputError(f"The store '{output}' cannot be written: {error}.") from error


def _write(frames: Iterator[Frame], folder: Path, cutoff: float, keys: LabelKeys) -> dict[str, Any]:
    outputs = [replace(out, key=output_key(out, keys)) for out in keys.get("outputs", ())]
    labelled: set[str] = set()  # names of outputs
    columns = {
        name: ColumnWriter(folder / f"{name}.npy", dtype, shape)
        for name, (dtype, shape) in columns_of(outputs).items()
    }
    digest = FrameHash()
    rows: list[StressRow | None] = []
    stride = 1
    groups: dict[str, int] = {}
    files: dict[str, int] = {}
    elements: set[int] = set()
    count = atoms = edges = 0
    every_element = range(1, 119)
    try:
        for name in ("first_atom", "first_edge"):
            columns[name].append([0])
        for frame in frames:
            item = frame_to_batch(frame, every_element, cutoff, count, outputs)
            graph = item.graph
            file, _, number = frame.source.rpartition(", frame ")
            if count % stride == 0:
                rows.append(frame_row(frame))
                if len(rows) > MOST_ROWS:  # every second one is enough from now on
                    rows, stride = rows[::2], 2 * stride
            count, atoms, edges = count + 1, atoms + graph.num_atoms, edges + graph.num_edges
            values = {
                "first_atom": [atoms],
                "first_edge": [edges],
                "group": [groups.setdefault(frame.config_type, len(groups))],
                "origin": [[files.setdefault(file, len(files)), int(number)]],
                "periodic": [bool(frame.atoms.pbc.any())],
                "numbers": frame.atoms.numbers,
                **_labels_and_graph(item),
            }
            labelled.update(frame.outputs)
            for name, column in columns.items():
                column.append(values[name])
            elements.update(frame.atoms.numbers.tolist())
            digest.add(frame)
    finally:
        for column in columns.values():
            column.close()
    for sentence in (
        *(without_output((), output, keys) for output in outputs if output.name not in labelled),
        *(finding.sentence for finding in magnitude(rows)),
    ):
        raise InputError(sentence)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "cutoff": float(cutoff),
        "pulay_pressure": float(keys.get("pulay_pressure", 0.0)),
        "labels": {label: key_of(label, keys) for label in DEFAULT_KEYS},
        "frames": count,
        "atoms": atoms,
        "edges": edges,
        "elements": sorted(elements),
        "config_types": list(groups),
        "files": list(files),
        "hash": digest.hexdigest(),
    }
    if outputs:
        header["outputs"] = [asdict(output) for output in outputs]
    if keys.get("without_energy"):
        header["without_energy"] = True
    text = json.dumps(header, indent=1, ensure_ascii=False)
    (folder / "header.json").write_text(text + "\n", encoding="utf-8")
    return header


def _labels_and_graph(item: Batch) -> dict[str, Any]:
    """Columns of one frame, by name."""
    graph = item.graph
    outputs = (item.atom_outputs | item.structure_outputs).items()
    return {
        "energy": item.energy,
        "weight": item.weight,
        "stress": item.stress,
        "volume": graph.volume,
        "forces": item.forces,
        "edge_src": graph.edge_src,
        "edge_dst": graph.edge_dst,
        "pair": graph.pair,
        "edge_vec": graph.edge_vec,
        **{f"output_{name}": rows for name, rows in outputs},
    }


def read_header(path: str | os.PathLike) -> dict[str, Any]:
    """The header of a store.

    Raises:
        InputError: there is no store, or one of another version.
    """
    path = user_path(path)
    try:
        header = json.loads((path / "header.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"'{path}' is no data store: make one with 'eqcalc data pack FRAMES -o {path.name}'."
        ) from None
    except ValueError as error:
        raise InputError(f"The header of the store '{path}' is broken: pack it again.") from error
    if header.get("format") != FORMAT or header.get("version") != VERSION:
        raise InputError(
            f"The store '{path}' has version {header.get('version')}, this eqcalc reads version "
            f"{VERSION}: pack it again."
        )
    return header
