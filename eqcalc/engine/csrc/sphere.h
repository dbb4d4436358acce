// Nonlinearities on the sphere (eqcalc.nn.sphere): values on points, a function of them, and back.
// The even scalar, the first row, goes through SiLU by itself.

#pragma once
#include "generated/steps.h"

namespace {

class SphereFunction {
 public:
  COLD explicit SphereFunction(const Record &from) :
      mul_(from.integer("mul")), points_(from.array("to_grid").length(0)),
      rows_(from.array("to_grid").length(1)), exact_(from.integer("exact")),
      scale_(static_cast<T>(from.number("scale"))), silu_("silu", from.number("silu")),
      places_(from.indices("places"))
  {
    from.array("to_grid").copy(to_.get(points_ * rows_));
    from.array("from_grid").copy(from_.get(points_ * rows_));
  }

  // x, y: rows of `mul` channels at `places`
  void forward(const T *x, T *y) const
  {
    V in[MOST_SPHERE_ROWS], out[MOST_SPHERE_ROWS];
    for (I c = 0; c < mul_; c += L) {
      for (I r = 0; r < rows_; r++) in[r] = load(x + places_[r] + c);
      std::fill_n(out, rows_, V{});
      for (I p = 0; p < points_; p++) {
        const T *to = to_.get() + p * rows_, *back = from_.get() + p * rows_;
        V v = {}, f, slope;
        for (I r = 0; r < rows_; r++) v += to[r] * in[r];
        function(v, f, slope);
        for (I r = 1; r < rows_; r++) out[r] += back[r] * f;
      }
      out[0] = silu_.value(in[0]);
      for (I r = 0; r < rows_; r++) store(y + places_[r] + c, out[r]);
    }
  }

  // dx = (dy/dx)^T g, or that is added to it; dx may be x
  void backward(const T *x, const T *g, T *dx, bool sets) const
  {
    V in[MOST_SPHERE_ROWS], gradient[MOST_SPHERE_ROWS], out[MOST_SPHERE_ROWS];
    for (I c = 0; c < mul_; c += L) {
      for (I r = 0; r < rows_; r++) {
        in[r] = load(x + places_[r] + c);
        gradient[r] = load(g + places_[r] + c);
      }
      V value, slope;
      silu_.value_and_slope(in[0], value, slope);
      std::fill_n(out, rows_, V{});
      out[0] = gradient[0] * slope;
      for (I p = 0; p < points_; p++) {
        const T *to = to_.get() + p * rows_, *back = from_.get() + p * rows_;
        V v = {}, owed = {}, f;
        for (I r = 0; r < rows_; r++) v += to[r] * in[r];
        for (I r = 1; r < rows_; r++) owed += back[r] * gradient[r];
        function(v, f, slope);
        owed *= slope;
        for (I r = 0; r < rows_; r++) out[r] += to[r] * owed;
      }
      for (I r = 0; r < rows_; r++) {
        T *at = dx + places_[r] + c;
        store(at, sets ? out[r] : load(at) + out[r]);
      }
    }
  }

 private:
  I mul_, points_, rows_;
  bool exact_;     // SiLU to second order
  T scale_;
  Activation silu_;
  std::vector<int> places_;     // of rows
  Buffer<T> to_, from_;         // [points, rows]; nothing comes back to the first row

  void function(V v, V &value, V &slope) const
  {
    if (exact_) {
      value = scale_ * v * (T(0.5) + T(0.25) * v);
      slope = scale_ * (T(0.5) + T(0.5) * v);
    } else {
      silu_.value_and_slope(v, value, slope);
    }
  }
};

class SphereStep final : public Step {
 public:
  COLD SphereStep(const Record &from, int source, int target) :
      Step(source, target), sphere_(from.record("sphere"))
  {
  }

  void forward(const Block &block) const override
  {
    for (int b = 0; b < block.count; b++)
      sphere_.forward(block.values[source()][b], block.values[target()][b]);
  }
  void backward(const Block &block) const override
  {
    const Span values = block.values[source()], to = block.gradients[source()];
    for (int b = 0; b < block.count; b++)
      sphere_.backward(values[b], block.gradients[target()][b], to[b], values.first == to.first);
  }

 private:
  SphereFunction sphere_;
};

}     // namespace
