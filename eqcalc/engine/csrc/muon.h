// A step of Muon for many small matrices (eqcalc.training.muon): momentum, decay, the nearest
// orthogonal matrix by Newton and Schulz's iteration, and the update. Behind dense.h.
//
// Matrices are held tall, Y [n, m] with m <= n, so that neither product of the iteration
//   G = Y^T Y,   Y <- Y (a + b G + c G^2)
// needs a transposed copy; G and its square are symmetric, and half of each is computed.

#pragma once
#include "dense.h"

namespace {

constexpr double QUINTIC[3] = {3.4445, -4.7750, 2.0315};

struct Matrix {
  I rows, columns;
  T *weight, *momentum;
  const T *gradient;
};

class Orthogonalizer {
 public:
  // tall [n, m padded to whole vectors, with zeros]
  T *tall(I n, I m)
  {
    n_ = n;
    m_ = padded(m);
    T *y = y_.get(n_ * m_);
    std::fill_n(y, n_ * m_, T(0));
    return y;
  }
  I width() const { return m_; }

  // what `tall` was filled with -> its orthogonal factor, of the same layout
  const T *run(int iterations)
  {
    T *y = y_.get(n_ * m_), *other = other_.get(n_ * m_);
    T *gram = gram_.get(m_ * m_), *polynomial = polynomial_.get(m_ * m_);
    const auto at = [this](std::vector<const T *> &rows, const T *data, I count) {
      rows.resize(count);
      for (I k = 0; k < count; k++) rows[k] = data + k * m_;
    };
    for (int k = 0; k < iterations; k++) {
      at(rows_, y, n_);
      square(rows_, gram);
      at(rows_, gram, m_);
      square(rows_, polynomial);
      for (I i = 0; i < m_; i++) {
        for (I j = 0; j < m_; j++)
          polynomial[i * m_ + j] = T(QUINTIC[1]) * gram[i * m_ + j] +
              T(QUINTIC[2]) * polynomial[i * m_ + j];
        polynomial[i * m_ + i] += T(QUINTIC[0]);
      }
      at(rows_, y, n_);
      out_.resize(n_);
      for (I r = 0; r < n_; r++) out_[r] = other + r * m_;
      apply_rows(n_, m_, rows_.data(), polynomial, m_, m_, T(1), out_.data());
      std::swap(y, other);
    }
    return y;
  }

 private:
  // rows^T rows, [m, m]: from the diagonal to the right, and mirrored
  void square(const std::vector<const T *> &rows, T *result)
  {
    for (I i = 0; i < m_; i += GEMM_ROWS)
      outer_rows(rows.size(), rows.data(), rows.data(), i, std::min<I>(GEMM_ROWS, m_ - i), m_, T(1),
                 result, i / L * L);
    for (I i = 0; i < m_; i++)
      for (I j = 0; j < i; j++) result[i * m_ + j] = result[j * m_ + i];
  }

  I n_ = 0, m_ = 0;
  Buffer<T> y_, other_, gram_, polynomial_;
  std::vector<const T *> rows_;
  std::vector<T *> out_;
};

void step(const Matrix &a, Orthogonalizer &work, double rate, double decay, double momentum,
          int iterations)
{
  const bool wide = a.rows < a.columns;
  T *y = work.tall(std::max(a.rows, a.columns), std::min(a.rows, a.columns));
  const I width = work.width();
  double norm = 0;
  const auto place = [&](I i, I j) { return wide ? j * width + i : i * width + j; };
  for (I i = 0; i < a.rows; i++) {
    const I row = i * a.columns;
    for (I j = 0; j < a.columns; j++) {
      const T g = a.gradient[row + j];
      T &average = a.momentum[row + j];
      average += T(1 - momentum) * (g - average);
      const T ahead = g + T(momentum) * (average - g);     // Nesterov's
      y[place(i, j)] = ahead;
      norm += static_cast<double>(ahead) * ahead;
    }
  }
  const T factor = T(1 / std::max(root(norm), 1e-7));
  for (I k = 0; k < std::max(a.rows, a.columns) * width; k++) y[k] *= factor;
  const T *direction = work.run(iterations);
  const T keep = T(1 - rate * decay);
  const T length = T(0.2 * rate * root(static_cast<double>(std::max(a.rows, a.columns))));
  for (I i = 0; i < a.rows; i++)
    for (I j = 0; j < a.columns; j++) {
      T &w = a.weight[i * a.columns + j];
      w = keep * w - length * direction[place(i, j)];
    }
}

}     // namespace

// shapes [count, 2]: rows, columns; addresses [count, 3]: weights, momentum, gradient;
// settings: learning rate, weight decay, momentum, iterations
extern "C" int muon_step(I count, const I *shapes, const I *addresses, const double *settings)
{
  return guarded([&] {
    in_parallel(count, most_threads(), [&](I k) {
      static thread_local Orthogonalizer work;
      const auto pointer = [&](I n) { return reinterpret_cast<T *>(addresses[3 * k + n]); };
      step({shapes[2 * k], shapes[2 * k + 1], pointer(0), pointer(1), pointer(2)}, work,
           settings[0], settings[1], settings[2], static_cast<int>(settings[3]));
    });
  });
}
