// Products of small matrices, of inference and of training: tiles of R rows and N vectors of columns,
// whose sums stay in registers. Rows are given by pointers, so that they may lie anywhere.

#pragma once
#include "callee.h"
#include "simd.h"

namespace {

// rows and vectors of a tile: as many sums as leave registers for their operands
#if defined(__AVX512F__)
constexpr int GEMM_ROWS = 8, GEMM_VECTORS = 3;
#elif defined(__AVX__)
constexpr int GEMM_ROWS = 4, GEMM_VECTORS = 2;
#elif defined(__aarch64__)
constexpr int GEMM_ROWS = 6, GEMM_VECTORS = 4;
#else
constexpr int GEMM_ROWS = 3, GEMM_VECTORS = 3;
#endif

// sum[r][n] += sum_k left(k, r) right(k, n), k = 0 .. count - 1; next() goes from one k to another
template <int R, int N, class Left, class Right, class Next>
INLINED inline void accumulate(int count, V (&sum)[R][N], const Left &left, const Right &right,
                               const Next &next)
{
  for (int k = 0; k < count; k++, next()) {
    V b[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) b[n] = right(k, n);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const T a = left(k, r);
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) sum[r][n] += a * b[n];
    }
  }
}

// calls f with the number of rows, 1 .. R, as a constant
template <int R, class F> inline void with_rows(int rows, const F &f)
{
  if constexpr (R > 0) {
    if (rows == R)
      f(std::integral_constant<int, R>());
    else
      with_rows<R - 1>(rows, f);
  }
}

// calls f(first column, vectors as a constant, lanes of the last one) for columns at .. columns - 1
template <int N = GEMM_VECTORS, class F> inline void over_columns(int at, int columns, const F &f)
{
  const auto lanes = [&](int vectors) { return std::min(L, columns - at - (vectors - 1) * L); };
  for (; at + (N - 1) * L < columns; at += N * L) f(at, std::integral_constant<int, N>(), lanes(N));
  if (N > 2)
    for (; at + L < columns; at += 2 * L) f(at, std::integral_constant<int, 2>(), lanes(2));
  for (; at < columns; at += L) f(at, std::integral_constant<int, 1>(), lanes(1));
}

// y += a w in columns at .. at + N L - 1 of rows y that begin at whole vectors; SET: y = a w; w: those
// columns of a matrix, whose rows are `stride` apart
template <int R, int N, bool SET, class Left>
INLINED inline void product_tile(int inputs, const Left &left, const T *w, int stride, T *const *y,
                                 int at)
{
  V sum[R][N];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) sum[r][n] = SET ? V{} : load(y[r] + at + n * L);
  accumulate(
      inputs, sum, left, [&](int, int n) INLINED { return load(w + n * L); },
      [&]() INLINED { w += stride; });
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) store(y[r] + at + n * L, sum[r][n]);
}

// the same of rows x
template <int R, int N, bool SET = false>
inline void gemm_tile(int inputs, const T *const *x, const T *w, int stride, T *const *y, int at)
{
  product_tile<R, N, SET>(inputs, [&](int k, int r) INLINED { return x[r][k]; }, w, stride, y, at);
}

template <int R>
inline void gemm_rows(int inputs, const T *const *x, const T *w, int outputs, T *const *y)
{
  int at = 0;
  for (; at + GEMM_VECTORS * L <= outputs; at += GEMM_VECTORS * L)
    gemm_tile<R, GEMM_VECTORS>(inputs, x, w + at, outputs, y, at);
  if (GEMM_VECTORS > 2)
    for (; at + 2 * L <= outputs; at += 2 * L) gemm_tile<R, 2>(inputs, x, w + at, outputs, y, at);
  for (; at < outputs; at += L) gemm_tile<R, 1>(inputs, x, w + at, outputs, y, at);
}

template <int R>
inline void gemm_rest(int rows, int inputs, const T *const *x, const T *w, int outputs, T *const *y)
{
  if constexpr (R > 0) {
    if (rows == R)
      gemm_rows<R>(inputs, x, w, outputs, y);
    else
      gemm_rest<R - 1>(rows, inputs, x, w, outputs, y);
  }
}

// y += x w for a list of rows; w [inputs, outputs], outputs a multiple of PADDING
inline void gemm(int rows, int inputs, const T *const *x, const T *w, int outputs, T *const *y)
{
  int r = 0;
  for (; r + GEMM_ROWS <= rows; r += GEMM_ROWS)
    gemm_rows<GEMM_ROWS>(inputs, x + r, w, outputs, y + r);
  gemm_rest<GEMM_ROWS - 1>(rows - r, inputs, x + r, w, outputs, y + r);
}

}     // namespace
