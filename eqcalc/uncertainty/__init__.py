r"""How far one model can be trusted, atom by atom, from what its last linear map reads.

The energy of an atom i of species s is linear in the weights w of the network's last maps (of all
readouts, where there are several): E_i = f_i . w + E0_s. Its features are

    f_i = dE_i / dw   [H], eV, invariant                              `features`

From those of the training's atoms come two quadratic forms of each species (`fit`), both written as
|(f - centre) factor|^2 + constant:

- `energy`, eV^2: the variance of E_i, a^2 g_i^T (M + r)^-1 g_i with g_i = (f_i, 1), M the second
  moments of the training's features, r a regularisation and a^2 what makes errors of energies of
  validation frames as large as predicted (last-layer prediction rigidity: Bigi, Chong, Ceriotti and
  Grasselli, Mach. Learn.: Sci. Technol. 5, 045018 (2024), eqs. 18 to 24).
- `grade`: the square of the extrapolation grade, which is 1 on the smallest ellipsoid around the
  training's features. This is D-optimality: the atoms on its surface are the design of largest
  determinant (Kiefer and Wolfowitz, Canad. J. Math. 12, 363 (1960)), as the active set of
  Podryabinkin and Shapeev, Comput. Mater. Sci. 140, 171 (2017), is with weights of zero and one.

A potential file carries them as the extra file `uncertainty.bin`, all numbers little-endian:

    int64    version (1), H, K (species that were among the training's atoms)
    int64    [K] their numbers in the model
    float64  for each of the K: energy centre [H], factor [H, H], constant; grade likewise

A factor's rows are features, its columns are summed over: value = sum_c (sum_h (f - centre)_h
factor[h, c])^2 + constant. Features are in the order of the program's readouts, channels of each
in the file's own order, and atoms of other species have infinite values. Metadata have a section
`uncertainty` on how they were made, for people. Files without it are as before.
"""

from eqcalc.uncertainty.coverage import Coverage
from eqcalc.uncertainty.features import (
    evaluate_with_features,
    features,
    file_weights,
    last_weights,
    module_features,
)
from eqcalc.uncertainty.fit import Calibration, FrameFeatures, fit
from eqcalc.uncertainty.forms import (
    MISSING,
    UNCERTAINTY_FILE,
    UNCERTAINTY_VERSION,
    Atomic,
    QuadraticForm,
    Uncertainty,
    read,
    write,
)

__all__ = [
    "MISSING",
    "UNCERTAINTY_FILE",
    "UNCERTAINTY_VERSION",
    "Atomic",
    "Calibration",
    "Coverage",
    "FrameFeatures",
    "QuadraticForm",
    "Uncertainty",
    "evaluate_with_features",
    "features",
    "file_weights",
    "fit",
    "last_weights",
    "module_features",
    "read",
    "write",
]
