// Products with matrices that are read again and again: panels of columns lie one after the other, so
// that a panel stays in the cache while all rows of a tile go through it.

namespace {

class PackedMatrix {
 public:
  // w [inputs, outputs], outputs a multiple of PADDING
  PackedMatrix(I inputs, I outputs, const T *w) :
      inputs_(static_cast<int>(inputs)), outputs_(static_cast<int>(outputs))
  {
    T *to = panels_.get(inputs * outputs);
    over_panels([&](int at, auto vectors) {
      for (I k = 0; k < inputs; k++, to += vectors * L)
        std::copy_n(w + k * outputs + at, vectors * L, to);
    });
  }

  // y[r] += x[r] w; SET: y[r] = x[r] w
  template <bool SET> void apply(int rows, const T *const *x, T *const *y) const
  {
    over_panels([&](int at, auto vectors) {
      constexpr int N = vectors;
      const T *w = panels_.get() + static_cast<I>(at) * inputs_;
      int r = 0;
      for (; r + GEMM_ROWS <= rows; r += GEMM_ROWS)
        gemm_tile<GEMM_ROWS, N, SET>(inputs_, x + r, w, N * L, y + r, at);
      rest<GEMM_ROWS - 1, N, SET>(rows - r, x + r, w, y + r, at);
    });
  }

 private:
  int inputs_, outputs_;
  Buffer<T> panels_;

  // calls f(first column, vectors as a constant)
  template <class F> void over_panels(const F &f) const
  {
    int at = 0;
    for (; at + GEMM_VECTORS * L <= outputs_; at += GEMM_VECTORS * L)
      f(at, std::integral_constant<int, GEMM_VECTORS>());
    if (GEMM_VECTORS > 2)
      for (; at + 2 * L <= outputs_; at += 2 * L) f(at, std::integral_constant<int, 2>());
    for (; at < outputs_; at += L) f(at, std::integral_constant<int, 1>());
  }

  template <int R, int N, bool SET>
  void rest(int rows, const T *const *x, const T *w, T *const *y, int at) const
  {
    if constexpr (R > 0) {
      if (rows == R)
        gemm_tile<R, N, SET>(inputs_, x, w, N * L, y, at);
      else
        rest<R - 1, N, SET>(rows, x, w, y, at);
    }
  }
};

}     // namespace
