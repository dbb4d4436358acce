// Products with matrices that are read again and again: panels of columns lie one after the other, so
// that a panel stays in the cache while all rows of a tile go through it. Matrices with many columns
// have narrower panels and taller groups of rows, which are packed first: a vector of the matrix then
// meets nearly twice as many rows before the next one is fetched, from where all matrices together
// have room.

#pragma once
#include "gemm.h"
#include "generated/messages.h"

namespace {

constexpr bool TALL = WIDE_MAPS && TALL_VECTORS > 1;     // whether there are such groups

// as gemm_tile, of rows that are packed: x [inputs, R]
template <int R, int N, bool SET>
inline void tall_tile(int inputs, const T *x, const T *w, T *const *y, int at)
{
  product_tile<R, N, SET>(
      inputs, [&](int k, int r) INLINED { return x[k * R + r]; }, w, N * L, y, at);
}

class PackedMatrix {
 public:
  // w [inputs, outputs], outputs a multiple of PADDING
  PackedMatrix(I inputs, I outputs, const T *w) :
      inputs_(static_cast<int>(inputs)), outputs_(static_cast<int>(outputs))
  {
    T *to = panels_.get(inputs * outputs);
    const auto copy = [&](int at, auto vectors, int) {
      for (I k = 0; k < inputs; k++, to += vectors * L)
        std::copy_n(w + k * outputs + at, vectors * L, to);
    };
    if (tall())
      over_columns<TALL_VECTORS>(0, outputs_, copy);
    else
      over_columns(0, outputs_, copy);
  }

  // numbers that so many rows need
  I room(I rows) const { return tall() ? (rows + 1) * inputs_ : 0; }

  // y[r] += x[r] w; SET: y[r] = x[r] w
  template <bool SET> void apply(int rows, const T *const *x, T *const *y, T *room) const
  {
    if constexpr (TALL)
      if (tall()) return apply_tall<SET>(rows, x, y, room);
    over_columns(0, outputs_, [&](int at, auto vectors, int) INLINED {
      constexpr int N = vectors;
      const T *w = panels_.get() + static_cast<I>(at) * inputs_;
      over_rows(rows, [&](int r, auto count) INLINED {
        gemm_tile<count, N, SET>(inputs_, x + r, w, N * L, y + r, at);
      });
    });
  }

 private:
  int inputs_, outputs_;
  Buffer<T> panels_;

  bool tall() const { return TALL && outputs_ >= WIDE; }

  // Groups of equally many rows. An odd one has its last row twice, which gets the same sum twice.
  template <bool SET> void apply_tall(int rows, const T *const *x, T *const *y, T *room) const
  {
    const int groups = (rows + TALL_ROWS - 1) / TALL_ROWS;
    const int size = (rows + 2 * groups - 1) / (2 * groups) * 2;
    const auto of_group = [&](int first, const auto &f) INLINED {
      with_rows<TALL_ROWS, 2>((std::min(size, rows - first) + 1) / 2 * 2, f);
    };
    const auto row = [&](int r) { return std::min(r, rows - 1); };
    T *to = room;
    for (int first = 0; first < rows; first += size)
      of_group(first, [&](auto count) INLINED {
        constexpr int R = count;
        const T *from[R];
        for (int r = 0; r < R; r++) from[r] = x[row(first + r)];
        for (int k = 0; k < inputs_; k++, to += R)
          for (int r = 0; r < R; r++) to[r] = from[r][k];
      });
    over_columns<TALL_VECTORS>(0, outputs_, [&](int at, auto vectors, int) INLINED {
      constexpr int N = vectors;
      const T *w = panels_.get() + static_cast<I>(at) * inputs_, *packed = room;
      for (int first = 0; first < rows; first += size)
        of_group(first, [&](auto count) INLINED {
          constexpr int R = count;
          T *of[R];
          for (int r = 0; r < R; r++) of[r] = y[row(first + r)];
          tall_tile<R, N, SET>(inputs_, packed, w, of, at);
          packed += static_cast<I>(R) * inputs_;
        });
    });
  }
};

}     // namespace
