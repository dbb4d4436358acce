// What is generated of steps between convolutions: see eqcalc.engine.step_kernels and
// eqcalc.engine.contraction_kernels.

#pragma once
#include "../steps.h"

namespace {
constexpr int MOST_ROWS = 1, MOST_SPHERE_ROWS = 1;
struct ContractionKernels {
  void (*forward)(const T *c, const T *x, T *y);
  void (*backward)(const T *c, const T *x, const T *g, T *dx);
};
const ContractionKernels CONTRACTIONS[] = {{}};
std::unique_ptr<Step> make_step(const Record &from, int source, int target);
}     // namespace
