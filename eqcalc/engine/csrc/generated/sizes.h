// What generated sources say of a network before edges.h, with l_max 1 for an example: see
// eqcalc.engine.kernels.

#pragma once
#include "../simd.h"

namespace {
constexpr int NUM_Y = 3, DEGREE = 3;
constexpr int EDGES = L > 32 ? L : 32;     // worked on at once, whole vectors
constexpr I DESCRIPTION_VERSION = 0;
constexpr bool COUNTS = true;     // of neighbours, which messages are divided by
void harmonics(const T *u, T *y);
void harmonics_gradient(const T *u, const T *y, const T *dy, T *du);
}     // namespace
