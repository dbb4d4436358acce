// Layer normalisation (eqcalc.nn.layer_norm).

#pragma once
#include "steps.h"

namespace {

// y = gains x / n, n^2 = epsilon^2 + mean square of x by block (eqcalc.nn.layer_norm)
class LayerNormStep final : public Step {
 public:
  COLD LayerNormStep(const Record &from, int source, int target) :
      Step(source, target), square_(static_cast<T>(from.number("square"))),
      width_(from.array("gains").size())
  {
    from.array("gains").copy(gains_.get(width_));
    from.array("shares").copy(shares_.get(width_));
  }

  void forward(const Block &block) const override
  {
    for (int b = 0; b < block.count; b++) {
      const T *x = block.values[source()][b];
      T *y = block.values[target()][b];
      const T factor = inverse(x);
      for (I c = 0; c < width_; c += L) store(y + c, factor * load(gains_.get() + c) * load(x + c));
    }
  }

  void backward(const Block &block) const override
  {
    const Span values = block.values[source()], to = block.gradients[source()];
    const bool sets = values.first == to.first;
    for (int b = 0; b < block.count; b++) {
      const T *x = values[b], *g = block.gradients[target()][b];
      const T factor = inverse(x);
      V sum = {};
      for (I c = 0; c < width_; c += L) sum += load(g + c) * load(gains_.get() + c) * load(x + c);
      const T pull = -lane_sum(sum) * factor * factor * factor;
      for (I c = 0; c < width_; c += L) {
        const V owed = factor * load(gains_.get() + c) * load(g + c) +
            pull * load(shares_.get() + c) * load(x + c);
        store(to[b] + c, sets ? owed : load(to[b] + c) + owed);
      }
    }
  }

 private:
  T square_;     // epsilon^2
  I width_;
  Buffer<T> gains_, shares_;     // of columns; shares: n^2 = epsilon^2 + sum of shares x^2

  T inverse(const T *x) const
  {
    V sum = {};
    for (I c = 0; c < width_; c += L) sum += load(shares_.get() + c) * load(x + c) * load(x + c);
    return T(1) / root(square_ + lane_sum(sum));
  }
};

}     // namespace
