// Generated kernels of convolutions: see eqcalc.engine.kernels.

#pragma once
#include "../radial_table.h"

namespace {
struct Kernels {
  void (*forward)(const Radial &, const Centre &, const int *, const T *, T *);
  T (*backward)(const Radial &, const Centre &, const int *, const T *, const T *, T *,
                const EdgeGradient &);
};
const Kernels KERNELS[] = {{}};
}     // namespace
