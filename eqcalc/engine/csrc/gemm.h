// Products of small matrices, of inference and of training: tiles of R rows and N vectors of columns,
// whose sums stay in registers. Rows are given by pointers, so that they may lie anywhere.

#pragma once
#include "callee.h"
#include "simd.h"

namespace {

// rows and vectors of a tile: as many sums as leave registers for their operands; of tall tiles, for
// rows that are packed (packed.h), whose number is even
#if defined(__AVX512F__)
constexpr int GEMM_ROWS = 8, GEMM_VECTORS = 3, TALL_ROWS = 14, TALL_VECTORS = 2;
#elif defined(__AVX__)
constexpr int GEMM_ROWS = 4, GEMM_VECTORS = 2, TALL_ROWS = 6, TALL_VECTORS = 2;
#elif defined(__aarch64__)
constexpr int GEMM_ROWS = 6, GEMM_VECTORS = 4, TALL_ROWS = 6, TALL_VECTORS = 1;     // none are tall
#else
constexpr int GEMM_ROWS = 3, GEMM_VECTORS = 3, TALL_ROWS = 2, TALL_VECTORS = 1;     // none are tall
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

// calls f with the number of rows, R, R - STEP, .. STEP, as a constant
template <int R, int STEP = 1, class F> INLINED inline void with_rows(int rows, const F &f)
{
  if constexpr (R > 0) {
    if (rows == R)
      f(std::integral_constant<int, R>());
    else
      with_rows<R - STEP, STEP>(rows, f);
  }
}

// calls f(first row, rows as a constant) for groups of rows 0 .. rows - 1
template <class F> INLINED inline void over_rows(int rows, const F &f)
{
  for (int r = 0; r < rows; r += GEMM_ROWS)
    with_rows<GEMM_ROWS>(std::min(GEMM_ROWS, rows - r), [&](auto count) INLINED { f(r, count); });
}

// calls f(first column, vectors as a constant, lanes of the last one) for columns at .. columns - 1
template <int N = GEMM_VECTORS, class F>
INLINED inline void over_columns(int at, int columns, const F &f)
{
  const auto lanes = [&](int vectors) INLINED {
    return std::min(L, columns - at - (vectors - 1) * L);
  };
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

// y += x w for a list of rows; w [inputs, outputs], outputs a multiple of PADDING
inline void gemm(int rows, int inputs, const T *const *x, const T *w, int outputs, T *const *y)
{
  over_rows(rows, [&](int r, auto count) INLINED {
    constexpr int R = count;
    over_columns(0, outputs, [&](int at, auto vectors, int) INLINED {
      gemm_tile<R, vectors>(inputs, x + r, w + at, outputs, y + r, at);
    });
  });
}

}     // namespace
