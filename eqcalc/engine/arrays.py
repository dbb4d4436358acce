"""The border to C: no array crosses it unchecked."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_array(tensor: Tensor) -> np.ndarray:
    """In float64."""
    return tensor.detach().to(torch.float64).cpu().numpy()


def require_shape(array: np.ndarray | Tensor, *shape: int | None) -> None:
    """Raises ValueError where `array` is not of this shape; None stands for any length."""
    have = tuple(array.shape)
    if len(have) != len(shape) or any(b not in (None, a) for a, b in zip(have, shape, strict=True)):
        raise ValueError(f"An array of the shape {have} came where {shape} is needed.")


def converted(array: Any, dtype: type, *shape: int | None) -> np.ndarray:
    """`array` as C reads it: contiguous, of this dtype; a copy only where it is not so already.

    shape: of each axis; None takes any length.

    Raises:
        ValueError: another shape, or kind of numbers, than is needed.
    """
    if (
        type(array) is np.ndarray
        and array.dtype == dtype
        and array.flags.c_contiguous
        and array.ndim == len(shape)
        and all(n is None or n == m for n, m in zip(shape, array.shape, strict=True))
    ):
        return array
    given = np.asarray(array)
    require_shape(given, *shape)
    if not np.can_cast(given.dtype, dtype, "same_kind"):
        raise ValueError(f"An array of {given.dtype} came where {np.dtype(dtype)} is needed.")
    return np.ascontiguousarray(given, dtype=dtype)


def address(array: np.ndarray) -> ctypes.c_void_p:
    """Of an array that `converted` or numpy has made."""
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


def tensor_address(tensor: Tensor, scalar: torch.dtype) -> ctypes.c_void_p:
    """Of a contiguous tensor on the CPU, of int64 or of the library's scalar.

    Raises:
        ValueError: it is none.
    """
    if not (tensor.is_cpu and tensor.is_contiguous()):
        raise ValueError(
            f"A tensor on {tensor.device} with strides {tensor.stride()} came where a contiguous "
            "one on the CPU is needed."
        )
    dtype = tensor.dtype
    if dtype is not scalar and dtype is not torch.int64:
        raise ValueError(f"A tensor of {dtype} came where {scalar} or int64 is needed.")
    return ctypes.c_void_p(tensor.data_ptr())
