// What is generated of operations on edges: see eqcalc.engine.message_kernels.

#pragma once
#include "../radial_table.h"

namespace {
constexpr int FRAME_DEGREE = 0, FRAME_ORDER = 0, MOST_EDGE_ROWS = 7, TILE = 16;
constexpr int WIDE = 256;
constexpr bool WIDE_MAPS = true;
void torque(std::integral_constant<int, 1>, const V *w, const V *x, V *t);
struct ProductKernels {
  void (*forward)(const Radial::Cursor &, const T *y, const T *x, T *out);
  void (*backward)(const Radial::Cursor &, const T *y, const T *x, const T *g, T *dx, V *owed);
};
const ProductKernels PRODUCTS[] = {{}};
}     // namespace
