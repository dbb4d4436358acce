// Learned numbers of neighbours that messages are divided by (eqcalc.nn.normalization), of all layers
//
//     n_i = sum_j tanh(z(r_ij)^2),   m_i -> m_i / (1 + n_i)

#pragma once
#include "radial_table.h"

namespace {

class Counts {
 public:
  COLD void read(const Record &from, const RadialBasis &basis)
  {
    width_ = from.integer("width");
    radial_.read(from.record("radial"), width_, basis);
  }

  static constexpr bool none() { return !COUNTS; }

  void begin(const Edges &edges, RadialBasis &basis, I num_local, int threads)
  {
    if (none()) return;
    const Radial radial = radial_.weights(basis, edges, threads, false);
    T *counts = counts_.get(num_local * width_);
    std::fill_n(pulls_.get(num_local * width_), num_local * width_, T(0));
    in_ranges(num_local, threads, [&](I begin, I end) {
      for (I i = begin; i < end; i++) {
        T *count = counts + i * width_;
        std::fill_n(count, width_, T(0));
        const Centre centre = edges.of(i);
        for (int e = 0; e < centre.count; e++) {
          const Radial::Cursor at = radial.at(centre.slot + e);
          for (I k = 0; k < width_; k += L) store(count + k, load(count + k) + term(at.value(k)));
        }
      }
    });
  }

  // what messages of a layer to own atom i are multiplied by
  T scale(I i, I layer) const { return T(1) / (T(1) + counts_.get()[i * width_ + layer]); }

  // product: of the gradient in the messages and the messages, both scaled
  void pull(I i, I layer, T product)
  {
    pulls_.data()[i * width_ + layer] -= product * scale(i, layer);
  }

  // once all layers have pulled
  void add_gradient(Edges &edges, RadialBasis &basis, I num_local, int threads)
  {
    if (none()) return;
    const Radial radial = radial_.weights(basis, edges, threads, true);
    const EdgeGradient gradient = edges.gradient();
    in_ranges(num_local, threads, [&](I begin, I end) {
      for (I i = begin; i < end; i++) {
        const Centre centre = edges.of(i);
        for (I e = centre.slot; e < centre.slot + centre.count; e++) {
          const Radial::Cursor at = radial.at(e);
          V sum = {};
          for (I k = 0; k < width_; k += L) {
            V z, dz;
            at.value_and_slope(k, z, dz);
            const V t = term(z);
            sum += load(pulls_.get() + i * width_ + k) * (T(1) - t * t) * T(2) * z * dz;
          }
          for (int lane = 0; lane < L; lane++) gradient.r[e] += sum[lane] * at.scale;
        }
      }
    });
  }

  I bytes() const { return radial_.bytes() + counts_.bytes() + pulls_.bytes(); }

 private:
  I width_ = 0;     // padded columns, one for each layer
  RadialFunctions radial_;
  Buffer<T> counts_, pulls_;     // [own, width]: n_i, dE/dn_i

  static V term(V z) { return T(2) * sigmoid(T(2) * z * z) - T(1); }
};

}     // namespace
