// Frames of edges (eqcalc.nn.frames): Wigner matrices D^l of the rotation that takes an edge's
// direction to the polar axis, for as many edges at once as a vector has lanes; features turned by
// them, and torques.
//
// Generated: FRAME_DEGREE, FRAME_ORDER (highest l and |m|), torque() of each degree.

#pragma once
#include "generated/messages.h"

namespace {

template <int N> using Constant = std::integral_constant<int, N>;

template <int DEGREE, int ORDER, class F> inline void with_order(int order, const F &f)
{
  if constexpr (ORDER >= 0) {
    if (order == ORDER)
      f(Constant<2 * ORDER + 1>(), Constant<2 * DEGREE + 1>());
    else
      with_order<DEGREE, ORDER - 1>(order, f);
  }
}

// calls f(rows, columns), constants, of a matrix of that degree whose rows have |m| <= order
template <int DEGREE, class F> inline void with_frame(int degree, int order, const F &f)
{
  if constexpr (DEGREE >= 0) {
    if (degree == DEGREE)
      with_order<DEGREE, (DEGREE < FRAME_ORDER ? DEGREE : FRAME_ORDER)>(order, f);
    else
      with_frame<DEGREE - 1>(degree, order, f);
  }
}

// y = D x; elements of D are L numbers apart
template <int ROWS, int COLUMNS> inline void turn(const T *d, const V *x, V *y)
{
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++) {
    V sum = d[r * COLUMNS * L] * x[0];
#pragma GCC unroll 16
    for (int c = 1; c < COLUMNS; c++) sum += d[(r * COLUMNS + c) * L] * x[c];
    y[r] = sum;
  }
}

// x += D^T y
template <int ROWS, int COLUMNS> inline void turn_back(const T *d, const V *y, V *x)
{
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
    for (int c = 0; c < COLUMNS; c++) x[c] += d[(r * COLUMNS + c) * L] * y[r];
}

class Frames {
 public:
  void read(const Record &from)
  {
    const Array matrix = from.array("matrix"), signs = from.array("signs");
    elements_ = matrix.length(1);
    for (I n = 0; n < elements_; n++) {
      first_term_.push_back(static_cast<int>(function_.size()));
      turned_.push_back(signs[n] < 0.0);
      for (I k = 0; k < matrix.length(0); k++) {
        if (matrix[k * elements_ + n] == 0.0) continue;
        function_.push_back(static_cast<int>(k));
        coefficient_.push_back(static_cast<T>(matrix[k * elements_ + n]));
      }
    }
    first_term_.push_back(static_cast<int>(function_.size()));
    I at = 0;
    for (int l = 0; l <= FRAME_DEGREE; l++) {
      first_[l] = at;
      at += (2 * std::min(l, FRAME_ORDER) + 1) * (2 * l + 1);
    }
  }

  bool none() const { return elements_ == 0; }
  I elements() const { return elements_; }
  I first(int degree) const { return first_[degree]; }

  // of directions u [3][L]: d [elements][L]
  void of(const T *u, T *d) const
  {
    const V up = load(u + L), flip = up < 0 ? all(T(-1)) : all(T(1));
    const V a = load(u), p = up * flip, b = load(u + 2 * L) * flip;
    V f[2 * (FRAME_DEGREE + 2) * (FRAME_DEGREE + 2)], legendre[FRAME_DEGREE + 2];
    legendre[0] = all(T(1));
    legendre[1] = p;
    for (int i = 2; i <= FRAME_DEGREE; i++)
      legendre[i] = (T(2 * i - 1) * p * legendre[i - 1] - T(i - 1) * legendre[i - 2]) / T(i);
    const V c = T(1) / (T(1) + p), zeta_re = (a * a - b * b) * c, zeta_im = T(2) * a * b * c;
    V re = all(T(1)), im = {};
    int n = 0;
    for (int half = 0; half <= FRAME_DEGREE; half++) {
      for (int i = 0; i <= FRAME_DEGREE - half; i++) {
        f[n++] = re * legendre[i];
        if (half > 0) f[n++] = im * legendre[i];
      }
      const V odd_re = a * re - b * im, odd_im = a * im + b * re;
      for (int i = 0; i < FRAME_DEGREE - half; i++) {
        f[n++] = odd_re * legendre[i];
        f[n++] = odd_im * legendre[i];
      }
      const V next = zeta_re * re - zeta_im * im;
      im = zeta_re * im + zeta_im * re;
      re = next;
    }
    for (I k = 0; k < elements_; k++) {
      V sum = {};
      for (int t = first_term_[k]; t < first_term_[k + 1]; t++)
        sum += coefficient_[t] * f[function_[t]];
      store(d + k * L, turned_[k] ? sum * flip : sum);
    }
  }

 private:
  I elements_ = 0;
  I first_[FRAME_DEGREE + 2] = {};
  std::vector<int> first_term_, function_;
  std::vector<char> turned_;
  std::vector<T> coefficient_;
};

}     // namespace
