r"""Sums of products as data: the gradient of a list of them, and how it moves with their values.

A list of sums y = sum_t c_t prod_k f_tk makes values of values, each of them once. With g_y for the
gradient of an energy with respect to y, each of them owes its factors

    g_f += c (prod of the other factors) g_y,

so that a list read from its end to its beginning gives the list of its gradients (`transpose`).
Where values move, y moves by

    y' = sum_t c_t sum_k f'_tk (prod of the other factors)

(`move`). A loss on forces needs no more: it is a function of gradients, and its own gradient,
that of <u, g>, is what g and y move by when the values move along u.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

Term = tuple[float, tuple[str, ...]]


@dataclass(frozen=True)
class Sum:
    """value = sum of c times the product of factors, for (c, factors) in terms."""

    value: str
    terms: tuple[Term, ...]


def gradient(name: str) -> str:
    """Of an energy with respect to a value."""
    return f"d{name}"


def moved(name: str) -> str:
    """What a value moves by."""
    return f"t{name}"


def _others(factors: Sequence[str], k: int) -> tuple[str, ...]:
    return (*factors[:k], *factors[k + 1 :])


def transpose(sums: Sequence[Sum]) -> list[Sum]:
    """The gradients of all that the sums read, from the gradients of what nobody reads."""
    owed: dict[str, list[Term]] = {}
    found = []
    for made in reversed(sums):
        if made.value in owed:  # by all that read it
            found.append(Sum(gradient(made.value), tuple(owed.pop(made.value))))
        here: dict[str, list[Term]] = {}
        for c, factors in made.terms:
            for k, name in enumerate(factors):
                term = c, (gradient(made.value), *_others(factors, k))
                here.setdefault(name, []).append(term)
        for name, terms in here.items():
            owed[name] = terms + owed.get(name, [])
    return found + [Sum(gradient(name), tuple(terms)) for name, terms in owed.items()]


def move(sums: Sequence[Sum], names: Collection[str]) -> list[Sum]:
    """What the values of the sums move by as those of `names` do."""
    moving, found = set(names), []
    for made in sums:
        terms = tuple(
            (c, (moved(name), *_others(factors, k)))
            for c, factors in made.terms
            for k, name in enumerate(factors)
            if name in moving
        )
        if terms:
            found.append(Sum(moved(made.value), terms))
            moving.add(made.value)
    return found


def needed(sums: Sequence[Sum], wanted: Collection[str]) -> list[Sum]:
    """The sums that lead to the wanted values."""
    names, found = set(wanted), []
    for made in reversed(sums):
        if made.value in names:
            names.update(name for _, factors in made.terms for name in factors)
            found.append(made)
    return found[::-1]


def inputs(sums: Sequence[Sum]) -> list[str]:
    """What is read and made by none of the sums, in the order in which it is first read."""
    made = {each.value for each in sums}
    read = (name for each in sums for _, factors in each.terms for name in factors)
    return [name for name in dict.fromkeys(read) if name not in made]
