"""Columns of a store: .npy files that grow while they are written, and are mapped to be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import ArrayLike

from eqcalc.errors import InputError


class ColumnWriter:
    """A .npy file of rows whose number is not known before the end.

    numpy's header has room for a longer length, so that it can be written again.

    Args:
        path: file to write.
        dtype: of the rows.
        shape: of one row.
    """

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...]) -> None:
        self.dtype, self.shape, self.rows = np.dtype(dtype), shape, 0
        self._file = path.open("wb")
        self._write_header()
        self._start = self._file.tell()

    def _write_header(self) -> None:
        shape = (self.rows, *self.shape)
        descr = npy.dtype_to_descr(self.dtype)
        document = {"descr": descr, "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(self._file, document)

    def append(self, values: ArrayLike) -> None:
        """Rows [n, *shape]; a value that the type cannot hold is our own bug."""
        values = np.asarray(values)
        rows = np.ascontiguousarray(values, dtype=self.dtype)
        assert rows.shape[1:] == self.shape, rows.shape
        assert self.dtype.kind == "f" or np.array_equal(rows, values)
        self._file.write(rows.tobytes())
        self.rows += len(rows)

    def close(self) -> None:
        """Writes the final length."""
        self._file.seek(0)
        self._write_header()
        assert self._file.tell() == self._start
        self._file.close()


def open_column(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """A read-only memory map; InputError if the file is not what the store's header says."""
    if shape[0] == 0:  # there is nothing to map
        return np.empty(shape, dtype)
    try:
        column = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        column = None
    if column is None or column.shape != shape or column.dtype != np.dtype(dtype):
        raise InputError(
            f"The store '{path.parent}' is incomplete: {path.name} is missing, truncated or not "
            "what the header says; pack the frames again."
        )
    return column
