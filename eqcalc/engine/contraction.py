"""Polynomials of an atom's rows, put in the order in which csrc/contraction.h works them out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from eqcalc.engine.arrays import as_array
from eqcalc.engine.plan import ContractionStep

Terms = list[tuple[int, tuple[int, ...]]]


def terms_of(module: Any) -> tuple[Terms, np.ndarray]:
    """Of a `Contraction` (eqcalc.nn.contraction): terms as `contraction` takes them, and the matrix
    [paths, terms] that makes their coefficients of weights.
    """
    buffers = dict(module.named_buffers())
    degrees = range(1, 2 + sum(name.startswith("before_") for name in buffers))
    rows = range(int(module.num_rows))
    monomials = [m for n in degrees for m in combinations_with_replacement(rows, n)]
    terms: Terms = []
    parts: list[np.ndarray] = []
    paths = sum(count for _, _, count in module._blocks)
    out = 0
    for k, (dim, first, count) in enumerate(module._blocks):
        coupling = as_array(buffers[f"coupling_{k}"]) / math.sqrt(count)
        used = buffers[f"used_{k}"].tolist()
        for m in range(dim):
            here = np.flatnonzero(np.abs(coupling[:, m]).max(axis=0) > 1e-12)
            terms += [(out + m, monomials[used[n]]) for n in here]
            part = np.zeros((paths, len(here)))
            part[first : first + count] = coupling[:, m, here]
            parts.append(part)
        out += dim
    return terms, np.concatenate(parts, axis=1)


def contraction(
    source: str,
    target: str,
    *,
    channels: int,
    rows_in: Sequence[int],
    rows_out: Sequence[int],
    terms: Sequence[tuple[int, tuple[int, ...]]],
    coefficients: np.ndarray,
) -> ContractionStep:
    """y_o = sum_t coefficients_t x_i x_j ..., channel by channel.

    Args:
        source, target: names of the rows of x and y.
        channels: padded, the same for all.
        rows_in, rows_out: first columns of each x and y in the source and the target.
        terms: of each, the number of its y, and in any order those of one to four x.
        coefficients: [species or 1, channels or 1, terms].
    """
    pairs: dict[tuple[int, int], int] = {}

    def product(*of: int) -> int:
        """Number of a factor: of an x, of the product of two."""
        if len(of) == 1:
            return of[0]
        return len(rows_in) + pairs.setdefault((of[0], of[1]), len(pairs))

    factors: list[tuple[int, int, int | None]] = []
    for out, rows in terms:
        *low, last = sorted(rows)
        if len(low) == 3:
            factors.append((out, product(low[2], last), product(*low[:2])))
        else:
            factors.append((out, last, product(*low) if low else None))
    one = len(rows_in) + len(pairs)
    keys = [(out, left, one if right is None else right) for out, left, right in factors]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    out, left, right = np.array([keys[t] for t in order]).reshape(-1, 3).T
    first, second = np.array(list(pairs)).reshape(-1, 2).T
    return ContractionStep(
        source, target, channels, np.array(rows_in), np.array(rows_out), first, second, out, left,
        right, coefficients[:, :, order],
    )  # fmt: skip
