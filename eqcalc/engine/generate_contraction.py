r"""C++ for products of features with themselves up to a degree, with first and second derivatives.

Polynomials y_o = sum_t c_t x_i x_j .. of an atom's rows, channel by channel, with coefficients of
its species (see eqcalc.nn.contraction). The kernels are

    forward   y
    backward  dx = (dy/dx)^T g
    weights   dc = (dy/dc)^T g
    second    the gradient of <u, dx> with respect to g, x and c

which is all that a loss on forces needs; y and dx are linear in c, so that what <u, dc> owes to g
and x is `forward` and `backward` with u in the place of c.
"""

from __future__ import annotations

import numpy as np

from eqcalc.engine.contraction import contraction, terms_of
from eqcalc.engine.contraction_kernels import MOST_TERMS, Polynomial
from eqcalc.nn.contraction import Contraction

#: coefficients of a term are filled up with zeros to whole cache lines
PADDED = 16


def padded_channels(module: Contraction) -> int:
    return -(-module.num_channels // PADDED) * PADDED


def ordered_terms(module: Contraction) -> tuple[Polynomial, np.ndarray]:
    """Its terms, and the matrix [paths, terms] that makes their coefficients of weights."""
    terms, matrix = terms_of(module)
    channels = module.num_channels
    step = contraction(
        "x",
        "y",
        channels=channels,
        rows_in=[row * channels for row in range(module.num_rows)],
        rows_out=[row * channels for row in range(module.irreps_out.dim // channels)],
        terms=terms,
        coefficients=np.arange(len(terms))[None, None],
    )
    polynomial = Polynomial(step, str(padded_channels(module)), "get", "put")
    return polynomial, matrix[:, step.coefficients[0, 0]]


def is_moderate(module: Contraction) -> bool:
    """Whether its kernels compile in seconds."""
    return len(terms_of(module)[0]) <= MOST_TERMS


_KERNEL = """
extern "C" int contraction_{name}_{tag}(I atoms, const I *species, {arguments})
{{
  return guarded([&] {{ in_parallel({vectors}, most_threads(), [=](I k) {{
  [[maybe_unused]] const int lanes = static_cast<int>(std::min<I>(L, {channels} - k * L));
  [[maybe_unused]] const auto get = [lanes](const T *p) {{ return read_lanes(p, lanes); }};
  [[maybe_unused]] const auto put = [lanes](T *p, V v) {{ write_lanes(p, v, lanes); }};
  for (I n = 0; n < atoms; ++n) {{
  {rows}
  {lines}
  }}
  }}); }});
}}
"""

SHARED = """
namespace {
typedef T Lanes __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(T)), may_alias));
inline V read_lanes(const T *p, int lanes)
{
  if (lanes == L) return *reinterpret_cast<const Lanes *>(p);
  V v = {};
  std::memcpy(&v, p, lanes * sizeof(T));
  return v;
}
inline void write_lanes(T *p, V v, int lanes)
{
  if (lanes == L)
    *reinterpret_cast<Lanes *>(p) = v;
  else
    std::memcpy(p, &v, lanes * sizeof(T));
}
}
"""


def contraction_source(module: Contraction, tag: str) -> str:
    """The four kernels: `contraction_forward_tag`, ..."""
    polynomial, matrix = ordered_terms(module)
    padded, channels = padded_channels(module), module.num_channels
    table = f"species[n] * {matrix.shape[1] * padded}"
    x, y = f"n * {module.irreps_in.dim}", f"n * {module.irreps_out.dim}"
    places = {"x": x, "t": x, "dx": x, "y": y, "g": y, "dg": y, "c": table, "dc": table}
    parts = []
    for name, lines, read, written in (
        ("forward", polynomial.forward(), ("x", "c"), ("y",)),
        ("backward", polynomial.backward(add=False), ("x", "c", "g"), ("dx",)),
        ("weights", polynomial.weights(), ("x", "g"), ("dc",)),
        ("second", polynomial.second(), ("x", "c", "g", "t"), ("dg", "dx", "dc")),
    ):
        kinds = {**dict.fromkeys(read, "const T *"), **dict.fromkeys(written, "T *")}
        arguments = [f"{kind}all_{array}" for array, kind in kinds.items()]
        rows = [
            f"{kind}__restrict {array} = all_{array} + {places[array]} + k * L;"
            for array, kind in kinds.items()
        ]
        parts.append(
            _KERNEL.format(
                name=name,
                tag=tag,
                arguments=", ".join(arguments),
                vectors=f"({channels} + L - 1) / L",
                channels=channels,
                rows="\n  ".join(rows),
                lines="\n  ".join(lines),
            )
        )
    return "".join(parts)
