"""C++ of spherical harmonics, for vectors of edges."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np

from eqcalc.engine.plan import Plan
from eqcalc.engine.terms import number, total


def harmonics_source(plan: Plan, function: str = "inline void") -> str:
    """Y_{l+1} = coupling of Y_1 and Y_l, and the same backwards (see eqcalc.nn.angular).

    function: how a function's declaration begins.
    """
    if plan.l_max == 0:
        return (
            f"{function} harmonics(const T *, T *) {{}}\n"
            f"{function} harmonics_gradient(const T *, const T *, const T *, T *du)\n"
            "{ for (int d = 0; d < 3; d++) store(du + d * L, V{}); }\n"
        )
    root = number(math.sqrt(3.0))
    up = [f"const V y{m} = {root} * load(u + {m - 1} * L);" for m in range(1, 4)]
    down: list[str] = []
    for l, coupling in enumerate(plan.harmonics, start=1):  # noqa: E741
        low, high = l * l, (l + 1) ** 2
        back = defaultdict(list)
        for m in range(coupling.shape[2]):
            terms = []
            for k, n in np.argwhere(np.abs(coupling[:, :, m]) > 1e-12):
                c = number(float(coupling[k, n, m]))
                terms.append(f"{c} * y{k + 1} * y{low + n}")
                back[low + n].append(f"{c} * y{k + 1} * d{high + m}")
                back[int(k) + 1].append(f"{c} * y{low + n} * d{high + m}")
            up.append(f"const V y{high + m} = {total(terms)};")
        # the highest degree first
        down = [f"d{m} += {total(terms)};" for m, terms in back.items()] + down
    count = (plan.l_max + 1) ** 2 - 1
    keep = [f"store(y + {m - 1} * L, y{m});" for m in range(1, count + 1)]
    # all but the highest degree serve the way back
    read = [
        f"[[maybe_unused]] const V y{m} = load(y + {m - 1} * L);"
        for m in range(1, plan.l_max**2 if plan.l_max > 1 else 4)
    ]
    read += [f"V d{m} = load(dy + {m - 1} * L);" for m in range(1, count + 1)]
    out = [f"store(du + {m - 1} * L, {root} * d{m});" for m in range(1, 4)]
    return (
        f"{function} harmonics(const T *u, T *y)\n{{\n  "
        + "\n  ".join([*up, *keep])
        + f"\n}}\n{function} harmonics_gradient([[maybe_unused]] const T *u, const T *y, "
        "const T *dy, T *du)\n{\n  " + "\n  ".join([*read, *down, *out]) + "\n}\n"
    )
